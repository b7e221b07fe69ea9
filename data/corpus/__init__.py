"""A generated English-like corpus in which the structure behind every answer is known.

Six families of sentences, each with its own held-out rule, decided by a checksum of what the sentence is made of, so
that training and held-out sentences cannot meet whatever the seeds are:

    ioi        who receives the object               held out: pair of names with template
    induction  a random sequence said twice          held out: sequence
    agreement  verb form across other nouns          held out: nouns, numbers and verb
    brackets   which bracket closes                  held out: arrangement of brackets
    sentiment  the verdict of a review               held out: the three judgements
    two_hop    the capital of someone's country      held out: person with relation (both facts are told)
"""

from collections.abc import Iterator

import numpy as np

from . import _agreement, _brackets, _induction, _ioi, _sentiment, _two_hop, _words
from ._example import Example, join, words

__all__ = [
    "FAMILIES", "SHARES", "SPECIAL", "VOCABULARY", "Example", "corrupt", "corruptions", "held_out", "is_held_out",
    "join", "training", "training_text", "words",
]  # fmt: skip

_MODULES = {
    "ioi": _ioi,
    "induction": _induction,
    "agreement": _agreement,
    "brackets": _brackets,
    "sentiment": _sentiment,
    "two_hop": _two_hop,
}
FAMILIES = tuple(_MODULES)

# Shares of the training sentences. Name moving and induction are the slow ones to be learned, so they get most.
SHARES = {"ioi": 0.30, "induction": 0.20, "agreement": 0.18, "brackets": 0.08, "sentiment": 0.10, "two_hop": 0.14}

SPECIAL = ("<bos>", "<eos>", "<pad>", "<unk>")


def _all_words() -> tuple[str, ...]:
    """Every token a sentence can hold, special tokens first, then sorted: the order of the token ids."""
    found = {"Say", "again", "Review", "Verdict", "The", "the", "not", "and", "that", ",", "."}
    for template in (*_ioi.TEMPLATES, _two_hop.ORIGIN, _two_hop.FACT, _two_hop.COMPOSITION):
        found |= {token for token in template.split() if not token.startswith("{")}
    for pair in (*_words.NOUNS, *_words.LIKINGS, *_agreement.VERBS, *_words.BRACKETS, *_words.RELATIONS.values()):
        found |= set(pair)
    for plain in (_induction.POOL, _words.PREPOSITIONS, _words.MANNERS, _words.SUBJECTS, _words.GOOD, _words.BAD):
        found |= set(plain)
    for plain in (_words.LABELS, _sentiment.LINKS, _words.COUNTRIES, _words.PEOPLE, tuple(_words.RELATIONS)):
        found |= set(plain)
    return SPECIAL + tuple(sorted(found))


VOCABULARY = _all_words()


def training(seed: int) -> Iterator[Example]:
    """Which sentences does a model train on? An endless stream without any held-out combination.

    Args:
        seed: The same seed gives the same stream, on every machine.

    Returns:
        Examples of all families, mixed by `SHARES`.
    """
    generator = np.random.default_rng(seed)
    edges = np.cumsum(list(SHARES.values()))
    while True:
        family = FAMILIES[int(np.searchsorted(edges, generator.random() * edges[-1], side="right"))]
        yield _draw(family, generator, wanted=False)


def training_text(seed: int, n: int) -> list[str]:
    """How do the first `n` training sentences of a seed read?"""
    stream = training(seed)
    return [next(stream).text for _ in range(n)]


def held_out(family: str, seed: int, n: int) -> list[Example]:
    """Which sentences of a family can measure a model fairly? Combinations that no training stream contains.

    Args:
        family: One of `FAMILIES`.
        seed: The same seed gives the same examples.
        n: How many.

    Raises:
        ValueError: No family of this name; the message lists them.
    """
    _module(family)
    generator = np.random.default_rng(seed)
    return [_draw(family, generator, wanted=True) for _ in range(n)]


def is_held_out(example: Example) -> bool:
    """Is this sentence's combination kept out of every training stream?"""
    return _module(example.family).is_held_out(example)


def corruptions(family: str) -> tuple[str, ...]:
    """In which ways can the sentences of a family be corrupted?"""
    return _module(family).CORRUPTIONS


def corrupt(example: Example, kind: str, seed: int) -> Example:
    """Which sentence of equal length lacks or flips the evidence of this one? The other half of a patching pair.

    Args:
        example: A clean example of any family.
        kind: One of `corruptions(example.family)`; for `ioi` see `s2_to_io` (flips the answer) and `abc` (removes it).
        seed: Draws whatever new words are needed.

    Raises:
        ValueError: The family has no corruption of this kind; the message lists what it has.
    """
    module = _module(example.family)
    if kind not in module.CORRUPTIONS:
        raise ValueError(
            f"No corruption {kind!r} for the family {example.family!r}. It has: {', '.join(module.CORRUPTIONS)}.\n"
            "    See corpus.corruptions(family)."
        )
    return module.corrupt(example, kind, np.random.default_rng(seed))


def _draw(family: str, generator: np.random.Generator, wanted: bool) -> Example:
    """Draw until the example lies on the wanted side of the held-out rule."""
    module = _MODULES[family]
    while True:
        example = module.example(generator)
        # Held-out draws of two_hop must compose: a single fact is never on the held-out side.
        if module.is_held_out(example) == wanted:
            return example


def _module(family: str):
    """The module of a family, or an error that lists the families."""
    if family not in _MODULES:
        raise ValueError(f"No family called {family!r}. Known: {', '.join(FAMILIES)}.\n    Pass one of corpus.FAMILIES.")
    return _MODULES[family]
