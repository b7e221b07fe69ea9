"""Massive beginnings: the same texts with and without their first special token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from activarium.analyses.massive.persistence import persistent_dims
from activarium.analyses.massive.stacks import Layer, check_thresholds, layers_of_run, stack_answer
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.results import Ranking, Report, Result, Series

POLICIES = {"with BOS": True, "without BOS": False}


def massive_beginnings(
    model: Runner, texts: Any, *, absolute: float = 100.0, ratio: float = 1000.0, seed: int = 0, progress: bool = False
) -> Report:
    """Do massive activations need a BOS token, or do they move to whatever comes first?

    Runs the texts twice, with BOS put first and without any special token, and applies the criteria of
    `massive_activations` to both. What is published about a model often holds for one of the two only.

    Args:
        model: A language model with a tokenizer that has a BOS token.
        texts: Texts, not token ids: those have their beginnings already.
        absolute: Smallest size, exclusive, in model units.
        ratio: Smallest multiple of the sequence's median, inclusive.
        seed: Draws the sequences for the intervals.
        progress: Show bars.

    Returns:
        A report with `policies` (ranking: massive numbers with and without BOS, the share of sequences that have one, the largest
        multiple of the median, dimensions, persistent dimensions and most frequent class of rows), `ratio` (series: largest size over
        median per layer under both, averaged over sequences), and each policy's own `hits`, `dimensions`, `largest` and
        `sizes`. Models with several stacks have each part per stack.

    Raises:
        InputError: The tokenizer has no BOS token, or the inputs begin the same way under both policies.

    Source:
        Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762 (criteria; its code runs without BOS); Owen
        et al. 2025, A Refined Analysis of Massive Activations in LLMs, arXiv:2503.22329 (with BOS).

    Differs:
        Both are run on the same texts.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> act.analyses.massive_beginnings(model, ["the cat sat on the book"])["policies"].names
        ('with BOS', 'without BOS')
    """
    check_thresholds(absolute, ratio)
    encoded = {name: model.inputs(texts, bos=policy) for name, policy in POLICIES.items()}
    if len({e.hash for e in encoded.values()}) == 1:
        raise InputError(
            "These inputs begin the same way with and without BOS, as token ids do. Give texts, or compare two runs of massive_activations."
        )
    runs = {name: layers_of_run(model, e, absolute, ratio, progress=progress) for name, e in encoded.items()}
    parts: dict[str, Result] = {}
    words: list[str] = []
    for stack in next(iter(runs.values())):
        answers = {name: stack_answer(stack, layers[stack], absolute, ratio, seed) for name, layers in runs.items()}
        made = {name: Report(answer[0]) for name, answer in answers.items()}
        policies = _policies({name: layers[stack] for name, layers in runs.items()}, made)
        parts[f"{stack} policies".strip()] = policies
        parts[f"{stack} ratio".strip()] = _ratio(made)
        for name, report in made.items():
            parts |= {f"{stack} {part} {name}".strip(): report[part] for part in ("hits", "dimensions", "largest", "sizes")}
        words += [f"{stack}: {line}" if stack else line for line in _words(policies, absolute, ratio)]
    notes = {"absolute": absolute, "ratio": ratio, "sequences": len(next(iter(encoded.values())))}
    return Report(parts, tuple(words), title="Massive activations with and without BOS", unit="model units", diagnostics=notes)


def _policies(runs: Mapping[str, list[Layer]], made: Mapping[str, Report]) -> Ranking:
    columns: dict[str, list[Any]] = {n: [] for n in ("share of sequences", "largest ratio", "dimensions", "persistent", "where")}
    hits = []
    for name, layers in runs.items():
        where = np.concatenate([layer.hits["where"] for layer in layers]).astype(str)
        examples = {e for layer in layers for e in layer.hits["example"].tolist()}
        kinds, count = np.unique(where, return_counts=True)
        hits.append(len(where))
        dims = made[name]["dimensions"]
        largest = made[name]["largest"]
        assert isinstance(dims, Ranking)
        assert isinstance(largest, Ranking)
        row = (
            len(examples) / len(layers[0].measured),
            float(largest.values[0]),
            " ".join(map(str, dims.columns["dim"])),
            " ".join(map(str, persistent_dims(made[name]))),
            str(kinds[count.argmax()]) if len(kinds) else "",
        )
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    arrays = {n: np.array(c, dtype=object if isinstance(c[0], str) else np.float64) for n, c in columns.items()}
    return Ranking(tuple(runs), np.array(hits), arrays, title="Massive numbers with and without BOS", unit="hits")


def _ratio(made: Mapping[str, Report]) -> Series:
    curves, bands, x = {}, {}, np.empty(0)
    for name, report in made.items():
        series = report["ratio"]
        assert isinstance(series, Series)
        x, curves[name], bands[name] = series.x, series.curves["mean"], series.bands["mean"]
    return Series(x, curves, "layer", bands, title="Largest size over median", unit="times the median")


def _words(policies: Ranking, absolute: float, ratio: float) -> list[str]:
    c, (with_bos, without) = policies.columns, policies.values.tolist()
    verdict = {
        (True, True): "massive activations with BOS and without",
        (True, False): "massive activations only with BOS",
        (False, True): "massive activations only without BOS",
        (False, False): "none, neither with BOS nor without",
    }[with_bos > 0, without > 0]
    said = [f"{verdict} (|h| > {absolute:g} and at least {ratio:g} times the sequence's median)."]
    for i, name in enumerate(policies.names):
        found = f"{policies.values[i]:,} in {c['share of sequences'][i]:.0%} of the sequences, dims {c['dimensions'][i]}, mostly at rows of the class {c['where'][i]!r}"
        said.append(f"{name}: {found if policies.values[i] else 'none'}; the largest is {c['largest ratio'][i]:,.0f} times the median.")
    return said
