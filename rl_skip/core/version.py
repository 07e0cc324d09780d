"""The version of the package, for whoever writes files."""

__all__ = ["__version__"]

__version__ = "0.1.0"
