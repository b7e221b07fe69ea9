"""A model's answers by name: class names, tokens and their ids."""

from __future__ import annotations

import numpy as np

from activarium.errors import InputError, unknown
from activarium.protocols import Runner


def identity_of(model: Runner, target: str | int, size: int) -> int:
    """The id of a token or class given by name or number."""
    if isinstance(target, int):
        if not 0 <= target < size:
            raise InputError(f"target={target} is no answer of this model: its ids go from 0 to {size - 1}.")
        return target
    classes = list(getattr(model, "class_names", None) or ())
    if target in classes:
        return classes.index(target)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise unknown("class", target, classes)
    ids = tokenizer.encode(target, add_special_tokens=False)
    if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and target != tokenizer.unk_token):
        raise unknown("single token", target, sorted(tokenizer.get_vocab()))
    return int(ids[0])


class Spelling:
    """Ids as a reader knows them: class names, else tokens, else numbers."""

    def __init__(self, model: Runner) -> None:
        self.classes = list(getattr(model, "class_names", None) or ())
        self.tokenizer = None if self.classes else getattr(model, "tokenizer", None)

    def __call__(self, answer: int) -> str:
        if self.classes:
            return str(self.classes[answer])
        return str(self.tokenizer.decode([answer])) if self.tokenizer is not None else str(answer)

    def table(self, answers: np.ndarray) -> np.ndarray:
        known = {int(i): self(int(i)) for i in np.unique(answers)}
        return np.array([known[int(i)] for i in answers.ravel()], dtype=object).reshape(answers.shape)
