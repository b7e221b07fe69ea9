"""Writing: whole examples per shard, one writer, and failures that leave what is committed readable."""

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activarium.errors import NotFinite, OtherModel, StoreError
from activarium.store import Manifest, PlanEntry, SiteEntry, StoreWriter, _shard, open_store
from activarium.store._journal import Journal
from activarium.store._pieces import _all_finite

from .fake_model import FakeModel, Inputs, texts

ROOT = str(Path(__file__).parents[2])
SITES = ("blocks.0.resid_post", "encoder.out", "pooled")


def draft(count, model=None, **changes):
    model = model or FakeModel()
    sites = {n: SiteEntry(axes=s.axes, rows=s.rows, shape=s.shape) for n, s in model.sites.items() if n in SITES}
    plan = PlanEntry(examples=count, batch_tokens=0, sizes=(), padded=(), hash="plan")
    return Manifest(**({"model": model.identity, "data": {"hash": "data"}, "plan": plan, "sites": sites} | changes))


class Plain(FakeModel):
    """Numbers that do not depend on the batch, to compare different splits."""

    def _values(self, name, rows, shape):
        return super()._values(name, rows, 0)


def write(path, data, cuts, **options):
    """Batches of the examples between the cuts."""
    model, inputs = Plain(), Inputs(data)
    edges = [0, *cuts, len(data)]
    with StoreWriter(path, draft(len(data)), **options) as writer:
        for first, last in itertools.pairwise(edges):
            members = list(range(first, last))
            writer.add(model.run(inputs.select(members), list(SITES)), members, first)
    return open_store(path)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(1, 11)), st.integers(1, 4000), st.integers(0, 3))
def test_any_split_into_batches_gives_the_same_store(tmp_path_factory, cuts, shard_bytes, seed):
    data = texts(12, seed)
    one = write(tmp_path_factory.mktemp("one") / "s.acts", data, [], shard_bytes=shard_bytes)
    many = write(tmp_path_factory.mktemp("many") / "s.acts", data, sorted(cuts), shard_bytes=shard_bytes)
    for folder in ("shards", "rows/main", "rows/encoder", "rows/example"):
        files = [sorted((s.path / folder).iterdir()) for s in (one, many)]
        assert [f.name for f in files[0]] == [f.name for f in files[1]]
        assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    whole = Plain().run(Inputs(data), list(SITES))
    for name in SITES:
        assert torch.equal(many[name].tensor, whole[name].tensor)


def test_shards_hold_whole_examples_and_keep_to_their_size(tmp_path):
    store = write(tmp_path / "s.acts", texts(40), [10, 20], shard_bytes=2000)
    seen = []
    for commit in store._journal.commits:
        table = [store.rows[s]["example"] for s in ("", "encoder", "example")]
        seen.append(commit.span)
        size = sum(commit.rows[e.rows] * e.row_bytes for e in store.manifest.sites.values())
        assert size <= 2000 or commit.span[1] - commit.span[0] == 1
    assert seen[0][0] == 0
    assert seen[-1][1] == 40
    assert all(np.array_equal(np.unique(t), np.arange(40)) for t in table)


def test_bfloat16_is_kept_to_the_bit(tmp_path):
    data = texts(5)
    model = FakeModel(dtype=torch.bfloat16)
    batch = model.run(Inputs(data), list(SITES))
    with StoreWriter(tmp_path / "s.acts", draft(5, model)) as writer:
        writer.add(batch, range(5), 0)
    found = open_store(tmp_path / "s.acts")["pooled"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.tensor.view(torch.int16), batch["pooled"].tensor.view(torch.int16))


def test_an_empty_store_has_no_rows(tmp_path):
    writer = StoreWriter(tmp_path / "s.acts", draft(5))
    writer._cutter.complete(FakeModel().run(Inputs(texts(5)), list(SITES)))
    writer._begin()
    writer.abort()
    store = open_store(tmp_path / "s.acts")
    assert store["pooled"].shape == (0, 8)
    assert not store.complete
    assert "incomplete: 0 of 5 examples, run the same capture to go on" in repr(store)


