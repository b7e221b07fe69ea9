"""Neural codes: which neurons are on, read as a hash of the input, and how much of the class it holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import layer_number, layer_sites
from activarium.analyses.sparsity.code_classes import BINS, Neighbours, clusters, neighbours, planes
from activarium.analyses.sparsity.codes import Codes, Pooling, different, read_codes, redundancy, seen
from activarium.analyses.sparsity.row_kinds import EXCLUDED, left_out, left_out_words
from activarium.errors import AxisError, InputError
from activarium.maths import bootstrap_interval
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result, Series

POOLINGS: tuple[Pooling, ...] = ("majority", "any", "row")


def neural_codes(
    train: Recording | Activations,
    test: Recording | Activations | None = None,
    *,
    labels: Sequence[object] | None = None,
    test_labels: Sequence[object] | None = None,
    code: Pooling = "majority",
    above: float | None = None,
    nearest: int = 9,
    exclude: Sequence[str] = EXCLUDED,
    seed: int = 0,
) -> Report:
    """Do the neurons that are on name the input, like a hash, and does the name hold its class?

    The code of an item is one bit per neuron of the recorded layers, 1 if its activation is above 0. Few items share a code
    (low redundancy) if the code tells inputs apart; inputs of one class have near codes (few differing bits) if it also sorts
    them. In a network of ReLU layers alone a code is a linear region: within it the network is one linear map. In a transformer
    with ReLU the code of a row fixes the linear map of each MLP, but attention and norms are not linear. With a smooth
    activation a bit is only the sign, and nothing of the kind follows.

    Args:
        train: A recording with `blocks.*.mlp.act` (else `mlp.post`), or chosen layers of it, `recording["blocks.{2,3}.mlp.act"]`,
            axes `row d_mlp`. Bits that are constant here are dropped, here and in `test`.
        test: Other items of the same layers, on which classes are scored. Without it only redundancy is measured.
        labels: The class of each train example, or of each row if `code="row"`; by default the column `label` of the rows.
        test_labels: The same of the test items.
        code: One code per sequence, whose bits are on in the `"majority"` of its rows (more than half) or in `"any"` row;
            or one per `"row"`.
        above: Use the bit |a| > above instead of a > 0.
        nearest: Votes in the k-NN.
        exclude: Row kinds left out. Pads are never rows.
        seed: Starts K-Means and draws sequences for the intervals.

    Returns:
        A report with `codes` (ranking: redundancy of each split, items, different codes, bits, redundancy without dropping
        any, and test items whose whole code a train item has), `bits` (series per layer: share of bits that vary, are always off, always on, in train), and with labels and a
        test split `scores` (ranking: share of right test items with an interval from resampled sequences; K-Means with one
        class per cluster, its purity, k-NN, logistic regression, and always guessing the most frequent train class),
        `distances` (series: pairs of a test and a train item by share of differing bits, within and between classes) and
        `confusion` (grid `class predicted` of the k-NN, in items).

    Raises:
        UnknownSite: The recording holds neither `mlp.act` nor `mlp.post`.
        AxisError: Other axes than `row d_mlp`, or test layers that are not those of train.
        InputError: Labels that do not match, a class of the test unknown in train, fewer than two classes, several stacks.
        NotFinite: NaN or infinite numbers, whose bits would mean nothing.
        CapacityError: Too many bits for K-Means and logistic regression.
        MissingExtra: scikit-learn is not installed.

    Source:
        He et al. 2021, Neural networks behave as hash encoders: An empirical study, arXiv:2101.05490.

    Differs:
        Constant bits are those of train alone, so test cannot leak. Clusters get classes by an optimal one-to-one assignment;
        letting two clusters take one class is called purity. Codes of sequences (majority, any) are ours.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> a = Activations(torch.tensor([[0.0, 2.0], [0.0, 3.0], [1.0, 0.0], [4.0, 1.0]]), "row d_mlp", site="blocks.0.mlp.act")
        >>> neural_codes(a, code="row")["codes"].values.tolist()  # (0 1), (0 1), (1 0), (1 1): one in four is taken
        [0.25]
    """
    _check(code, above, nearest)
    sites = _sites(train)
    whole = {"train": read_codes(sites, code, above, tuple(exclude))}
    if test is not None:
        other = _sites(test)
        _same_layers(sites, other)
        whole["test"] = read_codes(other, code, above, tuple(exclude))
    on = whole["train"].ones()
    varying = np.flatnonzero((on > 0) & (on < len(whole["train"])))
    kept = {name: codes.chosen(varying) for name, codes in whole.items()}
    table = _codes(whole, kept)
    parts: dict[str, Result] = {"codes": table, "bits": _bits(whole["train"], on)}
    words = _words(table, whole["train"], code, above)
    notes: dict[str, object] = {"code": code, "nearest": nearest, "seed": seed, "dropped bits": whole["train"].bits - len(varying)}
    truth = _labels(whole["train"], labels, "labels", code)
    wanted = _labels(whole["test"], test_labels, "test_labels", code) if "test" in whole else None
    if truth is None or wanted is None:
        words.append("No classes are scored: that needs labels and a second split, since scores on the items that were fitted say little.")
    else:
        classes, truth, wanted = _numbered(truth, wanted)
        scored, said = _scored(kept, classes, truth, wanted, nearest, seed)
        parts |= scored
        words += said
        notes["classes"] = len(classes)
    first = next(iter(sites.values()))
    words += left_out_words(first, exclude)
    return Report(parts, tuple(words), title="Neural codes", diagnostics=notes | {"excluded": left_out(first, exclude)})


def _check(code: str, above: float | None, nearest: int) -> None:
    if code not in POOLINGS:
        raise InputError(f"code={code!r} is no way to make a code; choose {', '.join(map(repr, POOLINGS))}.")
    if above is not None and not above >= 0:
        raise InputError(f"above={above} makes every bit 1; give a size of 0 or more.")
    if nearest < 1:
        raise InputError(f"nearest={nearest} lets nobody vote; give at least 1.")


def _sites(source: Recording | Activations) -> dict[str, Activations]:
    stacks = layer_sites(source, ("mlp.act", "mlp.post"), "row d_mlp")
    if len(stacks) > 1:
        named = ", ".join(f"recording['{name}.blocks.*.mlp.act']" for name in stacks)
        raise InputError(f"This recording has {len(stacks)} stacks with rows of their own; a code needs one. Pass {named}.")
    return next(iter(stacks.values()))


def _same_layers(train: dict[str, Activations], test: dict[str, Activations]) -> None:
    have, other = ({s: a.shape[1] for s, a in sites.items()} for sites in (train, test))
    if have != other:
        raise AxisError(f"Train has the layers {have}, test has {other}: their bits are not the same. Record the same layers of one model.")


def _labels(codes: Codes, given: Sequence[object] | None, name: str, code: str) -> np.ndarray | None:
    """(item,) words, or None if nobody said any."""
    if given is None:
        return codes.labels if (codes.labels != "").all() else None
    found = np.array([str(label) for label in given], dtype=object)
    examples = np.unique(codes.examples)
    if len(found) == len(examples):  # a capture may hold its examples in another order than their numbers
        return found[np.searchsorted(examples, codes.examples)]
    if code == "row" and len(found) == len(codes):
        return found
    raise InputError(
        f"{name} has {len(found)} entries for {len(codes)} codes of {len(examples)} examples (code={code!r}). Give one per example."
    )


def _numbered(truth: np.ndarray, wanted: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    classes = sorted(set(truth))
    strange = sorted(set(wanted) - set(classes))
    if strange:
        raise InputError(f"The test has items of class {strange[0]!r}, which train has not; train has {', '.join(classes[:8])}. Add some.")
    if len(classes) < 2:
        raise InputError(f"All train items are {classes[0]!r}: there is nothing to tell apart. Give at least two classes.")
    place = {name: i for i, name in enumerate(classes)}
    return classes, np.array([place[t] for t in truth]), np.array([place[w] for w in wanted])


def _codes(whole: dict[str, Codes], kept: dict[str, Codes]) -> Ranking:
    columns = {
        "items": np.array([len(c) for c in kept.values()]),
        "different codes": np.array([different(c) for c in kept.values()]),
        "bits": np.array([c.bits for c in kept.values()]),
        "redundancy of all bits": np.array([redundancy(c) for c in whole.values()]),
        "seen in train": np.array([seen(c, whole["train"]) if c is not whole["train"] else 0 for c in whole.values()]),
    }
    values = np.array([redundancy(c) for c in kept.values()])
    return Ranking(tuple(kept), values, columns, title="Items whose code another one has already", unit="redundancy")


def _bits(codes: Codes, on: np.ndarray) -> Series:
    edges = np.cumsum([0, *codes.sites.values()])
    spans = [on[a:b] for a, b in pairwise(edges)]
    off, always = (np.array([(span == n).mean() for span in spans]) for n in (0, len(codes)))
    curves = {"varying": 1 - off - always, "always off": off, "always on": always}
    x = np.array([layer_number(site, i) for i, site in enumerate(codes.sites)])
    return Series(x, curves, "layer", title="Bits of the train codes", unit="share of neurons")


def _words(table: Ranking, codes: Codes, code: str, above: float | None) -> list[str]:
    what = (
        "one code per row"
        if code == "row"
        else f"one code per sequence (a bit is on in {'most' if code == 'majority' else 'any'} of its rows)"
    )
    told = [
        f"{name}: {table.columns['different codes'][i]:,} different codes of {table.columns['items'][i]:,} items, redundancy {table.values[i]:.3f}"
        for i, name in enumerate(table.names)
    ]
    said = [f"{what}, {table.columns['bits'][0]:,} of {codes.bits:,} bits vary. {'; '.join(told)}."]
    if table.columns["seen in train"].any():
        said.append(f"{table.columns['seen in train'][-1]:,} test items have exactly the code of a train item: their scores are recall.")
    if codes.negative or above is not None:
        bit = "the sign" if above is None else f"|a| > {above:g}"
        said.append(f"A bit is {bit} of an activation: the reading of a code as a linear region holds for ReLU with a > 0 only.")
    elif code == "row":
        said.append(
            "No activation is below zero, as with ReLU: a code fixes the linear map of each MLP, not of attention and norms between them."
        )
    else:
        said.append("A code of a whole sequence is no linear region: that reading holds row by row (code='row').")
    return said


def _scored(
    kept: dict[str, Codes], classes: list[str], truth: np.ndarray, wanted: np.ndarray, nearest: int, seed: int
) -> tuple[dict[str, Result], list[str]]:
    train, test = kept["train"], kept["test"]
    near = neighbours(train, truth, test, wanted, min(nearest, len(train)))
    own, pure = clusters(train, truth, test, seed)
    guesses = {
        "logistic regression, one against one": planes(train, truth, test),
        f"{min(nearest, len(train))} nearest neighbours": near.guesses,
        "K-Means, one class per cluster": own,
        "K-Means, purity": pure,
        "most frequent class": np.full(len(wanted), np.bincount(truth).argmax()),
    }
    scores = _scores(guesses, wanted, test.examples, seed)
    names, values = scores.names, scores.values
    told = ", ".join(f"{n} {v:.3f}" for n, v in zip(names, values, strict=True))
    words = [
        f"{len(classes)} classes, {len(truth):,} train and {len(wanted):,} test items; right of the test: {told}.",
        f"Codes of one class differ in {near.same_mean:.1%} of the bits, of two classes in {near.other_mean:.1%}.",
    ]
    table = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(table, (wanted, near.guesses), 1)
    confusion = Grid(table, ("class", "predicted"), {"class": classes, "predicted": classes}, title="k-NN on codes", unit="items")
    return {"scores": scores, "distances": _distances(near), "confusion": confusion}, words


def _scores(guesses: dict[str, np.ndarray], wanted: np.ndarray, examples: np.ndarray, seed: int) -> Ranking:
    _, at = np.unique(examples, return_inverse=True)
    right = np.zeros((at.max() + 1, len(guesses)))
    np.add.at(right, at, np.stack([g == wanted for g in guesses.values()], 1))
    items = np.repeat(np.bincount(at)[:, None], len(guesses), 1)
    low, high, _ = bootstrap_interval(right, items, seed=seed)
    values = right.sum(0) / items.sum(0)
    order = np.argsort(-values, kind="stable")
    columns = {"low": low[order], "high": high[order], "right": right.sum(0).astype(int)[order], "items": items.sum(0)[order]}
    return Ranking(tuple(list(guesses)[i] for i in order), values[order], columns, title="Right test items", unit="share")


def _distances(near: Neighbours) -> Series:
    centres = (np.arange(BINS) + 0.5) / BINS
    curves = {"same class": near.same / max(near.same.sum(), 1), "other class": near.other / max(near.other.sum(), 1)}
    return Series(centres, curves, "share of differing bits", title="How far codes lie apart", unit="share of pairs")
