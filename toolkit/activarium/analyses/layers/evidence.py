"""A class followed over the patches of an image: grids, and the picture underneath."""

from __future__ import annotations

from typing import Any

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import column
from activarium.errors import InputError
from activarium.results import Grid, Overlay, Result


def patch_parts(rows: Activations, names: list[str], evidence: np.ndarray, answer: str, image: Any) -> tuple[dict[str, Result], list[str]]:
    """Evidence for a class at every row and on the patch grid, and where it is strongest.

    Args:
        rows: The rows of one image; their table has `kind`, `y` and `x`.
        names: Layer names.
        evidence: Logits above the mean over classes, `(layer, row)`.
        answer: The class's name.
        image: The picture, or None.
    """
    labels = {"layer": names, "position": [str(t) for t in column(rows, "text", "")]}
    grid, places = on_grid(rows, evidence)
    parts: dict[str, Result] = {
        "evidence": Grid(evidence, ("layer", "position"), labels, title=f"Evidence for {answer!r}", unit="logits"),
        "patches": Grid(grid, ("layer", "height", "width"), {"layer": names}, title=f"Evidence for {answer!r} by patch", unit="logits"),
    }
    if image is not None:
        parts["overlay"] = Overlay(grid, tuple(names), image=picture(image), title=f"Evidence for {answer!r} by patch", unit="logits")
    best = int(np.nanargmax(evidence[-1][places]))
    where = column(rows, "text", "")[places][best]
    return parts, [
        f"In the last layer the patch with most evidence for {answer!r} is {where} ({evidence[-1][places][best]:.2f} logits above the mean class)."
    ]


def on_grid(rows: Activations, evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values `(layer, height, width)` and which rows are patches."""
    places = column(rows, "kind", "token").astype(str) == "patch"
    y, x = column(rows, "y", -1)[places].astype(int), column(rows, "x", -1)[places].astype(int)
    grid = np.full((len(evidence), y.max() + 1, x.max() + 1), np.nan)
    grid[:, y, x] = evidence[:, places]
    return grid, places


def picture(image: Any) -> np.ndarray:
    """An image as uint8 `(height, width, 3)`.

    Raises:
        InputError: It has another type or shape; the message shows what was found.
    """
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if pixels.ndim == 2 and pixels.dtype == np.uint8:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(
            f"The image should be uint8 (height, width, 3) or a PIL image; found {pixels.dtype} {pixels.shape}. "
            "For pixels between 0 and 1: (255 * pixels).round().astype('uint8')."
        )
    return pixels
