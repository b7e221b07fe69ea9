"""The strength at which an added direction changes the answer by a given amount: steering in units of KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.edits import EVERYWHERE, Add, Where
from activarium.errors import InputError
from activarium.protocols import Runner

TARGETS = (0.025, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5)  # nats, of the published runs
CLOSE = 0.01  # of the target
DOUBLINGS = 24
BISECTIONS = 60


@dataclass(frozen=True)
class Strength:
    """How strongly a direction is added for the answer to change by `target`.

    Attributes:
        target: KL(plain ‖ steered) that was asked for, nats, mean over inputs.
        sign: 1 along the direction, -1 against it.
        strength: What the unit direction is multiplied by, signed; NaN where the target cannot be met.
        kl: KL that was measured there; where the target is not met, the largest one that was seen.
        met: Is it within 1 % of the target?
        monotone: KL never fell while the strength grew, among the strengths that were tried; if it did, this is the first crossing found.
        words: What was done, or why it cannot be met.
    """

    target: float
    sign: int
    strength: float
    kl: float
    met: bool
    monotone: bool
    words: str


def matched_strength(
    model: Runner,
    inputs: Any,
    direction: Any,
    site: str,
    *,
    kl: float | Sequence[float] = TARGETS,
    signs: Sequence[int] = (1, -1),
    where: Where = EVERYWHERE,
    close: float = CLOSE,
) -> list[Strength]:
    """Find the strengths at which a unit direction, added at a site, changes the last answer by given KLs.

    The strength is doubled (from a hundredth of the rows' mean length, or halved below it) until targets are bracketed, then
    bisected on its logarithm. Every target of a sign uses all measurements made before.

    Args:
        model: The model.
        inputs: Texts, or images.
        direction: `d` of the site; its length does not matter.
        site: Where it is added.
        kl: One target or several, nats: KL(plain ‖ steered) of the answer at each input's last row (or of its classes), mean over inputs.
        signs: 1, -1 or both.
        where: Rows that are edited; all by default, as in the published runs.
        close: How near the target counts as met, as a share of it.

    Returns:
        One `Strength` per sign and target, in this order. Where growing strengths do not reach a target, it says so.

    Raises:
        InputError: A direction of zero, of another width or not finite, or targets and signs that are none.
    """
    targets = [float(k) for k in (kl if isinstance(kl, Sequence) else [kl])]
    unit = torch.as_tensor(np.asarray(direction.detach().cpu() if isinstance(direction, Tensor) else direction)).float().flatten()
    length = float(unit.norm())
    if not np.isfinite(length) or length == 0:
        raise InputError(f"The direction has length {length:g}: nothing points anywhere. Is its factor dead?")
    if not targets or any(not (np.isfinite(k) and k > 0) for k in targets) or not signs or any(s not in (1, -1) for s in signs):
        raise InputError(f"kl={targets} and signs={tuple(signs)}: targets are above 0 nats, signs are 1 and -1.")
    encoded = model.inputs(inputs)
    with torch.no_grad():
        read = model.run(encoded, read=[site, "logits"])
    rows = read[site].tensor
    if rows.shape[-1] != len(unit):
        raise InputError(f"The direction has {len(unit)} numbers; {site} has {rows.shape[-1]}. Is it another site's?")
    begin = 0.01 * float(rows.float().flatten(1).norm(dim=1).mean()) or 0.01
    plain = _last(read["logits"])
    made = []
    for sign in signs:
        curve = _Curve(model, encoded, plain, unit / length * sign, site, where)
        curve.bracket(begin, min(targets), max(targets))
        made += [curve.find(target, sign, close) for target in targets]
    return made


class _Curve:
    """KL at the strengths that were tried, in order."""

    def __init__(self, model: Runner, inputs: Any, plain: Tensor, unit: Tensor, site: str, where: Where) -> None:
        self.model, self.inputs, self.plain, self.unit, self.site, self.where = model, inputs, plain, unit, site, where
        self.seen: dict[float, float] = {}

    def at(self, strength: float) -> float:
        if strength not in self.seen:
            with torch.no_grad():
                edit = Add(self.site, self.unit, strength, where=self.where)
                after = _last(self.model.run(self.inputs, read="logits", edits=[edit])["logits"])
            weight = self.plain.exp()
            kl = float(torch.where(weight > 0, weight * (self.plain - after), 0).sum(1).clamp_min(0).mean())
            self.seen[strength] = kl if np.isfinite(kl) else float("nan")
        return self.seen[strength]

    def bracket(self, begin: float, low: float, high: float) -> None:
        strength = begin
        for _ in range(DOUBLINGS):
            if not self.at(strength) > low:
                break
            strength /= 2
        strength = begin
        for _ in range(DOUBLINGS):
            found = self.at(strength)
            if not np.isfinite(found) or found > high:
                break
            strength *= 2

    @property
    def points(self) -> list[tuple[float, float]]:
        """Strengths with a finite KL, rising."""
        return [(s, k) for s, k in sorted(self.seen.items()) if np.isfinite(k)]

    def find(self, target: float, sign: int, close: float) -> Strength:
        under, over = self._around(target)
        if over is None:
            most = max((k for _, k in self.points), default=float("nan"))
            top = max(self.seen)
            broke = "the answer was no longer finite" if not np.isfinite(self.seen[top]) else "it grew no further"
            words = f"KL {target:g} is not reached: the largest seen is {most:.3g} nats, up to strength {top:.3g}, where {broke}."
            return Strength(target, sign, float("nan"), most, False, self._monotone(), words)
        for _ in range(BISECTIONS):
            middle = (under * over) ** 0.5 if under > 0 else over / 2
            found = self.at(middle)
            if abs(found - target) <= close * target:
                return Strength(target, sign, sign * middle, found, True, self._monotone(), f"{len(self.seen)} strengths were tried.")
            under, over = (middle, over) if found < target else (under, middle)
        found = self.at(over)
        words = f"KL jumps past {target:g} near strength {over:.4g}; {found:.3g} nats is the nearest above it."
        return Strength(target, sign, float("nan"), found, False, self._monotone(), words)

    def _around(self, target: float) -> tuple[float, float | None]:
        """The last strength before the first crossing, and the first one after it."""
        under = 0.0
        for strength, found in self.points:
            if found >= target:
                return under, strength
            under = strength
        return under, None

    def _monotone(self) -> bool:
        found = np.array([k for _, k in self.points])
        return bool((np.diff(found) >= -1e-9 - 1e-6 * found[1:]).all())


def _last(logits: Any) -> Tensor:
    """Log-probabilities of each input's last answer, in float64."""
    values = logits.tensor.double().log_softmax(1)
    if "row" in logits.axes:
        example = np.asarray(logits.index["example"])
        values = values[np.flatnonzero(np.r_[example[1:] != example[:-1], True])]
    if not bool(torch.isfinite(values).any(1).all()):
        return torch.full_like(values, torch.nan)
    return values


def steering_add(dictionary: Any, feature: int, strength: float, *, site: str | None = None, where: Where = EVERYWHERE) -> Add:
    """A feature's unit direction as an edit of the site that it writes.

    For factors of neurons that is `blocks.i.mlp.post`, in every model. To add it to the stream instead, give `site="blocks.i.mlp.out"` and a table of
    directions from `activarium.dictionaries.residual_directions` in place of the dictionary.

    Args:
        dictionary: A dictionary, or a table of directions `feature d`.
        feature: Which one.
        strength: What the unit direction is multiplied by.
        site: Where; the site that the dictionary writes if not given.
        where: Rows that are touched.

    Raises:
        InputError: No such feature, a dead one, or no site is known.
    """
    table = dictionary if isinstance(dictionary, Tensor) else dictionary.directions.detach()
    origin = getattr(dictionary, "origin", None)
    place = site or (origin.target or origin.site if origin is not None else "")
    if not place:
        raise InputError("At which site? The directions do not say where they are written: give site='blocks.3.mlp.out'.")
    if not 0 <= feature < len(table):
        raise InputError(f"There is no feature {feature}; there are {len(table)}, numbered from 0.")
    length = float(table[feature].norm())
    if not (np.isfinite(length) and length > 0):
        raise InputError(f"Feature {feature} has a direction of length {length:g}: it is dead and points nowhere.")
    return Add(place, table[feature] / length, strength, where=where)
