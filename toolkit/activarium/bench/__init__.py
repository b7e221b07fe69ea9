"""How much does reading cost? Ratios of interleaved medians, side by side in one process: `python -m activarium.bench`."""

from activarium.bench._timing import Row, interleaved, ratio

__all__ = ["Row", "interleaved", "ratio"]
