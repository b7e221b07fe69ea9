"""core_clusters: planted groups are found, sets are the most frequent neurons, and purity is what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium.activations import Activations
from activarium.analyses.sparsity._core_clusters import elbow
from activarium.analyses.sparsity.core_sets import frequent, groups_of, nearest
from activarium.analyses.sparsity.cores import Core, Settings, core_of
from activarium.data import corpus
from activarium.errors import InputError, UnknownSite
from activarium.results import load
from activarium.rows import Rows

core_clusters = act.analyses.core_clusters
GROUPS, EACH, TOKENS, WIDTH = 3, 5, 6, 60


def planted() -> Activations:
    """Sentences in turns of three groups; group g uses the neurons 20 g … 20 g + 19, each sentence fifteen of them."""
    generator, rows = np.random.default_rng(3), []
    for sentence in range(GROUPS * EACH):
        values = np.zeros((TOKENS, WIDTH), np.float32)
        chosen = 20 * (sentence % GROUPS) + generator.permutation(20)[:15]
        values[:, chosen] = generator.uniform(1, 2, (TOKENS, 15))
        rows.append(values)
    index = Rows({"example": np.repeat(np.arange(GROUPS * EACH), TOKENS)})
    return Activations(torch.from_numpy(np.concatenate(rows)), "row d_mlp", site="blocks.0.mlp.post", index=index)


LABELS = [f"group {s % GROUPS}" for s in range(GROUPS * EACH)]
TOPICS = {"alpha": 1.0, "beta": 0.25, "gamma": 1 / 3}


def core(counts: list[int], neurons: list[int]) -> Core:
    return Core(np.array(neurons), len(neurons), np.array(counts, np.int32), 9)


def test_a_group_keeps_the_neurons_that_are_in_most_cores():
    cores = [core([5, 0, 2, 0, 1, 0], [0, 2]), core([1, 0, 0, 6, 0, 0], [3, 0]), core([1, 0, 1, 1, 0, 0], [0, 3])]
    assert frequent(cores, 0.2).tolist() == [0]
    assert frequent(cores, 0.5).tolist() == [0, 3, 2]
    # 2 and 4 are in one core each; 2 is in more tokens' cores. Only four neurons are in any.
    assert frequent([*cores, core([0, 0, 0, 0, 1, 0], [4])], 1.0).tolist() == [0, 3, 2, 4]
    assert frequent(cores, 0.1).tolist() == []


def test_the_nearest_group_has_the_most_similar_sets_and_of_equal_ones_the_first():
    groups = {"a": {"x": np.array([0, 1]), "y": np.array([5])}, "b": {"x": np.array([2, 3]), "y": np.array([5])}}
    assert nearest({"x": np.array([2]), "y": np.array([5])}, groups) == ("b", 0.75)
    assert nearest({"x": np.array([9]), "y": np.array([5])}, groups) == ("a", 0.5)
    assert nearest({"x": np.array([], int), "y": np.array([], int)}, groups) == ("a", 0.0)


def test_the_elbow_is_where_the_curve_bends():
    assert elbow(np.array([100.0, 60.0, 20.0, 18.0, 16.0, 14.0])) == 3
    assert elbow(np.array([7.0])) == 1


@pytest.mark.parametrize("clusters", [None, "elbow", 3])
def test_planted_groups_are_found_with_and_without_their_number(clusters: int | str | None):
    report = core_clusters(planted(), labels=None if clusters is None else LABELS, clusters=clusters, **TOPICS)
    assert report.diagnostics["clusters"] == GROUPS
    assert report["similarity"].values.tolist() == np.eye(GROUPS).tolist()
    for g, sets in enumerate(groups_of(report).values()):
        assert sets["blocks.0.mlp.post"].tolist() == list(range(20 * g, 20 * g + 20))
    assert report.diagnostics["nearest is own"] == 1.0
    assert ("elbow" in report.parts) == (clusters != 3)
    if clusters is not None:
        assert report.diagnostics["purity"] == report.diagnostics["adjusted rand"] == 1.0
        assert report["labels in clusters"].values.tolist() == (EACH * np.eye(GROUPS, dtype=int)).tolist()


def test_labels_make_the_groups_even_where_they_are_wrong():
    wrong = LABELS[::-1]
    wrong[0] = "group 0"
    report = core_clusters(planted(), labels=wrong, **TOPICS)
    assert sorted(groups_of(report)) == ["group 0", "group 1", "group 2"]
    assert "purity" not in report.diagnostics
    assert report.words[0].endswith("by their labels.")
    mixed = core_clusters(planted(), labels=["one"] * 7 + ["two"] * 8, **TOPICS)
    assert mixed.diagnostics["nearest is own"] < 1


def test_purity_counts_the_commonest_label_of_each_cluster():
    labels = list(LABELS)
    labels[0] = "group 1"  # one of the five of the first cluster
    report = core_clusters(planted(), labels=labels, clusters=3, **TOPICS)
    assert report.diagnostics["purity"] == pytest.approx(14 / 15)
    assert report.diagnostics["adjusted rand"] < 1
    ranking = report["clusters"]
    assert ranking.values.tolist() == [5, 5, 5]
    assert sorted(ranking.columns["its share"].tolist()) == [0.8, 1.0, 1.0]


def test_one_cluster_for_all_has_no_other():
    report = core_clusters(planted(), clusters=1, **TOPICS)
    assert np.isnan(report["clusters"].columns["to the nearest other"][0])


def test_a_saved_report_assigns_as_before(tmp_path: Path):
    source = planted()
    report = core_clusters(source, labels=LABELS, **TOPICS)
    again = load(report.save(tmp_path / "clusters.result"))
    assert isinstance(again, act.results.Report)
    for sentence in range(6):
        found = core_of(source.example(sentence).tensor, Settings(1.0, 0.25)).neurons
        assert nearest({"blocks.0.mlp.post": found}, groups_of(again))[0] == LABELS[sentence]


def test_pieces_give_the_same_bits():
    whole = planted()
    cut = Activations(list(whole.tensor.split([1, 40, 49])), "row d_mlp", site=whole.site, index=whole.index)
    one, other = (core_clusters(a, clusters="elbow", **TOPICS) for a in (whole, cut))
    assert all(act.identical(one[name], other[name]) for name in one)


def test_scribes_families_of_sentences_are_found_by_their_cores(tmp_path: Path):
    examples = [e for family in corpus.FAMILIES for e in corpus.held_out(family, 5, 12)]
    model = act.load("scribe-relu", certify=False)
    texts, families = [e.text for e in examples], [e.family for e in examples]
    live = act.capture(model, texts, ["blocks.*.mlp.post"], progress=False)
    report = core_clusters(live, labels=families, clusters=6)
    chance = core_clusters(live, labels=families[7:] + families[:7], clusters=6)
    assert report.diagnostics["layer"] == "blocks.3.mlp.post"
    assert report.diagnostics["purity"] == 1.0  # measured: also at the other layers, at mlp.pre, and with the elbow's own six
    assert chance.diagnostics["purity"] < report.diagnostics["purity"]
    act.capture(model, texts, ["blocks.*.mlp.post"], to=tmp_path / "clusters.acts", progress=False)
    stored = core_clusters(act.open(tmp_path / "clusters.acts"), labels=families, clusters=6)
    assert all(act.identical(report[name], stored[name]) for name in report)


def test_what_makes_no_sense_is_refused_in_words():
    source = planted()
    with pytest.raises(InputError, match="There are 2 labels for 15 sentences"):
        core_clusters(source, labels=["a", "b"])
    with pytest.raises(InputError, match="clusters=99: there are 15 different cores, so from 1 to 15 clusters"):
        core_clusters(source, clusters=99, **TOPICS)
    with pytest.raises(InputError, match="clusters='many' is not known; give a number, or 'elbow'"):
        core_clusters(source, clusters="many")
    with pytest.raises(InputError, match="layer=4 is none of the 1 layers"):
        core_clusters(source, layer=4)
    with pytest.raises(InputError, match=r"gamma=2 is no share of neurons"):
        core_clusters(source, gamma=2)
    with pytest.raises(UnknownSite, match=r"chosen at mlp.post, mlp.act, mlp.pre"):
        core_clusters(source, site="resid_post")
    with pytest.raises(InputError, match="has no part 'core sets'; it has nonzero"):
        groups_of(act.analyses.lazy_neurons(source))
