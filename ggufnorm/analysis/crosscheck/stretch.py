"""The old place of :func:`~.segment.record_segment`, for ``runs.py``."""

from ggufnorm.analysis.crosscheck.segment import record_segment as take_down

__all__ = ["take_down"]
