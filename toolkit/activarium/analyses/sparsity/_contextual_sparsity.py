"""Contextual sparsity: whether each row needs other neurons, how well they can be foreseen, and what chance would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas
import torch

from activarium.activations import Activations
from activarium.analyses.layer_sites import examples_of, layer_number, layer_sites
from activarium.analyses.sparsity.ablated_sets import ablation
from activarium.analyses.sparsity.active_sets import ActiveSets, Fired, fired, fires_by, union_density
from activarium.analyses.sparsity.cost_of_dropping import Intervals
from activarium.analyses.sparsity.firing_rates import PERCENTS, covered, gini, rank_correlation, share_for
from activarium.analyses.sparsity.null_sparsity import null_densities
from activarium.analyses.sparsity.predicted_sets import FIXED, MEASURES, OWN, measured
from activarium.analyses.sparsity.row_kinds import EXCLUDED, left_out, left_out_words
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result, Series

NEURONS = 50  # shown
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def contextual_sparsity(
    recording: Recording,
    model: Runner | None = None,
    inputs: Any = None,
    *,
    active: float | None = None,
    predicted: Recording | Activations | None = None,
    domain: str | None = None,
    draws: int = 100,
    exclude: Sequence[str] = EXCLUDED,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Does each row need its own few neurons, or do all rows need the same?

    Sparsity saves work only if the neurons of a row are known before they are computed. If all rows use the same ones, a fixed
    set does; if not, something must foresee them, and a batch of rows needs the union of all their sets. Everything is
    measured on the neurons, `mlp.post`.

    Args:
        recording: Holds `blocks.*.mlp.post` (else `mlp.act`) of at least two sequences. With `mlp.pre` (in a gated MLP also
            `mlp.act` and `mlp.up`) the Gaussian null is added, with `mlp.in` and a model the one with shuffled weights.
        model: Gives the weights: a neuron's contribution is then |activation| times the norm of its column, else |activation| alone.
        inputs: Run with only the chosen neurons left, as the causal check: what was recorded, of which every second example is used.
        active: Which neurons a row needs: None, those that are not zero (ReLU); or the largest contributions that hold this share of
            the row's energy Σ contribution², between 0 and 1, for smooth activations.
        predicted: Predictions to score, at the same sites and rows: not zero where a neuron is foreseen to be active.
        domain: A row column, such as `label`, between whose values the neurons' rates are compared as well.
        draws: Batches drawn for each size.
        exclude: Row kinds left out. Pads are never rows.
        confidence: Share of resampled sequence sets inside the intervals.
        resamples: How many times the sequences are drawn again.
        seed: Draws sequences, batches and nulls.
        progress: Show a bar while the model runs.

    Returns:
        A report. `layers`: ranking by the share of neurons a row needs, the sparsest first, with its interval, the share of neurons
        that 80 % of all firings come from, the Gini index of the rates, and their rank correlation between two halves of the
        sequences. `hot and cold`: share of all firings in the most active neurons, percent. `reuse`: share of a row's neurons that the
        row before needed too, and what independent rows with the same rates would share. `predictors`: ranking by energy recall, mean
        over layers, of the `fixed set` (as many neurons as a row needs on average, the most frequent of the other half), the row's
        `own strongest` of that number (the best such a set can do), the `row before`, the most frequent of the `rows so far`, and
        what is `predicted`; with recall, precision and predicted sparsity; `predictors by layer` is the grid `predictor layer` of energy
        recall. `union`: share of neurons that a batch needs, against its size, for rows of several sequences, for rows on end, and if rows
        and neurons were independent. `nulls`: sparsity per layer and by chance. `neurons`: ranking of the 50 with the largest share of
        their layer's energy, with rate, mean |activation| and mean contribution when active, and column norm. With `domain`, `domains`:
        grid `domain other` of the rank correlation of rates, mean over layers. With `inputs`, `ablation`: ranking by KL, in nats, of
        models in which each row keeps only its active set, the fixed set, or its own strongest, in all layers at once, in the kinds of rows
        that were counted. Models with several stacks have each part but `ablation` per stack.

    Raises:
        UnknownSite: The recording holds neither `mlp.post` nor `mlp.act`.
        InputError: The activation is smooth and `active` was not given, or not between 0 and 1; one sequence only; no row is left; `inputs`
            without a model; no such column as `domain`; or `predicted` has other rows.
        NotFinite: NaN or infinite neurons.

    Source:
        Rates and predictors: Song et al. 2023, PowerInfer, arXiv:2312.12456; Liu et al. 2023, Deja Vu, arXiv:2310.17157.

    Differs:
        No predictor is trained: these are the baselines that one has to beat. Reuse is a ratio of sums. The nulls are ours: a ReLU of
        Gaussian numbers around zero is half zeros already.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> recording = model.run(["the cat sat", "a dog ran"], read="blocks.*.mlp.post")
        >>> report = act.analyses.contextual_sparsity(recording, active=0.9)
        >>> report["predictors"].names[0]
        'own strongest'
    """
    if active is not None and not 0 < active < 1:
        raise InputError(f"active= is the share of a row's energy that its active neurons hold, between 0 and 1; found {active}.")
    if inputs is not None and model is None:
        raise InputError("inputs= are for a model to run with neurons left out. Pass model= too, or leave inputs= out.")
    draw = Intervals(confidence, resamples, seed)
    every: dict[str, ActiveSets] = {}
    counts: dict[str, Fired] = {}
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, object] = {"active": "not zero" if active is None else active, "confidence": confidence, "seed": seed}
    for stack, sites in layer_sites(recording, ("mlp.post", "mlp.act"), "row d_mlp").items():
        layers = {site: ActiveSets(a, active, _norms(model, site, a), exclude) for site, a in sites.items()}
        first = next(iter(sites.values()))
        if len(np.unique(examples_of(first)[next(iter(layers.values())).rows()])) < 2:
            raise InputError(f"{first.site} holds one sequence; a fixed set is chosen on some and tried on others. Record at least two.")
        table = _Table(layers, recording, model, predicted, draws, seed)
        every, counts = every | layers, counts | table.counts
        made = table.parts(draw) | ({} if domain is None else {"domains": _domains(layers, domain)})
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        notes |= {f"{stack} {key}".strip(): value for key, value in table.notes().items()}
        words += [f"{stack}: {line}" if stack else line for line in [*table.words(), *left_out_words(first, exclude)]]
        notes |= {f"{stack} excluded".strip(): left_out(first, exclude)}
    if model is not None and inputs is not None:
        cost = parts["ablation"] = ablation(model, inputs, every, counts, progress)
        told = ", ".join(f"{name} {kl:.3g}" for name, kl in zip(cost.names, cost.values, strict=True))
        words.append(f"with only these neurons left in all layers, KL from the full model in nats: {told}.")
    return Report(parts, tuple(words), title="Which neurons each row needs", diagnostics=notes)


