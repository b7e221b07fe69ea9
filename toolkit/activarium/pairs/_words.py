"""Corrupted texts made from clean ones: words swapped for others, tokens drawn at random."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from activarium.errors import InputError
from activarium.metrics import Metric
from activarium.pairs._pairs import Pairs, pairs

Swaps = Mapping[str, str] | Mapping[int, str]


def swap_words(
    model: Any,
    texts: Sequence[str],
    swaps: Swaps | Sequence[Swaps],
    metric: Metric | None = None,
    *,
    answers: Sequence[str | int] | None = None,
    foils: Sequence[str | int] | None = None,
    places: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    bos: Any = "tokenizer",
    name: str = "swapped words",
) -> Pairs:
    """What changes when these words are others? All at once, so that `{"Anna": "Tom", "Tom": "Anna"}` exchanges two.

    Args:
        model: A model that reads text.
        texts: The clean texts.
        swaps: Word → other word, or place of the word in the text (from 0, by its spaces) → other word; one for all texts, or one for each.
        metric: See `act.pairs`.
        answers: See `act.pairs`.
        foils: See `act.pairs`.
        places: See `act.pairs`.
        bos: See `model.inputs`.
        name: How they are called in results.

    Raises:
        InputError: A text has none of the words or no such place, or the other words are not as many tokens.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> made = act.pairs.swap_words(model, ["Anna saw Tom"], {"Anna": "Mary"}, answers=["Anna"], foils=["Mary"])
        >>> [made.corrupt.words(int(t)) for t in made.corrupt.data[""][0]]
        ['Mary', 'saw', 'Tom']
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    each = [swaps] * len(texts) if isinstance(swaps, Mapping) else list(swaps)
    if len(each) != len(texts):
        raise InputError(f"There are {len(texts)} texts and {len(each)} sets of swaps; give one set for all, or one for each.")
    corrupt = [_swapped(text, one, i) for i, (text, one) in enumerate(zip(texts, each, strict=True))]
    return pairs(model, texts, corrupt, metric, answers=answers, foils=foils, places=places, bos=bos, name=name)


def replace_tokens(
    model: Any,
    texts: Any,
    positions: int | Sequence[int],
    metric: Metric | None = None,
    *,
    seed: int = 0,
    tokens: Sequence[int] | None = None,
    answers: Sequence[str | int] | None = None,
    foils: Sequence[str | int] | None = None,
    bos: Any = "tokenizer",
    name: str = "random tokens",
) -> Pairs:
    """What changes when other tokens stand at these positions, drawn at random?

    Args:
        model: A model that reads text.
        texts: The clean texts, or their token ids.
        positions: Rows of the encoded text (a BOS token counts); negative ones from its end.
        metric: See `act.pairs`.
        seed: Of the draw.
        tokens: Ids to draw from; every token of the tokenizer that is no special one if not given. The one that stands there is never drawn.
        answers: See `act.pairs`.
        foils: See `act.pairs`.
        bos: See `model.inputs`.
        name: How they are called in results.

    Raises:
        InputError: A text is too short for a position, the model takes more than one text, or there is no other token to draw.
    """
    clean = model.inputs(texts, bos=bos)
    if len(clean.data) != 1 or not isinstance(clean.data[next(iter(clean.data))], list):
        raise InputError(f"These inputs give {list(clean.data)}; random tokens need one text. Corrupt it yourself and use act.pairs(…).")
    (space,) = clean.data
    wanted, known = (
        np.atleast_1d(np.asarray(positions, dtype=int)),
        np.asarray(_ordinary(model, clean, space) if tokens is None else tokens),
    )
    random = np.random.default_rng(seed)
    corrupt = []
    for i, row in enumerate(clean.data[space]):
        at = np.where(wanted < 0, wanted + len(row), wanted)
        wrong = wanted[(at < 0) | (at >= len(row))]
        if len(wrong):
            raise InputError(f"Position {int(wrong[0])} is not in text {i}, which has {len(row)} rows.")
        corrupt.append(_drawn(row, at, known, random))
    return pairs(model, clean, corrupt, metric, answers=answers, foils=foils, bos=False, name=name)


def _drawn(row: torch.Tensor, positions: np.ndarray, known: np.ndarray, random: np.random.Generator) -> torch.Tensor:
    made = row.clone()
    for at in dict.fromkeys(positions.tolist()):
        others = known[known != int(row[at])]
        if not len(others):
            raise InputError(f"There is no other token to draw for id {int(row[at])}; give tokens=[…] with at least two ids.")
        made[at] = int(random.choice(others))
    return made


def _ordinary(model: Any, clean: Any, space: str) -> list[int]:
    """Ids that the tokenizer gives to words, in the model's own range: embedding tables are often larger."""
    limit = clean.spaces[space].vocabulary
    if model.tokenizer is None:
        return list(range(limit))
    special = {*model.tokenizer.all_special_ids}
    return sorted(i for i in model.tokenizer.get_vocab().values() if i not in special and i < limit)


def _swapped(text: str, swaps: Swaps, number: int) -> str:
    words = {k: v for k, v in swaps.items() if isinstance(k, str)}
    at = {k: v for k, v in swaps.items() if not isinstance(k, str)}
    pieces = re.split(r"(\s+)", text)
    count = len(pieces[::2])
    wrong = next((k for k in at if not -count <= k < count), None)
    if wrong is not None:
        raise InputError(f"Text {number} has {count} words; there is none at place {wrong}: {text!r}.")
    for place, word in at.items():
        pieces[2 * (place % count)] = word
    text = "".join(pieces)
    if not words:
        return text
    pattern = rf"(?<!\w)(?:{'|'.join(re.escape(w) for w in sorted(words, key=len, reverse=True))})(?!\w)"
    made, found = re.subn(pattern, lambda m: words[m[0]], text)
    if not found:
        raise InputError(f"Text {number} has none of the words {', '.join(map(repr, words))}: {text!r}.")
    return made
