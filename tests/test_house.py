"""The house rules, asked of everything that is registered: words, sections, a test, a notebook, a known Result."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from activarium import gallery, results, testing
from activarium._registry import SECTIONS, Entry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "toolkit" / "activarium"
ANALYSES, WIDGETS = list(gallery.ANALYSES), list(gallery.WIDGETS)
EVERYTHING = [*ANALYSES, *WIDGETS]


def each(entries: list[Entry]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entry", entries, ids=lambda e: e.name)


def test_there_is_something_to_ask() -> None:
    assert {"lazy_neurons", "massive_activations", "logit_lens"} <= set(gallery.ANALYSES.entries)
    assert {"TokenStrip", "Heatmap", "ImageOverlay"} <= set(gallery.WIDGETS.entries)


@each(EVERYTHING)
def test_first_line_is_a_short_sentence(entry: Entry) -> None:
    assert 10 < len(entry.first_line) < 90, f"{entry.name}: {len(entry.first_line)} characters"
    assert entry.first_line[0].isupper()
    assert entry.first_line.endswith(("?", ".")), "a question for an analysis, a sentence for a widget"


@each(ANALYSES)
def test_an_analysis_asks_a_question(entry: Entry) -> None:
    assert entry.first_line.endswith("?")


@each(ANALYSES)
def test_sections_are_there_and_in_order(entry: Entry) -> None:
    found = [name for name in entry.sections if name]
    assert {"Args", "Returns", "Source"} <= set(found)
    assert found == [name for name in SECTIONS if name in found], f"order is {' '.join(SECTIONS)}"
    assert all(entry.sections[name].strip() for name in found)


@each(ANALYSES)
def test_every_argument_is_described(entry: Entry) -> None:
    described = re.findall(r"^\*{0,2}(\w+):", entry.sections["Args"], flags=re.MULTILINE)
    assert described == list(entry.parameters)


@each(EVERYTHING)
def test_it_has_a_test_and_a_notebook_of_its_name(entry: Entry) -> None:
    page = Path(gallery.notebook(entry))
    test = ROOT / "tests" / page.relative_to("notebooks").with_name(f"test_{page.stem}.py")
    assert test.is_file(), f"{entry.name} lacks {test.relative_to(ROOT)}"
    assert (ROOT / page).is_file(), f"{entry.name} lacks {page}"


@each(EVERYTHING)
def test_names_are_whole_words(entry: Entry) -> None:
    pattern = r"[a-z]+(_[a-z0-9]+)*" if entry in ANALYSES else r"([A-Z][a-z0-9]+)+"
    assert re.fullmatch(pattern, entry.name)


def test_no_analysis_is_called_like_a_room() -> None:
    rooms = {p.name for p in (PACKAGE / "analyses").iterdir() if p.is_dir()}
    assert not rooms & set(gallery.ANALYSES.entries)


@each(ANALYSES)
def test_it_returns_a_kind_of_result(entry: Entry) -> None:
    tree = ast.parse(entry.path.read_text(encoding="utf-8"))
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == entry.name)
    assert function.returns is not None
    assert ast.unparse(function.returns) in results.KINDS


@each(WIDGETS)
def test_a_widget_names_the_kind_it_shows_and_has_a_bundle(entry: Entry) -> None:
    assert entry.settings["shows"] in results.KINDS
    stem = entry.path.stem.removeprefix("_")
    assert (PACKAGE / "widgets" / "static" / f"{stem}.js").is_file(), "run `make widgets` and commit the bundle"


@each(WIDGETS)
def test_a_widget_leaves_its_result_untouched(entry: Entry) -> None:
    kind = entry.settings["shows"]
    result = next(
        (r for r in [*testing.example_results().values(), testing.image_overlay()] if type(r).__name__ == kind and entry.load().accepts(r)),
        None,
    )
    assert result is not None, f"testing.example_results() has no {kind} that {entry.name} accepts"
    before = result.with_()
    widget = entry.load().of(result)
    assert results.identical(before, result)
    widget.close()


@each([e for e in EVERYTHING if "Example" in e.sections])
def test_the_example_runs(entry: Entry) -> None:
    _run_examples(entry.load(), entry.name)


def test_the_examples_of_testing_run() -> None:
    _run_examples(testing.tiny, "tiny")
    _run_examples(testing.example_results, "example_results")


def _run_examples(thing: object, name: str) -> None:
    names = {**vars(importlib.import_module("activarium.testing")), "act": importlib.import_module("activarium"), "np": np}
    names[name] = thing
    examples = doctest.DocTestFinder(recurse=False).find(thing, name, globs=names)
    for example in examples:
        failures, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(example)
        assert failures == 0, "see the output above"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_says_what_it_is_and_is_not_called_utils(path: Path) -> None:
    assert path.stem.strip("_") not in ("utils", "util", "helpers", "misc", "common")
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert words, "a file opens with what it is"


def test_nothing_is_pickled() -> None:
    forbidden = re.compile(r"\b(import pickle|pickle\.loads?|torch\.load\((?!.*weights_only=True)|np\.load\(.*allow_pickle=True|eval\()")
    for path in PACKAGE.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            bare = line.replace("model.eval()", "").replace(".eval()", "")
            assert not forbidden.search(bare), f"{path.name}: {line.strip()}"


def test_notebooks_are_committed_without_outputs() -> None:
    import json

    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not [c for c in cells if c.get("outputs")], f"{path.relative_to(ROOT)} holds outputs: clear them"


@pytest.mark.parametrize("family", testing.FAMILIES)
def test_tiny_models_hide_nothing(family: str) -> None:
    """No gain of one, no bias of zero, no constant vector: an identity cannot hold by luck."""
    model, _ = testing.tiny(family)
    for name, weights in model.named_parameters():
        if weights.ndim == 1 and weights.numel() > 1:
            assert weights.std() > 0.1, name
        assert weights.dtype.is_floating_point
        assert not (weights == 0).all(), name
    assert not model.training


@pytest.mark.parametrize("family", testing.FAMILIES)
def test_tiny_models_run_and_repeat(family: str) -> None:
    import torch

    state = torch.random.get_rng_state()
    model, processor = testing.tiny(family)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's generator was moved"
    again, _ = testing.tiny(family)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        answer = model(**_inputs(family, processor))
    values = answer.logits_per_image if hasattr(answer, "logits_per_image") else answer.logits
    assert values.isfinite().all()
    assert values.std() > 0.01


def _inputs(family: str, processor: object) -> dict:
    import torch

    if hasattr(processor, "image_processor"):
        return dict(processor(text=testing.texts(), images=testing.images(), return_tensors="pt", padding=True))
    if testing.FAMILIES[family].images:
        return dict(processor(testing.images(), return_tensors="pt"))
    encoded = dict(processor(testing.texts(), return_tensors="pt", padding=True))
    return encoded | ({"decoder_input_ids": torch.tensor([[0, 8, 9]] * 4)} if family.startswith("t5") else {})
