"""The rows that dictionaries are measured on, and the two ends of every scale: their mean in place of each, and they themselves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features.spread import Spread
from activarium.errors import InputError

NO_CODES = ("codes per row", "codes low", "codes high", "codes p5", "codes p50", "codes p95")


class BareRows:
    """Sums over rows of what should be written.

    Attributes:
        spread: Their mean and variance.
    """

    def __init__(self, width: int, groups: int) -> None:
        self.spread = Spread(width, groups)
        self._units, self._inverse, self._some = torch.zeros(width, dtype=torch.float64), 0.0, 0

    def add(self, y: Tensor, owner: np.ndarray) -> None:
        """More rows, and the group of each."""
        self.spread.add(y, torch.as_tensor(owner))
        wide = y.double().cpu()
        length = wide.norm(dim=1)
        wide, length = wide[length > 0], length[length > 0]
        self._units += (wide / length[:, None]).sum(0)
        self._inverse += float((1 / length).sum())
        self._some += len(length)

    def check(self, site: str) -> None:
        """Refuse rows that are all the same.

        Raises:
            InputError: There is no variance, of which a share could be explained.
        """
        if not self.spread.about_mean().sum() > 0:
            raise InputError(
                f"All {int(self.spread.rows.sum()):,} rows of {site} are the same, so there is no variance to explain. Record other inputs, or another site."
            )

    def mean_figures(self) -> dict[str, float]:
        """The figures of a dictionary that writes the mean, whatever it reads."""
        mean = self.spread.mean
        length, some = float(mean.norm()), max(self._some, 1)
        known = {"FVU": 1.0, "FVU low": 1.0, "FVU high": 1.0, "explained variance": 0.0, "FVU by number": 1.0, "constant error": 0.0}
        if length:
            known |= {"cosine": float(self._units @ mean) / length / some, "norm ratio": length * self._inverse / some, "bias": 1.0}
        return known | dict.fromkeys(NO_CODES, 0.0)

    def own_figures(self) -> dict[str, float]:
        """The figures of a dictionary that gives every row back."""
        nothing = dict.fromkeys(("FVU", "FVU low", "FVU high", "FVU by number"), 0.0)
        return nothing | {"explained variance": 1.0, "cosine": 1.0, "norm ratio": 1.0, "bias": 1.0}
