"""Directions of real points: where they may be, that they stay there, and that they are more alike from seed to seed."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

import activarium as act
from activarium.dictionaries import Recipe, train
from activarium.dictionaries.archetypes import Archetypes, centroids
from activarium.dictionaries.learner import Learner
from activarium.dictionaries.rows import RowSource
from activarium.errors import InputError

SITE = "blocks.0.resid_post"


def clustered(count=12_000, width=24, clusters=40):
    """Rows around many points: no sparse sum of atoms, so directions are not determined by sparsity alone."""
    generator = torch.Generator().manual_seed(31)
    points = torch.randn(clusters, width, generator=generator)
    which = torch.randint(0, clusters, (count,), generator=generator)
    return points[which] + 0.5 * torch.randn(count, width, generator=generator)


@pytest.fixture(scope="module")
def rows():
    return clustered()


def recording(rows):
    return act.testing.recording_of({SITE: rows})


def alike(a, b):
    """Mean cosine of the best one-to-one match."""
    a, b = (torch.nn.functional.normalize(x.directions, dim=1) for x in (a, b))
    cosines = (a @ b.T).numpy()
    return float(cosines[linear_sum_assignment(-cosines)].mean())


def test_directions_by_hand():
    made = Archetypes(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), 2, slack=0.5, seed=0)
    with torch.no_grad():
        made.weights.copy_(torch.tensor([[2.0, -1.0], [1.0, 3.0]]))
        made.free.copy_(torch.tensor([[0.0, 0.0], [0.0, 30.0]]))
        made.size.fill_(0.0)
    made.held()
    assert made.weights.tolist() == [[1.0, 0.0], [0.25, 0.75]]
    assert torch.allclose(made.free, torch.tensor([[0.0, 0.0], [0.0, 1.5]]))
    assert torch.allclose(made.directions(), torch.tensor([[3.0, 0.0], [0.75, 3.75]]))


def test_they_stay_where_they_may_be(rows):
    recipe = Recipe(64, k=3, archetypes=48, slack=0.05, learning_rate=5e-3)
    source = RowSource(recording(rows[:3000])[SITE])
    made = Learner(recipe, source.statistics(0, keep=True), False, 200)
    before = made.sae.W_dec.detach().clone()
    for (x, y), _ in zip(source.batches(250, 0), range(40), strict=False):
        made.learn(x, y)
    held = made.points
    assert held is not None
    assert bool((held.weights >= 0).all())
    assert torch.allclose(held.weights.sum(1), torch.ones(64), atol=1e-5)
    assert bool((held.free.norm(dim=1) <= held.longest * (1 + 1e-5)).all())
    assert torch.allclose(made.sae.W_dec, held.directions())
    assert not torch.allclose(made.sae.W_dec, before, atol=0.01)
    assert bool(held.free.any())
    # Within the hull: no direction reaches further along any line than the farthest point, but for its freedom.
    lines = torch.nn.functional.normalize(torch.randn(24, 200, generator=torch.Generator().manual_seed(0)), dim=0)
    reach = (made.sae.W_dec.detach() / held.size.detach().exp()) @ lines
    assert bool((reach.max(0).values <= (held.points @ lines).max(0).values + held.longest + 1e-4).all())


def test_centroids_do_not_depend_on_the_dictionarys_seed(rows):
    assert torch.equal(centroids(rows[:2000], 16), centroids(rows[:2000], 16))
    assert len(centroids(rows[:10], 16)) == 10


@pytest.mark.slow
def test_more_alike_from_seed_to_seed_than_plain_top_k(rows):
    recipes = [Recipe(64, k=3, archetypes=a, seed=s, learning_rate=3e-3) for a in (None, 64) for s in (0, 1)]
    plain, other, points, again = (t.sae for t in train(recording(rows), SITE, recipes, batch=512, steps=400, progress=False))
    assert alike(points, again) > alike(plain, other) + 0.1, (alike(points, again), alike(plain, other))

    def unexplained(sae):
        return float((rows - sae(rows)).square().sum() / (rows - rows.mean(0)).square().sum())

    assert unexplained(points) < unexplained(plain) + 0.15  # what being alike costs


@pytest.mark.slow
def test_planted_atoms_are_found_among_points():
    atoms, rows, _ = act.testing.planted_rows(20_000, width=32, atoms=48, active=2)
    generator = torch.Generator().manual_seed(1)
    shuffled = torch.stack([column[torch.randperm(len(rows), generator=generator)] for column in rows.T], 1)
    recipe = Recipe(48, k=2, archetypes=400, slack=1.0, learning_rate=3e-3, dead_after=10_000, centre="zero")

    def likeness(data, steps):
        sae = train(recording(data), SITE, recipe, batch=512, steps=steps, progress=False).sae
        return float((atoms @ torch.nn.functional.normalize(sae.directions, dim=1).T).max(1).values.mean())

    assert likeness(rows, 900) > 0.9
    assert likeness(shuffled, 300) < 0.6


def test_a_pause_keeps_their_points(rows, tmp_path):
    recipe = Recipe(32, "batchtopk", k=3, archetypes=40)
    call = {"site": SITE, "recipe": recipe, "batch": 250, "progress": False}
    whole = train(recording(rows[:2000]), **call, steps=12)
    real, taken = Learner.learn, []

    def stumbling(self, x, y):
        taken.append(1)
        if len(taken) > 8:
            raise KeyboardInterrupt
        real(self, x, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "learn", stumbling)
        with pytest.raises(KeyboardInterrupt):
            train(recording(rows[:2000]), **call, steps=12, pause=tmp_path / "p", every=5)
    again = train(recording(rows[:2000]), **call, steps=12, pause=tmp_path / "p", every=5)
    for (name, p), q in zip(whole.sae.named_parameters(), again.sae.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_recipes_that_make_no_sense():
    with pytest.raises(InputError, match="at least two points, and slack of at least 0, for topk"):
        Recipe(24, k=3, archetypes=1)
    with pytest.raises(InputError, match="this is standard"):
        Recipe(24, "standard", archetypes=8)
