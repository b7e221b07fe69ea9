"""Novelty scores: whether codes tell examples of unknown kinds from known ones, beside the activations themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.analyses.features import novelty, separation
from activarium.analyses.features.example_codes import CODES, RANDOM, ROWS, ExampleCodes, example_codes
from activarium.errors import InputError
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Series

ANSWERS = "model's answers"
SPACES = (CODES, ROWS, RANDOM, ANSWERS)
SCORES = ("maximum probability", "energy", "Mahalanobis", "nearest neighbour", "profile rank correlation")
FEWEST = 3  # known examples of a class that can be split into seen and tested


def novelty_scores(
    dictionary: Any,
    recording: Recording,
    labels: Sequence[Any],
    outside: Sequence[bool],
    *,
    neighbours: int = 10,
    site: str | None = None,
    exclude: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """Do a dictionary's codes tell examples of unknown kinds from known ones?

    Known examples are split in halves, class by class: the first half is what the scores know, the second is tested against
    the outside examples. Every score is taken of an example's mean codes, of its mean activations, and of the mean codes of a
    dictionary with random directions, the same width and the same number of codes per row. Only a gain over both of the last
    two speaks for the features.

    Args:
        dictionary: A dictionary, a sae-lens SAE, or the folder of one.
        recording: Holds the site that it reads. If `logits` of an image classifier (`example class`) were read too, their
            largest probability and energy stand beside the rest.
        labels: Class of each example of the recording, in its order; those of outside examples are not looked at.
        outside: For each example, whether it is of an unknown kind.
        neighbours: The nearest-neighbour score is the distance to the known vector of this rank.
        site: Where the dictionary reads, if it does not say.
        exclude: Row kinds left out of the means; None leaves out what its training left out.
        confidence: Share of the resamples inside the intervals.
        resamples: How many times tested known and outside examples are drawn again, each group by itself.
        seed: Draws the halves, the random dictionary and the resamples.

    Returns:
        A report. `separation`: AUROC (outside examples should score higher; equal scores count half) of each score and space.
        `table`: the same with intervals, FPR95 (share of the outside examples that pass where the threshold lets at least 95 % of the
        tested known ones pass) with intervals, and the interval of AUROC when it is drawn by lot who is outside (around 0.5).
        `gain`: AUROC of codes minus that of activations and of random codes, with paired intervals. `rates`: share of outside
        examples found against known ones alarmed, for the mean codes. Scores: largest probability and energy of a logistic regression on
        the known classes, smallest Mahalanobis distance to a class mean, distance to the nearest known vectors of length 1,
        and rank correlation with the mean vector of the class that the regression predicts.

    Raises:
        InputError: Labels or flags that do not fit the examples, no example on one side, fewer than two known classes, or a
            known class of fewer than three examples; see also `act.dictionaries.rows_for`.

    Source:
        Use of such codes for outside images: arXiv:2508.11277, whose exact score is not established here. Class profiles and
        their rank correlation: OpenReview rxiWsoM6Cx. Hendrycks & Gimpel 2017, arXiv:1610.02136 (largest probability, AUROC);
        Liu et al. 2020, arXiv:2010.03759 (energy); Lee et al. 2018, arXiv:1807.03888 (Mahalanobis); Sun et al. 2022,
        arXiv:2204.06507 (neighbours).

    Differs:
        None of these is claimed to be the score of arXiv:2508.11277. The predicted class is that of one regression in every space,
        so that spaces are compared alike; the covariance is shrunk (Ledoit & Wolf 2004).

    Example:
        >>> import torch
        >>> unit, rows, sizes = planted_rows(60, width=8, atoms=8)
        >>> rec = recording_of({"blocks.0.resid_post": rows}, example=list(range(60)))
        >>> identity = act.dictionaries.controls.identity(8)
        >>> found = act.analyses.novelty_scores(identity, rec, [i % 2 for i in range(60)], [i > 39 for i in range(60)], site="blocks.0.resid_post")
        >>> found["separation"].values.shape
        (5, 4)
    """
    made = example_codes(dictionary, recording, site=site, exclude=exclude, seed=seed)
    out = made.column(outside, "outside").astype(bool)
    names, classes = _classes(made.column([str(v) for v in labels], "labels"), out)
    fit, test = _halves(classes, out, seed)
    if not 0 < neighbours <= fit.sum():
        raise InputError(f"neighbours={neighbours}, but {fit.sum()} known examples are seen. Give a rank from 1 to {fit.sum()}.")
    found = {
        space: _scores(novelty.Seen(values[fit], classes[fit]), values[test | out], neighbours, seed)
        for space, values in made.spaces.items()
    }
    answers = _answers(recording, made)
    if answers is not None:
        tested = answers[test | out]
        found[ANSWERS] = {SCORES[0]: novelty.maximum_probability(tested), SCORES[1]: novelty.energy(tested)}
    return _report(found, out[test | out], made, names, {"seen": int(fit.sum())}, confidence, resamples, seed)


def _classes(labels: np.ndarray, out: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of the known classes, and each example's class: −1 for those outside."""
    if out.all() or not out.any():
        raise InputError(f"{out.sum()} of {len(out)} examples are outside; known and outside examples are both needed. Mark some of each.")
    names, numbers = np.unique(labels[~out], return_inverse=True)
    counts = np.bincount(numbers)
    if len(names) < 2:
        raise InputError(
            f"The known examples are all of class {str(names[0])!r}; scores compare classes. Give labels of two classes or more."
        )
    if counts.min() < FEWEST:
        raise InputError(
            f"Class {str(names[counts.argmin()])!r} has {counts.min()} known examples; {FEWEST} are the least that can be halved. "
            "Record more, or leave the class out."
        )
    classes = np.full(len(labels), -1)
    classes[~out] = numbers
    return [str(n) for n in names], classes


