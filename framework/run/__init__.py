"""One run: its folder, its checkpoints, and what may happen to it on the way."""
