"""Dictionary interpretability: which features fire for which values of known attributes, and which attributes have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features.best_features import COVERED, PRECISE, Found, mean_f1
from activarium.analyses.features.value_firing import Firing
from activarium.dictionaries import FeatureDictionary, SupervisedDictionary, as_dictionary, rows_for
from activarium.dictionaries.attributes import Attributes, Value, plain, values_of
from activarium.errors import InputError
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result

FOUND, READ = 0.8, 0.9
CELLS = 4_000_000  # of value × feature grids that are returned whole
DEFINITIONS = {
    "fires": "a code is not 0",
    "F1": "2 · both / (firings + rows with the value), 0 where a feature never fires; the feature is chosen on half of the examples, its F1 is of the other half",
    "shuffled": "the same with values dealt out anew among the examples",
    "union": f"features of precision {PRECISE} or more (in the half that chooses) taken one by one for the most further rows of the value, until {COVERED} of them fire",
    "found": f"share of an attribute's values with a feature of held-out F1 {FOUND} or more",
    "read": "share of held-out rows whose value a linear discriminant (shrunk covariance) of the rows themselves tells, fitted on the other half",
    "size": "mean length of E[x | value] − E[x], over the root mean square length of x − E[x]",
    "occluded": f"read {READ} or more and found below 0.5, while a larger attribute is found for half of its values or more",
}


def dictionary_interpretability(
    dictionaries: Mapping[str, Any],
    recording: Recording,
    attributes: Attributes,
    position: int | Sequence[int] | np.ndarray = -1,
    *,
    site: str | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """Which features fire for which values of what is known, and what is known to no feature?

    One row of each example is looked at. The best of many features is always good on the rows it was chosen on, so it is chosen
    on half of the examples and judged on the other half.

    Args:
        dictionaries: Name → a dictionary of one site. Put a random one of the same design beside them.
        recording: Holds the site.
        attributes: Attribute → a value for each example, in the order of the recording.
        position: Which row of each example: one position for all (-1 is the last) or one for each.
        site: Where the dictionaries read, if their origin does not say.
        confidence: Share of resampled examples inside the intervals.
        resamples: How many times the held-out examples are drawn again.
        seed: Draws the halves, the shuffled values and the examples.

    Returns:
        A report. `summary`: per dictionary the mean held-out F1 over all values of each value's best feature, with its interval, and the
        same with shuffled values. `NAME values`: values ranked by held-out F1, with the best feature, its precision, recall and interval, and
        how many precise features it takes to cover the value (`in union`, `union recall`, beside `best recall`: many where one would do is
        over-splitting). `NAME F1`, `NAME precision`, `NAME recall`: grids `value feature` over all examples (only features that are best for a value, where
        there are very many). `NAME attributes`: per attribute its size, how well the rows tell it, and the share of its values that a feature stands for; an
        attribute that the rows tell, that no feature stands for, and beside which a larger one has features, is called occluded.
        A supervised dictionary fires for the values that it reads off.

    Raises:
        InputError: Attributes do not fit the examples, there are too few, a position is not there, or a dictionary does not fit.
        OtherModel: The recording is of other weights.

    Source:
        Makelov, Lange & Nanda 2024, Towards Principled Evaluations of Sparse Autoencoders, arXiv:2405.08366, sections 4.3 and 5.

    Differs:
        Held-out F1, its interval and the shuffled control are ours, and so are the numbers for over-splitting and occlusion, which the paper
        shows by example. Occlusion there is also causal: see `dictionary_control`.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
        >>> recording = act.testing.recording_of({"x": rows}, example=range(40))
        >>> same = act.dictionaries.controls.identity(2)
        >>> report = dictionary_interpretability({"same": same}, recording, {"who": ["a", "b"] * 20}, site="x")
        >>> report["summary"].values.tolist()
        [1.0]
    """
    if not dictionaries:
        raise InputError("There are no dictionaries. Give {'sae': sae}.")
    parts: dict[str, Result] = {}
    examples, half = 0, np.empty(0, bool)
    means, columns, words = [], {c: [] for c in ("low", "high", "shuffled", "values", "features")}, []
    draw = {"confidence": confidence, "resamples": resamples, "seed": seed}
    for name, given in dictionaries.items():
        one = as_dictionary(given)
        rows = _rows(one, recording, position, site)
        known = plain(attributes, len(rows))
        _check(known, len(rows))
        examples = len(rows)
        half = np.random.default_rng(seed).permutation(len(rows)) % 2 == 0
        with torch.no_grad():
            active = one.encode(rows).cpu().numpy() != 0
        found = {a: Found.of(a, active, column, half, draw) for a, column in known.items()}
        again = np.random.default_rng([seed, 1]).permutation(len(rows))
        shuffled = [Found.of(a, active, [c[i] for i in again], half, draw).f1 for a, c in known.items()]
        mean, low, high = mean_f1(list(found.values()), draw)
        means.append(mean)
        for column, value in zip(
            columns, (low, high, np.concatenate(shuffled).mean(), sum(len(f.f1) for f in found.values()), one.width), strict=True
        ):
            columns[column].append(value)
        parts[f"{name} values"] = _values(name, found)
        parts |= {f"{name} {measure}": grid for measure, grid in _grids(name, one, active, known, found).items()}
        parts[f"{name} attributes"], said = _attributes(name, rows, known, found, half)
        words += said
    order = np.argsort(-np.array(means), kind="stable")
    table = {c: np.array(v)[order] for c, v in columns.items()}
    summary = Ranking(
        tuple(np.array(list(dictionaries), dtype=object)[order]),
        np.array(means)[order],
        table,
        title="Best features",
        unit="mean held-out F1",
    )
    notes = {"definitions": DEFINITIONS, "examples": examples, "held out": int((~half).sum()), **draw}
    return Report({"summary": summary, **parts}, tuple(words), title="What features stand for", diagnostics=notes)


def _rows(one: FeatureDictionary, recording: Recording, position: Any, site: str | None) -> Tensor:
    source = rows_for(one, recording, site=site, exclude=())
    table = source.inputs.index
    if table is None:
        raise InputError(f"{source.inputs.site} has no row table, so its examples are not known. Record it again.")
    starts = np.array([table.span(e).start for e in table.examples])
    lengths = np.array([table.span(e).stop for e in table.examples]) - starts
    wanted = np.asarray(position)
    if wanted.ndim and wanted.shape != starts.shape:
        raise InputError(f"position= has shape {wanted.shape}; give one for all, or one for each of the {len(starts)} examples.")
    at = np.where(wanted < 0, wanted + lengths, wanted)
    wrong = np.flatnonzero((at < 0) | (at >= lengths))
    if len(wrong):
        raise InputError(
            f"Example {wrong[0]} has {lengths[wrong[0]]} rows; there is no position {np.broadcast_to(wanted, at.shape)[wrong[0]]}."
        )
    # Pieces are read in order; examples are contiguous, so their rows ascend.
    return torch.cat([source.read(part)[0] for part in np.array_split(starts + at, -(-len(at) // 4096))])


def _check(known: Mapping[str, list[Value]], rows: int) -> None:
    if rows < 4:
        raise InputError(f"There are {rows} examples; half of them choose features and half judge, so give at least 4.")
    flat = next((a for a, column in known.items() if len(set(column)) < 2), None)
    if flat is not None:
        raise InputError(f"Attribute {flat!r} has one value in all examples, which any feature that always fires would tell. Leave it out.")


def _values(name: str, found: Mapping[str, Found]) -> Ranking:
    columns = {
        "feature": [f.best for f in found.values()],
        "precision": [f.held.precision[f.at] for f in found.values()],
        "recall": [f.held.recall[f.at] for f in found.values()],
        "low": [f.ends[0] for f in found.values()],
        "high": [f.ends[1] for f in found.values()],
        "rows": [f.held.rows.astype(int) for f in found.values()],
        "in union": [np.array([n for n, _ in f.unions]) for f in found.values()],
        "union recall": [np.array([r for _, r in f.unions]) for f in found.values()],
    }
    values = np.concatenate([f.f1 for f in found.values()])
    order = np.argsort(-values, kind="stable")
    names = np.array([n for f in found.values() for n in f.names], dtype=object)[order]
    table = {c: np.concatenate(v)[order] for c, v in columns.items()}
    return Ranking(tuple(names), values[order], table, title=f"{name}: best feature of each value", unit="held-out F1")


def _grids(
    name: str, one: FeatureDictionary, active: np.ndarray, known: Mapping[str, list[Value]], found: Mapping[str, Found]
) -> dict[str, Grid]:
    names = [n for f in found.values() for n in f.names]
    whole = len(names) * one.width <= CELLS
    features = np.arange(one.width) if whole else np.unique(np.concatenate([f.best for f in found.values()]))
    counts = [Firing.of(active[:, features], column) for column in known.values()]
    shown = one.names if isinstance(one, SupervisedDictionary) else [str(i) for i in range(one.width)]
    labels = {"value": names, "feature": [shown[i] for i in features]}
    made = {"F1": [c.f1 for c in counts], "precision": [c.precision for c in counts], "recall": [c.recall for c in counts]}
    return {
        m: Grid(np.concatenate(v), ("value", "feature"), labels, title=f"{name}: {m} over all examples", unit=m) for m, v in made.items()
    }


def _attributes(
    name: str, rows: Tensor, known: Mapping[str, list[Value]], found: Mapping[str, Found], half: np.ndarray
) -> tuple[Ranking, list[str]]:
    exact = rows.double()
    spread = float((exact - exact.mean(0)).square().sum(1).mean().sqrt())
    sizes, reads, shares, splits = [], [], [], []
    for attribute, column in known.items():
        one = SupervisedDictionary.of_rows(exact, {attribute: column})
        sizes.append(float(one.of_values({attribute: column}).matmul(one.written).norm(dim=1).mean()) / spread if spread else 0.0)
        reads.append(_read(exact, column, half))
        shares.append(float((found[attribute].f1 >= FOUND).mean()))
        splits.append(float(np.mean([n for n, _ in found[attribute].unions])))
    larger = [max((s for other, s in zip(sizes, shares, strict=True) if other > size), default=0.0) for size in sizes]
    hidden = np.array([r >= READ and s < 0.5 and a >= 0.5 for r, s, a in zip(reads, shares, larger, strict=True)])
    order = np.argsort(-np.array(sizes), kind="stable")
    table = {"read": reads, "found": shares, "features in union": splits, "occluded": hidden}
    words = [
        f"{name}: {list(known)[i]} can be read off {reads[i]:.0%} of the rows, and {shares[i]:.0%} of its values have a feature; it is occluded."
        for i in order
        if hidden[i]
    ]
    columns = {c: np.asarray(v)[order] for c, v in table.items()}
    return Ranking(
        tuple(np.array(list(known), dtype=object)[order]), np.array(sizes)[order], columns, title=f"{name}: attributes", unit="size"
    ), words


def _read(rows: Tensor, column: list[Value], half: np.ndarray) -> float:
    """Held-out accuracy of a linear discriminant of the values that at least two of the rows it learns from have; others it gets wrong."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    index = np.array([values_of(column).index(v) for v in column])
    learnt = half & np.isin(index, np.flatnonzero(np.bincount(index[half]) > 1))
    if len(np.unique(index[learnt])) < 2 or learnt.sum() <= len(np.unique(index[learnt])):
        return float("nan")
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(rows[torch.as_tensor(learnt)].numpy(), index[learnt])
    return float(fitted.score(rows[torch.as_tensor(~half)].numpy(), index[~half]))
