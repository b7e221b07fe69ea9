"""Unit directions on a plane, so that near ones lie near one another."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def feature_map(directions: Tensor, seed: int) -> np.ndarray:
    """Coordinates of unit rows on a plane, `(row, 2)`: t-SNE where there are enough of them, their principal plane for a few."""
    rows = directions.double().numpy()
    if len(rows) < 8:
        return _principal(rows)
    from sklearn.manifold import TSNE

    # On the unit sphere the squared distance is twice the cosine distance, so one stands for the other.
    begun = _principal(rows)
    scale = begun[:, 0].std() or 1.0
    nearby = min(30.0, (len(rows) - 1) / 3)
    start: Any = (1e-4 * begun / scale).astype(np.float32)
    return TSNE(2, perplexity=nearby, init=start, random_state=seed, n_jobs=1).fit_transform(rows.astype(np.float32))


def _principal(rows: np.ndarray) -> np.ndarray:
    """The two widest components, each with its largest entry positive, so that the picture does not flip from run to run."""
    if not len(rows):
        return np.zeros((0, 2))
    left, size, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    points = np.zeros((len(rows), 2))
    count = min(2, len(size))
    points[:, :count] = left[:, :count] * size[:count]
    signs = np.sign(points[np.abs(points).argmax(0), np.arange(2)])
    return points * np.where(signs == 0, 1, signs)
