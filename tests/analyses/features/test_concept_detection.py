"""Concept detection: planted directions are found and random ones are not, choice and measurement apart, images too."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import activarium as act
from activarium import testing
from activarium.analyses.features._concept_detection import concept_detection
from activarium.analyses.features.sentence_scores import Apart, auc_of_each, draws_of, highest_cosines
from activarium.data import scenes
from activarium.dictionaries import SNMF, Origin, RowSource
from activarium.errors import InputError, UnknownSite

SITE = "blocks.1.mlp.post"
SENTENCES, LONG, WIDTH = 40, 5, 16


def recording(seed=0, strength=2.0, kinds=None):
    """Every second sentence has one row with the first direction in it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(SENTENCES * LONG, WIDTH, generator=generator)
    for sentence in range(0, SENTENCES, 2):
        rows[sentence * LONG + sentence % LONG, 0] += strength * 6
    return testing.recording_of({SITE: rows}, example=np.repeat(np.arange(SENTENCES), LONG), kinds=kinds)


LABELS = ["yes" if s % 2 == 0 else "no" for s in range(SENTENCES)]


def test_a_planted_direction_is_found_and_random_ones_are_not():
    snmf = SNMF(torch.eye(WIDTH)[[3, 0, 5]], Origin(site=SITE))
    report = concept_detection({"planted": snmf, "elsewhere": torch.eye(WIDTH)[8:9]}, recording(), LABELS, site=SITE, neutral="no")
    auc = dict(zip(report["AUC"].label("method"), report["AUC"].values[:, 0], strict=True))
    assert auc["planted"] == 1
    assert auc["difference in means"] > 0.9
    assert auc["elsewhere"] < 0.8
    assert abs(auc["random"] - 0.5) < 0.35
    chosen = report["directions"].to_frame().set_index("name")
    assert chosen.loc["planted: yes", "direction"] == 1
    assert chosen.loc["planted: yes", "difference of mean scores"] > 0.3
    assert "not established" in report.diagnostics["score"]


def test_what_was_chosen_is_measured_on_other_sentences():
    """Pure noise with many directions: the best of them looks good where it was chosen, and is chance elsewhere."""
    many = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(5))
    found = [concept_detection({"noise": many}, recording(seed, 0.0), LABELS, site=SITE, neutral="no", seed=seed) for seed in range(8)]
    lines = [r["directions"].to_frame().set_index("name").loc["noise: yes"] for r in found]
    assert np.mean([line["AUC where chosen"] for line in lines]) > 0.8
    assert abs(np.mean([line["AUC"] for line in lines]) - 0.5) < 0.1


def test_scores_by_hand():
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0], [5.0, 0.0]])
    source = RowSource(testing.recording_of({SITE: rows}, example=[0, 0, 1, 1], kinds=["token", "token", "token", "bos"])[SITE])
    found = highest_cosines(source, torch.tensor([[2.0, 0.0]]), np.array([0, 1]))
    assert found[:, 0].tolist() == pytest.approx([0.6, -1.0])
    apart = Apart.of(np.array([1.0, 0.5, 0.5, 0.2]), np.array([True, True, False, False]))
    assert apart.auc == (1 + 1 + 0.5 + 1) / 4
    assert apart.gap == pytest.approx(0.75 - 0.35)
    yes, no = np.array([[2.0, 0.0]]), np.array([[1.0, 1.0]])
    assert apart.again((yes, no)).tolist() == [1.0]


def test_auc_is_that_of_sklearn():
    generator = np.random.default_rng(0)
    scores, shows = generator.integers(0, 6, (30, 4)).astype(float), generator.random(30) < 0.4
    wanted = [roc_auc_score(shows, scores[:, i]) for i in range(4)]
    assert auc_of_each(scores, shows).tolist() == pytest.approx(wanted)
    assert [Apart.of(scores[:, i], shows).auc for i in range(4)] == pytest.approx(wanted)
    draws = draws_of(int(shows.sum()), int((~shows).sum()), 50, 0)
    assert Apart.of(scores[:, 0], shows).again(draws).mean() == pytest.approx(wanted[0], abs=0.05)


def test_a_scale_of_the_directions_does_not_matter_and_a_seed_repeats():
    table = torch.eye(WIDTH)[:3]
    one, other = (concept_detection({"a": table * f}, recording(), LABELS, site=SITE) for f in (1, 7))
    assert np.array_equal(one["AUC"].values, other["AUC"].values)
    again = concept_detection({"a": table}, recording(), LABELS, site=SITE)
    assert act.results.identical(one, again)


def test_images_are_asked_the_same():
    glyph = act.load("glyph")
    drawn = [
        scenes.scene(9, i, shape=("circle", "cross")[i % 2] if "cross" in scenes.CLASSES else scenes.CLASSES[i % 2]) for i in range(16)
    ]
    rec = glyph.run([s.image for s in drawn], read="blocks.3.mlp.post")
    width = rec["blocks.3.mlp.post"].shape[-1]
    snmf = SNMF(torch.eye(width)[:20], Origin(site="blocks.3.mlp.post"))
    report = concept_detection({"neurons": snmf}, rec, [s.name for s in drawn])
    assert report["AUC"].values.shape == (3, 2)
    assert report["AUC"].values[2].min() > 0.5


def test_refusals():
    table = torch.eye(WIDTH)
    with pytest.raises(InputError, match=r"does not say where it belongs: give site="):
        concept_detection({"a": table}, recording(), LABELS)
    with pytest.raises(InputError, match=r"3 labels for 40 examples"):
        concept_detection({"a": table}, recording(), LABELS[:3], site=SITE)
    with pytest.raises(InputError, match=r"All examples are labelled yes"):
        concept_detection({"a": table}, recording(), ["yes"] * SENTENCES, site=SITE)
    with pytest.raises(InputError, match=r"No example is labelled 'none'"):
        concept_detection({"a": table}, recording(), LABELS, site=SITE, neutral="none")
    with pytest.raises(InputError, match=r"'rare' is shown by 1 examples"):
        concept_detection({"a": table}, recording(), ["rare", *LABELS[1:]], site=SITE)
    with pytest.raises(InputError, match=r"directions at blocks.1.mlp.post are 'feature 16'"):
        concept_detection({"a": torch.eye(3)}, recording(), LABELS, site=SITE)
    with pytest.raises(InputError, match=r"No dictionary to ask"):
        concept_detection({}, recording(), LABELS)
    with pytest.raises(UnknownSite, match=r"blocks.7"):
        concept_detection({"a": table}, recording(), LABELS, site="blocks.7.mlp.post")
