"""What was done to a TransformerLens model's weights, measured on the weights themselves, in words a reader needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WORDS = {
    "folded_norms": "norms have gain 1 and bias 0, as after folding them into the weights that follow: attn.in, mlp.in and final_norm are without them",
    "centred_writing": "writing weights are centred: every row of the residual stream has mean 0",
    "centred_unembed": "the unembedding is centred: every row of logits has mean 0",
    "folded_value_biases": "value biases are folded into attn.out: v and z are without them",
}


@dataclass(frozen=True)
class Processing:
    """How the weights differ from those of the model they came from.

    Attributes:
        folded_norms: Norms have no gain and bias (left): they live in the weights that follow.
        centred_writing: What is written to the stream has mean 0 over its features.
        centred_unembed: Logits have mean 0 over the vocabulary.
        folded_value_biases: Value biases live in the output bias.
    """

    folded_norms: bool = False
    centred_writing: bool = False
    centred_unembed: bool = False
    folded_value_biases: bool = False

    def words(self) -> tuple[str, ...]:
        """One sentence for each thing that was done."""
        return tuple(sentence for name, sentence in WORDS.items() if getattr(self, name))


def measure(weights: Mapping[str, Any], weight: Any, norms: Mapping[str, Any]) -> Processing:
    """What these weights say of themselves; TransformerLens keeps no record.

    Args:
        weights: Names of all weights.
        weight: Gives a weight by its name.
        norms: Norm module by role, of the first block and the end.
    """

    def value(name: str) -> Tensor | None:
        return weight(name) if name in weights else None

    writers = [value(n) for n in ("W_E", "blocks.0.attn.W_O", "blocks.0.mlp.W_down")]
    queries, values = value("blocks.0.attn.b_Q"), value("blocks.0.attn.b_V")
    return Processing(
        folded_norms=bool(norms) and all(_plain(n) for n in norms.values()),
        centred_writing=all(w is None or _centred(w) for w in writers) and any(w is not None for w in writers),
        centred_unembed=_centred(value("W_U")),
        folded_value_biases=queries is not None and values is not None and bool(queries.any()) and not bool(values.any()),
    )


def _centred(matrix: Tensor | None) -> bool:
    if matrix is None:
        return False
    means = matrix.double().mean(-1).abs().max()
    return bool(means <= 1e-2 * torch.finfo(matrix.dtype).eps ** 0.5 * matrix.double().abs().max())


def _plain(norm: Any) -> bool:
    """Ones and zeros, or TransformerLens' own norm without any, which stands for a folded one."""
    gain = next((g for g in (getattr(norm, n, None) for n in ("w", "weight")) if isinstance(g, Tensor)), None)
    bias = next((b for b in (getattr(norm, n, None) for n in ("b", "bias")) if isinstance(b, Tensor)), None)
    if gain is None and bias is None:
        return type(norm).__name__.endswith("Pre")
    return (gain is None or bool((gain == 1).all())) and (bias is None or not bool(bias.any()))
