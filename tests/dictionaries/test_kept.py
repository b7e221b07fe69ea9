"""Codes beside a capture: the same codes, a store that stays as it was, and refusals of what is not theirs."""

import json
import shutil

import numpy as np
import pytest
import torch

import activarium as act
from activarium.dashboards import build
from activarium.dictionaries import SAE, Design, Origin, kept, rows_for
from activarium.dictionaries.fingerprint import fingerprint
from activarium.dictionaries.kept import keep_codes, open_codes
from activarium.dictionaries.steady import SteadyCodes
from activarium.errors import CorruptStore, InputError, NotFinite, OtherModel, StoreError

SITE = "blocks.0.resid_post"
TEXTS = act.testing.texts(24)


@pytest.fixture(scope="module")
def model():
    return act.wrap(*act.testing.tiny("gpt2"), certify=False)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    return act.capture(model, TEXTS, [SITE, "blocks.1.resid_post"], to=tmp_path_factory.mktemp("s") / "s.acts", progress=False).path


@pytest.fixture
def path(made, tmp_path):
    return shutil.copytree(made, tmp_path / "s.acts")


def sae(store, seed=1, site=SITE, kind="topk", **more):
    width = store[site].shape[1]
    return SAE(Design(width, 40, kind=kind, k=4 if kind == "topk" else None), Origin(site=site, **more), seed=seed).requires_grad_(False)


def everything(coded, rows=4096):
    pieces = list(coded.pieces(rows))
    return np.concatenate([i for i, _ in pieces]), torch.cat([c.dense() for _, c in pieces])


def before(path):
    return {p.relative_to(path): (p.stat().st_mtime_ns, p.read_bytes()) for p in path.rglob("*") if p.is_file() and "codes" not in p.parts}


