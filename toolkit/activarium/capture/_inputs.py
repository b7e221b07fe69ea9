"""Text, tokens and images in; ragged inputs, right-padded batches and row tables out. A pad is never a row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from activarium.capture._masks import Span
from activarium.errors import InputError
from activarium.rows import Rows

Bos = Literal["tokenizer", True, False]


@dataclass(frozen=True)
class Space:
    """One row space of a model and how it enters the forward call.

    Attributes:
        name: `""` for a single stack, else `encoder decoder vision text`.
        modality: Text or vision.
        argument: Keyword of the ids or pixels.
        mask: Keyword of the padding mask, or None where the model takes none.
        length: Every text is padded to this length, which the model was trained with (SigLIP); None pads to the longest.
        limit: Most tokens the model has positions for, or None.
        vocabulary: Number of token ids.
        start: Token put before decoder texts, or None.
        pad: Token that fills up shorter texts; no row of its own.
        prefix: For vision: rows before the patches, by kind (`cls`, `register`).
        patch: For vision: height and width of a patch in pixels.
        image: For vision: channels, height, width the model was made for.
        image_token: For texts that hold images: the token that stands for one row of an image, or None.
        image_rows: How many rows one image takes in a text.
        image_grid: Their grid, or zeros where they have none.
    """

    name: str
    modality: Literal["text", "vision"]
    argument: str
    mask: str | None = None
    length: int | None = None
    limit: int | None = None
    vocabulary: int = 0
    start: int | None = None
    pad: int = 0
    prefix: tuple[str, ...] = ()
    patch: tuple[int, int] = (1, 1)
    image: tuple[int, int, int] = (3, 0, 0)
    image_token: int | None = None
    image_rows: int = 0
    image_grid: tuple[int, int] = (0, 0)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Patch rows and columns of these pixels."""
        return pixels.shape[-2] // self.patch[0], pixels.shape[-1] // self.patch[1]

    def rows_of(self, data: Tensor | Sequence[Tensor]) -> np.ndarray:
        """Rows per example."""
        if isinstance(data, Tensor):
            height, width = self.grid(data)
            return np.full(len(data), len(self.prefix) + height * width)
        return np.array([len(t) for t in data])


