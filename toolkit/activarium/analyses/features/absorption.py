"""Absorption of one property: its probe, the features that stand for it, and the rows in which another feature does their work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from activarium.analyses.features.feature_edits import added_by
from activarium.analyses.features.probes import Probe, difference_of_means, f1_score
from activarium.dictionaries import FeatureDictionary

RISE = 0.03  # of F1, from which one more feature counts as split off
MOST = 10  # split features at most
SILENT = 1e-8
FULL_COSINE, FULL_SHARE = 0.025, 0.4
PART_COSINE, ABSORBERS = 0.1, 3


@dataclass(frozen=True, eq=False)
class Absorbed:
    """What was found for one property, by held-out rows.

    Attributes:
        said: Boolean per row: does the probe that has not seen its word say yes?
        rows: Rows with the property that the probe gets right, ascending.
        full: Boolean for each of them: is it absorbed whole?
        fraction: How much of it is absorbed, 0 to 1.
        feature: The feature that contributes most, of those that are not split.
        share: Its share of the row's length along the probe.
        cosine: Its cosine with the probe.
        split: Split features of each fold.
        split_f1: Mean F1 of a probe on them, on the rows that chose them.
    """

    said: np.ndarray
    rows: np.ndarray
    full: np.ndarray
    fraction: np.ndarray
    feature: np.ndarray
    share: np.ndarray
    cosine: np.ndarray
    split: tuple[tuple[int, ...], ...]
    split_f1: float


def probed(x: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows held-out probes call positive, and the unit direction of each fold's probe, `fold d_in`."""
    said, directions = np.zeros(len(x), bool), []
    for f in range(int(fold.max()) + 1):
        held = fold == f
        # The rows as they are: standardising would turn the direction towards channels that hardly vary.
        probe = Probe(x[~held], positive[~held], balanced=True, standardised=False)
        said[held] = probe(x[held])
        directions.append(probe.weights / max(float(np.linalg.norm(probe.weights)), 1e-300))
    return said, np.stack(directions)


def split_features(codes: np.ndarray, positive: np.ndarray) -> tuple[tuple[int, ...], float]:
    """Features in order of mean code with the property less mean code without, taken while each raises a probe's F1 by 0.03, and that F1."""
    differences = difference_of_means(codes, positive)
    order = [int(i) for i in np.argsort(-differences, kind="stable")[:MOST] if differences[i] > 0]
    taken: tuple[int, ...] = ()
    best = 0.0
    for feature in order:
        more = (*taken, feature)
        reached = f1_score(Probe(codes[:, more], positive, balanced=True)(codes[:, more]), positive)
        if taken and reached - best < RISE:
            break
        taken, best = more, reached
    return taken, best


def absorbed(dictionary: FeatureDictionary, x: np.ndarray, codes: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> Absorbed:
    """Full and partial absorption in the held-out rows with the property that the probe gets right."""
    said, directions = probed(x, positive, fold)
    rows = np.flatnonzero(said & positive)
    used = np.flatnonzero((codes[rows] != 0).any(0))
    writes = added_by(dictionary, torch.as_tensor(used)).double().numpy() if len(used) else np.zeros((0, x.shape[1]))
    made = np.zeros((len(rows), 5))
    splits, scores = [], []
    for f, direction in enumerate(directions):
        split, score = split_features(codes[fold != f], positive[fold != f])
        splits.append(split)
        scores.append(score)
        along = writes @ direction
        cosines = along / np.maximum(np.linalg.norm(writes, axis=1), 1e-300)
        for place in np.flatnonzero(fold[rows] == f):
            row = rows[place]
            made[place] = _judged(codes[row], used, along, cosines, split, float(x[row] @ direction))
    full, fraction, feature, share, cosine = made.T
    return Absorbed(said, rows, full.astype(bool), fraction, feature.astype(int), share, cosine, tuple(splits), float(np.mean(scores)))


def _judged(
    codes: np.ndarray, used: np.ndarray, along: np.ndarray, cosines: np.ndarray, split: tuple[int, ...], projection: float
) -> tuple[float, float, float, float, float]:
    """Full (0 or 1), fraction, the top contributor that is not split (-1: none), its share of the projection, its cosine."""
    contributions = codes[used] * along
    is_split = np.isin(used, split)
    rest = np.where(is_split, -np.inf, contributions)
    top = int(rest.argmax()) if (~is_split).any() else -1
    share = float(contributions[top] / projection) if top >= 0 and projection > 0 else 0.0
    silent = bool((np.abs(codes[list(split)]) < SILENT).all())
    full = full_absorption(silent, float(cosines[top]) if top >= 0 else 0.0, projection, share)
    able = np.flatnonzero(~is_split & (cosines >= PART_COSINE) & (contributions > 0))
    absorbers = able[np.argsort(-contributions[able], kind="stable")[:ABSORBERS]]
    fraction = absorbed_fraction(float(contributions[is_split].sum()), float(contributions[absorbers].sum()), projection)
    return float(full), fraction, float(used[top]) if top >= 0 else -1.0, share, float(cosines[top]) if top >= 0 else 0.0


def full_absorption(silent: bool, cosine: float, projection: float, share: float) -> bool:
    """All split features are silent, and one other feature that points along the probe makes 0.4 or more of a row that does too."""
    return silent and cosine >= FULL_COSINE and projection >= 0 and share >= FULL_SHARE


def absorbed_fraction(split: float, absorbers: float, projection: float) -> float:
    """Contribution of the absorbers to what they and the split features contribute together; 0 where split features do it all."""
    if projection <= 0 or split >= projection or absorbers / projection < FULL_SHARE:
        return 0.0
    if split <= 0:
        return 1.0
    most = min(absorbers, projection - split)
    return most / (most + split)


def folds_of(words: np.ndarray, positive: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """The part of each row: all rows of a word are in one, and each part has its share of the words with the property."""
    fold = np.zeros(len(words), int)
    with_it = np.unique(words[positive])
    for some in (with_it, np.setdiff1d(np.unique(words), with_it)):
        dealt = dict(zip(generator.permutation(some).tolist(), (np.arange(len(some)) % folds).tolist(), strict=True))
        here = np.isin(words, some)
        fold[here] = [dealt[w] for w in words[here].tolist()]
    return fold
