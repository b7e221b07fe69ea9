"""The bundled dictionaries: they load, are what their cards say on sentences and scenes of other seeds, and train again to the same bits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import activarium as act
from activarium.data import cards, dictionaries, train_dictionaries
from activarium.dictionaries import Recipe

NAMES = ("glyph-resid", "scribe-mlp", "scribe-resid")
OURS = "this dictionary"


def card_of(name):
    return json.loads((dictionaries()[name] / "card.json").read_text(encoding="utf-8"))


def test_all_are_there_and_no_model_is_called_so():
    assert tuple(dictionaries()) == NAMES
    assert set(train_dictionaries.PLANS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_plan_are_those_of_the_card(name):
    card, folder = card_of(name), dictionaries()[name]
    assert cards.sha256(folder / "sae_weights.safetensors") == card["sha256"]["sae_weights.safetensors"]
    plan = train_dictionaries.PLANS[name]
    assert card["plan"]["site"] == plan.site and card["plan"]["recipe"]["k"] == plan.recipe.k
    sae = act.dictionaries.load(name)
    assert (sae.width, sae.d_in, sae.origin.model, sae.origin.site) == (plan.recipe.features, 128, plan.model, plan.site)
    assert act.capture.site_of(sae, act.load(plan.model)).site == plan.site


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_not_better_than_what_is_measured_again(name):
    said = card_of(name)["held_out"]
    found = _again(name)
    assert found["quality"]["FVU"] < 1.15 * said["reconstruction"][OURS]["FVU"] + 0.002
    assert abs(found["quality"]["codes per row"] - said["reconstruction"][OURS]["codes per row"]) < 1
    assert found["recovered"]["KL recovered (mean)"] > said["in the model"][OURS]["KL recovered (mean)"] - 0.01
    # What the cards promise to whoever uses them, whatever they say.
    assert found["quality"]["FVU"] < 0.15
    assert found["recovered"]["KL recovered (mean)"] > 0.95


def _again(name):
    """The figures on a few sentences or scenes that the card was not measured on."""
    from activarium.data import corpus, scenes

    sae = act.dictionaries.load(name)
    model = act.load(sae.origin.model)
    if sae.origin.model == "glyph":
        images, labels = scenes.batch(77_123, 0, 48)
        inputs = {"images": list(images), "label": labels.tolist()}
    else:
        inputs = [item.text for family in corpus.FAMILIES for item in corpus.held_out(family, 77_123, 12)]
    report = act.analyses.dictionary_quality({OURS: sae}, model.run(inputs, read=sae.origin.site), model, inputs)
    made = {}
    for part in ("quality", "recovered"):
        table = report[part]
        at = table.names.index(OURS)
        made[part] = {c: float(v[at]) for c, v in table.columns.items()} | {"FVU": float(table.values[at])}
    return made


@pytest.mark.slow
def test_sae_lens_reads_them_to_the_same_codes():
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed")
    rows = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 3
    for folder in dictionaries().values():
        theirs = sae_lens.SAE.load_from_disk(folder)
        assert np.allclose(theirs.encode(rows).detach().numpy(), act.dictionaries.load(folder).encode(rows).numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_training_again_gives_the_same_bits(tmp_path):
    for name in ("scribe-mlp", "glyph-resid"):
        small = replace(train_dictionaries.PLANS[name], recipe=Recipe(32, "batchtopk", k=4), examples=40, steps=5, batch=128)
        first, second = (train_dictionaries.made(small) for _ in range(2))
        for (key, a), (_, b) in zip(first.sae.named_parameters(), second.sae.named_parameters(), strict=True):
            assert torch.equal(a, b), key
