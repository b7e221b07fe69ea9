"""How near approximate effects come to exact ones: which cells are compared, and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 1000


def strata(scores: np.ndarray, open_cells: np.ndarray, sample: int, seed: int) -> np.ndarray:
    """Which cells are compared, by the stratum they were chosen in; empty for all others.

    Half of the sample are the largest scores, a tenth are scores of exactly zero (if there are any), the rest is drawn evenly from
    the others: `top`, `zero`, `drawn`. A grid that is no larger than the sample is taken `whole`.

    Args:
        scores: Any shape.
        open_cells: Boolean of that shape: cells that stand for something.
        sample: How many cells are chosen.
        seed: Of the draw.
    """
    chosen = np.full(scores.shape, "", dtype="<U8")
    flat, size = chosen.ravel(), np.abs(np.where(open_cells, scores, 0.0)).ravel()
    cells = np.flatnonzero(open_cells)
    if len(cells) <= sample:
        flat[cells] = "whole"
        return chosen
    random = np.random.default_rng(seed)
    zero, others = cells[size[cells] == 0], cells[size[cells] > 0]
    zeros = min(len(zero), max(sample // 10, sample - len(others)))
    largest = others[np.argsort(-size[others], kind="stable")[: min(sample // 2, sample - zeros)]]
    rest = np.setdiff1d(others, largest)
    flat[largest] = "top"
    flat[random.choice(rest, min(len(rest), sample - zeros - len(largest)), replace=False)] = "drawn"
    flat[random.choice(zero, zeros, replace=False)] = "zero"
    return chosen


def compared(approximate: np.ndarray, exact: np.ndarray, known_zero: np.ndarray, *, seed: int, count: int = 10) -> dict[str, Any]:
    """Statistics of signed scores against exact effects, cell by cell.

    Args:
        approximate: One number per cell.
        exact: As many.
        known_zero: Cells that need no run; a method is not to be praised for them.
        seed: Of the bootstrap.
        count: How many of the largest effects are looked for.
    """
    real = ~known_zero
    sure = real & (np.abs(exact) > 1e-6 * np.abs(exact).max(initial=0.0))
    return {
        "cells": len(exact),
        "pearson": pearson(approximate, exact),
        "pearson_without_zeros": pearson(approximate[real], exact[real]),
        "interval": interval(approximate, exact, seed),
        "spearman": spearman(approximate, exact),
        "slope": slope(approximate, exact),
        "sign_agreement": float(np.mean(np.sign(approximate[sure]) == np.sign(exact[sure]))) if sure.any() else float("nan"),
        f"recall_of_top_{count}": recall(approximate, exact, count),
    }


def compared_sizes(approximate: np.ndarray, exact: np.ndarray, count: int = 10) -> dict[str, Any]:
    """Statistics of unsigned scores against sizes of exact effects: ranks alone."""
    return {"cells": len(exact), "spearman": spearman(approximate, exact), f"recall_of_top_{count}": recall(approximate, exact, count)}


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation; NaN below two cells or where one side never changes."""
    if len(a) < 2:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else float("nan")


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks; equal values share theirs."""
    import pandas

    return pearson(*(pandas.Series(x).rank().to_numpy() for x in (a, b)))


def slope(approximate: np.ndarray, exact: np.ndarray) -> float:
    """Growth of the score per unit of the exact effect, by least squares; below 1 it underestimates."""
    moved = exact - exact.mean() if len(exact) else exact
    return float(moved @ approximate / (moved @ moved)) if (moved @ moved) > 0 else float("nan")


def recall(approximate: np.ndarray, exact: np.ndarray, count: int) -> float:
    """Share of the cells with the largest exact effects that are among as many cells with the largest scores."""
    count = min(count, int((exact != 0).sum()))
    if not count:
        return float("nan")
    largest, found = (set(np.argsort(-np.abs(x), kind="stable")[:count].tolist()) for x in (exact, approximate))
    return len(largest & found) / count


def interval(approximate: np.ndarray, exact: np.ndarray, seed: int) -> tuple[float, float]:
    """Between which bounds the correlation lies in 95 % of the samples drawn again from these cells."""
    random, count = np.random.default_rng(seed), len(exact)
    if count < 3:
        return float("nan"), float("nan")
    drawn = random.integers(count, size=(RESAMPLES, count))
    found = np.array([pearson(approximate[d], exact[d]) for d in drawn])
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan, np.nan)
    return float(low), float(high)


def doubts(found: dict[str, Any], miss: str) -> tuple[str, ...]:
    """What a reader must know before relying on these scores, in words."""
    words = []
    if found["pearson_without_zeros"] < 0.8:
        words.append(
            f"Weak agreement: Pearson is {found['pearson_without_zeros']:.2f} without known zeros. Use activation_patching for these nodes; "
            "streams and the first MLP are where gradients fail most."
        )
    if abs(found["slope"] - 1) > 0.3:
        size = "under" if found["slope"] < 1 else "over"
        words.append(f"Sizes are {size}estimated: the scores grow by {found['slope']:.2f} per unit of the exact effect.")
    return (*words, miss) if words else ()
