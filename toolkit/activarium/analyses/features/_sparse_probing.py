"""Sparse probing: how well a label can be told from one, two or five features of a dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from activarium.analyses.features.probes import Probe, balanced_halves, difference_of_means, share_with_interval, widest
from activarium.dictionaries import SAE, FeatureDictionary, RowSource, as_dictionary, controls, rows_for
from activarium.dictionaries.design import Design
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.recording import Recording
from activarium.results import Grid, Report, Series

DEALS = 5  # times the labels are dealt out anew
LEAST = 10  # examples of each side, of which 8 train at the default share
DEFINITIONS = {
    "pooled": "mean over an example's rows of the kinds that the dictionary keeps",
    "top k": "the k columns of largest |mean of the class − mean of the rest| on the training examples",
    "probe": "logistic regression (L2, C = 1) on columns standardised by the training examples",
    "accuracy": "share of the test examples, half of which have the class; chance is 0.5",
    "shuffled labels": f"the dictionary's probe with the training labels dealt out anew, {DEALS} times",
    "interval": "Wilson's for two classes, else a bootstrap over examples",
}


def sparse_probing(
    dictionary: Any,
    recording: Recording,
    labels: Sequence[Any] | np.ndarray,
    *,
    counts: Sequence[int] = (1, 2, 5),
    test: float = 0.2,
    site: str | None = None,
    exclude: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """How well can a label be told from a few features, and from a few raw channels?

    Codes are averaged over the rows of an example; each class is told from the rest, with as many examples on both sides. Features are
    chosen on the training examples alone.

    Args:
        dictionary: The dictionary: one of ours, a sae-lens object, or the folder of one.
        recording: Holds its site; of texts or images.
        labels: One label for each example, in the order of the recording.
        counts: How many features or channels the probe is given.
        test: Share of each class that is held out.
        site: Where the dictionary reads, if its origin does not say.
        exclude: Row kinds left out of the average; by default those that its training left out.
        confidence: Level of the intervals.
        resamples: How many times the examples are drawn again, with more than two classes.
        seed: Draws the split, the random dictionary and the shuffled labels.
        progress: Show a bar.

    Returns:
        A report. `accuracy`: series over k of held-out accuracy, mean over classes, with intervals: `dictionary`, `raw channels`, `random
        dictionary` (same width), `shuffled labels`, and as constants `all raw channels` and `all features`. `classes`: grid `class what`
        at the largest k. `features`: grid `class rank` of the features chosen, in order (-1 where fewer tell anything).

    Raises:
        InputError: Labels do not fit the examples, fewer than two classes, fewer than 10 examples of one, or bad options.
        OtherModel: The recording is of other weights.

    Source:
        Gurnee et al. 2023, Finding Neurons in a Haystack, arXiv:2305.01610; as a measure of dictionaries: Karvonen et al. 2025, SAEBench,
        arXiv:2503.09532.

    Differs:
        Columns are standardised; the split is of what there is and not of 5000 examples; random and shuffled controls and intervals are ours.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
        >>> recording = act.testing.recording_of({"x": rows}, example=range(40))
        >>> report = sparse_probing(act.dictionaries.controls.identity(2), recording, ["a", "b"] * 20, site="x", counts=[1])
        >>> report["accuracy"].curves["dictionary"].tolist()
        [1.0]
    """
    one = as_dictionary(dictionary)
    source = rows_for(one, recording, site=site, exclude=exclude)
    _check(counts, test)
    examples, owner = _examples(source)
    classes, index = _classes(labels, len(examples), test)
    draw = {"confidence": confidence, "resamples": resamples, "seed": seed}
    ks = sorted(set(counts))
    other = _random(one, seed)
    with progress_bar(progress, "probing", len(classes), "classes") as advance:
        pooled = _pooled(source, owner, len(examples), {"dictionary": one, "random dictionary": other})
        tallies = {name: _Tally(len(examples)) for name in _names(ks)}
        chosen, by_class = np.full((len(classes), ks[-1]), -1), np.zeros((len(classes), len(tallies)))
        for c in range(len(classes)):
            generator = np.random.default_rng([seed, c])
            positive = index == c
            train, held = balanced_halves(positive, test, generator)
            right = _right(pooled, positive, train, held, ks, generator)
            top = widest(difference_of_means(pooled["dictionary"][train], positive[train]), ks[-1])
            chosen[c, : len(top)] = top
            for column, (name, answers) in enumerate(right.items()):
                tallies[name].add(held, answers)
                by_class[c, column] = answers.mean()
            advance(1)
    shares = {name: share_with_interval(tally.right, tally.asked, draw) for name, tally in tallies.items()}
    names = [str(c) for c in classes]
    shown = ["dictionary", "raw channels", "random dictionary", "shuffled labels"]
    last = [list(tallies).index((name, ks[-1])) for name in shown] + [
        list(tallies).index((name, 0)) for name in ("all features", "all raw channels")
    ]
    notes = {
        "definitions": DEFINITIONS,
        "classes": {n: int((index == c).sum()) for c, n in enumerate(names)},
        "rows left out": dict(source.dropped),
        "features": one.width,
        "site": source.inputs.site,
        "test": test,
        **draw,
    }
    parts = {
        "accuracy": _series(ks, shares, shown),
        "classes": Grid(
            by_class[:, last],
            ("class", "what"),
            {"class": names, "what": [*shown, "all features", "all raw channels"]},
            title=f"Held-out accuracy with {ks[-1]}",
            unit="share",
        ),
        "features": Grid(chosen, ("class", "rank"), {"class": names}, title="Features that were chosen", unit="feature"),
    }
    return Report(parts, _words(shares, ks), title="Sparse probing", diagnostics=notes)


class _Tally:
    """Right answers and questions of each example."""

    def __init__(self, examples: int) -> None:
        self.right, self.asked = np.zeros(examples), np.zeros(examples)

    def add(self, held: np.ndarray, answers: np.ndarray) -> None:
        """Answers `ask example` of the held-out examples, boolean."""
        self.right[held] += answers.sum(0)
        self.asked[held] += len(answers)


def _names(ks: Sequence[int]) -> list[tuple[str, int]]:
    few = [(name, k) for k in ks for name in ("dictionary", "raw channels", "random dictionary", "shuffled labels")]
    return [*few, ("all features", 0), ("all raw channels", 0)]


def _right(
    pooled: Mapping[str, np.ndarray],
    positive: np.ndarray,
    train: np.ndarray,
    held: np.ndarray,
    ks: Sequence[int],
    generator: np.random.Generator,
) -> dict[tuple[str, int], np.ndarray]:
    """Name and k → which held-out examples were told right, boolean `ask example`, in the order of `_names`."""

    def asked(values: np.ndarray, k: int, taught: np.ndarray) -> np.ndarray:
        columns = widest(difference_of_means(values[train], taught), k) if k else np.arange(values.shape[1])
        return Probe(values[np.ix_(train, columns)], taught)(values[np.ix_(held, columns)]) == positive[held]

    taught, mine, raw = positive[train], pooled["dictionary"], pooled["raw channels"]
    deals = [generator.permutation(taught) for _ in range(DEALS)]
    made: dict[tuple[str, int], np.ndarray] = {}
    for k in ks:
        for name in ("dictionary", "raw channels", "random dictionary"):
            made[name, k] = asked(pooled[name], k, taught)[None]
        made["shuffled labels", k] = np.stack([asked(mine, k, deal) for deal in deals])
    made["all features", 0], made["all raw channels", 0] = asked(mine, 0, taught)[None], asked(raw, 0, taught)[None]
    return made


def _pooled(source: RowSource, owner: np.ndarray, examples: int, dictionaries: Mapping[str, FeatureDictionary]) -> dict[str, np.ndarray]:
    """Name → mean over the rows of each example, `example column` in float64."""
    sums = {name: torch.zeros(examples, d.width, dtype=torch.float64) for name, d in dictionaries.items()}
    sums["raw channels"] = torch.zeros(examples, source.width, dtype=torch.float64)
    counts, first = torch.zeros(examples, dtype=torch.float64), 0
    for _, x, _ in source.pieces():
        here = torch.as_tensor(owner[first : first + len(x)])
        first += len(x)
        counts.index_add_(0, here, torch.ones(len(x), dtype=torch.float64))
        sums["raw channels"].index_add_(0, here, x.double())
        for name, d in dictionaries.items():
            codes = d.codes(x)
            sums[name].index_put_((here[codes.rows], codes.features.long()), codes.values.double(), accumulate=True)
    return {name: (value / counts[:, None]).numpy() for name, value in sums.items()}


def _examples(source: RowSource) -> tuple[np.ndarray, np.ndarray]:
    """Example numbers in order, and for each chosen row which of them it belongs to."""
    table = source.inputs.index
    if table is None:
        raise InputError(f"{source.inputs.site} has no row table, so its examples are not known. Record it again.")
    numbers = np.array(table.examples)
    owner = np.searchsorted(np.sort(numbers), np.asarray(table["example"])[source.chosen])
    owner = np.argsort(numbers, kind="stable")[owner]
    empty = np.flatnonzero(np.bincount(owner, minlength=len(numbers)) == 0)
    if len(empty):
        raise InputError(f"Example {numbers[empty[0]]} has no row left after {', '.join(source.dropped)} were left out. Give exclude=().")
    return numbers, owner


def _check(counts: Sequence[int], test: float) -> None:
    if not counts or min(counts) < 1:
        raise InputError(f"counts={list(counts)}: give how many features the probe is given, each at least 1.")
    if not 0 < test < 1:
        raise InputError(f"test={test}: give the share of examples that is held out, between 0 and 1.")


def _classes(labels: Sequence[Any] | np.ndarray, examples: int, test: float) -> tuple[list[Any], np.ndarray]:
    """The classes that are told from the rest (of two, the second alone), and the class of each example."""
    found = np.asarray(labels)
    if found.shape != (examples,):
        raise InputError(f"labels has shape {found.shape}; the recording has {examples} examples. Give one label for each, in their order.")
    values, index, counts = np.unique(found.astype(str) if found.dtype == object else found, return_inverse=True, return_counts=True)
    if len(values) < 2:
        raise InputError(
            f"All {examples} examples have the label {str(values[0])!r}; there is nothing to tell apart. Give examples of two classes."
        )
    few = int(np.argmin(counts))
    if counts[few] < LEAST or round(test * counts[few]) >= counts[few]:
        raise InputError(
            f"Label {str(values[few])!r} has {counts[few]} examples; a probe with held-out answers needs at least {LEAST}. Record more."
        )
    return ([values[1]], index - 1) if len(values) == 2 else (list(values), index)


def _random(one: FeatureDictionary, seed: int) -> FeatureDictionary:
    """Random directions of the same width; of the same design where it is an SAE."""
    if isinstance(one, SAE):
        return controls.random(one, seed)
    return SAE(Design(one.d_in, one.width), one.origin, seed=seed).requires_grad_(False)


def _series(ks: list[int], shares: Mapping[tuple[str, int], tuple[float, float, float]], shown: Sequence[str]) -> Series:
    made = {name: np.array([shares[name, k] for k in ks]).T for name in shown}
    made |= {name: np.repeat(np.array(shares[name, 0])[:, None], len(ks), 1) for name in ("all features", "all raw channels")}
    curves, bands = {n: v[0] for n, v in made.items()}, {n: v[1:] for n, v in made.items()}
    return Series(np.array(ks), curves, "features or channels", bands, title="Labels told from a few features", unit="held-out accuracy")


def _words(shares: Mapping[tuple[str, int], tuple[float, float, float]], ks: Sequence[int]) -> tuple[str, ...]:
    said = []
    for k in ks:
        (mine, low, high), raw, drawn = shares["dictionary", k], shares["raw channels", k][0], shares["random dictionary", k][0]
        said.append(
            f"With {k}: {mine:.3f} ({low:.3f} to {high:.3f}) from features, {raw:.3f} from raw channels, {drawn:.3f} from random directions."
        )
    return (
        *said,
        f"All raw channels: {shares['all raw channels', 0][0]:.3f}; shuffled labels: {shares['shuffled labels', ks[-1]][0]:.3f}.",
    )
