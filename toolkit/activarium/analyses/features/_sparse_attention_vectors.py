"""Sparse attention vectors: a few heads, found with a few examples, that tell classes apart by the vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.activations import Activations
from activarium.analyses.features.attention_rows import Vectors, head_sites, labels_of, read_vectors, which_rows
from activarium.analyses.features.attention_vectors import AttentionVectors, fitted, weight_hash_of
from activarium.analyses.features.attention_votes import KEPT, Split, accuracies, by_count, interval_of, nearest_mean, shuffled, split
from activarium.analyses.layer_sites import layer_number
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result, Series


def sparse_attention_vectors(
    recording: Recording | Activations,
    labels: Sequence[Any] | np.ndarray | None = None,
    *,
    heads: int | None = None,
    shots: int | None = 20,
    rows: str | None = None,
    shuffles: int = 20,
    confidence: float = 0.95,
    seed: int = 0,
) -> Report:
    """Which few attention heads tell classes apart, and how well do they vote?

    Every query head of every layer is a classifier: the class whose mean vector has the largest cosine with what the head read.
    Heads are ranked by how often they are right on the examples they were fitted on, each example left out of its own class's
    mean; the best vote, and are asked about the other examples. `fit_attention_vectors` beside this function gives the fitted
    classifier, for new inputs.

    Args:
        recording: Holds `blocks.*.attn.z` of examples of all classes (`blocks.*.resid_post` adds the full stream as a baseline).
            Text ends where the answer would begin: leave the answer out.
        labels: The class of each example, in the recording's order; None takes the row table's column `label`.
        heads: How many vote; None lets a tenth of all heads vote, from 1 to 20.
        shots: Examples of each class to fit on, drawn once; None takes half of the smallest class. All others are asked.
        rows: What a head is read at: `last` (last token of a text), `cls`, or `patches` (mean over them). None takes the last
            token, of an image its class token, or its patches where there is none.
        shuffles: How often labels are dealt out anew for the chance level.
        confidence: Of the intervals.
        seed: Draws the examples to fit on and the shuffled labels.

    Returns:
        A report. `accuracy`: share of right answers on the examples that nothing was fitted on, with Wilson intervals, of the kept
        heads, the best single head, all heads, the kept heads by the reference's score, the last layer's full stream (nearest
        class mean by cosine, where it was recorded), labels that were shuffled before the fit (mean and spread of the repetitions)
        and always saying the commonest class; with the paired distance from the kept heads. `heads`: score of each head,
        `layer head`, shares of the fitted examples, where those that do not vote are hatched; `optimistic`: the reference's score, in which an
        example counts in its own class mean, for information. `votes`: the heads that vote, with both scores and how often each
        is right on the asked examples. `counts`: right answers by the number of voting heads. `confusion`: class by answer.

    Raises:
        InputError: A class has too few examples, labels do not fit, the recording has several stacks, or there are no such rows.
        UnknownSite: The recording holds no `attn.z`.
        NotFinite: NaN or infinity in a head.

    Source:
        Mitra et al. 2024, Sparse Attention Vectors: Generative Multimodal Model Features Are Discriminative Vision-Language
        Classifiers, arXiv:2412.00142.

    Differs:
        Heads are scored with each example left out of its class mean, where the published code scores on the examples that made
        the mean (with one example per class every head is then perfect). Ties between heads go to the larger summed margin, then
        to layer and head; ties of the vote to the larger margin of those who voted so, then to the first head. A head's width is
        read, not taken for `d_model / heads`. Angles are taken in float64. Fewer than 20 heads vote in a small model.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> recording = model.run(["the cat", "the ball", "a cat", "a ball"] * 3, read="blocks.*.attn.z")
        >>> report = act.analyses.sparse_attention_vectors(recording, ["cat", "ball"] * 6, shots=3)
        >>> report["heads"].values.shape, report["accuracy"].names[0]
        ((2, 4), 'kept heads')
    """
    sites = head_sites(recording)
    first = next(iter(sites.values()))
    named, chosen = labels_of(first, labels), which_rows(first, rows)
    parted = split(named, shots, seed)
    fit, ask = (read_vectors(sites, chosen, part) for part in (parted.fit, parted.ask))
    model = fitted(fit, named[parted.fit], heads, chosen, weight_hash_of(recording))
    truth = named[parted.ask]
    answers = _answers(model, ask) | _stream(recording, list(sites), named, parted, chosen)
    chance: dict[str, tuple[float, float, float]] = {}
    if shuffles:
        drawn = shuffled(fit, named[parted.fit], ask, truth, len(model.heads), chosen, times=shuffles, seed=seed)
        chance["shuffled labels"] = interval_of(drawn, confidence)
    common = max(float((truth == name).mean()) for name in model.classes)
    chance["commonest class"] = (common, np.nan, np.nan)
    accuracy = accuracies(answers, truth, chance, confidence)
    counts, right = by_count(model, ask, truth)
    parts: dict[str, Result] = {
        "accuracy": accuracy,
        "heads": _grid(model, model.scores, "Right when left out of its class mean"),
        "votes": _votes(model, ask, truth),
        "counts": Series(counts, {KEPT: right}, "heads that vote", title="Right answers by the number of heads", unit="share"),
        "confusion": _confusion(model, answers[KEPT], truth),
        "optimistic": _grid(model, model.optimistic, "Right when the example is in its class mean (the reference's score)"),
    }
    notes = {
        "rows": chosen,
        "classes": list(model.classes),
        "fitted on": len(parted.fit),
        "asked": len(parted.ask),
        "heads that vote": len(model.heads),
        "heads in all": len(model.ranked),
        "seed": seed,
        "counts": "read off the asked examples: choose a number of heads on others",
    }
    return Report(parts, tuple(_words(model, accuracy)), title="Sparse attention vectors", diagnostics=notes)


def _answers(model: AttentionVectors, ask: Vectors) -> dict[str, np.ndarray]:
    """Answers of the kept heads, then of what they are held against."""
    places = {site: at for at, site in enumerate(model.means)}
    loose = sorted(model.ranked, key=lambda h: (-model.optimistic[h[0]][h[1]], places[h[0]], h[1]))[: len(model.heads)]
    return {
        KEPT: model.answers(ask),
        "best single head": model.answers(ask, model.ranked[:1]),
        "all heads": model.answers(ask, model.ranked),
        "kept by the reference's score": model.answers(ask, loose),
    }


def _stream(recording: Any, sites: Sequence[str], labels: np.ndarray, parted: Split, rows: str) -> dict[str, np.ndarray]:
    """The nearest class mean of the last layer's whole stream, where it was recorded."""
    last = f"{sites[-1].removesuffix('attn.z')}resid_post"
    if not isinstance(recording, Recording) or last not in recording:
        return {}
    fit, ask = (next(iter(read_vectors({last: recording[last]}, rows, part).values())) for part in (parted.fit, parted.ask))
    return {f"nearest mean of {last}": nearest_mean(fit, labels[parted.fit], ask)}


