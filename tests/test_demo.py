"""The tour's words about causes: computed from the numbers, by hand and on the bundled models."""

import io
import re
import warnings

import numpy as np
import pytest
from rich.console import Console

import activarium as act
from activarium.demo import _causes
from activarium.demo._tour import Tour, heard
from activarium.results import Graph, Grid, Overlay, Series


def test_where_the_answer_lies_by_hand() -> None:
    values = np.array([[0.0, 1.0, 0.0], [0.0, 0.9, 0.05], [0.0, 0.2, 0.7]])
    labels = {"layer": ("blocks.0", "blocks.1", "blocks.2"), "position": ("IO", "S2", "END")}
    notes = {"pairs": 3, "clean": 4.0, "corrupt": -2.0}
    said = _causes._moves(Grid(values, "layer position", labels, masks={"known_zero": values == 0}, diagnostics=notes))
    assert said[0].startswith("3 pairs:") and said[0].endswith("from 4.0 to -2.0.")
    assert said[1] == "Restoring one row at blocks.0 brings back 100% of it at S2; at blocks.2 the most is 70%, at END."
    assert said[2] == "S2 loses most between blocks.1 and blocks.2: from 90% to 20%."
    assert said[3].startswith("4 of 9 cells")


def test_what_a_circuit_keeps_by_hand() -> None:
    left = [0.0, 0.1, 0.95, 1.0, 1.0, 1.0, 1.0, 1.0]
    notes = {"edges": np.array([0, 1, 4, 10, 20, 40, 100, 200]), "pairs": 5}
    faithful = Series(_causes.SHARES, {"faithfulness": left}, diagnostics=notes)
    assert _causes._circuit(faithful, 2)[0] == (
        "4 of 200 edges, all others as in the corrupted sentence, keep 95% of the answer on 5 fresh sentences; "
        "of the next smaller share tried, 1%, 1 edges lead anywhere and keep 10%."
    )
    assert _causes._circuit(faithful, 0)[0].endswith("keep 0% of the answer on 5 fresh sentences.")


def test_the_threshold_takes_in_the_share_that_was_run() -> None:
    """Steps from a query to its head repeat a score and are no part of the count."""
    kinds = np.array(["embed", "query", "head", "logits"], dtype=object)
    edges = [(0, 1), (1, 2), (2, 3), (0, 3)]
    graph = Graph("abcd", np.array(edges), np.array([-5.0, -5.0, 3.0, 1.0]), columns={"kind": kinds})
    shares = {share: _causes._size(graph, _causes.SHARES.index(share)) for share in (0.01, 0.5, 1.0)}
    assert shares == {0.01: 5.0, 0.5: 3.0, 1.0: 1.0}  # of three edges one, two (1.5 is rounded to even) and all


@pytest.mark.parametrize(("row", "words"), [([0.9, 0.85], "may be relied on"), ([0.9, 0.3], r"not to be .* mlp\.out \(0\.30\): patch")])
def test_weak_agreement_is_said(row: list[float], words: str) -> None:
    grid = Grid(np.array([[1.0, 1.0], row]), "method nodes", {"method": ("AtP", "relp"), "nodes": ("resid_pre", "mlp.out")})
    (said,) = _causes._relied_on(grid)
    assert re.search(words, said)
    assert "resid_pre (" not in said


def test_warnings_become_words_once() -> None:
    def call() -> int:
        for _ in range(2):
            warnings.warn("few steps", UserWarning, stacklevel=1)
        return 3

    assert heard(call) == (3, ["Warning given: few steps"])


@pytest.mark.slow
def test_causes_of_the_bundled_models(tmp_path) -> None:
    """What is said is what the parts of the page hold, and what is drawn is the circuit that was run."""
    terminal = Console(file=io.StringIO(), width=1000)
    tour = Tour(tmp_path, terminal, models={name: act.load(name, certify=False) for name in ("scribe", "glyph")})
    _causes.causes(tour)
    parts = list(tour.parts.values())

    (drawn,) = (p for p in parts if isinstance(p, act.widgets.CircuitGraph))
    (faithful,) = (p for p in parts if isinstance(p, Series))
    shown = drawn.pruned
    inside = np.isin(shown.columns["kind"][shown.edges[:, 0]], ["query", "key", "value"])
    count = len(shown.edges) - int(inside.sum())
    at = list(faithful.diagnostics["edges"]).index(count)
    assert faithful.curves["faithfulness"][at] >= _causes.ENOUGH > faithful.curves["faithfulness"][at - 1]
    assert 0 < count < 0.1 * faithful.diagnostics["edges"][-1], "a few edges carry the name"
    assert f"{count} of {faithful.diagnostics['edges'][-1]} edges" in tour.parts["scribe · a circuit for the receiver's name"]

    exact, checked, *_ = (p for p in parts if isinstance(p, Grid))
    assert exact.values[0, exact.label("position").index("S2")] == pytest.approx(1, abs=1e-3), "nothing else differs before block 0"
    assert f"{checked.check.diagnostics['pearson']:.3f}" in tour.parts["scribe · would one backward pass have told?"]

    picture = parts[-1].result
    assert isinstance(picture, Overlay) and [picture.names[i].split(" · ")[0] for i in parts[-1].shown] == ["exact", "RelP"]
    touched = picture.mask.reshape(8, 8, 8, 8).any((1, 3))
    first = np.abs(picture.values[parts[-1].shown[0]])
    assert (first[~touched] == 0).all(), "before block 0 only patches of the shape differ"
    assert first[touched].max() > 0.1
    assert terminal.file.getvalue().count("•") > 8
