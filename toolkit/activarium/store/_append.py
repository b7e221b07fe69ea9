"""Whose turn is it in this store? The data it was begun with, data that were appended, or new ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from activarium.errors import StoreError
from activarium.store._folder import row_tables
from activarium.store._format import Manifest, same_capture
from activarium.store._journal import Appended, Journal
from activarium.store._tables import lazy_rows


@dataclass(frozen=True)
class Place:
    """Where the examples of one capture stand in a store.

    Attributes:
        start: Place of the first one; the places of all captures follow one another.
        examples: How many there are.
        number: Example number of the first one.
        entry: What the journal must say about them, for data that are appended now.
    """

    start: int
    examples: int
    number: int
    entry: Appended | None = None


def place_of(draft: Manifest, found: Manifest, journal: Journal, path: Path, *, append: bool) -> Place:
    """The place of a capture's data in a store that exists.

    Raises:
        OtherModel: The store was made with another model, other sites, or (without `append`) other data.
        StoreError: Data are to be appended to a store that lacks some of its own.
    """
    same = [("data hash", draft.data.get("hash"), found.data.get("hash")), ("batch plan", draft.plan.hash, found.plan.hash)]
    if not append or all(want == have for _, want, have in same):
        same_capture(draft, found, path)
        return Place(0, found.plan.examples, 0)
    same_capture(draft.model_copy(update={"data": found.data, "plan": found.plan}), found, path)
    start = found.plan.examples
    for part in journal.appended:
        if (part.data.get("hash"), part.plan.hash) == (draft.data.get("hash"), draft.plan.hash):
            return Place(start, part.plan.examples, part.number)
        start += part.plan.examples
    held = sum(last - first for first, last in journal.done)
    if held < start:
        raise StoreError(
            f"{path} is incomplete: {held:,} of {start:,} examples are there. Run the capture that began it to its end, then append."
        )
    number = _last_number(path, journal) + 1
    return Place(start, draft.plan.examples, number, Appended(number=number, data=draft.data, plan=draft.plan))


def _last_number(path: Path, journal: Journal) -> int:
    spaces = {space for commit in journal.commits for space in commit.rows}
    numbers = (lazy_rows(row_tables(path, journal, space))["example"] for space in spaces)
    return max((int(np.max(n)) for n in numbers if len(n)), default=-1)
