"""What the definitions say of trained models that nobody here made: a rectified vision model and a smooth language model."""

import json
from pathlib import Path

import numpy as np
import pytest

import activarium as act
from activarium.errors import InputError

SHARED = Path(__file__).parents[4] / "shared"
pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason="third-party models are not on this machine (../shared)"),
    pytest.mark.slow,
]
SITES = ["blocks.*.mlp.act", "blocks.*.mlp.post", "blocks.*.mlp.in"]


@pytest.fixture(scope="module")
def digits():
    model = act.load(str(SHARED / "models" / "vit-mnist-10"), certify="quick")
    with np.load(SHARED / "corpora" / "mnist" / "mnist_sample200.npz") as sample:
        data = {"images": [image[..., None] for image in sample["images"][::8]], "label": sample["labels"][::8].astype(int)}
    return model, data, model.run(data, read=[*SITES, "blocks.*.mlp.pre"])


@pytest.fixture(scope="module")
def stories():
    model = act.load(str(SHARED / "models" / "stories260K"), certify="quick")
    found = json.loads((SHARED / "corpora" / "tinystories_1000.json").read_text(encoding="utf-8"))
    texts = [" ".join(str(s if isinstance(s, str) else next(iter(s.values()))).split()[:25]) for s in found[:12]]
    return model, texts, model.run(texts, read=SITES)


def test_a_rectified_vision_model_is_sparse_by_every_definition(digits):
    model, data, recorded = digits
    report = act.analyses.activation_thresholds(recorded, model, data, targets=[0.5])
    assert report["fixed"].curves["exactly zero"].mean() > 0.8
    assert report["fixed"].curves["below zero"].tolist() == [0.0] * 6
    assert report["KL"].curves["CATS"].tolist() == [0.0]  # only zeros were dropped
    assert act.analyses.cett_sparsity(recorded, model).diagnostics["sparsity"] > 0.85
    thinned = act.analyses.top_k_inference(model, data, [16, 64])
    assert thinned["KL"].curves["all layers"][0] < 0.02
    assert (thinned["nonzero"].curves["all layers"] < 20).all()


def test_its_neurons_are_as_rare_as_gaussian_ones_with_their_means_and_yet_it_is_contextual(digits):
    model, data, recorded = digits
    report = act.analyses.contextual_sparsity(recorded, model, data)
    nulls = report["nulls"].curves
    assert np.abs(nulls["measured − Gaussian"]).max() < 0.05
    assert (nulls["measured − shuffled weights"] > 0.1).all()
    recall = report["predictors"].to_frame().set_index("name")["energy recall"]
    assert recall["fixed set"] < recall["rows so far"] < recall["own strongest"]
    assert report["ablation"].to_frame().set_index("name").loc["active set", "KL, nats"] == 0.0


def test_a_smooth_language_model_has_no_zeros_and_pays_for_what_is_dropped(stories):
    model, texts, recorded = stories
    report = act.analyses.activation_thresholds(recorded, model, texts, targets=[0.25, 0.5])
    assert report["fixed"].curves["exactly zero"].max() < 0.001
    assert (np.diff(report["KL"].curves["CATS"]) > 0.05).all()
    with pytest.raises(InputError, match="as after a smooth activation"):
        act.analyses.contextual_sparsity(recorded, model)
    found = act.analyses.cett_sparsity(recorded, model, texts).diagnostics
    assert found["rise of perplexity"] <= 1
    assert 0.2 < found["sparsity at perplexity"] < found["sparsity"] < 0.7
