"""Where a semi-nonnegative factorisation begins: coefficients from k-means, from chance, or from singular vectors."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from activarium.dictionaries.semi_nmf import Pieces
from activarium.errors import InputError

Start = Literal["kmeans", "random", "svd"]
STARTS: tuple[Start, ...] = ("kmeans", "random", "svd")
LEAST = 1e-6  # a coefficient of exactly zero would stay zero for ever
OTHERS = 0.02  # coefficient of every other cluster, beside 1 of a row's own: with less, rows hardly ever leave their cluster
SAMPLE = 20  # rows for each feature that k-means is run on, and 2000 at least


def start(pieces: Pieces, features: int, kind: Start, seed: int) -> Tensor:
    """Coefficients `row feature` to begin with, at least 1e-6 of the usual size; exactly zero only in rows that are all zero.

    `kmeans`: 15 Lloyd iterations of scikit-learn's KMeans on 20 rows for each feature (2000 at least), then every row belongs to its nearest centre (1),
    and a little to all others (0.02).
    `random`: uniform from 0 to 1. `svd`: the positive part of the rows along each singular vector, with the sign that has more of it.
    """
    made = {"kmeans": _nearest, "random": _drawn, "svd": _along}[kind](pieces, features, seed)
    made = made.clamp_min(LEAST)
    made[pieces.empty] = 0  # nothing is their best answer, and what they would otherwise end in is only nearly nothing
    return made


def check_start(kind: str, features: int, width: int) -> None:
    """Refuse a start that does not exist or has too few vectors."""
    if kind not in STARTS:
        raise InputError(f"No start called {kind!r}. Known: {', '.join(STARTS)}.")
    if kind == "svd" and features > width:
        raise InputError(
            f"init='svd' has one start per singular vector, {width} of them; asked for {features} features. Use init='kmeans'."
        )


def _drawn(pieces: Pieces, features: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(pieces.count, features, generator=generator, dtype=pieces.dtype)


def _nearest(pieces: Pieces, features: int, seed: int) -> Tensor:
    centres = _centres(pieces, features, seed)
    made = torch.full((pieces.count, features), OTHERS, dtype=pieces.dtype)
    for place, rows in pieces:
        # ‖a − c‖² without ‖a‖², which is the same for all centres.
        distance = centres.square().sum(1) - 2 * rows @ centres.T
        made[place] = made[place].scatter(1, distance.argmin(1, keepdim=True), 1.0)
    return made


def _centres(pieces: Pieces, features: int, seed: int) -> Tensor:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    filled = np.flatnonzero(~pieces.empty.numpy())
    if len(filled) < features:
        raise InputError(
            f"k-means wants a row for each of {features} features; {len(filled):,} rows are not all zero. Take fewer features, or init='random'."
        )
    chosen = np.sort(np.random.default_rng(seed).choice(filled, min(max(2000, SAMPLE * features), len(filled)), replace=False))
    rows = torch.cat([rows[chosen[(chosen >= p.start) & (chosen < p.stop)] - p.start] for p, rows in pieces])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than features: the report says what comes of it
        settings: dict[str, Any] = {"n_init": 1, "max_iter": 15, "random_state": seed}
        found = KMeans(features, **settings).fit(rows.numpy())
    return torch.as_tensor(np.asarray(found.cluster_centers_)).to(pieces.dtype)


def _along(pieces: Pieces, features: int, seed: int) -> Tensor:
    gram = torch.zeros(pieces.width, pieces.width, dtype=torch.float64)
    for _, rows in pieces:
        gram += (rows.T @ rows).double()
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :features].to(pieces.dtype)
    made = torch.cat([rows @ vectors for _, rows in pieces])
    more = made.clamp_min(0).square().sum(0) >= (-made).clamp_min(0).square().sum(0)
    made = torch.where(more, made, -made).clamp_min(0)
    return made / made.norm(dim=0).clamp_min(torch.finfo(made.dtype).tiny) * pieces.count**0.5
