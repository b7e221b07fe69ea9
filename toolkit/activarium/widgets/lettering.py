"""Words onto static pictures, with the font that Pillow brings along; without Pillow the picture stays as it is."""

from collections.abc import Iterable

import numpy as np

Words = tuple[float, float, str, str]  # x, y, text, anchor as Pillow names it


def lettered(pixels: np.ndarray, words: Iterable[Words], size: int = 11) -> np.ndarray:
    """The same picture with these words on it; what cannot be printed becomes a dot."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return pixels
    picture = Image.fromarray(pixels)
    brush, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    for x, y, text, anchor in words:
        bare = "".join(c if c.isprintable() else "·" for c in text[:100])
        brush.text((x, y), bare, "#222", font=font, anchor=anchor, stroke_width=2, stroke_fill="white")
    return np.asarray(picture)
