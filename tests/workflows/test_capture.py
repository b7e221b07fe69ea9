"""Capturing: the plan is a pure function, a killed capture goes on to the same bits, nothing is dropped."""

import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activarium.errors import CapacityError, InputError, NotFinite, OtherModel, StoreError, UnknownSite
from activarium.store import StoreWriter, open_store
from activarium.workflows import capture_plan
from activarium.workflows.batch_plan import batch_plan
from activarium.workflows.capture import capture, plan
from activarium.workflows.capture_stream import MemorySink, Stream

from ..store.fake_model import FakeModel, texts

SITES = ["blocks.*.resid_post", "blocks.*.attn.pattern", "encoder.out", "pooled"]
OPTIONS = {"batch_tokens": 64, "shard_bytes": 40_000}


def same(a, b):
    """Every row once, in the same order, and the same bits."""
    assert list(a) == list(b)
    for space in a.rows:
        for column in a.rows[space].columns:
            assert np.array_equal(a.rows[space][column], b.rows[space][column])
    for name in a:
        assert torch.equal(a[name].tensor, b[name].tensor), name
    for x, y in zip(a["blocks.1.attn.pattern"].batches(), b["blocks.1.attn.pattern"].batches(), strict=True):
        assert torch.equal(x, y)


@pytest.fixture(scope="module")
def whole():
    return capture(FakeModel(), texts(80), SITES, progress=False, batch_tokens=64)


class Death(BaseException):
    """A kill that a test can place."""


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.stress), pytest.param(2, marks=pytest.mark.stress)])
def test_dying_at_every_single_step(tmp_path, monkeypatch, first):
    """Every sync and rename of a capture in turn is the last thing that happens."""
    steps, path = 0, tmp_path / "s.acts"
    real_sync, real_replace, left = os.fsync, Path.replace, [0]

    def counted(real):
        def step(*args):
            left[0] -= 1
            if left[0] < 0:
                raise Death
            return real(*args)

        return step

    monkeypatch.setattr(os, "fsync", counted(real_sync))
    monkeypatch.setattr(Path, "replace", counted(real_replace))
    small = [t[:6] for t in texts(8)]
    left[0] = 10**9
    wanted = capture(FakeModel(), small, SITES, progress=False, batch_tokens=24)
    for step in range(first, 24, 3):
        shutil.rmtree(path, ignore_errors=True)
        left[0] = step
        try:
            capture(FakeModel(), small, SITES, path, progress=False, batch_tokens=24, shard_bytes=8000)
        except Death:
            steps += 1
        left[0] = 10**9
        if (path / "manifest.act.json").exists():
            open_store(path).verify()
        same(capture(FakeModel(), small, SITES, path, progress=False, batch_tokens=24, shard_bytes=8000), wanted)
    assert steps == 8


def test_resume_runs_only_what_is_missing(tmp_path, whole):
    path, model = tmp_path / "s.acts", FakeModel()
    capture(model, texts(80), SITES, path, progress=False, **OPTIONS)
    planned = list(model.ran)
    journal = path / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-2]))
    again = FakeModel()
    store = capture(again, texts(80), SITES, path, progress=False, **OPTIONS)
    assert again.ran == planned[-len(again.ran) :]
    assert 0 < len(again.ran) < len(planned) / 2
    same(store, whole)
    third = FakeModel()
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    capture(third, texts(80), SITES, path, progress=False, **OPTIONS)
    assert third.ran == []
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*")}


def test_ctrl_c_leaves_a_store_to_go_on_with(tmp_path, whole):
    class Interrupted(FakeModel):
        def run(self, inputs, read):
            if len(self.ran) == 7:
                raise KeyboardInterrupt
            return super().run(inputs, read)

    path, before = tmp_path / "s.acts", threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        capture(Interrupted(), texts(80), SITES, path, progress=False, **OPTIONS)
    assert not (path / "writer.lock").exists()
    assert threading.active_count() <= before
    same(capture(FakeModel(), texts(80), SITES, path, progress=False, **OPTIONS), whole)


