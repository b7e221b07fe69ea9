"""Input relevance: how much each token or patch has to do with one number of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.layers.evidence import picture
from activarium.analyses.patching.leaves import Leaves, leaves
from activarium.analyses.patching.paths import path_leaves
from activarium.analyses.patching.secants import secant_leaves
from activarium.analyses.patching.sides import check_gradients
from activarium.errors import InputError, unknown
from activarium.metrics import Metric
from activarium.protocols import Runner
from activarium.results import Overlay
from activarium.rules import PRESETS, Rules

PLAIN, PATH, SECANT = "gradient_x_input", "integrated_gradients", "deeplift"
METHODS = (*PRESETS, PLAIN, PATH, SECANT)


def input_relevance(
    model: Runner,
    inputs: Any,
    metric: Metric,
    *,
    method: str = "relp-ah",
    steps: int = 10,
    example: int = 0,
    image: Any = None,
    space: str | None = None,
) -> Overlay:
    """Which tokens or patches does the answer rest on?

    Relevance of a row is `<e, c>`: its embedding as it enters the first block, times the coefficient that a method gives the
    metric there. With `relp-ah` (norm scales, patterns, activation ratios and gates held, each by its rule) embeddings and
    biases add up to the metric exactly, for metrics that are linear in logits. No other method conserves it: what is left over
    is listed, never hidden. Biases are leaves: without them the rows alone add up to something else.

    Args:
        model: A loaded model.
        inputs: Texts, token ids, images or a dict of them, as for `model.run`.
        metric: One number per input, such as `logit_difference` or `class_logit`.
        method: A set of rules (`relp-ah`, `relp`, `attnlrp`, `gim`, `ln`, `ln-id`), `gradient_x_input`, or against a baseline without token
            or patch embeddings (positions unchanged) `integrated_gradients` or `deeplift`, slopes between the two runs.
        steps: Midpoints on the path of integrated gradients.
        example: Which input.
        image: The picture to lay patches over, uint8 `(height, width, 3)` or PIL; taken from `inputs` where it is there.
        space: Row space that is drawn where there are several (`encoder`, `vision`); by default the first. The others are listed.

    Returns:
        Signed relevance over the tokens, or over the patch grid, in the metric's unit. `diagnostics` lists every leaf: rows by kind
        (CLS and registers take a share of their own), biases, remainder, and says in `conservation` whether they add up. For
        `integrated_gradients` and `deeplift`, `completeness_error` is the share of the metric's change that is missed.

    Raises:
        UnknownName: No such method or row space; those that exist are listed.
        InputError: No such example, float16 weights, no picture, or a model without `token_embed` (methods with a baseline) or
            with parts that no secant passes (`deeplift`: experts, TransformerLens' attention).

    Source:
        Ali et al. 2022, XAI for Transformers, arXiv:2202.07304; Achtibat et al. 2024, AttnLRP, arXiv:2402.05602; Rezaei Jafari et al.
        2025, RelP, arXiv:2508.21258; Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, arXiv:1703.01365; Shrikumar
        et al. 2017, DeepLIFT, arXiv:1704.02685 (rescale rule).

    Differs:
        Bias leaves and the remainder are reported; integrals are midpoint sums, which need fewer steps than left sums. `deeplift`
        has secants of our own for norms and attention (see `activarium.rules.Secant`), so that its sums are exact.

    Example:
        >>> import activarium as act
        >>> from activarium.metrics import logit_difference
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> found = input_relevance(model, ["Anna gave Tom the book"], logit_difference([7], [11]))
        >>> found.tokens
        ('Anna', 'gave', 'Tom', 'the', 'book')
        >>> bool(abs(found.diagnostics["remainder"]) < 1e-4)
        True
    """
    if method not in METHODS:
        raise unknown("method of input relevance", method, METHODS)
    check_gradients(model)
    given = model.inputs(inputs)
    if not -len(given) <= example < len(given):
        raise InputError(f"example={example}; there are {len(given)} inputs, counted from 0.")
    example %= len(given)
    drawn = next(iter(given.data)) if space is None else space
    if drawn not in given.data:
        raise unknown("row space among these inputs", drawn, given.data)
    chosen, alone = _only(model, given, metric, example)
    if method == PATH:
        found, notes = path_leaves(model, chosen, alone, steps)
    elif method == SECANT:
        found, notes = secant_leaves(model, chosen, alone)
    else:
        found = leaves(model, chosen, alone, None if method == PLAIN else Rules.named(method))
        notes = {"conservation": _words(found, method, metric)} | _bound(found.rules)
    settings = {"method": method, "metric name": metric.name, "example": example}
    marks = {"title": f"Relevance for {metric.name} ({method})", "unit": metric.unit, "diagnostics": settings | notes | found.listed()}
    return _overlay(found, drawn, example, method, marks, lambda: _picture(inputs, example, image))


def _only(model: Any, given: Any, metric: Metric, example: int) -> tuple[Any, Metric]:
    """One input alone. Where inputs meet in one answer (images and texts of two towers) all run, and one is measured."""
    if len(given.data) == 1 or model.sites["logits"].axes != "example class":
        return given.select([example]), metric.select([example])

    def read(logits: Tensor, number: Tensor) -> Tensor:
        value = metric.of(logits, number.cpu().numpy(), picked=metric.columns is not None)
        return value * (torch.arange(len(value), device=value.device) == example)

    return given, replace(metric, read=read)


def _words(found: Leaves, method: str, metric: Metric) -> str:
    embeddings = sum(float(r.sum()) for r in found.embeddings.values())
    sums = f"embeddings {embeddings:.4g} + biases {found.biases:.4g}"
    if found.conserved:
        return f"conserved: {sums} = metric {found.metric:.4g} (remainder {found.remainder:.1e})"
    missed = f"not conserved: {sums} leave {found.remainder:.4g} of the metric {found.metric:.4g}"
    if method != "relp-ah":
        return f"{missed}; {method} does not promise it, relp-ah does"
    notes = (found.rules or {}).get("notes") or [f"{metric.name} may not be linear in the logits"]
    return f"{missed}; {'; '.join(notes)}"


def _bound(rules: Mapping[str, Any] | None) -> dict[str, Any]:
    """How many modules each rule acted on."""
    if rules is None:
        return {}
    return {f"rule {n}": rules[n] for n in ("norms", "activations", "gates", "attention")} | (
        {"not bound": rules["notes"]} if rules["notes"] else {}
    )


def _overlay(found: Leaves, space: str, example: int, method: str, marks: Mapping[str, Any], image: Any) -> Overlay:
    rows, relevance = found.rows[space], found.embeddings[space].numpy()
    span = rows.span(example)
    rows, relevance = rows.take(span), relevance[span]
    patches = np.flatnonzero(rows["kind"].astype(str) == "patch") if "y" in rows else np.empty(0, int)
    if not len(patches):
        return Overlay(relevance[None], (method,), tokens=tuple(str(t) for t in rows["text"]), **marks)
    y, x = rows["y"][patches].astype(int), rows["x"][patches].astype(int)
    grid = np.full((1, y.max() + 1, x.max() + 1), np.nan)
    grid[0, y, x] = relevance[patches]
    return Overlay(grid, (method,), image=image(), **marks)


def _picture(inputs: Any, example: int, image: Any) -> np.ndarray:
    if image is not None:
        return picture(image)
    held = next((inputs[k] for k in ("images", "image") if k in inputs), None) if isinstance(inputs, Mapping) else inputs
    if hasattr(held, "convert") or getattr(held, "ndim", 0) == 3:
        held = [held]
    if not isinstance(held, (list, tuple)):
        raise InputError(
            "These inputs are encoded, so the picture is not among them. Give it: image=picture, uint8 (height, width, 3) or PIL."
        )
    return picture(held[example])
