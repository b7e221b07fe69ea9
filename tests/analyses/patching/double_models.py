"""Tiny models that compute in float64 throughout, so that identities can be held to rounding."""

from __future__ import annotations

from functools import cache
from types import MethodType

import activarium as act
from activarium import testing

CLEAN = ["Anna saw the cat and", "Tom read the book", "the cat saw Anna and the"]
CORRUPT = ["Tom saw the book and", "Anna read the cat", "the book saw Tom and the"]


def _in_its_own_dtype(self, rows):
    """RMSNorm as the class has it, without the detour through float32."""
    gain = 1 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
    eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
    return gain * rows * (rows.square().mean(-1, keepdim=True) + eps).rsqrt()


@cache
def double(family: str, **values):
    """`testing.tiny` in float64, wrapped."""
    model, tokenizer = testing.tiny(family, **values)
    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_in_its_own_dtype, module)
    return act.wrap(model, tokenizer, name=family, certify=False)


def pairs_of(model, count: int = 3):
    """Pairs of three lengths: batches have padding."""
    return act.pairs(model, CLEAN[:count], CORRUPT[:count], answers=["Anna", "Tom", "cat"][:count], foils=["Tom", "Anna", "book"][:count])
