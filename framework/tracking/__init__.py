"""Where a run is recorded: the Weights & Biases logger, and pictures for people."""
