"""The version of ggufnorm."""

__version__ = "0.1.0"
