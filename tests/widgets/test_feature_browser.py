"""FeatureBrowser: what travels, what is read when, and what is answered."""

import json

import numpy as np
import pytest

import activarium as act
from activarium.errors import InputError
from activarium.protocols import Pages
from activarium.results import Grid, Ranking
from activarium.testing import example_pages
from activarium.widgets import FeatureBrowser, payload, show, widget_for
from activarium.widgets.feature_columns import columns_of, ranking_of
from activarium.widgets.feature_sheets import Book

HOSTILE = "<script>window.__pwned = 1</script>"


def ranking(**more):
    columns = {"feature": np.array([4, 0, 2]), "density": np.array([0.1, np.nan, 0.3]), "label": np.array(["x", HOSTILE, "y"])}
    return Ranking(("a", "b", "c"), np.array([3.0, 2.0, 1.0]), columns, title="Three", unit="score", **more)


def unshuffled(arrays, count):
    """The columns as the browser puts their bytes together again."""
    return np.moveaxis(arrays["numbers"], 1, -1).copy().view("<f4").reshape(-1, count)


def opened(browser, feature):
    words, buffers = browser.answer({"ask": "page", "feature": feature})
    arrays = payload.unpack(words["arrays"], buffers[0])
    return json.loads(arrays["words"].tobytes())[0], arrays


def numbers(arrays, place):
    pool, start, shape = place
    return arrays[pool][start : start + int(np.prod(shape))].reshape(shape)


def test_pages_and_rankings_find_the_browser():
    pages = example_pages()
    assert isinstance(pages, Pages)
    for shown in (show(pages), show(ranking_of(pages)), show(ranking(), pages), FeatureBrowser.of(ranking(), pages)):
        assert isinstance(shown, FeatureBrowser)
        assert shown.pages is pages
    assert pages.read == []


def test_a_plain_ranking_is_not_taken_over():
    assert widget_for(ranking()) is not FeatureBrowser
    assert widget_for(ranking(diagnostics={"view": "FeatureBrowser"})) is FeatureBrowser
    assert not FeatureBrowser.accepts(Ranking((), np.empty(0)))
    assert not FeatureBrowser.accepts(Ranking(("a",), np.array(["word"])))
    with pytest.raises(InputError, match="FeatureBrowser shows Ranking; got Grid"):
        FeatureBrowser.of(Grid(np.eye(2), axes="layer head"))


def test_a_live_model_in_show_is_left_alone():
    assert show(ranking(diagnostics={"view": "FeatureBrowser", "pages": example_pages()}), object()).pages is not None


def test_a_hundred_thousand_features_open_without_a_page():
    pages = example_pages(100_000)
    pages.columns = pages.columns | {f"more {n}": np.random.default_rng(n).normal(size=100_000) for n in range(4)}
    browser = FeatureBrowser(pages)
    assert browser._repr_mimebundle_()[0]["image/png"]
    state = browser.get_state()
    assert pages.read == []
    assert len(browser.spec["columns"]) == 8
    assert len(state["data"]) <= 3_000_000
    assert len(json.dumps({k: v for k, v in state.items() if isinstance(v, (dict, list, str)) and k not in ("_esm", "_css")})) < 3000
    browser.answer({"ask": "page", "feature": 77_777})
    assert pages.read == [77_777]


def test_the_browser_reads_back_what_python_has():
    pages = example_pages()
    browser = FeatureBrowser(pages)
    arrays = payload.unpack(browser.spec["arrays"], browser.data)
    sent = dict(zip(browser.spec["columns"], unshuffled(arrays, browser.spec["count"]), strict=True))
    features = arrays["feature"].astype(int)
    assert features.tolist() == np.argsort(-pages.columns["fires"], kind="stable").tolist()
    for name, column in pages.columns.items():
        assert np.array_equal(sent[name], column[features].astype(np.float32), equal_nan=True)
    assert browser.spec["dead"] == "fires"


def test_a_rankings_own_columns_come_first_and_pages_add_theirs():
    pages = example_pages()
    found = columns_of(ranking(), pages)
    assert list(found.numbers) == ["score", "density", "fires", "max", "skew"]
    assert list(found.words) == ["name", "label"]
    assert found.numbers["density"][0] == np.float32(0.1)  # the ranking's, not the pages'
    assert found.numbers["fires"].tolist() == pages.columns["fires"][[4, 0, 2]].tolist()


@pytest.mark.parametrize(
    ("names", "features"),
    [(("feature 7", "feature 3"), [7, 3]), (("5", "11"), [5, 11]), (("blocks.2.resid_post.9", "blocks.2.resid_post.8"), [9, 8])],
)
def test_names_say_which_feature(names, features):
    assert columns_of(Ranking(names, np.zeros(2)), example_pages()).features.tolist() == features


