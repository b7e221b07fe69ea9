"""Pairs for indirect object identification: two people, one gives, and the model should name the other one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from activarium.errors import InputError, unknown
from activarium.metrics import logit_difference
from activarium.pairs import frames
from activarium.pairs._pairs import Pairs, pairs

ORDERS = ("mixed", "ABBA", "BABA")
CORRUPTIONS = {"s2_to_io": 2, "abc": 5, "s2_random": 3, "s1_io_swap": 2, "io_random": 3}  # → how many names one pair needs


@dataclass(frozen=True)
class Draw:
    """One sentence: who is who, and what is said about them."""

    frame: str
    first: str
    second: str
    giver: str
    io: str
    subject: str
    place: str
    thing: str

    def text(self, first: str, second: str, giver: str) -> str:
        """The sentence with these three names in it, up to the receiver."""
        return self.frame.format(first=first, second=second, giver=giver, place=self.place, object=self.thing)


def ioi(
    model: Any,
    count: int = 32,
    *,
    order: Literal["mixed", "ABBA", "BABA"] = "mixed",
    corruption: str = "s2_to_io",
    seed: int = 0,
    names: Sequence[str] | None = None,
    bos: Any = "tokenizer",
) -> Pairs:
    """Which of two people receives it, and what is said when the evidence is flipped or removed?

    Clean sentences name the receiver (IO) once and the giver (S) twice and end before the receiver. Only names, places and
    objects are used that are one token inside a sentence, and only frames of which the tokenizer knows every word.

    Args:
        model: A language model that writes from left to right.
        count: How many pairs.
        order: `ABBA` names the receiver first, `BABA` the giver, `mixed` half each.
        corruption: `s2_to_io` (the other one gives: the answer flips), `abc` (three fresh names: no evidence), `s2_random` (a
            stranger gives), `s1_io_swap` (order only, same answer), `io_random` (another receiver).
        seed: Draws names, frames, places and objects.
        names: Names to draw from instead of ours.
        bos: See `model.inputs`.

    Returns:
        Pairs with the metric `logit(IO) - logit(S)` of the clean sentence at END, and places `IO S1 S1+1 S2 END`, counted in
        rows of the encoded sentence (so behind a BOS token where there is one).

    Raises:
        InputError: The model does not write from left to right, too few names are one token, or no frame is known.
        UnknownName: There is no such order or corruption.

    Source:
        The task: Wang et al. 2022, Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small,
        arXiv:2211.00593. Frames and word lists are our own.

    Example:
        >>> import activarium as act
        >>> made = act.pairs.ioi(act.load("scribe"), 8)
        >>> len(made), sorted(made.places)
        (8, ['END', 'IO', 'S1', 'S1+1', 'S2'])
    """
    if order not in ORDERS:
        raise unknown("order of names", order, ORDERS)
    if corruption not in CORRUPTIONS:
        raise unknown("corruption of this task", corruption, CORRUPTIONS)
    if count < 1:
        raise InputError(f"count={count} makes no pairs; ask for at least 1.")
    _check_writes(model)
    vocabulary = _Vocabulary(model)
    people = _people(vocabulary, names, corruption)
    places, things = ({w: i for w in words if (i := vocabulary.inside(w)) is not None} for words in (frames.PLACES, frames.OBJECTS))
    kept = _frames(vocabulary, people, [*places], [*things])
    random = np.random.default_rng(seed)
    clean, corrupt, draws = [], [], []
    for i in range(count):
        io, subject, *fresh = (str(n) for n in random.choice([*people], max(2, CORRUPTIONS[corruption]), replace=False))
        receiver_first = order == "ABBA" if order != "mixed" else i % 2 == 0
        first, second = (io, subject) if receiver_first else (subject, io)
        frame, place, thing = (str(random.choice(words)) for words in (kept, [*places], [*things]))
        draws.append(Draw(frame, first, second, subject, io, subject, place, thing))
        clean.append(draws[-1].text(first, second, subject))
        corrupt.append(draws[-1].text(*_corrupted(corruption, draws[-1], fresh)))
    sides = model.inputs(clean, bos=bos), model.inputs(corrupt, bos=bos)
    where = _places(sides[0], [(people[d.io], people[d.subject]) for d in draws])
    metric = logit_difference([people[d.io] for d in draws], [people[d.subject] for d in draws], position=where["END"])
    return pairs(model, *sides, metric, places=where, name=f"ioi {corruption}")


def _corrupted(corruption: str, draw: Draw, fresh: Sequence[str]) -> tuple[str, str, str]:
    """The three names of the corrupted sentence: first, second and giver."""
    first, second, giver = draw.first, draw.second, draw.giver
    if corruption == "s2_to_io":
        return first, second, draw.io
    if corruption == "abc":
        return fresh[0], fresh[1], fresh[2]
    if corruption == "s2_random":
        return first, second, fresh[0]
    if corruption == "s1_io_swap":
        return second, first, giver
    return (fresh[0], second, giver) if first == draw.io else (first, fresh[0], giver)


class _Vocabulary:
    """What a tokenizer makes of words that stand inside a sentence."""

    def __init__(self, model: Any) -> None:
        self.tokenizer = model.tokenizer
        self.unknown = getattr(model.tokenizer, "unk_token_id", None)

    def row(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def inside(self, word: str) -> int | None:
        """Its token inside a sentence, or None if it is several or unknown."""
        before, whole = self.row("the"), self.row(f"the {word}")
        single = len(whole) == len(before) + 1 and whole[:-1] == before and whole[-1] != self.unknown
        return whole[-1] if single else None

    def knows(self, frame: str, people: dict[str, int], place: str, thing: str) -> bool:
        """Is every word of the frame known, and every name the same token wherever it stands in it?"""
        names = [*people]
        for first, second in zip(names, names[1:] + names[:1], strict=True):
            row = self.row(frame.format(first=first, second=second, giver=second, place=place, object=thing))
            if self.unknown in row or row.count(people[first]) != 1 or row.count(people[second]) != 2:
                return False
        return True


def _people(vocabulary: _Vocabulary, names: Sequence[str] | None, corruption: str) -> dict[str, int]:
    """Name → token."""
    given = frames.NAMES if names is None else tuple(dict.fromkeys(names))
    tokens = {name: vocabulary.inside(name) for name in given}
    long = [name for name, token in tokens.items() if token is None]
    if names is not None and long:
        raise InputError(f"Name {long[0]!r} is {vocabulary.row(' ' + long[0])} in this tokenizer; every name must be one known token.")
    people = {name: token for name, token in tokens.items() if token is not None}
    if len(people) < CORRUPTIONS[corruption]:
        found = ", ".join(people) or "none"
        raise InputError(
            f"Corruption {corruption!r} needs {CORRUPTIONS[corruption]} names of one token; found {len(people)}: {found}. Give names=[…]."
        )
    return people


def _frames(vocabulary: _Vocabulary, people: dict[str, int], places: Sequence[str], things: Sequence[str]) -> list[str]:
    """Frames of the first group that fits, with a space before punctuation only where the tokenizer wants one."""
    if places and things:
        for group in frames.FRAMES:
            spellings = [(frame.replace(" ,", ","), frame) for frame in group]
            found = (next((s for s in both if vocabulary.knows(s, people, places[0], things[0])), None) for both in spellings)
            kept = [frame for frame in found if frame is not None]
            if kept:
                return kept
    raise InputError(
        f"No sentence of this task can be said with this tokenizer: none of {sum(map(len, frames.FRAMES))} frames is known word by word. "
        "Make pairs of your own sentences: act.pairs(model, clean, corrupt, answers=[…], foils=[…])."
    )


def _places(clean: Any, tokens: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Name → row in each sentence, found where the tokens stand."""
    (rows,) = clean.data.values()
    found: dict[str, list[int]] = {name: [] for name in ("IO", "S1", "S1+1", "S2", "END")}
    for row, (io, subject) in zip(rows, tokens, strict=True):
        ids = row.tolist()
        s1 = ids.index(subject)
        end = max(i for i, token in enumerate(ids) if token not in clean.special)
        for name, at in zip(found, (ids.index(io), s1, s1 + 1, ids.index(subject, s1 + 1), end), strict=True):
            found[name].append(at)
    return {name: np.array(at) for name, at in found.items()}


def _check_writes(model: Any) -> None:
    answer = model.sites.get("logits")
    writes = getattr(model.torch_module, "can_generate", lambda: True)()
    if model.tokenizer is None or answer is None or answer.rows != "" or answer.axes != "row vocab" or not writes:
        raise InputError(
            f"{model.name} does not write text from left to right with a tokenizer of its own, so it cannot name the receiver."
        )
