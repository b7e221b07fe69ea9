"""One sentence of the corpus with its ground truth, and the few steps every family shares."""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from numpy.random import Generator

Item = TypeVar("Item")

# Marks that stand directly behind a word. Brackets keep their spaces, as the tokenizer's decoder writes them.
_TIGHT = re.compile(r" ([.,])")


@dataclass(frozen=True)
class Example:
    """What does this sentence ask of a language model, and where in it does the evidence stand?

    Attributes:
        family: Which structure it shows; one of `corpus.FAMILIES`.
        text: The whole sentence, answer included.
        answer: The word that the structure decides; it stands at `positions["end"] + 1`.
        distractors: Wrong answers of the same kind, the most tempting first.
        positions: Token positions by role, counted as the tokenizer counts: 0 is `<bos>`. Always has `end`, the last
            token before the answer.
        details: What the sentence was made of (template, names, …), enough to build its corruptions.
    """

    family: str
    text: str
    answer: str
    distractors: tuple[str, ...]
    positions: Mapping[str, int]
    details: Mapping[str, str | int | tuple[str, ...]] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The sentence up to and without the answer: what a model reads before it answers."""
        return join(words(self.text)[: self.positions["end"]])


def words(text: str) -> list[str]:
    """Which tokens does a text have? Words and single punctuation marks, exactly as the tokenizer splits them."""
    return re.findall(r"\w+|[^\w\s]", text)


def join(tokens: Sequence[str]) -> str:
    """How do these tokens read as text? The inverse of `words` for every text of the corpus."""
    return _TIGHT.sub(r"\1", " ".join(tokens))


def fill(template: str, slots: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """Which tokens does a template give, and at which position (0 is `<bos>`) does each slot stand?

    A template is written token by token, with spaces everywhere; a slot is a word in braces.
    """
    tokens, positions = [], {}
    for position, token in enumerate(template.split(), start=1):
        if token.startswith("{") and len(token) > 1:
            positions[token[1:-1]] = position
            token = slots[token[1:-1]]
        tokens.append(token)
    return tokens, positions


def pick(generator: Generator, items: Sequence[Item]) -> Item:
    """Which item comes up? (`Generator.choice` would turn the list into an array on every call.)"""
    return items[int(generator.integers(len(items)))]


def pick_distinct(generator: Generator, items: Sequence[Item], count: int) -> list[Item]:
    """Which `count` different items come up, in random order?"""
    return [items[int(index)] for index in generator.permutation(len(items))[:count]]


def fold(key: str, folds: int) -> int:
    """In which of `folds` parts does this key fall? Stable over runs and versions, unlike `hash`."""
    return zlib.crc32(key.encode()) % folds
