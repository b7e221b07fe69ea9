"""Brackets: three kinds, nested up to four deep, each closed by its own kind in the right order."""

from dataclasses import replace

from numpy.random import Generator

from ._example import Example, fold, join, pick, words
from ._words import BRACKETS, COLOURS

FOLDS = 8
PAIRS = range(2, 7)
DEEPEST = 4
CLOSING = dict(BRACKETS)
CORRUPTIONS = ("kind",)


def example(generator: Generator) -> Example:
    """Which bracket closes here? The pair that is asked for is drawn from all pairs of the sentence."""
    tokens = _sentence(generator)
    partners = partner_positions(tokens)
    return build(tokens, pick(generator, sorted(partners)))


def _sentence(generator: Generator) -> list[str]:
    """One balanced sentence; a colour may follow any bracket, so distance and depth differ."""
    tokens, stack, to_open = [], [], pick(generator, PAIRS)
    while to_open or stack:
        if to_open and (not stack or (len(stack) < DEEPEST and generator.integers(2))):
            opening, closing = pick(generator, BRACKETS)
            stack.append(closing)
            tokens.append(opening)
            to_open -= 1
        else:
            tokens.append(stack.pop())
        if stack and generator.integers(2):
            tokens.append(pick(generator, COLOURS))
    return [*tokens, "."]


def partner_positions(tokens: list[str]) -> dict[int, int]:
    """At which position (0 is `<bos>`) does each opening bracket close?"""
    stack, partners = [], {}
    for position, token in enumerate(tokens, start=1):
        if token in CLOSING:
            stack.append(position)
        elif token in CLOSING.values():
            partners[stack.pop()] = position
    return partners


def build(tokens: list[str], opening: int) -> Example:
    """Which example asks for the partner of the bracket at position `opening`?"""
    closing = partner_positions(tokens)[opening]
    answer = tokens[closing - 1]
    before = tokens[: closing - 1]
    depth = sum(token in CLOSING for token in before) - sum(token in CLOSING.values() for token in before)
    others = tuple(mark for mark in CLOSING.values() if mark != answer)
    positions = {"open": opening, "end": closing - 1}
    return Example("brackets", join(tokens), answer, others, positions, {"depth": depth, "distance": closing - opening})


def holdout_key(item: Example) -> str:
    """On what is it decided whether the sentence is held out? Its brackets, without the colours."""
    return "".join(token for token in words(item.text) if not token.isalpha())


def is_held_out(item: Example) -> bool:
    """Is this arrangement of brackets kept out of training?"""
    return fold(holdout_key(item), FOLDS) == 0


def corrupt(item: Example, kind: str, generator: Generator) -> Example:
    """Which sentence opens, and closes, the asked pair with another bracket? (`kind` is always `kind`.)"""
    tokens, at = words(item.text), item.positions
    opening, closing = pick(generator, [pair for pair in BRACKETS if pair[1] != item.answer])
    tokens[at["open"] - 1], tokens[at["end"]] = opening, closing
    changed = build(tokens, at["open"])
    return replace(changed, details=item.details)
