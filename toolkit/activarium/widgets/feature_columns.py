"""The list of a feature browser and the pages behind it: which numbers stand beside which feature, and in which order they are shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from activarium.errors import ActivariumError, InputError
from activarium.results import Ranking

if TYPE_CHECKING:
    from activarium.protocols import Pages

DEAD = ("fires", "density", "max")  # the first of these that is a column tells a dead feature by its 0
_PLAIN_NAME = re.compile(r"(feature )?\d+")


@dataclass(frozen=True)
class Columns:
    """One row per listed feature, in the order of the ranking.

    Attributes:
        features: The number of each feature.
        numbers: Name → float32, one per row.
        words: Name → words, one per row.
    """

    features: np.ndarray
    numbers: Mapping[str, np.ndarray]
    words: Mapping[str, tuple[str, ...]]

    @property
    def dead(self) -> str:
        """The column whose 0 says that a feature never fires; empty if there is none."""
        return next((name for name in DEAD if name in self.numbers), "")

    def rows(self, sort: str, down: bool, limits: Mapping[str, Any], hide_dead: bool, found: np.ndarray | None) -> np.ndarray:
        """Rows that pass, in order; missing numbers come last whichever way, ties by the lower number of the feature."""
        keep = np.ones(len(self.features), bool)
        for name, (low, high) in limits.items():
            if name in self.numbers:
                # A missing number is in no range.
                keep &= (self.numbers[name] >= (-np.inf if low is None else low)) & (
                    self.numbers[name] <= (np.inf if high is None else high)
                )
        if hide_dead and self.dead:
            keep &= self.numbers[self.dead] != 0
        if found is not None:
            keep &= np.isin(self.features, found)
        rows = np.flatnonzero(keep)
        return rows[self._order(rows, sort, down)]

    def _order(self, rows: np.ndarray, sort: str, down: bool) -> np.ndarray:
        features = self.features[rows]
        if sort == "feature":
            return np.argsort(-features if down else features, kind="stable")
        if sort in self.numbers:
            values = self.numbers[sort][rows].astype(float)
            return np.lexsort((features, -values if down else values))
        if sort in self.words:
            ranks = np.unique(np.array([self.words[sort][row] for row in rows], dtype=str), return_inverse=True)[1]
            return np.lexsort((features, -ranks if down else ranks))
        return np.arange(len(rows))


def is_pages(thing: Any) -> TypeGuard[Pages]:
    """Has it what the protocol `Pages` asks for? Asked without importing the protocol, which needs torch."""
    return all(hasattr(thing, name) for name in ("title", "columns", "page", "find")) and not isinstance(thing, Ranking)


def ranking_of(pages: Pages) -> Ranking:
    """All features of some pages, ordered by their first column, the largest first and what is missing last.

    Raises:
        InputError: There is no column, or they differ in length.
    """
    columns = {str(name): np.asarray(column) for name, column in pages.columns.items()}
    sizes = {name: len(column) for name, column in columns.items()}
    if not columns or len(set(sizes.values())) != 1:
        raise InputError(f"Pages need columns with one number per feature; got {sizes or 'none'}.")
    first, values = next(iter(columns.items()))
    order = np.argsort(-values.astype(float), kind="stable")
    rest = {"feature": order} | {name: column[order] for name, column in columns.items() if name != first}
    return Ranking(
        tuple(f"feature {n}" for n in order.tolist()),
        values[order],
        rest,
        title=str(pages.title),
        unit=first,
        # A folder is named, so that the ranking can be saved and find its pages again.
        diagnostics={"view": "FeatureBrowser", "pages": str(pages.path) if hasattr(pages, "path") else pages},  # pyright: ignore[reportAttributeAccessIssue]
    )


def pages_for(ranking: Ranking, given: Pages | str | Path | None) -> tuple[Pages | None, str]:
    """The pages, or why there are none: those given must be there, those that a ranking only mentions may be gone."""
    wanted = ranking.diagnostics.get("pages") if given is None else given
    if wanted is None:
        return None, "This ranking came without pages. Give them: FeatureBrowser(ranking, pages)."
    if isinstance(wanted, (str, Path)):
        return _opened_at(wanted, given is not None)
    if not is_pages(wanted):
        raise InputError(f"Pages are a folder or an object with columns, page and find; got {type(wanted).__name__}.")
    return wanted, ""


def _opened_at(path: str | Path, must: bool) -> tuple[Pages | None, str]:
    from activarium.dashboards import open_pages

    try:
        return open_pages(path), ""
    except (OSError, ActivariumError) as error:
        words = f"Pages not found at {path}: {error}. Write them again, or give them: FeatureBrowser(ranking, pages)."
        if must:
            raise InputError(words) from error
        return None, words


def columns_of(ranking: Ranking, pages: Pages | None) -> Columns:
    """What is listed: the ranking's own numbers and words, then what the pages add about the same features."""
    features = _features(ranking, None if pages is None else len(next(iter(pages.columns.values()), ())))
    given = {ranking.unit or "value": ranking.values, **{name: c for name, c in ranking.columns.items() if name != "feature"}}
    if pages is not None:
        given |= {str(name): np.asarray(c)[features] for name, c in pages.columns.items() if str(name) not in given}
    if not all(_PLAIN_NAME.fullmatch(name) for name in ranking.names):
        given = {"name": np.array(ranking.names, dtype=object)} | given
    numbers = {name: np.asarray(c, np.float32) for name, c in given.items() if c.dtype.kind in "bfiu"}
    words = {name: tuple(str(word) for word in c) for name, c in given.items() if name not in numbers}
    return Columns(features, numbers, words)


def _features(ranking: Ranking, known: int | None) -> np.ndarray:
    """Which feature each line of a ranking is about: its column `feature`, the number its name ends in, or its place."""
    if "feature" in ranking.columns:
        found = np.asarray(ranking.columns["feature"])
    else:
        ends = [re.search(r"(\d+)$", name) for name in ranking.names]
        found = np.array([int(end[1]) for end in ends if end])
        if len(found) != len(ends) and (known is None or known == len(ends)):
            found = np.arange(len(ends))
    if len(found) != len(ranking.names) or found.dtype.kind not in "iu" or len(np.unique(found)) != len(found):
        raise InputError(
            "The ranking does not say which feature each of its lines is about. Give it a column 'feature' of different whole numbers."
        )
    if known is not None and len(found) and not 0 <= found.min() <= found.max() < known:
        raise InputError(
            f"The ranking names feature {found.max()}; the pages hold {known} features, numbered from 0. Are they of another dictionary?"
        )
    return found.astype(np.int64)
