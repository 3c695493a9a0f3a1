"""The version of this package, which runs and exported files keep."""

__version__ = "0.1.0"
