"""Heads: from a backbone's features to predictions."""
