"""TokenStrip: a text whose tokens carry a colour each, with the exact number under the pointer."""

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


class TokenStrip(Widget):
    """Signed values on the tokens of one text.

    Attributes:
        shown: Indices of the maps on screen.
        scale: `shared` colours all maps by one range, `own` each by its own.
    """

    shows: ClassVar[type[Result]] = Overlay
    result: Overlay
    _esm = bundle("token_strip")
    _css = stylesheet("token_strip")

    shown = traitlets.List(traitlets.Int(), [0]).tag(sync=True)
    scale = traitlets.Unicode("shared").tag(sync=True)

    def __init__(self, result: Overlay, **traits: Any) -> None:
        super().__init__(result, **traits)
        values = payload.floats(result.values)
        table, self.data = payload.pack({"values": values})
        self.spec = map_words(result, values) | {"tokens": [str(t) for t in result.tokens or ()], "arrays": table}

    @classmethod
    def accepts(cls, result: Result) -> bool:
        """Overlays over tokens."""
        return isinstance(result, Overlay) and result.tokens is not None and result.values.size > 0

    def value(self, place: Mapping[str, int]) -> float:
        """The value at a place such as `pointed` or one of `pinned`."""
        return float(self.result.values[place["map"], place["position"]])

    def png(self) -> bytes:
        """The tokens on their colours, or the colours alone where Pillow is absent."""
        values = self.result.values[self.shown[0] if self.shown else 0]
        colours = pictures.paint(values.astype(float), tuple(self.spec["range"]))
        try:
            return pictures.png(_written(self.spec["tokens"], colours))
        except ImportError:
            return pictures.png(colours[None].repeat(16, 0).repeat(16, 1))


def _written(tokens: list[str], colours: np.ndarray) -> np.ndarray:
    """Tokens set in lines of text, drawn by Pillow with the font it brings along."""
    from PIL import Image, ImageDraw, ImageFont

    font, width, line = ImageFont.load_default(14), 720, 24
    shown = tokens[:600]  # a page's worth: the static picture is a reminder, the widget has them all
    lengths = [int(font.getlength(_drawable(token))) + 8 for token in shown]
    places, x, y = [], 0, 0
    for length in lengths:
        x, y = (0, y + line) if x and x + length > width else (x, y)
        places.append((x, y))
        x += length + 2
    picture = Image.new("RGB", (width, y + line), "white")
    brush = ImageDraw.Draw(picture)
    for token, (left, top), length, colour in zip(shown, places, lengths, colours, strict=False):
        brush.rectangle((left, top, left + length, top + line - 4), fill=tuple(int(c) for c in colour))
        brush.text((left + 4, top + 2), _drawable(token), "black" if int(colour.sum()) > 380 else "white", font=font)
    return np.asarray(picture)


def _drawable(token: str) -> str:
    return "".join(c if c.isprintable() else "·" for c in token)
