"""Sentence frames and word lists of the indirect-object task: data, of which a builder keeps what a model's tokenizer knows."""

from __future__ import annotations

from activarium.data.corpus._ioi import TEMPLATES as TRAINED  # pyright: ignore[reportMissingImports]  (a path that is found at run time)
from activarium.data.corpus._words import NAMES as TRAINED_NAMES  # pyright: ignore[reportMissingImports]
from activarium.data.corpus._words import OBJECTS as TRAINED_OBJECTS  # pyright: ignore[reportMissingImports]
from activarium.data.corpus._words import PLACES as TRAINED_PLACES  # pyright: ignore[reportMissingImports]

# Each ends before the receiver. The first group is what scribe was trained on; the second is for vocabularies of a hundred words.
# A builder takes the first group of which any frame fits.
FRAMES: tuple[tuple[str, ...], ...] = (
    tuple(template.removesuffix(" {answer} .") for template in TRAINED),
    (
        "when {first} and {second} sat near the {place} , {giver} gave the {object} to",
        "now {first} and {second} are in the {place} and {giver} gave the {object} to",
        "then {first} ran from the {place} with {second} , and {giver} gave a {object} to",
    ),
)
NAMES: tuple[str, ...] = (*TRAINED_NAMES, "Tom", "John", "Sarah", "Peter", "Susan", "James", "Emily", "Robert", "Lisa", "Mark")
PLACES: tuple[str, ...] = (*TRAINED_PLACES, "house", "river", "store", "lake")
OBJECTS: tuple[str, ...] = (*TRAINED_OBJECTS, "key", "cup", "drink", "box")
