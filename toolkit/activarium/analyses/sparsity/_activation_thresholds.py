"""Activation thresholds: every definition of sparsity for smooth activations, on the same rows and at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activarium.activations import Activations
from activarium.analyses.changed_answers import changed_answers
from activarium.analyses.layer_sites import examples_of, layer_number, layer_sites
from activarium.analyses.sparsity.cost_of_dropping import Intervals, cost_parts
from activarium.analyses.sparsity.definitions import FATRELU, OF_NEURONS, TEAL_SITES, Definition, size
from activarium.analyses.sparsity.dropped import calibrated, counted
from activarium.analyses.sparsity.equal_cost import at_equal_cost, equal_cost_words
from activarium.analyses.sparsity.fixed_lines import fixed_lines, fixed_words
from activarium.analyses.sparsity.row_kinds import EXCLUDED, left_out, left_out_words
from activarium.edits import Edit, Where
from activarium.errors import InputError, UnknownSite
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Grid, Report, Result, Series
from activarium.rows import KINDS

TARGETS = (0.25, 0.5, 0.7, 0.9)
Plan = dict[Definition, list[Activations]]


def activation_thresholds(
    source: Recording | Activations,
    model: Runner | None = None,
    inputs: Any = None,
    *,
    targets: Sequence[float] = TARGETS,
    absolute: float = 0.01,
    relative: float = 0.01,
    thresholds: Report | None = None,
    equal_cost: float = 0.05,
    exclude: Sequence[str] = EXCLUDED,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """How sparse is each layer by every definition in use?

    Smooth activations (GELU, SiLU) are hardly ever exactly zero, so each paper draws a line elsewhere. Here the definitions stand
    side by side on the same rows. Every one drops numbers that score no higher than a threshold. `absolute`: |a|, one threshold for
    all layers. `relative`: |a| over the largest |a| of the row. `FATReLU`: a itself, so that all below zero goes; its threshold is
    never below 0. `CATS`: |a|, each layer its own threshold, at `mlp.act`. `energy`: all but the largest numbers that hold a share of
    Σa² of the row. `TEAL …`: |x| at each input of a linear map, each site of each layer its own threshold. Thresholds are exact
    quantiles of every second sequence; what they drop is counted on the others.

    Args:
        source: A recording with `blocks.*.mlp.act` (else `mlp.post`), and for TEAL any of `attn.in`, `attn.z`, `mlp.in`, `mlp.post`;
            or one site or stack of sites, to which all but TEAL are applied.
        model: Measures what dropping costs: numbers are really set to zero in all layers, in the kinds of rows that were counted.
        inputs: What it runs on: what was recorded, of which again only every second example is used, or others.
        targets: Shares to drop, each between 0 and 1.
        absolute: Also count |a| below this, in model units.
        relative: Also count |a| below this share of the largest |a| of the row.
        thresholds: An earlier report of the same layers. Its thresholds and targets are used, and every row is counted.
        equal_cost: At which KL, in nats, the definitions are ranked.
        exclude: Row kinds left out. Pads are never rows.
        confidence: Share of resampled sequence sets inside the intervals.
        resamples: How many times the sequences are drawn again.
        seed: Draws the sequences.
        progress: Show a bar while the model runs.

    Returns:
        A report with `fixed` (series over layers, with intervals: shares below zero, exactly zero, below `absolute`, below `relative`, and
        outside the largest neurons that hold 90, 99 and 99.9 % of a row's energy), `achieved` and `thresholds` (grids
        `definition target layer`) and `transfer` (achieved mean over layers against the target). With a model, `KL`,
        `rise of loss` and `agreement` (series over targets) and `at equal cost` (ranking: the share that can be dropped before KL
        exceeds `equal_cost`, on a straight line between the targets; 0 for FATReLU if all
            below zero is too much). Models with several stacks have the first four parts per stack.

    Raises:
        UnknownSite: The recording holds neither `mlp.act` nor `mlp.post`.
        InputError: A target is not between 0 and 1, there is one sequence only, `thresholds` were calibrated in another dtype or on
            other layers, no row is left, or one of `model` and `inputs` is missing.
        NotFinite: NaN or infinite numbers.

    Source:
        FATReLU: Kurtz et al. 2020, Inducing and Exploiting Activation Sparsity for Fast Inference on Deep Neural Networks, ICML.
        CATS: Lee et al. 2024, arXiv:2404.08763. TEAL: Liu et al. 2024, Training-Free Activation Sparsity in Large Language Models,
        arXiv:2408.14690. The comparison: Luo et al. 2024, Sparsing Law, arXiv:2411.02335.

    Differs:
        TEAL's code reads thresholds off a distribution it takes for symmetric, and counts pads; here they are quantiles of |x| over
        real rows, one share for all sites (no greedy split). q, k and v read one input and share its threshold, as gate and up do.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> recording = model.run(["the cat sat", "a dog ran"], read="blocks.*.mlp.act")
        >>> act.analyses.activation_thresholds(recording, targets=[0.5])["achieved"].values.shape
        (5, 1, 2)
    """
    if (model is None) != (inputs is None):
        raise InputError("The cost of a threshold needs both model= and inputs=. Give both, or neither.")
    for target in targets:
        if not 0 < target < 1:
            raise InputError(f"A target is the share of numbers to drop, between 0 and 1; found {target}. For percent divide by 100.")
    draw = Intervals(confidence, resamples, seed)
    parts: dict[str, Result] = {}
    tables: list[_Table] = []
    words: list[str] = []
    notes: dict[str, object] = {"confidence": confidence, "seed": seed, "targets": list(targets)}
    if thresholds is not None:
        notes["targets"] = targets = _targets_of(thresholds)
    for stack, plan in _plans(source).items():
        table = _Table(stack, plan, targets, exclude, thresholds)
        tables.append(table)
        made: dict[str, Result] = {"fixed": fixed_lines(next(iter(plan.values())), absolute, relative, exclude, draw), **table.parts()}
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        notes |= {f"{stack} {name}".strip(): value for name, value in table.notes().items()}
        words += [f"{stack}: {line}" if stack else line for line in [*fixed_words(made["fixed"]), *table.words()]]
        words += left_out_words(table.first, exclude) + ([] if isinstance(source, Activations) else _missing(plan))
    if model is not None:
        cost, more = _cost(model, inputs, tables, targets, equal_cost, draw, progress, thresholds is None)
        parts, words = parts | cost, words + more
    return Report(parts, tuple(words), title="Sparsity by every definition", diagnostics=notes)


def _plans(source: Recording | Activations) -> dict[str, Plan]:
    """Stack → definition → the site of each layer."""
    if isinstance(source, Activations):
        return {"": {d: list(source.layers().values()) for d in OF_NEURONS}}
    neurons = layer_sites(source, ("mlp.act", "mlp.post"), "row d_mlp")
    plans: dict[str, Plan] = {stack: {d: list(sites.values()) for d in OF_NEURONS} for stack, sites in neurons.items()}
    for ending in TEAL_SITES:
        axes = {"attn.z": "row head d_head", "mlp.post": "row d_mlp"}.get(ending, "row d_model")
        try:
            inputs = layer_sites(source, (ending,), axes)
        except UnknownSite:
            continue
        for stack, sites in ((s, sites) for s, sites in inputs.items() if s in plans):
            plans[stack][Definition(f"TEAL {ending}", size)] = list(sites.values())
    return plans


@dataclass
class _Table:
    """The definitions of one stack: thresholds, and what they drop in the rows that they were not calibrated on."""

    stack: str
    plan: Plan
    targets: Sequence[float]
    exclude: Sequence[str]
    earlier: Report | None

    def __post_init__(self) -> None:
        self.first = next(iter(self.plan.values()))[0]
        self.layers = [layer_number(a.site, i) for i, a in enumerate(next(iter(self.plan.values())))]
        held_out = None
        if self.earlier is None:
            calibrating, held_out = _halves(self.first)
            self.thresholds = calibrated(self.plan, self.targets, self.exclude, calibrating)
        else:
            self.thresholds = self._reused(self.earlier)
        self.dropped = counted(self.plan, self.thresholds, self.exclude, held_out)

    @property
    def dtype(self) -> str:
        return str(self.first.dtype).removeprefix("torch.")

    def _name(self, part: str) -> str:
        return f"{self.stack} {part}".strip()

    def _reused(self, earlier: Report) -> dict[Definition, np.ndarray]:
        found, grid = earlier.diagnostics.get(self._name("dtype")), earlier[self._name("thresholds")]
        assert isinstance(grid, Grid)
        if found != self.dtype:
            raise InputError(
                f"These thresholds were calibrated in {found}; {self.first.site} is {self.dtype}, where other numbers fall below the line. "
                "Calibrate again on this recording."
            )
        have = (grid.label("definition"), grid.label("layer"))
        wanted = ([d.name for d in self.plan], [str(n) for n in self.layers])
        if have != wanted:
            raise InputError(
                f"These thresholds are of {', '.join(have[0])} in layers {', '.join(have[1])}; this recording gives {', '.join(wanted[0])} in "
                f"layers {', '.join(wanted[1])}. Record the same sites, or calibrate again."
            )
        return {d: grid.values[i] for i, d in enumerate(self.plan)}

    def parts(self) -> dict[str, Result]:
        labels = {
            "definition": [d.name for d in self.plan],
            "target": [f"{t:g}" for t in self.targets],
            "layer": list(map(str, self.layers)),
        }
        axes = ("definition", "target", "layer")
        achieved = np.stack([np.stack([d.share for d in many], 1) for many in self.dropped.values()])
        lines = np.stack(list(self.thresholds.values()))
        means = {d.name: achieved[i].mean(1) for i, d in enumerate(self.plan)}
        return {
            "achieved": Grid(achieved, axes, labels, title="Share dropped in held-out rows", unit="share"),
            "thresholds": Grid(lines, axes, labels, title="Thresholds", unit="|a|; relative: share of largest; energy: share of Σa²"),
            "transfer": Series(
                np.asarray(self.targets), means, "target", title="Share dropped in held-out rows, mean over layers", unit="share"
            ),
        }

    def notes(self) -> dict[str, object]:
        count = next(iter(self.dropped.values()))[0].seen
        site = ".".join(self.first.site.split(".")[-2:])
        return {"site": site, "dtype": self.dtype, "held-out sequences": len(count), "excluded": left_out(self.first, self.exclude)}

    def words(self) -> list[str]:
        away = {
            (d.name, t): abs(float(np.mean([x.share[i] for x in many])) - t)
            for d, many in self.dropped.items()
            for i, t in enumerate(self.targets)
        }
        (name, target), gap = max(away.items(), key=lambda item: item[1])
        return [f"on held-out rows the share dropped is farthest from its target for {name}: {100 * gap:.2g} points at {target:g}."]

    def edits(self, i: int) -> dict[str, list[Edit]]:
        """Method → what drops its numbers at the i-th target; TEAL drops at all its sites at once."""
        where = Where(kinds=tuple(k for k in KINDS if k not in self.exclude))
        found: dict[str, list[Edit]] = {}
        for definition, sites in self.plan.items():
            lines = self.thresholds[definition][i]
            found.setdefault(definition.name.split(" ")[0], []).extend(
                definition.edit(a.site, float(t), where) for a, t in zip(sites, lines, strict=True)
            )
        return found


def _targets_of(earlier: Report) -> list[float]:
    if "targets" not in earlier.diagnostics:
        raise InputError(f"thresholds= is a report of {', '.join(earlier.parts)}. Pass a report of activation_thresholds.")
    return list(earlier.diagnostics["targets"])


def _missing(plan: Plan) -> list[str]:
    missing = [ending for ending in TEAL_SITES if f"TEAL {ending}" not in {d.name for d in plan}]
    return [f"TEAL needs more sites, not recorded: {', '.join(missing)}."] if missing else []


def _halves(activations: Activations) -> tuple[np.ndarray, np.ndarray]:
    """Every second sequence to calibrate on, and the others."""
    sequences = np.unique(examples_of(activations))
    if len(sequences) < 2:
        raise InputError(
            f"{activations.site or 'This recording'} holds one sequence; thresholds are calibrated on some and counted on others. "
            "Record at least two, or pass thresholds= from an earlier report."
        )
    return sequences[::2], sequences[1::2]


def _cost(
    model: Runner,
    inputs: Any,
    tables: Sequence[_Table],
    targets: Sequence[float],
    budget: float,
    draw: Intervals,
    progress: bool,
    half: bool,
) -> tuple[dict[str, Result], list[str]]:
    encoded = model.inputs(inputs)
    held_out = encoded.select(range(1, len(encoded), 2)) if half and len(encoded) > 1 else encoded
    changes: dict[str, list[Edit]] = {}
    for table in tables:
        for i in range(len(targets)):
            for method, edits in table.edits(i).items():
                changes.setdefault(f"{method}|{i}", []).extend(edits)
    methods = list(dict.fromkeys(name.split("|")[0] for name in changes))
    with torch.no_grad():
        found = changed_answers(model, held_out, changes, progress=progress, doing="dropping")
    answers = {m: [found[f"{m}|{i}"] for i in range(len(targets))] for m in methods}
    parts: dict[str, Result] = dict(cost_parts(np.asarray(targets), "target", answers, draw))
    kl = parts["KL"]
    assert isinstance(kl, Series)
    dropped: dict[str, list[np.ndarray]] = {}
    for table in tables:
        for definition, many in table.dropped.items():
            dropped.setdefault(definition.name.split(" ")[0], []).extend(d.share for d in many)
    ranked = at_equal_cost({m: np.mean(shares, 0) for m, shares in dropped.items()}, kl.curves, budget, [FATRELU.name])
    return parts | {"at equal cost": ranked}, equal_cost_words(ranked, budget)
