"""What is added to one dimension of the stream at some rows: by sublayer, head and neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activarium.analyses.changed_answers import AT_ONCE
from activarium.analyses.layer_sites import layer_number
from activarium.analyses.massive.calibration import Hits, offsets
from activarium.analyses.massive.stacks import matching_sites
from activarium.errors import UnknownName, UnknownSite
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Ranking, Report, Result, Series

SUBLAYERS = {"attention": "attn.out", "cross-attention": "cross.out", "mlp": "mlp.out"}


@dataclass(frozen=True, eq=False)
class Writes:
    """Averages over the rows, in model units.

    Attributes:
        site: `resid_post` of the block that is taken apart.
        writers: What each adds there, with what stood `before` and the rest, `norm`.
        neurons: Each neuron's part of the MLP's raw output; None where the MLP cannot be read (mixtures of experts).
        activations: Each neuron's activation.
        weights: Each neuron's weight to the dimension.
        median: Median size of the activations of these rows.
        raw: The MLP's raw output, before a norm that may follow it.
        heads: Each head's part of the attention's raw output, or None.
        life: Value and writes per block.
        blocks: Their numbers.
    """

    site: str
    writers: Mapping[str, float]
    neurons: np.ndarray | None
    activations: np.ndarray | None
    weights: np.ndarray | None
    median: float
    raw: float
    heads: np.ndarray | None
    life: Mapping[str, np.ndarray]
    blocks: np.ndarray

    def report(self, top: int, words: Sequence[str], notes: Mapping[str, Any]) -> Report:
        """As tables and words."""
        after = sum(self.writers.values())
        names = sorted(self.writers, key=lambda n: -abs(self.writers[n]))
        values = np.array([self.writers[n] for n in names])
        step = after - self.writers["before"]
        share = np.array([np.nan if n == "before" or not step else self.writers[n] / step for n in names])
        title = f"Who writes dim {notes['dim']} at {self.site}"
        parts: dict[str, Result] = {"writers": Ranking(tuple(names), values, {"share of the step": share}, title=title, unit="model units")}
        said = [*words, f"it goes from {self.writers['before']:.4g} to {after:.4g}: " + _listed(self.writers) + "."]
        if self.neurons is not None and self.activations is not None and self.weights is not None:
            order = np.argsort(-np.abs(self.neurons), kind="stable")[:top]
            columns = {
                "activation": self.activations[order],
                "weight": self.weights[order],
                "share of the mlp": self.neurons[order] / (self.raw or np.nan),
            }
            names = tuple(f"neuron {i}" for i in order)
            parts["neurons"] = Ranking(
                names, self.neurons[order], columns, title="Neurons of its MLP, the largest part first", unit="model units"
            )
            said.append(self._first(int(order[0])))
        if self.heads is not None:
            order = np.argsort(-np.abs(self.heads), kind="stable")[:top]
            parts["heads"] = Ranking(
                tuple(f"head {i}" for i in order), self.heads[order], title="Heads of its attention", unit="model units"
            )
        parts["life"] = Series(
            self.blocks, self.life, "block", title=f"dim {notes['dim']} at these rows, block by block", unit="model units"
        )
        return Report(parts, tuple(said), title="Where a massive activation comes from", unit="model units", diagnostics=dict(notes))

    def _first(self, neuron: int) -> str:
        assert self.neurons is not None
        assert self.activations is not None
        assert self.weights is not None
        times = f", {abs(self.activations[neuron]) / self.median:,.0f} times the median of its row" if self.median else ""
        return (
            f"neuron {neuron} writes {self.neurons[neuron]:.4g} of the {self.raw:.4g} that the MLP gives: activation "
            f"{self.activations[neuron]:.4g}{times}, weight {self.weights[neuron]:.3g}."
        )


def _listed(writers: Mapping[str, float]) -> str:
    large = 1e-5 * max(abs(v) for v in writers.values())  # less is rounding
    return (
        ", ".join(f"{name} {value:+.4g}" for name, value in writers.items() if name != "before" and abs(value) > large)
        or "nothing is added"
    )


def read_writes(model: Runner, inputs: Any, site: str, hits: Hits, progress: bool) -> Writes:
    """Run the inputs that have such a number and take it apart.

    Args:
        model: The model.
        inputs: What it runs on.
        site: `resid_post` of the block.
        hits: The numbers, all in one dimension.
        progress: Show a bar.

    Raises:
        UnknownSite: The sublayers' writes cannot be read.
    """
    stem, dim = site.removesuffix(".resid_post"), int(hits.dim[0])
    prefix = stem.rpartition("blocks.")[0]
    blocks = [s.removesuffix(".resid_post") for s in matching_sites(model) if s.startswith(f"{prefix}blocks.")]
    writes = [f"{b}.{leaf}" for b in blocks for leaf in SUBLAYERS.values() if f"{b}.{leaf}" in model.sites]
    if f"{stem}.mlp.out" not in writes:
        raise UnknownSite(f"{model.name} has no site {stem}.mlp.out that can be read, so the step cannot be split. See model.sites.")
    inside = [f"{stem}.{leaf}" for leaf in ("resid_pre", "mlp.post", "mlp.proj", "attn.z") if f"{stem}.{leaf}" in model.sites]
    read = [*(f"{b}.resid_post" for b in blocks), *writes, *inside]
    gathered: dict[str, list[np.ndarray]] = {}
    encoded = model.inputs(inputs)
    chosen = np.flatnonzero(np.isin(encoded.numbers, hits.example))
    with progress_bar(progress, "taking apart", len(chosen)) as advance:
        for start in range(0, len(chosen), AT_ONCE):
            here = encoded.select(chosen[start : start + AT_ONCE])
            for name, values in _rows(model.run(here, read=read), read, here, site, hits).items():
                gathered.setdefault(name, []).append(values)
            advance(len(here))
    return _averaged(model, site, dim, blocks, {name: np.concatenate(v) for name, v in gathered.items()})


def _rows(recording: Recording, names: Sequence[str], batch: Any, site: str, hits: Hits) -> dict[str, np.ndarray]:
    """The numbers' rows at every site: the dimension alone of streams, everything of neurons and heads."""
    first, dim = offsets(batch, recording[site].space), int(hits.dim[0])
    rows = [first[int(e)][0] + int(p) for e, p in zip(hits.example, hits.position, strict=True) if int(e) in first]
    found = {name: recording[name].rows(rows).double().cpu().numpy() for name in names}
    return {name: values if name.endswith(("mlp.post", "attn.z")) else values[:, dim] for name, values in found.items()}


