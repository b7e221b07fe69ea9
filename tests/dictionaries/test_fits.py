"""A dictionary of ours is laid onto the model, site and coordinates that it was trained on, or refused with words."""

import pytest

import activarium as act
from activarium.capture import site_of
from activarium.dictionaries import SAE, Design, Origin, Recipe, train
from activarium.errors import InputError, OtherModel, UnknownSite

SITE = "blocks.1.resid_post"


@pytest.fixture(scope="module")
def model():
    return act.load("scribe")


@pytest.fixture(scope="module")
def sae(model):
    recording = model.run(["Anna gave Tom the book ."] * 20, read=SITE)
    return train(recording, SITE, Recipe(features=32, k=2), batch=64, steps=2, progress=False).sae


def test_it_names_its_site_and_fits_its_model(model, sae):
    found = site_of(sae, model)
    assert (found.site, found.width, found.scaling) == (SITE, model.sites[SITE].shape[-1], "none")


def test_another_model_of_the_same_shape_is_refused(sae):
    with pytest.raises(OtherModel, match="trained on scribe with weights .*; scribe-relu has .* Load the model it was trained on"):
        site_of(sae, act.load("scribe-relu"))


@pytest.mark.parametrize(
    ("origin", "width", "error", "words"),
    [
        (Origin(), 0, InputError, "its origin.site is empty"),
        (Origin(site=SITE), 24, InputError, "reads 24 features; blocks.1.resid_post of scribe has"),
        (Origin(site="blocks.99.resid_post"), 0, UnknownSite, "blocks.99.resid_post"),
        (Origin(site=SITE, centred=True), 0, OtherModel, "trained on centred writing weights and scribe has raw ones"),
    ],
)
def test_wrong_site_width_or_coordinates(model, origin, width, error, words):
    made = SAE(Design(width or model.sites[SITE].shape[-1], 32), origin)
    with pytest.raises(error, match=words):
        site_of(made, model)


def test_it_is_a_node_of_every_patching_method(model, sae):
    pairs = act.pairs.ioi(model, 2)
    grid = act.analyses.attribution_patching(model, pairs, act.Features(SITE, sae, features=[0, 1]))
    assert grid.label("feature") == ["0", "1", "error"]
