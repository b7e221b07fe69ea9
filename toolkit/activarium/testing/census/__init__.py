"""Every model class of the installed transformers, tiny and certified: what `activarium doctor --all` walks."""

from activarium.testing.census._classes import ModelClass, every_class
from activarium.testing.census._shrink import tiny_model
from activarium.testing.census._table import OUTCOMES, counts, read, write
from activarium.testing.census._verdict import Verdict, examine, fresh
from activarium.testing.census._walk import count, walk

__all__ = ["OUTCOMES", "ModelClass", "Verdict", "count", "counts", "every_class", "examine", "fresh", "read", "tiny_model", "walk", "write"]
