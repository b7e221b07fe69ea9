"""Subject–verb agreement across distance: nouns of the other number may stand between subject and verb."""

from numpy.random import Generator

from ._example import Example, fold, join, pick, pick_distinct
from ._words import ACTIONS, COPULAS, LIKINGS, MANNERS, NOUNS, PREPOSITIONS, QUALITIES

FOLDS = 8
VERBS = COPULAS + ACTIONS
CORRUPTIONS = ("subject",)


def example(generator: Generator) -> Example:
    """Which form does the verb take? Up to two nouns, of either number, stand between it and its subject."""
    between = int(generator.integers(3))
    nouns = tuple(pick_distinct(generator, range(len(NOUNS)), between + 1))
    numbers = tuple(int(number) for number in generator.integers(2, size=between + 1))
    links = tuple(pick(generator, PREPOSITIONS + ("that",) * 3) for _ in range(between))
    likings = tuple(pick(generator, range(len(LIKINGS))) for _ in range(between))
    verb = pick(generator, range(len(VERBS)))
    ending = pick(generator, QUALITIES if verb < len(COPULAS) else MANNERS)
    return build(nouns=nouns, numbers=numbers, links=links, likings=likings, verb=verb, ending=ending)


def build(
    *,
    nouns: tuple[int, ...],
    numbers: tuple[int, ...],
    links: tuple[str, ...],
    likings: tuple[int, ...],
    verb: int,
    ending: str,
) -> Example:
    """Which sentence has these parts? Indices into the word lists; a number is 0 for singular, 1 for plural."""
    tokens = ["The", NOUNS[nouns[0]][numbers[0]]]
    positions = {"subject": 2}
    for index, link in enumerate(links, start=1):
        tokens += [link, "the", NOUNS[nouns[index]][numbers[index]]]
        positions[f"between_{index}"] = len(tokens)
        if link == "that":  # an object clause: its own verb agrees with its own noun
            tokens.append(LIKINGS[likings[index - 1]][numbers[index]])
    positions["end"] = len(tokens)
    forms = VERBS[verb]
    tokens += [forms[numbers[0]], ending, "."]
    attractors = sum(number != numbers[0] for number in numbers[1:])
    details = {
        "nouns": nouns, "numbers": numbers, "links": links, "likings": likings, "verb": verb, "ending": ending,
        "attractors": attractors,
    }  # fmt: skip
    return Example("agreement", join(tokens), forms[numbers[0]], (forms[1 - numbers[0]],), positions, details)


def holdout_key(item: Example) -> str:
    """On what is it decided whether the sentence is held out? Its nouns with their numbers, and the verb."""
    return f"{item.details['nouns']}|{item.details['numbers']}|{item.details['verb']}"


def is_held_out(item: Example) -> bool:
    """Is this combination kept out of training?"""
    return fold(holdout_key(item), FOLDS) == 0


def corrupt(item: Example, kind: str, generator: Generator) -> Example:
    """Which sentence has its subject in the other number, and so its verb? (`kind` is always `subject`.)"""
    parts = {name: value for name, value in item.details.items() if name != "attractors"}
    numbers = parts.pop("numbers")
    return build(numbers=(1 - numbers[0], *numbers[1:]), **parts)
