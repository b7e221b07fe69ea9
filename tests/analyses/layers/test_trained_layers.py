"""Trained models that nobody tuned to this code: the laws hold there too, and what was measured once is found again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.layers.skipping import Course, by_progress

SHARED = Path(__file__).parents[4] / "shared"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="third-party models are not on this machine (../shared/models)"),
]
READ = ["blocks.*.resid_pre", "blocks.*.resid_post"]


@pytest.fixture(scope="module")
def stories():
    model = act.load(SHARED / "models" / "stories260K", certify=False)
    told = json.loads((SHARED / "corpora" / "tinystories_1000.json").read_text(encoding="utf-8"))[:16]
    return model, [(s if isinstance(s, str) else s["story"])[:200] for s in told]


@pytest.mark.parametrize("bypass", [True, False])
def test_a_story_written_past_its_voids_equals_one_forward(stories, bypass):
    model, texts = stories
    edits = Course("", 5, by_progress(0.8), bypass=bypass).edits
    made = model.generate([t[:60] for t in texts[:4]], max_new_tokens=24, read="logits", edits=edits)
    again = model.run(made.inputs, edits=edits).logits.tensor
    assert torch.allclose(made.recording.logits.tensor, again, atol=1e-3)
    assert not torch.allclose(model.run(made.inputs).logits.tensor, again, atol=0.1)


def test_verdicts_of_a_written_story_are_those_of_one_forward(stories):
    model, texts = stories
    made = model.generate([t[:60] for t in texts[:4]], max_new_tokens=24, read=READ)
    ours, theirs = (act.analyses.layer_voids(r) for r in (made.recording, model.run(made.inputs, read=READ)))
    for alpha in range(len(ours["alphas"].x)):
        assert ours["alphas"].curves["all rows"][alpha] == pytest.approx(theirs["alphas"].curves["all rows"][alpha], abs=2e-3)


def test_stories_need_their_first_block_most_and_have_few_voids(stories):
    model, texts = stories
    report = act.analyses.layer_measures(model.run(texts, read=READ), model, texts)
    assert report["table"].names[0] == "blocks.0" and report["table"].values[0] > 2 * report["table"].values[1]
    assert report["layer usage"].curves["the model"].mean() > 0.9
    assert report["influence"].curves["the model"].argmax() == 0 != report["influence"].curves["untrained twin"].argmax()


def test_a_digit_reader_can_do_without_its_last_blocks():
    model = act.load(SHARED / "models" / "vit-mnist-10", certify=False)
    with np.load(SHARED / "corpora" / "mnist" / "mnist_sample200.npz", allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    images = next(v for v in arrays.values() if v.ndim >= 3)[::4]
    labels = next(v for v in arrays.values() if v.ndim == 1)[::4].astype(int)
    report = act.analyses.block_removal(model, {"images": list(images), "label": labels}, most=2, draws=15)
    assert report["KL"].curves["least influence"].max() < 0.1 < report["KL"].curves["random"].min()
    full = report["sets"].columns["right answers of the full model"][0]
    assert report["right"].curves["least influence"].min() > full - 0.1 > report["right"].curves["random"].min()
