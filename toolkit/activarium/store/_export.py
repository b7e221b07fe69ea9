"""Stores for other tools: zarr groups and Hugging Face data sets, the numbers bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from activarium._recorded import plain
from activarium.errors import InputError, MissingExtra, StoreError
from activarium.rows import Rows
from activarium.store._format import space_folder

if TYPE_CHECKING:
    from activarium.store._derived import Captured

# Neither numpy nor Arrow has these: they travel as whole numbers of the same bits, `values.view(torch.bfloat16)` brings them back.
BITS = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


def export(recording: Captured, kind: str, path: str | Path) -> Path:
    """See `Captured.export`."""
    writers = {"zarr": _zarr, "datasets": _datasets}
    if kind not in writers:
        raise InputError(f"export writes 'zarr' or 'datasets', not {kind!r}.")
    path = Path(path).expanduser()
    if path.exists():
        raise StoreError(f"{path} exists already. Choose another folder, or remove it.")
    writers[kind](_package(kind), recording, path)
    return path


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as reason:
        raise MissingExtra(f"Exporting to {name} needs the package {name}, which is not installed. pip install {name}") from reason


def _numbers(values: Tensor) -> np.ndarray:
    return values.view(BITS.get(values.dtype, values.dtype)).numpy()


def _about(recording: Captured, name: str) -> dict[str, str]:
    """What a reader of one site must know."""
    site = recording[name]
    return {"axes": " ".join(site.axes), "rows": recording._space(name), "dtype": str(site.dtype).removeprefix("torch.")}


def _column(rows: Rows, name: str) -> np.ndarray:
    column = rows[name]
    return column.astype(str) if column.dtype.kind in "OU" else column


def _zarr(zarr: Any, recording: Captured, path: Path) -> None:
    group = zarr.open_group(str(path), mode="w-", zarr_format=3)
    group.attrs.update({"provenance": plain(recording.provenance), "aliases": dict(recording._aliases)})
    for name in recording:
        site, first = recording[name], 0
        chunks = (max(1, min(len(site), (4 << 20) // max(1, site.nbytes // max(1, len(site))))), *site.shape[1:])
        dtype = _numbers(torch.empty(0, dtype=site.dtype)).dtype
        array = group.create_array(f"sites/{name}", shape=site.shape, chunks=chunks, dtype=dtype, attributes=_about(recording, name))
        for values in site.batches():
            array[first : first + len(values)] = _numbers(values)
            first += len(values)
    for space, rows in recording.rows.items():
        for name in rows.columns:
            column = _column(rows, name)
            array = group.create_array(f"rows/{space_folder(space)}/{name}", shape=column.shape, dtype=_zarr_type(zarr, column))
            array[:] = column


def _zarr_type(zarr: Any, column: np.ndarray) -> Any:
    return zarr.dtype.VariableLengthUTF8() if column.dtype.kind == "U" else column.dtype


def _datasets(datasets: Any, recording: Captured, path: Path) -> None:
    tables = {space_folder(s): _table(datasets, recording, s) for s in recording.rows if len(recording.rows[s])}
    datasets.DatasetDict(tables).save_to_disk(str(path))
    sites = {name: _about(recording, name) for name in recording}
    about = {"provenance": plain(recording.provenance), "aliases": dict(recording._aliases), "sites": sites}
    (path / "activarium.json").write_text(json.dumps(about, indent=1))


def _table(datasets: Any, recording: Captured, space: str) -> Any:
    """Row columns and sites of one row space; the numbers stay mapped until they are written."""
    import pyarrow as pa

    rows = recording.rows[space]
    columns: dict[str, Any] = {name: pa.chunked_array([pa.array(_column(rows, name))]) for name in rows.columns}
    for name in (n for n in recording if recording._space(n) == space):
        columns[name] = pa.chunked_array(list(_lists(recording[name].batches())))
    return datasets.Dataset(pa.table(columns))


def _lists(parts: Iterator[Tensor]) -> Iterator[Any]:
    import pyarrow as pa

    for values in parts:
        numbers = _numbers(values.contiguous())
        array = pa.array(numbers.reshape(-1))
        for size in reversed(numbers.shape[1:]):
            array = pa.FixedSizeListArray.from_arrays(array, size)
        yield array
