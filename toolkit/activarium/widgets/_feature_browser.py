"""FeatureBrowser: a list of features to sort, filter and search, and the page of the one that is opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import traitlets

from activarium import pictures
from activarium.errors import InputError
from activarium.results import Ranking, Result
from activarium.widgets import payload
from activarium.widgets.base import Widget, bundle, stylesheet
from activarium.widgets.feature_columns import Columns, columns_of, is_pages, pages_for, ranking_of
from activarium.widgets.feature_pictures import raster
from activarium.widgets.feature_sheets import Book

if TYPE_CHECKING:
    from activarium.protocols import Pages

MOST_PAGES = 200  # that a page without a kernel brings along unless told otherwise
BOOK_BYTES = 4 << 20  # and their deflated size; base64 adds a third in the file
SEARCH_LETTERS = 200


class FeatureBrowser(Widget):
    """Thousands of features to sort, filter and search; a page is read when it is opened.

    Attributes:
        sort: What the list is ordered by: `column` (a name, `feature`, or empty for the order of the ranking) and `down`.
        limits: Column → lowest and highest value that passes, None where it is open.
        hide_dead: Are features left out that never fire?
        query: Text that a listed feature has in a context or a promoted token, as `Pages.find` finds it.
        pinned: The opened feature, `[{"feature": 17}]`.
        book: Pages that travel with the widget, for places without a kernel; see `embedded`.

    Example:
        >>> browser = act.widgets.FeatureBrowser(act.testing.example_pages())
        >>> browser.hide_dead = True
        >>> browser.limits = {"max": [2.7, None]}
        >>> browser.shown.names
        ('feature 11', 'feature 6', 'feature 0')
    """

    shows: ClassVar[type[Result]] = Ranking
    needs: ClassVar[str] = "pages"
    result: Ranking
    _esm = bundle("feature_browser")
    _css = stylesheet("feature_browser")

    sort = traitlets.Dict({"column": "", "down": True}).tag(sync=True)
    limits = traitlets.Dict().tag(sync=True)
    hide_dead = traitlets.Bool(False).tag(sync=True)
    query = traitlets.Unicode("").tag(sync=True)
    book = traitlets.Bytes().tag(sync=True)
    bound = traitlets.Dict().tag(sync=True)

    def __init__(self, result: Ranking | Pages, pages: Pages | str | Path | None = None, **traits: Any) -> None:
        ranking = result if isinstance(result, Ranking) else ranking_of(result)
        given = result if pages is None and not isinstance(result, Ranking) else pages
        self.pages, self._absent = pages_for(ranking, given)
        self.columns: Columns = columns_of(ranking, self.pages)
        self._found: tuple[str, np.ndarray] = ("", np.empty(0, int))
        super().__init__(ranking, **traits)
        self.data, spec = self._listed()
        self.spec = spec

    @classmethod
    def accepts(cls, result: Result) -> bool:
        """Rankings of at least one thing by a number."""
        return isinstance(result, Ranking) and len(result.names) > 0 and result.values.dtype.kind in "bfiu"

    @classmethod
    def of(cls, result: Any, model: Any = None) -> Self:
        """The browser for a Ranking of features, or for Pages alone.

        Args:
            result: A Ranking; or Pages, all of whose features are listed.
            model: The Pages to read from, if the ranking does not name them itself. A live model is left alone.

        Raises:
            InputError: The Result is of another kind, or does not say which features it is about.
        """
        if not is_pages(result) and not cls.accepts(result):
            return super().of(result)
        return cls(result, model if is_pages(model) or isinstance(model, (str, Path)) else None)

    @property
    def order(self) -> np.ndarray:
        """Numbers of the features that pass filters and search, as the list orders them."""
        return self.columns.features[self._rows()]

    @property
    def shown(self) -> Ranking:
        """What is listed, as a Ranking of its own."""
        rows = self._rows()
        columns = {name: column[rows] for name, column in self.result.columns.items()}
        return self.result.with_(names=tuple(self.result.names[row] for row in rows), values=self.result.values[rows], columns=columns)

    def value(self, place: Mapping[str, int]) -> float:
        """The number that the ranking gives a feature such as `pointed` or one of `pinned`."""
        return float(self.result.values[self._row(place["feature"])])

    def embedded(self, features: int | Iterable[int] | None = None, budget: int = BOOK_BYTES) -> Self:
        """The same browser with pages bound in: they open where no kernel is, in an exported page or a saved notebook.

        Args:
            features: Which pages, or how many of the present order; by default the first 200.
            budget: Deflated bytes the pages may have together; of a number of pages, those that fit are taken.

        Raises:
            InputError: A named feature is not listed, or the named ones need more than `budget`.
        """
        kept = {name: getattr(self, name) for name in ("sort", "limits", "hide_dead", "query", "pinned")}
        words, book = self._bind(features, budget)
        return type(self)(self.result, self.pages, **kept, bound=words, book=book)

    def carried(self) -> dict[str, Any]:
        """The state with pages bound in, so that an exported page has something to open."""
        state = super().carried()
        if not self.book and self.pages is not None:
            state["bound"], state["book"] = self._bind(None, BOOK_BYTES)
        return state

    def png(self) -> bytes:
        """The top of the list; of an opened feature its histogram and the tokens it promotes."""
        opened = self._opened()
        page = {} if opened is None or self.pages is None else self.pages.page(opened)
        return pictures.png(raster(self.result.title, self.columns, self._rows(), opened, page, str(self.sort["column"])))

    def answer(self, question: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """The page of a feature, or the features that a text is found in."""
        if question.get("ask") not in ("page", "find"):
            return super().answer(question)
        try:
            return self._page(int(question["feature"])) if question["ask"] == "page" else self._find(str(question["text"]))
        # Whatever a reader of files can raise becomes words in the widget, which lives on.
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}, []

    def _page(self, feature: int) -> tuple[dict[str, Any], list[bytes]]:
        book = Book()
        book.add(feature, *self._read(feature))
        table, data = book.pack()
        return {"feature": feature, "arrays": table}, [data]

    def _read(self, feature: int) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """The page of a feature and the exact numbers of its row."""
        row = self._row(feature)
        if self.pages is None:
            raise InputError(self._absent)
        figures = {self.result.unit or "value": self.result.values[row]}
        figures |= {name: column[row] for name, column in self.result.columns.items() if name != "feature"}
        figures |= {name: column[feature] for name, column in self.pages.columns.items() if name not in figures}
        return self.pages.page(feature), figures

    def _find(self, text: str) -> tuple[dict[str, Any], list[bytes]]:
        table, data = payload.pack({"found": self._features_with(text).astype(np.float32)})
        return {"text": text, "arrays": table}, [data]

    def _features_with(self, text: str) -> np.ndarray:
        if len(text) > SEARCH_LETTERS:
            raise InputError(f"A search text has at most {SEARCH_LETTERS} letters; this one has {len(text)}.")
        if self.pages is None:
            raise InputError(self._absent)
        if self._found[0] != text or not text:
            self._found = text, np.asarray(self.pages.find(text))
        return self._found[1]

    def _rows(self) -> np.ndarray:
        found = self._features_with(self.query) if self.query.strip() else None
        return self.columns.rows(str(self.sort["column"]), bool(self.sort["down"]), self.limits, self.hide_dead, found)

    def _row(self, feature: int) -> int:
        rows = np.flatnonzero(self.columns.features == feature)
        if not len(rows):
            raise InputError(f"Feature {feature} is not among the {len(self.columns.features)} that are listed here.")
        return int(rows[0])

    def _opened(self) -> int | None:
        return next((int(pin["feature"]) for pin in self.pinned if pin.get("feature") in self.columns.features), None)

    def _bind(self, features: int | Iterable[int] | None, budget: int) -> tuple[dict[str, Any], bytes]:
        if self.pages is None:
            raise InputError(self._absent)
        wanted, named = self._wanted(features)
        book = Book()
        for at, feature in enumerate(wanted):
            if book.add(feature, *self._read(feature), budget=budget):
                continue
            if named:
                raise InputError(
                    f"{at} of the {len(wanted)} named pages need {book.size} bytes, and the next one is over the budget of {budget}. "
                    "Name fewer features or give a larger budget=."
                )
            break
        table, data = book.pack()
        return {"arrays": table, "features": book.features}, data

    def _wanted(self, features: int | Iterable[int] | None) -> tuple[list[int], bool]:
        """The pages to bind, and whether they were named; a number takes the opened feature, then the present order."""
        if features is not None and not isinstance(features, int):
            return list(dict.fromkeys(int(n) for n in features)), True
        count, opened = MOST_PAGES if features is None else features, self._opened()
        first = [] if opened is None else [opened]
        return list(dict.fromkeys(first + self.order[:count].tolist()))[:count], False

    def _listed(self) -> tuple[bytes, dict[str, Any]]:
        found = self.columns
        arrays = {"feature": found.features.astype(np.float32)}
        if found.numbers:
            arrays["numbers"] = payload.planes(np.stack(list(found.numbers.values())))
        arrays |= {f"words {name}": payload.lines(words) for name, words in found.words.items()}
        table, data = payload.pack(arrays)
        words = {
            "title": self.result.title,
            "check": self.result.checked,
            "unit": self.result.unit or "value",
            "count": len(found.features),
            "columns": list(found.numbers),
            "words": list(found.words),
            "dead": found.dead,
            "absent": self._absent,
            "arrays": table,
        }
        return data, words
