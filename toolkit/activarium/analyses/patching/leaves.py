"""Where an attribution ends: the embeddings, the biases, and what neither accounts for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from activarium.edits import Detach
from activarium.metrics import Metric
from activarium.rules import Rules

BIAS = re.compile(r"(.*\.)?((.*_)?bias|b|b_\w+)")  # Hugging Face's names and TransformerLens'
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest leaf: what counts as conserved; 16-bit floats get 3e-2


@dataclass(frozen=True)
class Leaves:
    """Everything that a metric's relevance is shared among.

    Attributes:
        metric: What is shared.
        embeddings: Row space → relevance of each of its rows, `row`, float64.
        rows: Row space → its row table.
        biases: Relevance of all bias parameters above the embeddings, norm shifts included; None where a method leaves them out.
        rules: What the rules were bound to, if any.
        grain: What counts as rounding, as a share of the largest leaf.
    """

    metric: float
    embeddings: Mapping[str, Tensor]
    rows: Mapping[str, Any]
    biases: float | None = None
    rules: Mapping[str, Any] | None = None
    grain: float = 1e-4

    @property
    def total(self) -> float:
        """Relevance of all leaves."""
        return sum(float(r.sum()) for r in self.embeddings.values()) + (self.biases or 0.0)

    @property
    def remainder(self) -> float:
        """What of the metric no leaf accounts for."""
        return self.metric - self.total

    @property
    def conserved(self) -> bool:
        """Is the remainder rounding?"""
        sizes = [abs(self.metric), abs(self.biases or 0.0), *(float(r.abs().sum()) for r in self.embeddings.values())]
        return abs(self.remainder) <= self.grain * max(sizes)

    def kinds(self) -> dict[str, float]:
        """Relevance per kind of row: `tokens`, `cls`, `patch`, …; with the row space where there are several."""
        found: dict[str, float] = {}
        for space, relevance in self.embeddings.items():
            kinds = self.rows[space]["kind"].astype(str)
            for kind in dict.fromkeys(kinds):
                share = float(relevance[torch.as_tensor(kinds == kind)].sum())
                found[f"{space} {kind} rows".strip()] = share
        return found

    def listed(self) -> dict[str, Any]:
        """For the diagnostics of a Result: every leaf and the remainder, in units of the metric."""
        biases = {} if self.biases is None else {"biases": self.biases}
        return {"metric": self.metric, **self.kinds(), **biases, "remainder": self.remainder}


def leaves(model: Any, given: Any, metric: Metric, rules: Rules | None) -> Leaves:
    """Relevance of the embeddings and of the biases above them, from one forward and its backward."""
    spaces = {f"{s}.embed" if s else "embed": s for s in given.data}
    # What lies below the embeddings must not be counted a second time: the graph begins at them.
    cut = [Detach(site) for site in spaces]
    rec = model.run(given, read=[*spaces], edits=cut, metrics={"metric": metric}, grad=True, rules=rules)
    slopes = rec.backward("metric")
    embeddings = {space: _product(rec[site].tensor, slopes[site].tensor) for site, space in spaces.items()}
    measured = rec.metric["metric"].sum()
    biases = [p for n, p in model.torch_module.named_parameters() if BIAS.fullmatch(n) and p.requires_grad]
    found = torch.autograd.grad(measured, biases, allow_unused=True) if biases else ()
    share = sum(float((_wide(b) * _wide(g)).sum()) for b, g in zip(biases, found, strict=True) if g is not None)
    return Leaves(
        float(measured.detach()),
        embeddings,
        {space: rec[site].index for site, space in spaces.items()},
        share,
        rec.provenance["rules"] if rules is not None else None,
        EXACT.get(model.dtype, 3e-2),
    )


def _product(values: Tensor, slopes: Tensor) -> Tensor:
    return (_wide(values) * _wide(slopes)).sum(-1)


def _wide(values: Tensor) -> Tensor:
    return values.detach().double().cpu()