def test_a_second_writer_is_refused(tmp_path):
    writer = StoreWriter(tmp_path / "s.acts", draft(5))
    with pytest.raises(
        StoreError, match=rf"s.acts is being written by process {os.getpid()} on .*. Wait for it to end, or capture into another"
    ):
        StoreWriter(tmp_path / "s.acts", draft(5))
    writer.abort()
    StoreWriter(tmp_path / "s.acts", draft(5)).abort()


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.store.test_write import StoreWriter, draft
writer = StoreWriter(sys.argv[1], draft(5))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "s.acts"), ROOT], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match=f"is being written by process {process.pid} on"):
        StoreWriter(tmp_path / "s.acts", draft(5))
    process.kill()
    process.communicate()
    StoreWriter(tmp_path / "s.acts", draft(5)).abort()


def test_another_capture_is_refused_by_name(tmp_path):
    path = tmp_path / "s.acts"
    write(path, texts(5), [])
    other = FakeModel(weights="w1")
    with pytest.raises(
        OtherModel, match=r"s.acts was captured with model weight_hash 'w0'; this capture has 'w1'. Choose another folder, or use the same"
    ):
        StoreWriter(path, draft(5, other))
    with pytest.raises(OtherModel, match=r"captured with model name 'fake'; this capture has 'false'"):
        StoreWriter(path, draft(5, FakeModel(name="false")))
    with pytest.raises(OtherModel, match=r"captured with data hash 'data'; this capture has 'more'"):
        StoreWriter(path, draft(5, data={"hash": "more"}))
    plan = draft(5).plan.model_copy(update={"hash": "new"})
    with pytest.raises(OtherModel, match=r"captured with batch plan 'plan'; this capture has 'new'"):
        StoreWriter(path, draft(5, plan=plan))
    with pytest.raises(OtherModel, match=r"captured with sites 'blocks.0.resid_post encoder.out pooled'; this capture has 'pooled'"):
        StoreWriter(path, draft(5, sites={"pooled": draft(5).sites["pooled"]}))
    with pytest.raises(OtherModel, match=r"captured with dtype ''; this capture has 'bfloat16'"):
        StoreWriter(path, draft(5, dtype="bfloat16"))
    with pytest.raises(StoreError, match=r"exists already. Choose another name, remove it, or pass resume=True"):
        StoreWriter(path, draft(5), resume=False)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "s.acts").mkdir()
    (tmp_path / "s.acts" / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match=r"s.acts is no store but holds thesis.tex. Choose another folder, or empty this one"):
        StoreWriter(tmp_path / "s.acts", draft(5))
    assert [p.name for p in (tmp_path / "s.acts").iterdir()] in (
        ["thesis.tex"],
        ["thesis.tex", "writer.lock"],
        ["writer.lock", "thesis.tex"],
    )


def test_nan_names_site_and_example(tmp_path):
    model = FakeModel(spoil=("pooled", 3, float("nan")))
    with StoreWriter(tmp_path / "s.acts", draft(5)) as writer:
        with pytest.raises(
            NotFinite, match=r"pooled holds NaN in example 3 .*wanted numbers. look at this example, or pass allow_nonfinite=True"
        ):
            writer.add(model.run(Inputs(texts(5)), list(SITES)), range(5), 0)
        writer.add(FakeModel().run(Inputs(texts(5)), list(SITES)), range(5), 0)
    assert open_store(tmp_path / "s.acts").complete


def test_large_finite_values_are_no_infinity(tmp_path):
    model = FakeModel(spoil=("pooled", 3, 3e38))
    batch = model.run(Inputs(texts(5)), list(SITES))
    batch["pooled"].tensor[:, :] = 3e38  # their sum overflows, they do not
    with StoreWriter(tmp_path / "s.acts", draft(5)) as writer:
        writer.add(batch, range(5), 0)


