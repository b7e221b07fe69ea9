"""Row tables on disk: one Parquet file per shard and row space, columns read when somebody looks at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from activarium.errors import CorruptStore, InputError
from activarium.rows import Rows
from activarium.store._journal import File
from activarium.store._shard import check_size, write_synced


def write_rows(path: Path, rows: Rows) -> File:
    """Write one row table and sync it."""
    columns = {name: rows[name] for name in rows.columns}
    # numpy's fixed-width text and its objects both become strings; which it was is kept beside the column.
    arrays = {name: _arrow(column, name) for name, column in columns.items()}
    kinds = {name: "U" if column.dtype.kind == "U" else column.dtype.str for name, column in columns.items()}
    schema = pa.schema([pa.field(name, array.type, metadata={"numpy": kinds[name]}) for name, array in arrays.items()])
    table = pa.Table.from_arrays(list(arrays.values()), schema=schema)
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    return write_synced(path, [memoryview(sink.getvalue())])


def _arrow(column: np.ndarray, name: str) -> pa.Array:
    try:
        return pa.array(column.tolist() if column.dtype.kind in "OU" else column)
    except (pa.ArrowException, UnicodeEncodeError) as reason:
        raise InputError(f"Row column {name!r} of {column.dtype} cannot be stored ({reason}). Make it numbers or text.") from None


def lazy_rows(files: Sequence[tuple[Path, int, int]]) -> Rows:
    """A row table over files `(path, bytes, rows)`, each column read on first sight."""
    if not files:
        return Rows({"example": np.empty(0, np.int64), "position": np.empty(0, np.int64)})
    names = _open(*files[0]).schema_arrow.names
    return Rows({name: _reader(files, name) for name in names})


def _reader(files: Sequence[tuple[Path, int, int]], name: str) -> Callable[[], np.ndarray]:
    return lambda: np.concatenate([_column(_open(*file), name, file[0]) for file in files])


def _column(file: parquet.ParquetFile, name: str, path: Path) -> np.ndarray:
    if name not in file.schema_arrow.names:
        raise CorruptStore(
            f"{path} has no column {name!r}, which the first row table of the store has. Take an undamaged copy of this file."
        )
    try:
        table = file.read(columns=[name])
    except (pa.ArrowException, OSError) as reason:
        raise CorruptStore(f"{path} cannot be read ({reason}). Take an undamaged copy of this file.") from None
    kind = (table.schema.field(0).metadata or {}).get(b"numpy", b"").decode()
    if kind in ("U", "|O"):
        values = np.array(table.column(0).to_pylist(), dtype=object)
        return values.astype(str) if kind == "U" else values
    values = table.column(0).to_numpy()
    return values.astype(kind) if kind else values


def _open(path: Path, size: int, rows: int) -> parquet.ParquetFile:
    check_size(path, size)
    try:
        file = parquet.ParquetFile(path if isinstance(path, Path) else path.open())
    except (pa.ArrowException, OSError) as reason:
        raise CorruptStore(f"{path} is not a readable Parquet file ({reason}). Take an undamaged copy of this file.") from None
    if file.metadata.num_rows != rows:
        raise CorruptStore(f"{path} has {file.metadata.num_rows} rows; the journal committed {rows}. Take an undamaged copy of this file.")
    return file
