"""The kinds of answer. Every analysis ends in one of them and every widget starts from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from activarium import _result_files, graphs, pictures
from activarium.errors import AxisError, InputError

if TYPE_CHECKING:
    import pandas

Labels = Mapping[str, Sequence[str]]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result:
    """What every kind of answer carries beside its numbers.

    Attributes:
        title: One line a reader can understand without the code.
        unit: Unit of the values (model units, logits, nats, share, percent, tokens).
        noise: Largest difference that a repetition may show (same unit), or None if repetitions are bit-equal.
        check: A Result that compares this one with the exact answer, if it is an approximation.
        diagnostics: Counts and settings a reader may ask for: rows used, rows excluded, dtype.
        provenance: Where it came from: analysis, arguments, input id, model, versions. Filled by the registry.
    """

    title: str = ""
    unit: str = ""
    noise: float | None = None
    check: Result | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze arrays and mappings: a Result is a document, not a workspace."""
        for item in fields(self):
            object.__setattr__(self, item.name, _frozen(getattr(self, item.name)))

    def with_(self, **changes: Any) -> Self:
        """The same answer with some fields replaced."""
        return replace(self, **changes)

    def save(self, path: str | Path) -> Path:
        """Write numbers and words into one safetensors file; `load` brings the same Result back."""
        return _result_files.save(self, Path(path))

    @property
    def checked(self) -> str:
        """How near an approximation came to the exact answer, in one line; empty where there is no `check`."""
        return _check_words(self.check) if self.check is not None else ""

    def to_frame(self) -> pandas.DataFrame:
        """The numbers as a table, one line per value."""
        import pandas

        return pandas.DataFrame(self._columns())

    def _columns(self) -> dict[str, Any]:
        raise AxisError(f"{type(self).__name__} has no single table; ask its parts.")

    def _picture(self) -> str:
        return ""

    def _repr_html_(self) -> str:
        picture = self._picture() + pictures.line(self.checked)
        return pictures.card(self.title or type(self).__name__, picture, self._summary(), self.diagnostics)

    def _summary(self) -> list[list[str]]:
        """At most a dozen lines of text that stand for the picture."""
        columns = self._columns()
        head = list(columns)
        return [head, *[[pictures.number(columns[c][i]) for c in head] for i in range(min(12, len(columns[head[0]])))]]

    def __repr__(self) -> str:
        shape = "×".join(str(n) for n in getattr(self, "values", np.empty(0)).shape)
        return f"{type(self).__name__}({self.title!r}{', ' + shape if shape else ''}{', ' + self.unit if self.unit else ''})"


@dataclass(frozen=True, eq=False, repr=False)
class Grid(Result):
    """Numbers on named axes: layer × position, layer × head, query × key.

    Attributes:
        values: Array with one dimension per axis.
        axes: Axis names, `"layer position"`.
        labels: Names along an axis; an axis without labels is counted from 0.
        masks: Named boolean arrays of the shape of `values`. Drawings know `known_zero` (exactly 0 without a run) and
            `no_row` (no such token or patch: blank); others are hatched under their own name.
        per_example: The same values before averaging, with a leading `example` axis.
    """

    values: np.ndarray
    axes: tuple[str, ...]
    labels: Labels = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_example: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "axes", _words(self.axes))
        object.__setattr__(self, "masks", {name: np.asarray(mask, bool) for name, mask in self.masks.items()})
        super().__post_init__()
        _match_axes(self.values, self.axes, self.labels)
        for name, mask in self.masks.items():
            if mask.shape != self.values.shape:
                raise AxisError(f"Mask {name!r} has shape {mask.shape}; the values have {self.values.shape}. Give one entry per value.")

    def label(self, axis: str) -> list[str]:
        """Names along one axis."""
        if axis not in self.axes:
            raise AxisError(f"This grid has axes {' '.join(self.axes)!r}; there is no axis {axis!r}.")
        return [str(n) for n in self.labels.get(axis, range(self.values.shape[self.axes.index(axis)]))]

    def top(self, count: int = 10) -> list[tuple[tuple[str, ...], float]]:
        """The cells of largest size, with their names, largest first."""
        flat = self.values.ravel()
        order = np.argsort(-np.abs(np.where(np.isnan(flat), 0, flat)), kind="stable")[:count]
        names = [self.label(a) for a in self.axes]
        where = np.array(np.unravel_index(order, self.values.shape)).T
        return [(tuple(n[i] for n, i in zip(names, cell, strict=True)), float(flat[j])) for cell, j in zip(where, order, strict=True)]

    def _columns(self) -> dict[str, Any]:
        index = np.indices(self.values.shape).reshape(self.values.ndim, -1)
        columns: dict[str, Any] = {a: np.asarray(self.label(a), dtype=object)[i] for a, i in zip(self.axes, index, strict=True)}
        return columns | {"value": self.values.ravel()}

    def _picture(self) -> str:
        flat = self.values.reshape(-1, self.values.shape[-1]) if self.values.ndim > 1 else self.values[None]
        masks = {name: mask.reshape(flat.shape) for name, mask in self.masks.items()}
        return pictures.heatmap(flat, self.title, self.unit, masks=masks)

    def _summary(self) -> list[list[str]]:
        return [[*self.axes, self.unit or "value"], *[[*names, pictures.number(v)] for names, v in self.top()]]


