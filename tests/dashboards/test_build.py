"""Pages against brute force; the same bytes however they were read; no page is read before it is opened."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium.dashboards import build, folder, open_pages
from activarium.dictionaries import SAE, Codes, LiveCodes, rows_for
from activarium.errors import InputError, NotFinite, OtherModel, StoreError, UnknownSite

from .made import HOSTILE, KINDS, SITE, child, dense, files, recording, sae


@pytest.fixture(scope="module")
def rec():
    return recording(kinds=KINDS)


@pytest.fixture(scope="module", params=["topk", "standard", "abstopk"])
def made(request, rec, tmp_path_factory):
    dictionary = sae(request.param, exclude=("bos",))
    pages = build(dictionary, rec, tmp_path_factory.mktemp("pages") / "a.features", top=7, per_band=3, buffer=4, progress=False)
    return pages, dense(dictionary, rec, np.array(KINDS) == "token")


def test_columns_are_those_of_brute_force(made):
    pages, codes = made
    fires = (codes != 0).sum(0)
    assert pages.columns["fires"].tolist() == fires.tolist()
    assert np.allclose(pages.columns["density"], fires / (np.array(KINDS) == "token").sum())
    assert np.allclose(pages.columns["sum"], codes.sum(0, dtype=np.float64))
    alive = fires > 0
    of = [codes[:, f][codes[:, f] != 0] for f in np.flatnonzero(alive)]
    for name, fun in {"max": np.max, "min": np.min, "mean": np.mean, "deviation": np.std}.items():
        assert np.allclose(pages.columns[name][alive], [fun(v.astype(np.float64)) for v in of], rtol=1e-5), name


def test_the_top_list_is_that_of_brute_force_one_of_each_example(made, rec):
    pages, codes = made
    example, position = rec.rows[""]["example"], rec.rows[""]["position"]
    for f in range(pages.columns["fires"].size):
        order = sorted(np.flatnonzero(codes[:, f]), key=lambda r: (-abs(codes[r, f]), r))
        firsts = list(dict.fromkeys(example[r] for r in order))
        wanted = [next(r for r in order if example[r] == e) for e in firsts[:7]]
        found = [c for c in pages.page(f).get("contexts", []) if c["band"] == "top"]
        assert [(c["example"], c["position"]) for c in found] == [(example[r], position[r]) for r in wanted]
        assert np.allclose([c["value"] for c in found], codes[wanted, f], rtol=1e-5)


def test_members_of_a_band_lie_in_it_and_its_counts_are_exact(made):
    pages, codes = made
    for f in np.flatnonzero(pages.columns["fires"]):
        page, size = pages.page(f), np.abs(codes[:, f][codes[:, f] != 0]).astype(np.float64)
        edges = page["bands"]["edges"]
        low, high = size[:, None] >= edges[1:-1], None
        assert page["bands"]["counts"].tolist() == np.bincount(low.sum(1), minlength=10).tolist() and high is None
        names = [f"{b / 10:g}–{(b + 1) / 10:g}" for b in range(10)]
        for context in page["contexts"]:
            if context["band"] != "top":
                b = names.index(context["band"])
                assert edges[b] <= abs(context["value"]) <= edges[b + 1]
        for name in names:
            members = [c["example"] for c in page["contexts"] if c["band"] == name]
            assert len(members) <= 3 and len(set(members)) == len(members)
            if page["bands"]["counts"][names.index(name)]:
                assert members, "a band with codes shows some"


def test_histograms_sum_to_the_firings_and_are_exact(made):
    pages, codes = made
    for f in np.flatnonzero(pages.columns["fires"]):
        bars, values = pages.page(f)["histogram"], codes[:, f][codes[:, f] != 0]
        assert bars["counts"].sum() == len(values) and len(bars["counts"]) == 50
        assert (bars["edges"][0], bars["edges"][-1]) == pytest.approx((values.min(), values.max()), rel=1e-5)
        theirs = np.histogram(values.astype(np.float64), bars["edges"])[0]
        assert np.abs(bars["counts"] - theirs).sum() <= 2  # encoded in another batch: a rounding apart


def test_contexts_show_the_codes_and_words_around(made, rec):
    pages, codes = made
    table = rec.rows[""]
    for f in range(5):
        for context in pages.page(f).get("contexts", []):
            span = table.span(context["example"])
            row = span.start + context["position"]
            first, stop = max(span.start, row - 4), min(span.stop, row + 5)
            assert context["tokens"] == [str(t) for t in table["text"][first:stop]]
            assert np.allclose(context["values"], codes[first:stop, f], atol=1e-6)
            assert context["values"][context["at"]] == np.float32(context["value"])


def test_the_same_bytes_again_with_other_pieces_and_others_with_another_seed(tmp_path, rec):
    dictionary = sae(exclude=("bos",))
    options = {"progress": False, "correlations": True}
    build(dictionary, rec, tmp_path / "a.features", **options)
    wanted = files(tmp_path / "a.features")
    for name, rows in {"again": 4096, "small": 1, "odd": 1500}.items():
        build(dictionary, rec, tmp_path / f"{name}.features", rows=rows, **options)
        assert files(tmp_path / f"{name}.features") == wanted, name
    build(dictionary, rec, tmp_path / "seed.features", seed=1, **options)
    assert files(tmp_path / "seed.features") != wanted


@pytest.mark.slow
def test_the_same_bytes_in_another_process(tmp_path, rec):
    wanted = files(build(sae(exclude=("bos",)), rec, tmp_path / "a.features", correlations=True, progress=False).path)
    script = "build(sae(exclude=('bos',)), recording(kinds=KINDS), sys.argv[1], progress=False, correlations=True, rows=2000)"
    subprocess.run(**child(script, tmp_path / "other.features"), check=True)
    assert files(tmp_path / "other.features") == wanted


class Shaped(SAE):
    """Its codes depend on how many rows it is given, as the rounding of a product may."""

    def codes(self, x):
        found = super().codes(x)
        return Codes(found.starts, found.features, found.values * (1 + len(x) / 4096), found.width)


def test_rows_are_encoded_in_the_same_blocks_however_many_are_read(tmp_path, rec):
    dictionary = Shaped(sae().design, sae().origin, seed=3).requires_grad_(False)
    made = [files(build(dictionary, rec, tmp_path / f"{n}.features", rows=n, progress=False).path) for n in (1, 1500, 4096)]
    assert made[0] == made[1] == made[2]


class Exact:
    """Codes that do not depend on how they are cut, read in any pieces."""

    def __init__(self, codes, index):
        self.codes, self.index, self.width = codes, index, codes.shape[1]
        self.chosen = np.arange(len(codes))

    def pieces(self, rows=4096):
        for first in range(0, len(self.codes), rows):
            yield self.chosen[first : first + rows], Codes.of_dense(self.codes[first : first + rows])


def test_pieces_of_any_size_give_the_same_bytes(tmp_path, rec):
    spread = torch.logspace(-9, 9, 3000)[torch.randperm(3000, generator=torch.Generator().manual_seed(0))]
    codes = Exact(sae().encode(rec[SITE].tensor) * spread[:, None], rec.rows[""])  # so wide that sums round
    made = [files(build(codes, rec, tmp_path / f"{n}.features", rows=n, progress=False).path) for n in (37, 900, 4096)]
    assert made[0] == made[1] == made[2]


def test_live_codes_and_chosen_features(tmp_path, rec):
    dictionary = sae("standard", exclude=("bos",))
    whole = build(dictionary, rec, tmp_path / "a.features", progress=False)
    live = build(LiveCodes(rows_for(dictionary, rec), dictionary), rec, tmp_path / "b.features", progress=False)
    assert live.columns["fires"].tolist() == whole.columns["fires"].tolist() and live.about["dictionary"] == whole.about["dictionary"]
    some = build(dictionary, rec, tmp_path / "c.features", features=[40, 3], progress=False)
    assert np.flatnonzero(np.isfinite(some.columns["fires"])).tolist() == [3, 40]
    for f in (3, 40):
        assert some.columns["fires"][f] == whole.columns["fires"][f]
        ours, theirs = some.page(f), whole.page(f)
        assert [c["position"] for c in ours["contexts"][:5]] == [c["position"] for c in theirs["contexts"][:5]]
        assert [n for n, _ in ours["neighbours"]] == [n for n, _ in theirs["neighbours"]]
        assert all(n in (3, 40) for n, _ in ours["together"])
    assert "no page was built" in some.page(4)["note"]
    with pytest.raises(InputError, match="no feature 48; the dictionary has 48"):
        build(dictionary, rec, features=[48], progress=False)


def test_only_chosen_features_are_encoded_where_codes_do_not_compete(rec, monkeypatch):
    asked = []
    plain = SAE.encode
    monkeypatch.setattr(SAE, "encode", lambda self, x, features=None: asked.append(features) or plain(self, x, features))
    build(sae("standard"), rec, features=[5, 9], progress=False)
    assert set(asked) == {(5, 9)}


def test_opening_reads_no_page_and_columns_read_one_file(tmp_path, rec, monkeypatch):
    path = build(sae(features=700), rec, tmp_path / "a.features", progress=False).path
    opened = []
    plain = folder.Folder._checked
    monkeypatch.setattr(folder.Folder, "_checked", lambda self, name: opened.append(name) or plain(self, name))
    pages = open_pages(path)
    assert opened == [] and len(pages) == 700
    assert len(pages.columns["fires"]) == 700
    assert opened == ["columns.safetensors"]
    pages.page(699)
    assert [n for n in opened if n.startswith("pages/")] == ["pages/00002.safetensors"]


def test_bytes_are_bounded_by_contexts(tmp_path, rec):
    path = build(sae(), rec, tmp_path / "a.features", top=5, per_band=2, buffer=3, progress=False).path
    size = sum(len(b) for b in files(path).values())
    contexts = 48 * (5 + 10 * 2)
    assert size < contexts * (7 * 4 + 80) + 48 * 1400 + 3000 * 60 + 20_000


def test_words_are_found_in_contexts_across_tokens_and_hostile_ones_stay_words(tmp_path, rec):
    dictionary = sae()
    codes = dense(dictionary, rec)
    pages = build(dictionary, rec, tmp_path / "a.features", top=3000, per_band=0, buffer=0, progress=False)
    table = rec.rows[""]
    for word, row in {HOSTILE: 7, HOSTILE.upper(): 7, "\x00": 11, "\ud800": 13}.items():
        wanted = [f for f in np.flatnonzero(codes[row]) if row in _tops(codes[:, f], table["example"])]
        assert pages.find(word).tolist() == wanted
    shown = {c["tokens"][0] for f in range(48) for c in pages.page(f)["contexts"]}
    assert {HOSTILE, "\x00", "\ud800 half"} <= shown
    wide = build(dictionary, rec, tmp_path / "b.features", top=5, buffer=6, progress=False)
    for text in ("w40 w41", "w40  w41", "5 w56 w5"):
        wanted = [
            f for f in range(48) if any(text in "".join(c["tokens"]) or text in " ".join(c["tokens"]) for c in wide.page(f)["contexts"])
        ]
        assert wide.find(text).tolist() == wanted
    assert len(wide.find("w40 w41")) and not len(wide.find("no such words"))


def _tops(codes, example):
    order = sorted(np.flatnonzero(codes), key=lambda r: (-abs(codes[r]), r))
    return {next(r for r in order if example[r] == e) for e in {example[r] for r in order}}


def test_firing_together_by_hand(tmp_path):
    codes = torch.zeros(400, 5)
    codes[:100, 0] = 1.0
    codes[:80, 1] = torch.arange(80) + 1.0  # nearly always beside 0
    codes[100:104, 2] = codes[100:104, 3] = 2.0  # too seldom to tell
    codes[::2, 4] = 1.0  # half of everything: no more often than chance
    index = act.testing.recording_of({SITE: codes}, example=np.arange(400) // 20)
    pages = build(Exact(codes, index.rows[""]), index, tmp_path / "a.features", correlations=True, progress=False)
    ((number, nats),) = pages.page(0)["together"]
    assert (number, nats) == (1, pytest.approx(np.log(80 * 400 / (100 * 80))))
    assert pages.page(2)["together"] == [] and pages.page(4)["together"] == []
    r = dict(pages.page(0)["correlated"])[1]
    assert r == pytest.approx(np.corrcoef(codes[:, 0], codes[:, 1])[0, 1], abs=1e-6)


@pytest.mark.slow
def test_without_a_folder_pages_say_how_long_they_last(rec):
    pages = build(sae(), rec, progress=False)
    assert pages.temporary and "goes with this process" in repr(pages)
    script = "p = build(sae(), recording(200), progress=False); assert p.path.is_dir(); print(p.path)"
    gone = subprocess.run(**child(script), check=True, capture_output=True, text=True).stdout.strip()
    assert gone and not Path(gone).parent.exists()


def test_what_cannot_be(tmp_path, rec):
    broken = recording(200)
    broken[SITE].tensor[5, 2] = torch.nan
    with pytest.raises(NotFinite, match="Row 5 of"):
        build(sae(), broken, tmp_path / "a.features", progress=False)
    codes = sae().encode(recording(200)[SITE].tensor)
    codes[9, 4] = torch.inf
    with pytest.raises(NotFinite, match="feature 4 in row 9 is inf"):
        build(Exact(codes, rec.rows[""].take(slice(0, 200))), rec, tmp_path / "a.features", progress=False)
    with pytest.raises(InputError, match="There are no rows to make pages of"):
        build(Exact(codes[:0], rec.rows[""].take(slice(0, 0))), rec, tmp_path / "a.features", progress=False)
    with pytest.raises(UnknownSite, match="blocks.9.resid_post"):
        build(sae(site="blocks.9.resid_post"), rec, progress=False)
    with pytest.raises(InputError, match="reads 8 numbers"):
        build(sae(width=8), rec, progress=False)
    with pytest.raises(InputError, match="top=0"):
        build(sae(), rec, top=0, progress=False)
    with pytest.raises(StoreError, match="ends in '.features'"):
        build(sae(), rec, tmp_path / "a.acts", progress=False)
    with pytest.raises(InputError, match="is a dictionary already"):
        build(sae(), rec, dictionary=sae(), progress=False)
    with pytest.raises(InputError, match="sources= names feature 7"):
        build(sae(), rec, features=[1], sources=[7], progress=False)
    assert list(tmp_path.iterdir()) == [], "a failed build leaves nothing"
    other = act.testing.recording_of({SITE: torch.zeros(4, 16)})
    other.provenance["model"] = {"name": "other", "weight_hash": "b" * 32}  # type: ignore[index]
    with pytest.raises(OtherModel, match="trained on"):
        build(sae(weight_hash="a" * 32), other, progress=False)
