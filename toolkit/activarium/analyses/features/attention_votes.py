"""How well heads that vote classify examples they were not fitted on, beside one head, all heads, the stream, and shuffled labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features.attention_rows import Vectors
from activarium.analyses.features.attention_vectors import AttentionVectors, cosines_to, fitted
from activarium.errors import InputError
from activarium.maths import bootstrap_interval
from activarium.results import Ranking

KEPT = "kept heads"


@dataclass(frozen=True)
class Split:
    """Examples to fit on and examples to ask, both as places in the recording's order."""

    fit: np.ndarray
    ask: np.ndarray


def split(labels: np.ndarray, shots: int | None, seed: int) -> Split:
    """`shots` examples of each class, drawn once, to fit on; all others are asked.

    Raises:
        InputError: A class has too few, or nothing is left to ask.
    """
    generator = np.random.default_rng(seed)
    classes, counts = np.unique(labels.astype(str), return_counts=True)
    few = int(counts.argmin())
    wanted = int(counts[few]) // 2 if shots is None else shots
    if wanted < 2:
        raise InputError(
            f"{wanted} example(s) per class are too few: heads are scored on examples left out of their class mean. "
            f"Class {classes[few]!r} has {int(counts[few])}; give at least 4 of each, and shots=2 or more."
        )
    if counts[few] < wanted + 1:
        raise InputError(
            f"Class {classes[few]!r} has {int(counts[few])} examples; shots={wanted} leaves none of them to ask. Record more, or lower shots."
        )
    fit = np.sort(np.concatenate([generator.permutation(np.flatnonzero(labels == c))[:wanted] for c in classes]))
    return Split(fit, np.setdiff1d(np.arange(len(labels)), fit))


def nearest_mean(fit: Tensor, target: np.ndarray, ask: Tensor) -> np.ndarray:
    """The class whose mean has the largest cosine: one vector per example, `example feature`."""
    classes = sorted(set(target.tolist()))
    means = torch.stack([fit[torch.as_tensor(target == name)].mean(0) for name in classes])
    return np.array(classes, dtype=object)[cosines_to(ask, means).argmax(1).numpy()]


def shuffled(
    fit: Vectors, labels: np.ndarray, ask: Vectors, truth: np.ndarray, heads: int, rows: str, *, times: int, seed: int
) -> np.ndarray:
    """Accuracy on the asked examples after fitting on labels that were dealt out anew, `(time,)`: what there is to gain by chance."""
    generator = np.random.default_rng([seed, 1])
    made = [fitted(fit, generator.permutation(labels), heads, rows).answers(ask) for _ in range(times)]
    return np.array([float((m == truth).mean()) for m in made])


def accuracies(
    answers: Mapping[str, np.ndarray], truth: np.ndarray, chance: Mapping[str, tuple[float, float, float]], confidence: float
) -> Ranking:
    """Share of right answers of each method, with its interval and its distance from the kept heads on the same examples.

    Args:
        answers: Method → answers; the first are the kept heads.
        truth: What is right.
        chance: Method → share, lower and upper end, for what has no answers of its own.
        confidence: Of the intervals.
    """
    from scipy.stats import binomtest

    right = {name: found == truth for name, found in answers.items()}
    ends = [binomtest(int(r.sum()), len(r)).proportion_ci(confidence, method="wilson") for r in right.values()]
    apart = np.stack([right[KEPT].astype(float) - r for r in right.values()], 1)
    low, high, _ = bootstrap_interval(apart, np.ones_like(apart), confidence=confidence)
    none = [np.nan] * len(chance)
    columns: dict[str, np.ndarray] = {
        "low": np.array([e.low for e in ends] + [c[1] for c in chance.values()]),
        "high": np.array([e.high for e in ends] + [c[2] for c in chance.values()]),
        "kept heads better by": np.array([*apart.mean(0), *none]),
        "better by, low": np.array([*low, *none]),
        "better by, high": np.array([*high, *none]),
    }
    values = np.array([r.mean() for r in right.values()] + [c[0] for c in chance.values()])
    title = f"Right answers on {len(truth)} examples that nothing was fitted on"
    return Ranking(
        (*right, *chance),
        values,
        columns,
        title=title,
        unit="share",
        diagnostics={"interval": f"Wilson, {confidence:.0%}; differences: bootstrap over examples"},
    )


def by_count(model: AttentionVectors, ask: Vectors, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right answers with the best 1, 2, 3, 5, 10, … of the ranked heads, up to all."""
    total = len(model.ranked)
    counts = np.array([n for n in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500) if n < total] + [total])
    return counts, np.array([float((model.answers(ask, model.ranked[:n]) == truth).mean()) for n in counts])


def interval_of(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Mean of repetitions, and the bounds that hold `confidence` of them."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(values.mean()), float(low), float(high)
