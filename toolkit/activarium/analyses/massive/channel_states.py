"""What one pass keeps of the inputs of a linear layer: moments per channel in two halves, magnitudes, shapes of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, refuse_strange
from activarium.errors import InputError
from activarium.summaries import Gram, Magnitudes, Moments


@dataclass(frozen=True, eq=False)
class Channels:
    """One site over all rows.

    Attributes:
        halves: Moments per channel over examples of even and of odd number; empty where there are none.
        whole: Moments over all rows.
        magnitudes: Histogram of |x|.
        gram: XᵀX, or None where no weight asks for it.
        kurtosis: Per row: E x⁴ / (E x²)² over its channels, from 1 (all sizes alike) to their number (one alone).
        peak: Per row: largest |x| over the lower median of |x|.
    """

    halves: tuple[Moments, Moments]
    whole: Moments
    magnitudes: Magnitudes
    gram: Gram | None
    kurtosis: np.ndarray
    peak: np.ndarray

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self.whole.rows

    @property
    def salience(self) -> np.ndarray:
        """Mean |x| per channel."""
        return self.whole.mean_magnitude.numpy()

    @property
    def largest(self) -> Tensor:
        """Largest |x| per channel."""
        return torch.maximum(self.whole.state["largest"].abs(), self.whole.state["least"].abs())

    @property
    def rms_kurtosis(self) -> float:
        """E s⁴ / (E s²)² of the channels' root mean squares s: 1 (all alike) to the number of channels (one alone)."""
        square = self.whole.mean_square
        return float((square**2).mean() / square.mean() ** 2) if float(square.mean()) else float("nan")

    @property
    def flushed(self) -> tuple[float, float]:
        """Share of the numbers that INT8 with one step of max / 127 rounds to zero: least and most, the same where the histogram is exact."""
        return self.magnitudes.share_below(float(self.largest.max()) / 254)


def gather(activations: Activations, gram: bool) -> Channels:
    """Take in a site example by example, so that batches and shards change no bit.

    Raises:
        InputError: The site has no rows.
        NotFinite: NaN or infinite numbers.
    """
    refuse_strange(activations, "No channel's mean could be told.")
    halves, magnitudes, products = (Moments(), Moments()), Magnitudes(), Gram()
    kurtosis, peak = [], []
    for example, _, rows in by_example(activations):
        flat = rows.detach().flatten(1)
        one = Activations(flat, ("row", "feature"), site=activations.site)
        halves[example % 2].update(one)
        magnitudes.update(one)
        if gram:
            products.update(one)
        size = flat.double().abs().cpu()
        kurtosis.append(_kurtosis(size).numpy())
        peak.append((size.amax(1) / size.median(1).values).numpy())  # torch takes the lower middle value; over 0 it is infinite
    if not kurtosis:
        raise InputError(f"{activations.site or 'This site'} has no rows. Capture at least one example.")
    whole = Moments().merge(halves[0]).merge(halves[1])
    shapes = np.concatenate(kurtosis), np.concatenate(peak)
    return Channels(halves, whole, magnitudes, products if gram else None, *shapes)


def _kurtosis(size: Tensor) -> Tensor:
    """Of each row; NaN for a row of zeros. Divided by its largest first, for fourth powers of large numbers."""
    scaled = size / size.amax(1, keepdim=True)
    return (scaled**4).mean(1) / (scaled**2).mean(1) ** 2
