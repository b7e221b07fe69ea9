"""Sparse codes: which features are active in each row, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from activarium.errors import InputError


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes `row feature` of which only those that are not zero are kept (compressed sparse rows).

    Attributes:
        starts: `(row + 1,)` int64: codes of row i are those from `starts[i]` to `starts[i + 1]`.
        features: Feature of each code, int32, ascending within a row.
        values: Each code.
        width: How many features there are.
    """

    starts: Tensor
    features: Tensor
    values: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @staticmethod
    def of_dense(codes: Tensor) -> Codes:
        """From codes `row feature`."""
        row, feature = codes.nonzero(as_tuple=True)
        starts = torch.zeros(len(codes) + 1, dtype=torch.int64, device=codes.device)
        starts[1:] = torch.bincount(row, minlength=len(codes)).cumsum(0)
        return Codes(starts, feature.int(), codes[row, feature], codes.shape[1])

    @staticmethod
    def of_top(features: Tensor, values: Tensor, width: int) -> Codes:
        """From k features and values per row, `row k`; zeros are dropped."""
        features, order = features.sort(1)
        values = values.gather(1, order)
        kept = values != 0
        starts = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
        starts[1:] = kept.sum(1).cumsum(0)
        return Codes(starts, features[kept].int(), values[kept], width)

    @staticmethod
    def concatenate(parts: Sequence[Codes]) -> Codes:
        """Rows under one another."""
        if len({p.width for p in parts}) != 1:
            raise InputError(f"Codes of {sorted({p.width for p in parts})} features cannot stand under one another. Use one dictionary.")
        shifts = np.cumsum([0, *(int(p.starts[-1]) for p in parts)])
        starts = [p.starts[:-1] + int(s) for p, s in zip(parts, shifts, strict=False)]
        last = torch.tensor([int(shifts[-1])], device=parts[0].starts.device)
        made = (torch.cat([*starts, last]), torch.cat([p.features for p in parts]), torch.cat([p.values for p in parts]))
        return Codes(*made, parts[0].width)

    def dense(self) -> Tensor:
        """`row feature`."""
        made = self.values.new_zeros(len(self), self.width)
        made[self.rows, self.features.long()] = self.values
        return made

    @property
    def rows(self) -> Tensor:
        """Row of each code, int64."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.starts.device), self.active)

    @property
    def active(self) -> Tensor:
        """Active features of each row, int64: its L0."""
        return self.starts.diff()

    @property
    def fires(self) -> Tensor:
        """Rows in which each feature is active, int64."""
        return torch.bincount(self.features.long(), minlength=self.width)

    def row(self, number: int) -> tuple[Tensor, Tensor]:
        """Features and codes of one row."""
        here = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return self.features[here], self.values[here]

    def feature(self, number: int) -> tuple[Tensor, Tensor]:
        """Rows in which a feature is active, and its codes there."""
        if not 0 <= number < self.width:
            raise InputError(f"There is no feature {number}; the dictionary has {self.width}, numbered from 0.")
        here = (self.features == number).nonzero()[:, 0]
        return self.rows[here], self.values[here]

    def save(self, path: str | Path) -> Path:
        """Write them into one safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        tensors = {"starts": self.starts, "features": self.features, "values": self.values}
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, temporary, metadata={"codes": "1", "width": str(self.width)})
        temporary.replace(path)
        return path

    @staticmethod
    def load(path: str | Path) -> Codes:
        """Read what `save` wrote.

        Raises:
            InputError: The file holds no codes, or they do not fit together.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                words = file.metadata() or {}
                made = {name: file.get_tensor(name) for name in ("starts", "features", "values")}
        except SafetensorError as error:
            raise InputError(f"{Path(path).name} holds no codes: {error}. Write them with codes.save(path).") from error
        codes = Codes(**made, width=int(words.get("width", 0)))
        starts, features = codes.starts, codes.features
        ends = len(starts) > 0 and int(starts[0]) == 0 and bool((starts.diff() >= 0).all()) and int(starts[-1]) == len(features)
        if not ends or len(features) != len(codes.values) or bool(((features < 0) | (features >= codes.width)).any()):
            raise InputError(f"{Path(path).name}: its rows, features and values do not fit together. Make the codes again.")
        return codes
