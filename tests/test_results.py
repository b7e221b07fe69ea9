"""Results: frozen, saved and loaded bit for bit, printed escaped, and strict about their axes."""

import base64
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from activarium import pictures
from activarium.errors import AxisError, InputError, UnknownName
from activarium.results import KINDS, Grid, Overlay, Ranking, Report, Result, Series, identical, load
from activarium.testing import example_results

EXAMPLES = example_results()


def test_every_kind_has_an_example() -> None:
    assert set(EXAMPLES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(kind: str, tmp_path: Path) -> None:
    result = EXAMPLES[kind].with_(provenance={"analysis": "by hand", "seed": 3})
    again = load(result.save(tmp_path / "result.safetensors"))
    assert identical(result, again)
    assert again.provenance == {"analysis": "by hand", "seed": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["result.safetensors"]


def test_check_and_noise_are_saved(tmp_path: Path) -> None:
    exact = Grid([[1.0, 2.0]], axes="layer position")
    result = Grid([[1.5, 2.5]], axes="layer position", check=exact, noise=0.5, diagnostics={"rows": 2, "note": "half off"})
    again = load(result.save(tmp_path / "checked"))
    assert identical(result, again)
    assert again.check.values.tolist() == [[1.0, 2.0]]
    assert again.noise == 0.5
    assert again.diagnostics["note"] == "half off"


@settings(max_examples=30, deadline=None)
@given(values=arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=5)))
def test_any_grid_survives(values: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    grid = Grid(values, axes="layer position")
    assert identical(grid, load(grid.save(tmp_path_factory.mktemp("grid") / "g")))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool"])
def test_dtypes_survive(dtype: str, tmp_path: Path) -> None:
    grid = Grid(np.array([[0, 1]], dtype=dtype), axes="layer position")
    assert load(grid.save(tmp_path / "g")).values.dtype == dtype


def test_identical_looks_at_bits_types_and_words() -> None:
    one = Grid([[1.0, float("nan")]], axes="layer position", title="a")
    assert identical(one, one.with_(provenance={"seed": 1}))
    assert identical(one, Grid([[1.0, float("nan")]], axes="layer position", title="a"))
    assert not identical(one, one.with_(title="b"))
    assert not identical(one, one.with_(values=np.float32([[1.0, float("nan")]])))
    assert not identical(Grid([[0.0]], axes="layer position"), Grid([[-0.0]], axes="layer position"))
    assert not identical(one, Ranking(("a",), [1.0]))


def test_a_result_is_frozen() -> None:
    source = np.array([[1.0]])
    grid = Grid(source, axes="layer position", labels={"layer": ["first"]})
    with pytest.raises(ValueError, match="read-only"):
        grid.values[0, 0] = 2
    with pytest.raises(TypeError):
        grid.labels["layer"] = ("other",)
    with pytest.raises(AttributeError):
        grid.title = "other"
    source[0, 0] = 3.0  # the caller's array stays the caller's


def test_axes_are_checked_in_words() -> None:
    with pytest.raises(AxisError, match=r"Values of shape \(2, 3\) have 2 axes; axes 'layer position head' name 3"):
        Grid(np.zeros((2, 3)), axes="layer position head")
    with pytest.raises(AxisError, match="Labels are given for 'head'; the axes are 'layer position'"):
        Grid(np.zeros((2, 3)), axes="layer position", labels={"head": ["a"]})
    with pytest.raises(AxisError, match="Axis 'layer' has 2 places but 1 labels; give one each"):
        Grid(np.zeros((2, 3)), axes="layer position", labels={"layer": ["a"]})
    with pytest.raises(AxisError, match="This grid has axes 'layer position'; there is no axis 'head'"):
        EXAMPLES["Grid"].label("head")
    with pytest.raises(AxisError, match="Ranking has 2 names but 3 entries in 'values'"):
        Ranking(("a", "b"), [1, 2, 3])
    with pytest.raises(AxisError, match="Ranking has 2 names but 1 entries in 'layer'"):
        Ranking(("a", "b"), [1, 2], {"layer": [0]})
    with pytest.raises(AxisError, match="Curve 'c' has 2 values for 3 places on x"):
        Series([1, 2, 3], {"c": [1, 2]})
    with pytest.raises(AxisError, match="Overlay has 3 values for 2 tokens"):
        Overlay(np.zeros((1, 3)), names=("m",), tokens=("a", "b"))
    with pytest.raises(AxisError, match=r"wanted 2 axes, the first with 2 maps"):
        Overlay(np.zeros((1, 2)), names=("m", "n"), tokens=("a", "b"))
    with pytest.raises(InputError, match="over tokens or over an image: give exactly one"):
        Overlay(np.zeros((1, 2)), names=("m",))
    with pytest.raises(UnknownName, match="No part of this report called 'gird'. Did you mean 'grid'"):
        EXAMPLES["Report"]["gird"]


def test_masks_have_the_shape_of_the_values() -> None:
    with pytest.raises(AxisError, match=r"Mask 'known_zero' has shape \(2,\); the values have \(1, 2\). Give one entry per value"):
        Grid([[1.0, 2.0]], axes="layer position", masks={"known_zero": [True, False]})


CHECK = Ranking(("a", "b"), [1.0, 2.0], title="Against 50 exact cells", diagnostics={"pearson": 0.98765, "slope": 1.0, "rows": 50})


def test_an_approximation_says_how_near_it_came() -> None:
    grid = EXAMPLES["Grid"].with_(check=CHECK)
    assert grid.checked == "Against 50 exact cells · Pearson 0.988 · slope 1"
    assert grid.checked in grid._repr_html_()
    full = CHECK.with_(title="", diagnostics={"interval": (0.9, 0.99), "pearson_without_zeros": float("nan"), "pearson": 1.0})
    assert grid.with_(check=full).checked == "Against the exact answer · Pearson 1 · without known zeros nan · interval 0.9 to 0.99"
    assert EXAMPLES["Grid"].checked == ""


def test_the_words_of_a_check_are_escaped() -> None:
    assert "<b>" not in EXAMPLES["Grid"].with_(check=CHECK.with_(title="<b>"))._repr_html_()


def test_masked_cells_look_masked() -> None:
    white = np.full((24, 36, 3), 200, np.uint8)
    zero, pad = np.array([[True, False, False]] * 2), np.array([[False, False, True]] * 2)
    shown = pictures.marked(white, {"known_zero": zero, "no_row": pad})
    lines = (shown[:, :12] == 128).all(-1)
    assert 0.1 < lines.mean() < 0.3  # lines, with the colour between them
    assert all(lines[y, x] == ((x + y) % pictures.HATCH == 0) for y in range(24) for x in range(12))
    assert (shown[:, 12:24] == 200).all()
    assert (shown[:, 24:] == 255).all()
    assert (white == 200).all()


def test_the_caption_names_what_is_marked() -> None:
    masks = {"known_zero": np.eye(2, dtype=bool), "no_row": np.zeros((2, 2), bool), "<b>": np.ones((2, 2), bool)}
    page = Grid(np.eye(2), axes="layer position", masks=masks)._repr_html_()
    assert "hatched: known zero" in page
    assert "blank" not in page  # no such cell here
    assert "hatched: &lt;b&gt;" in page


def test_top_by_hand_ignores_nan() -> None:
    grid = Grid([[1.0, -5.0], [float("nan"), 3.0]], axes="layer position", labels={"position": ("a", "b")})
    assert grid.top(2) == [(("0", "b"), -5.0), (("1", "b"), 3.0)]
    assert [value for _, value in Grid(np.array([0, 1, 3, 2], np.uint8), axes="layer").top(2)] == [3.0, 2.0]


def test_a_table_has_a_line_per_value() -> None:
    frame = Grid([[1.0, 2.0], [3.0, 4.0]], axes="layer position", labels={"position": ("a", "b")}).to_frame()
    assert frame["value"].tolist() == [1, 2, 3, 4]
    assert frame["position"].tolist() == ["a", "b", "a", "b"]
    assert EXAMPLES["Overlay"].to_frame()["token"].tolist()[:2] == ["<bos>", "Anna"]
    with pytest.raises(AxisError, match="Report has no single table"):
        EXAMPLES["Report"].to_frame()


@pytest.mark.parametrize("kind", KINDS)
def test_html_is_escaped_and_closed(kind: str) -> None:
    result = EXAMPLES[kind].with_(title="<script>alert(1)</script>", diagnostics={"note": "<img src=x onerror=alert(1)>"})
    page = result._repr_html_()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("<div") == page.count("</div>")
    assert repr(result)


def test_a_file_that_is_no_result_says_so(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "broken").write_bytes(b"not a file of ours")
    save_file({"x": np.zeros(1)}, tmp_path / "other")
    save_file({"x": np.zeros(1)}, tmp_path / "future", metadata={"activarium": "{}", "format": "99"})
    save_file({"x": np.zeros(1)}, tmp_path / "strange", metadata={"activarium": '{"kind": "Pie", "fields": {}}', "format": "1"})
    for name, words in {
        "broken": "broken is not a saved Result",
        "other": "a safetensors file, but not a saved Result",
        "future": "has Result format 99; this version reads up to 1. Upgrade activarium",
        "strange": "No kind of Result called 'Pie'. Known: Grid",
    }.items():
        with pytest.raises(InputError, match=words):
            load(tmp_path / name)


def test_a_lone_peak_survives_the_shrinking() -> None:
    values = np.zeros((1000, 1000))
    values[777, 333] = -9.0
    small, step = pictures.shrink(values, 100)
    assert (small.shape, step) == ((100, 100), 10)
    assert small.min() == -9.0


def test_a_png_is_the_pixels() -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    made = pictures.png(pixels)
    body = made[made.index(b"IDAT") + 4 :]
    assert zlib.decompressobj().decompress(body) == bytes([0, 1, 2, 3, 4, 5, 6])


def test_signed_colours_are_symmetric_and_nan_is_grey() -> None:
    assert pictures.colour_range(np.array([-1.0, 3.0, np.nan])) == (-3.0, 3.0)
    assert pictures.colour_range(np.array([0.0, 3.0])) == (0.0, 3.0)
    assert pictures.paint(np.array([0.0, -1.0, np.nan]))[2].tolist() == [128, 128, 128]
    assert pictures.paint(np.array([0.0, -1.0]))[0].tolist() == [247, 247, 247]


def test_the_static_picture_is_a_real_image() -> None:
    data = re.search(r"data:image/png;base64,([^\"]+)", EXAMPLES["Grid"]._repr_html_())
    assert base64.b64decode(data[1]).startswith(b"\x89PNG")


def test_results_are_one_family() -> None:
    assert all(isinstance(r, Result) for r in EXAMPLES.values())
    assert list(Report({"a": EXAMPLES["Grid"]})) == ["a"]
