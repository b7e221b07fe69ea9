"""Files that are damaged or were made to harm, names without a network, rows that overflowed: each refused at once, with its name."""

import io
import json
import socket
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import activarium as act
from activarium.dictionaries import Recipe, load, train
from activarium.errors import InputError, NotFinite

WIDTH, FEATURES = 6, 16
SITE = "blocks.0.resid_post"
SETTINGS = {"architecture": "standard", "d_in": WIDTH, "d_sae": FEATURES, "metadata": {}}


def plain():
    return {
        "W_enc": torch.ones(WIDTH, FEATURES),
        "W_dec": torch.ones(FEATURES, WIDTH),
        "b_enc": torch.ones(FEATURES),
        "b_dec": torch.ones(WIDTH),
    }


def folder(place, settings=SETTINGS, weights=None):
    place.mkdir()
    (place / "cfg.json").write_text(json.dumps(settings))
    save_file(plain() if weights is None else weights, place / "sae_weights.safetensors")
    return place


@pytest.mark.parametrize(
    "name", ["gemma-scope-2b-pt-res/layer_12", "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre", "https://hub/x"]
)
def test_names_of_a_hub_are_refused_without_a_network(name, monkeypatch):
    def reached(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", reached)
    monkeypatch.setattr(socket, "getaddrinfo", reached)
    with pytest.raises(
        InputError, match=r"There is no folder .*scribe-resid.* A name of a hub or a release is not looked up: download it first"
    ):
        load(name)


def test_a_file_in_place_of_its_folder(tmp_path):
    made = folder(tmp_path / "sae")
    with pytest.raises(InputError, match="is a file; a dictionary is read from the folder that holds its weights"):
        load(made / "sae_weights.safetensors")


def header(words, size=None):
    text = json.dumps(words).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


@pytest.mark.parametrize(
    "harm",
    [
        b"",
        b"\x00" * 7,
        header({}, size=1 << 60),  # a header longer than the file
        header({"W_enc": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 1 << 62]}}) + b"\0" * 64,
        header({"W_enc": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 4]}}) + b"\0" * 4,  # shape and bytes disagree
        header({"../../escape": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        b"PK\x03\x04 not safetensors at all",
    ],
    ids=["empty", "short", "long header", "absurd shape", "other bytes", "a path for a name", "another format"],
)
def test_hostile_safetensors(harm, tmp_path):
    made = folder(tmp_path / "sae")
    (made / "sae_weights.safetensors").write_bytes(harm)
    with pytest.raises(InputError, match=r"cannot be read|has W_|found none|of shape"):
        load(made)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["cfg.json", "sae", "sae_weights.safetensors"]


def npz(path, name, shape, payload, packed=False):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr(name, buffer.getvalue() + payload)


def test_archives_that_claim_more_than_they_hold(tmp_path):
    made = tmp_path / "layer_1"
    made.mkdir()
    npz(made / "params.npz", "W_enc.npy", (1 << 20, 1 << 20), b"\0" * 64)
    with pytest.raises(InputError, match=r"claims 4,398,046,511,104 bytes, shape \(1048576, 1048576\), and holds"):
        load(made)
    npz(made / "params.npz", "W_enc.npy", (1 << 12, 1 << 11), b"\0" * (1 << 25), packed=True)  # 32 MiB of zeros in 32 kB
    with pytest.raises(InputError, match="it is damaged or was made to harm"):
        load(made)
    npz(made / "params.npz", "../../escape.npy", (1,), b"\0" * 4)
    with pytest.raises(InputError, match="has no 'w_enc'"):
        load(made)
    assert not list(tmp_path.parent.glob("escape*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d_sae": "many"}, "says d_sae 'many'; wanted a whole number from 1"),
        ({"d_sae": 10**30}, r"says d_sae 1000000000\d+; wanted a whole number"),
        ({"d_in": -3}, "says d_in -3"),
        ({"d_sae": 1 << 29}, r"of shape \(536870912, 6\); found \(16, 6\)"),  # refused before anything of that size is made
        ({"architecture": "topk", "k": 2.5}, r"says k 2\.5"),
        ({"architecture": "topk", "k": 17}, "topk keeps k=17 of 16 features"),
        ({"normalize_activations": "whiten"}, "No scaling called 'whiten'"),
    ],
)
def test_settings_that_make_no_sense(change, words, tmp_path):
    with pytest.raises(InputError, match=words):
        load(folder(tmp_path / "sae", SETTINGS | change))


def test_weights_that_overflowed_in_float16_are_named(tmp_path):
    weights = plain() | {"W_dec": torch.full((FEATURES, WIDTH), 70_000.0).half(), "W_enc": plain()["W_enc"].half()}
    with pytest.raises(InputError, match="W_dec holds numbers that are not finite: the file is damaged, or it overflowed in float16"):
        load(folder(tmp_path / "sae", weights=weights))


def test_rows_that_overflowed_in_float16_are_told_from_nan():
    rows = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    for value, words in (
        (1e6, r"Row 321 of blocks\.0\.resid_post was kept in float16, which ends at 65,504"),
        (float("nan"), "holds NaN or infinity"),
    ):
        bad = rows.half()
        bad[321, 2] = value
        with pytest.raises(NotFinite, match=words):
            train(act.testing.recording_of({SITE: bad}), SITE, Recipe(16, k=2), batch=100, steps=8, progress=False)


def test_long_float16_rows_are_measured_without_overflow():
    """Each number fits in float16; the squared length of a row, 8 · 60,000², does not."""
    rows = (60_000 * (1 - torch.rand(600, 8, generator=torch.Generator().manual_seed(0)) / 4)).half()
    made = train(act.testing.recording_of({SITE: rows}), SITE, Recipe(16, k=2), batch=100, steps=30, progress=False)
    found = made.sae(rows.float())
    assert bool(found.isfinite().all())
    assert float((found - rows).norm(dim=1).mean() / rows.float().norm(dim=1).mean()) < 0.2