def _grid(model: AttentionVectors, scores: Mapping[str, np.ndarray], title: str) -> Grid:
    widest = max(len(s) for s in scores.values())
    values = np.full((len(scores), widest), np.nan)
    voting = np.zeros(values.shape, bool)
    for at, (site, found) in enumerate(scores.items()):
        values[at, : len(found)] = found
        voting[at, [h for name, h in model.heads if name == site]] = True
    masks = {"no_row": np.isnan(values), "does not vote": ~voting & ~np.isnan(values)}
    names = [site.removesuffix(".attn.z") for site in scores]
    return Grid(values, ("layer", "head"), {"layer": names}, masks, title=title, unit="share")


def _votes(model: AttentionVectors, ask: Vectors, truth: np.ndarray) -> Ranking:
    """The heads that vote, the best first."""
    columns = {
        "layer": np.array([layer_number(site, 0) for site, _ in model.heads]),
        "head": np.array([head for _, head in model.heads]),
        "right on asked examples": np.array([(model.answers(ask, [h]) == truth).mean() for h in model.heads]),
        "optimistic score": np.array([model.optimistic[site][head] for site, head in model.heads]),
    }
    names = tuple(f"{site} head {head}" for site, head in model.heads)
    return Ranking(names, np.array([model.scores[s][h] for s, h in model.heads]), columns, title="Heads that vote", unit="share")


def _confusion(model: AttentionVectors, found: np.ndarray, truth: np.ndarray) -> Grid:
    names = list(model.classes)
    table = np.zeros((len(names), len(names)), np.int64)
    np.add.at(table, ([names.index(t) for t in truth], [names.index(f) for f in found]), 1)
    return Grid(table, ("class", "answer"), {"class": names, "answer": names}, title="Class by answer", unit="examples")


def _words(model: AttentionVectors, accuracy: Ranking) -> list[str]:
    best = dict(zip(accuracy.names, accuracy.values, strict=True))
    low, high = accuracy.columns["low"][0], accuracy.columns["high"][0]
    said = [
        f"{len(model.heads)} of {len(model.ranked)} heads vote and are right on {best[KEPT]:.1%} of new examples ({low:.1%} to {high:.1%})."
    ]
    ends = zip(*(accuracy.columns[end] for end in ("low", "high")), strict=True)
    rest = [
        f"{name} {value:.1%}" + (f" ({a:.1%} to {b:.1%})" if name == "shuffled labels" else "")
        for (name, value), (a, b) in zip(best.items(), ends, strict=True)
        if name != KEPT
    ]
    return [*said, f"Beside it: {', '.join(rest)}."]
