"""Which models there are, where they lie, and what they set."""
