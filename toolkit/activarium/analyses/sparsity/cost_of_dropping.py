"""What dropping numbers costs a model's answers, as curves with intervals over sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from activarium.analyses.changed_answers import Answers
from activarium.maths import bootstrap_interval
from activarium.results import Series


class Intervals:
    """Means with intervals over sequences, always with the same draws of sequences."""

    def __init__(self, confidence: float, resamples: int, seed: int) -> None:
        self.options = {"confidence": confidence, "resamples": resamples, "seed": seed}

    def ends(self, above: np.ndarray, below: np.ndarray) -> np.ndarray:
        """Lower and upper ends `(2, column)` of Σabove / Σbelow, both `(sequence, column)`; NaN where nothing was counted."""
        found, some = np.full((2, above.shape[1]), np.nan), below.sum(0) > 0
        if some.any():
            found[:, some] = bootstrap_interval(above[:, some], below[:, some], **self.options)[:2]
        return found


def cost_parts(
    x: np.ndarray, x_label: str, answers: Mapping[str, Sequence[Answers]], draw: Intervals, where: str = ""
) -> dict[str, Series]:
    """`KL`, `rise of loss` (where it is known what should be answered) and `agreement`: a curve per name, a point per `x`.

    Args:
        x: What was varied.
        x_label: What it counts.
        answers: Curve → the answers at each `x`.
        draw: The intervals.
        where: End of the titles.
    """
    known = next(iter(answers.values()))[0].known.any()
    wanted = {
        "KL": ("kl", "nats", "KL of the full model from the changed one"),
        **({"rise of loss": ("rise", "nats", "Rise of the loss")} if known else {}),
        "agreement": ("agrees", "share", "Top answers that stay the same"),
    }
    return {part: _series(x, x_label, answers, field, unit, title + where, draw) for part, (field, unit, title) in wanted.items()}


def _series(
    x: np.ndarray, x_label: str, answers: Mapping[str, Sequence[Answers]], field: str, unit: str, title: str, draw: Intervals
) -> Series:
    curves, bands = {}, {}
    for name, many in answers.items():
        sums = [_sums(a, field) for a in many]
        above, below = (np.stack([s[i] for s in sums], 1) for i in (0, 1))
        curves[name], bands[name] = above.sum(0) / below.sum(0), draw.ends(above, below)
    return Series(x, curves, x_label, bands, title=title, unit=unit)


def _sums(answers: Answers, field: str) -> tuple[np.ndarray, np.ndarray]:
    if field == "rise":
        return answers.sums(answers.loss - answers.full_loss, answers.known)
    return answers.sums(getattr(answers, field).astype(np.float64))
