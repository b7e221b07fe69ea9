"""Pages of made-up features with the awkward cases in them: a script tag, images, a dead feature, missing numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

HOSTILE = "<script>window.__pwned = 1</script>"
DEAD, MISSING, IMAGES = 3, 4, 5  # numbers of the awkward features; 0 has the script tag
_NAMES = ("Anna", "Oscar", "Mia", "Paul")
_PLACES = ("park", "shop", "garden", "harbour", "library")


class ExamplePages:
    """What `activarium.protocols.Pages` asks for, made when asked and the same every time.

    Attributes:
        title: What they are features of.
        columns: `fires`, `density`, `max`, `skew`.
        read: Numbers of the pages that were asked for, in order.
    """

    def __init__(self, features: int = 12, title: str = "Example features") -> None:
        random = np.random.default_rng(7)
        fires = np.floor(random.lognormal(4, 2, features)).astype(np.int64) + 1
        skew = random.normal(size=features).astype(np.float32)
        largest = random.gamma(2.0, 1.5, features).astype(np.float32)
        if features > DEAD:
            fires[DEAD], largest[DEAD], skew[DEAD] = 0, 0.0, np.nan
        if features > MISSING:
            skew[MISSING] = np.nan
        self.title = title
        self.columns: Mapping[str, np.ndarray] = {"fires": fires, "density": fires / 1e5, "max": largest, "skew": skew}
        self.read: list[int] = []

    def page(self, feature: int) -> Mapping[str, Any]:
        """All that is known of one feature; a dead one has neither histogram nor contexts."""
        self.read.append(feature)
        return self._made(feature)

    def find(self, text: str) -> np.ndarray:
        """Features with the text in a context or a promoted token, upper and lower case alike."""
        sought = text.casefold()
        return np.array([n for n in range(len(self.columns["fires"])) if sought in _words(self._made(n))], dtype=np.int64)

    def _made(self, feature: int) -> dict[str, Any]:
        random, count = np.random.default_rng(1000 + feature), len(self.columns["fires"])
        others = [(feature + step) % count for step in (1, 2, 5)]
        tokens = [" " + word for word in (*_NAMES, *_PLACES, "the", "gave")]
        logits = random.permutation(np.linspace(0.2, 2.4, len(tokens))).astype(np.float32)
        page: dict[str, Any] = {
            "promoted": sorted(zip(tokens, logits, strict=True), key=lambda pair: -pair[1])[:6],
            "suppressed": [(token, -logit) for token, logit in sorted(zip(tokens, logits, strict=True), key=lambda pair: pair[1])[:6]],
            "neighbours": [(other, np.float32(0.9 - 0.2 * at)) for at, other in enumerate(others)],
            "neurons": [(int(n), np.float32(0.5 / (at + 1))) for at, n in enumerate(random.permutation(64)[:3])],
        }
        if feature == DEAD:
            return page
        top = float(self.columns["max"][feature])
        counts = np.floor(200 * np.exp(-np.arange(20) / 4)).astype(np.int64)
        page |= {
            "histogram": {"edges": np.linspace(0, top, 21), "counts": counts},
            "contexts": _images(random, top) if feature == IMAGES else _texts(feature, random, top),
            "together": [(others[-1], np.float32(1.75))],
        }
        if feature == 0:
            page["promoted"] = [(HOSTILE, np.float32(3.5)), *page["promoted"]]
        return page


def example_pages(features: int = 12) -> ExamplePages:
    """Pages of so many made-up features, the same every time.

    Example:
        >>> pages = example_pages()
        >>> sorted(pages.columns), len(pages.page(0)["contexts"])
        (['density', 'fires', 'max', 'skew'], 9)
        >>> pages.find("<script>")
        array([0])
    """
    return ExamplePages(features)


def _texts(feature: int, random: np.random.Generator, top: float) -> list[dict[str, Any]]:
    """Three contexts in each of three bands, the strongest first."""
    found = []
    for at, (band, share) in enumerate((band, share) for band, share in (("top", 1.0), ("0.5–0.9", 0.6), ("0–0.5", 0.2)) for _ in range(3)):
        name, place = _NAMES[(feature + at) % len(_NAMES)], _PLACES[(feature * 3 + at) % len(_PLACES)]
        tokens = ["When", f" {name}", " went", " to", " the", f" {place}", ",", "\n", f" {name}", " gave", " the", " book", "."]
        values = np.zeros(len(tokens), np.float32)
        values[5], values[9] = top * share * (1 - at / 40), top * share * random.random() / 3
        if feature == 0 and at == 0:
            tokens[4] = HOSTILE
        if feature == MISSING:
            values[0] = np.nan
        found.append({"band": band, "example": 10 * at + feature, "position": 5, "value": values[5], "tokens": tokens, "values": values})
    return found


def _images(random: np.random.Generator, top: float) -> list[dict[str, Any]]:
    """Four pictures of a disc on a dark ground, the patches over it active."""
    found = []
    down, across = np.mgrid[:32, :32]
    for at in range(4):
        y, x = random.integers(8, 24, 2)
        image = random.integers(30, 70, (32, 32, 3)).astype(np.uint8)
        image[(down - y) ** 2 + (across - x) ** 2 < 36] = (224, 150, 40)
        patches = np.mgrid[:4, :4] * 8 + 4
        values = (top * (1 - at / 8) * np.exp(-((patches[0] - y) ** 2 + (patches[1] - x) ** 2) / 60)).astype(np.float32)
        found.append({"band": "top" if at < 2 else "0.5–0.9", "example": at, "position": int(values.argmax()), "value": values.max()})
        found[-1] |= {"image": image, "grid": (4, 4), "values": values.ravel()}
    return found


def _words(page: Mapping[str, Any]) -> str:
    contexts = ["".join(context.get("tokens", ())) for context in page.get("contexts", ())]
    return "\0".join([*contexts, *(token for token, _ in page["promoted"])]).casefold()
