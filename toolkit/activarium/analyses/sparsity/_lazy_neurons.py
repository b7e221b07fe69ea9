"""Lazy neurons: the exact percentage of MLP neurons that are not zero, layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import STACKS, column, examples_of, layer_number, layer_sites, refuse_strange
from activarium.analyses.sparsity.firing_rates import rates_of
from activarium.analyses.sparsity.row_kinds import EXCLUDED, kept, left_out, left_out_words, some_kept
from activarium.errors import AxisError, InputError, NotFinite, UnknownName, UnknownSite
from activarium.maths import bootstrap_interval
from activarium.recording import Recording
from activarium.results import Grid, Overlay, Ranking, Report, Result, Series
from activarium.rows import Rows
from activarium.summaries import Count, Survey

TITLE = "Nonzero neurons, layer by layer"
ALWAYS = 99.9  # percent of nonzeros above which nothing rectifies: no trained ReLU layer comes near


def lazy_neurons(
    recording: Recording | Activations | Survey,
    *,
    exclude: Sequence[str] = EXCLUDED,
    example: int | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """How few of its MLP neurons does each layer use for a token or a patch?

    Counts numbers that are exactly not zero at `blocks.*.mlp.act`, the output of the activation function: this is where
    a ReLU puts its zeros. (`mlp.post` is the same site unless the MLP is gated; it is read where `mlp.act` was not
    recorded, and the result says so. In a gated MLP, `post` also multiplies by the linear branch.) All state is whole
    numbers, so batches, shards and workers give the same bits in any order. -0.0 counts as zero.

    Args:
        recording: A recording with `blocks.*.mlp.act`, or such a site or stack itself, axes `row d_mlp`; or a survey with `Count` there,
            which needs no activations any more.
        exclude: Row kinds left out before anything is counted. Pads are never rows.
        example: Also show the nonzero neurons of each row of this example.
        confidence: Share of resampled sequence sets inside the interval.
        resamples: How many times the sequences are drawn again for the interval.
        seed: Draws the sequences for the interval.

    Returns:
        A report with `nonzero` (percent per layer with its interval), `layers` (a ranking, the laziest first, with dead and always-on
        neurons), `rates` (share of neurons by the percentage of rows in which they fire, dead and always-on ones apart), `firing rate`
        and `fires` (per neuron: share and number of rows), `nonzeros per row` (how many rows have exactly 0, 1, … nonzero neurons)
        and, if asked for, `rows`. A model with several stacks has each
        part once per stack, `encoder nonzero`. The model's value is the unweighted mean over the layers of a stack:
        `diagnostics["percent"]`.

    Raises:
        UnknownSite: The recording holds neither `mlp.act` nor `mlp.post`.
        AxisError: The site has other axes than `row d_mlp`, such as a mixture of experts with its slots.
        InputError: No row is left, there is no such example, or a survey left out other kinds of rows than `exclude`.
        NotFinite: NaN or infinite numbers, which would count as firing.

    Source:
        Li et al. 2022, The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers,
        arXiv:2210.06313. Interval: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Differs:
        The interval, the excluded rows and the per-neuron rates are ours. Smooth activations (GELU, SiLU) are hardly
        ever exactly zero, so this is a warning for them rather than a sparsity.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> acts = Activations(torch.tensor([[0.0, 2.0, 0.0, 0.0], [0.0, 1.0, 3.0, 0.0]]), "row d_mlp", site="blocks.0.mlp.act")
        >>> lazy_neurons(acts).diagnostics["percent"]
        37.5
    """
    if isinstance(recording, Survey):
        return _surveyed(recording, exclude, example, confidence, resamples, seed)
    stacks = layer_sites(recording, ("mlp.act", "mlp.post"), "row d_mlp")
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, object] = {"confidence": confidence, "seed": seed}
    for stack, sites in stacks.items():
        counts = {site: _counted(activations, exclude) for site, activations in sites.items()}
        table = _Table(stack, counts, confidence, resamples, seed)
        parts |= {f"{stack} {name}".strip(): part for name, part in table.parts().items()}
        if example is not None:
            parts[f"{stack} rows".strip()] = _rows(sites, example, exclude)
        notes |= {f"{stack} {name}".strip(): value for name, value in _notes(sites, table, exclude).items()}
        words += [*table.words(), *left_out_words(next(iter(sites.values())), exclude), *_warnings(counts)]
    return Report(parts, tuple(words), title=TITLE, unit="percent", diagnostics=notes)


def _surveyed(survey: Survey, exclude: Sequence[str], example: int | None, confidence: float, resamples: int, seed: int) -> Report:
    """The same answer from counts that a survey gathered."""
    if example is not None:
        raise InputError(f"A survey keeps no rows, so example {example} cannot be shown. Leave out example=, or pass a recording.")
    left = list(survey.provenance.get("exclude", ()))
    if set(left) != set(exclude):
        raise InputError(f"This survey left out rows of kind {left}; exclude= says {list(exclude)}. Pass exclude={left}, or survey again.")
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, object] = {"confidence": confidence, "seed": seed}
    for stack, counts in counts_by_stack(survey).items():
        odd = next((site for site, c in counts.items() if c.nan or c.infinite), None)
        if odd is not None:
            raise NotFinite(
                f"{odd} held NaN or infinite numbers when it was surveyed, which would count as firing. Survey it in float32 or bfloat16."
            )
        table = _Table(stack, counts, confidence, resamples, seed)
        parts |= {f"{stack} {name}".strip(): part for name, part in table.parts().items()}
        notes |= {f"{stack} {name}".strip(): value for name, value in _figures(table).items()}
        words += [*table.words(), *_warnings(counts)]
    return Report(parts, tuple(words), title=TITLE, unit="percent", diagnostics=notes | {"excluded": left})


def counts_by_stack(survey: Survey) -> dict[str, dict[str, Count]]:
    """Stack name → site → its `Count`, at `mlp.act` or, where that was not surveyed, `mlp.post`.

    Raises:
        UnknownSite: The survey counts at neither.
    """
    for ending in ("mlp.act", "mlp.post"):
        found: dict[str, dict[str, Count]] = {}
        for stack in STACKS:
            with suppress(UnknownName):  # another stack's model, or sites surveyed without Count
                counts = survey.find(f"{stack}blocks.*.{ending}", "Count")
                found[stack.rstrip(".")] = {site: count for site, count in counts.items() if isinstance(count, Count)}
        if found:
            return found
    raise UnknownSite(
        f"This survey has no Count at blocks.*.mlp.act; it has {', '.join(list(survey)[:8]) or 'no sites'}. "
        'Survey it: act.survey(model, {"blocks.*.mlp.act": [Count()]}, data).'
    )


def _counted(activations: Activations, exclude: Sequence[str]) -> Count:
    keep = some_kept(activations, exclude)
    examples, start = examples_of(activations), 0
    counts = Count()
    for batch in activations.batches():
        here = slice(start, start + len(batch))
        chosen = keep[here]
        rows = Rows({"example": examples[here][chosen]})
        counts.update(Activations(batch[chosen.nonzero()[0]], activations.axes, site=activations.site, index=rows))
        start += len(batch)
    if counts.nan or counts.infinite:
        refuse_strange(activations, "They would count as firing.")
    return counts


class _Table:
    """The layers of one stack beside one another."""

    def __init__(self, stack: str, counts: Mapping[str, Count], confidence: float, resamples: int, seed: int) -> None:
        self.stack, self.counts, self.confidence, self.sites = stack, counts, confidence, list(counts)
        self.percent = np.array([c.percent for c in counts.values()])
        widths = {c.width for c in counts.values()}
        if len(widths) > 1:
            raise AxisError(f"The layers have {sorted(widths)} neurons; one table needs one width. Pass the layers of one width at a time.")
        per_sequence = np.stack([c.per_sequence for c in counts.values()])  # layer, sequence, (nonzero, rows)
        below = per_sequence[..., 1] * next(iter(widths))
        low, high, chosen = bootstrap_interval(per_sequence[..., 0].T, below.T, confidence=confidence, resamples=resamples, seed=seed)
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        ends = np.quantile(chosen.mean(1), tails) if len(chosen) else np.full(2, np.nan)
        self.low, self.high, self.mean_interval = 100 * low, 100 * high, (100 * float(ends[0]), 100 * float(ends[1]))

    @property
    def mean(self) -> float:
        """The model's value: every layer counts the same."""
        return float(self.percent.mean())

    def parts(self) -> dict[str, Result]:
        counts = list(self.counts.values())
        layers = np.array([layer_number(s, i) for i, s in enumerate(self.sites)])
        fires = np.stack([c.fires for c in counts])
        rows = np.array([c.rows for c in counts])
        labels = {"layer": self.sites}
        band = {"nonzero": np.stack([self.low, self.high])}
        return {
            "nonzero": Series(layers, {"nonzero": self.percent}, "layer", band, title="Nonzero neurons per layer", unit="percent"),
            "layers": self._ranking(counts),
            "rates": rates_of(self.counts),
            "firing rate": Grid(fires / rows[:, None], ("layer", "d_mlp"), labels, title="Rows in which each neuron fires", unit="share"),
            "fires": Grid(fires, ("layer", "d_mlp"), labels, title="Rows in which each neuron fires", unit="rows"),
            "nonzeros per row": Grid(
                np.stack([c.histogram for c in counts]), ("layer", "count"), labels, title="Rows with so many nonzero neurons", unit="rows"
            ),
        }

    def _ranking(self, counts: Sequence[Count]) -> Ranking:
        order = np.argsort(self.percent, kind="stable")
        columns = {
            "low": self.low,
            "high": self.high,
            "rows": np.array([c.rows for c in counts]),
            "sequences": np.array([len(c.per_sequence) for c in counts]),
            "dead": np.array([c.dead for c in counts]),
            "always on": np.array([c.always_on for c in counts]),
            "neurons": np.array([c.width for c in counts]),
        }
        names = tuple(self.sites[i] for i in order)
        return Ranking(
            names, self.percent[order], {k: v[order] for k, v in columns.items()}, title="Layers, the laziest first", unit="percent"
        )

    def words(self) -> list[str]:
        first = next(iter(self.counts.values()))
        lazy, busy = int(self.percent.argmin()), int(self.percent.argmax())
        low, high = self.mean_interval
        interval = (
            f" ({100 * self.confidence:g} % interval {low:.2f} to {high:.2f})" if np.isfinite(low) else " (one sequence: no interval)"
        )
        neurons = first.width * len(self.counts)
        dead, always = (sum(getattr(c, name) for c in self.counts.values()) for name in ("dead", "always_on"))
        where = f"{self.stack}: " if self.stack else ""
        scope = f"averaged over {len(self.counts)} layers" if len(self.counts) > 1 else "in one layer"
        return [
            f"{where}a row uses {self.mean:.2f} % of the {first.width:,} neurons of a layer, {scope}{interval}.",
            f"{where}the laziest layer is {self.sites[lazy]} with {self.percent[lazy]:.2f} %, the busiest {self.sites[busy]} with {self.percent[busy]:.2f} %.",
            f"{where}{dead:,} of {neurons:,} neurons never fired in {first.rows:,} rows, {always:,} fired in every row.",
        ]


