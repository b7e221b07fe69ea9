"""Tiny models by family name and one small Result of every kind: for our tests, for yours, and for docstring examples."""

from activarium.testing._example_pages import ExamplePages, example_pages
from activarium.testing._example_results import example_results, image_overlay
from activarium.testing._planted import planted_rows, recording_of
from activarium.testing._samples import images, texts
from activarium.testing._tiny_models import FAMILIES, tiny

__all__ = [
    "FAMILIES",
    "ExamplePages",
    "example_pages",
    "example_results",
    "image_overlay",
    "images",
    "planted_rows",
    "recording_of",
    "texts",
    "tiny",
]
