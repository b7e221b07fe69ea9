"""Tensors that keep their values, bit for bit, and take another gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from activarium.errors import InputError

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}  # of the largest value; some norms compute in float32. 16-bit floats get 3e-2


def with_gradient_of(rule: Tensor, value: Tensor) -> Tensor:
    """`value` bit for bit, with the gradient of `rule`."""
    return Borrowed.apply(value, rule)  # type: ignore[return-value]


def checked(rule: Tensor, value: Tensor, name: str) -> Tensor:
    """`value` with the gradient of `rule`, which is made of something else and must be seen to equal it.

    Raises:
        InputError: They are not the same numbers up to rounding.
    """
    size = TOLERANCE.get(value.dtype, 3e-2)
    with torch.no_grad():
        gap, largest = (rule - value).abs_().max(), value.abs().max()
    if gap > size * largest:
        raise InputError(
            f"The relevance rule for {name} gives other values than the module: {float(gap):.1e} apart, at most {float(size * largest):.1e} "
            "can be rounding. Something between its input and its output is not what the rule assumes; switch this rule off."
        )
    return with_gradient_of(rule, value)


class Borrowed(torch.autograd.Function):
    """The first value, the second one's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rule: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, gradient


class Scaled(torch.autograd.Function):
    """The same value, its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def scaled(value: Tensor, factor: float | None) -> Tensor:
    if factor is None:
        return value.detach()
    return value if factor == 1 else Scaled.apply(value, factor)  # type: ignore[return-value]


def ratio(x: Tensor, y: Tensor, slope: Tensor | float) -> Tensor:
    """`f(x) / x`, held constant; its limit, the slope, where x is zero. Nothing is added to x: that would move a pole, not remove it."""
    x, y = x.detach(), y.detach()
    return torch.where(x == 0, slope, y / x)


def slope_of(y: Tensor, x: Tensor) -> Tensor:
    """Derivative of each number of y by its own x."""
    return torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0]
