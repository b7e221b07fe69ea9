"""Attention between a text and the image inside it: sink tokens, image-centric heads, and moving the sinks' share to other patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.edits import Edit, Replace, Where
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.rows import Rows

EPSILON = 1e-6  # of the RMS, as in the language model's own norm


@dataclass(frozen=True)
class SinkRule:
    """When a token is a sink, when a head is image-centric, and how much is moved.

    Attributes:
        dims: Sink dimensions of the language model.
        tau: Smallest phi of a sink.
        rho: Smallest share of a query's visual attention on patches that are no sinks.
        least: Smallest visual attention of a query at which its head is asked at all.
        remove: Share of the sinks' attention that is moved.
    """

    dims: tuple[int, ...]
    tau: float
    rho: float
    least: float
    remove: float


def language_prefix(model: Runner) -> str:
    """Where the blocks that read text and image together are.

    Raises:
        InputError: The model has none whose patterns could be edited.
    """
    for prefix in ("text.", ""):
        if f"{prefix}blocks.0.attn.pattern" in model.sites:
            return prefix
    raise InputError(f"{model.name} has no attention patterns to read (text.blocks.0.attn.pattern). Give a vision–language model.")


def image_rows(rows: Rows, name: str) -> np.ndarray:
    """Which rows are those of an image inside a text.

    Raises:
        InputError: None is; the message says what to pass.
    """
    found = rows["kind"].astype(str) == "image"
    if not found.any():
        raise InputError(
            f"{name} was given no image: no row has the kind 'image'. Pass dict(text=…, images=…), with an image token in each text."
        )
    return found


def phi(values: Tensor, dims: Sequence[int]) -> Tensor:
    """Largest |x| over the sink dimensions, over the root mean square of the token; at most √d_model.

    Args:
        values: Input of a block, `row d_model`.
        dims: Sink dimensions; none gives zeros.
    """
    wide = values.detach().double()
    if not len(dims):
        return wide.new_zeros(len(wide))
    rms = (wide.square().mean(1) + EPSILON).sqrt()
    return wide[:, list(dims)].abs().amax(1) / rms


def image_centric(pattern: Tensor, image: Tensor, sinks: Tensor, rho: float, least: float) -> Tensor:
    """Does a head, for a query, look at the image, and there mostly at patches that are no sinks? `head query`.

    Args:
        pattern: `head query key`.
        image: Which keys are rows of the image.
        sinks: Which keys are sinks, of any kind.
        rho: Smallest share on patches that are no sinks, inclusive.
        least: Smallest attention on the image, inclusive.
    """
    visual, free = pattern[..., image].sum(-1), pattern[..., image & ~sinks].sum(-1)
    return (visual >= least) & (free >= rho * visual) & (free > 0)


def redistributed(pattern: Tensor, image: Tensor, sinks: Tensor, asking: Tensor, rule: SinkRule) -> Tensor:
    """A pattern in which image-centric heads look less at sinks and as much more at the other patches; all else bit for bit.

    Args:
        pattern: `head query key`, rows that sum to 1.
        image: Which keys are rows of the image.
        sinks: Which keys are sinks; those outside the image give as well.
        asking: Which queries are changed.
        rule: How much is moved, and where.
    """
    chosen = image_centric(pattern, image, sinks, rule.rho, rule.least) & asking
    free = image & ~sinks
    moved = rule.remove * pattern[..., sinks].sum(-1, keepdim=True)
    # Each free patch grows in proportion to what it has: a key that the mask hides has nothing and gets nothing.
    growth = 1 + moved / pattern[..., free].sum(-1, keepdim=True).clamp_min(torch.finfo(pattern.dtype).tiny)
    changed = torch.where(free, pattern * growth, torch.where(sinks, pattern * (1 - rule.remove), pattern))
    return torch.where(chosen[..., None], changed, pattern)


def redistribution(
    prefix: str, blocks: Sequence[int], rule: SinkRule, random: np.random.Generator | None = None
) -> Callable[[Any], list[Edit]]:
    """Edits for a batch: each block's sinks are found at its own input, in the same forward, and its pattern is redistributed.

    Args:
        prefix: Of the language blocks.
        blocks: Blocks whose patterns are changed.
        rule: What is changed.
        random: Draw as many other tokens in the place of the sinks: a control.
    """

    def edits(inputs: Any) -> list[Edit]:
        rows: Rows = inputs.batch.rows[prefix.rstrip(".")]
        found: dict[tuple[int, int], Tensor] = {}
        made: list[Edit] = []
        for block in blocks:
            made.append(Replace(f"{prefix}blocks.{block}.resid_pre", _look(rows, block, rule, random, found)))
            for example in rows.examples:
                image = torch.from_numpy(rows["kind"][rows.span(example)].astype(str) == "image")
                change = _change(image, found, (block, example), rule)
                made.append(Replace(f"{prefix}blocks.{block}.attn.pattern", change, where=Where(examples=(example,))))
        return made

    return edits


def _look(
    rows: Rows, block: int, rule: SinkRule, random: np.random.Generator | None, found: dict[tuple[int, int], Tensor]
) -> Callable[[Tensor], Tensor]:
    def by(values: Tensor) -> Tensor:
        sizes = phi(values, rule.dims).cpu()
        for example in rows.examples:
            span = rows.span(example)
            sinks = sizes[span] >= rule.tau
            image = torch.from_numpy(rows["kind"][span].astype(str) == "image")
            found[block, example] = sinks if random is None else _others(sinks, image, random)
        return values

    return by


def _others(sinks: Tensor, image: Tensor, random: np.random.Generator) -> Tensor:
    """As many tokens that are no sinks, inside and outside the image (fewer where there are not enough)."""
    made = torch.zeros_like(sinks)
    for place in (image, ~image):
        free = (place & ~sinks).nonzero()[:, 0].numpy()
        wanted = min(int((place & sinks).sum()), len(free))
        made[torch.from_numpy(random.choice(free, wanted, replace=False))] = True
    return made


def _change(image: Tensor, found: dict[tuple[int, int], Tensor], key: tuple[int, int], rule: SinkRule) -> Callable[[Tensor], Tensor]:
    def by(pattern: Tensor) -> Tensor:
        here, sinks = image.to(pattern.device), found[key].to(pattern.device)
        return redistributed(pattern, here, sinks, ~here, rule)

    return by
