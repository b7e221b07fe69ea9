"""Which rows a sparsity is taken over: those that are no `<bos>`, class, register or other special token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import column
from activarium.errors import InputError

EXCLUDED = ("bos", "cls", "register", "special")


def kept(activations: Activations, exclude: Sequence[str]) -> np.ndarray:
    """True for every row whose kind is not left out."""
    return ~np.isin(column(activations, "kind", "token").astype(str), list(exclude))


def some_kept(activations: Activations, exclude: Sequence[str]) -> np.ndarray:
    """As `kept`, where at least one row is needed.

    Raises:
        InputError: No row is left; the message lists the kinds there are.
    """
    keep = kept(activations, exclude)
    if not keep.any():
        kinds = ", ".join(sorted({str(k) for k in column(activations, "kind", "token")})) or "none"
        raise InputError(
            f"No row is left to count: the rows have the kinds {kinds}, excluded are {', '.join(exclude)}. Exclude fewer kinds."
        )
    return keep


def left_out(activations: Activations, exclude: Sequence[str]) -> dict[str, int]:
    """How many rows of each excluded kind there are."""
    found = Counter(column(activations, "kind", "token").astype(str).tolist())
    return {kind: found.get(kind, 0) for kind in exclude}


def left_out_words(activations: Activations, exclude: Sequence[str]) -> list[str]:
    """The line that says what was left out; none if nothing was."""
    found = {k: n for k, n in left_out(activations, exclude).items() if n}
    return [f"Left out before counting: {', '.join(f'{n:,} {kind} rows' for kind, n in found.items())}."] if found else []