def test_what_goes_wrong_while_writing_surfaces(tmp_path):
    for to in (None, tmp_path / "s.acts"):
        model = FakeModel(spoil=("pooled", 17, float("inf")))
        with pytest.raises(NotFinite, match=r"pooled holds infinity in example 17 "):
            capture(model, texts(80), SITES, to, progress=False, **OPTIONS)
    kept = capture(FakeModel(spoil=("pooled", 17, float("inf"))), texts(80), "pooled", progress=False, allow_nonfinite=True)
    assert torch.isinf(kept["pooled"].tensor).sum() == 1


def test_float16_that_overflows_says_what_to_choose():
    model = FakeModel(spoil=("pooled", 3, 1e5))
    with pytest.raises(NotFinite, match=r"float16 ends at 65504: capture with dtype='bfloat16'"):
        capture(model, texts(5), "pooled", dtype="float16", progress=False)
    assert capture(model, texts(5), "pooled", dtype=torch.bfloat16, progress=False)["pooled"].dtype == torch.bfloat16


def test_another_model_or_other_data(tmp_path):
    capture(FakeModel(), texts(5), "pooled", tmp_path / "s.acts", progress=False)
    with pytest.raises(OtherModel, match=r"captured with model weight_hash 'w0'; this capture has 'w1'"):
        capture(FakeModel(weights="w1"), texts(5), "pooled", tmp_path / "s.acts", progress=False)
    with pytest.raises(OtherModel, match=r"captured with data hash '"):
        capture(FakeModel(), texts(5, seed=1), "pooled", tmp_path / "s.acts", progress=False)
    with pytest.raises(OtherModel, match=r"captured with batch plan '"):
        capture(FakeModel(), texts(5), "pooled", tmp_path / "s.acts", progress=False, batch_tokens=31)
    with pytest.raises(StoreError, match=r"exists already"):
        capture(FakeModel(), texts(5), "pooled", tmp_path / "s.acts", progress=False, resume=False)


def test_position_bias_grows_with_the_batches(tmp_path):
    """The longest example of the first batch need not be the longest of a cross space; the side file keeps the largest."""
    path, model = tmp_path / "s.acts", FakeModel()
    data = [[1] * 3, [2] * 9, [3] * 5]
    inputs = model.inputs(data)
    made = plan(model, inputs, "blocks.0.attn.pattern", path, batch_tokens=9)
    with StoreWriter(path, made.draft(model.identity, {"hash": inputs.hash}), shard_bytes=1) as writer:
        for at, member in enumerate([0, 1, 2]):
            writer.add(model.run(inputs.select([member]), list(made.reads)), [member], at)
            writer.commit()
    store = open_store(path)
    assert store.attention["blocks.0.attn"].bias.shape == (4, 9, 9)
    assert sorted(p.name for p in (path / "constants").iterdir()) == ["00000.safetensors", "00001.safetensors"]
    assert store["blocks.0.attn.pattern"].example(1).shape == (4, 9, 9)


def test_a_bias_that_contradicts_itself_is_refused(tmp_path):
    class Moody(FakeModel):
        def _spec(self, longest):
            spec = super()._spec(longest)
            spec.bias.add_(len(self.ran))
            return spec

    with pytest.raises(StoreError, match=r"blocks.0.attn.bias differs between batches where it should be the same"):
        capture(Moody(), texts(80), SITES, progress=False, batch_tokens=64)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ the plan


@given(st.lists(st.integers(1, 200), min_size=1, max_size=80), st.integers(1, 500))
@settings(deadline=None)
def test_a_batch_plan_is_a_pure_partition(lengths, batch_tokens):
    batches = batch_plan(lengths, batch_tokens)
    assert batches == batch_plan(list(lengths), batch_tokens)
    members = [i for b in batches for i in b.members]
    assert sorted(members) == list(range(len(lengths)))
    for batch in batches:
        assert batch.padded == max(lengths[i] for i in batch.members)
        assert batch.padded * len(batch.members) <= batch_tokens or len(batch.members) == 1
    longest = [b.padded for b in batches]
    assert all(later <= earlier + 7 for earlier, later in itertools.pairwise(longest))


