"""What each writer's change says at the answer's row, in words: the token that it pushes up most and the one it pushes down most."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.norms import Norm
from activarium.analyses.patching.reader_inputs import Readers
from activarium.analyses.patching.sides import Sides, wide
from activarium.analyses.patching.wiring import Wiring
from activarium.analyses.patching.writers import Differences


class Readouts:
    """Changes of all writers, source less base, as the final norm passes them on at its scale in the base run; summed over pairs.

    Attributes:
        known: Does this model have an unembedding that reads single rows?
    """

    def __init__(self, model: Any, wiring: Wiring) -> None:
        self.model, self.wiring = model, wiring
        answer = model.sites.get("logits")
        self.known = answer is not None and answer.axes == "row vocab" and "W_U" in model.weights
        self._sum: Tensor | float = 0.0
        self._word: Any = str

    def add(self, sides: Sides, readers: Readers, differences: Differences) -> None:
        """Take in a batch of pairs."""
        if not self.known:
            return
        lengths = np.asarray(sides.pairs.clean.rows_of(self.model.sites["logits"].rows))
        rows = (sides.pairs.metric.places(lengths) + np.r_[0, np.cumsum(lengths)[:-1]][:, None]).ravel()
        stream = readers.stream(differences.base, len(self.wiring.layers), "logits")[torch.as_tensor(rows)]
        norm = Norm(partial(self.model.normalise, "final_norm"), stream[:4].to(self.model.dtype), "final_norm")
        changes = torch.cat([differences.of(i)[:, torch.as_tensor(rows)] for i in range(-1, len(self.wiring.layers))])
        self._sum = self._sum + norm.frozen(norm.scale(stream), changes).sum(1)
        self._word = sides.pairs.clean.words

    def words(self) -> dict[str, str]:
        """Writer → what it says; nothing for one whose change does not reach the answer's row."""
        if not isinstance(self._sum, Tensor):
            return {}
        logits = self._sum @ wide(self.model.weight("W_U"))
        up, down = (getattr(logits, end)(1).tolist() for end in ("argmax", "argmin"))
        silent = (self._sum == 0).all(1).tolist()
        said = [f"{self._word(a).strip()} up, {self._word(b).strip()} down" for a, b in zip(up, down, strict=True)]
        return {w: "" if quiet else words for w, words, quiet in zip(self.wiring.writers, said, silent, strict=True)}
