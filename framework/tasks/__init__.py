"""LightningModules, one file per task, each to be read top to bottom."""
