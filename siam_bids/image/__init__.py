"""Scans, label maps and grids."""
