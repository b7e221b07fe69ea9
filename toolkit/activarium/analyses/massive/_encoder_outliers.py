"""Encoder outliers: patches that the image encoder's class token attends to, and contrast against an answer that sees only them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.layers.evidence import picture
from activarium.analyses.massive.batches import batches, blocks_of
from activarium.analyses.massive.contrast import (
    Tokens,
    answers,
    hidden,
    image_positions,
    others_at_random,
    refuse_settings,
    run_contrast,
    sweep,
)
from activarium.analyses.massive.visual_attention import image_rows, language_prefix
from activarium.edits import Edit, Set, Where
from activarium.errors import InputError, unknown
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Grid, Overlay, Ranking, Report, Result
from activarium.rows import Rows

UNSEEN = -1e9  # a score: far below all others, and finite, so that a row which sees nothing else still has a softmax


def encoder_outliers(
    model: Runner,
    inputs: Any,
    *,
    top_k: int = 10,
    layer: int | None = None,
    merged: bool = False,
    alpha: float = 1.0,
    beta: float = 0.1,
    image: Any = None,
    example: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Which patches does the image encoder overrate, and what is left without them?

    Attention of the encoder's class token on the patches, at the layer whose output the language model is given; its `top_k` patches are
    the outliers. A biased pass sees the outliers alone (the language model's scores for all other image rows are far below the
    rest), and its logits are subtracted: `(1 + alpha) z − alpha z_biased`, where the plain answer has at least `beta` of its largest
    probability.

    Args:
        model: A vision–language model with an encoder that has a class token and an image inside the text.
        inputs: `dict(text=…, images=…)`, or what the model takes; a text's last row is where its answer begins.
        top_k: How many patches of an image (the paper's settings go from 4 to 10).
        layer: Block of the encoder, counted from 0; by default the one whose output the model's configuration says it uses.
        merged: One softmax over q·k of all heads together, divided by the root of their joint width, as the published code does for LLaVA;
            else the mean over heads of each head's attention.
        alpha: How much of the biased logits is subtracted (0.5 to 2).
        beta: The cut-off.
        image: A picture to lay the attention over, uint8 `(height, width, 3)` or PIL.
        example: The text that is shown.
        seed: Draws the tokens of the control.
        progress: Show bars.

    Returns:
        A report with `patches` (ranking of outliers by attention over their image's mean patch), `answers` (ranking of texts by KL:
        answer before and after, and the KL with as many image rows at random in the place of the outliers), `sweep` (texts whose answer
        changes over alpha) and for the example `attention` (its patch grid) and, with `image`, an `overlay`.

    Raises:
        InputError: There is no image, the encoder has no class token, the rows have no grid, or an argument makes no sense.
        UnknownName: There is no such example.

    Source:
        Gong et al. 2024, DAMRO: Dive into the Attention Mechanism of LVLM to Reduce Object Hallucination, arXiv:2410.04514,
        and its code (both kinds of attention).

    Differs:
        Image rows come from the row table. The published biased pass leaves the other rows out, so that those behind them move up;
        here they keep their positions and nobody sees them. Where one row stands for several patches, it is seen if any of them is
        an outlier. Only the first step is calculated. The random control is ours.

    Example:
        >>> import activarium as act
        >>> encoder_outliers(act.wrap(*act.testing.tiny("llama"), certify=False), ["the cat"])
        Traceback (most recent call last):
        activarium.errors.InputError: LlamaForCausalLM was given no image: ...
    """
    refuse_settings(alpha, beta)
    if top_k < 1:
        raise InputError(f"top_k={top_k} patches leave nothing to see; take at least one.")
    encoded, prefix = model.inputs(inputs), language_prefix(model)
    rows = encoded.batch.rows[prefix.rstrip(".")]
    image_rows(rows, model.name)
    if "vision.blocks.0.attn.pattern" not in model.sites:
        raise InputError(f"{model.name} has no image encoder to read (vision.blocks.0.attn.pattern). Give a vision–language model.")
    if example not in rows.examples:
        raise unknown("example", str(example), [str(e) for e in rows.examples])
    at = _layer(model, layer)
    attention = _attention(model, encoded, at, merged, progress)
    places = {e: _best(a, top_k) for e, a in attention.items()}
    positions = image_positions(rows)
    seen: Tokens = {e: _rows_of(rows, e, positions[e], places[e], attention[e].shape, model.name) for e in attention}
    control = others_at_random(seen, positions, seed)
    blocks = blocks_of(model, prefix)
    contrast = run_contrast(
        model, encoded, _unseen(prefix, blocks, hidden(seen, positions)), _unseen(prefix, blocks, hidden(control, positions)), progress
    )
    parts: dict[str, Result] = {
        "patches": _patches(attention, places),
        "answers": answers(model, contrast, [len(seen[e]) for e in contrast.examples], alpha, beta),
        "sweep": sweep(contrast, beta),
        **_shown(example, attention[example], image),
    }
    notes = {"top_k": top_k, "layer": at, "attention": "merged heads" if merged else "mean over heads", "alpha": alpha, "beta": beta}
    return Report(parts, tuple(_words(parts, at)), title="Encoder outliers", diagnostics=notes)


