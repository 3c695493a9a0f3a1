"""trailseg: segmentation networks that refine their own answer, step by step."""

from trailseg.version import __version__

__all__ = ["Answer", "Predictor", "__version__"]


def __getattr__(name: str) -> object:
    """The Python interface, imported when it is first asked for, so that `trailseg --help` does without NumPy."""
    if name in ("Answer", "Predictor"):
        from trailseg import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module 'trailseg' has no attribute '{name}'")
