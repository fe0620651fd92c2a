"""Ratios against hand-written code, peers and limits: one command each."""
