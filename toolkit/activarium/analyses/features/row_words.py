"""Rows in words: a token with what stands around it, a patch by its place; tokens that a direction promotes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from activarium.activations import Activations


def row_words(site: Activations, row: int, around: int = 4) -> str:
    """`… gave [Tom] the …`, or `image 3 (2, 5)`."""
    index = site.index
    if index is None:
        return f"row {row}"
    if "text" in index and str(index["kind"][row]) == "token":
        span = index.span(int(index["example"][row]))
        first, last = max(span.start, row - around), min(span.stop, row + around + 1)
        text = [str(t) for t in index["text"][first:last]]
        text[row - first] = f"[{text[row - first]}]"
        return " ".join(text)
    if "y" in index:
        return f"image {int(index['example'][row])} ({int(index['y'][row])}, {int(index['x'][row])})"
    return f"example {int(index['example'][row])} row {int(index['position'][row])}"


def promoted(model: Any, written: Tensor, count: int) -> list[str]:
    """The answers whose output weights a direction of the stream has most of, above their mean over all answers."""
    scores = written.double() @ model.weight("W_U").detach().double()
    order = (scores - scores.mean(1, keepdim=True)).argsort(dim=1, descending=True, stable=True)[:, :count]
    classes, tokenizer = getattr(model, "class_names", None), getattr(model, "tokenizer", None)
    name = (lambda i: str(classes[i])) if classes else (lambda i: str(tokenizer.decode([i]))) if tokenizer is not None else str
    return [" ".join(name(i) for i in line) for line in order.tolist()]


def top_tokens(site: Activations, rows: np.ndarray, values: np.ndarray, count: int) -> str:
    """The texts that carry most of a factor's coefficients."""
    if site.index is None or "text" not in site.index:
        return ""
    text = np.asarray(site.index["text"]).astype(str)[rows]
    names, owner = np.unique(text, return_inverse=True)
    sums = np.bincount(owner, values, minlength=len(names))
    return " ".join(str(names[i]) for i in np.argsort(-sums, kind="stable")[:count])