def test_a_ranking_that_does_not_say_its_features_is_refused():
    with pytest.raises(InputError, match="does not say which feature .* column 'feature' of different whole numbers"):
        columns_of(Ranking(("a", "b"), np.zeros(2)), example_pages())
    with pytest.raises(InputError, match="does not say which feature"):
        columns_of(Ranking(("1.7", "2.7"), np.zeros(2)), None)
    with pytest.raises(InputError, match="names feature 12; the pages hold 12 features"):
        columns_of(Ranking(("12",), np.zeros(1)), example_pages())


def test_sorting_and_filtering_by_hand():
    fires, skew = np.array([5, 0, 5, 2, 1]), np.array([-1, np.nan, -0.5, 2, np.nan])
    columns = {"feature": np.array([9, 4, 7, 1, 3]), "skew": skew, "label": np.array(["b", "a", "c", "a", "B"])}
    browser = FeatureBrowser(Ranking(tuple("vwxyz"), fires, columns, unit="fires"))

    def order(**traits):
        for name, value in {"sort": {"column": "", "down": True}, "limits": {}, "hide_dead": False, **traits}.items():
            setattr(browser, name, value)
        return browser.order.tolist()

    assert order() == [9, 4, 7, 1, 3]
    assert order(sort={"column": "fires", "down": True}) == [7, 9, 1, 3, 4]
    assert order(sort={"column": "skew", "down": True}) == [1, 7, 9, 3, 4]
    assert order(sort={"column": "skew", "down": False}) == [9, 7, 1, 3, 4]
    assert order(sort={"column": "label", "down": False}) == [3, 1, 4, 9, 7]
    assert order(sort={"column": "feature", "down": True}) == [9, 7, 4, 3, 1]
    assert order(hide_dead=True) == [9, 7, 1, 3]
    assert order(limits={"skew": [None, 0]}) == [9, 7]
    assert order(limits={"skew": [None, None]}) == [9, 7, 1]
    assert order(limits={"fires": [1, 4], "gone": [0, 1]}) == [1, 3]


def test_what_is_shown_is_a_ranking_of_its_own():
    browser = FeatureBrowser(ranking(), example_pages())
    browser.limits = {"density": [0, None]}
    browser.sort = {"column": "score", "down": False}
    assert browser.shown.names == ("c", "a")
    assert browser.shown.columns["feature"].tolist() == [2, 4]
    assert browser.value({"feature": 4}) == 3.0


def test_the_search_is_the_pages_own():
    pages = example_pages()
    browser = FeatureBrowser(pages)
    words, buffers = browser.answer({"ask": "find", "text": "<SCRIPT>"})
    assert payload.unpack(words["arrays"], buffers[0])["found"].tolist() == [0]
    browser.query = "harbour"
    assert sorted(browser.order.tolist()) == pages.find("harbour").tolist()
    assert "at most 200 letters; this one has 300" in browser.answer({"ask": "find", "text": "x" * 300})[0]["error"]


def test_a_page_travels_exactly():
    pages = example_pages()
    browser = FeatureBrowser(pages)
    sheet, arrays = opened(browser, 0)
    page = pages.page(0)
    assert dict(sheet["figures"])["fires"] == int(pages.columns["fires"][0])
    assert dict(sheet["figures"])["density"] == pages.columns["density"][0]  # float64 here, float32 in the list
    assert sheet["promoted"]["words"] == [token for token, _ in page["promoted"]]
    assert sheet["promoted"]["words"][0] == HOSTILE
    assert np.array_equal(numbers(arrays, sheet["histogram"]["edges"]), page["histogram"]["edges"])
    assert sheet["neighbours"]["numbers"] == [number for number, _ in page["neighbours"]]
    for sent, context in zip(sheet["contexts"], page["contexts"], strict=True):
        assert sent["tokens"] == context["tokens"]
        assert np.array_equal(numbers(arrays, sent["values"]), context["values"])


def test_missing_numbers_dead_features_and_pictures_travel_too():
    browser = FeatureBrowser(example_pages())
    sheet, arrays = opened(browser, 4)
    assert dict(sheet["figures"])["skew"] == "NaN"
    assert np.isnan(numbers(arrays, sheet["contexts"][0]["values"])[0])
    dead, _ = opened(browser, 3)
    assert not {"contexts", "histogram", "together"} & set(dead)
    seen, arrays = opened(browser, 5)
    truth = example_pages().page(5)["contexts"]
    for sent, context in zip(seen["contexts"], truth, strict=True):
        assert np.array_equal(numbers(arrays, sent["image"]), context["image"])
        assert sent["grid"] == [4, 4]


