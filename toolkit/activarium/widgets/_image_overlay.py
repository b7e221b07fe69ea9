"""ImageOverlay: maps laid over the patches of an image, with the exact number under the pointer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import traitlets

from activarium import pictures
from activarium.results import Overlay, Result
from activarium.widgets import payload
from activarium.widgets.base import Widget, bundle, stylesheet
from activarium.widgets.overlays import map_words

# A larger picture is shown at every second, third, … pixel: it is the ground under the map, never measured.
IMAGE_SIDE = 1024


class ImageOverlay(Widget):
    """Signed values on the patches of one image, at their own resolution.

    Attributes:
        shown: Indices of the maps on screen, side by side.
        scale: `shared` colours all maps by one range, `own` each by its own.
        opacity: How much of the image the map covers, 0 to 100 percent.
    """

    shows: ClassVar[type[Result]] = Overlay
    result: Overlay
    _esm = bundle("image_overlay")
    _css = stylesheet("image_overlay")

    shown = traitlets.List(traitlets.Int(), [0]).tag(sync=True)
    scale = traitlets.Unicode("shared").tag(sync=True)
    opacity = traitlets.Int(70, min=0, max=100).tag(sync=True)

    def __init__(self, result: Overlay, **traits: Any) -> None:
        super().__init__(result, **traits)
        values, image = payload.floats(result.values), np.asarray(result.image)
        arrays = {"values": values, "image": _pixels(image)}
        if result.mask is not None:
            arrays["mask"] = np.asarray(result.mask, np.uint8)
        table, self.data = payload.pack(arrays)
        self.spec = map_words(result, values) | {"arrays": table, "size": list(image.shape[:2])}

    @classmethod
    def accepts(cls, result: Result) -> bool:
        """Overlays over an image."""
        return isinstance(result, Overlay) and result.image is not None and result.values.size > 0

    def value(self, place: Mapping[str, int]) -> float:
        """The value at a place such as `pointed` or one of `pinned`."""
        return float(self.result.values[place["map"], place["y"], place["x"]])

    def png(self) -> bytes:
        """The image under the first map, blended by size of value."""
        image, values = _pixels(np.asarray(self.result.image)), self.result.values[self.shown[0] if self.shown else 0].astype(float)
        limits = (self.spec["range"][0], self.spec["range"][1])
        rows, columns = (np.arange(n) * m // n for n, m in zip(image.shape[:2], values.shape, strict=True))
        cover = np.clip(np.abs(np.nan_to_num(values)) / max(abs(limits[0]), abs(limits[1])), 0, 1) * self.opacity / 100
        share = cover[np.ix_(rows, columns)][..., None]
        mixed = image * (1 - share) + pictures.paint(values, limits)[np.ix_(rows, columns)] * share
        scale = max(1, 320 // max(image.shape[:2]))
        return pictures.png(mixed.round().astype(np.uint8).repeat(scale, 0).repeat(scale, 1))


def _pixels(image: np.ndarray) -> np.ndarray:
    """The picture as uint8 `(height, width, 3)`; one channel becomes grey."""
    pixels = image
    if pixels.dtype.kind == "f":
        pixels = np.clip(pixels * 255, 0, 255).round()
    pixels = pixels.astype(np.uint8)
    pixels = np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels[..., :3]
    step = -(-max(pixels.shape[:2]) // IMAGE_SIDE)
    return np.ascontiguousarray(pixels[::step, ::step])
