"""Matching pursuit: by hand, against sae-lens, in files, under a scale, and trained."""

import pytest
import torch

import activarium as act
from activarium.dictionaries import SAE, Design, Recipe, load, save, train
from activarium.dictionaries.pursuit import pursue
from activarium.errors import InputError

SITE = "blocks.0.resid_post"
SLANTED = torch.tensor([[1.0, 0.0], [0.8, 0.6]])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(unit=True, **values):
    directions = draw(24, 8, seed=1)
    w = {"W_dec": torch.nn.functional.normalize(directions, dim=1) if unit else directions / 2, "b_dec": draw(8, seed=2) / 3}
    return SAE.of_weights(Design(8, 24, "pursuit", **values), w)


def test_one_after_another_by_hand():
    """(1, 0.5) is most like the slanted direction, 1.1; what is left is (0.12, −0.16), which is like (1, 0), 0.12."""
    codes = pursue(torch.tensor([[1.0, 0.5], [-1.0, -1.0]]), SLANTED, 2, 0.0, repeats=False)
    assert torch.allclose(codes, torch.tensor([[0.12, 1.1], [0.0, 0.0]]))
    one = pursue(torch.tensor([[1.0, 0.5]]), SLANTED, 1, 0.0, repeats=False)
    assert torch.allclose(one, torch.tensor([[0.0, 1.1]]))
    near = pursue(torch.tensor([[1.0, 0.5]]), SLANTED, 9, 0.21, repeats=False)  # the rest is 0.2 long
    assert torch.allclose(near, torch.tensor([[0.0, 1.1]]))


def test_a_feature_comes_again_only_where_it_may():
    """Between two directions that lie more than a right angle apart the rest swings, shorter each time."""
    x, directions = torch.tensor([[0.2, 1.0]]), torch.tensor([[1.0, 0.0], [-0.6, 0.8]])
    long, short = (pursue(x, directions, 90, 0.0, repeats=r) for r in (True, False))
    assert torch.allclose(long, torch.tensor([[0.95, 1.25]]), atol=1e-4)
    assert torch.allclose(short, torch.tensor([[0.608, 0.68 + 0.3648]]), atol=1e-5)  # the code that was chosen again still counts


def test_orthonormal_directions_give_exact_codes():
    basis = torch.linalg.qr(draw(8, 8))[0]
    x = draw(30, 8, seed=5)
    assert torch.allclose(pursue(x, basis, 8, 0.0, repeats=False), (x @ basis.T).relu(), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values", [{}, {"k": 3}, {"residual": 0.4}, {"repeats": True, "k": 12}, {"subtracts_bias": False}, {"scaling": "layer_norm"}]
)
def test_numbers_are_those_of_sae_lens(values, tmp_path):
    theirs = pytest.importorskip("sae_lens", reason="the extra [lens] is not installed")
    sae, x = made(**values), draw(60, 8, seed=3)
    twin = theirs.SAE.load_from_disk(str(save(sae, tmp_path / "sae")), dtype="float64")
    assert type(twin).__name__ == "MatchingPursuitSAE"
    wanted = twin.encode(x)
    assert torch.allclose(sae.encode(x), wanted, atol=1e-12)
    assert torch.allclose(sae(x), twin(x), atol=1e-12)
    again = load(tmp_path / "sae")
    assert (again.design, torch.equal(again.encode(x), sae.encode(x))) == (sae.design, True)
    if sae.design.scaling == "none":
        twin.fold_activation_norm_scaling_factor(2.5)
        assert torch.allclose(sae.folded(2.5).encode(x), twin.encode(x), atol=1e-12)


def test_a_scale_makes_its_codes_smaller_and_keeps_their_features():
    sae, x = made(residual=0.3), draw(60, 8, seed=3)
    folded = sae.folded(3.0)
    assert torch.allclose(3 * folded.encode(x), sae.encode(3 * x), atol=1e-12)
    assert torch.allclose(folded(x), sae(3 * x) / 3, atol=1e-12)


def test_sparse_codes_chosen_features_and_slopes():
    sae, x = made(k=3), draw(20, 8, seed=3)
    assert torch.allclose(sae.decode(sae.codes(x)), sae(x), atol=1e-12)
    assert torch.equal(sae.encode(x, features=[5, 2]), sae.encode(x)[:, [5, 2]])
    x = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: pursue(rows, sae.W_dec, 3, 0.0, False), x[:4], atol=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "pursuit", "transcoder": True, "subtracts_bias": False}, "pursuit explains the rows that it reads"),
        ({"kind": "pursuit", "k": -1}, "at least one code"),
        ({"kind": "topk", "k": 2, "residual": 0.1}, "say when a pursuit ends; this is topk"),
    ],
)
def test_what_a_pursuit_cannot_be(values, words):
    with pytest.raises(InputError, match=words):
        Design(8, 24, **values)


def test_it_cannot_be_trained_as_a_transcoder_nor_made_sparse_twice():
    with pytest.raises(InputError, match="cannot write another site"):
        Recipe(24, "pursuit", k=2).design(8, 4, transcoder=True)
    with pytest.raises(InputError, match="pursuit keeps k=None of 24"):
        Recipe(24, "pursuit")
    with pytest.raises(InputError, match="pursuit keeps the 3 largest codes|other lengths would keep other features"):
        made(k=3, unit=False).folded(unit=True)


@pytest.mark.slow
def test_planted_atoms_are_found():
    atoms, rows, _ = act.testing.planted_rows(20_000, width=32, atoms=48, active=3)
    generator = torch.Generator().manual_seed(1)
    shuffled = torch.stack([column[torch.randperm(len(rows), generator=generator)] for column in rows.T], 1)
    recipe = Recipe(48, "pursuit", k=4, learning_rate=3e-3)

    def likeness(data, steps):
        sae = train(act.testing.recording_of({SITE: data}), SITE, recipe, batch=512, steps=steps, progress=False).sae
        return float((atoms @ sae.directions.T).max(1).values.mean())

    assert likeness(rows, 900) > 0.9
    assert likeness(shuffled, 300) < 0.6
