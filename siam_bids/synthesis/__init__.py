"""Synthetic images painted on label maps."""