@dataclass(frozen=True)
class Inputs:
    """Encoded examples without padding.

    Attributes:
        data: Space name → list of token tensors, or one tensor of pixels `example channel height width`.
        numbers: Example number of each example, kept when some are selected.
        spaces: How each space enters the model.
        policy: What was decided on the way: BOS, processor.
        words: Token id → readable text.
        special: Token id → row kind, for tokens that are not plain.
        label: What each example is said to be, if anything; becomes a row column.
    """

    data: Mapping[str, list[Tensor] | Tensor]
    numbers: np.ndarray
    spaces: Mapping[str, Space]
    policy: Mapping[str, Any] = field(default_factory=dict)
    words: Callable[[int], str] = str
    special: Mapping[int, str] = field(default_factory=dict)
    label: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def lengths(self) -> np.ndarray:
        """Rows per example in the first row space."""
        return self.rows_of(next(iter(self.data)))

    def rows_of(self, space: str) -> np.ndarray:
        """Rows per example in one row space; `patch` leaves out the rows before the patches, `example` has one."""
        if space.endswith("patch"):
            main = space.removesuffix("patch").removesuffix(".")
            return self.rows_of(main) - len(self.spaces[main].prefix)
        return self.spaces[space].rows_of(self.data[space]) if space in self.data else np.ones(len(self), dtype=int)

    def select(self, index: Sequence[int] | np.ndarray) -> Inputs:
        """Some of the examples, under the numbers they have."""
        index = np.asarray(index, dtype=int)
        chosen = {s: d[torch.as_tensor(index)] if isinstance(d, Tensor) else [d[i] for i in index] for s, d in self.data.items()}
        label = None if self.label is None else self.label[index]
        return replace(self, data=chosen, numbers=self.numbers[index], label=label)

    def numbered(self, first: int) -> Inputs:
        """The same examples, counted from `first`."""
        return replace(self, numbers=first + np.arange(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the decoder of tokens is left behind, the model that runs there has its own."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"words": str}

    @cached_property
    def hash(self) -> str:
        """Same content, same hash."""
        digest = hashlib.blake2b(digest_size=16)
        for space, values in self.data.items():
            for value in values:
                digest.update(f"{space} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.contiguous().cpu().numpy().tobytes())
        if self.label is not None:
            digest.update(repr(self.label.tolist()).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """For a manifest: how many, how long, under which policy."""
        rows = {s: int(self.rows_of(s).sum()) for s in self.data}
        return {"examples": len(self), "rows": rows, "hash": self.hash, **self.policy}

    @cached_property
    def batch(self) -> Batch:
        """All examples as one right-padded batch."""
        return Batch(self)


class Batch:
    """One padded forward: its arguments, and which cells of its tensors are rows."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.arguments: dict[str, Tensor] = {}
        self.shape: dict[str, tuple[int, int]] = {}
        self.index: dict[str, Tensor | None] = {}
        for name, data in inputs.data.items():
            space = inputs.spaces[name]
            if isinstance(data, Tensor):
                self.arguments[space.argument] = data
                self.shape[name], self.index[name] = (len(data), int(space.rows_of(data)[0])), None
            else:
                self._pad(space, data)

    def _pad(self, space: Space, texts: list[Tensor]) -> None:
        lengths = [len(t) for t in texts]
        width = space.length or max(lengths)
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        # Where no mask hides them, pads must not look like pads: models warn, or guess a mask of their own.
        ids.fill_(space.pad if space.mask or space.length else int(space.pad == 0))
        mask = torch.zeros(len(texts), width, dtype=torch.long)
        for i, text in enumerate(texts):
            ids[i, : len(text)], mask[i, : len(text)] = text, 1
        self.arguments[space.argument] = ids
        self.shape[space.name] = (len(texts), width)
        whole = min(lengths) == width
        self.index[space.name] = None if whole else mask.flatten().nonzero().flatten()
        # Without padding no mask is passed: the models then take their fastest exact kernel.
        if space.mask and not whole:
            self.arguments[space.mask] = mask

    def spans(self, queries: str, keys: str, width: int) -> list[Span]:
        """Where the real rows of two row spaces lie in a kernel call with this many keys; more keys than rows come from a cache."""
        counts = zip(self.inputs.rows_of(queries), self.inputs.rows_of(keys), strict=True)
        past = width - self.shape[keys][1] if keys in self.shape else 0
        return [Span(e, slice(0, int(q)), slice(0, past + int(k))) for e, (q, k) in enumerate(counts)]

    @cached_property
    def rows(self) -> dict[str, Rows]:
        """Row tables; text is decoded only when somebody looks."""
        return {name: _row_table(self.inputs, name) for name in self.inputs.data}


def _row_table(inputs: Inputs, name: str) -> Rows:
    space, data = inputs.spaces[name], inputs.data[name]
    lengths = space.rows_of(data)
    example = np.repeat(inputs.numbers, lengths)
    position = np.concatenate([np.arange(n) for n in lengths]) if len(lengths) else np.empty(0, int)
    columns: dict[str, Any] = {"example": example, "position": position}
    if inputs.label is not None:
        columns["label"] = np.repeat(inputs.label, lengths)
    if isinstance(data, Tensor):
        return Rows(columns | _patch_columns(space, data, position))
    tokens = torch.cat(data).numpy()
    kinds = np.array([inputs.special.get(int(t), "token") for t in tokens], dtype=object)
    columns |= {"token": tokens, "text": lambda: np.array([inputs.words(int(t)) for t in tokens], dtype=object), "kind": kinds}
    return Rows(columns if space.image_token is None else columns | image_columns(space, data, kinds))


def _patch_columns(space: Space, pixels: Tensor, position: np.ndarray) -> dict[str, Any]:
    width = space.grid(pixels)[1]
    prefix = len(space.prefix)
    patch = position >= prefix
    y = np.where(patch, (position - prefix) // width, -1)
    x = np.where(patch, (position - prefix) % width, -1)
    names = np.array([*space.prefix, "patch"], dtype=object)
    kind = names[np.minimum(position, prefix)]
    text = np.array([f"{k}" if k != "patch" else f"{a},{b}" for k, a, b in zip(kind, y, x, strict=True)], dtype=object)
    return {"token": np.full(len(position), -1), "text": text, "kind": kind, "y": y, "x": x}


def image_columns(space: Space, texts: Sequence[Tensor], kinds: np.ndarray) -> dict[str, np.ndarray]:
    """The columns `kind y x` of texts that hold images: a row of an image keeps its place in the grid."""
    here = np.concatenate([(t == space.image_token).numpy() for t in texts])
    order = np.concatenate([np.cumsum((t == space.image_token).numpy()) - 1 for t in texts])
    width = space.image_grid[1]
    y, x = (np.where(here & (width > 0), place, -1) for place in (order // max(width, 1), order % max(width, 1)))
    return {"kind": np.where(here, "image", kinds), "y": y, "x": x}


def example_rows(inputs: Inputs) -> Rows:
    """The row table of pooled vectors and class logits: one row per example."""
    columns: dict[str, Any] = {
        "example": inputs.numbers,
        "position": np.zeros(len(inputs), int),
        "kind": np.full(len(inputs), "example", dtype=object),
    }
    return Rows(columns if inputs.label is None else columns | {"label": inputs.label})


def check_label(label: Any, examples: int) -> np.ndarray:
    """One number or word per example."""
    found = np.asarray(label)
    if found.shape != (examples,) or found.dtype.kind not in "iubfUO":
        raise InputError(f"label has shape {found.shape} of {found.dtype}; wanted one number or word for each of the {examples} examples.")
    return found.astype(object) if found.dtype.kind == "U" else found


def check_tokens(ids: Any, space: Space, what: str) -> Tensor:
    """One text's token ids as int64, refused with words if they cannot be used."""
    ids = torch.as_tensor(ids) if len(ids) else torch.empty(0, dtype=torch.long)
    if ids.ndim != 1 or ids.is_floating_point():
        raise InputError(f"{what} should be a flat list of whole numbers; found shape {tuple(ids.shape)} of {ids.dtype}.")
    if not len(ids):
        raise InputError(f"{what} is empty: a text needs at least one token. Leave it out, or give it a word.")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (space.vocabulary and high >= space.vocabulary):
        wrong = low if low < 0 else high
        raise InputError(
            f"{what} holds token id {wrong}; this model knows ids 0 to {space.vocabulary - 1}. Was it made with another tokenizer?"
        )
    if space.limit and len(ids) > space.limit:
        raise InputError(
            f"{what} has {len(ids)} tokens; this model has {space.limit} positions. Shorten it, or split it into several texts."
        )
    return ids.long()


def unpadded(ids: Any, mask: Any) -> list[Tensor]:
    """Rows of a padded id matrix without their pads, whichever side those are on."""
    ids = torch.as_tensor(ids)
    ids = ids[None] if ids.ndim == 1 else ids
    if mask is None:
        return list(ids)
    mask = torch.as_tensor(mask).bool().reshape(ids.shape)
    return [row[keep] for row, keep in zip(ids, mask, strict=True)]


def check_images(images: Any, space: Space) -> list[np.ndarray]:
    """Pictures as uint8 arrays `height width channel`, refused with words if the mode is wrong."""
    many = images if isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4) else [images]
    if not len(many):
        raise InputError("The list of images is empty; give at least one.")
    return [_array(image, space, i) for i, image in enumerate(many)]


def _array(image: Any, space: Space, i: int) -> np.ndarray:
    channels = space.image[0]
    mode = getattr(image, "mode", None)
    wanted = {1: "L", 3: "RGB"}.get(channels, f"{channels} channels")
    if mode is not None and mode != wanted:
        raise InputError(f"Image {i} has mode {mode!r}; this model takes {wanted!r}. Convert it first: image.convert({wanted!r}).")
    array = np.asarray(image)
    if channels == 1 and array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] != channels:
        raise InputError(f"Image {i} has shape {array.shape}; wanted (height, width, {channels}).")
    if array.dtype != np.uint8:
        raise InputError(f"Image {i} holds {array.dtype}; wanted uint8 from 0 to 255. For prepared tensors pass dict(pixel_values=…).")
    return array


def check_pixels(pixels: Tensor, space: Space) -> Tensor:
    """Prepared pixels `example channel height width` of the size the model was made for."""
    pixels = torch.as_tensor(pixels)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    channels, height, width = space.image
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (channels, height, width):
        raise InputError(
            f"Images reach the model with shape {tuple(pixels.shape[1:])} (channel, height, width); it was made for {(channels, height, width)}. "
            "Resize them, or give the processor that the model was trained with."
        )
    if not torch.isfinite(pixels).all():
        raise InputError("The images hold NaN or infinity; every pixel must be a finite number.")
    return pixels
