"""A Ray on this machine, shared by the tests of a file."""

import os
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2])


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
