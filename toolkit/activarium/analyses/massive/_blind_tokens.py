"""Blind tokens: image tokens that a text's answer attends to far more than to the others, and contrast against them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

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
from activarium.edits import Edit, Where, Zero
from activarium.errors import InputError, unknown
from activarium.protocols import Runner
from activarium.results import Grid, Overlay, Ranking, Report, Result, Series

GAUSSIAN = 15.9  # percent of a Gaussian above mean + std


def blind_tokens(
    model: Runner,
    inputs: Any,
    *,
    gamma: float = 0.5,
    spread: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.1,
    image: Any = None,
    example: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Which image tokens does the answer look at for no reason, and what is left without them?

    At the first decoding step: attention of the last row, mean over heads, on each image token. The layers with most attention on
    the image, as few as reach `gamma` of it, are averaged; a token is blind if it has at least mean + `spread` standard deviations over
    the tokens of its own image. A biased pass sees the blind tokens alone (the embeddings of all others are zero), and its logits are
    subtracted: `(1 + alpha) z − alpha z_biased`, where the plain answer has at least `beta` of its largest probability.

    Args:
        model: A vision–language model whose image lies inside the text.
        inputs: `dict(text=…, images=…)`, or what the model takes; a text's last row is where its answer begins.
        gamma: Share of the attention on the image that the chosen layers reach.
        spread: Standard deviations above the mean (the paper's λ).
        alpha: How much of the biased logits is subtracted.
        beta: The cut-off.
        image: A picture to lay the attention over, uint8 `(height, width, 3)` or PIL.
        example: The text that is shown.
        seed: Draws the tokens of the control.
        progress: Show bars.

    Returns:
        A report with `layers` (each layer's percent of the attention on the image, mean over texts, and how often it is chosen), `tokens`
        (ranking of blind tokens by attention over the mean of their image), `answers` (ranking of texts by KL: answer before and after,
        and the KL with as many tokens at random in the place of the blind ones), `sweep` (texts whose answer changes over alpha)
        and for the example, where its rows have a grid, `attention` and, with `image`, an `overlay`.

    Raises:
        InputError: There is no image, it has a single row, or an argument makes no sense.
        UnknownName: There is no such example.

    Source:
        Woo et al. 2024, Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision Language Models,
        arXiv:2405.17820, and its code.

    Differs:
        Positions come from the row table, and mean and spread from one image alone (the code pools a batch). Only the first step is
        calculated. A token without an embedding still has its place. The random control is ours.

    Example:
        >>> import activarium as act
        >>> blind_tokens(act.wrap(*act.testing.tiny("llama"), certify=False), ["the cat"])
        Traceback (most recent call last):
        activarium.errors.InputError: LlamaForCausalLM was given no image: ...
    """
    refuse_settings(alpha, beta)
    if not 0 < gamma <= 1:
        raise InputError(f"gamma={gamma} is no share of the attention; give a number above 0, up to 1 (the paper uses 0.5).")
    encoded, prefix = model.inputs(inputs), language_prefix(model)
    rows = encoded.batch.rows[prefix.rstrip(".")]
    image_rows(rows, model.name)
    positions = image_positions(rows)
    if example not in positions:
        raise unknown("example", str(example), [str(e) for e in positions])
    short = next((e for e, p in positions.items() if len(p) < 2), None)
    if short is not None:
        raise InputError(
            f"Example {short} has {len(positions[short])} rows of an image; a spread needs two or more. Give each text an image."
        )
    looked = _attention(model, encoded, prefix, positions, progress)
    layers = {e: chosen_layers(a.sum(1), gamma) for e, a in looked.items()}
    mean = {e: a[layers[e]].mean(0) for e, a in looked.items()}
    blind: Tokens = {e: tuple(int(p) for p in positions[e][is_blind(a, spread)]) for e, a in mean.items()}
    control = others_at_random(blind, positions, seed)
    contrast = run_contrast(
        model, encoded, _zeroed(prefix, hidden(blind, positions)), _zeroed(prefix, hidden(control, positions)), progress
    )
    parts: dict[str, Result] = {
        "layers": _layers(looked, layers),
        "tokens": _tokens(positions, mean, blind),
        "answers": answers(model, contrast, [len(blind[e]) for e in contrast.examples], alpha, beta),
        "sweep": sweep(contrast, beta),
        **_shown(rows, example, positions[example], mean[example], image),
    }
    notes = {"gamma": gamma, "spread": spread, "alpha": alpha, "beta": beta, "texts": len(positions)}
    return Report(parts, tuple(_words(parts, positions, blind)), title="Blind tokens", diagnostics=notes)


