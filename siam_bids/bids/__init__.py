"""BIDS: finding scans, naming outputs, reading and writing derivatives."""
