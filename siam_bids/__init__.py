"""siam-bids: a BIDS App that segments every head MRI of a study, any contrast, any resolution."""

__version__ = "0.1.0"
