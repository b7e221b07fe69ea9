"""Pairs: what patching compares. Row i of a clean example stands for row i of its corrupted one, or the pair is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from activarium.errors import InputError
from activarium.metrics import Metric, logit_difference

if TYPE_CHECKING:
    from activarium.capture._inputs import Inputs


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clean and corrupted inputs of the same rows, and the metric they are judged by. Made by `act.pairs`.

    Attributes:
        clean: The inputs on which the model does what is studied.
        corrupt: The same examples with what matters changed; as many rows each.
        metric: One number per example, larger where the model does what is studied.
        places: Name → position in each pair (`"S2": [9, 11, …]`), for grids over roles rather than positions.
        name: How they are called in results.
    """

    clean: Inputs
    corrupt: Inputs
    metric: Metric
    places: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = "pairs"

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def spaces(self) -> tuple[str, ...]:
        """Row spaces of the inputs, the main one first."""
        return tuple(self.clean.data)

    def select(self, index: Sequence[int] | np.ndarray) -> Self:
        """Some of the pairs."""
        index = np.asarray(index, dtype=int)
        clean, corrupt = (side.select(index).numbered(0) for side in (self.clean, self.corrupt))
        places = {name: np.asarray(at)[index] for name, at in self.places.items()}
        return replace(self, clean=clean, corrupt=corrupt, metric=self.metric.select(index), places=places)

    @cached_property
    def first_difference(self) -> dict[str, np.ndarray]:
        """Row space → the first row in which the inputs of each pair differ, or the number of rows where none does.

        Of images every row may differ: a patch's row is decided by its pixels, rows before the patches by nothing.
        """
        return {
            space: np.array([_first(a, b) for a, b in zip(self.clean.data[space], self.corrupt.data[space], strict=True)])
            for space in self.spaces
        }

    @property
    def hash(self) -> str:
        """Same pairs, same hash."""
        return f"{self.clean.hash[:8]}{self.corrupt.hash[:8]}"

    def words(self, space: str | None = None) -> list[list[str]]:
        """The text of every row of every clean example."""
        rows = self.clean.batch.rows[self.spaces[0] if space is None else space]
        return [[str(t) for t in rows["text"][rows.span(e)]] for e in rows.examples]

    def __repr__(self) -> str:
        rows = {s or "rows": sorted({int(n) for n in self.clean.rows_of(s)}) for s in self.spaces}
        return f"Pairs({self.name!r}: {len(self)} pairs, {rows}, {self.metric.name}{', places ' + ' '.join(self.places) if self.places else ''})"


def pairs(
    model: Any,
    clean: Any,
    corrupt: Any,
    metric: Metric | None = None,
    *,
    answers: Sequence[str | int] | None = None,
    foils: Sequence[str | int] | None = None,
    places: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    bos: Any = "tokenizer",
    name: str = "pairs",
) -> Pairs:
    """Which clean and corrupted inputs are compared, and by what metric?

    Args:
        model: A loaded model; it encodes the inputs.
        clean: Texts, token ids, images or a dict of them, as for `model.run`.
        corrupt: As many examples, each with as many rows as its clean one.
        metric: One number per example; or give `answers` and `foils` for a logit difference at the last row.
        answers: Per pair the word, token id or class that the clean input calls for.
        foils: Per pair what the corrupted input calls for.
        places: Name → position in each pair, such as `{"S2": [9, 9, 11]}`; negative ones count from the end.
        bos: See `model.inputs`.
        name: How they are called in results.

    Raises:
        InputError: The two sides do not align (both tokenisations and the first difference are shown), an answer is not one token,
            or there is no metric.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"]).first_difference
        {'': array([0])}
    """
    sides = model.inputs(clean, bos=bos).numbered(0), model.inputs(corrupt, bos=bos).numbered(0)
    check_aligned(*sides)
    if metric is None:
        if answers is None or foils is None:
            raise InputError("These pairs have no metric: give metric=…, or answers=[…] and foils=[…] for a logit difference.")
        count = len(sides[0])
        wrong = next((f"{len(g)} {n}" for n, g in (("answers", answers), ("foils", foils)) if len(g) != count), None)
        if wrong:
            raise InputError(f"There are {count} pairs and {wrong}; give one for each.")
        metric = logit_difference(identities(model, answers), identities(model, foils))
    made = Pairs(*sides, metric, _places(places or {}, sides[0]), name)
    answer = model.sites.get("logits")
    if answer is not None and answer.rows in made.clean.data:
        metric.places(made.clean.rows_of(answer.rows))  # an example that is too short shows now
    return made


