"""Indirect objects: two people, one gives, the other one receives (the IOI task of Wang et al. 2022, arXiv:2211.00593).

Templates and names are our own. In ABBA order the receiver is named first, in BABA order the giver.
"""

from dataclasses import replace

from numpy.random import Generator

from ._example import Example, fill, fold, join, pick, pick_distinct
from ._words import NAMES, OBJECTS, PLACES

FOLDS = 5  # one in five (pair of names, template) combinations is never trained on

TEMPLATES = (
    "When {first} and {second} went to the {place} , {giver} gave the {object} to {answer} .",
    "After {first} and {second} came home from the {place} , {giver} handed a {object} to {answer} .",
    "While {first} and {second} were working at the {place} , {giver} passed the {object} to {answer} .",
    "Then {first} and {second} met near the {place} , and {giver} offered a {object} to {answer} .",
    "Yesterday {first} and {second} had lunch at the {place} , and later {giver} showed the {object} to {answer} .",
    "Because {first} and {second} were friends from the {place} , {giver} sent a {object} to {answer} .",
    "As {first} and {second} walked through the {place} , {giver} threw the {object} to {answer} .",
    "At the {place} {first} and {second} talked for an hour , before {giver} lent a {object} to {answer} .",
    "Friends since the {place} , {first} and {second} argued , and {giver} returned the {object} to {answer} .",
    "In the {place} {first} and {second} found a {object} , and {giver} brought it to {answer} .",
    "Once {first} and {second} had left the {place} , {giver} sold the {object} to {answer} .",
    "The {place} was quiet when {first} and {second} arrived , so {giver} described the {object} to {answer} .",
    "{first} and {second} bought a {object} at the {place} , then {giver} gave it to {answer} .",
    "Since {first} saw {second} at the {place} , {giver} mailed the {object} to {answer} .",
    "On Sunday {first} met {second} in the {place} , where {giver} gave a {object} to {answer} .",
    "Long after {first} left the {place} with {second} , {giver} carried the {object} to {answer} .",
)

CORRUPTIONS = ("s2_to_io", "abc", "s2_random", "s1_io_swap", "io_random")


def example(generator: Generator) -> Example:
    """Who receives the object? One random sentence, ABBA or BABA with equal chance."""
    first, second = pick_distinct(generator, NAMES, 2)
    io, subject = (first, second) if generator.integers(2) else (second, first)
    template = int(generator.integers(len(TEMPLATES)))
    place, thing = pick(generator, PLACES), pick(generator, OBJECTS)
    return build(template, (first, second, subject), io=io, subject=subject, place=place, thing=thing)


def build(template: int, names: tuple[str, str, str], *, io: str, subject: str, place: str, thing: str) -> Example:
    """Which sentence tells this? `names` are the first, second and giving person; `io` is the answer."""
    slots = dict(zip(("first", "second", "giver"), names, strict=True))
    tokens, at = fill(TEMPLATES[template], {**slots, "place": place, "object": thing, "answer": io})
    order = "ABBA" if names[0] == io or names[1] == subject else "BABA"
    io_slot, s1_slot = ("first", "second") if order == "ABBA" else ("second", "first")
    positions = {
        "io": at[io_slot],
        "s1": at[s1_slot],
        "s1_next": at[s1_slot] + 1,
        "s2": at["giver"],
        "end": at["answer"] - 1,
    }
    details = {"template": template, "order": order, "names": names, "io": io, "subject": subject, "place": place, "object": thing}
    return Example("ioi", join(tokens), io, (subject,), positions, details)


def holdout_key(item: Example) -> str:
    """On what is it decided whether the sentence is held out? The two names, in any order, with the template."""
    return "|".join([*sorted((item.details["io"], item.details["subject"])), str(item.details["template"])])


def is_held_out(item: Example) -> bool:
    """Is this combination kept out of training?"""
    return fold(holdout_key(item), FOLDS) == 0


def corrupt(item: Example, kind: str, generator: Generator) -> Example:
    """Which sentence of the same length removes or flips the evidence?

    Args:
        item: An `ioi` example.
        kind: `s2_to_io` (the other one gives: the answer flips), `abc` (three fresh names: no evidence), `s2_random`
            (a stranger gives), `s1_io_swap` (order only, same answer), `io_random` (another receiver).
        generator: Draws the fresh names.

    Returns:
        The corrupted example. For `abc` and `s2_random` no answer is right: `answer` and `distractors` stay those of
        the clean sentence, so that one metric serves both, and the positions are the clean ones.
    """
    details = item.details
    first, second, giver = details["names"]
    io, subject, template = details["io"], details["subject"], details["template"]
    parts = {"place": details["place"], "thing": details["object"]}
    fresh = pick_distinct(generator, [name for name in NAMES if name not in (first, second)], 3)
    if kind == "s2_to_io":
        return build(template, (first, second, io), io=subject, subject=io, **parts)
    if kind == "s1_io_swap":
        return build(template, (second, first, giver), io=io, subject=subject, **parts)
    if kind == "io_random":
        names = tuple(fresh[0] if name == io else name for name in (first, second, giver))
        return build(template, names, io=fresh[0], subject=subject, **parts)
    names = tuple(fresh) if kind == "abc" else (first, second, fresh[0])
    changed = build(template, names, io=io, subject=subject, **parts)
    return replace(changed, positions=item.positions, details={**changed.details, "order": details["order"]})
