"""Hierarchy of factors: planted families, neurons shared by hand, words of nodes, refusals."""

import numpy as np
import pytest
import torch

from activarium import testing
from activarium.analyses.features._factor_hierarchy import factor_hierarchy
from activarium.dictionaries import SNMF, Levels, Origin
from activarium.errors import InputError, UnknownSite

SITE = "blocks.1.mlp.post"


def levels():
    """Four factors of which 0 and 1 share two of four neurons and make up the first coarse one; the second has one child only."""
    fine = torch.zeros(4, 8)
    for i, neurons in enumerate([(0, 1, 2), (1, 2, 3), (4, 5, 6), (3, 6, 7)]):
        fine[i, list(neurons)] = 1.0
    mixed = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 1.0], [0.1, 0.05]])
    codes = torch.eye(4)[[0, 1, 2, 3, 0]]
    origin = Origin(site=SITE)
    snmfs = SNMF(torch.nn.functional.normalize(fine, dim=1), origin), SNMF(torch.eye(8)[:2], origin)
    return Levels(snmfs, (codes, mixed), (torch.ones(4), torch.ones(2)), (0.1, 0.3), np.arange(5))


def test_tree_and_shared_neurons_by_hand():
    report = factor_hierarchy(levels())
    tree = report["tree"]
    assert tree.nodes == ("1.0", "1.1", "2.0")
    assert tree.to_frame()[["source", "target", "coefficient"]].values.tolist() == [["2.0", "1.0", 1.0], ["2.0", "1.1", 0.5]]
    assert tree.columns["layer"].tolist() == [0, 0, 1]
    reuse = report["reuse"]
    assert reuse.values[0] == 2 / 4
    # Pairs that no node has both of: 1∩3 = {3} of 5, 2∩3 = {6} of 5, others nothing of six.
    assert reuse.columns["unrelated"][0] == pytest.approx((1 / 5 + 1 / 5) / 5)
    assert "1 of 2 coarser factors are unions" in report.words[0]
    assert report["errors"].values.tolist() == [0.1, 0.3]


def test_every_factor_lies_in_the_one_that_has_most_of_it():
    nested = factor_hierarchy(levels())["nested"]
    inside = {n: nested.names[p] if p >= 0 else "" for n, p in zip(nested.names, nested.parents, strict=True)}
    assert inside == {"all": "", "2.0": "all", "2.1": "all", "1.0": "2.0", "1.1": "2.0", "1.2": "2.1", "1.3": "2.0"}
    assert nested.sizes[1 + 2] == pytest.approx(2 / 5)


def test_nodes_carry_their_tokens():
    recording = testing.recording_of({SITE: torch.zeros(5, 8)}, text=["a", "b", "c", "d", "e"])
    tree = factor_hierarchy(levels(), recording)["tree"]
    assert tree.columns["readout"].tolist()[:2] == ["a e b", "b a c"]


def test_refusals():
    one = levels()
    single = Levels(one.levels[:1], one.coefficients[:1], one.scales[:1], one.errors[:1], one.rows)
    with pytest.raises(InputError, match=r"One level has nothing above it"):
        factor_hierarchy(single)
    with pytest.raises(InputError, match=r"threshold=0 is a share"):
        factor_hierarchy(one, threshold=0)
    with pytest.raises(UnknownSite, match=r"blocks.1.mlp.post"):
        factor_hierarchy(one, testing.recording_of({"embed": torch.zeros(5, 8)}))
    with pytest.raises(InputError, match=r"has 3 rows here; the factors were made of row 4 too"):
        factor_hierarchy(one, testing.recording_of({SITE: torch.zeros(3, 8)}))