def check_aligned(clean: Inputs, corrupt: Inputs) -> None:
    """Do both sides have the same examples, row spaces and rows?

    Raises:
        InputError: They do not; the message shows both sides of the first pair that does not fit.
    """
    if len(clean) != len(corrupt):
        raise InputError(f"There are {len(clean)} clean and {len(corrupt)} corrupted inputs; a pair needs one of each.")
    if list(clean.data) != list(corrupt.data):
        raise InputError(f"The clean inputs give {list(clean.data)}, the corrupted ones {list(corrupt.data)}; give both the same parts.")
    for space in clean.data:
        a, b = clean.rows_of(space), corrupt.rows_of(space)
        if (a != b).any():
            i = int(np.flatnonzero(a != b)[0])
            raise InputError(_misaligned(i, clean, corrupt, space))


def identities(model: Any, words: Sequence[str | int]) -> list[int]:
    """Token or class ids of answers.

    Raises:
        InputError: A word is not one token, or no class has this name.
    """
    return [_identity(model, w) for w in words]


def _identity(model: Any, word: str | int) -> int:
    if not isinstance(word, str):
        return int(word)
    classes = model.class_names
    if classes is not None and model.tokenizer is None:
        if word not in classes:
            raise InputError(f"No class is called {word!r}. Known: {', '.join(classes)}.")
        return classes.index(word)
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, so {word!r} cannot be looked up; give token ids.")
    ids = model.tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == getattr(model.tokenizer, "unk_token_id", None):
        pieces = model.tokenizer.convert_ids_to_tokens(ids)
        raise InputError(
            f"{word!r} is {len(ids)} tokens here: {pieces}. An answer is one known token; for many tokenizers it begins with a space, ' {word.strip()}'."
        )
    return int(ids[0])


def _places(given: Mapping[str, Sequence[int] | np.ndarray], clean: Inputs) -> dict[str, np.ndarray]:
    lengths, made = clean.lengths, {}
    for name, positions in given.items():
        at = np.asarray(positions, dtype=int)
        if at.shape != (len(clean),):
            raise InputError(f"Place {name!r} has shape {at.shape}; give one position for each of the {len(clean)} pairs.")
        made[name] = np.where(at < 0, at + lengths, at)
        wrong = np.flatnonzero((made[name] < 0) | (made[name] >= lengths))
        if len(wrong):
            raise InputError(f"Place {name!r} is position {at[wrong[0]]} in pair {wrong[0]}, which has {lengths[wrong[0]]} rows.")
    return made


def _first(a: Tensor, b: Tensor) -> int:
    if a.ndim != 1:  # an image: its rows are not its pixels
        return 0
    differ = (a != b).nonzero().flatten()
    return int(differ[0]) if len(differ) else len(a)


def _misaligned(i: int, clean: Inputs, corrupt: Inputs, space: str) -> str:
    a, b = clean.data[space][i], corrupt.data[space][i]
    head = f"Pair {i} does not align{f' in {space!r}' if space else ''}: {clean.rows_of(space)[i]} clean rows, {corrupt.rows_of(space)[i]} corrupted ones."
    if a.ndim != 1:
        return f"{head} Images of a pair need one size."
    at = next((j for j, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=False)) if x != y), min(len(a), len(b)))
    shown = [" | ".join(repr(side.words(int(t))) for t in row) for side, row in ((clean, a), (corrupt, b))]
    return f"{head} They differ from position {at} on.\n  clean:   {shown[0]}\n  corrupt: {shown[1]}\nChoose words of as many tokens."
