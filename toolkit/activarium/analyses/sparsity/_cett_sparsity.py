"""CETT sparsity: the share of neurons that can be left out for a stated loss of output, or of perplexity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.changed_answers import changed_answers
from activarium.analyses.layer_sites import layer_number, layer_sites
from activarium.analyses.sparsity.cett import CettLayer
from activarium.analyses.sparsity.cost_of_dropping import Intervals
from activarium.analyses.sparsity.dropped import Dropped, count_rows
from activarium.analyses.sparsity.row_kinds import EXCLUDED, left_out, left_out_words
from activarium.edits import Threshold, Where
from activarium.errors import AxisError, InputError, UnknownName
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Ranking, Report, Result, Series
from activarium.rows import KINDS

SEARCHES = 8  # halvings of the CETT target: it is found to 1/256


def cett_sparsity(
    recording: Recording | Activations,
    model: Runner,
    inputs: Any = None,
    *,
    target: float = 0.2,
    percent: float = 1.0,
    by: Literal["contribution", "size"] = "contribution",
    exclude: Sequence[str] = EXCLUDED,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """How many neurons can be left out before output or perplexity suffers by a stated amount?

    Neuron i writes nᵢ, its activation times its column of the down projection. For a row, the neurons with ‖nᵢ‖ not above eps are
    dropped, D, and CETT = ‖Σ_D nᵢ‖ / ‖output of the MLP‖, bias included. Each layer has its own eps, found by bisection so
    that the mean CETT over rows comes to just below one target shared by all layers; sparsity is the share of dropped neurons.
    With `inputs`, CETT-PPL: a second bisection finds the largest target at which the model's real perplexity, with the dropped
    neurons really dropped in all layers, rises by at most `percent` %.

    Args:
        recording: Holds `blocks.*.mlp.post`, the input of the down projection; or such a site or stack, axes `row d_mlp`.
        model: Gives the weights, and runs `inputs`.
        inputs: What perplexity is measured on: texts, or images with labels as `{"images": …, "label": numbers}`. Neurons are
            dropped in the kinds of rows that were counted.
        target: CETT, a share of the output's norm.
        percent: How far perplexity may rise, percent.
        by: `contribution` ranks neurons by ‖nᵢ‖; `size` by |activation| alone, whatever their columns are.
        exclude: Row kinds left out. Pads are never rows.
        confidence: Share of resampled sequence sets inside the intervals.
        resamples: How many times the sequences are drawn again.
        seed: Draws the sequences.
        progress: Show a bar while the model runs.

    Returns:
        A report with `sparsity` (series over layers with intervals over sequences: share of neurons dropped at the target, and at the
        target that perplexity allows) and `layers` (ranking, the sparsest first: eps in model units, the CETT it has, neurons). With
        `inputs`, `search` (series over the targets tried: rise of perplexity in percent, mean sparsity). Models with several stacks
        have `sparsity` and `layers` per stack. Means over all layers are `diagnostics["sparsity"]` and
        `diagnostics["sparsity at perplexity"]`, the target found is `diagnostics["CETT at perplexity"]`.

    Raises:
        UnknownSite: The recording holds no `mlp.post`.
        AxisError: The site has another width than the down projection.
        InputError: The target is not between 0 and 1, `percent` is not positive, `by` is unknown, no row is left, or for none of the
            answers of `inputs` it is known what is right.
        NotFinite: NaN or infinite neurons.

    Source:
        Luo et al. 2024, Sparsing Law: Towards Large Language Models with Greater Activation Sparsity, arXiv:2411.02335.

    Differs:
        Rows are weighted equally, whatever their sequence; rows whose output is zero are left out and counted. CETT of a layer is that
        of the recording, in which no layer before it has lost anything. CETT need not grow with eps, nor perplexity with CETT:
        of all values tried, the answer is the last that bisection accepted. `size` and the intervals are ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> report = act.analyses.cett_sparsity(model.run(["the cat sat", "a dog"], read="blocks.*.mlp.post"), model)
        >>> bool((report["layers"].columns["CETT"] <= 0.2).all())
        True
    """
    _check(target, percent, by)
    stacks = layer_sites(recording, ("mlp.post",), "row d_mlp")
    layers = {stack: {site: _layer(model, site, a, by, exclude) for site, a in sites.items()} for stack, sites in stacks.items()}
    every = {site: layer for many in layers.values() for site, layer in many.items()}
    lines = {f"CETT {target:g}": {site: layer.eps_for(target) for site, layer in every.items()}}
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, object] = {"target": target, "by": by, "confidence": confidence, "seed": seed}
    if inputs is not None:
        search = _Search(model, inputs, every, percent, exclude, progress)
        allowed = search.found()
        lines[f"perplexity +{percent:g} %"] = {site: layer.eps_for(allowed) for site, layer in every.items()}
        parts["search"], notes = search.series(), notes | search.notes(allowed)
        words += search.words(allowed)
    draw = Intervals(confidence, resamples, seed)
    for stack, many in layers.items():
        chosen = {name: {site: eps[site] for site in many} for name, eps in lines.items()}
        made, counts = _stack_parts(many, chosen, exclude, draw)
        parts = {f"{stack} {name}".strip(): part for name, part in made.items()} | parts
        means = {name: float(np.mean([d.share[0] for d in found])) for name, found in counts.items()}
        keys = ("sparsity", "sparsity at perplexity")
        notes |= {f"{stack} {key}".strip(): mean for key, mean in zip(keys, means.values(), strict=False)}
        first = next(iter(many.values())).neurons
        notes |= {f"{stack} excluded".strip(): left_out(first, exclude), f"{stack} dtype".strip(): str(first.dtype).removeprefix("torch.")}
        words += [f"{stack}: {line}" if stack else line for line in [*_words(means), *left_out_words(first, exclude)]]
    silent = {site: layer.silent for site, layer in every.items() if layer.silent}
    words += [f"rows whose output is zero have no CETT and were left out: {silent}."] if silent else []
    return Report(parts, tuple(words), title="Sparsity by the error of leaving neurons out", diagnostics=notes)


def _check(target: float, percent: float, by: str) -> None:
    if not 0 < target < 1:
        raise InputError(f"target= is a share of the output's norm, between 0 and 1; found {target}. The usual choice is 0.2.")
    if not percent > 0:
        raise InputError(f"percent= is how far perplexity may rise; found {percent}. Pass a positive number, 1 for one percent.")
    if by not in ("contribution", "size"):
        raise InputError(f"by={by!r} is no way to rank neurons; choose 'contribution' or 'size'.")


def _layer(model: Runner, site: str, neurons: Activations, by: str, exclude: Sequence[str]) -> CettLayer:
    block = site.removesuffix("mlp.post").removesuffix("mlp.act")
    down = model.weight(f"{block}mlp.W_down")
    if len(down) != neurons.shape[1]:
        raise AxisError(
            f"{site} has {neurons.shape[1]} neurons; the down projection of {model.name} takes {len(down)}. Pass the model that was recorded."
        )
    bias = None
    with suppress(UnknownName):  # many MLPs have none
        bias = model.weight(f"{block}mlp.b_down")
    return CettLayer(neurons, down, bias, torch.ones(len(down)) if by == "size" else None, exclude)


@dataclass
class _Search:
    """The perplexity with neurons dropped at a CETT target, and the largest target that keeps it near."""

    model: Runner
    inputs: Any
    layers: Mapping[str, CettLayer]
    percent: float
    exclude: Sequence[str]
    progress: bool
    tried: dict[float, tuple[float, float]] = field(default_factory=dict)  # target → rise in percent, sparsity
    full: float = float("nan")

    def found(self) -> float:
        """Halve the interval from 0 (only zeros are dropped) to 1 until it is short."""
        low, high = 0.0, 1.0
        if self._rise(high) <= self.percent:
            return high
        for _ in range(SEARCHES):
            middle = (low + high) / 2
            low, high = (middle, high) if self._rise(middle) <= self.percent else (low, middle)
        return low

    def _rise(self, target: float) -> float:
        where = Where(kinds=tuple(k for k in KINDS if k not in self.exclude))
        eps = {site: layer.eps_for(target) for site, layer in self.layers.items()}
        edits = [Threshold(site, self.layers[site].limits(e), where=where) for site, e in eps.items()]
        answers = changed_answers(self.model, self.inputs, {"": edits}, progress=self.progress, doing="dropping")[""]
        if not answers.known.any():
            raise InputError(
                f"Perplexity needs right answers; {self.model.name} has none for these inputs. For images pass "
                '{"images": …, "label": numbers}; for a model that sees all tokens leave inputs= out.'
            )
        self.full = float(np.exp(answers.mean("full_loss")))
        rise = 100 * float(np.expm1(answers.mean("loss") - answers.mean("full_loss")))
        shares = [_share(layer, eps[site]) for site, layer in self.layers.items()]
        self.tried[target] = rise, float(np.mean(shares))
        return rise

    def series(self) -> Series:
        targets = sorted(self.tried)
        rise, sparsity = np.array([self.tried[t] for t in targets]).T
        curves = {"rise of perplexity, %": rise, "sparsity, %": 100 * sparsity}
        return Series(np.array(targets), curves, "CETT target", title="Perplexity with neurons dropped", unit="percent")

    def notes(self, allowed: float) -> dict[str, object]:
        rise = self.tried[allowed][0] if allowed else 0.0
        return {"percent": self.percent, "perplexity": self.full, "rise of perplexity": rise, "CETT at perplexity": allowed}

    def words(self, allowed: float) -> list[str]:
        if not allowed:
            return [f"no CETT target above {2.0**-SEARCHES:g} keeps the rise of perplexity within {self.percent:g} %."]
        rise, _ = self.tried[allowed]
        return [
            f"perplexity {self.full:.4g} changes by {rise:+.2f} % (allowed: +{self.percent:g} %) at a CETT of {allowed:.3g} in every layer."
        ]


def _share(layer: CettLayer, eps: float) -> float:
    counts = [(int(d.sum()), d.numel()) for d in layer.dropped(eps)]
    return sum(c for c, _ in counts) / sum(n for _, n in counts)


def _stack_parts(
    layers: Mapping[str, CettLayer], lines: Mapping[str, Mapping[str, float]], exclude: Sequence[str], draw: Intervals
) -> tuple[dict[str, Result], dict[str, list[Dropped]]]:
    counts = {name: [_counted(layer, eps[site], exclude) for site, layer in layers.items()] for name, eps in lines.items()}
    numbers = np.array([layer_number(site, i) for i, site in enumerate(layers)])
    curves = {name: np.array([d.share[0] for d in found]) for name, found in counts.items()}
    bands = {name: np.concatenate([draw.ends(d.dropped, d.seen[:, None]) for d in found], 1) for name, found in counts.items()}
    first, *rest = lines
    order = np.argsort(-curves[first], kind="stable")
    columns = {"eps": np.array([lines[first][s] for s in layers]), "CETT": np.array([a.cett(lines[first][s]) for s, a in layers.items()])}
    for name in rest:
        columns[f"eps at {name}"] = np.array([lines[name][s] for s in layers])
    columns["neurons"] = np.array([len(a.down) for a in layers.values()])
    names = tuple(list(layers)[i] for i in order)
    ranking = Ranking(
        names, curves[first][order], {k: v[order] for k, v in columns.items()}, title="Layers, the sparsest first", unit="share dropped"
    )
    series = Series(numbers, curves, "layer", bands, title="Neurons that can be left out", unit="share")
    return {"sparsity": series, "layers": ranking}, counts


def _counted(layer: CettLayer, eps: float, exclude: Sequence[str]) -> Dropped:
    limits = layer.limits(eps)

    def marks(values: Tensor) -> Iterator[Tensor]:
        yield values.to(limits.dtype).abs() <= limits

    return count_rows(layer.neurons, marks, 1, exclude)


def _words(means: Mapping[str, float]) -> list[str]:
    return [f"at {name}, {100 * mean:.1f} % of the neurons can be left out, mean over layers." for name, mean in means.items()]
