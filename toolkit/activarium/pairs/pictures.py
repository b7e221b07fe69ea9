"""Images as a processor cuts them to the model's size, before it scales the numbers: where a patch has exact borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from torch import Tensor

from activarium.errors import InputError


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of the model's size.

    Attributes:
        values: uint8 `example height width channel`.
        processor: What prepares them; it has done its resizing and cropping.
        sizes: Height and width of each given image.
        patch: Height and width of a patch in pixels.
        grid: Patch rows and columns.
    """

    values: np.ndarray
    processor: Any
    sizes: tuple[tuple[int, int], ...]
    patch: tuple[int, int]
    grid: tuple[int, int]

    @classmethod
    def of(cls, model: Any, images: Any) -> Self:
        """Resize and crop as the model's processor does.

        Raises:
            InputError: These are no images for this model, or the processor does more than resize, crop, rescale and normalise.
        """
        encoded = model.inputs(images)
        (name,) = encoded.data
        space = encoded.spaces[name]
        if space.modality != "vision" or model.processor is None:
            raise InputError(
                f"{model.name} takes {space.modality} here; give PIL images or uint8 arrays and wrap the model with its processor."
            )
        single = not isinstance(images, (list, tuple)) and np.ndim(images) < 4
        raw = [np.atleast_3d(np.asarray(image)) for image in ([images] if single else images)]  # grey pictures get a channel
        processor = getattr(model.processor, "image_processor", model.processor)
        cut = processor(images=raw, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"]
        values = np.ascontiguousarray(np.moveaxis(np.asarray(cut), 1, -1))
        pixels = encoded.data[name]
        made = cls(
            values.round().clip(0, 255).astype(np.uint8), processor, tuple(r.shape[:2] for r in raw), space.patch, space.grid(pixels)
        )
        gap = float((made.prepared(made.values) - pixels).abs().max())
        if gap > 1e-6:
            raise InputError(
                f"{type(processor).__name__} does more to an image than resize, crop, rescale and normalise (numbers differ by {gap:.2g}), "
                "so a patch has no clear place in it. Corrupt prepared pixels yourself: act.pairs(model, dict(pixel_values=…), dict(pixel_values=…), …)."
            )
        return made

    def with_(self, values: np.ndarray) -> Self:
        """Other pictures of the same size."""
        return replace(self, values=values)

    def prepared(self, values: np.ndarray) -> Tensor:
        """What the model is given: `example channel height width`."""
        return self.processor(images=list(values), return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]

    def filled(self, how: str) -> np.ndarray:
        """Pictures to take masked pixels from: one colour, or the same picture blurred."""
        from scipy.ndimage import gaussian_filter

        if how == "blur":
            return np.stack([gaussian_filter(v, sigma=(*self.patch, 0)) for v in self.values])
        if how == "mean":
            colour = self.values.mean((1, 2), keepdims=True)
        else:
            mean = getattr(self.processor, "image_mean", None) if getattr(self.processor, "do_normalize", False) else None
            colour = 255 * np.asarray(0.5 if mean is None else mean)
        return np.broadcast_to(np.round(colour), self.values.shape).astype(np.uint8)

    # --- which part

    def region(self, patches: Any, box: Any, mask: Any) -> np.ndarray:
        """Boolean `example height width`: the pixels that are meant; all of them if nothing is named.

        Raises:
            InputError: More than one part was named, it has the wrong shape, or nothing of it is left after cropping.
        """
        given = [n for n, part in (("patches", patches), ("box", box), ("mask", mask)) if part is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} both say which part changes; give one of them.")
        if not given:
            return np.ones(self.values.shape[:3], dtype=bool)
        if patches is not None:
            return self._pixels(self.cells(patches, None, None))
        found = self._cut(self._boxes(box) if mask is None else self._masks(mask))
        empty = np.flatnonzero(~found.any((1, 2)))
        if len(empty):
            raise InputError(f"The part of image {empty[0]} holds no pixel that the model sees; was it cropped away?")
        return found

    def cells(self, patches: Any, box: Any, mask: Any) -> np.ndarray:
        """Boolean `example height width` of the patch grid; all of them if nothing is named.

        Raises:
            InputError: A box or mask was named, or patches that do not exist.
        """
        if box is not None or mask is not None:
            raise InputError("how='shuffle' moves whole patches; give patches=… instead of a box or a mask.")
        count = len(self.values)
        if patches is None:
            return np.ones((count, *self.grid), dtype=bool)
        found = np.asarray(patches)
        if found.dtype == bool and found.shape in (self.grid, (count, *self.grid)):
            chosen = np.broadcast_to(found, (count, *self.grid)).copy()
        elif found.dtype.kind in "iu" and found.ndim == 2 and found.shape[1] == 2:
            wrong = next((tuple(p) for p in found.tolist() if not (0 <= p[0] < self.grid[0] and 0 <= p[1] < self.grid[1])), None)
            if wrong is not None:
                raise InputError(f"There is no patch {wrong}; the grid has {self.grid[0]} rows and {self.grid[1]} columns, counted from 0.")
            chosen = np.zeros((count, *self.grid), dtype=bool)
            chosen[:, found[:, 0], found[:, 1]] = True
        else:
            raise InputError(
                f"patches has shape {found.shape} of {found.dtype}; wanted pairs (y, x), or a boolean grid {self.grid} for all or one for each of {count}."
            )
        empty = np.flatnonzero(~chosen.any((1, 2)))
        if len(empty):
            raise InputError(f"No patch of image {empty[0]} is chosen.")
        return chosen

    def _pixels(self, cells: np.ndarray) -> np.ndarray:
        made = np.zeros(self.values.shape[:3], dtype=bool)
        large = cells.repeat(self.patch[0], 1).repeat(self.patch[1], 2)
        made[:, : large.shape[1], : large.shape[2]] = large
        return made

    def _boxes(self, box: Any) -> list[np.ndarray]:
        found = np.asarray(box)
        if found.shape not in ((4,), (len(self.sizes), 4)) or found.dtype.kind not in "iu":
            raise InputError(
                f"box has shape {found.shape} of {found.dtype}; wanted whole (top, left, bottom, right), for all or one for each."
            )
        made = []
        for (height, width), (top, left, bottom, right) in zip(
            self.sizes, np.broadcast_to(found, (len(self.sizes), 4)).tolist(), strict=True
        ):
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise InputError(f"Box {(top, left, bottom, right)} is not inside an image of {height}×{width} pixels.")
            made.append(np.zeros((height, width), dtype=bool))
            made[-1][top:bottom, left:right] = True
        return made

    def _masks(self, mask: Any) -> list[np.ndarray]:
        single = isinstance(mask, np.ndarray) and mask.ndim == 2
        found = [np.asarray(m) for m in ([mask] * len(self.sizes) if single else mask)]
        if len(found) != len(self.sizes):
            raise InputError(f"There are {len(self.sizes)} images and {len(found)} masks; give one for all, or one for each.")
        for i, (one, size) in enumerate(zip(found, self.sizes, strict=True)):
            if one.shape != size or one.dtype != bool:
                raise InputError(
                    f"Mask {i} has shape {one.shape} of {one.dtype}; wanted a boolean one of the image's {size[0]}×{size[1]} pixels."
                )
        return found

    def _cut(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Masks of the given images as the processor cuts those: every pixel that one of theirs goes into."""
        if all(size == self.values.shape[1:3] for size in self.sizes) and not getattr(self.processor, "do_center_crop", False):
            return np.stack(parts)
        channels = self.values.shape[-1]
        drawn = [np.repeat(255 * p[..., None].astype(np.uint8), channels, -1) for p in parts]
        cut = self.processor(images=drawn, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"]
        return np.asarray(cut)[:, 0] > 0