def _layer(model: Runner, layer: int | None) -> int:
    count = blocks_of(model, "vision.")
    if layer is not None:
        if not 0 <= layer < count:
            raise InputError(f"layer={layer} is none of the encoder's {count} blocks; they count from 0.")
        return layer
    said = getattr(getattr(getattr(model, "torch_module", None), "config", None), "vision_feature_layer", -2)
    state = (said if isinstance(said, int) else list(said)[-1]) % (count + 1)
    return max(state - 1, 0)  # states count from the embedding: state i is the output of block i - 1


def _attention(model: Runner, inputs: Any, layer: int, merged: bool, progress: bool) -> dict[int, np.ndarray]:
    """Attention of the class token on the patch grid of each example."""
    stem = f"vision.blocks.{layer}.attn"
    sites = [f"{stem}.q", f"{stem}.k"] if merged else [f"{stem}.pattern"]
    found: dict[int, np.ndarray] = {}
    for here in batches(model, inputs, "looking at", progress):
        with torch.no_grad():
            rec = model.run(here, read=sites)
        rows = rec.rows["vision"]
        for e in rows.examples:
            kind = rows["kind"][rows.span(e)].astype(str)
            if "cls" not in kind:
                raise InputError(
                    f"The encoder of {model.name} has no class token (rows: {', '.join(sorted(set(kind)))}), whose attention is asked for."
                )
            row = int(np.flatnonzero(kind == "cls")[0])
            share = (
                (_merged(rec, stem, e)[row] if merged else rec[sites[0]].example(e, queries=row).tensor[:, 0].double().mean(0))
                .cpu()
                .numpy()
            )
            y, x = (rows[name][rows.span(e)].astype(int) for name in ("y", "x"))
            patch = kind == "patch"
            grid = np.zeros((y.max() + 1, x.max() + 1))
            grid[y[patch], x[patch]] = share[patch]
            found[int(e)] = grid
    return found


def _merged(rec: Recording, stem: str, example: int) -> Tensor:
    """One attention `query key` of all heads side by side."""
    q, k = (rec[f"{stem}.{leaf}"].example(example).tensor.double().flatten(1) for leaf in "qk")
    return (q @ k.T / q.shape[1] ** 0.5).softmax(1)


def _best(attention: np.ndarray, top_k: int) -> np.ndarray:
    """`(y, x)` of the patches with most attention."""
    order = np.argsort(-attention.ravel(), kind="stable")[:top_k]
    return np.stack(np.unravel_index(order, attention.shape), 1)


def _rows_of(rows: Rows, example: int, positions: np.ndarray, places: np.ndarray, grid: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Positions in the text of the rows that stand for these patches."""
    span = rows.span(example)
    y, x = (rows[c][span].astype(int)[positions] for c in ("y", "x")) if "y" in rows else (np.array([-1]),) * 2
    if not len(positions) or (y < 0).any():
        raise InputError(f"The image rows of example {example} have no grid, so no patch of {name}'s encoder can be found among them.")
    shrink = (grid[0] // (y.max() + 1), grid[1] // (x.max() + 1))
    wanted = {(int(a) // shrink[0], int(b) // shrink[1]) for a, b in places}
    return tuple(int(p) for p, a, b in zip(positions, y, x, strict=True) if (int(a), int(b)) in wanted)


def _unseen(prefix: str, blocks: int, tokens: Tokens) -> Callable[[int], list[Edit]]:
    def edits(example: int) -> list[Edit]:
        where = Where(examples=(example,), keys=tokens[example])
        return [Set(f"{prefix}blocks.{i}.attn.scores", UNSEEN, where=where) for i in range(blocks)] if tokens[example] else []

    return edits


def _patches(attention: dict[int, np.ndarray], places: dict[int, np.ndarray]) -> Ranking:
    found = [
        (e, int(y), int(x), attention[e][y, x] / attention[e].mean(), attention[e][y, x]) for e, where in places.items() for y, x in where
    ]
    found.sort(key=lambda f: -f[3])
    columns = {name: np.array([f[i] for f in found]) for i, name in enumerate(("example", "y", "x"))}
    columns["attention"] = np.array([f[4] for f in found])
    names = tuple(f"example {e}, patch {y},{x}" for e, y, x, *_ in found)
    return Ranking(names, np.array([f[3] for f in found]), columns, title="Encoder outliers", unit="times the mean patch's attention")


def _shown(example: int, grid: np.ndarray, image: Any) -> dict[str, Result]:
    title = f"Attention of the encoder's class token in example {example}"
    parts: dict[str, Result] = {"attention": Grid(grid, ("height", "width"), title=title, unit="share of attention")}
    if image is not None:
        parts["overlay"] = Overlay(grid[None], ("attention",), image=picture(image), title=title, unit="share of attention")
    return parts


def _words(parts: dict[str, Result], layer: int) -> list[str]:
    patches, table = parts["patches"], parts["answers"]
    if not isinstance(patches, Ranking) or not isinstance(table, Ranking):
        return []
    changed = int(np.sum(table.columns["changed"]))
    return [
        f"At block {layer} of the encoder the strongest patch ({patches.names[0]}) has {patches.values[0]:.3g} times the attention of the mean patch.",
        f"Contrast changes the answer of {changed} of {len(table.names)} texts: KL {table.values.mean():.3g} nats, with as many image rows at "
        f"random {np.mean(table.columns['with random tokens']):.3g}.",
    ]
