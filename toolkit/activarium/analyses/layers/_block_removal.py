"""Block removal: what a model loses without several of its blocks, chosen in four ways, and the time it then takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.analyses.changed_answers import Answers, changed_answers
from activarium.analyses.layers.block_sets import Set, at_random, by_measures, one_by_one, skips
from activarium.analyses.layers.intervals import Intervals
from activarium.analyses.layers.skip_cost import time_without
from activarium.analyses.layers.skipping import answering_blocks
from activarium.errors import InputError, unknown
from activarium.protocols import Runner
from activarium.results import Ranking, Report, Result, Series

CONFIDENCE = 0.95
RANDOM, GREEDY, GIVEN = "random", "one by one", "given"


def block_removal(
    model: Runner,
    inputs: Any,
    blocks: Sequence[str] = (),
    *,
    most: int | None = None,
    calibration: Any = None,
    draws: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """How many blocks can go together, and which ones, before the model loses its answers?

    For each number of blocks, up to `most`, four choices stand side by side: the blocks of least influence; the neighbours
    across which the state turns least; one by one, each time the block whose removal then costs least; and random sets. A
    removed block hands its input on (`SkipBlock`), the others stay in their places.

    Args:
        model: Runs everything; left as it was.
        inputs: What the cost is measured on; labels that are numbers of classes give the accuracy of an image classifier.
        blocks: A set to measure beside them, `["blocks.2", "blocks.3"]`.
        most: Largest number of blocks to remove; half of them if not given.
        calibration: What the choices are made on. Chosen on `inputs` themselves, if not given, sets look better than they are.
        draws: How many random sets of each size, or all where there are fewer.
        seed: Draws the sets, and the sequences for the intervals.
        progress: Show bars.

    Returns:
        A report with series over the number of blocks removed, with intervals over sequences: `KL` (full ‖ removed, nats),
        `agreement` (share of unchanged top answers), and where the right answers are known `loss` (rise, nats) and `right`
        (share). `sets` (ranking by KL) lists every set, and `time` the seconds of a forward without the largest set that
        was chosen one by one (or `blocks`), measured while these blocks do not run. Keys and values of a removed block do not matter: its
        output is thrown away.

    Raises:
        InputError: `most` or `draws` is out of range, or answers that are no distribution.
        UnknownName: One of `blocks` is not there.
        UnknownSite: The model has several stacks of which none answers.

    Source:
        Men et al. 2024, ShortGPT, arXiv:2403.03853 (least influence); Gromov et al. 2024, The Unreasonable Ineffectiveness of the
        Deeper Layers, arXiv:2403.17887 (spans; without their fine-tuning afterwards). One by one, random sets and intervals are ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> report = act.analyses.block_removal(model, ["the cat sat on the house ."], most=2)
        >>> list(report["KL"].curves)
        ['least influence', 'flattest span', 'one by one', 'random']
    """
    prefix, depth = answering_blocks(model.sites)
    most, given = _check(prefix, depth, blocks, most, draws)
    chosen_on = model.inputs(inputs if calibration is None else calibration)
    sets = by_measures(model, chosen_on, prefix, depth, most)
    sets[GREEDY] = one_by_one(model, chosen_on, prefix, depth, most, progress)
    drawn = at_random(depth, most, draws, seed)
    wanted = dict.fromkeys(one for some in (*sets.values(), *drawn, [given] if given else []) for one in some)
    encoded = model.inputs(inputs)
    found = changed_answers(model, encoded, {_name(one): skips(prefix, one) for one in wanted}, progress=progress, doing="removing")
    costs = {one: found[_name(one)] for one in wanted}
    draw = Intervals(CONFIDENCE, 1000, seed)
    parts: dict[str, Result] = dict(_curves(costs, sets, drawn, draw))
    parts["sets"] = _sets(costs, sets | ({GIVEN: [given]} if given else {}), prefix)
    timed, words = _time(model, encoded, prefix, given or sets[GREEDY][-1])
    notes = {"chosen on": "the inputs themselves" if calibration is None else "calibration", "most": most, "blocks": depth, "seed": seed}
    words = [*_words(parts, given, costs), *words]
    return Report(parts | timed, tuple(words), title="Block removal", diagnostics=notes | {"random sets": [len(d) for d in drawn]})


def _check(prefix: str, depth: int, blocks: Sequence[str], most: int | None, draws: int) -> tuple[int, Set]:
    names = [f"{prefix}blocks.{i}" for i in range(depth)]
    for name in blocks:
        if name not in names:
            raise unknown("block", name, names)
    most = max(1, depth // 2) if most is None else most
    if not 1 <= most <= depth:
        raise InputError(f"most={most}: the stack that answers has {depth} blocks. Remove from 1 to {depth} of them.")
    if draws < 1:
        raise InputError(f"draws={draws}: no choice says anything without random sets beside it. Draw at least 1.")
    return most, tuple(sorted({names.index(name) for name in blocks}))


def _name(chosen: Set) -> str:
    return " ".join(map(str, chosen))


def _curves(
    costs: Mapping[Set, Answers], sets: Mapping[str, Sequence[Set]], drawn: Sequence[Sequence[Set]], draw: Intervals
) -> dict[str, Series]:
    """Each cost against the number of blocks removed."""
    known = next(iter(costs.values())).known.any()
    numbers = np.arange(1, len(drawn) + 1)
    wanted = {"KL": ("kl", "KL(full ‖ removed)", "nats"), "agreement": ("agrees", "Top answers that stay the same", "share")}
    if known:
        wanted |= {"loss": ("rise", "Rise of the loss", "nats"), "right": ("correct", "Right answers", "share")}
    parts = {}
    for name, (field, title, unit) in wanted.items():
        curves = {way: _stacked([[_sums(costs[one], field)] for one in chosen]) for way, chosen in sets.items()}
        curves[RANDOM] = _stacked([[_sums(costs[one], field) for one in some] for some in drawn])
        parts[name] = draw.series(numbers, curves, f"{title} without some blocks", unit).with_(x_label="blocks removed")
    return parts


def _sums(found: Answers, field: str) -> tuple[np.ndarray, np.ndarray]:
    if field == "rise":
        return found.sums(found.loss - found.full_loss, found.known)
    values = getattr(found, field).astype(np.float64)
    return found.sums(values, found.known) if field == "correct" else found.sums(values)


def _stacked(columns: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> tuple[np.ndarray, np.ndarray]:
    """Sums `(sequence, number of blocks)`, averaged over the sets of a size."""
    above, below = (np.stack([np.mean([pair[i] for pair in some], axis=0) for some in columns], 1) for i in (0, 1))
    return above, below


def _sets(costs: Mapping[Set, Answers], sets: Mapping[str, Sequence[Set]], prefix: str) -> Ranking:
    order = sorted(costs, key=lambda one: costs[one].mean("kl"))
    ways = {one: ", ".join(way for way, chosen in sets.items() if one in chosen) or RANDOM for one in order}
    columns: dict[str, np.ndarray] = {
        "blocks": np.array([len(one) for one in order]),
        "chosen by": np.array([ways[one] for one in order], dtype=object),
        "agreement": np.array([costs[one].mean("agrees") for one in order]),
    }
    if costs[order[0]].known.any():
        columns["loss"] = np.array([costs[one].mean("loss") for one in order])
        columns["rise of loss"] = np.array([costs[one].mean("loss") - costs[one].mean("full_loss") for one in order])
        columns["right answers"] = np.array([costs[one].mean("correct") for one in order])
        columns["right answers of the full model"] = np.array([costs[one].mean("full_correct") for one in order])
    names = tuple(", ".join(f"{prefix}blocks.{i}" for i in one) for one in order)
    return Ranking(
        names, np.array([costs[one].mean("kl") for one in order]), columns, title="Sets of blocks by what they cost", unit="nats"
    )


def _time(model: Runner, encoded: Any, prefix: str, chosen: Set) -> tuple[dict[str, Result], list[str]]:
    names = [f"{prefix}blocks.{i}" for i in chosen]
    try:
        timed = time_without(model, encoded, names)
    except InputError as why:
        return {}, [f"no time was measured: {why}"]
    share = timed.columns["share of the full time"][1]
    return {"time": timed}, [f"without {', '.join(names)} a forward takes {share:.0%} of the full time."]


def _words(parts: Mapping[str, Result], given: Set, costs: Mapping[Set, Answers]) -> list[str]:
    series = parts["KL"]
    assert isinstance(series, Series)
    said = []
    for at, number in enumerate(series.x):
        costs_now = {way: float(curve[at]) for way, curve in series.curves.items() if way != RANDOM}
        best = min(costs_now, key=lambda way: costs_now[way])
        others = f"random sets {series.curves[RANDOM][at]:.3g}"
        said.append(f"{number} of the blocks: {best} costs least of the choices (KL {costs_now[best]:.3g} nats; {others}).")
    return said + ([f"the blocks given cost {costs[given].mean('kl'):.3g} nats."] if given else [])