def test_what_goes_wrong_becomes_words():
    pages = example_pages()
    browser = FeatureBrowser(pages)
    assert "Feature 99 is not among the 12" in browser.answer({"ask": "page", "feature": 99})[0]["error"]
    pages.page = lambda feature: {"contexts": [{"tokens": ["a", "b"], "values": [1.0]}]}
    assert (
        "page of feature 1 is not as activarium.protocols.Pages says: a context has 2 tokens and 1 values"
        in (browser.answer({"ask": "page", "feature": 1})[0]["error"])
    )
    pages.page = lambda feature: {"contexts": [{"image": np.zeros((2, 2)), "grid": (1, 1), "values": [1.0]}]}
    assert "an image is uint8 'height width 3'; got float64 (2, 2)" in browser.answer({"ask": "page", "feature": 1})[0]["error"]
    with pytest.raises(InputError, match="no answer to 'dance'"):
        browser.answer({"ask": "dance"})


def test_pages_that_are_gone_are_named():
    gone = ranking(diagnostics={"view": "FeatureBrowser", "pages": "/nowhere/x.pages"})
    browser = show(gone)
    assert browser.spec["absent"].startswith("Pages not found at /nowhere/x.pages")
    assert "Pages not found at /nowhere" in browser.answer({"ask": "page", "feature": 4})[0]["error"]
    assert browser.png()
    assert browser.carried()["book"] == b""
    with pytest.raises(InputError, match="Pages not found at /nowhere/y"):
        FeatureBrowser(ranking(), "/nowhere/y")
    with pytest.raises(InputError, match="Pages are a folder or an object with columns, page and find; got int"):
        FeatureBrowser(ranking(), 3)
    assert "came without pages" in FeatureBrowser(ranking()).answer({"ask": "page", "feature": 4})[0]["error"]


def test_pages_need_columns_of_one_length():
    pages = example_pages()
    pages.columns = {"fires": np.zeros(3), "max": np.zeros(4)}
    with pytest.raises(InputError, match="one number per feature; got {'fires': 3, 'max': 4}"):
        FeatureBrowser(pages)


def test_an_exported_page_takes_the_first_of_the_present_order_and_the_opened_one():
    pages = example_pages(400)
    browser = FeatureBrowser(pages, pinned=[{"feature": 3}], hide_dead=True)
    assert browser.book == b""
    state = browser.carried()
    assert state["bound"]["features"] == [3, *browser.order[:199].tolist()]
    words = payload.unpack(state["bound"]["arrays"], state["book"])["words"].tobytes()
    assert [sheet["feature"] for sheet in json.loads(words)] == state["bound"]["features"]
    assert browser.get_state()["book"] == b""


def test_embedded_takes_names_a_number_and_keeps_to_its_budget():
    pages = example_pages(60)
    browser = FeatureBrowser(pages, sort={"column": "max", "down": False})
    assert browser.embedded([7, 3, 7]).bound["features"] == [7, 3]
    three = browser.embedded(3)
    assert three.bound["features"] == browser.order[:3].tolist()
    assert three.sort == browser.sort
    few = browser.embedded(budget=20_000)
    assert 3 < len(few.bound["features"]) < 60
    assert len(few.book) <= 20_000
    with pytest.raises(InputError, match="of the 60 named pages need .* budget of 20000"):
        browser.embedded(range(60), budget=20_000)
    with pytest.raises(InputError, match="Feature 99 is not among"):
        browser.embedded([99])


def test_the_same_picture_is_kept_once():
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    page = {"contexts": [{"image": image, "grid": (1, 1), "values": [float(n)]} for n in range(5)]}
    book = Book()
    book.add(1, page, {})
    once = book.size
    book.add(2, page, {})
    assert book.size < 1.1 * once
    assert payload.unpack(*book.pack())["u1"].size == image.size


def test_a_page_that_does_not_fit_leaves_nothing_behind():
    random = np.random.default_rng(0)

    def page(n):
        return {"contexts": [{"tokens": ["a"] * 500, "values": random.normal(size=500)}], "n": n}

    book = Book()
    assert book.add(1, page(1), {})
    before = book.pack()
    assert not book.add(2, page(2), {}, budget=book.size + 100)
    assert book.pack() == before
    with pytest.raises(InputError):
        book.add(3, page(3) | {"promoted": 3}, {})
    assert book.pack() == before
    last = page(4)
    book.add(4, last, {})
    arrays = payload.unpack(*book.pack())
    sheet = json.loads(arrays["words"].tobytes())[1]
    assert numbers(arrays, sheet["contexts"][0]["values"]).tolist() == last["contexts"][0]["values"].tolist()


def test_the_still_picture_reads_the_opened_page_alone():
    pages = example_pages()
    browser = FeatureBrowser(pages)
    assert browser.png().startswith(b"\x89PNG")
    assert pages.read == []
    browser.pinned = [{"feature": 0}]
    assert browser.png() != FeatureBrowser(example_pages()).png()
    assert pages.read == [0]


def test_a_saved_ranking_finds_its_folder_again(tmp_path):
    pages = example_pages()
    pages.path = tmp_path / "x.pages"
    made = ranking_of(pages)
    assert made.diagnostics["pages"] == str(pages.path)
    act.load_result(made.save(tmp_path / "r.safetensors"))
