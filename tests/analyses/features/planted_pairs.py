"""Pairs of a tiny model at whose embedding two attributes add up exactly: which token stands there, and at which position."""

import itertools
from functools import cache

import numpy as np

import activarium as act

SITE = "embed"
TOKENS, POSITIONS = (8, 9, 10, 11, 12), (1, 2, 3)


@cache
def model():
    return act.wrap(*act.testing.tiny("gpt2"), certify=False)


def planted_pairs(change=("token",)):
    """Every token at every position, each with a counterfactual in which the named attributes differ; place `HERE` is the row."""
    runner = model()
    cells = list(itertools.product(TOKENS, POSITIONS))
    other = [
        (TOKENS[(TOKENS.index(t) + 2) % 5] if "token" in change else t, POSITIONS[p % 3] if "position" in change else p) for t, p in cells
    ]
    texts = [_text(t, p, n) for n, (t, p) in enumerate(cells)]
    changed = [_text(t, p, n) for n, (t, p) in enumerate(other)]
    ids = [t for t, _ in cells]
    pairs = act.pairs(runner, texts, changed, answers=ids, foils=[t + 5 for t in ids], places={"HERE": [p for _, p in cells]}, bos=False)
    known, wanted = ({"token": [t for t, _ in c], "position": [p for _, p in c]} for c in (cells, other))
    return pairs, known, wanted


def _text(token, position, number):
    row = np.array([20 + (number + i) % 7 for i in range(6)])
    row[position] = token
    return row.tolist()
