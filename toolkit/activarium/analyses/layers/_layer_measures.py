"""Layer measures: everything that is said of a layer's importance, in one table, beside what its removal costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.analyses.layer_sites import layer_number, layer_sites
from activarium.analyses.layers.intervals import Intervals
from activarium.analyses.layers.measures import DISTANCE, UNITS, USAGE, Measured, Sums, correlation_interval, measured, rank_correlations
from activarium.analyses.layers.nulls import in_disorder, recorded
from activarium.analyses.layers.removal import remove_each
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result, Series

CONFIDENCE = 0.95
COST = "removal KL"
FEW = 8  # blocks; with fewer a rank correlation says next to nothing


def layer_measures(
    recording: Recording,
    model: Runner | None = None,
    inputs: Any = None,
    *,
    alpha: float = 0.8,
    exclude_dims: Sequence[int] = (),
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Do measures of a layer's importance agree, and do they tell what its removal costs?

    Layer usage (the share of rows for which it is no void), block influence, angle, relative update and its parts along and
    across the input, and the CKA distance (1 − linear CKA) all say how much a layer does. None of them says that the model needs it: with
    `model` and `inputs` each block is removed, and the measures are also taken where there is nothing to find: in an
    untrained twin, and with the tokens or patches of each input shuffled.

    Args:
        recording: Holds `blocks.*.resid_post` of every block, and `blocks.0.resid_pre` or `embed`.
        model: Removes blocks and runs the nulls.
        inputs: What it runs on, usually what was recorded.
        alpha: Of the layer usage; see `layer_voids`.
        exclude_dims: Dimensions left out of every vector, such as massive ones. Removals are those of the whole model.
        seed: Draws the sequences of the intervals, the twin's weights and the shuffled orders.
        progress: Show a bar while blocks are removed.

    Returns:
        A report with `table` (ranking of the blocks by the cost of removal, or else by influence; every measure is a column),
        `correlations` (grid `measure other`: Spearman over blocks) and for each measure a series over blocks with
        intervals over sequences. A model adds `against removal` (ranking: each measure's rank correlation with
        KL(full ‖ removed), with its interval over sequences) and the two nulls to every series. Models with several stacks
        have each part per stack.

    Raises:
        UnknownSite: The recording holds no `resid_post`.
        InputError: Blocks are missing, only one of `model` and `inputs` is given, or a dimension is not there.
        NotFinite: NaN or infinite numbers in the residual stream.

    Source:
        The measures are those of `layer_voids` and `block_influence`; see there. The comparison is ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> recording = model.run(["the cat sat"], read=["embed", "blocks.*.resid_post"])
        >>> act.analyses.layer_measures(recording)["correlations"].values.shape
        (7, 7)
    """
    if (model is None) != (inputs is None):
        raise InputError("Removals and nulls need both model= and inputs=. Give both, or neither.")
    draw = Intervals(CONFIDENCE, 1000, seed)
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, Any] = {"alpha": alpha, "exclude_dims": list(exclude_dims), "confidence": CONFIDENCE, "seed": seed}
    for stack, sites in layer_sites(recording, ("resid_post",), "row d_model").items():
        own = measured(recording, stack, sites, alpha, exclude_dims)
        numbers = np.array([layer_number(f"{name}.", i) for i, name in enumerate(own.names)])
        costs, nulls, said = {}, {}, []
        if model is not None:
            costs = _costs(model, inputs, own.names, progress)
            nulls, said = _nulls(model, inputs, f"{stack}.".lstrip("."), own.names, alpha, exclude_dims, seed)
        made = _tables(own, costs, draw) | _curves(numbers, own, nulls, draw)
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        words += [f"{stack}: {line}" if stack else line for line in (*_words(made), *said)]
    return Report(parts, tuple(words), title="Layer measures", diagnostics=notes)


def _costs(model: Runner, inputs: Any, names: Sequence[str], progress: bool) -> dict[str, Sums]:
    cost = remove_each(model, inputs, names, progress)
    made = {COST: (cost.kl, np.broadcast_to(cost.answers[:, None], cost.kl.shape))}
    if cost.loss is not None:
        made["rise of loss"] = cost.loss, np.broadcast_to(cost.predicted[:, None], cost.loss.shape)
    return made


