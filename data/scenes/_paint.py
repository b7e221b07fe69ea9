"""Coverage of outlines, and the textures that fill them and the background."""

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from ._shapes import Points

SIZE = 64  # pixels, width and height
FINER = 4  # outlines are drawn this much larger and averaged down: that is the antialiasing

COLOURS = {
    "red": (214, 48, 49), "orange": (235, 137, 36), "yellow": (240, 211, 60), "green": (58, 164, 78),
    "cyan": (58, 190, 196), "blue": (48, 98, 214), "purple": (136, 70, 186), "pink": (236, 120, 176),
    "brown": (124, 80, 48), "white": (240, 240, 240), "black": (28, 28, 28),
}  # fmt: skip
TEXTURES = ("plain", "stripes", "checks", "dots", "grain")
BACKDROPS = ("gradient", "stripes", "checks", "dots", "clouds")


def coverage(lines: list[Points]) -> np.ndarray:
    """How much of each pixel lies inside these lines? Float (height, width) in 0 to 1; later lines cut holes."""
    canvas = Image.new("L", (SIZE * FINER, SIZE * FINER), 0)
    draw = ImageDraw.Draw(canvas)
    for index, points in enumerate(lines):
        draw.polygon([(x * FINER, y * FINER) for x, y in points], fill=0 if index else 255)
    return _averaged(canvas)


def stroke_coverage(points: Points, width: float) -> np.ndarray:
    """How much of each pixel does a pen line of this width (pixels) cover?"""
    canvas = Image.new("L", (SIZE * FINER, SIZE * FINER), 0)
    scaled = [(x * FINER, y * FINER) for x, y in points]
    ImageDraw.Draw(canvas).line(scaled, fill=255, width=max(1, round(width * FINER)), joint="curve")
    return _averaged(canvas)


def _averaged(canvas: Image.Image) -> np.ndarray:
    """The fine canvas averaged down to the image's size."""
    fine = np.asarray(canvas, dtype=np.float64) / 255
    return fine.reshape(SIZE, FINER, SIZE, FINER).mean((1, 3))


def pattern(name: str, generator: Generator) -> np.ndarray:
    """How strongly is each pixel tinted? Float (height, width) in 0 to 1, with random period, phase and direction."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
    angle, period, phase = generator.uniform(0, np.pi), generator.uniform(4, 10), generator.uniform(0, 10)
    along = x * np.cos(angle) + y * np.sin(angle) + phase
    across = -x * np.sin(angle) + y * np.cos(angle) + phase
    waves = np.sin(2 * np.pi * along / period), np.sin(2 * np.pi * across / period)
    if name == "stripes":
        return (waves[0] > 0).astype(np.float64)
    if name == "checks":
        return (waves[0] * waves[1] > 0).astype(np.float64)
    if name == "dots":
        return (waves[0] + waves[1] > 1.1).astype(np.float64)
    if name == "grain":
        return generator.random((SIZE, SIZE))
    if name == "gradient":
        return (along - along.min()) / (along.max() - along.min())
    if name == "clouds":
        return _clouds(generator)
    return np.zeros((SIZE, SIZE))


def _clouds(generator: Generator) -> np.ndarray:
    """Smooth noise: a coarse random field, enlarged."""
    coarse = Image.fromarray((generator.random((6, 6)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64) / 255


def shade(colour: tuple[float, float, float], tint: np.ndarray, contrast: float) -> np.ndarray:
    """Which colour has each pixel, if the pattern moves `colour` towards white or, for light colours, black?"""
    base = np.asarray(colour, dtype=np.float64)
    goal = np.zeros(3) if base.mean() > 128 else np.full(3, 255.0)
    return base + (goal - base) * contrast * tint[..., None]


def blend(image: np.ndarray, cover: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """What does the image look like with `paint` laid over it where `cover` says so?"""
    return image * (1 - cover[..., None]) + paint * cover[..., None]
