"""token_norms: patches planted through the weights of a ViT, thresholds by hand, and "none" where there is none."""

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium import results, testing
from activarium.activations import Activations
from activarium.analyses.massive.norm_split import split
from activarium.data import scenes  # pyright: ignore[reportAttributeAccessIssue]
from activarium.edits import Scale, Where
from activarium.errors import InputError, MissingExtra, NotFinite, UnknownName, UnknownSite
from activarium.recording import Recording
from activarium.rows import Rows

from .planted_llava import IMAGE, inputs, llava
from .planted_vit import BORN, pictures, planted_vit

token_norms = act.analyses.token_norms
SHARED = Path(__file__).parents[4] / "shared"


def table(kinds: list[str], examples: int = 1) -> Rows:
    count = len(kinds)
    return Rows(
        {
            "example": np.repeat(np.arange(examples), count),
            "position": np.tile(np.arange(count), examples),
            "text": np.array([f"w{i}" for i in range(count)] * examples, dtype=object),
            "kind": np.array(kinds * examples, dtype=object),
        }
    )


def lengths(norms: np.ndarray, width: int = 6, seed: int = 0) -> torch.Tensor:
    """Rows of random directions with these norms."""
    directions = torch.randn(len(norms), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.as_tensor(norms)[:, None] * directions / directions.norm(dim=1, keepdim=True)


def bulk(count: int, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(np.log(50), 0.15, count))


def test_the_planted_patches_and_no_other():
    model = act.wrap(*planted_vit(), certify="quick")
    images, bright = pictures(12)
    rec = model.run(images, read="blocks.*.resid_post")
    report = token_norms(rec, images)
    layers = {name: i for i, name in enumerate(report["layers"].names)}
    columns = report["layers"].columns
    kinds = rec.rows[""]["kind"] == "patch"
    cells = {(int(e), int(y), int(x)) for e, y, x in bright}
    for block in range(3):
        site = f"blocks.{block}.resid_post"
        at = layers[site]
        assert bool(columns["second group"][at]) == (block >= BORN)
        if block < BORN:
            continue
        norms = rec[site].tensor.norm(dim=1).numpy()
        rows = rec.rows[""].frame()
        high = rows[(norms > columns["threshold"][at]) & kinds]
        assert set(zip(high["example"], high["y"], high["x"], strict=True)) == cells
        assert report["layers"].values[at] == pytest.approx(100 * len(cells) / kinds.sum())
        assert norms[kinds].mean() + 3 * norms[kinds].std() == pytest.approx(columns["mean + 3 std"][at], rel=1e-5)
    shown = report["overlay"].values[BORN]
    example = int(report["overlay"].title.rsplit(" ", 1)[1])
    assert set(zip(*np.nonzero(shown), strict=True)) == {(y, x) for e, y, x in cells if e == example}


@pytest.mark.slow
def test_the_bundled_vision_model_has_none_though_its_patches_form_two_groups():
    images = [scenes.scene(scenes.TEST_SEED, i).image for i in range(64)]
    report = token_norms(act.load("glyph", certify=False).run(images, read="blocks.*.resid_post"))
    assert "high-norm tokens: none" in report.words[0]
    assert report.words[1].startswith("blocks.2.resid_post has two groups, ")
    assert "with 1.5 times the norm of the lower" in report.words[1]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="third-party models are not on this machine (../shared)")
def test_a_small_trained_vit_of_others_has_none():
    drawn = np.load(SHARED / "corpora" / "mnist" / "mnist_sample200.npz")["images"]
    model = act.load(SHARED / "models" / "vit-mnist-10", certify=False)
    report = token_norms(model.run(list(drawn), read="blocks.*.resid_post"))
    assert "high-norm tokens: none" in report.words[0]
    assert report["layers"].columns["rows massive by Sun's rule"].sum() == 0


def test_an_untouched_vit_has_none():
    model = act.wrap(*testing.tiny("vit"), certify=False)
    report = token_norms(model.run(testing.images(8), read="blocks.*.resid_post"))
    assert "high-norm tokens: none" in report.words[0]
    assert set(report["layers"].columns["rule"]) == {"mean + 3 std"}
    assert "overlay" not in report


