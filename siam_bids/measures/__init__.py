"""Measures of segmentations, and tables over all scans."""
