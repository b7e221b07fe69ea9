"""Two-hop facts: the capital of the country of a person, where each single fact is told elsewhere.

The world is a table: person number i comes from country number `i % 12`, and each relation lists its values in the order
of the countries. A composition is a (person, relation) pair; one in four is never stated, though both its facts are.
"""

from numpy.random import Generator

from ._example import Example, fill, fold, join, pick
from ._words import COUNTRIES, PEOPLE, RELATIONS

FOLDS = 4
CORRUPTIONS = ("person",)
ORIGIN = "{person} comes from {answer} ."
FACT = "The {relation} of {country} is {answer} ."
COMPOSITION = "The {relation} of the country of {person} is {answer} ."


def country_of(person: str) -> str:
    """Where does this person come from?"""
    return COUNTRIES[PEOPLE.index(person) % len(COUNTRIES)]


def value_of(relation: str, country: str) -> str:
    """What is the capital, language or dish of this country?"""
    return RELATIONS[relation][COUNTRIES.index(country)]


def example(generator: Generator) -> Example:
    """Which value has a person's country? Half of the sentences compose, the others tell one of the two facts."""
    person, relation = pick(generator, PEOPLE), pick(generator, tuple(RELATIONS))
    kind = int(generator.integers(4))
    if kind == 0:
        return origin(person)
    return fact(relation, country_of(person)) if kind == 1 else composition(person, relation)


def origin(person: str) -> Example:
    """Which country does this person come from? The first hop."""
    slots = {"person": person, "answer": country_of(person)}
    return _example(ORIGIN, slots, COUNTRIES, {"hops": 1, "person": person})


def fact(relation: str, country: str) -> Example:
    """What is this country's capital, language or dish? The second hop."""
    slots = {"relation": relation, "country": country, "answer": value_of(relation, country)}
    return _example(FACT, slots, RELATIONS[relation], {"hops": 1, "relation": relation})


def composition(person: str, relation: str) -> Example:
    """What is the capital, language or dish of this person's country? Both hops at once."""
    slots = {"relation": relation, "person": person, "answer": value_of(relation, country_of(person))}
    return _example(COMPOSITION, slots, RELATIONS[relation], {"hops": 2, "person": person, "relation": relation})


def _example(template: str, slots: dict[str, str], values: tuple[str, ...], details: dict[str, str | int]) -> Example:
    """The example of a filled template; all other values of the relation are distractors."""
    tokens, at = fill(template, slots)
    positions = {role: place for role, place in at.items() if role != "answer"}
    positions["end"] = at["answer"] - 1
    others = tuple(value for value in values if value != slots["answer"])
    return Example("two_hop", join(tokens), slots["answer"], others, positions, details)


def holdout_key(item: Example) -> str:
    """On what is it decided whether the sentence is held out? Person and relation of a composition."""
    return f"{item.details.get('person')}|{item.details.get('relation')}"


def is_held_out(item: Example) -> bool:
    """Is this composition kept out of training? Single facts never are."""
    return item.details["hops"] == 2 and fold(holdout_key(item), FOLDS) == 0


def corrupt(item: Example, kind: str, generator: Generator) -> Example:
    """Which composition asks the same about a person of another country? (`kind` is always `person`.)

    Raises:
        ValueError: The example tells a single fact, which has no composition to corrupt.
    """
    if item.details["hops"] != 2:
        raise ValueError(
            f"Only a composition can be corrupted by 'person'; found the single fact {item.text!r}.\n"
            "    Draw from corpus.held_out('two_hop', …), which holds compositions only."
        )
    home = country_of(item.details["person"])
    other = pick(generator, [person for person in PEOPLE if country_of(person) != home])
    return composition(other, item.details["relation"])
