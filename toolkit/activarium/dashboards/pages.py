"""Pages of features on the disk: numbers of all of them at once, the page of one when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from activarium.dashboards.contexts import BANDS, TOP
from activarium.dashboards.folder import GROUP, Folder, named
from activarium.dashboards.gather import bar_edges
from activarium.errors import CorruptStore, InputError

COLUMNS, TEXT, STRINGS, PICTURES, HEADS = (
    "columns.safetensors",
    "text.safetensors",
    "strings.json",
    "pictures.safetensors",
    "heads.safetensors",
)
LISTS = ("neighbours", "together", "correlated", "neurons")
OPEN = 16  # files of pages that stay mapped
GREY = 128


def group_file(feature: int) -> str:
    """The file that holds the page of a feature."""
    return f"pages/{feature // GROUP:05d}.safetensors"


def band_name(band: int) -> str:
    """`top`, or the quantiles of the feature's own sizes between which a band lies."""
    return "top" if band == TOP else f"{band / BANDS:g}–{(band + 1) / BANDS:g}"


class FeaturePages:
    """What `activarium.protocols.Pages` asks for, read from a folder: columns when they are first looked at, a page when it is opened.

    Attributes:
        path: The folder.
        title: What they are features of.
        about: What the manifest says: dictionary, recording, settings, counts, and the definition of every part.
        temporary: It goes when this process ends.
    """

    def __init__(self, path: Path, temporary: bool = False) -> None:
        self.path, self.temporary = path, temporary
        self._folder = Folder(path)
        self.about: Mapping[str, Any] = {k: v for k, v in self._folder.about.items() if k != "files"}
        self.title = str(self.about["title"])
        self._group = lru_cache(maxsize=OPEN)(self._folder.arrays)

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """Name → one number per feature of the dictionary; NaN for those that no pages were built of."""
        return self._columns

    @cached_property
    def _columns(self) -> Mapping[str, np.ndarray]:
        file = self._folder.arrays(COLUMNS)
        return {name: file.get_tensor(name) for name in self.about["columns"]}

    def __len__(self) -> int:
        return int(self.about["counts"]["features"])

    def page(self, feature: int) -> Mapping[str, Any]:
        """All that is known of one feature; see `activarium.protocols.Pages`.

        Beside that: `bands` {`edges`, `counts`}, sizes between which the bands of the contexts lie and codes in each; `correlated`;
        for an image `cls`, the code of its cls row, where that row was not left out; `sources` of a context, where they were asked for.

        Raises:
            InputError: There is no such feature.
            CorruptStore: The file of its page was damaged; the message names it.
        """
        feature = int(feature)
        if not 0 <= feature < len(self):
            raise InputError(f"There is no feature {feature}; these pages are of {len(self):,}, numbered from 0.")
        file = self._group(group_file(feature)) if group_file(feature) in self._folder else None
        numbers = np.empty(0, np.int64) if file is None else file.get_tensor("feature")
        at = int(np.searchsorted(numbers, feature))
        if file is None or at == len(numbers) or numbers[at] != feature:
            return {"note": f"no page was built of this feature; {self.about['counts']['built']:,} others have one"}
        return self._page(file, at)

    def _page(self, file: Any, at: int) -> dict[str, Any]:
        held = set(file.keys())
        page: dict[str, Any] = {}
        counts = file.get_slice("histogram")[at : at + 1][0]
        if counts.any():
            page["histogram"] = {"edges": bar_edges(file.get_slice("ends")[at : at + 1][0]), "counts": counts}
            page["bands"] = {"edges": file.get_slice("band_edges")[at : at + 1][0], "counts": file.get_slice("band_counts")[at : at + 1][0]}
            page["contexts"] = self._contexts(file, at)
        for name in ("promoted", "suppressed"):
            if name in held:
                words, figures = (file.get_slice(key)[at : at + 1][0] for key in (name, f"{name}_logit"))
                page[name] = [(self._strings[w], float(f)) for w, f in zip(words, figures, strict=True)]
        for name in LISTS:
            if name in held:
                numbers, figures = (file.get_slice(key)[at : at + 1][0] for key in (name, f"{name}_figure"))
                page[name] = [(int(n), float(f)) for n, f in zip(numbers, figures, strict=True) if n >= 0]
        return page

    def _contexts(self, file: Any, at: int) -> list[dict[str, Any]]:
        start, stop = (int(n) for n in file.get_slice("contexts")[at : at + 2])
        columns = {key: file.get_slice(key)[start:stop] for key in ("band", "example", "position", "row", "value", "first", "length")}
        places = file.get_slice("place")[start : stop + 1]
        values = file.get_slice("values")[int(places[0]) : int(places[-1])]
        made = []
        for i in range(stop - start):
            first, length = int(columns["first"][i]), int(columns["length"][i])
            context: dict[str, Any] = {"band": band_name(int(columns["band"][i]))}
            context |= {"example": int(columns["example"][i]), "position": int(columns["position"][i]), "value": float(columns["value"][i])}
            here = values[int(places[i] - places[0]) : int(places[i + 1] - places[0])]
            made.append(context | self._around(first, length, here, context["example"]) | {"at": int(columns["row"][i]) - first})
        if "sources" in file.keys():  # noqa: SIM118 - not a mapping
            self._add_sources(file, start, made)
        return made

    def _around(self, first: int, length: int, values: np.ndarray, example: int) -> dict[str, Any]:
        begin = self._stored(first)
        x = self._text["x"][begin : begin + length].astype(int)
        if not (x >= 0).any():
            return {"tokens": [self._strings[t] for t in self._text["text"][begin : begin + length]], "values": values}
        y, patch = self._text["y"][begin : begin + length].astype(int), x >= 0
        grid = int(y.max()) + 1, int(x.max()) + 1
        heat = np.full(grid, np.nan, np.float32)
        heat[y[patch], x[patch]] = values[patch]
        made: dict[str, Any] = {"image": self._picture(example, grid), "grid": grid, "values": heat.ravel()}
        if not patch[0] and "cls" not in self.about["settings"]["exclude"]:
            made["cls"] = float(values[0])
        return made

    def _stored(self, row: int) -> int:
        """Where a row stands among those that are kept."""
        stretch = int(np.searchsorted(self._text["first"], row, side="right")) - 1
        if stretch < 0 or row >= self._text["first"][stretch] + self._text["length"][stretch]:
            raise CorruptStore(f"{self.path / TEXT} does not hold row {row:,}, which a page shows. Build the pages again.")
        return int(self._text["place"][stretch] + row - self._text["first"][stretch])

    def _picture(self, example: int, grid: tuple[int, int]) -> np.ndarray:
        if PICTURES in self._folder:
            file = self._group(PICTURES)
            if str(example) in file.keys():  # noqa: SIM118 - not a mapping
                return file.get_tensor(str(example))
        return np.full((8 * grid[0], 8 * grid[1], 3), GREY, np.uint8)

    def _add_sources(self, file: Any, start: int, made: list[dict[str, Any]]) -> None:
        places, shares = file.get_tensor("sources_place"), file.get_tensor("sources")
        heads = int(file.get_tensor("sources_heads")[0])
        for i, context in enumerate(made):
            low, high = places[start + i], places[start + i + 1]
            if high > low:
                context["sources"] = shares[low:high].reshape(heads, -1)

    @cached_property
    def _text(self) -> dict[str, np.ndarray]:
        file = self._folder.arrays(TEXT)
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping

    @cached_property
    def _strings(self) -> list[str]:
        return self._folder.words(STRINGS)

    def find(self, text: str) -> np.ndarray:
        """Features in whose contexts or promoted tokens a text occurs, upper and lower case alike, ascending.

        Tokens are read as they follow one another, and again with a space between them.
        """
        sought = text.casefold()
        if not sought:
            return np.flatnonzero(np.isfinite(self.columns["fires"]))
        heads = self._folder.arrays(HEADS)
        feature, first, length = (heads.get_tensor(name) for name in ("feature", "first", "length"))
        held = np.zeros(len(self), bool)
        matches = np.array(sorted(self._matches(sought)), np.int64).reshape(-1, 2)
        # Of the matches that begin in a context or later, does the one that ends first end within it?
        ends = np.r_[np.minimum.accumulate(matches[::-1, 1])[::-1], np.iinfo(np.int64).max]
        held[feature[ends[np.searchsorted(matches[:, 0], first)] <= first + length]] = True
        if "promoted" in heads.keys():  # noqa: SIM118 - not a mapping
            words = np.array([sought in s.casefold() for s in self._strings], bool)
            held[heads.get_tensor("built")[words[heads.get_tensor("promoted")].any(1)]] = True
        return np.flatnonzero(held)

    def headlines(self, features: np.ndarray) -> dict[str, list[str]]:
        """A few words on features that have a page: `strongest`, the token or patch of the largest code, and `promoted` tokens."""
        heads = self._folder.arrays(HEADS)
        at = np.searchsorted(heads.get_tensor("built"), features)
        made = {"strongest": [self._word(int(row)) for row in heads.get_tensor("strongest")[at]]}
        if "promoted" in heads.keys():  # noqa: SIM118 - not a mapping
            words = heads.get_tensor("promoted")[at, :3]
            made["promoted"] = [", ".join(self._strings[w].strip() for w in line) for line in words]
        return made

    def _word(self, row: int) -> str:
        if row < 0:
            return ""
        at = self._stored(row)
        y, x = (int(self._text[axis][at]) for axis in ("y", "x"))
        return f"patch {y},{x}" if x >= 0 else self._strings[self._text["text"][at]]

    def _matches(self, sought: str) -> set[tuple[int, int]]:
        """First row and row after the last of every place where the text stands."""
        found: set[tuple[int, int]] = set()
        words = [s.casefold() for s in self._strings]
        for first, length, place in zip(self._text["first"], self._text["length"], self._text["place"], strict=False):
            tokens = [words[t] for t in self._text["text"][place : place + length]]
            for between in ("", " "):
                line = between.join(tokens)
                at = line.find(sought)
                if at < 0:
                    continue
                ends = np.cumsum([len(t) + len(between) for t in tokens])
                while at >= 0:
                    start = int(np.searchsorted(ends, at, side="right"))
                    stop = int(np.searchsorted(ends, at + len(sought) - 1, side="right")) + 1
                    found.add((int(first) + start, int(first) + min(stop, int(length))))
                    at = line.find(sought, at + 1)
        return found

    def __repr__(self) -> str:
        counts = self.about["counts"]
        ends = "; in a temporary folder that goes with this process" if self.temporary else ""
        return f"FeaturePages({self.title!r}: {counts['built']:,} pages, {counts['rows']:,} rows, {self.path}{ends})"


def open_pages(path: str | Path) -> FeaturePages:
    """The pages that `build` wrote into a folder; only the manifest is read, and the size of every file looked at.

    Args:
        path: A folder whose name ends in `.features`.

    Raises:
        StoreError: There are none, or they are of another version.
        CorruptStore: The manifest or a file's size is not what was written.
    """
    return FeaturePages(named(path))
