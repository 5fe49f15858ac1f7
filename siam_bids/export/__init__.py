"""Finished results in the form that other programs take: nothing is segmented anew."""
