"""A store reads like any Recording: lazily, by patterns and aliases, in any order, from a read-only copy."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from activarium.errors import CorruptStore, InputError, StoreError, UnknownSite
from activarium.recording import Recording
from activarium.store import open_store
from activarium.workflows.capture import capture

from .conftest import EVERYTHING
from .fake_model import FakeModel, texts


def same(a: Recording, b: Recording) -> None:
    """Do two recordings hold the same rows and, bit for bit, the same numbers?"""
    assert list(a) == list(b)
    for space, rows in a.rows.items():
        pandas.testing.assert_frame_equal(rows.frame(), b.rows[space].frame())
    for name in a:
        assert a[name].axes == b[name].axes
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name].tensor, b[name].tensor), name


def test_a_store_cannot_be_told_from_memory(made, model):
    memory = capture(model, texts(), EVERYTHING, batch_tokens=64, progress=False)
    assert isinstance(made, Recording)
    assert len(made["blocks.0.mlp.post"]._parts) > 3  # several shards, or this shows nothing
    same(memory, made)
    for block in ("blocks.0.attn", "blocks.1.attn"):
        for what in ("pattern", "scores"):
            here, there = made[f"{block}.{what}"], memory[f"{block}.{what}"]
            assert here.shape == there.shape
            assert all(torch.equal(x, y) for x, y in zip(here.batches(), there.batches(), strict=True))


def test_dtypes_of_row_columns_survive(made, model):
    memory = capture(model, texts(), EVERYTHING, batch_tokens=64, progress=False)
    for space, rows in memory.rows.items():
        assert {c: rows[c].dtype for c in rows.columns} == {c: made.rows[space][c].dtype for c in rows.columns}


def test_patterns_are_what_queries_and_keys_say(made):
    q, k = made["blocks.0.attn.q_rot"], made["blocks.0.attn.k_rot"]
    example = made.rows[""].examples[3]
    span = made.rows[""].span(example)
    queries, keys = q.tensor[span], k.tensor[span].repeat_interleave(2, dim=1)
    distance = (torch.arange(len(queries))[:, None] - torch.arange(len(queries))[None]).abs()
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * 0.5 - 0.1 * distance * torch.arange(1, 5)[:, None, None]
    scores = scores.masked_fill(torch.ones_like(distance).triu(1).bool(), -torch.inf)
    found = made["blocks.0.attn.pattern"].example(example)
    assert found.axes == ("head", "query", "key")
    assert torch.allclose(found.tensor, scores.softmax(-1), atol=1e-6)
    assert found.labels["query"] == [str(t) for t in made.rows[""]["text"][span]]


def test_patterns_answer_but_are_not_listed(made):
    assert "blocks.0.attn.pattern" in made
    assert not any(name.endswith(("pattern", "scores")) for name in made)
    assert made["blocks.*.attn.pattern"].axes == ("layer", "head", "query", "key")


def test_stacks_and_aliases(made):
    stack = made["blocks.*.mlp.post"]
    assert stack.axes == ("layer", "row", "d_mlp")
    assert torch.equal(stack.tensor[1], made["blocks.1.mlp.post"].tensor)
    assert made["blocks.1.resid_pre"] is made["blocks.0.resid_post"]
    assert made["blocks.*.resid_pre"].labels["layer"] == ["blocks.0.resid_pre", "blocks.1.resid_pre"]
    assert "blocks.1.resid_pre" not in list(made)


def test_unknown_site_names_the_nearest(made):
    with pytest.raises(UnknownSite, match=r"No site in this recording called 'blocks.0.mlp.pst'. Did you mean 'blocks.0.mlp.post'"):
        made["blocks.0.mlp.pst"]


@pytest.mark.parametrize("name", ["blocks.0.mlp.post", "blocks.*.mlp.post", "pooled", "encoder.out"])
def test_rows_in_any_order_and_repeated(made, name):
    site = made[name]
    along = site.axes.index("row") if "row" in site.axes else 0
    index = np.random.default_rng(1).integers(0, len(site), 57)
    assert torch.equal(site.rows(index), site.tensor.index_select(along, torch.from_numpy(index)))
    assert site.rows([]).shape[along] == 0


def test_rows_outside_are_refused(made):
    with pytest.raises(InputError, match=r"blocks.0.mlp.post has rows 0 to \d+; asked for -1 to 5"):
        made["blocks.0.mlp.post"].rows([-1, 5])


def test_random_rows_open_only_their_shards(made):
    """With every shard but one taken away, rows of that one can still be read."""
    lonely = open_store(made.path)
    first = len(lonely["blocks.0.mlp.post"]._parts[0].load())
    for shard in sorted((made.path / "shards").iterdir())[1:]:
        shard.unlink()
    assert lonely["blocks.0.mlp.post"].rows([first - 1, 0]).shape == (2, 16)
    assert lonely["blocks.*.mlp.post"].rows([0]).shape == (2, 1, 16)
    with pytest.raises(
        CorruptStore, match=r"00001.safetensors is missing; the journal committed it with [\d,]+ bytes. Copy the store again"
    ):
        lonely["blocks.0.mlp.post"].rows([first])


def test_example_and_batches(made):
    example = made.rows[""].examples[-1]
    assert set(made["blocks.0.mlp.post"].example(example).index["example"]) == {example}
    whole = torch.cat(list(made["blocks.0.mlp.post"].batches()))
    assert torch.equal(whole, made["blocks.0.mlp.post"].tensor)


def test_other_tools_read_the_rows(made):
    frame = pandas.concat([pandas.read_parquet(p) for p in sorted((made.path / "rows" / "main").iterdir())], ignore_index=True)
    pandas.testing.assert_frame_equal(frame, made.table(""), check_dtype=False)
    assert sorted(p.name for p in (made.path / "rows").iterdir()) == ["encoder", "example", "main"]


def test_what_is_written_into_a_tensor_stays_in_memory(made):
    values = made["blocks.0.mlp.post"]._parts[0].load()
    values.zero_()
    assert made["blocks.0.mlp.post"]._parts[0].load().abs().sum() > 0
    made.verify()


def test_info_repr_and_html(made):
    table = made.info().set_index("site")
    assert table.loc["blocks.0.mlp.post", "axes"] == "row d_mlp"
    assert table.loc["blocks.1.resid_pre", "stored as"] == "blocks.0.resid_post"
    assert "made.acts: fake" in repr(made)
    assert made.complete
    assert made.provenance["id"]


def test_html_of_a_hostile_name_is_escaped(tmp_path):
    store = capture(FakeModel(name="<script>alert(1)</script>"), texts(3), "pooled", tmp_path / "x.acts", progress=False)
    assert "<script>" not in store._repr_html_()
    assert "&lt;script&gt;" in store._repr_html_()


def test_no_store_here_names_its_neighbours(made):
    with pytest.raises(StoreError, match=r"There is no store .*nothing.acts. Stores beside it: made.acts. Make one with act.capture"):
        open_store(made.path.parent / "nothing.acts")
    with pytest.raises(StoreError, match=r"'.*made' is no name for a store: wanted one that ends in '.acts'. Try '.*made.acts'"):
        open_store(made.path.parent / "made")
    (made.path.parent / "bare.acts").mkdir()
    with pytest.raises(StoreError, match=r"bare.acts has no manifest.act.json: it is not a store, or nothing was captured"):
        open_store(made.path.parent / "bare.acts")


READER = """
import os, sys
import torch
from activarium.store import open_store
if len(sys.argv) > 2: os.setgid(65534); os.setuid(65534)
store = open_store(sys.argv[1])
assert not os.access(store.path, os.W_OK)
print(float(store["blocks.0.mlp.post"].tensor.double().sum()), store.verify().files, len(store.rows[""]))
"""


def test_a_read_only_copy(made, tmp_path_factory):
    """Also as a user who truly may not write: root ignores permissions."""
    import tempfile

    with tempfile.TemporaryDirectory() as outside:
        Path(outside).chmod(0o755)
        copy = Path(outside) / "copy.acts"
        shutil.copytree(made.path, copy)
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        root = ["nobody"] if os.geteuid() == 0 else []
        done = subprocess.run([sys.executable, "-c", READER, str(copy), *root], capture_output=True, text=True, check=False)
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o755)
        assert done.returncode == 0, done.stderr
        total, files, rows = done.stdout.split()
        assert float(total) == float(made["blocks.0.mlp.post"].tensor.double().sum())
        assert int(files) == made.verify().files
        assert int(rows) == len(made.table(""))


def test_streaming_is_flat_in_memory(tmp_path):
    """16 MiB in 2 MiB shards: a pass over them may hold a shard or two, never all."""
    store = capture(FakeModel(), [[1] * 1024] * 256, "blocks.0.mlp.post", tmp_path / "large.acts", shard_bytes=2 << 20, progress=False)
    assert store["blocks.0.mlp.post"].nbytes == 16 << 20

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    site = store["blocks.0.mlp.post"]
    next(site.batches()).double().sum()
    before, most = resident(), 0
    for batch in site.batches():
        batch.sum()
        most = max(most, resident() - before)
    assert most < 6 << 20
