"""Outlier channels: the few inputs of each linear layer that make a model hard to quantise, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from activarium.activations import Activations
from activarium.analyses.massive import quantiser
from activarium.analyses.massive.channel_states import Channels, gather
from activarium.analyses.massive.linear_inputs import STREAM, ending_of, foldable, linear_inputs, weight_at
from activarium.analyses.massive.rules import COLUMN_LAYERS, COLUMN_ROWS, column_shares
from activarium.analyses.massive.weighed import KEPT, Weighed, jaccard, top, weigh
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result, Series

LISTED = 200


def outlier_channels(
    recording: Recording | Activations,
    model: Runner | None = None,
    *,
    share: float = 0.01,
    bits: int = 4,
    group: int = 128,
    strength: float = 0.5,
    draws: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Which input channels of linear layers are so large that they decide quantisation?

    Everything about activations is gathered in one pass, example by example; with `model` the weights are quantised by simulation
    (groups of input channels, one zero point each), and the error of each layer's output follows exactly from XᵀX.

    Args:
        recording: A recording with any of `blocks.*.attn.in`, `attn.z`, `mlp.in`, `mlp.post`, or one such site or stack. All rows count.
        model: The model it was made with, for everything that needs weights.
        share: Share of the channels called salient, rounded up.
        bits: Of one quantised weight.
        group: Consecutive input channels that are quantised together, for one output.
        strength: SmoothQuant's exponent: 0 leaves all difficulty to the activations, 1 to the weights.
        draws: Random sets of channels that are averaged.
        seed: Draws them.
        progress: Show a bar over the sites.

    Returns:
        A report with `sites` (ranking by largest over median channel; kurtosis per row and of the channels' RMS, from 1 to the number of
        channels; largest over median of a row; percent that INT8 rounds to zero; Jaccard overlap of the salient channels of
        two halves of the examples), `channels` (ranking of salient channels by mean |x|), `int8 features` (dimensions that
        are outliers by LLM.int8's rule, at `attn.in` and `mlp.in`), one grid `salience …` per kind of site (mean |x|), and with
        `model`: `errors` (relative output error with 1 % of the channels kept, chosen by activation, weight, at random),
        `scale search` (the same error over AWQ's exponents) and further columns in `sites` (overlap with the largest weights,
        SmoothQuant before and after).

    Raises:
        UnknownSite: No input of a linear layer was recorded.
        AxisError: A site has no single axis of channels.
        InputError: `share`, `bits`, `group`, `strength` or `draws` make no sense, or the weights have another width.
        NotFinite: NaN or infinite numbers.
        CapacityError: XᵀX of a site would take more than 2 GiB.

    Source:
        Lin et al. 2023, AWQ, arXiv:2306.00978 (mean |x|, scale search); Xiao et al. 2022, SmoothQuant, arXiv:2211.10438; Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339 (|x| >= 6 in 25 % of layers and 6 % of positions).

    Differs:
        AWQ inspects the output of a whole module, this the output of the linear layers that read the site. Kurtosis is the raw
        moment ratio, neither centred nor less 3. Where several query heads share a value head no scale of `attn.z` can
        be folded away, so there is no search.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> x = torch.ones(8, 100)
        >>> x[:, 42] = 50
        >>> outlier_channels(Activations(x, "row d_model", site="blocks.0.mlp.in"))["channels"].names
        ('blocks.0.mlp.in · channel 42',)
    """
    _check(share, bits, group, strength, draws)
    inputs = linear_inputs(recording)
    found: dict[str, Channels] = {}
    weighed: dict[str, Weighed] = {}
    with progress_bar(progress, "measuring", len(inputs), "sites") as advance:
        for site, activations in inputs.items():
            weight = None if model is None else weight_at(model, site)
            found[site] = gather(activations, weight is not None)
            if weight is not None:
                random = np.random.default_rng(seed)
                weighed[site] = weigh(site, found[site], weight, share, bits, group, strength, draws, random)
            # XᵀX is by far the largest thing kept, and has been used.
            found[site] = replace(found[site], gram=None)
            advance(1)
    parts: dict[str, Result] = {
        "sites": _sites(found, weighed, share),
        "channels": _channels(found, weighed, share),
        "int8 features": _int8(inputs),
        **_salience(found),
    }
    if weighed and model is not None:
        parts |= {"errors": _errors(weighed, bits), "scale search": _search({s: w for s, w in weighed.items() if foldable(model, s)})}
    notes: dict[str, Any] = {"share": share, "bits": bits, "group": group, "strength": strength, "rows": next(iter(found.values())).rows}
    notes["no scale can be folded"] = [s for s in weighed if model is not None and not foldable(model, s)]
    return Report(parts, tuple(_words(parts, found, weighed)), title="Outlier channels", diagnostics=notes)


