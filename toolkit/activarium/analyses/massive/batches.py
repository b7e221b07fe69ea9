"""Going through what a live model runs on, some examples at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from activarium.progress import progress_bar
from activarium.protocols import Runner

AT_ONCE = 16  # examples in one forward


def blocks_of(model: Runner, prefix: str) -> int:
    """How many blocks a stack has."""
    count = 0
    while f"{prefix}blocks.{count}.resid_post" in model.sites:
        count += 1
    return count


def batches(model: Runner, inputs: Any, doing: str, progress: bool) -> Iterator[Any]:
    """Encoded inputs, some at a time."""
    encoded = model.inputs(inputs)
    with progress_bar(progress, doing, len(encoded)) as advance:
        for start in range(0, len(encoded), AT_ONCE):
            here = encoded.select(range(start, min(start + AT_ONCE, len(encoded))))
            yield here
            advance(len(here))
