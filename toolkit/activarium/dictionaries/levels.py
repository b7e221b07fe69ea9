"""Factors of factors: a factorisation whose directions are factorised again, down to a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.dictionaries.factorising import factorise, source_of
from activarium.dictionaries.rows import EXCLUDED
from activarium.dictionaries.semi_nmf import Pieces
from activarium.dictionaries.semi_nmf_starts import Start
from activarium.dictionaries.snmf import SNMF
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.recording import Recording


@dataclass(frozen=True, eq=False)
class Levels:
    """Factors on several levels, the finest first. Rows are about `activations(ℓ) @ levels[ℓ].directions` on each level ℓ.

    Attributes:
        levels: A dictionary per level.
        coefficients: First how much of each finest factor is in each row, `row feature`; then, from each level to the next, how much of each
            coarser factor is in each finer one, `feature feature`. None is negative; before tuning, how much of a factor is in the
            rows has mean square 1 on every level.
        scales: What the directions of each level, of length 1, are multiplied by to be the rows that the next level factorises.
        errors: Σ‖a − â‖² / Σ‖a‖² of the fitted rows at each level.
        rows: Numbers of the rows in the recording.
        tuned: Steps of joint tuning.
    """

    levels: tuple[SNMF, ...]
    coefficients: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    errors: tuple[float, ...]
    rows: np.ndarray
    tuned: int = 0

    def activations(self, level: int) -> Tensor:
        """How much of each factor of a level is in each row, `row feature`, in the units of the rows."""
        made = self.coefficients[0]
        for mixed in self.coefficients[1 : level + 1]:
            made = made @ mixed
        return made * self.scales[level]

    def children(self, level: int, factor: int, *, threshold: float = 0.15, most: int = 4) -> list[tuple[int, float]]:
        """The finer factors that a factor of `level` ≥ 1 is made of: those with at least `threshold` of the largest coefficient.

        Returns:
            Factor of the level below and its coefficient, largest first; empty where fewer than two are left: it is then no union.
        """
        column = self.coefficients[level][:, factor]
        order = column.argsort(descending=True, stable=True)[:most]
        found = [(int(i), float(column[i])) for i in order if column[i] > 0 and column[i] >= threshold * column[order[0]]]
        return found if len(found) > 1 else []


def factorise_levels(
    recording: Recording | Activations,
    site: str | None = None,
    *,
    features: Sequence[int],
    share: float | None = 0.01,
    init: Start = "kmeans",
    restarts: int | None = None,
    tune: int = 0,
    rate: float = 1e-3,
    exclude: Sequence[str] = EXCLUDED,
    seed: int = 0,
    progress: bool = True,
) -> Levels:
    """Factorise a site, then its factors, and so on: A ≈ Z₁Y₁, Z₁ ≈ Z₂Y₂, …, so that A ≈ Z₂Y₂Y₁.

    Each factor counts in the next level by how much it writes (its direction times the root mean square of its coefficients), as in
    the published code.

    Args:
        recording: A store, a recording, or one site of it.
        site: Which site; not needed where `recording` is one.
        features: Factors of each level, falling: `(100, 50, 25)`.
        share: Entries that each factor keeps, on every level.
        init: See `factorise`.
        restarts: See `factorise`.
        tune: Steps of Adam on the squared errors of all levels, added, over all coefficients and directions together; 0 for none. Each reads all
            rows. After each step what is negative is set to zero, and directions keep the entries they have.
        rate: Of Adam, relative to the mean size of what it moves.
        exclude: Row kinds that are left out.
        seed: Of the starts.
        progress: Show a bar.

    Returns:
        The levels.

    Raises:
        InputError: The numbers of factors do not fall, or what `factorise` refuses.

    Source:
        Shafran et al. 2025, arXiv:2506.10920, section on hierarchies; Trigeorgis et al. 2017, A Deep Matrix Factorization Method for Learning
        Attribute Representations, arXiv:1509.03248.

    Differs:
        The published tuning lets coefficients become negative. Which levels' error it lowers is not established; with that of the coarsest alone the
        finer factors would become sums of a few coarse ones, so ours adds all.
    """
    if not features or any(b >= a for a, b in pairwise(features)):
        raise InputError(f"features={tuple(features)}: each level has fewer factors than the one before, as in (100, 50, 25).")
    first = factorise(
        recording, site, features=features[0], share=share, init=init, restarts=restarts, exclude=exclude, seed=seed, progress=progress
    )
    made, dense = [first.snmf], first.codes.dense()
    scale = _root(dense)
    coefficients, scales = [dense / scale], [scale]
    for count in features[1:]:
        rows = Activations(made[-1].directions * scales[-1][:, None], "row d_model", site=first.snmf.origin.site)
        options = {"share": share, "init": init, "restarts": restarts, "seed": seed, "progress": progress}
        found = factorise(rows, features=count, exclude=(), **options)
        made.append(SNMF(found.snmf.directions, first.snmf.origin))
        mixed = found.codes.dense()
        scales.append(_root(_product([*coefficients, mixed])))
        coefficients.append(mixed / scales[-1])
    pieces = Pieces(source_of(recording, site, exclude), torch.float32)
    levels = Levels(tuple(made), tuple(coefficients), tuple(scales), (), first.rows)
    if tune:
        levels = _tuned(levels, pieces, tune, rate, progress)
    return replace(levels, errors=_errors(levels, pieces))


def _root(codes: Tensor) -> Tensor:
    found = codes.double().square().mean(0).sqrt().to(codes.dtype)
    return torch.where(found > 0, found, 1)


def _product(coefficients: Sequence[Tensor]) -> Tensor:
    made = coefficients[0]
    for mixed in coefficients[1:]:
        made = made @ mixed
    return made


def _errors(levels: Levels, pieces: Pieces) -> tuple[float, ...]:
    made = []
    for number, snmf in enumerate(levels.levels):
        codes = levels.activations(number)
        left = sum(float((rows - codes[place] @ snmf.directions).double().square().sum()) for place, rows in pieces)
        made.append(left / pieces.square)
    return tuple(made)


def _tuned(levels: Levels, pieces: Pieces, steps: int, rate: float, progress: bool) -> Levels:
    """Adam on all coefficients and the directions of all levels, whose errors are added."""
    depth = len(levels.levels)
    start = [*levels.coefficients, *(d.directions * scale[:, None] for d, scale in zip(levels.levels, levels.scales, strict=True))]
    moved = [value.clone().requires_grad_() for value in start]
    kept = [value != 0 for value in start[depth:]]
    adam = torch.optim.Adam([{"params": [m], "lr": rate * float(m.detach().abs().mean())} for m in moved])
    with progress_bar(progress, "tuning", steps, "steps") as advance:
        for _ in range(steps):
            adam.zero_grad()
            total = 0.0
            for place, rows in pieces:
                loss = _summed(rows, moved[0][place], moved[1:depth], moved[depth:]) / pieces.square
                loss.backward()
                total += float(loss.detach())
            adam.step()
            with torch.no_grad():
                for coefficients in moved[:depth]:
                    coefficients.clamp_min_(0)
                for directions, stays in zip(moved[depth:], kept, strict=True):
                    directions.mul_(stays)
            advance(1, note=f"error {total / depth:.4f}")
    found = [m.detach() for m in moved]
    lengths = [torch.where(d.norm(dim=1) > 0, d.norm(dim=1), 1) for d in found[depth:]]
    unit = tuple(SNMF(d / n[:, None], levels.levels[0].origin) for d, n in zip(found[depth:], lengths, strict=True))
    return replace(levels, levels=unit, coefficients=tuple(found[:depth]), scales=tuple(lengths), tuned=steps)


def _summed(rows: Tensor, first: Tensor, mixed: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """Σ over levels of ‖a − â‖²."""
    total, codes = (rows - first @ directions[0]).square().sum(), first
    for step, here in zip(mixed, directions[1:], strict=True):
        codes = codes @ step
        total = total + (rows - codes @ here).square().sum()
    return total