def _nulls(
    model: Runner, inputs: Any, prefix: str, names: Sequence[str], alpha: float, exclude: Sequence[int], seed: int
) -> tuple[dict[str, Measured], list[str]]:
    """The same measures where nothing was learned, and where tokens or patches stand in disorder."""
    sites = [f"{names[0]}.resid_pre", *(f"{name}.resid_post" for name in names)]
    made, said = {}, []
    try:
        made["untrained twin"] = recorded(model.untrained(seed), inputs, sites)
    except InputError as why:
        said.append(f"there is no untrained twin: {why}")
    made["shuffled rows"] = recorded(model, inputs, sites, in_disorder(prefix, np.random.default_rng(seed)))
    stack = prefix.rstrip(".")
    return {name: measured(r, stack, {s: r[s] for s in sites[1:]}, alpha, exclude) for name, r in made.items()}, said


def _tables(own: Measured, costs: Mapping[str, Sums], draw: Intervals) -> dict[str, Result]:
    values = own.values(draw) | {name: draw(*pair)[0] for name, pair in costs.items()}
    by = COST if costs else "influence"
    order = np.argsort(-values[by], kind="stable")
    columns = {name: curve[order] for name, curve in values.items() if name != by}
    names = tuple(own.names[i] for i in order)
    unit = "nats" if costs else UNITS["influence"]
    parts: dict[str, Result] = {"table": Ranking(names, values[by][order], columns, title=f"Blocks by {by}", unit=unit)}
    labels = {"measure": list(values), "other": list(values)}
    title = f"Rank correlation of measures over {len(names)} blocks"
    correlations = Grid(rank_correlations(values), ("measure", "other"), labels, title=title, unit="Spearman's ρ")
    parts["correlations"] = correlations
    if costs:
        parts["against removal"] = _against(own, costs[COST], correlations, draw)
    return parts


def _against(own: Measured, cost: Sums, correlations: Grid, draw: Intervals) -> Ranking:
    found = dict(zip(correlations.label("measure"), correlations.values[:, correlations.label("measure").index(COST)], strict=True))
    ends = {name: correlation_interval(pair, cost, draw.options) for name, pair in own.sums.items()}
    names = sorted([*own.sums, DISTANCE], key=lambda n: -np.nan_to_num(found[n], nan=-2))
    columns = {side: np.array([ends.get(n, (np.nan, np.nan))[i] for n in names]) for i, side in enumerate(("low", "high"))}
    values = np.array([found[n] for n in names])
    return Ranking(tuple(names), values, columns, title="Rank correlation with the cost of removal", unit="Spearman's ρ")


def _curves(numbers: np.ndarray, own: Measured, nulls: Mapping[str, Measured], draw: Intervals) -> dict[str, Result]:
    """Each measure block by block, and where there is nothing to find."""
    every = {"the model": own, **nulls}
    parts: dict[str, Result] = {}
    for name in own.sums:
        curves = {who: m.sums[name] for who, m in every.items()}
        parts[name] = draw.series(numbers, curves, f"{name[0].upper()}{name[1:]} of each block", UNITS.get(name, "share of the input"))
    distances = {who: m.distance for who, m in every.items()}
    parts[DISTANCE] = Series(numbers, distances, "block", title="1 − linear CKA of each block's input and output", unit=UNITS[DISTANCE])
    return parts


def _words(parts: Mapping[str, Result]) -> list[str]:
    table, against = parts["table"], parts.get("against removal")
    assert isinstance(table, Ranking)
    blocks = len(table.names)
    if not isinstance(against, Ranking):
        return [f"{blocks} blocks; without a model no removal says which of the measures is right."]
    said = []
    known = [(n, v) for n, v in zip(against.names, against.values, strict=True) if np.isfinite(v)]
    if known:
        (best, high), (worst, low) = known[0], known[-1]
        said.append(f"over {blocks} blocks the cost of removal goes best with {best} (ρ {high:.2f}) and least with {worst} (ρ {low:.2f}).")
    place = blocks - 1 - np.argsort(np.argsort(table.columns[USAGE], kind="stable"), kind="stable")
    apart = int(np.abs(place - np.arange(blocks)).argmax())
    if place[apart] != apart:
        said.append(f"{table.names[apart]} is number {apart + 1} by the cost of removal and number {place[apart] + 1} by {USAGE}.")
    if blocks < FEW:
        said.append(f"a rank correlation over {blocks} blocks is hardly evidence.")
    return said