@pytest.mark.parametrize("count", [3, 40])
def test_the_cut_lies_in_the_gap_also_when_few_are_high(count: int):
    norms = np.concatenate([bulk(2000), np.random.default_rng(1).normal(400, 20, count)])
    found = split(norms)
    assert found.clear
    assert found.share == pytest.approx(count / len(norms), rel=1e-3)
    assert norms[:2000].max() < found.at < norms[2000:].min()
    assert split(norms[::-1]) == found


def test_one_group_is_not_cut_and_a_higher_half_is_no_outlier():
    assert not split(bulk(2000)).clear
    halves = split(np.concatenate([bulk(1000), bulk(1000, 1) * 1.6]))
    assert halves.evidence > 10 and not halves.clear  # two groups, but not twice the norm
    assert not split(np.concatenate([bulk(200), bulk(1800, 1) * 8])).clear  # the higher one is most of them
    buried = np.random.default_rng(0).normal([0.0] * 20, 0.1)  # a few tokens inside the tail of all others: no cut between the groups
    found = split(np.exp(np.concatenate([np.random.default_rng(1).normal(0, 0.3, 20000), 1 + buried])))
    assert not found.clear and not (found.at <= found.low or found.at >= found.high)
    assert not split(np.ones(500)).clear
    assert not split(np.array([1.0, 9.0])).clear


def test_class_and_register_rows_are_held_against_the_patches():
    norms = np.array([900.0, 7.0, *np.linspace(9, 11, 30)])
    rows = table(["cls", "register"] + ["patch"] * 30)
    report = token_norms(Activations(lengths(norms), "row d_model", site="blocks.0.resid_post", index=rows))
    patches = norms[2:]
    assert report["layers"].columns["mean + 3 std"][0] == pytest.approx(patches.mean() + 3 * patches.std())
    kinds = dict(zip(report["kinds"].label("kind"), report["kinds"].values[0], strict=True))
    assert kinds == {"cls (1 rows)": 100.0, "patch (30 rows)": 0.0, "register (1 rows)": 0.0}
    assert report["layers"].values.tolist() == [0.0]
    assert report["tokens"].columns["kind"][0] == "cls"


