"""Readers beside a writer: another process sees what is committed, whole and right, at every moment."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from activarium.errors import StoreError
from activarium.store import open_store
from activarium.workflows.capture import capture

from .fake_model import FakeModel, texts

ROOT = Path(__file__).parents[2]
SITES = ["blocks.*.resid_post", "blocks.*.attn.pattern", "encoder.out", "pooled"]
OPTIONS = {"batch_tokens": 64, "shard_bytes": 20_000, "progress": False}

READER = """
import sys
from tests.store.test_readers import *
path, seen = Path(sys.argv[1]), []
whole = capture(FakeModel(), texts(80), SITES, **(OPTIONS | {"progress": False}))
print("ready", flush=True)
while not seen or seen[-1] < 80:
    if not (path / "manifest.act.json").exists():
        continue
    store = open_store(path)
    prefix(store, whole)
    if store.examples not in seen:
        store.verify()
        seen.append(store.examples)
print(*seen, flush=True)
"""


def prefix(store, whole):
    """Is it a prefix of the whole capture, bit for bit?"""
    for space, rows in store.rows.items():
        assert np.array_equal(rows["example"], whole.rows[space]["example"][: len(rows)])
    for name in store:
        assert torch.equal(store[name].tensor, whole[name].tensor[: len(store[name])])
    for example in store.rows[""].examples[-1:]:
        assert torch.equal(store["blocks.0.attn.pattern"].example(example).tensor, whole["blocks.0.attn.pattern"].example(example).tensor)


@pytest.mark.slow
def test_two_readers_in_other_processes(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "toolkit")])}
    command = [sys.executable, "-c", READER, str(tmp_path / "s.acts")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) for _ in range(2)]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    capture(FakeModel(slow=0.1), texts(80), SITES, tmp_path / "s.acts", **OPTIONS)
    for reader in readers:
        seen = [int(n) for n in reader.communicate(timeout=60)[0].split()]
        assert reader.returncode == 0
        assert seen == sorted(seen) and seen[-1] == 80
        assert len(seen) >= 4  # it looked while the store grew


def test_an_open_store_stays_what_it_was(tmp_path):
    """A reader that opened early keeps its prefix while rows are appended, and sees them when it opens again."""
    store = capture(FakeModel(), texts(30), SITES, tmp_path / "s.acts", **OPTIONS)
    before = {name: store[name].tensor.clone() for name in store}
    capture(FakeModel(), texts(20, seed=1), SITES, tmp_path / "s.acts", append=True, **OPTIONS)
    assert all(torch.equal(store[name].tensor, before[name]) for name in store)
    assert len(store["pooled"]) == 30 and len(open_store(tmp_path / "s.acts")["pooled"]) == 50


def test_leftovers_of_workers_are_cleared_away(tmp_path):
    """Also where a driver was killed before anything was committed."""
    path = tmp_path / "s.acts"
    (path / "incoming").mkdir(parents=True)
    (path / "incoming" / "0123-0-0.part").write_bytes(b"half")
    with pytest.raises(StoreError, match="has no manifest.act.json: it is not a store, or nothing was captured into it yet"):
        open_store(path)
    store = capture(FakeModel(), texts(30), SITES, path, **OPTIONS)
    assert store.verify().leftovers == () and not (path / "incoming").exists()
    (path / "incoming").mkdir()
    (path / "incoming" / "4567-0-0.part").write_bytes(b"half")
    assert open_store(path).verify().leftovers == ("incoming/4567-0-0.part",)