@dataclass(frozen=True, eq=False, repr=False)
class Ranking(Result):
    """Things in order, first the one that matters most.

    Attributes:
        names: What is ranked.
        values: The number they are ranked by.
        columns: Further columns of the same length.
    """

    names: tuple[str, ...]
    values: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(n) for n in self.names))
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "columns", {k: np.asarray(v) for k, v in self.columns.items()})
        super().__post_init__()
        for name, column in {"values": self.values, **self.columns}.items():
            if len(column) != len(self.names):
                raise AxisError(f"Ranking has {len(self.names)} names but {len(column)} entries in {name!r}; give one each.")

    def _columns(self) -> dict[str, Any]:
        return {"name": list(self.names), self.unit or "value": self.values, **self.columns}


@dataclass(frozen=True, eq=False, repr=False)
class Series(Result):
    """Curves over one shared x axis.

    Attributes:
        x: Positions along the axis, axis `step`.
        curves: Name → values of the length of `x`.
        x_label: What x counts, with its unit.
        bands: Name → (2, len(x)) lower and upper ends of an interval.
    """

    x: np.ndarray
    curves: Mapping[str, np.ndarray]
    x_label: str = ""
    bands: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", np.asarray(self.x))
        object.__setattr__(self, "curves", {k: np.asarray(v) for k, v in self.curves.items()})
        super().__post_init__()
        for name, curve in self.curves.items():
            if len(curve) != len(self.x):
                raise AxisError(f"Curve {name!r} has {len(curve)} values for {len(self.x)} places on x; give one each.")

    def _columns(self) -> dict[str, Any]:
        return {self.x_label or "x": self.x, **self.curves}


@dataclass(frozen=True, eq=False, repr=False)
class Layout(Result):
    """Things placed on a plane, or nested in one another (a treemap).

    Attributes:
        names: What is placed.
        points: (n, 2) coordinates.
        sizes: One size each.
        parents: For a treemap: index of the enclosing thing, -1 for the root.
    """

    names: tuple[str, ...]
    points: np.ndarray
    sizes: np.ndarray | None = None
    parents: np.ndarray | None = None

    def _columns(self) -> dict[str, Any]:
        return {"name": list(self.names), "x": self.points[:, 0], "y": self.points[:, 1]}


