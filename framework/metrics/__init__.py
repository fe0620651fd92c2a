"""Metrics: what a split is counted with, one file per task."""
