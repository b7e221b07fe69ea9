"""A folder is a registry: read without importing, looked up with hints, and its Results say where they came from."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from activarium._recorded import describe, digest, input_id, plain, recorded, versions
from activarium._registry import Registry, class_name
from activarium.errors import ActivariumError, UnknownName
from activarium.results import Grid

LOGIT = '''"""A file."""

raise RuntimeError("listing must not import")


def wave_lens(recording, *, depth: int = 2, seed: int = 0):
    """How deep does the wave reach?

    A paragraph
    of two lines.

    Args:
        recording: What was read.
        depth: Metres.

    Returns:
        One number.

    Source:
        Nobody 1999, section 3.
    """
'''
WIDGET = '''class TideTable(Base):
    """High and low water."""

    shows = Grid
    wants_model: bool = False
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "_wave_lens.py").write_text(LOGIT)
    (tmp_path / "support.py").write_text("raise RuntimeError('support is no entry')")
    (tmp_path / "__init__.py").write_text("")
    return tmp_path


def test_entries_are_read_without_importing(folder: Path) -> None:
    (entry,) = Registry("sea", folder, "analysis")
    assert (entry.name, entry.module, entry.room) == ("wave_lens", "sea.deep._wave_lens", "deep")
    assert entry.first_line == "How deep does the wave reach?"
    assert entry.parameters == ("recording", "depth", "seed")
    assert entry.sections == {
        "": "How deep does the wave reach?\n\nA paragraph\nof two lines.",
        "Args": "recording: What was read.\ndepth: Metres.",
        "Returns": "One number.",
        "Source": "Nobody 1999, section 3.",
    }


def test_classes_and_their_settings(tmp_path: Path) -> None:
    (tmp_path / "_tide_table.py").write_text(WIDGET)
    (entry,) = Registry("sea", tmp_path, "widget", class_name)
    assert entry.name == "TideTable"
    assert entry.settings == {"shows": "Grid", "wants_model": "False"}


def test_a_wrong_name_offers_the_nearest(folder: Path) -> None:
    with pytest.raises(UnknownName, match="No analysis called 'wave_lense'. Did you mean 'wave_lens'"):
        Registry("sea", folder, "analysis").entry("wave_lense")


def test_a_file_that_does_not_define_its_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "_tide.py").write_text("def other(): ...")
    with pytest.raises(ActivariumError, match=r"_tide\.py should define 'tide', the analysis it is named after"):
        Registry("sea", tmp_path, "analysis").entries


def test_one_name_in_two_rooms_is_refused(folder: Path) -> None:
    (folder / "shallow").mkdir()
    (folder / "shallow" / "_wave_lens.py").write_text(LOGIT)
    with pytest.raises(ActivariumError, match="Two files define the analysis 'wave_lens'"):
        Registry("sea", folder, "analysis").entries


def shallow(recording, depth: int = 2, *, seed: int = 0) -> Grid:
    """How shallow?"""
    return Grid([[float(depth)]], axes="layer position", provenance={"pairs": 7})


def test_a_result_says_where_it_came_from() -> None:
    source = SimpleNamespace(provenance={"id": "abc123"}, site="blocks.0.mlp.post")
    made = recorded(shallow, "activarium.analyses.shallow")(source, seed=5).provenance
    assert made["analysis"] == "activarium.analyses.shallow"
    assert made["inputs"] == {"recording": "abc123#blocks.0.mlp.post"}
    assert made["arguments"] == {"depth": 2, "seed": 5}
    assert made["seed"] == 5
    assert made["pairs"] == 7  # what the analysis wrote itself is kept
    assert made["versions"]["numpy"] == np.__version__
    assert 0 <= made["seconds"] < 5
    json.dumps(dict(made["versions"]) | dict(made["arguments"]))


def test_the_wrapper_keeps_the_face_of_the_function() -> None:
    made = recorded(shallow, "activarium.analyses.shallow")
    assert (made.__name__, made.__doc__) == ("shallow", "How shallow?")
    with pytest.raises(TypeError, match="unexpected keyword argument 'dept'"):
        made(None, dept=3)


def test_a_result_is_a_fit_input_too() -> None:
    first = recorded(shallow, "a.shallow")(None)
    assert input_id(first) == input_id(first)
    assert describe("x", {"grid": first})["inputs"]["grid"] == digest(first.provenance)


def test_a_model_is_named_with_its_weights() -> None:
    model = SimpleNamespace(identity={"name": "scribe", "weight_hash": "f00d"})
    assert describe("x", {"model": model})["inputs"] == {"model": "scribe@f00d"}


def test_arguments_become_json() -> None:
    given = {
        "path": Path("a/b"),
        "set": {2, 1},
        "array": np.zeros((2, 3), np.float32),
        "scalar": np.float64(0.5),
        "call": shallow,
        "nested": {"a": (1, None, True)},
        "slice": range(3),
    }
    made = json.loads(json.dumps(plain(given)))
    assert made == {
        "path": "a/b",
        "set": [1, 2],
        "array": "ndarray(2, 3) float32",
        "scalar": 0.5,
        "call": "shallow",
        "nested": {"a": [1, None, True]},
        "slice": [0, 1, 2],
    }


def test_ids_do_not_depend_on_the_order_of_words() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": (2,), "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_versions_import_nothing() -> None:
    import sys

    before = set(sys.modules)
    assert "python" in versions()
    assert set(sys.modules) == before


def test_the_room_offers_the_nearest_analysis() -> None:
    from activarium import analyses

    with pytest.raises(AttributeError, match="No analysis called 'logit_lense'. Did you mean 'logit_lens'"):
        analyses.logit_lense
    assert "logit_lens" in dir(analyses)
    assert analyses.logit_lens is analyses.logit_lens
    assert not hasattr(analyses, "__path_of_nothing__")
