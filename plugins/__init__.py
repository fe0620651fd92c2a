"""Backbone plugins: one file per family."""
