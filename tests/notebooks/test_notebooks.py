"""Every notebook: its shape on the page, and that it runs from top to bottom without a network."""

import ast
import json
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
SECONDS = 30  # a page that takes longer than this on a laptop is not read

every_page = pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT / "notebooks").with_suffix("")))


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_the_doors_are_there():
    assert {"start_here", "language_tour", "vision_tour", "causes"} <= {p.stem for p in PAGES if p.parent == ROOT / "notebooks"}


@every_page
def test_a_page_has_the_shape_of_the_book(path: Path):
    found = cells(path)
    words = "\n".join("".join(c["source"]) for c in found if c["cell_type"] == "markdown")
    # A page of one method is short; a tour goes through several, with a heading for each.
    assert 4 <= len(found) <= (8 if words.count("\n## ") == 0 else 18)
    assert "\n## " not in words or path.parent == ROOT / "notebooks"
    assert found[0]["cell_type"] == "markdown"
    assert words.startswith("# ")
    for heading in ("**The question.**", "**What to notice.**", "**Where it misleads.**"):
        assert heading in words


@every_page
def test_its_parameters_can_be_replaced(path: Path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert all(isinstance(line, ast.Assign) for line in ast.parse("".join(tagged[0]["source"])).body)


def test_the_loss_that_pages_show_by_hand():
    import numpy as np
    import torch

    from activarium.activations import Activations
    from activarium.demo import token_loss
    from activarium.recording import Recording
    from activarium.rows import Rows

    rows = Rows({"example": np.zeros(2, int), "token": np.array([0, 1]), "text": np.array(["a", "b"], dtype=object)})
    logits = Activations(torch.tensor([[0.0, float(np.log(3))], [5.0, 5.0]]), "row vocab", site="logits", index=rows)
    loss = token_loss(Recording({"logits": logits}, {"": rows}), 0)
    assert np.isnan(loss.values[0, 0])
    assert loss.values[0, 1] == pytest.approx(np.log(4 / 3))


@pytest.mark.slow
@every_page
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "toolkit"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the models are small: beside other work, threads only wait for one another
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    page = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    NotebookClient(page, timeout=4 * SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    took = time.perf_counter() - started
    last = [c for c in page.cells if c.cell_type == "code"][-1]
    assert last.outputs, "the last cell of code shows something"
    assert took < 4 * SECONDS, f"{took:.0f} s; pages are meant to take less than {SECONDS} s on an idle machine"