def _attention(model: Runner, inputs: Any, prefix: str, positions: dict[int, np.ndarray], progress: bool) -> dict[int, np.ndarray]:
    """Attention of each text's last row on its image, mean over heads, `(layer, token)`."""
    sites = [f"{prefix}blocks.{i}.attn.pattern" for i in range(blocks_of(model, prefix))]
    found: dict[int, np.ndarray] = {}
    for here in batches(model, inputs, "looking at", progress):
        with torch.no_grad():
            rec = model.run(here, read=sites)
        for e in (int(n) for n in here.numbers):
            last = [rec[site].example(e, queries=-1).tensor[:, 0].double().mean(0) for site in sites]
            found[e] = torch.stack(last)[:, positions[e]].cpu().numpy()
    return found


def chosen_layers(attention: np.ndarray, gamma: float) -> np.ndarray:
    """The fewest layers that reach a share of the attention of all of them, the strongest first."""
    order = np.argsort(-attention, kind="stable")
    reached = attention[order].cumsum() / attention.sum()
    return order[: int(np.searchsorted(reached, gamma - 1e-12)) + 1]


def is_blind(attention: np.ndarray, spread: float) -> np.ndarray:
    """Tokens at or above the mean plus `spread` standard deviations (divided by their number less one)."""
    return attention >= attention.mean() + spread * attention.std(ddof=1)


def _zeroed(prefix: str, tokens: Tokens) -> Any:
    def edits(example: int) -> list[Edit]:
        where = Where(examples=(example,), positions=tokens[example])
        return [Zero(f"{prefix}embed", where=where)] if tokens[example] else []

    return edits


def _layers(looked: dict[int, np.ndarray], layers: dict[int, np.ndarray]) -> Series:
    share = np.stack([100 * a.sum(1) / a.sum() for a in looked.values()])
    taken = np.stack([100.0 * np.isin(np.arange(share.shape[1]), layers[e]) for e in looked])
    curves = {"attention on the image": share.mean(0), "chosen": taken.mean(0)}
    return Series(
        np.arange(share.shape[1]), curves, "layer", title="Where the last row looks at the image", unit="percent (of all layers; of texts)"
    )


def _tokens(positions: dict[int, np.ndarray], mean: dict[int, np.ndarray], blind: Tokens) -> Ranking:
    found = [(e, p) for e, tokens in blind.items() for p in tokens]
    times = np.array([mean[e][positions[e] == p][0] / mean[e].mean() for e, p in found])
    order = np.argsort(-times, kind="stable")
    columns = {"example": np.array([found[i][0] for i in order], int), "position": np.array([found[i][1] for i in order], int)}
    names = tuple(f"example {found[i][0]}, position {found[i][1]}" for i in order)
    return Ranking(names, times[order], columns, title="Blind tokens", unit="times the image's mean attention")


def _shown(rows: Any, example: int, positions: np.ndarray, attention: np.ndarray, image: Any) -> dict[str, Result]:
    span = rows.span(example)
    y, x = (rows[name][span].astype(int)[positions] for name in ("y", "x")) if "y" in rows else (np.array([-1]),) * 2
    if (y < 0).any():
        return {}
    grid = np.zeros((y.max() + 1, x.max() + 1))
    grid[y, x] = attention
    title = f"Attention of the last row on the image of example {example}"
    parts: dict[str, Result] = {"attention": Grid(grid, ("height", "width"), title=title, unit="share of attention")}
    if image is not None:
        parts["overlay"] = Overlay(grid[None], ("attention",), image=picture(image), title=title, unit="share of attention")
    return parts


def _words(parts: dict[str, Result], positions: dict[int, np.ndarray], blind: Tokens) -> list[str]:
    every, found = sum(map(len, positions.values())), sum(map(len, blind.values()))
    table = parts["answers"]
    said = [
        f"{found:,} of {every:,} image tokens are blind ({100 * found / every:.1f} %; of a Gaussian {GAUSSIAN} % lie above mean + std)."
    ]
    if isinstance(table, Ranking):
        changed = int(np.sum(table.columns["changed"]))
        said.append(
            f"Contrast changes the answer of {changed} of {len(table.names)} texts: KL {table.values.mean():.3g} nats, with as many tokens at "
            f"random {np.mean(table.columns['with random tokens']):.3g}."
        )
    return said
