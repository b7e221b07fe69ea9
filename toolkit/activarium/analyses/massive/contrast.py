"""Contrast of a plain answer with a biased one: what stays likely when the bias is subtracted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.layers.answers import Spelling
from activarium.analyses.massive.batches import batches
from activarium.edits import Edit
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.results import Ranking, Series
from activarium.rows import Rows

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)

# Example → positions of its image's tokens that are meant.
Tokens = dict[int, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Logits at the last row of each text, `(example, vocab)` in float64.

    Attributes:
        examples: Numbers of the texts.
        plain: Of the model as it is.
        biased: Of the model that sees less of the image.
        random: Of the model that sees as much, chosen at random.
    """

    examples: tuple[int, ...]
    plain: Tensor
    biased: Tensor
    random: Tensor


def contrasted(plain: Tensor, biased: Tensor, alpha: float, beta: float) -> Tensor:
    """`(1 + alpha) plain − alpha biased`, and −inf where the plain answer has less than `beta` times its largest probability.

    Args:
        plain: Logits `… vocab`.
        biased: Logits of the same shape.
        alpha: How much of the bias is subtracted; 0 leaves the plain logits, cut off.
        beta: 0 cuts nothing off, 1 leaves the top answer alone.
    """
    made = (1 + alpha) * plain - alpha * biased
    if beta == 0:
        return made
    return made.masked_fill(plain < plain.amax(-1, keepdim=True) + np.log(beta), -torch.inf)


def image_positions(rows: Rows) -> dict[int, np.ndarray]:
    """Positions of the image's rows in each text."""
    kind, position = rows["kind"].astype(str), rows["position"]
    return {e: position[rows.span(e)][kind[rows.span(e)] == "image"] for e in rows.examples}


def others_at_random(chosen: Tokens, positions: dict[int, np.ndarray], seed: int) -> Tokens:
    """As many tokens of the same image, drawn from all of them."""
    random = np.random.default_rng(seed)
    return {e: tuple(sorted(int(p) for p in random.choice(positions[e], len(tokens), replace=False))) for e, tokens in chosen.items()}


def hidden(chosen: Tokens, positions: dict[int, np.ndarray]) -> Tokens:
    """The image's tokens that are not chosen."""
    return {e: tuple(int(p) for p in np.setdiff1d(positions[e], tokens)) for e, tokens in chosen.items()}


def run_contrast(
    model: Runner, inputs: Any, biased: Callable[[int], list[Edit]], random: Callable[[int], list[Edit]], progress: bool
) -> Contrast:
    """Three forwards of each text: plain, with the edits of `biased(example)`, with those of `random(example)`.

    Raises:
        InputError: The model does not answer with a next token at each row.
    """
    examples: list[int] = []
    found: list[list[Tensor]] = [[], [], []]
    for here in batches(model, inputs, "contrasting", progress):
        numbers = [int(e) for e in here.numbers]
        edits: Sequence[list[Edit]] = ([], *([e for n in numbers for e in make(n)] for make in (biased, random)))
        for kept, each in zip(found, edits, strict=True):
            kept.append(_last_logits(model, here, each))
        examples += numbers
    plain, other, control = (torch.cat(kept) for kept in found)
    return Contrast(tuple(examples), plain, other, control)


def _last_logits(model: Runner, inputs: Any, edits: Sequence[Edit]) -> Tensor:
    with torch.no_grad():
        logits = model.run(inputs, read="logits", edits=edits)["logits"]
    if logits.axes != ("row", "vocab") or logits.index is None:
        raise InputError(
            f"{model.name} answers with axes {' '.join(logits.axes)!r}; contrast needs the next token at each row, 'row vocab'."
        )
    last = [logits.index.span(e).stop - 1 for e in logits.index.examples]
    return logits.tensor[last].double().cpu()


def answers(model: Runner, contrast: Contrast, counts: Sequence[int], alpha: float, beta: float) -> Ranking:
    """Each text's answer before and after, the one that moves most first."""
    spell = Spelling(model)
    made = contrasted(contrast.plain, contrast.biased, alpha, beta)
    control = contrasted(contrast.plain, contrast.random, alpha, beta)
    moved = divergence(made, contrast.plain)
    before, after = contrast.plain.argmax(1).numpy(), made.argmax(1).numpy()
    columns = {
        "plain answer": spell.table(before),
        "contrasted answer": spell.table(after),
        "changed": before != after,
        "with random tokens": divergence(control, contrast.plain),
        "answers left by the cut-off": made.isfinite().sum(1).numpy(),
        "tokens": np.asarray(counts),
    }
    order = np.argsort(-moved, kind="stable")
    names = tuple(f"example {contrast.examples[i]}" for i in order)
    chosen = {name: column[order] for name, column in columns.items()}
    return Ranking(names, moved[order], chosen, title="Answers after contrast", unit="nats (KL from the plain answer)")


def sweep(contrast: Contrast, beta: float) -> Series:
    """What grows with alpha."""
    made = [contrasted(contrast.plain, contrast.biased, a, beta) for a in ALPHAS]
    control = [contrasted(contrast.plain, contrast.random, a, beta) for a in ALPHAS]
    top = contrast.plain.argmax(1)
    curves = {
        "changed answers": np.array([100 * float((m.argmax(1) != top).double().mean()) for m in made]),
        "with random tokens": np.array([100 * float((m.argmax(1) != top).double().mean()) for m in control]),
    }
    return Series(np.array(ALPHAS), curves, "alpha", title="Texts whose answer changes", unit="percent of texts")


def divergence(changed: Tensor, plain: Tensor) -> np.ndarray:
    """KL(changed ‖ plain) per text, nats: the changed answer is the one without the cut-off answers."""
    logs = changed.log_softmax(1)
    weight = logs.exp()
    return torch.where(weight > 0, weight * (logs - plain.log_softmax(1)), 0).sum(1).clamp_min(0).numpy()


def refuse_settings(alpha: float, beta: float) -> None:
    """Raise for settings that mean nothing.

    Raises:
        InputError: `alpha` is negative or `beta` no share.
    """
    if not alpha >= 0 or not 0 <= beta <= 1:
        raise InputError(f"alpha={alpha}, beta={beta}: alpha is 0 or more, beta from 0 (no cut-off) to 1 (the plain answer alone).")
