"""A real JupyterLab in a real Chromium, cut off from everything but this machine."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lab import Lab, NotebookPage, watched

REQUIRED = os.environ.get("ACTIVARIUM_REQUIRE_BROWSER", "") not in ("", "0")

# --disable-gpu-compositing: without a graphics card a canvas page otherwise runs at 117 ms a frame.
FLAGS = """--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync
--disable-dev-shm-usage --use-angle=swiftshader --enable-unsafe-swiftshader --disable-gpu-compositing --disable-background-timer-throttling
--disable-renderer-backgrounding --disable-backgrounding-occluded-windows""".split()


def _refuse(reason: str) -> None:
    if REQUIRED:
        pytest.fail(f"ACTIVARIUM_REQUIRE_BROWSER is set, but {reason}", pytrace=False)
    pytest.skip(reason)


def _executable() -> str:
    named = os.environ.get("ACTIVARIUM_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found or not Path(found).exists():
        _refuse("no Chromium is installed (Debian: apt-get install chromium), nor does ACTIVARIUM_CHROMIUM name one")
    return str(found)


@pytest.fixture(scope="session")
def chromium():
    """One browser for the whole run."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _refuse("the package playwright is missing: pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_executable(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of what was tested are kept, for people to look at."""
    folder = Path(os.environ.get("ACTIVARIUM_SCREENSHOTS", Path(__file__).parents[2] / "out" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def lab(chromium, tmp_path_factory) -> Iterator[Lab]:
    """A JupyterLab server with a home of its own, so that nobody's settings matter."""
    if importlib.util.find_spec("jupyterlab") is None:
        _refuse("the package jupyterlab is missing: pip install 'activarium[notebook]'")
    home = tmp_path_factory.mktemp("lab")
    port = _free_port()
    with (home / "log").open("w") as log:
        server = subprocess.Popen(_command(home, port), env=_environment(home), stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api", server, home / "log")
            yield Lab(f"http://127.0.0.1:{port}", home / "notebooks")
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def open_notebook(lab, chromium) -> Iterator[Callable[..., NotebookPage]]:
    """Open a notebook of code cells in a page of its own; its kernel is shut down after the module."""
    pages = []

    def open_one(name: str, cells: list[str], widgets: int, dark: bool = False) -> NotebookPage:
        context = chromium.new_context(viewport={"width": 1180, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
        context.set_default_timeout(60_000)
        pages.append((context, NotebookPage(lab, *watched(context))))
        pages[-1][1].open(lab.write(name, cells), dark)
        pages[-1][1].run_all(widgets)
        return pages[-1][1]

    yield open_one
    for context, page in pages:
        page.shut_down()
        context.close()


@pytest.fixture(scope="module")
def data(request) -> dict[str, Any]:
    """What the code `DATA` of the test's own file makes; the notebook under test begins with the same code."""
    found: dict[str, Any] = {}
    exec(request.module.DATA, found)
    return found


@pytest.fixture
def shown(whole) -> Iterator[NotebookPage]:
    """The file's notebook `whole` with all widgets drawn; nothing may have been refused or printed afterwards."""
    yield whole
    assert whole.troubles == []
    assert whole.printed_troubles() == []
    assert whole.page.evaluate("window.__pwned") is None


@pytest.fixture
def offline(chromium):
    """A page that may open files and nothing else; every other request is refused and remembered."""
    context = chromium.new_context(viewport={"width": 1000, "height": 900}, offline=True)
    context.set_default_timeout(20_000)
    yield watched(context, allowed=("file:", "data:", "blob:"))
    context.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command(home: Path, port: int) -> list[str]:
    notebooks = home / "notebooks"
    notebooks.mkdir()
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": "",
        "ServerApp.disable_check_xsrf": True,
        "ServerApp.root_dir": notebooks,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    fixed = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    return [*fixed, *[f"--{name}={value}" for name, value in options.items()]]


def _environment(home: Path) -> dict[str, str]:
    folders = "JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR IPYTHONDIR JUPYTERLAB_SETTINGS_DIR JUPYTERLAB_WORKSPACES_DIR".split()
    for name in folders:
        (home / name).mkdir()
    # Without this a question about news covers a corner of the page.
    settings = home / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    package = str(Path(__file__).parents[2] / "toolkit")
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, **{name: str(home / name) for name in folders}, "PYTHONPATH": path, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def _wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not answer at {url}:\n{log.read_text()[-3000:]}", pytrace=False)