def _halves(classes: np.ndarray, out: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every known class one half (the larger) is seen, the other tested; boolean over examples."""
    fit = np.zeros(len(out), bool)
    generator = np.random.default_rng(seed)
    for c in range(classes.max() + 1):
        own = generator.permutation(np.flatnonzero(classes == c))
        fit[own[: (len(own) + 1) // 2]] = True
    return fit, ~fit & ~out


def _scores(seen: novelty.Seen, values: np.ndarray, neighbours: int, seed: int) -> dict[str, np.ndarray]:
    logits = novelty.probe_logits(seen, values, seed)
    scores = (
        novelty.maximum_probability(logits),
        novelty.energy(logits),
        novelty.mahalanobis(seen, values),
        novelty.nearest(seen, values, neighbours),
        novelty.profile_spearman(seen, values, logits.argmax(1)),
    )
    return dict(zip(SCORES, scores, strict=True))


def _answers(recording: Recording, made: ExampleCodes) -> np.ndarray | None:
    """The classifier's logits of each example, where they were read."""
    if "logits" not in recording or recording["logits"].axes != ("example", "class"):
        return None
    return recording["logits"].need("example class").double().numpy()[made.kept]


def _report(
    found: Mapping[str, Mapping[str, np.ndarray]],
    out: np.ndarray,
    made: ExampleCodes,
    classes: list[str],
    notes: dict[str, Any],
    confidence: float,
    resamples: int,
    seed: int,
) -> Report:
    draws = separation.Draws.of(int((~out).sum()), int(out.sum()), resamples, seed)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    values = np.full((len(SCORES), len(SPACES)), np.nan)
    lines, drawn = [], {}
    for j, space in enumerate(SPACES):
        for name, score in found.get(space, {}).items():
            one, other = score[~out], score[out]
            values[SCORES.index(name), j] = separation.auroc(one, other)
            drawn[space, name] = separation.auroc_draws(one, other, draws)
            lot = np.quantile(separation.shuffled_auroc(one, other, resamples, seed), ends)
            rate = np.quantile(separation.false_positive_draws(one, other, draws), ends)
            area = np.quantile(drawn[space, name], ends)
            lines.append(
                (f"{name}, {space}", values[SCORES.index(name), j], *area, separation.false_positive_rate(one, other), *rate, *lot)
            )
    gain = _gain(values, drawn, ends)
    notes |= {
        "tested known": int((~out).sum()),
        "outside": int(out.sum()),
        "known classes": classes,
        "confidence": confidence,
        "seed": seed,
    }
    notes |= {**made.diagnostics, "FPR95": "threshold lets at least 95 % of the tested known examples pass"}
    grid = Grid(
        values,
        ("score", "space"),
        {"score": SCORES, "space": SPACES},
        {"no_row": np.isnan(values)},
        title="Known against outside",
        unit="AUROC",
    )
    parts = {"separation": grid, "table": _table(lines), "gain": gain, "rates": _rates(found[CODES], out)}
    return Report(parts, tuple(_words(values, gain)), title="Novelty scores", diagnostics=notes)


def _table(lines: list[tuple[Any, ...]]) -> Ranking:
    order = sorted(range(len(lines)), key=lambda i: (-lines[i][1], i))
    heads = ("low", "high", "FPR95", "FPR95 low", "FPR95 high", "by lot low", "by lot high")
    columns = {head: np.array([lines[i][n + 2] for i in order]) for n, head in enumerate(heads)}
    names = tuple(lines[i][0] for i in order)
    return Ranking(names, np.array([lines[i][1] for i in order]), columns, title="Every score with its intervals", unit="AUROC")


def _gain(values: np.ndarray, drawn: Mapping[tuple[str, str], np.ndarray], ends: list[float]) -> Ranking:
    names, gains, bands = [], [], []
    for other in (ROWS, RANDOM):
        for i, score in enumerate(SCORES):
            names.append(f"{score}: {CODES} − {other}")
            gains.append(values[i, SPACES.index(CODES)] - values[i, SPACES.index(other)])
            bands.append(np.quantile(drawn[CODES, score] - drawn[other, score], ends))
    low, high = np.array(bands).T
    return Ranking(tuple(names), np.array(gains), {"low": low, "high": high}, title="What the codes add", unit="difference of AUROC")


def _rates(scores: Mapping[str, np.ndarray], out: np.ndarray) -> Series:
    """Share of outside examples above each threshold, over the share of known ones above it."""
    x = np.linspace(0, 1, 101)
    curves = {}
    for name, score in scores.items():
        lines = np.quantile(score[~out], 1 - x, method="higher")
        curves[name] = (score[out][None] > lines[:, None]).mean(1)
    return Series(x, curves, "share of known examples alarmed", title="Outside examples found by mean codes", unit="share")


def _words(values: np.ndarray, gain: Ranking) -> list[str]:
    said = []
    for j, space in enumerate(SPACES):
        if np.isfinite(values[:, j]).any():
            best = int(np.nanargmax(values[:, j]))
            said.append(f"{space}: {SCORES[best]} separates best, AUROC {values[best, j]:.3f}.")
    low, high = np.asarray(gain.columns["low"]), np.asarray(gain.columns["high"])
    for k, other in enumerate((ROWS, RANDOM)):
        own = slice(k * len(SCORES), (k + 1) * len(SCORES))
        better, worse = int((low[own] > 0).sum()), int((high[own] < 0).sum())
        said.append(f"Of {len(SCORES)} scores, {better} are better and {worse} worse on {CODES} than on {other} (intervals without 0).")
    said.append("The best of several scores is chosen on the tested examples: its AUROC is a little too high.")
    return said