def _domains(layers: Mapping[str, ActiveSets], domain: str) -> Grid:
    """How alike the neurons' rates are between domains."""
    found = []
    for sets in layers.values():
        fires = fires_by(sets, domain)
        found.append([[rank_correlation(one, other) for other in fires.values()] for one in fires.values()])
    names = list(fires_by(next(iter(layers.values())), domain))
    title = f"Rank correlation of firing rates between values of {domain}, mean over layers"
    return Grid(np.mean(found, 0), ("domain", "other"), {"domain": names, "other": names}, title=title, unit="Spearman's correlation")


def _norms(model: Runner | None, site: str, neurons: Activations) -> torch.Tensor:
    if model is None:
        return torch.ones(neurons.shape[1], dtype=torch.float64)
    return model.weight(f"{site.rpartition('mlp.')[0]}mlp.W_down").double().norm(dim=1)


@dataclass
class _Table:
    """The layers of one stack."""

    layers: Mapping[str, ActiveSets]
    recording: Recording
    model: Runner | None
    predicted: Recording | Activations | None
    draws: int
    seed: int
    by_chance: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts: dict[str, Fired] = {site: fired(sets) for site, sets in self.layers.items()}
        found = {site: measured(sets, self.counts[site], self._given(site)) for site, sets in self.layers.items()}
        self.scores = {name: np.stack([f[0][name] for f in found.values()]) for name in next(iter(found.values()))[0]}  # layer, measure
        self.empty = sum(f[1] for f in found.values())
        self.numbers = np.array([layer_number(s, i) for i, s in enumerate(self.layers)])

    def _given(self, site: str) -> Activations | None:
        if self.predicted is None:
            return None
        found = self.predicted.layers()[site] if isinstance(self.predicted, Activations) else self.predicted[site]
        if found.shape != self.layers[site].neurons.shape:
            raise InputError(
                f"predicted= has shape {found.shape} at {site}, the neurons have {self.layers[site].neurons.shape}. Predict for the same rows."
            )
        return found

    def parts(self, draw: Intervals) -> dict[str, Result]:
        parts: dict[str, Result] = {"layers": self._ranking(draw), "hot and cold": self._hot(), "reuse": self._reuse(draw)}
        names = sorted(self.scores, key=lambda n: -np.nan_to_num(self._means(n)[0]))
        columns = {m: np.array([self._means(n)[i] for n in names]) for i, m in enumerate(MEASURES) if i}
        title = "Sets of neurons chosen beforehand, mean over layers"
        parts["predictors"] = Ranking(tuple(names), np.array([self._means(n)[0] for n in names]), columns, title=title, unit=MEASURES[0])
        labels = {"predictor": names, "layer": list(self.layers)}
        grid = np.stack([self.scores[n][:, 0] for n in names])
        parts["predictors by layer"] = Grid(grid, ("predictor", "layer"), labels, title="Energy recall", unit="share")
        return parts | {"union": self._union()} | self._nulls() | {"neurons": self._neurons()}

    def _neurons(self) -> Ranking:
        """One line per neuron, those with the largest share of their layer's energy first."""
        tables = []
        for (site, counts), sets in zip(self.counts.items(), self.layers.values(), strict=True):
            fires, norms = counts.fires.sum(0), sets.norms.numpy()
            mean = np.divide(counts.contribution, fires, out=np.zeros(len(fires)), where=fires > 0)
            numbers = {"share": counts.energy / (counts.energy.sum() or 1), "rate": counts.rates, "contribution": mean}
            numbers |= {"mean": np.divide(mean, norms, out=np.zeros(len(fires)), where=norms > 0), "column norm": norms}
            tables.append(pandas.DataFrame({"name": [f"{site} neuron {i}" for i in range(len(fires))], **numbers}))
        found = pandas.concat(tables).sort_values("share", ascending=False, kind="stable").head(NEURONS)
        columns = {"rate": "rate", "mean": "mean |activation| when active", "contribution": "mean contribution when active"}
        more = {said: found[c].to_numpy() for c, said in columns.items()} | {"column norm": found["column norm"].to_numpy()}
        return Ranking(
            tuple(found["name"]), found["share"].to_numpy(), more, title="Neurons with most energy", unit="share of its layer's energy"
        )

    def _means(self, name: str) -> np.ndarray:
        return self.scores[name].mean(0)

    def _ranking(self, draw: Intervals) -> Ranking:
        counts = list(self.counts.values())
        ends = np.concatenate([draw.ends(c.sums[:, :1], c.sums[:, 1:2]) for c in counts], 1)
        density = np.array([c.density for c in counts])
        order = np.argsort(density, kind="stable")
        columns = {
            "low": ends[0],
            "high": ends[1],
            "neurons for 80 % of firings": np.array([share_for(c.rates, 0.8) for c in counts]),
            "gini of rates": np.array([gini(c.rates) for c in counts]),
            "rate correlation of halves": np.array([rank_correlation(*c.fires) for c in counts]),
            "reuse": np.array([c.reuse for c in counts]),
            "reuse by chance": np.array([c.reuse_by_chance for c in counts]),
            "rows": np.array([c.rows.sum() for c in counts]),
        }
        names = tuple(list(self.layers)[i] for i in order)
        title = "Layers, the sparsest first"
        return Ranking(names, density[order], {k: v[order] for k, v in columns.items()}, title=title, unit="share a row needs")

    def _hot(self) -> Series:
        curves = {site: covered(c.rates) for site, c in self.counts.items()}
        return Series(PERCENTS, curves, "most active neurons, %", title="Share of all firings", unit="percent")

    def _reuse(self, draw: Intervals) -> Series:
        counts = list(self.counts.values())
        curves = {"measured": np.array([c.reuse for c in counts]), "by chance": np.array([c.reuse_by_chance for c in counts])}
        band = {"measured": np.concatenate([draw.ends(c.sums[:, 2:3], c.sums[:, 3:4]) for c in counts], 1)}
        return Series(self.numbers, curves, "layer", band, title="Neurons of a row that the row before needed too", unit="share")

    def _union(self) -> Series:
        found = {
            name: np.mean([union_density(s, BATCHES, self.draws, self.seed, together=together) for s in self.layers.values()], 0)
            for name, together in (("rows of several sequences", False), ("rows on end", True))
        }
        sizes, density = np.array(BATCHES), np.array([c.density for c in self.counts.values()])
        found["independent, 1 − (1 − p)^B"] = (1 - (1 - density) ** sizes[:, None]).mean(1)
        rates = [np.mean(1 - (1 - c.rates) ** sizes[:, None], 1) for c in self.counts.values()]
        found["independent, with these rates"] = np.mean(rates, 0)
        return Series(sizes, found, "rows in a batch", title="Neurons that a batch needs, mean over layers", unit="share")

    def _nulls(self) -> dict[str, Result]:
        found = [null_densities(sets, self.recording, self.model, self.seed) for sets in self.layers.values()]
        names = [n for n in ("Gaussian", "shuffled weights") if all(n in f for f in found)]
        if not names:
            return {}
        sparsity = np.array([1 - c.density for c in self.counts.values()])
        curves = {"measured": sparsity} | {name: np.array([1 - f[name] for f in found]) for name in names}
        curves |= {f"measured − {name}": sparsity - curves[name] for name in names}
        self.by_chance = {name: float(curves[name].mean()) for name in names}
        return {"nulls": Series(self.numbers, curves, "layer", title="Sparsity, and sparsity by chance", unit="share")}

    def notes(self) -> dict[str, object]:
        site = ".".join(next(iter(self.layers)).split(".")[-2:])
        density = float(np.mean([c.density for c in self.counts.values()]))
        return {"site": site, "density": density, "rows without active neurons": self.empty, "by column norm": self.model is not None}

    def words(self) -> list[str]:
        counts = list(self.counts.values())
        fixed, own = (self._means(n) for n in (FIXED, OWN))
        hot = np.mean([share_for(c.rates, 0.8) for c in counts])
        reuse, chance = (np.mean([getattr(c, n) for c in counts]) for n in ("reuse", "reuse_by_chance"))
        said = [
            f"a row needs {100 * np.mean([c.density for c in counts]):.1f} % of the neurons; 80 % of all firings come from {100 * hot:.1f} % of them (means over layers).",
            f"a fixed set of that many neurons holds {100 * fixed[0]:.1f} % of the energy that rows need, their own strongest {100 * own[0]:.1f} %: "
            "what lies between is what foreseeing them can gain.",
            f"{100 * reuse:.1f} % of a row's neurons were needed by the row before; {100 * chance:.1f} % would be if rows were independent.",
        ]
        return [*said, *[f"sparsity by chance ({name}): {100 * value:.1f} %." for name, value in self.by_chance.items()]]