@dataclass(frozen=True, eq=False, repr=False)
class Graph(Result):
    """Nodes and weighted edges (circuits, derivations).

    Attributes:
        nodes: Node names.
        edges: (n, 2) node indices, source then target.
        values: One weight per edge.
        weights: One number per node.
        columns: Further words or numbers, one per node. Drawings know `layer` (whole number, bottom to top), `kind`
            (`embed head mlp logits feature error`) and `readout` (what the node writes, in words).
    """

    nodes: tuple[str, ...]
    edges: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges)
        object.__setattr__(self, "nodes", tuple(str(n) for n in self.nodes))
        object.__setattr__(self, "edges", edges.reshape(-1, 2).astype(int) if not edges.size else edges)
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "weights", None if self.weights is None else np.asarray(self.weights))
        object.__setattr__(self, "columns", {k: np.asarray(v) for k, v in self.columns.items()})
        super().__post_init__()
        _match_edges(self.edges, len(self.nodes))
        if len(self.values) != len(self.edges):
            raise AxisError(f"Graph has {len(self.edges)} edges but {len(self.values)} values; give one each.")
        for name, column in [*([] if self.weights is None else [("weights", self.weights)]), *self.columns.items()]:
            if len(column) != len(self.nodes):
                raise AxisError(f"Graph has {len(self.nodes)} nodes but {len(column)} entries in {name!r}; give one each.")
        layer = self.columns.get("layer")
        if layer is not None and layer.dtype.kind not in "iu":
            raise InputError(f"Column 'layer' counts the rows of the drawing in whole numbers; got {layer.dtype}. Use .astype(int).")

    def pruned(self, threshold: float) -> Graph:
        """The edges of size `threshold` or more, without nodes that have lost every way in or every way out.

        Raises:
            InputError: The threshold is negative or no number.
        """
        if not threshold >= 0:
            raise InputError(f"pruned() compares sizes of edges, so its threshold is 0 or more; got {threshold}.")
        stays = graphs.kept(len(self.nodes), self.edges, self.values, threshold)
        left = np.unique(self.edges[stays])
        return self.with_(
            nodes=tuple(self.nodes[i] for i in left),
            edges=np.searchsorted(left, self.edges[stays]),
            values=self.values[stays],
            weights=None if self.weights is None else self.weights[left],
            columns={name: column[left] for name, column in self.columns.items()},
        )

    def threshold_for(self, most: int) -> float:
        """The smallest threshold at which `pruned` leaves at most `most` edges."""
        return graphs.threshold_for(len(self.nodes), self.edges, self.values, most)

    def rows(self) -> np.ndarray:
        """The row of the drawing that each node stands in, counted from the bottom."""
        return graphs.rows(len(self.nodes), self.edges, self.columns.get("layer"))

    def _columns(self) -> dict[str, Any]:
        ends = {k: [self.nodes[i] for i in self.edges[:, c]] for c, k in enumerate(("source", "target"))}
        return ends | {self.unit or "weight": self.values}

    def _picture(self) -> str:
        small = self.pruned(self.threshold_for(graphs.STATIC_EDGES))
        words = (
            f"{len(small.values)} of {len(self.values)} edges, {len(small.nodes)} of {len(self.nodes)} nodes; blue below 0, orange above"
        )
        return graphs.picture(small.nodes, small.edges, small.values, small.rows(), words)

    def _summary(self) -> list[list[str]]:
        order = np.argsort(-np.abs(np.nan_to_num(self.values)), kind="stable")[:10]
        lines = [[*(self.nodes[n] for n in self.edges[i]), pictures.number(self.values[i])] for i in order]
        return [["source", "target", self.unit or "weight"], *lines]


