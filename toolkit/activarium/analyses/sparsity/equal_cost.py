"""How much can be dropped for one price: what makes definitions of sparsity comparable."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from activarium.results import Ranking


def at_equal_cost(
    shares: Mapping[str, np.ndarray], costs: Mapping[str, np.ndarray], budget: float, all_or_some: Collection[str] = ()
) -> Ranking:
    """The share that each method drops before it costs more than the budget, on a straight line between the points measured.

    Args:
        shares: Method → share dropped at each point.
        costs: Method → its KL there, nats.
        budget: KL, nats.
        all_or_some: Methods that cannot drop less than at their first point: 0 where that is too dear.
    """
    value = {m: _crossing(share, costs[m], budget, 0.0 if m not in all_or_some else np.inf) for m, share in shares.items()}
    names = sorted(value, key=lambda method: -value[method])
    columns = {"within budget at every target": np.array([bool((costs[m] <= budget).all()) for m in names])}
    return Ranking(
        tuple(names), np.array([value[m] for m in names]), columns, title=f"Share dropped at a KL of {budget:g} nats", unit="share"
    )


def equal_cost_words(ranking: Ranking, budget: float) -> list[str]:
    """Who drops most for this price, and who cannot be told apart because the price was never reached."""
    open_ended = [n for n, within in zip(ranking.names, ranking.columns["within budget at every target"], strict=True) if within]
    said = [
        f"before KL exceeds {budget:g} nats, {ranking.names[0]} drops most, {100 * ranking.values[0]:.1f} %, and {ranking.names[-1]} least, "
        f"{100 * ranking.values[-1]:.1f} % (on a straight line between the targets; TEAL drops at other sites than the rest)."
    ]
    more = f"within this budget at every target, so that more could be dropped: {', '.join(open_ended)}. Ask for higher targets."
    return [*said, more] if open_ended else said


def _crossing(share: np.ndarray, costs: np.ndarray, budget: float, nothing: float) -> float:
    """Where the line first exceeds the budget, from no share at the cost `nothing`; the last share if it never does."""
    order = np.argsort(share, kind="stable")
    share, costs = np.concatenate([[0.0], share[order]]), np.concatenate([[nothing], costs[order]])
    over = np.flatnonzero(costs[1:] > budget) + 1
    if not len(over):
        return float(share[-1])
    i = int(over[0])
    if not np.isfinite(costs[i - 1]):
        return 0.0
    return float(share[i - 1] + (share[i] - share[i - 1]) * (budget - costs[i - 1]) / (costs[i] - costs[i - 1]))