def test_a_batch_plan_by_hand():
    batches = batch_plan([3, 20, 4, 17, 1], 40)
    assert [(b.members, b.padded) for b in batches] == [((1, 3), 20), ((0, 2, 4), 4)]


def test_images_keep_their_order():
    assert [b.members for b in batch_plan([65] * 5, 130)] == [(0, 1), (2, 3), (4,)]


def test_the_plan_predicts_what_is_written(tmp_path):
    made = plan(FakeModel(), texts(80), SITES, tmp_path / "s.acts", batch_tokens=64)
    store = capture(FakeModel(), texts(80), SITES, tmp_path / "s.acts", progress=False, batch_tokens=64)
    assert made.sites == tuple(store)
    assert made.bytes == {n: store[n].nbytes for n in store}
    assert made.aliases["blocks.1.resid_pre"] == "blocks.0.resid_post"
    assert made.fits
    assert [store.rows[""].examples[0]] == [made.batches[0].members[0]]


def test_the_plan_prints_itself():
    made = plan(FakeModel(), texts(80), SITES, batch_tokens=64)
    lines = repr(made).splitlines()
    assert lines[0].startswith("CapturePlan: 8 sites, 80 examples in ")
    assert lines[1].split() == ["site", "axes", "shape", "bytes"]
    assert any(line.startswith("blocks.0.resid_post  row d_model") for line in lines)
    assert "patterns and scores are computed from them when asked for" in lines[-1]
    assert "<table>" in made._repr_html_()


def test_capture_says_what_it_does(capsys, tmp_path):
    capture(FakeModel(), texts(5), "blocks.0.attn.pattern", tmp_path / "s.acts", progress=True)
    said = capsys.readouterr().out
    assert "capture: 2 sites, 5 examples in 1 batches" in said
    assert "blocks.0.attn.pattern: queries and keys are kept" in said
    assert "rows/s" in said
    capture(FakeModel(), texts(5), "blocks.0.attn.pattern", tmp_path / "s.acts", progress=True)
    assert "s.acts is complete" in capsys.readouterr().out
    capture(FakeModel(), texts(5), "pooled", progress=False)
    assert capsys.readouterr().out == ""


