"""Images inside texts: how many rows an image takes in a vision–language model, and where in its grid each of them lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from activarium.capture._inputs import Space
from activarium.errors import InputError


def measure(model: Any, spaces: Mapping[str, Space], pixels: Tensor) -> dict[str, Space]:
    """The text space with its image token, the rows that one image takes, and their grid, as the model's own projector says."""
    token = image_token(model.config)
    if token is None or set(spaces) != {"vision", "text"} or not hasattr(model, "get_image_features"):
        return dict(spaces)
    with torch.no_grad():
        found = model.get_image_features(pixels)
    features = getattr(found, "pooler_output", found)
    parts = [features] if isinstance(features, Tensor) else [f for f in features if isinstance(f, Tensor)]
    rows = sum(p.numel() // p.shape[-1] for p in parts) // len(pixels)
    height, width = spaces["vision"].grid(pixels)
    shrink = next((k for k in (1, 2, 3, 4) if rows * k * k == height * width), None)
    grid = (0, 0) if shrink is None else (height // shrink, width // shrink)
    return {**spaces, "text": replace(spaces["text"], image_token=token, image_rows=rows, image_grid=grid)}


def image_token(config: Any) -> int | None:
    """The id that stands for an image in a text, or None."""
    found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((int(i) for i in found if i is not None), None)


def probe_text(space: Space, ids: Tensor) -> Tensor:
    """Probe tokens with an image after the first one."""
    if space.image_token is None:
        return ids
    image = ids.new_full((*ids.shape[:-1], space.image_rows), space.image_token)
    return torch.cat([ids[..., :1], image, ids[..., 1:]], -1)


def expand(texts: Sequence[Tensor], space: Space, images: int | None) -> list[Tensor]:
    """Texts in which the image has as many tokens as it has rows.

    Raises:
        InputError: Images and image tokens do not match.
    """
    if images is not None and images != len(texts):
        raise InputError(f"There are {len(texts)} texts and {images} images; give one image for each text.")
    return [_one(text, space, i, images is not None) for i, text in enumerate(texts)]


def _one(text: Tensor, space: Space, i: int, given: bool) -> Tensor:
    here = text == space.image_token
    count, wanted = int(here.sum()), space.image_rows if given else 0
    if count == wanted:
        return text
    if not given:
        raise InputError(
            f"Text {i} holds {count} image tokens (id {space.image_token}), but no image was given; pass dict(text=…, images=…)."
        )
    if count != 1:
        raise InputError(
            f"Text {i} holds {count} image tokens (id {space.image_token}) for its image of {wanted} rows; write the token once, or {wanted} times."
        )
    at = int(here.nonzero())
    return torch.cat([text[:at], text.new_full((wanted,), int(text[at])), text[at + 1 :]])
