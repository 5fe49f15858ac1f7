"""Synthetic images generated from label maps."""
