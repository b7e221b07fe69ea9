"""Outlines of the shapes: polygons and holes in a unit frame, so that size, rotation and place come afterwards."""

from math import cos, pi, sin

import numpy as np

Points = list[tuple[float, float]]

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "crescent", "arrow", "diamond")


def outline(name: str) -> list[Points]:
    """Which closed lines draw this shape? Within a circle of radius 1; a second line is a hole.

    Raises:
        ValueError: No shape of this name; the message lists them.
    """
    if name not in _OUTLINES:
        raise ValueError(f"No shape called {name!r}. Known: {', '.join(CLASSES)}.\n    Pass one of scenes.CLASSES.")
    return _OUTLINES[name]


def place(points: Points, centre: tuple[float, float], radius: float, angle: float) -> Points:
    """Where do these points stand after turning by `angle` (radians), scaling by `radius` and moving to `centre`?"""
    turn = np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])
    moved = np.asarray(points) @ turn.T * radius + np.asarray(centre)
    return [(float(x), float(y)) for x, y in moved]


def _regular(corners: int, radius: float = 1.0, start: float = -pi / 2) -> Points:
    """The corners of a regular polygon."""
    angles = [start + 2 * pi * corner / corners for corner in range(corners)]
    return [(radius * cos(angle), radius * sin(angle)) for angle in angles]


def _star() -> Points:
    """Five outer and five inner corners, alternating."""
    outer, inner = _regular(5), _regular(5, 0.42, start=-pi / 2 + pi / 5)
    return [corner for pair in zip(outer, inner, strict=True) for corner in pair]


def _cross(arm: float = 0.32, end: float = 0.95) -> Points:
    """A plus sign with arms of equal width."""
    quarter = [(arm, end), (arm, arm), (end, arm)]
    turns = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
    corners = [(a * x + b * y, c * x + d * y) for a, b, c, d in turns for x, y in quarter]
    return sorted(corners, key=lambda point: np.arctan2(point[1], point[0]))


def _heart() -> Points:
    """The usual heart curve, scaled into the unit circle."""
    steps = np.linspace(0, 2 * pi, 48, endpoint=False)
    x = 16 * np.sin(steps) ** 3
    y = -(13 * np.cos(steps) - 5 * np.cos(2 * steps) - 2 * np.cos(3 * steps) - np.cos(4 * steps))
    return [(float(a) / 17, float(b) / 17) for a, b in zip(x, y, strict=True)]


def _crescent() -> Points:
    """A moon: the unit circle's left arc, and back along a flatter one."""
    outer = [(cos(angle), sin(angle)) for angle in np.linspace(pi / 3, 2 * pi - pi / 3, 32)]
    # An ellipse through the two tips at (0.5, ±sin 60°).
    inner = [(0.5 + 0.8 * cos(angle), sin(pi / 3) * sin(angle)) for angle in np.linspace(3 * pi / 2, pi / 2, 32)]
    return [(float(x), float(y)) for x, y in outer + inner]


_OUTLINES: dict[str, list[Points]] = {
    "circle": [_regular(48, 0.9)],
    "square": [_regular(4, start=-pi / 4)],
    "triangle": [_regular(3)],
    "star": [_star()],
    "cross": [_cross()],
    "ring": [_regular(48, 0.95), _regular(48, 0.52)],
    "heart": [_heart()],
    "crescent": [_crescent()],
    "arrow": [[(1, 0), (0.1, -0.75), (0.1, -0.28), (-0.9, -0.28), (-0.9, 0.28), (0.1, 0.28), (0.1, 0.75)]],
    "diamond": [[(0, -1), (0.55, 0), (0, 1), (-0.55, 0)]],
}
