"""Conversion of finished results for other programs."""
