"""What replacing massive numbers cost: KL at their rows and at the others, loss and agreement, as tables and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from activarium.analyses.changed_answers import Answers
from activarium.analyses.massive.calibration import Hits
from activarium.errors import InputError
from activarium.maths import bootstrap_interval
from activarium.protocols import Runner
from activarium.results import Grid, Overlay, Ranking, Result


def cost_parts(model: Runner, inputs: Any, answers: Mapping[str, Answers], hits: Hits, example: int | None, seed: int) -> dict[str, Result]:
    """`cost`, and for models that answer row by row `KL by position` and `rows`."""
    first = next(iter(answers.values()))
    if example is not None and example not in first.example:
        raise InputError(
            f"There is no example {example} among the inputs; they are numbered {first.example.min()} to {first.example.max()}."
        )
    parts: dict[str, Result] = {"cost": _cost(answers, hits, seed)}
    encoded = model.inputs(inputs)
    if len(first) > len(encoded):
        shown = int(hits.example[0]) if example is None else example
        parts |= {"KL by position": _by_position(answers, hits), "rows": _rows(model, encoded, answers, hits, shown)}
    return parts


def massive_rows(answers: Answers, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are at a massive row, and which are another row of the same sequences."""
    cells = set(zip(hits.example.tolist(), hits.position.tolist(), strict=True))
    at = np.array([cell in cells for cell in zip(answers.example.tolist(), answers.position.tolist(), strict=True)])
    return at, np.isin(answers.example, hits.example) & ~at


def _cost(answers: Mapping[str, Answers], hits: Hits, seed: int) -> Ranking:
    columns: dict[str, list[float]] = {
        n: [] for n in ("KL", "low", "high", "at massive rows", "at other rows", "rise of loss", "agreement")
    }
    for found in answers.values():
        at, other = massive_rows(found, hits)
        above, below = found.sums(found.kl)
        low, high, _ = bootstrap_interval(above[:, None], below[:, None], seed=seed)
        rise = found.mean("loss") - found.mean("full_loss")
        row = (found.mean("kl"), low[0], high[0], found.mean("kl", at), found.mean("kl", other), rise, found.mean("agrees"))
        for name, number in zip(columns, row, strict=True):
            columns[name].append(float(number))
    order = np.argsort(-np.array(columns["KL"]), kind="stable")
    kl, *rest = ({name: np.array(c)[order] for name, c in columns.items()}).items()
    names = tuple(list(answers)[i] for i in order)
    return Ranking(names, kl[1], dict(rest), title="Cost of replacing the massive numbers, nats (agreement: share)", unit="KL")


def _by_position(answers: Mapping[str, Answers], hits: Hits) -> Grid:
    """Averaged over the sequences that have a massive number; the others are not changed."""
    first = next(iter(answers.values()))
    chosen = np.isin(first.example, hits.example)
    position = first.position[chosen]
    count = np.bincount(position)
    values = np.stack([np.bincount(position, a.kl[chosen]) for a in answers.values()]) / np.maximum(count, 1)
    labels = {"mode": list(answers)}
    return Grid(
        values, ("mode", "position"), labels, {"no_row": np.tile(count == 0, (len(values), 1))}, title="KL by position", unit="nats"
    )


def _rows(model: Runner, encoded: Any, answers: Mapping[str, Answers], hits: Hits, example: int) -> Overlay:
    first = next(iter(answers.values()))
    here = first.example == example
    at = massive_rows(first, hits)[0][here]
    place = list(encoded.numbers).index(example)
    logits = model.run(encoded.select([place]), read="logits")["logits"]
    assert logits.index is not None
    tokens = tuple(str(t) for t in logits.index["text"])
    values = np.stack([a.kl[here] for a in answers.values()])
    where = ", ".join(map(str, np.flatnonzero(at))) or "none"
    return Overlay(values, tuple(answers), tokens, title=f"KL at each row of example {example}; massive rows: {where}", unit="nats")


def cost_words(cost: Ranking, answers: Mapping[str, Answers], hits: Hits) -> list[str]:
    """What each mode costs, and what that says about the numbers."""
    first = next(iter(answers.values()))
    examples = len(np.unique(first.example))
    said = [f"{len(hits):,} massive numbers in {len(np.unique(hits.example)):,} of {examples:,} sequences were replaced."]
    c = cost.columns
    for i, mode in enumerate(cost.names):
        loss = "" if np.isnan(c["rise of loss"][i]) else f", loss {c['rise of loss'][i]:+.3g} nats"
        parts = ""
        if not np.isnan(c["at other rows"][i]):
            parts = f" ({c['at massive rows'][i]:.3g} at the massive rows, {c['at other rows'][i]:.3g} at the others)"
        said.append(f"{mode}: KL {cost.values[i]:.3g} nats{parts}{loss}, {c['agreement'][i]:.1%} of the top answers unchanged.")
    return said
