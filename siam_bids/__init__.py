"""siam-bids: a BIDS App that segments every head MRI of a study, any contrast, any resolution."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Offer `siam_bids.segment` without loading torch before it is used."""
    if name == "segment":
        from importlib import import_module

        return import_module("siam_bids.pipelines.files").segment
    raise AttributeError(name)
