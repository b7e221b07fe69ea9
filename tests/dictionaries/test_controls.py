"""Controls: the identity is exact, components explain what they should, a random dictionary explains little."""

import pytest
import torch

from activarium.activations import Activations
from activarium.dictionaries import Design, Recipe, controls
from activarium.dictionaries.sae import SAE
from activarium.errors import InputError


def site(rows):
    return Activations(rows, "row d_model", site="blocks.0.resid_post")


def unexplained(sae, rows):
    return float((rows - sae(rows)).square().sum() / (rows - rows.mean(0)).square().sum())


def test_the_identity_gives_rows_back_bit_for_bit():
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    sae = controls.identity(7)
    assert torch.equal(sae(rows), rows)
    assert bool((sae.encode(rows) >= 0).all())
    assert int(sae.codes(rows).active.max()) <= 7


def test_components_are_those_of_a_planted_spread():
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    sizes = torch.tensor([9.0, 4.0, 1.0, 0.1, 0.1, 0.1])
    rows = torch.randn(20_000, 6, generator=generator) * sizes @ basis.T + 5.0
    sae = controls.principal(site(rows), 2)
    for i in range(2):
        assert float((sae.directions[i] @ basis[:, i]).abs()) > 0.999
    wanted = float(sizes[2:].square().sum() / sizes.square().sum())
    assert unexplained(sae, rows) == pytest.approx(wanted, rel=0.05)
    assert unexplained(controls.principal(site(rows)), rows) < 1e-9
    with pytest.raises(InputError, match="6 principal components; asked for 7"):
        controls.principal(site(rows), 7)


@pytest.mark.parametrize("design", [Design(8, 24, "topk", k=3), Design(8, 24, "jumprelu"), Design(8, 24, "gated")], ids=lambda d: d.kind)
def test_a_random_dictionary_has_the_same_design_and_other_directions(design):
    like = SAE(design, seed=1)
    made = controls.random(like, seed=5)
    assert made.design == like.design
    assert torch.allclose(made.W_dec.norm(dim=1), like.W_dec.norm(dim=1))
    assert float(torch.nn.functional.cosine_similarity(made.W_dec, like.W_dec.detach()).abs().mean()) < 0.6
    assert torch.equal(made.b_dec, like.b_dec)
    assert torch.equal(controls.random(like, seed=5).W_dec, made.W_dec)


def test_a_recipe_knows_its_prefixes():
    assert Recipe(64, "matryoshka", k=2).prefixes == (4, 8, 16, 32, 64)
