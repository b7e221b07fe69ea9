"""The atlas: its numbers by brute force, planted extremes, and every kind of source."""

import doctest
import importlib

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.errors import InputError
from activarium.summaries import Count


@pytest.fixture(scope="module")
def model():
    return act.wrap(*testing.tiny("gpt2"), name="gpt2", certify=False)


def test_numbers_by_brute_force(model):
    texts = testing.texts()
    report = act.atlas(model, texts, progress=False)
    recorded = act.capture(model, texts, "blocks.*.mlp.post", progress=False)
    for layer in range(2):
        values = recorded[f"blocks.{layer}.mlp.post"].tensor.double()
        place = (report["size"].labels["site"].index("mlp.post"), layer)
        assert report["size"].values[place] == pytest.approx(float(values.square().mean().sqrt()), rel=1e-9)
        assert report["zeros"].values[place] == pytest.approx(100 * float((values == 0).double().mean()), abs=1e-9)
        ratio = float(values.abs().max() / values.abs().flatten().median())
        assert report["outliers"].values[place] == pytest.approx(ratio, rel=2**-6)
        centred = values - values.mean(0)
        kurtosis = (centred**4).mean(0) / (centred**2).mean(0) ** 2
        assert report["tails"].values[place] == pytest.approx(float(kurtosis.median()), rel=1e-6)
    assert report.diagnostics["rows"] == len(recorded["blocks.0.mlp.post"])


def test_a_planted_extreme_is_found_where_it_is():
    hf_model, tokenizer = testing.tiny("gpt2")
    with torch.no_grad():
        hf_model.transformer.h[1].mlp.c_proj.bias[5] = 5000.0
        hf_model.transformer.h[0].mlp.c_fc.bias[3] = -50.0  # GELU gives exactly zero there
    report = act.atlas(act.wrap(hf_model, tokenizer, name="planted", certify=False), testing.texts(), progress=False)
    assert "blocks.1" in report["features"].names[0]
    assert report["features"].names[0].endswith(" 5")
    assert report["sites"].names[0].startswith("blocks.1.")
    found = report["dead"].labels["site"].index("mlp.post")
    assert report["dead"].values[found, 0] == pytest.approx(100 / 48)  # one of 48 neurons
    assert report["rows"].names[0].endswith(" 5")


def test_every_source_gives_one_atlas(model, tmp_path):
    texts, sites = testing.texts(), ["blocks.*.resid_post", "blocks.*.mlp.post"]
    live = act.atlas(model, texts, sites=sites, progress=False)
    store = act.capture(model, texts, sites, tmp_path / "s.acts", progress=False)
    stored = act.atlas(store, progress=False)
    for name in live:
        assert list(live[name].labels["site"]) == list(stored[name].labels["site"]) if hasattr(live[name], "labels") else True
        assert np.allclose(live[name].values, stored[name].values, rtol=1e-9, equal_nan=True), name
    assert live["rows"].columns["context"].tolist() == stored["rows"].columns["context"].tolist()


@pytest.mark.parametrize("family", ["vit", "t5", "clip"])
def test_stacks_and_images(family):
    model = act.wrap(*testing.tiny(family), name=family, certify=False)
    data = {}
    for name, space in model._encoder.spaces.items():
        vision = space.modality == "vision"
        data["pixel_values" if vision else name or "text"] = torch.zeros(2, *space.image) if vision else [[21, 22], [23, 24, 25]]
    report = act.atlas(model, data, progress=False)
    prefixes = {"vit": [""], "t5": ["encoder ", "decoder "], "clip": ["text ", "vision "]}[family]
    for prefix in prefixes:
        assert np.isfinite(report[f"{prefix}size"].values).any()


def test_a_survey_without_its_summaries_is_refused(model):
    found = act.survey(model, {"blocks.0.mlp.post": [Count()]}, testing.texts(), progress=False)
    with pytest.raises(InputError, match="has no Moments of"):
        act.atlas(found)


@pytest.mark.parametrize("name", ["atlas", "survey"])
def test_the_examples_in_the_docstrings_run(name):
    module = importlib.import_module(f"activarium.workflows.{name}")
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0