def test_a_long_vector_and_a_massive_number_are_different_facts():
    values = torch.full((300, 400), 0.1, dtype=torch.float64)
    values[7] = 30.0  # norm 600, no number above 100
    values[70, 3] = 150.0  # norm 150, one number 1500 times the median
    values += 1e-3 * torch.randn(300, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    report = token_norms(Activations(values, "row d_model", site="blocks.0.resid_post"), threshold=200)
    columns = report["layers"].columns
    assert (columns["rows high"][0], columns["rows massive by Sun's rule"][0], columns["rows both"][0]) == (1, 1, 0)
    assert report["tokens"].columns["row"][:2].tolist() == [7, 70]
    assert report["tokens"].columns["massive"][:2].tolist() == [False, True]
    assert "different facts" in report.words[-1]


def test_the_median_of_suns_rule_is_that_of_the_plain_rows():
    values = torch.full((6, 5), 0.1)
    values[:3] = 50.0  # registers: with them in the median, 700 would be 14 times it
    values[4, 2] = 700.0
    rows = table(["register"] * 3 + ["patch"] * 3)
    report = token_norms(Activations(values, "row d_model", site="blocks.0.resid_post", index=rows))
    assert report["layers"].columns["rows massive by Sun's rule"][0] == 1


def test_text_is_shown_over_its_tokens():
    norms = np.concatenate([[600.0], bulk(60)[:-1]])
    values = lengths(np.tile(norms, 4))
    values *= torch.linspace(1, 1.02, 240)[:, None]
    stack = Activations(values, "row d_model", site="blocks.0.resid_post", index=table(["token"] * 60, 4))
    report = token_norms(stack, example=2)
    overlay = report["overlay"]
    assert np.flatnonzero(overlay.values[0]).tolist() == [0]
    assert overlay.tokens[0] == "w0"
    assert report["layers"].columns["rule"].tolist() == ["split"]
    assert "1.67 % of the plain rows" in report.words[0]


def test_an_image_inside_a_text_is_judged_by_its_own_rows():
    """Its rows are a hundred times as long as words here: with the words in the measure all of them would be high, or none."""
    long = {"text": [[5, IMAGE, *range(6, 40)], [9, IMAGE, *range(6, 40)]], "pixel_values": inputs()["pixel_values"]}
    planted = [Scale("text.blocks.0.resid_post", 8.0, where=Where(examples=(1,), positions=(4, 11)))]
    rec = llava().run(long, read="text.blocks.0.resid_post", edits=planted)
    report = token_norms(rec, example=1)
    tokens = report["text tokens"].columns
    high = tokens["high"]
    assert set(zip(tokens["example"][high].tolist(), tokens["position"][high].tolist(), strict=True)) == {(1, 4), (1, 11)}
    assert report["text layers"].values.tolist() == [100 * 2 / 32]
    y, x = np.unravel_index(report["text patches"].values[0].argmax(), (4, 4))
    assert 1 + 4 * y + x in (4, 11)


def test_a_threshold_for_all_layers():
    norms = np.array([140.0, 151.0, *np.linspace(20, 60, 30)])
    report = token_norms(Activations(lengths(norms), "row d_model", site="blocks.0.resid_post"), threshold=150)
    assert report["layers"].columns["rule"].tolist() == ["given"]
    assert report["layers"].values[0] == pytest.approx(100 / 32)


def test_the_histogram_counts_every_plain_row():
    norms = np.concatenate([bulk(500), [400.0] * 20])
    report = token_norms(Activations(lengths(norms), "row d_model", site="blocks.0.resid_post"))
    assert report["norms"].values.sum() == pytest.approx(100)
    assert report["norms"].values[0, -1] == pytest.approx(100 * 20 / 520)


def test_same_bits_in_pieces_and_from_a_store(tmp_path):
    model = act.wrap(*planted_vit(), certify=False)
    images, _ = pictures(6)
    whole = model.run(images, read="blocks.*.resid_post")
    report = token_norms(whole, images)
    sites = {
        name: Activations(torch.tensor_split(whole[name].tensor, [5, 17, 60]), "row d_model", site=name, index=whole.rows[""])
        for name in whole
        if name.endswith("resid_post")
    }
    assert results.identical(token_norms(Recording(sites, {"": whole.rows[""]}), images), report)
    act.capture(model, images, "blocks.*.resid_post", to=tmp_path / "norms.acts", progress=False)
    stored = token_norms(act.open(tmp_path / "norms.acts"), images)
    assert all(results.identical(stored[name], report[name]) for name in report)


def test_float16_norms_do_not_overflow():
    values = torch.full((40, 8), 300.0, dtype=torch.float16)
    report = token_norms(Activations(values, "row d_model", site="blocks.0.resid_post"))
    assert report["profile"].curves["largest"][0] == pytest.approx(300 * 8**0.5)


def test_zero_vectors_are_said_and_all_zeros_refused():
    values = lengths(bulk(40))
    values[3] = 0
    assert "1 plain rows are zero vectors" in token_norms(Activations(values, "row d_model", site="blocks.0.resid_post")).words[-1]
    with pytest.raises(InputError, match="All tokens are zero vectors"):
        token_norms(Activations(torch.zeros(4, 4), "row d_model", site="blocks.0.resid_post"))


def test_what_cannot_be_answered_is_refused(monkeypatch: pytest.MonkeyPatch):
    acts = Activations(lengths(bulk(40)), "row d_model", site="blocks.0.resid_post", index=table(["token"] * 40))
    with pytest.raises(InputError, match="threshold=0 would call every token high"):
        token_norms(acts, threshold=0)
    with pytest.raises(InputError, match="There are 2 images for 1 examples"):
        token_norms(acts, testing.images(2))
    with pytest.raises(UnknownName, match="No example in this recording called '5'"):
        token_norms(acts, example=5)
    with pytest.raises(UnknownSite, match="no site 'blocks.\\*.resid_post'"):
        token_norms(Recording({}, {}))
    bad = lengths(bulk(40))
    bad[1, 2] = float("nan")
    with pytest.raises(NotFinite, match="1 NaN and 0 infinite numbers among 240.*Such a row has no norm"):
        token_norms(Activations(bad, "row d_model", site="blocks.0.resid_post"))
    found = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return found(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match="needs scikit-learn. Install it with: pip install 'activarium\\[vision\\]'"):
        token_norms(acts)