@pytest.mark.parametrize("rows", [7, 4096])
def test_kept_codes_are_the_live_ones_and_the_store_stays_as_it_was(path, rows, monkeypatch):
    monkeypatch.setattr(kept, "PART", 64)
    monkeypatch.setattr("activarium.dictionaries.steady.BLOCK", 32)
    store = act.open(path)
    files, dictionary = before(path), sae(store, exclude=("bos",))
    made = keep_codes(store, dictionary, rows=rows, progress=False)
    index, codes = everything(made, 10)
    live = everything(SteadyCodes(rows_for(dictionary, store), dictionary))
    assert np.array_equal(index, live[0]) and torch.equal(codes, live[1])
    assert len(made.about["parts"]) == -(-len(index) // 64)
    assert before(path) == files
    assert act.open(path).verify().leftovers == ()
    assert everything(open_codes(act.open(path)))[1].equal(codes)
    assert made.site == SITE and made.hash == fingerprint(dictionary)


def test_half_precision_is_stated_and_near(path):
    store = act.open(path)
    whole, half = (keep_codes(store, sae(store), dtype, dtype=dtype, progress=False) for dtype in ("float32", "float16"))
    a, b = everything(whole)[1], everything(half)[1]
    assert torch.allclose(a, b, rtol=1e-3) and not torch.equal(a, b) and torch.equal(a.half().float(), b)
    assert half.about["dtype"] == "float16" and b.dtype == torch.float32
    loud = sae(store, kind="standard")
    with torch.no_grad():
        loud.encoder *= 1e6
    with pytest.raises(NotFinite, match="not finite in float16"):
        keep_codes(store, loud, "loud", dtype="float16", progress=False)


def test_a_call_cut_short_goes_on_and_encodes_no_row_twice(path, monkeypatch):
    monkeypatch.setattr(kept, "PART", 32)
    monkeypatch.setattr("activarium.dictionaries.steady.BLOCK", 32)
    store = act.open(path)
    dictionary, plain = sae(store), kept._written
    monkeypatch.setattr(kept, "_written", lambda folder, number, *a: plain(folder, number, *a) if number < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        keep_codes(store, dictionary, progress=False)
    with pytest.raises(StoreError, match=r"has codes of 64 rows, the store has .* keep_codes\(store, dictionary, 'codes'\) goes on"):
        open_codes(store)
    encoded = []
    monkeypatch.setattr(kept, "_written", plain)
    monkeypatch.setattr(SAE, "codes", lambda self, x, codes=SAE.codes: encoded.append(len(x)) or codes(self, x))
    made = keep_codes(store, dictionary, progress=False)
    assert sum(encoded) == len(store[SITE]) - 64
    encoded.clear()
    assert keep_codes(store, dictionary, progress=False).about == made.about and encoded == []
    fresh = keep_codes(store, dictionary, "fresh", progress=False)
    assert everything(made)[1].equal(everything(fresh)[1])


def test_codes_older_than_an_append_are_refused_with_words_and_then_extended(path, model, monkeypatch):
    monkeypatch.setattr(kept, "PART", 64)
    monkeypatch.setattr("activarium.dictionaries.steady.BLOCK", 32)
    store = act.open(path)
    dictionary, old = sae(store), len(store[SITE])
    keep_codes(store, dictionary, progress=False)
    more = ["the old king likes the ball ."] * 9
    grown = act.capture(model, more, [SITE, "blocks.1.resid_post"], to=path, append=True, progress=False)
    assert grown.verify().leftovers == () and len(grown[SITE]) > old
    with pytest.raises(StoreError, match="data were appended, or encoding was cut short"):
        open_codes(grown)
    made = keep_codes(grown, dictionary, progress=False)
    fresh = keep_codes(grown, dictionary, "fresh", progress=False)
    assert everything(made)[1].equal(everything(fresh)[1]) and len(made.chosen) == len(grown[SITE])
    cuts = [[(p["rows"], p["span"]) for p in one.about["parts"]] for one in (made, fresh)]
    assert cuts[0] == cuts[1], "encoded in the same blocks as in one call"
    assert act.open(path).verify().leftovers == ()
    again = act.capture(model, ["who ?"] * 3, [SITE, "blocks.1.resid_post"], to=path, append=True, progress=False)
    assert again.complete and again.verify().leftovers == ()


def test_codes_of_other_dictionaries_sites_and_stores_are_refused(path, model, tmp_path):
    store = act.open(path)
    made = keep_codes(store, sae(store), progress=False)
    with pytest.raises(OtherModel, match="with key|with dictionary"):
        keep_codes(store, sae(store, seed=2), progress=False)
    with pytest.raises(OtherModel, match="site 'blocks.0.resid_post'"):
        keep_codes(store, sae(store, site="blocks.1.resid_post"), progress=False)
    with pytest.raises(OtherModel, match="exclude"):
        keep_codes(store, sae(store), exclude=("bos",), progress=False)
    assert keep_codes(store, sae(store, seed=2), overwrite=True, progress=False).hash != made.hash
    other = act.capture(model, TEXTS[:8], [SITE], to=tmp_path / "other.acts", progress=False)
    shutil.copytree(path / "codes", other.path / "codes")
    with pytest.raises(OtherModel, match="codes of other rows"):
        open_codes(other)
    with pytest.raises(OtherModel, match="codes of other rows"):
        keep_codes(other, sae(other, seed=2), progress=False)
    with pytest.raises(StoreError, match="No codes 'none' .* Kept: codes"):
        open_codes(store, "none")
    with pytest.raises(InputError, match="cannot be called '../x'"):
        keep_codes(store, sae(store), "../x", progress=False)
    with pytest.raises(InputError, match="cannot be kept as 'int8'"):
        keep_codes(store, sae(store), dtype="int8", progress=False)
    with pytest.raises(InputError, match="has none here"):
        keep_codes(model.run(["who ?"], read=[SITE]), sae(store), progress=False)


def test_damage_is_named(path):
    store = act.open(path)
    keep_codes(store, sae(store), progress=False)
    part, manifest = path / "codes" / "codes" / "00000.safetensors", path / "codes" / "codes" / "codes.json"
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptStore, match=r"00000\.safetensors was changed"):
        list(open_codes(store).pieces())
    assert act.open(path).verify(), "the capture itself is sound"
    part.write_bytes(data[:-1])
    with pytest.raises(CorruptStore, match=r"00000\.safetensors has .* lists"):
        open_codes(store)
    part.write_bytes(data)
    text = manifest.read_text()
    manifest.write_text(text.replace('"width": 40', '"width": 41'))
    with pytest.raises(CorruptStore, match="was changed after it was written"):
        open_codes(store)
    body = json.loads(text)
    body.pop("seal")
    body["parts"][0]["file"] = "../../manifest.act.json"
    kept._seal(manifest.parent, body)
    with pytest.raises(CorruptStore, match="is no part of codes"):
        open_codes(store)


def test_pages_of_kept_codes_are_those_of_live_ones(path, model, tmp_path):
    store = act.open(path)
    dictionary = sae(store, exclude=("bos",))
    codes = keep_codes(store, dictionary, progress=False)
    a = build(codes, store, tmp_path / "a.features", dictionary=dictionary, model=model, progress=False)
    b = build(dictionary, store, tmp_path / "b.features", model=model, progress=False)
    names = [p.relative_to(a.path) for p in sorted(a.path.rglob("*")) if p.is_file()]
    assert [(a.path / n).read_bytes() == (b.path / n).read_bytes() for n in names] == [True] * len(names)
    with pytest.raises(OtherModel, match="holds codes of dictionary"):
        build(codes, store, dictionary=sae(store, seed=5), progress=False)
    assert "neighbours" not in build(codes, store, progress=False).page(0)


def test_a_fingerprint_is_of_numbers_and_design(path):
    store = act.open(path)
    one = sae(store)
    assert fingerprint(one) == fingerprint(sae(store, exclude=("bos",)))
    assert fingerprint(one) != fingerprint(sae(store, seed=2))
    assert fingerprint(one) != fingerprint(SAE.of_weights(Design(one.d_in, 40, kind="topk", k=5), dict(one.named_parameters())))
