"""Firing rates of neurons: how unequal they are, and whether they last."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas

from activarium.results import Series
from activarium.summaries import Count

PERCENTS = np.arange(0, 101)
STEP = 5  # percent, width of a bin of rates
RATES = np.concatenate([[0.0], np.arange(STEP / 2, 100, STEP), [100.0]])  # never, the middles of the bins, always


def rates_of(counts: Mapping[str, Count]) -> Series:
    """How many neurons fire how often, one curve per site."""
    curves = {site: rate_histogram(c.fires, c.rows) for site, c in counts.items()}
    label = "rows in which a neuron fires, % (0 never, 100 always, between them the middle of 5 %)"
    return Series(RATES, curves, label, title="Neurons by firing rate", unit="share of neurons")


def rate_histogram(fires: np.ndarray, rows: int) -> np.ndarray:
    """Share of neurons at each of `RATES`: those that never fired, those of each bin of 5 %, those that fired in every row."""
    never, always = fires == 0, fires == rows
    between = fires[~never & ~always]
    # Whole numbers are compared with whole numbers: a rate of exactly 5 % is always in the lower bin.
    bins = (between * 100 - 1) // (STEP * rows)
    return np.concatenate([[never.sum()], np.bincount(bins, minlength=100 // STEP), [always.sum()]]) / len(fires)


def gini(values: np.ndarray) -> float:
    """Inequality of numbers from 0 up: 0 if all are equal, 1 − 1/n if one has everything; NaN if all are zero."""
    n, ordered = len(values), np.sort(values)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * ordered.sum())) if ordered.sum() else float("nan")


def share_for(rates: np.ndarray, share: float) -> float:
    """The smallest share of neurons that this share of all firings comes from."""
    reached = np.sort(rates)[::-1].cumsum()
    return float((np.searchsorted(reached, share * reached[-1] * (1 - 1e-12)) + 1) / len(rates)) if reached[-1] else float("nan")


def covered(rates: np.ndarray) -> np.ndarray:
    """Percent of all firings in the most active 0, 1, … 100 % of neurons, on a straight line between whole neurons."""
    reached = np.concatenate([[0.0], np.sort(rates)[::-1].cumsum()])
    at = np.interp(PERCENTS / 100 * len(rates), np.arange(len(reached)), reached)
    return 100 * at / reached[-1] if reached[-1] else np.full(len(at), np.nan)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's; NaN where one side is constant."""
    return float(pandas.DataFrame({"one": one, "other": other}).rank().corr().iloc[0, 1])
