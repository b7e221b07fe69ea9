"""Generated 64 × 64 scenes with ground truth: one labelled shape among distractors, each with its pixel mask.

A scene is a pure function of (seed, index) and of what the caller asks to change. Every part draws from a random stream
of its own, so changing one part leaves all others as they were: the same scene with another shape, another colour, or
without its object differs exactly there. Evaluation uses seeds that training does not (`TRAIN_SEED`, `TEST_SEED`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import _distractors
from ._paint import BACKDROPS, COLOURS, SIZE, TEXTURES, blend, coverage, pattern, shade
from ._shapes import CLASSES, outline, place

__all__ = [
    "BACKDROPS", "CLASSES", "COLOURS", "DISTRACTORS", "SIZE", "TEST_SEED", "TEXTURES", "TRAIN_SEED", "Scene", "batch",
    "scene",
]  # fmt: skip

DISTRACTORS = _distractors.KINDS
TRAIN_SEED, TEST_SEED = 1, 2
TILT = 0.4  # radians, to either side: a square never looks like a diamond
_BACKGROUND, _OBJECT, _FILL, _CLUTTER = range(4)  # the random streams of a scene


@dataclass(frozen=True, eq=False)
class Scene:
    """What does this picture show, and where exactly?

    Attributes:
        image: uint8 (height, width, 3).
        label: Index into `CLASSES`; -1 if the object was left out.
        name: The class in words; "none" if the object was left out.
        mask: bool (height, width), every pixel that the object touches, also partly.
        coverage: float (height, width), the share of each pixel that the object covers.
        distractors: Kind of each distractor, in the order they were drawn.
        distractor_masks: bool (distractor, height, width); where the object covers one, its pixels are not in the mask.
        attributes: colour, texture, centre (x, y) and radius in pixels, angle in radians, backdrop.
    """

    image: np.ndarray
    label: int
    name: str
    mask: np.ndarray
    coverage: np.ndarray
    distractors: tuple[str, ...]
    distractor_masks: np.ndarray
    attributes: Mapping[str, object]


def scene(
    seed: int,
    index: int,
    *,
    shape: str | None = None,
    colour: str | None = None,
    texture: str | None = None,
    omit_object: bool = False,
    distractors: tuple[str, ...] | None = None,
) -> Scene:
    """Which scene has this seed and index, with the asked parts changed and everything else kept?

    Args:
        seed: Use `TEST_SEED`, or any other than `TRAIN_SEED`, to stay away from what glyph was trained on.
        index: Number of the scene within the seed.
        shape: Plant this class in place of the scene's own, at the same place, size and angle.
        colour: Paint the object in this colour.
        texture: Fill the object with this texture.
        omit_object: Leave the object out: the label becomes -1 and the mask empty.
        distractors: Kinds to draw in place of the scene's own; `()` for none.

    Raises:
        ValueError: An unknown shape, colour, texture or distractor; the message lists the known ones.
    """
    choice = _object(seed, index)
    asked = {"shape": shape, "colour": colour, "texture": texture}
    choice |= {part: value for part, value in asked.items() if value is not None}
    _check("colour", choice["colour"], tuple(COLOURS))
    _check("texture", choice["texture"], TEXTURES)
    for kind in distractors or ():
        _check("distractor", kind, DISTRACTORS)
    image, backdrop = _background(seed, index)
    clutter = _distractors.draw(_stream(seed, index, _CLUTTER), choice["centre"], choice["radius"], distractors)
    for item in clutter:
        image = blend(image, item.cover, np.asarray(item.colour, dtype=np.float64))
    cover = np.zeros((SIZE, SIZE)) if omit_object else _cover(choice)
    image = blend(image, cover, _fill(seed, index, choice))
    name = "none" if omit_object else choice["shape"]
    masks = np.stack([(item.cover > 0) & (cover < 1) for item in clutter]) if clutter else np.zeros((0, SIZE, SIZE), bool)
    return Scene(
        image=np.rint(image).astype(np.uint8),
        label=-1 if omit_object else CLASSES.index(name),
        name=name,
        mask=cover > 0,
        coverage=cover,
        distractors=tuple(item.kind for item in clutter),
        distractor_masks=masks,
        attributes={**{part: value for part, value in choice.items() if part != "shape"}, "backdrop": backdrop},
    )


def batch(seed: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images, uint8 (batch, height, width, 3), and labels (batch) have the scenes `start` to `start + count`?"""
    drawn = [scene(seed, index) for index in range(start, start + count)]
    return np.stack([one.image for one in drawn]), np.array([one.label for one in drawn])


def _stream(seed: int, index: int, part: int) -> np.random.Generator:
    """The random numbers of one part of one scene."""
    return np.random.default_rng((seed, index, part))


def _object(seed: int, index: int) -> dict:
    """Shape, paint and place of the scene's own object. It always lies within the picture."""
    draw = _stream(seed, index, _OBJECT)
    radius = draw.uniform(13, 22)
    centre = tuple(float(value) for value in draw.uniform(radius + 1, SIZE - radius - 1, size=2))
    return {
        "shape": CLASSES[draw.integers(len(CLASSES))],
        "colour": list(COLOURS)[draw.integers(len(COLOURS))],
        "texture": TEXTURES[draw.integers(len(TEXTURES))],
        "centre": centre,
        "radius": float(radius),
        "angle": float(draw.uniform(-TILT, TILT)),
    }


def _cover(choice: dict) -> np.ndarray:
    """How much of each pixel the object covers."""
    lines = outline(choice["shape"])
    return coverage([place(points, choice["centre"], choice["radius"], choice["angle"]) for points in lines])


def _fill(seed: int, index: int, choice: dict) -> np.ndarray:
    """The object's paint, as if it filled the whole picture."""
    tint = pattern(choice["texture"], _stream(seed, index, _FILL))
    return shade(COLOURS[choice["colour"]], tint, contrast=0.35)


def _background(seed: int, index: int) -> tuple[np.ndarray, str]:
    """The empty scene and the name of its pattern: two greyish colours of middle brightness, which no object has."""
    draw = _stream(seed, index, _BACKGROUND)
    name = BACKDROPS[draw.integers(len(BACKDROPS))]
    low, high = draw.uniform(85, 170, size=(2, 1)) + draw.normal(0, 12, size=(2, 3))
    tint = pattern(name, draw)[..., None]
    grain = draw.normal(0, 6, size=(SIZE, SIZE, 1))
    return np.clip(low + (high - low) * 0.6 * tint + grain, 0, 255), name


def _check(what: str, found: object, known: tuple[str, ...]) -> None:
    """Refuse an unknown choice and list the known ones."""
    if found not in known:
        raise ValueError(f"No {what} called {found!r}. Known: {', '.join(known)}.\n    Pass one of these.")
