"""kill -9 at random moments, again and again: no row lost, none doubled, none changed, and the bytes of a capture that lived."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from activarium.store import open_store
from activarium.workflows.capture import capture

from ..store.fake_model import FakeModel, texts
from .test_capture import OPTIONS, SITES, same

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")

# Imports once, then forks a capture for every line it is sent: a kill in a second, not in ten. It waits for the child only
# when it is told that the kill was sent: until then a child that is done keeps its number, so that nobody else is killed.
NURSERY = """
import os, sys
from tests.workflows.test_kills import FakeModel, OPTIONS, SITES, capture, texts
while line := sys.stdin.readline():
    path, slow, append = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        try:
            capture(FakeModel(slow=float(slow)), texts(80, seed=int(append)), SITES, path, progress=False, append=bool(int(append)), **OPTIONS)
            os._exit(0)
        finally:
            os._exit(1)
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def nursery():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "toolkit")]), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", NURSERY], **pipes, text=True, cwd=ROOT, env=environment) as process:
        yield process
        process.stdin.close()


def killed(nursery, path, after, slow, append=0):
    """Let a capture live for so many seconds; True if it was still at work then."""
    nursery.stdin.write(f"{path}\t{slow}\t{append}\n")
    nursery.stdin.flush()
    child = int(nursery.stdout.readline())
    assert child > 1, "0 would be everybody"
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    nursery.stdin.write("killed\n")
    nursery.stdin.flush()
    status = int(nursery.stdout.readline())
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the capture failed before it was killed"
    return os.WIFSIGNALED(status)


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """The same captures, never killed."""
    path = tmp_path_factory.mktemp("lived") / "s.acts"
    capture(FakeModel(), texts(80), SITES, path, progress=False, **OPTIONS)
    return capture(FakeModel(), texts(80, seed=1), SITES, path, progress=False, append=True, **OPTIONS)


def trials(nursery, lived, folder, count, seed):
    """Kill `count` captures at work, of store after store; every store is finished in the end and compared."""
    generator, kills, stores, whole = np.random.default_rng(seed), 0, 0, 0
    while kills < count:
        path = folder / f"{stores}.acts"
        stores += 1
        for append in (0, 1):
            # The time that a living capture takes, so that moments of all kinds are hit: 0.2 s of writing, or 1 s with a slow model.
            slow, longest = [(0.0, 0.2), (0.01, 0.8)][stores % 2]
            for _ in range(int(generator.integers(1, 5))):
                kills += killed(nursery, path, float(generator.uniform(0, longest)), slow, append)
                if (path / "manifest.act.json").exists():
                    held = open_store(path)
                    held.verify()  # at every moment what is committed is whole
                    whole += held.complete
            capture(FakeModel(), texts(80, seed=append), SITES, path, progress=False, append=bool(append), **OPTIONS)
        store = open_store(path)
        assert store.complete and store.verify().leftovers == ()
        same(store, lived)
        for kind in ("shards", "rows", "constants"):
            files = sorted(p.relative_to(lived.path) for p in (lived.path / kind).rglob("*") if p.is_file())
            assert files == sorted(p.relative_to(path) for p in (path / kind).rglob("*") if p.is_file())
            assert all((path / f).read_bytes() == (lived.path / f).read_bytes() for f in files)
    return kills


@pytest.mark.slow
def test_killed_at_five_random_moments(nursery, lived, tmp_path):
    assert trials(nursery, lived, tmp_path, 5, seed=0) >= 5


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(1, 5))
def test_killed_at_sixty_random_moments(nursery, lived, tmp_path, seed):
    assert trials(nursery, lived, tmp_path, 15, seed) >= 15
