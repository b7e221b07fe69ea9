"""A disk that fills up, at every single write: words that help, nothing half written, and a store to go on with."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from activarium.errors import StoreError
from activarium.store import open_store
from activarium.workflows.capture import capture

from .fake_model import FakeModel, texts

ROOT = Path(__file__).parents[2]
SITES = ["blocks.0.resid_post", "blocks.*.attn.pattern", "pooled"]
OPTIONS = {"batch_tokens": 60, "shard_bytes": 7000, "progress": False}
SMALL = [t[:9] for t in texts(10)]
WORDS = r"No space to (open|begin|write|write shard \d+ of|write a shard of) .*s.acts \(No space left on device; [\d,]+ bytes free\)\.( \d+ committed shard\(s\) stay readable\.)? Free some and run the same capture again"


class Disk:
    """Says ENOSPC at one call of one kind; a write that fails has left half of its bytes."""

    def __init__(self, monkeypatch):
        self.calls, self.fails, self.kind = 0, -1, ""
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "mkdir"), (os, "open")):
            monkeypatch.setattr(owner, name, self.counted(name, getattr(owner, name)))
        opened = Path.open
        monkeypatch.setattr(Path, "open", lambda path, mode="r", *a, **o: self.file(opened(path, mode, *a, **o), mode))

    def ready(self, kind, fails=-1):
        self.kind, self.fails, self.calls = kind, fails, 0

    def full(self, kind):
        if kind != self.kind:
            return False
        self.calls += 1
        return self.calls - 1 == self.fails

    def counted(self, name, real):
        def call(*args, **options):
            if self.full(name):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **options)

        return call

    def file(self, file, mode):
        return File(self, file) if "w" in mode or "a" in mode else file


class File:
    def __init__(self, disk, file):
        self.disk, self.file = disk, file

    def write(self, data):
        if self.disk.full("write"):
            self.file.write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    store = capture(FakeModel(), SMALL, SITES, tmp_path_factory.mktemp("whole") / "s.acts", **OPTIONS)
    assert len(store._journal.commits) > 2
    return contents(store.path)


def contents(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "journal.jsonl"}


def try_at(disk, path, kind, number, whole):
    """One capture whose `number`-th call of this kind meets a full disk; False if it made fewer calls."""
    shutil.rmtree(path, ignore_errors=True)
    disk.ready(kind, number)
    said = ""
    try:
        capture(FakeModel(), SMALL, SITES, path, **OPTIONS)
    except StoreError as error:
        said = str(error)
    disk.ready("")
    if not said:
        return False
    assert re.match(WORDS, said), said
    assert not list(path.rglob("*.part")) and not (path / "writer.lock").exists()
    if (path / "manifest.act.json").exists():
        held = open_store(path)
        held.verify()
        assert held.examples < len(SMALL)
    assert contents(capture(FakeModel(), SMALL, SITES, path, **OPTIONS).path) == whole
    assert open_store(path).verify().leftovers == ()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["write", "fsync", "replace", "mkdir", "open"])
def test_full_at_every_single_call(tmp_path, monkeypatch, whole, kind):
    disk, number = Disk(monkeypatch), 0
    while try_at(disk, tmp_path / "s.acts", kind, number, whole):
        number += 1
    assert number >= {"write": 40, "fsync": 15, "replace": 12, "mkdir": 12, "open": 12}[kind]


@pytest.mark.parametrize("number", [0, 2, 9, 40])
def test_full_at_some_writes(tmp_path, monkeypatch, whole, number):
    assert try_at(Disk(monkeypatch), tmp_path / "s.acts", "write", number, whole)


REAL = """
import os, shutil, subprocess, sys
sys.path[:0] = [{root!r}, {root!r} + "/toolkit"]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size={size}k", "tmpfs", sys.argv[1]], check=True)
from activarium.workflows import capture_plan
capture_plan.RESERVE = -(1 << 30)  # let it run into the wall
from tests.store.test_full_disk import *
path, inside = Path(sys.argv[1]) / "s.acts", []
model, data = FakeModel(), texts(400)
try:
    capture(model, data, SITES, path, batch_tokens=400, shard_bytes=60_000, progress=False)
    print("fits")
except StoreError as error:
    print(error)
store = open_store(path)
print("held", store.examples, store.verify().leftovers, [p.name for p in path.rglob("*.part")])
subprocess.run(["mount", "-o", "remount,size=64m", sys.argv[1]], check=True)
print("whole", capture(model, data, SITES, path, batch_tokens=400, shard_bytes=60_000, progress=False).verify().leftovers)
kept = capture(model, data, SITES, batch_tokens=400, progress=False)
print("equal", all(kept[n].tensor.equal(open_store(path)[n].tensor) for n in kept))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a tmpfs")
def test_a_real_disk_of_300_kilobytes(tmp_path):
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    probe = subprocess.run([*own, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {probe.stderr.strip()}")
    code = REAL.format(root=str(ROOT), size=300)
    done = subprocess.run([*own, sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("No space to write shard ") and "committed shard(s) stay readable. Free some and run the same" in said[0]
    assert int(said[1].split()[1]) > 0 and said[1].endswith("() []")
    assert said[2:] == ["whole ()", "equal True"]
