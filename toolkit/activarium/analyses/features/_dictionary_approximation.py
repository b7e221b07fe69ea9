"""Dictionary approximation: what of an answer passes when a dictionary's reconstruction stands for what is at a node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from activarium.analyses.features.node_rows import Bench, Place, codes_of, nodes_of, sites_of
from activarium.dictionaries import SupervisedDictionary
from activarium.dictionaries.attributes import Attributes, plain
from activarium.errors import InputError
from activarium.maths import bootstrap_interval
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.results import Ranking

DEFINITIONS = {
    "sufficiency": "|LD(x̂) − LD(mean)| / |LD(clean) − LD(mean)|, LD the mean metric over pairs",
    "signed": "(LD(x̂) − LD(mean)) / (LD(clean) − LD(mean))",
    "necessity": "(LD(clean) − LD(x − x̂ + mean)) / (LD(clean) − LD(mean))",
    "scrambled": "sufficiency with x̂ of another pair, drawn once",
    "mean": "the mean row at the node over the clean inputs of these pairs",
    "interval": "percentile bootstrap over pairs of the ratio of means, the mean row held fixed",
}


def dictionary_approximation(
    model: Runner,
    pairs: Pairs,
    dictionaries: Mapping[str, Any],
    place: Place = "END",
    *,
    attributes: Attributes | None = None,
    batch: int = 64,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Ranking:
    """How much of the answer passes a node when a dictionary's reconstruction stands there?

    The clean inputs are run with the node's row x replaced: by the reconstruction x̂ (is it sufficient?), by what it leaves, x − x̂ + mean
    (is it necessary?), and by the mean row, which is 0 on the scale where x itself is 1. Several dictionaries under one name are
    spliced at once, which is how a whole cross-section of a circuit is asked for. Give a random dictionary of the same design too
    (`act.dictionaries.controls.random(sae)`): a few of many directions carry something of any row.

    Args:
        model: The model; left as it was.
        pairs: Their clean inputs are run and their metric measured; the corrupted inputs are not used.
        dictionaries: Name → a dictionary, or a list of dictionaries of different sites; each reads and stands at its `origin.site`.
        place: Which row of each example the node is: a name in `pairs.places`, a position, or one position for each pair.
        attributes: Attribute → a value for each pair. With them supervised dictionaries take the values that are known, as in the paper;
            else they read them off the row like any other dictionary.
        batch: Pairs in one forward.
        confidence: Share of resampled pairs inside the intervals.
        resamples: How many times the pairs are drawn again.
        seed: Draws the pairs, and whose reconstruction a pair is given in `scrambled`.
        progress: Show a bar.

    Returns:
        Dictionaries ranked by `sufficiency`, a share of the clean metric above the mean-ablated one, with the columns `low`, `high`, `signed`
        (below 0 where the reconstruction points the other way; the absolute value of the definition hides that), `necessity` with its
        interval (1: without x̂ it is as if the mean stood there), `scrambled` (x̂ of another pair: what of the score is no matter of this
        pair), and `explained` (share of the rows' variance, at all nodes). Above 1 is possible. `diagnostics` has the metric itself.

    Raises:
        InputError: A dictionary does not fit the model, attributes are missing, or the metric is the same with the mean in the node's place.
        OtherModel: A dictionary was trained on other weights.
        UnknownName: The pairs have no such place.

    Source:
        Makelov, Lange & Nanda 2024, Towards Principled Evaluations of Sparse Autoencoders, arXiv:2405.08366, section 4.1.

    Differs:
        Intervals, the sign, the scrambled control and the share of variance are ours.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat", "Tom saw a dog"], ["Tom saw the cat", "Anna saw a dog"], answers=["Anna", "Tom"], foils=["Tom", "Anna"])
        >>> same = act.dictionaries.controls.identity(32, act.dictionaries.Origin(site="blocks.1.resid_post"))
        >>> act.analyses.dictionary_approximation(model, pairs, {"the rows themselves": same}, -1).values.tolist()
        [1.0]
    """
    nodes, bench = nodes_of(model, dictionaries), Bench.of(model, pairs, place, batch)
    known = None if attributes is None else plain(attributes, len(pairs))
    _check_known(nodes, known)
    sites = sites_of(nodes)
    clean = bench.read(sites)
    means = {site: rows.mean(0) for site, rows in clean.items()}
    other = _others(len(pairs), seed)
    draw = {"confidence": confidence, "resamples": resamples, "seed": seed}
    found: dict[str, dict[str, float]] = {}
    told: dict[str, Any] = {}
    with progress_bar(progress, "splicing", 4 * len(nodes), "runs") as advance:
        untouched = bench.answers({})[0]
        for one in nodes:
            made = {site: d.decode(codes_of(d, clean[site], known)).detach().float() for site, d in one.parts.items()}
            put = {
                "mean": {site: means[site].expand_as(rows) for site, rows in made.items()},
                "spliced": made,
                "without": {site: clean[site] - rows + means[site] for site, rows in made.items()},
                "scrambled": {site: rows[other] for site, rows in made.items()},
            }
            metric = {"clean": untouched}
            for name, values in put.items():
                metric[name] = bench.answers(values)[0]
                advance(1)
            _check_scale(one.name, metric, pairs)
            found[one.name] = _scores(metric, draw) | {"explained": _explained(clean, made)}
            told[one.name] = {name: float(values.mean()) for name, values in metric.items()}
    order = sorted(found, key=lambda name: -found[name]["sufficiency"])
    columns = {c: np.array([found[n][c] for n in order]) for c in next(iter(found.values())) if c != "sufficiency"}
    notes = {
        "definitions": DEFINITIONS,
        "metric": pairs.metric.name,
        "mean metric": told,
        "nodes": {one.name: list(one.parts) for one in nodes},
        "supervised codes": "read off the rows" if known is None else "known values",
        "pairs": len(pairs),
        **draw,
    }
    values = np.array([found[n]["sufficiency"] for n in order])
    return Ranking(
        tuple(order), values, columns, title="Reconstructions in the place of a node", unit="share of the answer", diagnostics=notes
    )


def _check_known(nodes: list[Any], known: Mapping[str, Any] | None) -> None:
    for one in nodes:
        for part in one.parts.values():
            missing = [a for a in part.table if a not in known] if known is not None and isinstance(part, SupervisedDictionary) else []
            if missing:
                raise InputError(
                    f"{one.name!r} needs attribute {missing[0]!r}; given are {', '.join(known or ())}. Give a value for each pair."
                )


def _others(count: int, seed: int) -> torch.Tensor:
    """For each pair another one: a random cycle."""
    order = np.random.default_rng(seed).permutation(count)
    made = np.empty(count, int)
    made[order] = np.roll(order, 1)
    return torch.as_tensor(made)


def _check_scale(name: str, metric: Mapping[str, np.ndarray], pairs: Pairs) -> None:
    whole, none = float(metric["clean"].mean()), float(metric["mean"].mean())
    if abs(whole - none) < 1e-6 * max(abs(whole), abs(none), 1.0):
        raise InputError(
            f"With the mean row in the place of {name!r}, {pairs.metric.name} stays {none:.6g}: nothing of the answer passes there, so there is "
            "nothing to give shares of. Choose another place or site."
        )


def _scores(metric: Mapping[str, np.ndarray], draw: Mapping[str, Any]) -> dict[str, float]:
    scale = metric["clean"] - metric["mean"]
    above = np.stack([metric["spliced"] - metric["mean"], metric["clean"] - metric["without"], metric["scrambled"] - metric["mean"]], 1)
    signed, necessity, scrambled = above.sum(0) / scale.sum()
    low, high, drawn = bootstrap_interval(above, np.repeat(scale[:, None], 3, 1), **draw)
    tail = (1 - draw["confidence"]) / 2
    ends = np.nanquantile(np.abs(drawn[:, 0]), [tail, 1 - tail]) if len(drawn) else (np.nan, np.nan)
    return {
        "sufficiency": abs(float(signed)),
        "low": float(ends[0]),
        "high": float(ends[1]),
        "signed": float(signed),
        "necessity": float(necessity),
        "necessity low": float(low[1]),
        "necessity high": float(high[1]),
        "scrambled": abs(float(scrambled)),
    }


def _explained(clean: Mapping[str, torch.Tensor], made: Mapping[str, torch.Tensor]) -> float:
    left = sum(float((clean[s].double() - rows.double()).square().sum()) for s, rows in made.items())
    whole = sum(float((clean[s].double() - clean[s].double().mean(0)).square().sum()) for s in made)
    return 1 - left / whole if whole else float("nan")