def test_what_does_not_fit_is_refused_before_it_runs(tmp_path, monkeypatch):
    model = FakeModel()
    monkeypatch.setattr(capture_plan, "free_memory", lambda: 10_000)
    with pytest.raises(
        CapacityError, match=r"takes [\d.]+ KiB of memory .*; 9.8 KiB are free. Capture to a folder: to='name.acts', choose fewer sites"
    ):
        capture(model, texts(80), SITES, progress=False)
    with pytest.raises(
        CapacityError, match=r"Three batches of [\d.]+ KiB are in memory at a time; 9.8 KiB are free. Lower batch_tokens, now 4096"
    ):
        capture(model, texts(80), SITES, tmp_path / "s.acts", progress=False)
    monkeypatch.setattr(capture_plan, "free_memory", lambda: 1 << 40)
    monkeypatch.setattr(capture_plan.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(CapacityError, match=r"writes [\d.]+ KiB to .*s.acts; 1,000 B are free there. Choose fewer sites"):
        capture(model, texts(80), SITES, tmp_path / "s.acts", progress=False)
    assert not plan(model, texts(80), SITES, tmp_path / "s.acts").fits
    assert model.ran == []
    assert not (tmp_path / "s.acts").exists()


def test_words_of_refusals(tmp_path):
    model = FakeModel()
    with pytest.raises(InputError, match=r"There are no examples to capture: the data are empty"):
        capture(model, [], "pooled")
    with pytest.raises(InputError, match=r"Example 1 has no rows. Leave out empty examples"):
        capture(model, [[1], []], "pooled")
    with pytest.raises(InputError, match=r"batch_tokens is 0; wanted at least 1. The default is 4096"):
        capture(model, [[1]], "pooled", batch_tokens=0)
    with pytest.raises(UnknownSite, match=r"No site in this model called 'blocks.9.mlp.post'. Did you mean"):
        capture(model, [[1]], "blocks.9.mlp.post")
    with pytest.raises(StoreError, match=r"is no name for a store: wanted one that ends in '.acts'"):
        capture(model, [[1]], "pooled", tmp_path / "store")
    with pytest.raises(InputError, match=r"dtype='int8' would cut activations to whole numbers. Choose float64"):
        capture(model, [[1]], "pooled", dtype="int8")
    with pytest.raises(StoreError, match=r"A store cannot hold dtype 'float12'"):
        capture(model, [[1]], "pooled", dtype="float12")


# ------------------------------------------------------------------------------------------------ the stream


class Slow:
    """A sink that takes its time."""

    def __init__(self, fail_at=None):
        self.done, self.seen, self.fail_at, self.gate = [], [], fail_at, threading.Event()

    def add(self, batch, members, at):
        self.gate.wait(10)
        if at == self.fail_at:
            raise StoreError("the disk is on fire")
        self.seen.append(at)

    def finish(self):
        raise NotImplementedError

    def abort(self):
        pass


def test_a_full_queue_makes_the_model_wait_and_nothing_is_dropped():
    sink = Slow()
    stream, sent = Stream(sink), []

    def produce():
        for i in range(20):
            stream.put(None, [], i)
            sent.append(i)
        stream.end()

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.3)
    assert len(sent) <= 2  # one in work, one waiting
    sink.gate.set()
    producer.join(10)
    assert sink.seen == list(range(20))


def test_an_error_in_the_thread_reaches_a_waiting_caller():
    sink = Slow(fail_at=0)
    stream = Stream(sink)
    threading.Timer(0.1, sink.gate.set).start()

    def send():
        for i in range(100):
            stream.put(None, [], i)

    with pytest.raises(StoreError, match="the disk is on fire"):
        send()
    stream.stop()


def test_memory_holds_each_site_once_as_one_tensor():
    kept = capture(FakeModel(), texts(80), SITES, progress=False, batch_tokens=64)
    site = kept["blocks.0.resid_post"]
    assert site.tensor.data_ptr() == site.tensor.data_ptr()
    assert site.tensor.untyped_storage().nbytes() == site.nbytes
    assert kept["blocks.1.resid_pre"] is site
    assert "blocks.0.resid_post  row d_model" in repr(kept)
    assert "pattern" not in repr(kept)


def test_more_rows_than_the_inputs_announced_are_kept_too():
    model = FakeModel()
    inputs = model.inputs(texts(6))
    sink = MemorySink(plan(model, inputs, "pooled").draft({}, {}), {"example": 3})
    for at in range(0, 6, 2):
        sink.add(model.run(inputs.select([at, at + 1]), ["pooled"]), [at, at + 1], at)
    assert sink.finish()["pooled"].index["example"].tolist() == list(range(6))
    assert sink.finish()["pooled"].shape == (6, 8)


def test_manifest_records_the_batches(tmp_path):
    store = capture(FakeModel(), texts(80), "pooled", tmp_path / "s.acts", progress=False, batch_tokens=64)
    entry = json.loads((store.path / "manifest.act.json").read_text())["plan"]
    order, start = store.rows["example"]["example"], 0
    model = FakeModel()
    for size, padded in zip(entry["sizes"], entry["padded"], strict=True):
        members = order[start : start + size]
        assert padded == max(len(texts(80)[i]) for i in members)
        start += size
    capture(model, texts(80), "pooled", progress=False, batch_tokens=64)
    assert [len(r) for r in model.ran] == entry["sizes"]
