"""Appending: rows of a later session stand behind the first ones, and a killed append goes on like any capture."""

import json
import shutil

import numpy as np
import pytest
import torch

from activarium.errors import OtherModel, StoreError
from activarium.store import open_store
from activarium.workflows.capture import capture

from .fake_model import FakeModel, texts
from .test_golden import GOLDEN

SITES = ["blocks.*.resid_post", "blocks.*.attn.pattern", "encoder.out", "pooled"]
OPTIONS = {"batch_tokens": 64, "shard_bytes": 20_000, "progress": False}
FIRST, MORE, LAST = texts(30, seed=0), texts(20, seed=1, longest=50), texts(5, seed=2)


@pytest.fixture
def path(tmp_path):
    capture(FakeModel(), FIRST, SITES, tmp_path / "s.acts", **OPTIONS)
    return tmp_path / "s.acts"


def append(path, data, model=None, **options):
    return capture(model or FakeModel(), data, SITES, path, append=True, **(OPTIONS | options))


class Numbered(FakeModel):
    """The same inputs under the numbers that they have in the store."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def inputs(self, data):
        return super().inputs(data).numbered(self.first)


def test_rows_of_both_and_the_bits_of_separate_captures(path):
    store = append(path, MORE)
    store = append(path, LAST)
    alone = [capture(Numbered(n), d, SITES, **OPTIONS) for n, d in ((0, FIRST), (30, MORE), (50, LAST))]
    for space in store.rows:
        for column in store.rows[space].columns:
            assert np.array_equal(store.rows[space][column], np.concatenate([a.rows[space][column] for a in alone]))
    for name in store:
        assert torch.equal(store[name].tensor, torch.cat([a[name].tensor for a in alone])), name
    for part in alone:
        for example in part.rows[""].examples:
            ours, theirs = (r["blocks.1.attn.pattern"].example(example).tensor for r in (store, part))
            assert torch.allclose(ours, theirs)
    assert sorted(store.rows[""].examples) == list(range(55))
    assert store.complete and store.examples == store.planned == 55
    assert store.verify().leftovers == ()


def test_the_same_call_again_adds_nothing(path):
    append(path, MORE)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    model = FakeModel()
    append(path, MORE, model)
    append(path, FIRST, model)
    assert model.ran == []
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*")}


def test_a_store_that_is_not_there_begins(tmp_path):
    store = append(tmp_path / "new.acts", FIRST)
    again = capture(FakeModel(), FIRST, SITES, tmp_path / "plain.acts", **OPTIONS)
    assert sorted(p.read_bytes() for p in store.path.rglob("*.safetensors")) == sorted(
        p.read_bytes() for p in again.path.rglob("*.safetensors")
    )
    assert "appended" not in (store.path / "journal.jsonl").read_text()


def test_an_append_that_was_cut_short_goes_on_to_the_same_bytes(path, tmp_path):
    whole = tmp_path / "whole.acts"
    shutil.copytree(path, whole)
    append(whole, MORE)
    begun = len((path / "journal.jsonl").read_bytes().splitlines())
    append(path, MORE)
    lines = (path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) > begun + 3
    for cut in (begun, begun + 1, begun + 2, len(lines) - 1):  # before its session line, after it, after shards
        (path / "journal.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][:40])
        held = open_store(path)
        held.verify()
        assert held.complete == (cut == begun)
        store = append(path, MORE)
        assert store.verify().leftovers == ()
        for shard in (whole / "shards").iterdir():
            assert shard.read_bytes() == (path / "shards" / shard.name).read_bytes()


def test_what_is_read_carries_another_id(path):
    before = open_store(path).provenance
    after = append(path, MORE).provenance
    assert before["id"] != after["id"]
    assert before["data"] == after["data"]
    assert after["appended"][0]["data"]["hash"] == FakeModel().inputs(MORE).hash
    assert after["appended"][0]["number"] == 30


def test_words_of_refusals(path):
    with pytest.raises(
        OtherModel, match=r"captured with data hash '\w+'; this capture has '\w+'. .*, or pass append=True to add these data"
    ):
        capture(FakeModel(), MORE, SITES, path, **OPTIONS)
    with pytest.raises(OtherModel, match=r"captured with model weight_hash 'w0'; this capture has 'w1'"):
        append(path, MORE, FakeModel(weights="w1"))
    with pytest.raises(OtherModel, match=r"captured with sites"):
        capture(FakeModel(), MORE, "pooled", path, append=True, **OPTIONS)
    journal = path / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        StoreError, match=r"s.acts is incomplete: \d+ of 30 examples are there. Run the capture that began it to its end, then append"
    ):
        append(path, MORE)


def test_stores_of_before_can_be_appended_to_and_plain_sessions_read_as_before(tmp_path):
    """Format 1 is frozen: a session that appends nothing has the keys that it always had."""
    shutil.copytree(GOLDEN / "v1.acts", tmp_path / "v1.acts")
    lines = [json.loads(line) for line in (tmp_path / "v1.acts" / "journal.jsonl").read_bytes().splitlines()]
    known = {frozenset(line) for line in lines}
    made = capture(FakeModel(), FIRST, "pooled", tmp_path / "s.acts", **OPTIONS)
    assert {frozenset(json.loads(line)) for line in (made.path / "journal.jsonl").read_bytes().splitlines()} <= known
