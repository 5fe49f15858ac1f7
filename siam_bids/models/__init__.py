"""Known models, where they are stored, and their settings."""
