"""The rows that any context shows, each once: their words, their places in an image, and the pictures themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from activarium.dashboards.contexts import Contexts, Examples
from activarium.errors import InputError
from activarium.recording import Recording
from activarium.rows import Rows

SIDE = 96  # longest side of a stored picture


@dataclass(frozen=True, eq=False)
class Shown:
    """Rows that contexts show.

    Attributes:
        arrays: `first` and `length` of each stretch of rows, `place` where it begins among the stored ones; for each row `text`
            (number of its string), `y` and `x` (-1 outside of an image).
        strings: Every string once, in order.
    """

    arrays: dict[str, np.ndarray]
    strings: list[str]

    @staticmethod
    def of(contexts: Contexts, index: Rows | None, also: Sequence[np.ndarray] = ()) -> Shown:
        """Collect rows and words.

        Args:
            contexts: What is shown.
            index: Row table of the recording.
            also: Arrays of further strings that pages name.
        """
        first, length = _joined(contexts.first, contexts.length)
        rows = np.repeat(first - np.r_[0, length.cumsum()[:-1]], length) + np.arange(length.sum()) if len(first) else np.empty(0, np.int64)
        texts = _texts(index, rows)
        if index is not None and "x" in index:
            texts[np.asarray(index["x"])[rows] >= 0] = ""  # a patch has a place in the picture, no words
        # A set of Python's own strings: numpy's would lose a NUL at the end of one.
        strings = sorted({str(t) for words in (texts, *(a.ravel() for a in also)) for t in words})
        arrays = {"first": first, "length": length, "place": np.r_[0, length.cumsum()].astype(np.int64)}
        made = Shown(arrays, strings)
        arrays["text"] = made.number(texts)
        for axis in ("y", "x"):
            known = index is not None and axis in index
            arrays[axis] = np.asarray(index[axis])[rows].astype(np.int16) if known else np.full(len(rows), -1, np.int16)  # type: ignore[index]
        return made

    @cached_property
    def _place(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.strings)}

    def number(self, words: np.ndarray) -> np.ndarray:
        """Numbers of strings that are among those stored, int32."""
        place = self._place
        return np.array([place[str(w)] for w in words.ravel()], np.int32).reshape(words.shape)


def _joined(first: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stretches that touch or overlap as one, in order."""
    if not len(first):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.argsort(first, kind="stable")
    begin, end = first[order], np.maximum.accumulate((first + length)[order])
    new = np.r_[True, begin[1:] > end[:-1]]
    start = begin[new]
    return start.astype(np.int64), (end[np.r_[np.flatnonzero(new)[1:] - 1, len(end) - 1]] - start).astype(np.int64)


def _texts(index: Rows | None, rows: np.ndarray) -> np.ndarray:
    if index is not None and "text" in index:
        return np.asarray(index["text"], dtype=object)[rows]
    column = np.asarray(index["token"]) if index is not None and "token" in index else np.arange(int(rows.max(initial=0)) + 1)
    return np.array([str(int(n)) for n in column[rows]], dtype=object)


def pictures(contexts: Contexts, examples: Examples, images: Any, recording: Recording) -> tuple[dict[str, np.ndarray], str]:
    """The images that contexts show, by their number, uint8 `height width 3`, and words that say what they are.

    Raises:
        InputError: There are fewer images than examples, or one cannot be read.
    """
    at = np.searchsorted(examples.starts, contexts.row, side="right") - 1
    wanted = np.unique(examples.number[contexts.row[examples.pictured[at]]]) if len(at) else np.empty(0, int)
    if not len(wanted):
        return {}, "none: no context is of an image"
    if images is not None:
        found = {int(e): _given(images, int(e)) for e in wanted}
        return {str(e): _small(_pixels(image, e)) for e, image in found.items()}, "as given"
    if "pixels" in recording and recording["pixels"].axes[-3:] == ("channel", "height", "width"):
        pixels = recording["pixels"]
        owner = np.arange(len(pixels)) if pixels.index is None else np.asarray(pixels.index["example"])
        place = {int(e): int(np.flatnonzero(owner == e)[0]) for e in wanted if (owner == e).any()}
        found = {e: pixels.rows([i])[0].float().numpy() for e, i in place.items()}
        return {
            str(e): _small(_stretched(p)) for e, p in found.items()
        }, "as the model reads them, each stretched from its darkest to its brightest number"
    return {}, "none were given; grey stands for them"


def _given(images: Any, example: int) -> Any:
    try:
        return images[example]
    except (IndexError, KeyError):
        count = f"{len(images)} were given" if hasattr(images, "__len__") else "it was not given"
        raise InputError(f"A context is of image {example}; {count}. Give images= all that were recorded, in their order.") from None


def _pixels(image: Any, example: int) -> np.ndarray:
    made = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if made.ndim == 2:
        made = np.repeat(made[:, :, None], 3, axis=2)
    if made.ndim != 3 or made.shape[2] not in (3, 4):
        raise InputError(f"Image {example} has shape {made.shape}; wanted `height width 3`, a grey `height width`, or a Pillow image.")
    if made.dtype.kind == "f":
        made = np.clip(made * 255, 0, 255).round()
    return made[:, :, :3].astype(np.uint8)


def _stretched(pixels: np.ndarray) -> np.ndarray:
    low, high = float(pixels.min()), float(pixels.max())
    colours = pixels if len(pixels) >= 3 else np.repeat(pixels[:1], 3, axis=0)
    return np.clip((colours[:3].transpose(1, 2, 0) - low) / max(high - low, 1e-12) * 255, 0, 255).round().astype(np.uint8)


def _small(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= SIDE:
        return np.ascontiguousarray(picture)
    from PIL import Image

    size = max(1, round(width * SIDE / longest)), max(1, round(height * SIDE / longest))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
