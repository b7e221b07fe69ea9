"""Importing activarium is light: no torch, jax or pandas in a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLKIT = Path(__file__).parents[1] / "toolkit"
HEAVY = ("torch", "jax", "pandas", "numpy", "transformers", "pyarrow", "anywidget", "sae_lens", "transformer_lens")


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(TOOLKIT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded(code: str) -> str:
    """Which heavy packages a new interpreter has loaded after some code."""
    return fresh(f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])")


def test_import_brings_nothing_heavy() -> None:
    assert loaded("import activarium") == ""


def test_import_time_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = fresh("import time; t = time.perf_counter(); import activarium; print(time.perf_counter() - t)")
    with capsys.disabled():
        print(f" (import activarium: {1000 * float(seconds):.0f} ms)", end="")


def test_listing_and_describing_import_no_analysis() -> None:
    code = "import activarium.gallery as g\ng.everything(); [e.sections for e in g.entries().values()]"
    assert loaded(code) == ""


def test_results_need_numpy_alone() -> None:
    assert loaded("from activarium.results import Grid; Grid([[1.0]], axes='layer position')") == "numpy"


@pytest.mark.slow
def test_every_name_of_the_front_door_resolves_and_optional_packages_stay_out() -> None:
    brought = loaded("import activarium as act\nfor name in dir(act): getattr(act, name)").split()
    assert not {"jax", "sae_lens", "transformer_lens", "pandas"} & set(brought)


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["", "import activarium.capture", "from activarium.capture import load", "import activarium as a; a.load"]
)
def test_capture_is_a_room_and_a_call_whoever_comes_first(first: str) -> None:
    code = f"""{first}
import activarium as act, importlib, inspect
room = importlib.import_module("activarium.capture")
assert act.capture is room and callable(act.capture) and act.capture.load is act.load
import activarium.capture as again
assert again is room
from activarium import capture
assert capture is room
from activarium.workflows.capture import capture as workflow
assert inspect.signature(act.capture) == inspect.signature(workflow)
print("ok")"""
    assert fresh(code) == "ok"


def test_an_unknown_name_offers_the_nearest() -> None:
    import activarium as act

    with pytest.raises(AttributeError, match=r"No name in activarium called 'shew'\. Did you mean 'show'"):
        act.shew
    assert not hasattr(act, "anything_else")


def test_package_is_typed() -> None:
    assert (TOOLKIT / "activarium" / "py.typed").is_file()


@pytest.mark.slow
def test_wrapping_a_hugging_face_model_does_not_bring_transformer_lens() -> None:
    brought = loaded("import activarium as act\nact.wrap(*act.testing.tiny('gpt2'), certify=False)").split()
    assert "torch" in brought and not {"transformer_lens", "sae_lens", "jax"} & set(brought)
