"""Quality and dark matter of dictionaries of models that nobody here made: a language model of stories and a classifier of digits."""

import json
from pathlib import Path

import numpy as np
import pytest

import activarium as act
from activarium.analyses import dark_matter, dictionary_quality
from activarium.dictionaries import Recipe, train

SHARED = Path(__file__).parents[4] / "shared"
SITE = "blocks.2.resid_post"
pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason="third-party models are not on this machine (../shared)"),
    pytest.mark.slow,
]


def figures(model, fitted, seen):
    """Measured on inputs that the dictionary was not trained on; tables by name."""
    recording = model.run(fitted, read=SITE)
    recipe = Recipe(256, k=16, learning_rate=1e-3)
    sae = train(recording, SITE, recipe, batch=512, steps=200, progress=False).sae
    reports = dictionary_quality(sae, model.run(seen, read=SITE), model, seen), dark_matter(sae, recording, model, seen, pursuit=0)
    return {
        part: report[part].to_frame().set_index("name")
        for report in reports
        for part in report
        if part not in ("codes", "density", "lengths")
    }


def check(found):
    """What holds of any dictionary that learnt something in a moment."""
    quality, recovered, predicted = found["quality"], found["recovered"], found["predicted"]["R²"]
    random = "random directions, as dictionary"
    assert quality.loc["dictionary", "FVU"] < 0.25 < 0.45 < quality.loc[random, "FVU"] < 1
    assert quality.loc["dictionary", "codes per row"] == pytest.approx(16, abs=0.1)
    assert quality.loc["dictionary", "bias"] == pytest.approx(1, abs=0.02)
    assert recovered.loc["dictionary", "KL recovered (zero)"] > 0.9
    assert recovered.loc["dictionary", "KL, nats"] < 0.5 * recovered.loc[random, "KL, nats"]
    assert recovered.loc["the rows themselves", "KL, nats"] == 0
    assert 0.1 < predicted["error, pooled"] < 0.5
    assert predicted["error, pooled"] + 0.1 < predicted["squared length"] < 0.9
    assert -0.05 < predicted["error, pooled, by chance"] < 0.01
    assert found["cost"].loc["nonlinear part", "share of KL"] > found["cost"].loc["linear part", "share of KL"]


def test_stories():
    model = act.load(str(SHARED / "models" / "stories260K"), certify="quick")
    said = json.loads((SHARED / "corpora" / "tinystories_1000.json").read_text(encoding="utf-8"))
    texts = [" ".join(str(s if isinstance(s, str) else next(iter(s.values()))).split()[:60]) for s in said[:120]]
    found = figures(model, texts[:100], texts[100:])
    check(found)
    assert found["recovered"].loc["dictionary", "CE recovered (zero)"] > 0.93
    assert found["recovered"].loc["dictionary", "CE recovered (mean)"] > 0.85


def test_digits():
    model = act.load(str(SHARED / "models" / "vit-mnist-10"), certify="quick")
    with np.load(SHARED / "corpora" / "mnist" / "mnist_sample200.npz", allow_pickle=False) as sample:
        images, labels = [image[..., None] for image in sample["images"]], sample["labels"].astype(int)
    order = np.random.default_rng(0).permutation(200)
    fitted, seen = ({"images": [images[i] for i in half], "label": labels[half]} for half in (order[:150], order[150:]))
    found = figures(model, fitted, seen)
    check(found)
    assert found["recovered"].loc["dictionary", "agreement"] > 0.9
