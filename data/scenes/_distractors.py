"""Distractors: small things that belong to no class: blobs, letter-like strokes, patches of texture, specks."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from ._paint import COLOURS, SIZE, coverage, pattern, stroke_coverage

KINDS = ("blob", "stroke", "patch", "specks")
MOST = 4
_TRIES = 20


@dataclass(frozen=True, eq=False)
class Distractor:
    """One drawn distractor: its kind, colour (RGB) and the share of each pixel that it covers."""

    kind: str
    colour: tuple[int, int, int]
    cover: np.ndarray


def draw(generator: Generator, centre: tuple[float, float], radius: float, kinds: tuple[str, ...] | None) -> list[Distractor]:
    """Which distractors does a scene have? Their places avoid the object's circle, as far as there is room."""
    own = tuple(KINDS[int(index)] for index in generator.integers(len(KINDS), size=generator.integers(MOST + 1)))
    seeds = generator.integers(2**32, size=max(MOST, len(kinds or ())))  # so that each keeps its place if others change
    chosen = own if kinds is None else kinds
    return [_one(kind, np.random.default_rng(int(seed)), centre, radius) for kind, seed in zip(chosen, seeds, strict=False)]


def _one(kind: str, generator: Generator, centre: tuple[float, float], radius: float) -> Distractor:
    """One distractor of this kind, in a random colour, beside the object."""
    size = generator.uniform(3, 6)
    spot = _spot(generator, centre, radius + size)
    colour = list(COLOURS.values())[generator.integers(len(COLOURS))]
    makers = {"blob": _blob, "stroke": _stroke, "patch": _patch, "specks": _specks}
    return Distractor(kind, colour, makers[kind](generator, spot, size))


def _spot(generator: Generator, centre: tuple[float, float], apart: float) -> np.ndarray:
    """A place at least `apart` pixels from the object's centre; the farthest of the tries if there is none."""
    tries = generator.uniform(5, SIZE - 5, size=(_TRIES, 2))
    distance = np.hypot(*(tries - np.asarray(centre)).T)
    far = np.flatnonzero(distance > apart)
    return tries[far[0] if far.size else distance.argmax()]


def _blob(generator: Generator, spot: np.ndarray, size: float) -> np.ndarray:
    """A wobbly closed line without corners that could name a class."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    wobble = 1 + 0.35 * np.sin(3 * angles + generator.uniform(0, 6)) + 0.2 * np.sin(5 * angles + generator.uniform(0, 6))
    ring = spot + size * 0.8 * (wobble * np.stack([np.cos(angles), np.sin(angles)])).T
    return coverage([[(float(x), float(y)) for x, y in ring]])


def _stroke(generator: Generator, spot: np.ndarray, size: float) -> np.ndarray:
    """An open zigzag of pen lines, like a letter."""
    points = spot + generator.uniform(-size, size, size=(int(generator.integers(3, 6)), 2))
    return stroke_coverage([(float(x), float(y)) for x, y in points], width=generator.uniform(1, 2))


def _patch(generator: Generator, spot: np.ndarray, size: float) -> np.ndarray:
    """A soft-edged piece of stripes or checks."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    near = np.clip(1.2 - np.hypot(x - spot[0], y - spot[1]) / size, 0, 1)
    return near * pattern(("stripes", "checks")[generator.integers(2)], generator)


def _specks(generator: Generator, spot: np.ndarray, size: float) -> np.ndarray:
    """A loose group of single pixels."""
    cover = np.zeros((SIZE, SIZE))
    points = np.clip(np.rint(spot + generator.normal(0, size * 0.7, size=(12, 2))), 0, SIZE - 1).astype(int)
    cover[points[:, 1], points[:, 0]] = 1.0
    return cover
