"""label_ontology: distances and tests by hand, a planted tree recovered to the last group, shuffled labels that find nothing."""

from itertools import permutations

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features import class_trees
from activarium.errors import InputError

from .planted_classes import atoms, dictionary, recording

label_ontology = act.analyses.label_ontology
PATHS = {f"{kind}{s}{i}": (kind, f"{kind}{s}", f"{kind}{s}{i}") for kind in "ab" for s in "xy" for i in "12"}
CLASSES = sorted(PATHS)


def planted(examples: int = 12):
    """Eight classes of a tree of three levels: an atom for each of its groups, on in most rows of the classes below it."""
    groups = sorted({word for path in PATHS.values() for word in path})
    directions = torch.linalg.qr(atoms(24, 24))[0][: len(groups)]  # at right angles: no atom is read in another
    labels = [c for c in CLASSES for _ in range(examples)]
    rates = np.array([[0.8 if g in PATHS[c] else 0.02 for g in groups] for c in labels])
    return directions, recording(rates, directions, rows=8), labels


def test_distances_by_hand():
    profiles = np.array([[3.0, 4, 0, 0], [4, 3, 0, 0], [0, 0, 1, 2], [0, 0, 0, 0]])
    cosine = class_trees.cosine_distances(profiles)
    assert cosine[0, 1] == pytest.approx(1 - 24 / 25) and cosine[0, 2] == 1 and cosine[0, 3] == 1 and cosine[3, 3] == 0
    jaccard = class_trees.jaccard_distances(np.array([[3.0, 2, 1, 0], [0, 2, 1, 3], [1, 0, 0, 0]]), top=2)
    assert jaccard[0, 1] == pytest.approx(1 - 1 / 3)  # {0, 1} and {1, 3}
    assert jaccard[0, 2] == pytest.approx(1 - 1 / 2)  # {0, 1} and {0}: what is zero is no feature of the class


def test_ontologies_by_hand():
    paths = {"a": ("p", "q"), "b": ("p", "r"), "c": ("s", "r")}
    nested = class_trees.ontology_distances(paths, ["a", "b", "c"], nested=True)
    assert nested.tolist() == [[0, 1, 2], [1, 0, 2], [2, 2, 0]]
    attributes = class_trees.ontology_distances(paths, ["a", "b", "c"], nested=False)
    assert attributes.tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]


def test_the_permutation_test_is_that_of_all_permutations():
    random = np.random.default_rng(1)
    one, other = (m + m.T - 2 * np.diag(np.diag(m)) for m in random.random((2, 4, 4)))
    found = class_trees.mantel(one, other, count=24, seed=0)
    plain = [np.corrcoef(class_trees.upper(one[np.ix_(p, p)]), class_trees.upper(other))[0, 1] for p in permutations(range(4))]
    assert found.exact and found.value == pytest.approx(plain[0])
    assert found.chance == pytest.approx(np.mean(np.array(plain) >= plain[0] - 1e-9))
    sampled = class_trees.mantel(one, other, count=23, seed=0)
    assert not sampled.exact and 1 / 24 <= sampled.chance <= 1


def test_chance_of_unrelated_distances_is_uniform():
    random = np.random.default_rng(2)
    found = []
    for _ in range(300):
        one, other = (m + m.T for m in random.random((2, 7, 7)))
        for m in (one, other):
            np.fill_diagonal(m, 0)
        found.append(class_trees.mantel(one, other, count=99, seed=int(random.integers(1 << 30))).chance)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_groups_of_an_ultrametric_by_hand():
    nested = class_trees.ontology_distances({"a": ("p", "q"), "b": ("p", "r"), "c": ("s", "r")}, ["a", "b", "c"], nested=True)
    assert class_trees.clades(nested) == {frozenset({0, 1})}


def test_a_planted_tree_is_recovered_exactly():
    directions, rec, labels = planted()
    report = label_ontology(dictionary(directions), rec, labels, PATHS, permutations=2000, resamples=30)
    assert report.diagnostics["groups found"] == 1.0
    table = report["agreement"].to_frame().set_index("name")
    assert table.iloc[:, 0]["cosine, codes"] > 0.97 and table.iloc[:, 0]["tree of cosines, codes"] > 0.99
    assert table.loc["cosine, codes", "chance"] < 0.01
    assert report.diagnostics["halves"] > 0.9
    assert report["gain"].values.shape == (7,)


def test_the_tree_is_scipys_and_holds_every_class():
    directions, rec, labels = planted()
    report = label_ontology(dictionary(directions), rec, labels)
    graph, distances = report["tree"], report["distances"]
    assert list(report) == ["tree", "distances"]
    assert graph.nodes[:8] == tuple(CLASSES) and len(graph.edges) == 14
    # The height of the lowest group that holds two classes is the cophenetic distance.
    parent = {int(b): int(a) for a, b in graph.edges}
    heights = np.asarray(graph.columns["height"])
    above = []
    for leaf in (0, 5):
        above.append([leaf := parent[leaf] for _ in range(20) if leaf in parent])
    common = min(set(above[0]) & set(above[1]), key=lambda n: heights[n])
    assert heights[common] == pytest.approx(class_trees.tree(np.array(distances.values))[1][0, 5])
    assert int(np.asarray(graph.columns["classes"])[-1]) == 8


def test_profiles_are_means_over_examples():
    directions, rec, labels = planted(examples=3)
    found = label_ontology(dictionary(directions), rec, labels)["distances"].values
    codes = dictionary(directions).encode(rec["blocks.0.resid_post"].tensor).double().reshape(8, -1, len(directions)).mean(1)
    assert found == pytest.approx(class_trees.cosine_distances(codes.numpy()), abs=1e-6)


def test_shuffled_labels_recover_nothing():
    directions, rec, labels = planted()
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    report = label_ontology(dictionary(directions), rec, shuffled, PATHS, permutations=1000, resamples=10)
    table = report["agreement"].to_frame().set_index("name")
    assert abs(table.iloc[:, 0]["cosine, codes"]) < 0.5
    assert table.loc["cosine, codes", "chance"] > 0.02


def test_a_matrix_does_what_the_paths_do():
    directions, rec, labels = planted(examples=4)
    wanted = class_trees.ontology_distances(PATHS, CLASSES, nested=True)
    options = {"permutations": 200, "resamples": 5}
    one = label_ontology(dictionary(directions), rec, labels, PATHS, **options)
    assert act.results.identical(one, label_ontology(dictionary(directions), rec, labels, wanted, **options))


def test_attributes_are_no_tree():
    directions, rec, labels = planted(examples=4)
    crossed = {c: (c[0], c[1], c[2]) for c in CLASSES}
    report = label_ontology(dictionary(directions), rec, labels, crossed, nested=False, permutations=100, resamples=5)
    assert report.diagnostics["groups found"] is None


@pytest.mark.parametrize(
    ("labels", "ontology", "words"),
    [
        (["a", "b"] * 48, None, "There are 2 classes"),
        (["once", *CLASSES, *["ax1"] * 87], None, "has one example"),
        (None, {"ax1": ("a",)}, "says nothing of ax2"),
        (None, {c: ("a", c) if c < "b" else ("b",) for c in CLASSES}, "the same number"),
        (None, np.ones((8, 8)), "0 on its diagonal"),
        (None, np.zeros((3, 3)), "found shape \\(3, 3\\)"),
    ],
)
def test_what_is_no_ontology_is_refused(labels, ontology, words):
    directions, rec, given = planted()
    with pytest.raises(InputError, match=words):
        label_ontology(dictionary(directions), rec, labels or given, ontology)
