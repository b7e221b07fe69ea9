"""Ray: the rows of one process to the byte, whatever dies on the way; a cluster that is not there says so quickly."""

import json
import os
from pathlib import Path

import pytest

from activarium.workflows.capture import capture
from activarium.workflows.cluster import Cluster

from ..store.fake_model import FakeModel, texts

ROOT = str(Path(__file__).parents[2])
SITES = ["blocks.*.resid_post", "blocks.*.attn.pattern", "encoder.out", "pooled"]
OPTIONS = {"batch_tokens": 64, "shard_bytes": 40_000, "progress": False}
TWO = Cluster(workers=2, threads=1)

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def ray():
    """A Ray of two processors on this machine, whose workers find the tests."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'activarium[cluster]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, str(Path(ROOT) / "toolkit"), before])
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield ray
    ray.shutdown()
    os.environ["PYTHONPATH"] = before


def files(store):
    """Every file that rows lie in, and every commit."""
    found = {p.relative_to(store.path).as_posix(): p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    lines = [json.loads(line) for line in found.pop("journal.jsonl").splitlines()]
    commits = [{k: v for k, v in line.items() if k not in ("session", "line")} for line in lines if line["kind"] == "commit"]
    return found, commits


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same capture in one process."""
    store = capture(FakeModel(), texts(80), SITES, tmp_path_factory.mktemp("alone") / "s.acts", **OPTIONS)
    assert len(store._journal.commits) > 3
    return files(store)


@slow
def test_the_same_files_as_one_process(ray, tmp_path, alone):
    store = capture(FakeModel(slow=0.02), texts(80), SITES, tmp_path / "s.acts", on=TWO, **OPTIONS)
    assert files(store) == alone
    assert store.verify().leftovers == ()
    assert not (tmp_path / "s.acts" / "incoming").exists()
