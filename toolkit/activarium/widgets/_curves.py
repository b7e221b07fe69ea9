"""Curves: lines, bands and bars over one x axis, with the exact numbers of every curve under the pointer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import traitlets

from activarium import pictures
from activarium.results import Result, Series
from activarium.widgets import curve_pictures, payload, thinning
from activarium.widgets.base import Widget, bundle, stylesheet

FORMS, SCALES = ("lines", "bars"), ("linear", "log")


class Curves(Widget):
    """Curves with their bands over one x axis, even or logarithmic; counts stand as bars.

    `pointed` and `pinned` name a place by its index on x, under the name of that axis where it is one word (`layer`, `step`)
    and as `x` where it is not, and by the name of the `curve`.

    Attributes:
        shown: Indices of the curves on screen.
        form: `lines`, or `bars`: around x where x counts things, from each x to the next where x are edges.
        x_scale: `linear` or `log`. Where a logarithm has no place for 0 or negative numbers, `log` is linear around 0.
        y_scale: The same for the values.
    """

    shows: ClassVar[type[Result]] = Series
    result: Series
    _esm = bundle("curves")
    _css = stylesheet("curves")

    shown = traitlets.List(traitlets.Int()).tag(sync=True)
    form = traitlets.Enum(FORMS, "lines").tag(sync=True)
    x_scale = traitlets.Enum(SCALES, "linear").tag(sync=True)
    y_scale = traitlets.Enum(SCALES, "linear").tag(sync=True)

    def __init__(self, result: Series, **traits: Any) -> None:
        curves = {str(name): values for name, values in result.curves.items()}
        start = {"shown": list(range(len(curves))), "form": "bars" if _counts(result) else "lines"}
        super().__init__(result, **(start | traits))
        names = None if _numeric(result.x) else [str(name) for name in result.x]
        x = np.arange(len(result.x)) if names else result.x
        bands = {name: result.bands[name] for name in curves if name in result.bands}
        placed = np.flatnonzero(np.isfinite(x))
        kept = placed[np.argsort(x[placed], kind="stable")]
        kept = kept[thinning.kept([v[kept] for v in [*curves.values(), *(end for band in bands.values() for end in band)]])]
        arrays = {"x": payload.floats(x[kept])}
        if len(kept) != len(x) or (np.diff(kept) != 1).any():
            arrays["index"] = kept.astype(np.float64)
        arrays |= {f"curve {at}": payload.floats(values[kept]) for at, values in enumerate(curves.values())}
        arrays |= {f"band {at}": payload.floats(bands[name][:, kept]) for at, name in enumerate(curves) if name in bands}
        table, self.data = payload.pack(arrays)
        self.spec = {
            "title": result.title,
            "unit": result.unit,
            "check": result.checked,
            "x_label": result.x_label,
            "key": _key(result),
            "names": names,
            "curves": list(curves),
            "dtypes": {name: "f4" if array.dtype == np.float32 else "f8" for name, array in arrays.items()},
            "centred": x.dtype.kind in "biu",
            "whole": x.dtype.kind in "biu",
            "total": len(x),
            "unplaced": len(x) - len(placed),
            "arrays": table,
        }

    @classmethod
    def accepts(cls, result: Result) -> bool:
        """Series of numbers with at least one curve and one place; bands have a lower and an upper end for each place."""
        if not isinstance(result, Series) or not result.curves or result.x.ndim != 1:
            return False
        if _numeric(result.x) and not np.isfinite(result.x).any():
            return False
        curves = all(values.ndim == 1 and _numeric(values) for values in result.curves.values())
        bands = all(_numeric(np.asarray(band)) and np.shape(band) == (2, len(result.x)) for band in result.bands.values())
        return len(result.x) > 0 and curves and bands

    def value(self, place: Mapping[str, Any]) -> float:
        """The value at a place such as `pointed` or one of `pinned`."""
        curve = next(values for name, values in self.result.curves.items() if str(name) == place["curve"])
        return float(curve[place[self.spec["key"]]])

    def png(self) -> bytes:
        """The shown curves, with ends of the axes and a legend where Pillow can write."""
        arrays = payload.unpack(self.spec["arrays"], self.data)
        log = {axis: getattr(self, f"{axis}_scale") == "log" for axis in "xy"}
        return pictures.png(curve_pictures.raster(self.spec, arrays, self.shown, bars=self.form == "bars", log=log))


def _numeric(values: np.ndarray) -> bool:
    return values.dtype.kind in "bfiu"


def _counts(result: Series) -> bool:
    """Do all curves count things? Whole numbers from 0 up."""
    return all(values.dtype.kind in "iu" and (values >= 0).all() for values in result.curves.values())


def _key(result: Series) -> str:
    """One word names an axis, which other widgets may have too; a phrase is no name."""
    word = result.x_label
    return word if re.fullmatch(r"[a-z_]+", word) and word != "curve" else "x"
