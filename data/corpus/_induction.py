"""Induction: a random sequence of words comes a second time, so every word of the second half is known."""

from numpy.random import Generator

from ._example import Example, fold, join, pick, pick_distinct
from ._words import ASPECTS, COLOURS, NAMES, NOUNS, OBJECTS, PLACES, QUALITIES

FOLDS = 16
POOL = tuple(dict.fromkeys((*NAMES, *PLACES, *OBJECTS, *(one for one, _ in NOUNS), *QUALITIES, *COLOURS, *ASPECTS)))
LENGTHS = range(4, 13)
CORRUPTIONS = ("source",)


def example(generator: Generator) -> Example:
    """Which word comes next, the second time? Half of the sentences announce the repetition, half just repeat."""
    sequence = tuple(pick_distinct(generator, POOL, pick(generator, LENGTHS)))
    return build(sequence, sequence, announced=int(generator.integers(2)))


def build(first: tuple[str, ...], second: tuple[str, ...], announced: int) -> Example:
    """Which sentence says `first`, then `second`? The answer is the last word of `second`."""
    tokens = ["Say", *first, ",", "again", *second, "."] if announced else [*first, *second, "."]
    start = 2 if announced else 1
    repeat = start + len(first) + (2 if announced else 0)
    positions = {
        "first": start,
        "repeat": repeat,
        "source": start + len(first) - 1,  # the earlier copy of the answer: what an induction head reads
        "end": repeat + len(second) - 2,
    }
    details = {"sequence": first, "announced": announced}
    return Example("induction", join(tokens), second[-1], (first[-2],), positions, details)


def holdout_key(item: Example) -> str:
    """On what is it decided whether the sentence is held out? The whole sequence, announced or not."""
    return " ".join(item.details["sequence"])


def is_held_out(item: Example) -> bool:
    """Is this sequence kept out of training?"""
    return fold(holdout_key(item), FOLDS) == 0


def corrupt(item: Example, kind: str, generator: Generator) -> Example:
    """Which sentence has another word at `source`, and therefore another answer? (`kind` is always `source`.)"""
    sequence = item.details["sequence"]
    other = pick(generator, [word for word in POOL if word not in sequence])
    changed = (*sequence[:-1], other)
    return build(changed, changed, item.details["announced"])
