"""What every test shares: no network, one thread, and honest skips for what this machine lacks."""

import os
import shutil

# Before anything imports a library that reads them. Tests never need the hub; a forgotten call fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

REQUIRED = os.environ.get("ACTIVARIUM_REQUIRE_BROWSER", "") not in ("", "0")


def browser_missing() -> str:
    """Why browser tests cannot run here; empty if they can."""
    if not (
        os.environ.get("ACTIVARIUM_CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    ):
        return "no Chromium on this machine (Debian: apt-get install chromium)"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "the package playwright is missing: pip install 'activarium[dev]'"
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("browser") and (reason := browser_missing()):
        if REQUIRED:
            pytest.fail(f"ACTIVARIUM_REQUIRE_BROWSER is set, but there is {reason}", pytrace=False)
        pytest.skip(reason)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no graphics card here")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The same sums on every machine: a matrix product's rounding changes with the number of threads."""
    import torch

    torch.set_num_threads(1)