def _averaged(model: Runner, site: str, dim: int, blocks: Sequence[str], rows: Mapping[str, np.ndarray]) -> Writes:
    stem = site.removesuffix(".resid_post")
    mean = {name: values.mean(0) for name, values in rows.items()}
    writers = {"before": float(mean[f"{stem}.resid_pre"])}
    writers |= {name: float(mean[f"{stem}.{leaf}"]) for name, leaf in SUBLAYERS.items() if f"{stem}.{leaf}" in mean}
    writers["norm"] = float(mean[site]) - sum(writers.values())
    life = {"value": np.array([float(mean[f"{b}.resid_post"]) for b in blocks])}
    for name, leaf in SUBLAYERS.items():
        if all(f"{b}.{leaf}" in mean for b in blocks):
            life[name] = np.array([float(mean[f"{b}.{leaf}"]) for b in blocks])
    post, z = mean.get(f"{stem}.mlp.post"), mean.get(f"{stem}.attn.z")
    down = _weight(model, f"{stem}.mlp.W_down")
    out = _weight(model, f"{stem}.attn.W_O")
    neurons = activations = weights = None
    if post is not None and down is not None and post.ndim == 1:
        activations, weights = post, down[:, dim]
        neurons = activations * weights
    heads = None if z is None or out is None else np.einsum("hd,hd->h", z, out[..., dim])
    median = float(np.median(np.abs(rows[f"{stem}.mlp.post"]))) if post is not None else 0.0
    raw = float(mean.get(f"{stem}.mlp.proj", mean[f"{stem}.mlp.out"]))
    numbers = np.array([layer_number(f"{b}.resid_post", i) for i, b in enumerate(blocks)])
    return Writes(site, writers, neurons, activations, weights, median, raw, heads, life, numbers)


def _weight(model: Runner, name: str) -> np.ndarray | None:
    try:
        return model.weight(name).detach().to(torch.float64).cpu().numpy()
    except UnknownName:  # a mixture of experts, or a quantised layer
        return None