def _rows(sites: Mapping[str, Activations], example: int, exclude: Sequence[str]) -> Overlay:
    """Nonzero neurons of each row of one example, NaN where the row is left out."""
    chosen = {site: activations.example(example) for site, activations in sites.items()}
    first = next(iter(chosen.values()))
    keep = kept(first, exclude)
    counts = np.stack([(a.tensor != 0).sum(1).cpu().numpy() for a in chosen.values()]).astype(np.float64)
    tokens = tuple(str(t) for t in column(first, "text", "row"))
    return Overlay(
        np.where(keep, counts, np.nan), tuple(sites), tokens, title=f"Nonzero neurons at each row of example {example}", unit="neurons"
    )


def _notes(sites: Mapping[str, Activations], table: _Table, exclude: Sequence[str]) -> dict[str, object]:
    first = next(iter(sites.values()))
    return _figures(table) | {"excluded": left_out(first, exclude), "dtype": str(first.dtype).removeprefix("torch.")}


def _figures(table: _Table) -> dict[str, object]:
    state = next(iter(table.counts.values()))
    return {
        "percent": table.mean,
        "low": table.mean_interval[0],
        "high": table.mean_interval[1],
        "site": ".".join(table.sites[0].split(".")[-2:]),
        "rows": state.rows,
        "sequences": len(state.per_sequence),
    }


def _warnings(counts: Mapping[str, Count]) -> list[str]:
    """What makes a percentage of nonzeros mean something else than sparsity; said in the report and as a warning."""
    said = []
    smooth = [s for s, c in counts.items() if (c.negative and not s.endswith("mlp.post")) or c.percent >= ALWAYS]
    mixed = [s for s, c in counts.items() if c.negative and s.endswith("mlp.post") and s not in smooth]
    if smooth:
        said.append(
            f"{smooth[0]}{f' and {len(smooth) - 1} more' if len(smooth) > 1 else ''}: values below zero or hardly any zero. This is a smooth "
            "activation (GELU, SiLU); its zeros are rounding artefacts, not sparsity. Use a measure for the sparsity of smooth activations "
            "(energy shares, thresholds matched by loss) instead."
        )
    if mixed:
        said.append(
            f"{mixed[0]}: values below zero at mlp.post, which a gated MLP and a smooth activation both make. Record mlp.act to tell them apart; "
            "for a smooth one use a measure for the sparsity of smooth activations."
        )
    for line in said:
        warnings.warn(line, UserWarning, stacklevel=4)
    return said