def _check(share: float, bits: int, group: int, strength: float, draws: int) -> None:
    if not 0 < share <= 1:
        raise InputError(f"share={share} of the channels cannot be kept; give a number above 0, up to 1 (AWQ keeps 0.01).")
    if not 1 <= bits <= 16 or group < 1 or draws < 1:
        raise InputError(f"bits={bits}, group={group}, draws={draws}: give 1 to 16 bits, groups of at least one channel, one draw or more.")
    if not 0 <= strength <= 1:
        raise InputError(f"strength={strength} is no exponent of SmoothQuant; give a number from 0 to 1 (the paper uses 0.5).")


def _sites(found: Mapping[str, Channels], weighed: Mapping[str, Weighed], share: float) -> Ranking:
    hard = np.array([quantiser.difficulty(c.largest) for c in found.values()])
    columns: dict[str, list[float]] = {
        "channels": [len(c.salience) for c in found.values()],
        "kurtosis of a row": [_mean(c.kurtosis) for c in found.values()],
        "kurtosis of channel RMS": [c.rms_kurtosis for c in found.values()],
        "largest over median of a row": [float(np.median(c.peak)) for c in found.values()],
        "INT8 zeros, percent, at least": [100 * c.flushed[0] for c in found.values()],
        "INT8 zeros, percent, at most": [100 * c.flushed[1] for c in found.values()],
        "overlap of halves": [_halves(c, share) for c in found.values()],
    }
    if weighed:
        names = ("overlap", "after", "weight_before", "weight_after")
        words = ("overlap with weights", "after SmoothQuant", "weights before", "weights after")
        columns |= {w: [getattr(weighed[s], n) if s in weighed else np.nan for s in found] for w, n in zip(words, names, strict=True)}
    order = np.argsort(-hard, kind="stable")
    chosen = {name: np.asarray(c)[order] for name, c in columns.items()}
    return Ranking(
        tuple(list(found)[i] for i in order), hard[order], chosen, title="Inputs of linear layers", unit="largest over median channel"
    )


def _mean(values: np.ndarray) -> float:
    finite = values[~np.isnan(values)]  # a row of zeros has no shape
    return float(finite.mean()) if len(finite) else float("nan")


def _halves(channels: Channels, share: float) -> float:
    first, second = channels.halves
    if not (first.rows and second.rows):
        return float("nan")
    return jaccard(top(first.mean_magnitude.numpy(), share), top(second.mean_magnitude.numpy(), share))


def _channels(found: Mapping[str, Channels], weighed: Mapping[str, Weighed], share: float) -> Ranking:
    """The salient channels of every site, as multiples of the site's median channel."""
    rows = [(site, int(c)) for site, channels in found.items() for c in top(channels.salience, share)]
    middle = {site: float(np.median(c.salience)) or np.nan for site, c in found.items()}
    times = np.array([found[s].salience[c] / middle[s] for s, c in rows])
    columns: dict[str, np.ndarray] = {
        "site": np.array([s for s, _ in rows], dtype=object),
        "channel": np.array([c for _, c in rows]),
        "mean |x|": np.array([found[s].salience[c] for s, c in rows]),
        "largest |x|": np.array([float(found[s].largest[c]) for s, c in rows]),
    }
    if weighed:
        columns["SmoothQuant factor"] = np.array([float(weighed[s].smooth[c]) if s in weighed else np.nan for s, c in rows])
    order = np.argsort(-np.nan_to_num(times), kind="stable")[:LISTED]
    names = tuple(f"{rows[i][0]} · channel {rows[i][1]}" for i in order)
    chosen = {name: c[order] for name, c in columns.items()}
    return Ranking(names, times[order], chosen, title="Salient channels by mean |x|", unit="times the median channel")


