"""What every dictionary answers, whatever its features are made of: codes, what codes write, directions, and where it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from activarium.dictionaries.codes import Codes
from activarium.dictionaries.design import Origin
from activarium.errors import InputError

AT_ONCE = 1 << 26  # pre-activations that exist at a time while sparse codes are made, 256 MB in float32


class FeatureDictionary(ABC):
    """Features of a site: sparse autoencoders, transcoders, factorisations, components, labels, controls; for text and images alike.

    A subclass says how rows become codes and what codes write; the rest follows from that.

    Attributes:
        origin: What it was made from: its site, the site it writes, the model, the row kinds that were left out.
    """

    origin: Origin

    @property
    @abstractmethod
    def d_in(self) -> int:
        """Width of the rows it reads."""

    @property
    @abstractmethod
    def directions(self) -> Tensor:
        """What each feature writes, `feature d_out`."""

    @abstractmethod
    def encode(self, x: Tensor, features: Sequence[int] | None = None) -> Tensor:
        """Codes `row feature` of rows `row d_in`, dense; only those of `features`, in this order, where they are given."""

    @abstractmethod
    def decode(self, feature_acts: Tensor | Codes) -> Tensor:
        """What codes write, `row d_out`, affine in them."""

    @property
    def width(self) -> int:
        """How many features it has."""
        return len(self.directions)

    @property
    def d_out(self) -> int:
        """Width of the rows it writes."""
        return self.directions.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers it computes with."""
        return self.directions.dtype

    @property
    def transcoder(self) -> bool:
        """Does it write another site than it reads?"""
        return False

    def codes(self, x: Tensor) -> Codes:
        """Sparse codes of rows `row d_in`, without gradients; some rows at a time, so that memory stays flat."""
        with torch.no_grad():
            parts = [self._sparse(rows) for rows in x.split(max(1, AT_ONCE // self.width))]
        return Codes.concatenate(parts) if parts else Codes.of_dense(torch.zeros(0, self.width))

    def _sparse(self, rows: Tensor) -> Codes:
        """Codes of rows that fit into memory together; a subclass may know a way without dense ones."""
        return Codes.of_dense(self.encode(rows))

    def forward(self, x: Tensor) -> Tensor:
        """What it makes of rows `row d_in`: `row d_out`."""
        return self.decode(self.encode(x))

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def error(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """What it leaves of the rows, or of `target` for a transcoder, `row d_out`."""
        if target is None and self.transcoder:
            raise InputError("A transcoder writes another site than it reads: give the rows of that site too, error(x, target).")
        return (x if target is None else target) - self.forward(x)

    def check_rows(self, x: Tensor) -> None:
        """Refuse rows of another width.

        Raises:
            InputError: With both widths and the site.
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise InputError(
                f"This dictionary reads rows of {self.d_in} numbers ({self.origin.site or 'this site'}); got shape {tuple(x.shape)}. "
                "Flatten heads, or use the site it was trained on."
            )
