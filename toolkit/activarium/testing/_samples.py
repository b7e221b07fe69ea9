"""Small inputs for tiny models: texts of several lengths and pictures of several sizes."""

import numpy as np

_TEXTS = (
    "the cat sat on the house .",
    "Anna gave Tom the book .",
    "who ?",
    "the keys to the house are near the river and the old king of France likes the red ball",
)


def texts(count: int = 4) -> list[str]:
    """Texts of different lengths, made of words the tiny tokenizers know."""
    return [_TEXTS[i % len(_TEXTS)] for i in range(count)]


def images(count: int = 2, size: int = 32, seed: int = 0) -> list[np.ndarray]:
    """Pictures `height width channel` in uint8: a bright square on noise, its place known from its number."""
    random = np.random.default_rng(seed)
    made = []
    for i in range(count):
        picture = random.integers(0, 90, (size, size, 3), dtype=np.uint8)
        corner = (i * size // 4) % (size - size // 4)
        picture[corner : corner + size // 4, corner : corner + size // 4] = (250, 220, 40)
        made.append(picture)
    return made
