"""feature_splitting: a dictionary whose atoms were split in known ways, containment by hand, controls, several sizes, refusals."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.dictionaries import SAE, Design, Origin
from activarium.errors import InputError, UnknownSite
from activarium.testing import recording_of

feature_splitting = act.analyses.feature_splitting
SITE = "blocks.0.resid_post"
ATOMS = torch.eye(12, 64)


def dictionary(directions: torch.Tensor, bias: float = -0.7, site: str = SITE, encoder: torch.Tensor | None = None) -> SAE:
    b_enc = torch.full((len(directions),), bias)
    weights = {
        "encoder": (directions if encoder is None else encoder).clone(),
        "W_dec": directions.clone(),
        "b_enc": b_enc,
        "b_dec": torch.zeros(directions.shape[1]),
    }
    return SAE.of_weights(Design(directions.shape[1], len(directions)), weights, Origin(site=site, exclude=("bos",)))


def parts_of(atom: int, count: int, first: int) -> torch.Tensor:
    """Unit rows at cosine .9 from an atom, turned from it in directions of their own."""
    turned = torch.eye(64)[first : first + count]
    return 0.9 * ATOMS[atom] + (1 - 0.81) ** 0.5 * turned


def planted() -> tuple[torch.Tensor, dict[int, list[int]], list[int]]:
    """Atom 0 is split in two, 1 in three; 2 to 8 are kept, 9 to 11 are gone, four are new. Order mixed."""
    new = torch.eye(64)[40:44]
    large = torch.cat([parts_of(0, 2, 20), parts_of(1, 3, 30), ATOMS[2:9], new])
    whose = [0, 0, 1, 1, 1, *range(2, 9), -1, -1, -1, -1]
    order = torch.randperm(len(large), generator=torch.Generator().manual_seed(2)).tolist()
    links: dict[int, list[int]] = {}
    for place, old in enumerate(order):
        links.setdefault(whose[old], []).append(place)
    return large[order], {k: v for k, v in links.items() if k >= 0}, links[-1]


def rows_of(large: torch.Tensor, each: int = 30) -> torch.Tensor:
    """Rows that are one large feature each, and the atoms that have no part."""
    return torch.cat([large, ATOMS[9:12]]).repeat(each, 1)


def read(report, part: str = "splits") -> dict[int, list[int]]:
    columns = report[part].columns
    return {int(i): [int(n) for n in into.split(", ")] for i, into in zip(columns["feature"], columns["into"], strict=True) if into}


@pytest.mark.parametrize("fired", [True, False])
def test_a_dictionary_split_in_known_ways_is_recovered_exactly(fired):
    large, links, new = planted()
    recording = recording_of({SITE: rows_of(large)}) if fired else None
    report = feature_splitting([dictionary(ATOMS), dictionary(large)], recording)
    assert read(report) == links
    assert sorted(report["novel"].columns["feature"].tolist()) == new
    found = dict(zip(report["counts"].label("outcome"), report["counts"].values[0].tolist(), strict=True))
    assert found == {"links": 12, "split": 2, "kept": 7, "lost": 3, "parts": 12, "near but apart": 0, "near but silent": 0, "novel": 4}
    assert report["splits"].values[:2].tolist() == [3, 2]
    assert report["splits"].columns["feature"][:2].tolist() == [1, 0]
    by_chance = report["counts"].values[1:, 0]
    assert (by_chance == 0).all()
    assert len(by_chance) == (2 if fired else 1)
    graph = report["graph"]
    assert len(graph.edges) == 12
    assert {graph.nodes[b] for a, b in graph.edges if graph.nodes[a] == "12: 1"} == {f"16: {n}" for n in links[1]}


def test_containment_and_coverage_by_hand():
    """Both large features are near the small one. One fires in 4 rows, 3 of them the small one's; the other in 2 rows without it."""
    fires = torch.tensor([[1, 1, 1, 0, 0, 0, 1], [1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0]])
    rows = torch.cat([fires.T.float(), torch.zeros(7, 61)], 1)
    read_along = torch.eye(3, 64)
    small = dictionary(ATOMS[:1], encoder=read_along[:1])
    large = dictionary(torch.cat([parts_of(0, 1, 20), parts_of(0, 1, 21)]), encoder=read_along[1:])
    report = feature_splitting([small, large], recording_of({SITE: rows}), least=1)
    assert report["links"].names == ("0 → 0",)
    assert report["links"].columns["contained"].tolist() == [3 / 4]
    assert report["links"].columns["by chance"].tolist() == [4 / 7]
    assert report["splits"].columns["covered"].tolist() == [3 / 4]
    assert report["counts"].values[0, report["counts"].label("outcome").index("near but apart")] == 1
    assert not feature_splitting([small, large], recording_of({SITE: rows}), least=1, contained=0.8)["links"].names