def test_batches_that_do_not_fit_are_refused(tmp_path):
    batch = FakeModel().run(Inputs(texts(5)), list(SITES))
    with StoreWriter(tmp_path / "s.acts", draft(5)) as writer:
        with pytest.raises(StoreError, match=r"should hold examples \[1, 0\] in this order; its rows.* are of \[0, 1, 2, 3, 4\]"):
            writer.add(batch, [1, 0], 0)
        with pytest.raises(StoreError, match=r"should hold examples \[0, 1, 2, 3, 4, 5\]|in this order"):
            writer.add(batch, [4, 3, 2, 1, 0], 0)
        batch._sites["pooled"] = FakeModel(dtype=torch.float16).run(Inputs(texts(5)), ["pooled"])["pooled"]
        with pytest.raises(StoreError, match=r"pooled came with shape \(5, 8\) and torch.float16; wanted \(5, 8\) and float32"):
            writer.add(batch, range(5), 0)


def test_a_full_disk_leaves_what_is_committed(tmp_path, monkeypatch):
    path, data, real, calls = tmp_path / "s.acts", texts(40), _shard.os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 33:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(_shard.os, "fsync", full)
        with pytest.raises(
            StoreError,
            match=r"No space to write shard \d+ of .*s.acts \(No space left on device; [\d,]+ bytes free\). \d+ committed shard\(s\) stay readable. Free some",
        ):
            write(path, data, [20], shard_bytes=2000)
    assert not list(path.rglob("*.part"))
    store = open_store(path)
    assert 0 < store.examples < 40
    assert store.verify().leftovers == ()
    whole = Plain().run(Inputs(data), list(SITES))
    assert torch.equal(store["pooled"].tensor, whole["pooled"].tensor[: store.examples])
    assert torch.equal(write(path, data, [20], shard_bytes=2000)["pooled"].tensor, whole["pooled"].tensor)


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from tests.store.test_write import write, texts
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
write(sys.argv[1], texts(40), [], shard_bytes=1 << 20)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX limits")
def test_the_system_itself_says_no(tmp_path):
    """The kernel refuses the shard at byte 8000: nothing half written stays."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "s.acts"), ROOT], capture_output=True, text=True, check=False)
    assert "No space to write shard 0 of" in done.stderr, done.stderr
    assert not [p for kind in ("*.part", "*.parquet", "*.safetensors") for p in tmp_path.rglob(kind)]
    store = open_store(tmp_path / "s.acts")
    assert store.examples == 0
    assert store.verify().leftovers == ()


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        StoreError, match=r"s.acts may not be written \(Permission denied\). Open it with act.open to read it, or capture into another"
    ):
        StoreWriter(tmp_path / "s.acts", draft(5))


def test_a_torn_line_is_cut_and_the_shard_written_again(tmp_path):
    path, data = tmp_path / "s.acts", texts(40)
    before = write(path, data, [20], shard_bytes=2000)
    journal = path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]) + lines[-2][:50])
    torn = open_store(path)
    assert torn.examples < 40
    assert len(torn.verify().leftovers) == 8
    again = write(path, data, [20], shard_bytes=2000)
    assert torch.equal(again["pooled"].tensor, before["pooled"].tensor)
    assert np.array_equal(again.rows[""]["example"], before.rows[""]["example"])
    assert again.verify().leftovers == ()
    assert len(Journal(journal).sessions) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_finite_is_decided_number_by_number(dtype):
    """At every edge: the largest number is one, infinities and all NaN are not, wherever they stand."""
    limit = torch.finfo(dtype)
    for value in (limit.max, limit.min, limit.tiny, -0.0):
        assert _all_finite(torch.full((3, 70_000), value, dtype=dtype))
    for value in (float("inf"), -float("inf"), float("nan"), -float("nan")):
        for place in (0, 65_535, 65_536, 209_999):
            values = torch.zeros(210_000, dtype=dtype)
            values[place] = value
            assert not _all_finite(values.view(3, 70_000))
    assert _all_finite(torch.zeros(0, 4, dtype=dtype))