def _int8(inputs: Mapping[str, Activations]) -> Ranking:
    """Dimensions with |x| >= 6 in a quarter of the inputs and 6 % of the rows, stack by stack."""
    names, rows, layers = [], [], []
    for stack in dict.fromkeys(s.partition("blocks.")[0] for s in inputs):
        here = [a for s, a in inputs.items() if s.partition("blocks.")[0] == stack and ending_of(s) in STREAM]
        if not here:
            continue
        in_layers, in_rows = column_shares(here)
        for dim in np.flatnonzero((in_layers >= COLUMN_LAYERS) & (in_rows >= COLUMN_ROWS)):
            names.append(f"{stack}dim {dim}")
            rows.append(100 * in_rows[dim])
            layers.append(100 * in_layers[dim])
    order = np.argsort(-np.array(rows), kind="stable")
    columns = {"percent of layers": np.array(layers)[order]}
    title = "Outlier features by LLM.int8's rule"
    return Ranking(tuple(names[i] for i in order), np.array(rows)[order], columns, title=title, unit="percent of rows")


def _salience(found: Mapping[str, Channels]) -> dict[str, Result]:
    """One grid per kind of site: its layers have the same channels."""
    kinds: dict[str, dict[str, np.ndarray]] = {}
    for site, channels in found.items():
        stack, _, rest = site.partition("blocks.")
        kinds.setdefault(stack + (ending_of(site) if rest else site), {})[site] = channels.salience
    return {
        f"salience {kind}": Grid(
            np.stack(list(rows.values())),
            ("layer", "channel"),
            {"layer": list(rows)},
            title=f"Mean |x| of each channel at {kind}",
            unit="model units",
        )
        for kind, rows in kinds.items()
    }


def _errors(weighed: Mapping[str, Weighed], bits: int) -> Grid:
    labels = {"site": list(weighed), "kept": KEPT}
    title = f"Output error of {bits}-bit weights, with salient channels kept whole"
    return Grid(np.stack([w.errors for w in weighed.values()]), ("site", "kept"), labels, title=title, unit="share of output energy")


def _search(weighed: Mapping[str, Weighed]) -> Series:
    curves = {site: w.search for site, w in weighed.items()}
    return Series(
        np.array(quantiser.EXPONENTS),
        curves,
        "exponent r",
        title="Output error of Q(W s) / s, s = (mean |x|)^r",
        unit="share of output energy",
    )


def _words(parts: Mapping[str, Result], found: Mapping[str, Channels], weighed: Mapping[str, Weighed]) -> list[str]:
    sites, features = parts["sites"], parts["int8 features"]
    assert isinstance(sites, Ranking)
    assert isinstance(features, Ranking)
    said = [
        f"The widest spread of channels is at {sites.names[0]}: the largest reaches {sites.values[0]:.3g} times the median channel"
        + (f" ({sites.columns['after SmoothQuant'][0]:.3g} times after SmoothQuant)." if weighed else ".")
    ]
    looked = sum(ending_of(s) in STREAM for s in found)
    if looked:
        named = ", ".join(features.names[:8]) or "none"
        said.append(f"Outlier features by LLM.int8's rule (|x| >= 6 in 25 % of {looked} layer inputs and 6 % of the rows): {named}.")
    if weighed:
        errors = np.median(np.stack([w.errors for w in weighed.values()]), 0)
        said.append(
            "Median output error over the sites: " + ", ".join(f"{e:.3g} ({k})" for k, e in zip(KEPT, errors, strict=True)) + " kept whole."
        )
        said.append(
            f"Salient channels overlap with those of the largest weights by {np.mean([w.overlap for w in weighed.values()]):.0%} (Jaccard, mean)."
        )
    return said
