"""From a scan to its labels."""