def test_a_feature_that_hardly_fires_is_not_believed():
    large, links, _ = planted()
    report = feature_splitting([dictionary(ATOMS), dictionary(large)], recording_of({SITE: rows_of(large, each=3)}), least=10)
    assert read(report) == {}
    assert report["counts"].values[0, report["counts"].label("outcome").index("near but silent")] == sum(map(len, links.values()))


def test_both_conditions_are_needed():
    """The same direction that fires elsewhere is no part, and firing inside in another direction is none either."""
    near, other = parts_of(0, 1, 20), torch.eye(64)[50:51]
    inside = ATOMS[:1] + other - torch.eye(64)[20:21]  # the near one is silent there
    rows = torch.cat([near.expand(20, -1), inside.expand(20, -1)])
    blind = dictionary(ATOMS[:1], -0.95)  # does not see the near one at .9
    report = feature_splitting([blind, dictionary(torch.cat([near, other]))], recording_of({SITE: rows}))
    assert read(report) == {}
    seeing = feature_splitting([dictionary(ATOMS[:1]), dictionary(torch.cat([near, other]))], recording_of({SITE: rows}))
    assert read(seeing) == {0: [0]}


def test_a_dense_small_feature_contains_by_chance_and_the_control_shows_it():
    dense = dictionary(ATOMS[:1], 1.0)  # always active
    large = dictionary(parts_of(0, 2, 20))
    recording = recording_of({SITE: rows_of(parts_of(0, 2, 20), each=40)})
    report = feature_splitting([dense, large], recording)
    assert report["counts"].label("comparison")[2].endswith("shuffled rows")
    assert report["counts"].values[2, 0] == report["counts"].values[0, 0] == 2
    assert report["links"].columns["by chance"].tolist() == [1.0, 1.0]


def test_several_sizes_in_a_row():
    large, links, _ = planted()
    report = feature_splitting([dictionary(ATOMS), dictionary(large), dictionary(large)], recording_of({SITE: rows_of(large)}), cosine=0.85)
    assert read(report, "splits 12 → 16a") == links
    assert read(report, "splits 16a → 16b") == {i: [i] for i in range(16)}
    assert set(report["graph"].columns["layer"].tolist()) == {0, 1, 2}
    assert report["counts"].values.shape == (6, 8)


def test_excluded_kinds_stay_out():
    large, links, _ = planted()
    rows = torch.cat([50 * torch.ones(40, 64), rows_of(large)])  # a row in which everything fires
    kinds = ["bos"] * 40 + ["token"] * (len(rows) - 40)
    makes = [dictionary(ATOMS), dictionary(large)]
    assert read(feature_splitting(makes, recording_of({SITE: rows}, kinds=kinds))) == links
    assert feature_splitting(makes, recording_of({SITE: rows}, kinds=kinds)).diagnostics["rows"] == len(rows) - 40


def test_lengths_of_directions_do_not_matter_and_nothing_is_nearer_than_itself():
    large, links, _ = planted()
    stretched = dictionary(large)
    with torch.no_grad():
        stretched.W_dec.mul_(torch.linspace(0.1, 5, len(large))[:, None])
    assert read(feature_splitting([dictionary(ATOMS), stretched])) == links


def test_refusals():
    small, large = dictionary(ATOMS), dictionary(planted()[0])
    with pytest.raises(InputError, match="two or more"):
        feature_splitting([small])
    with pytest.raises(InputError, match="smallest first"):
        feature_splitting([large, small])
    with pytest.raises(InputError, match="64 and 65 numbers|12 and 64 numbers"):
        feature_splitting([dictionary(torch.eye(12)), large])
    with pytest.raises(InputError, match="Compare those of one site"):
        feature_splitting([dictionary(ATOMS, site="blocks.1.resid_post"), large])
    with pytest.raises(InputError, match="cosine=0"):
        feature_splitting([small, large], cosine=0)
    with pytest.raises(InputError, match="contained=2"):
        feature_splitting([small, large], contained=2)
    with pytest.raises(InputError, match="least=-1"):
        feature_splitting([small, large], least=-1)
    with pytest.raises(UnknownSite, match="site in this recording"):
        feature_splitting([small, large], recording_of({"blocks.1.resid_post": torch.ones(3, 64)}))


def test_a_random_dictionary_has_as_many_links_as_its_control():
    generator = torch.Generator().manual_seed(9)
    one, two = (dictionary(torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1)) for n in (40, 80))
    report = feature_splitting([one, two], cosine=0.8)
    real, chance = report["counts"].values[:, 0]
    assert real > 5
    assert 0.4 < real / chance < 2.5
    assert np.isfinite(report["novel"].values).all()