@dataclass(frozen=True, eq=False, repr=False)
class Overlay(Result):
    """Signed values laid over the tokens of one text or the patches of one image, at their own resolution.

    Attributes:
        values: `(map, position)` over tokens, or `(map, y, x)` over an image grid. One map per name.
        names: What each map shows.
        tokens: The tokens, for text.
        image: The picture underneath, uint8 `(height, width, 3)`, for images.
        mask: Ground truth if known, boolean `(height, width)`.
    """

    values: np.ndarray
    names: tuple[str, ...]
    tokens: tuple[str, ...] | None = None
    image: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values))
        object.__setattr__(self, "names", tuple(self.names))
        super().__post_init__()
        if (self.tokens is None) == (self.image is None):
            raise InputError("An Overlay lies over tokens or over an image: give exactly one of them.")
        wanted = 2 if self.tokens is not None else 3
        if self.values.ndim != wanted or len(self.values) != len(self.names):
            raise AxisError(f"Overlay values have shape {self.values.shape}; wanted {wanted} axes, the first with {len(self.names)} maps.")
        if self.tokens is not None and self.values.shape[1] != len(self.tokens):
            raise AxisError(f"Overlay has {self.values.shape[1]} values for {len(self.tokens)} tokens; give one each.")

    def _columns(self) -> dict[str, Any]:
        axes = ("map", "position") if self.tokens else ("map", "height", "width")
        grid = Grid(self.values, axes=axes, labels={"map": self.names})
        columns = grid._columns()
        if self.tokens is not None:
            columns["token"] = np.asarray(self.tokens, dtype=object)[np.indices(self.values.shape)[1].ravel()]
        return columns

    def _picture(self) -> str:
        if self.tokens is not None:
            return "".join(pictures.tokens(self.tokens, v, n) for n, v in zip(self.names, self.values, strict=True))
        return "".join(pictures.heatmap(v, n, self.unit) for n, v in zip(self.names, self.values, strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class Report(Result):
    """An ordered, titled set of other Results: `report["firing rate"]`, or iterate over its names.

    Attributes:
        parts: Name → Result, in reading order.
        words: What was found, in sentences.
    """

    parts: Mapping[str, Result]
    words: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Result:
        if name not in self.parts:
            from activarium.errors import unknown

            raise unknown("part of this report", name, self.parts)
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def _repr_html_(self) -> str:
        inside = "".join(part._repr_html_() for part in self.parts.values())
        return pictures.card(self.title, pictures.words(self.words) + inside, [], self.diagnostics)

    def __repr__(self) -> str:
        return "\n".join([f"Report({self.title!r})", *[f"  {w}" for w in self.words], *[f"  {n}: {p!r}" for n, p in self.parts.items()]])


KINDS: Mapping[str, type[Result]] = {k.__name__: k for k in (Grid, Ranking, Series, Layout, Graph, Overlay, Report)}


def load(path: str | Path) -> Result:
    """Read a Result that `save` wrote.

    Raises:
        InputError: The file is not a saved Result, or of a later format.
    """
    return _result_files.load(Path(path), KINDS)


def identical(a: Any, b: Any) -> bool:
    """Do two Results hold the same numbers, bit for bit, and the same words? Provenance does not count."""
    if isinstance(a, Result) and type(a) is type(b):
        return all(identical(getattr(a, f.name), getattr(b, f.name)) for f in fields(a) if f.name != "provenance")
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and (a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def _words(axes: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(axes.split()) if isinstance(axes, str) else tuple(axes)


def _match_axes(values: np.ndarray, axes: tuple[str, ...], labels: Labels) -> None:
    if values.ndim != len(axes):
        raise AxisError(f"Values of shape {values.shape} have {values.ndim} axes; axes {' '.join(axes)!r} name {len(axes)}.")
    for axis, names in labels.items():
        if axis not in axes:
            raise AxisError(f"Labels are given for {axis!r}; the axes are {' '.join(axes)!r}.")
        if len(names) != values.shape[axes.index(axis)]:
            raise AxisError(f"Axis {axis!r} has {values.shape[axes.index(axis)]} places but {len(names)} labels; give one each.")


def _check_words(check: Result) -> str:
    known = {"pearson": "Pearson", "pearson_without_zeros": "without known zeros", "slope": "slope", "interval": "interval"}
    found = [f"{words} {_few_digits(check.diagnostics[name])}" for name, words in known.items() if name in check.diagnostics]
    return " · ".join([check.title or "Against the exact answer", *found])


def _few_digits(value: Any) -> str:
    if np.ndim(value):
        return " to ".join(_few_digits(v) for v in value)
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value)


def _match_edges(edges: np.ndarray, nodes: int) -> None:
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise AxisError(f"Edges have shape {edges.shape}; wanted (n, 2), a source and a target each.")
    if edges.dtype.kind not in "iu":
        raise InputError(f"Edges are indices of nodes, whole numbers; got {edges.dtype}.")
    outside = ((edges < 0) | (edges >= nodes)).any(1)
    if outside.any():
        at = int(outside.argmax())
        raise InputError(f"Edge {at} joins nodes {edges[at, 0]} and {edges[at, 1]}; the {nodes} nodes are numbered from 0 to {nodes - 1}.")


def _frozen(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        # A copy, unless nobody can write to it any more: a caller's array must not change the document later.
        kept = value.astype(object) if value.dtype.kind in "US" else value.copy() if value.flags.writeable else value
        kept.flags.writeable = False
        return kept
    if isinstance(value, Mapping):
        return MappingProxyType({k: _frozen(v) for k, v in value.items()})
    return tuple(value) if isinstance(value, list) else value
