"""Which rules act in one forward, if any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from activarium.capture._rules import BoundRules
from activarium.capture._secant import BoundSecant
from activarium.errors import InputError
from activarium.rules import Rules, Secant, as_rules

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


def bound_rules(model: TorchRunner, given: Rules | Secant | str | None, grad: bool) -> BoundRules | None:
    """Rules for one forward, or None.

    Raises:
        InputError: No gradient is asked for, the model's dtype has no room for gradients, or secants cannot pass through it.
        UnknownName: No set of rules has this name.
    """
    if given is None:
        return None
    rules = given if isinstance(given, Secant) else as_rules(given)
    if not grad:
        raise InputError(f"rules={rules.name!r} changes gradients and no values, so it needs grad=True.")
    if model.dtype == torch.float16:
        raise InputError(f"{model.name} is float16, in which gradients underflow to zero. Load it in float32 or bfloat16 to use rules.")
    return BoundSecant(model) if isinstance(rules, Secant) else BoundRules(model, rules)
