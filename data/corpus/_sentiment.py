"""Sentiment: a short review whose judgements, some of them negated, decide the verdict at its end."""

from numpy.random import Generator

from ._example import Example, fold, join, pick, pick_distinct
from ._words import ASPECTS, BAD, GOOD, LABELS, SUBJECTS

FOLDS = 8
JUDGEMENTS = 3  # odd, so that there is always a majority
LINKS = ("was", "felt", "seemed")
CORRUPTIONS = ("opposite",)


def example(generator: Generator) -> Example:
    """Is the review positive or negative? Two or three of its three judgements say so; one in five is negated."""
    label = int(generator.integers(2))
    signs = [label] * JUDGEMENTS
    if generator.integers(3) == 0:
        signs[int(generator.integers(JUDGEMENTS))] = 1 - label
    negated = tuple(int(draw < 0.2) for draw in generator.random(JUDGEMENTS))
    judged = (pick(generator, SUBJECTS), *pick_distinct(generator, ASPECTS, JUDGEMENTS - 1))
    links = tuple(pick(generator, LINKS) for _ in range(JUDGEMENTS))
    quality = tuple(int(draw) for draw in generator.integers(len(GOOD), size=JUDGEMENTS))
    return build(tuple(signs), negated, judged, links, quality)


def build(
    signs: tuple[int, ...],
    negated: tuple[int, ...],
    judged: tuple[str, ...],
    links: tuple[str, ...],
    quality: tuple[int, ...],
) -> Example:
    """Which review makes these judgements? A sign is 0 for positive, 1 for negative, after any negation."""
    tokens, positions = ["Review", "."], {}
    for index, start in enumerate((["The"], [",", "the"], ["and", "the"])):
        word = (GOOD, BAD)[signs[index] ^ negated[index]][quality[index]]
        tokens += [*start, judged[index], links[index], *["not"] * negated[index], word]
        positions[f"judgement_{index + 1}"] = len(tokens)
    tokens += [".", "Verdict"]
    positions["end"] = len(tokens)
    label = int(sum(signs) * 2 > JUDGEMENTS)
    details = {"signs": signs, "negated": negated, "judged": judged, "links": links, "quality": quality}
    answer, other = LABELS[label], LABELS[1 - label]
    return Example("sentiment", join([*tokens, answer, "."]), answer, (other,), positions, details)


def holdout_key(item: Example) -> str:
    """On what is it decided whether the review is held out? Its three judging words with their signs."""
    return f"{item.details['quality']}|{item.details['signs']}|{item.details['negated']}"


def is_held_out(item: Example) -> bool:
    """Is this set of judgements kept out of training?"""
    return fold(holdout_key(item), FOLDS) == 0


def corrupt(item: Example, kind: str, generator: Generator) -> Example:
    """Which review says the opposite in every judgement? (`kind` is always `opposite`.)"""
    parts = dict(item.details)
    signs = parts.pop("signs")
    return build(signs=tuple(1 - sign for sign in signs), **parts)
