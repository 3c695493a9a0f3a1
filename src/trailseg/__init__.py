"""trailseg: segmentation networks that refine their own answer, step by step."""

__version__ = "0.1.0"
