"""The row table: contiguous examples, columns made when asked for, errors that list what exists."""

import numpy as np
import pytest

from activarium.errors import InputError, UnknownName
from activarium.rows import KINDS, Rows


def table() -> Rows:
    return Rows(
        {
            "example": np.array([4, 4, 7, 7, 7]),
            "position": np.array([0, 1, 0, 1, 2]),
            "kind": np.array(["bos", "token", "cls", "patch", "patch"]),
        }
    )


def test_spans_by_hand() -> None:
    rows = table()
    assert len(rows) == 5
    assert rows.examples == [4, 7]
    assert (rows.span(4), rows.span(7)) == (slice(0, 2), slice(2, 5))


def test_take_and_concatenate_bring_the_table_back() -> None:
    rows = table()
    again = Rows.concatenate([rows.take(rows.span(4)), rows.take(rows.span(7))])
    assert all((again[c] == rows[c]).all() for c in rows.columns)
    assert rows.take([4, 0])["position"].tolist() == [2, 0]


def test_concatenate_keeps_shared_columns_only() -> None:
    joined = Rows.concatenate([table(), Rows({"example": np.array([9]), "position": np.array([0])})])
    assert joined.columns == ["example", "position"]
    assert joined.examples == [4, 7, 9]


def test_a_column_is_made_once_and_when_asked_for() -> None:
    calls = []
    rows = Rows({"example": np.array([0]), "text": lambda: calls.append(1) or np.array(["cat"], dtype=object)})
    assert not calls
    assert rows["text"][0] == rows["text"][0] == "cat"
    assert len(calls) == 1


def test_frame_has_every_column() -> None:
    assert table().frame().columns.tolist() == ["example", "position", "kind"]


def test_no_rows_is_a_table_too() -> None:
    empty = Rows({"example": np.array([], dtype=int)})
    assert len(empty) == 0
    assert empty.examples == []


def test_kinds_are_the_vocabulary() -> None:
    assert set("token bos special cls register patch image".split()) <= set(KINDS)


def test_errors_in_words() -> None:
    with pytest.raises(InputError, match="needs the column 'example'; found position"):
        Rows({"position": np.array([0])})
    with pytest.raises(InputError, match="There is no example 5; there are 2, from 4 to 7"):
        table().span(5)
    with pytest.raises(UnknownName, match="No row column called 'knd'. Did you mean 'kind'"):
        table()["knd"]


def test_a_table_prints_itself_escaped() -> None:
    rows = Rows({"example": np.array([0]), "text": np.array(["<script>alert(1)</script>"], dtype=object)})
    assert "<script>" not in rows._repr_html_()
    assert repr(table()) == "Rows(5 rows of 2 examples: example, position, kind)"
