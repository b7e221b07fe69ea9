"""Neuron factors: planted ones with their words, errors by hand, equal codes for all, text and images."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.analyses.features._neuron_factors import neuron_factors
from activarium.analyses.features.equal_codes import left_with
from activarium.dictionaries import SNMF, controls
from activarium.errors import InputError, UnknownSite

SITE = "blocks.1.mlp.post"
WORDS = ("cat", "king", "book")


def planted(examples=24, long=5, width=20, noise=0.02):
    """Each word has a factor of its own; the last row of an example is a sum of two."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.zeros(3, width)
    for i in range(3):
        factors[i, 4 * i : 4 * i + 4] = torch.tensor([1.0, -1.0, 0.5, 2.0])
    kinds = torch.randint(3, (examples * long,), generator=generator)
    rows = factors[kinds] * (0.5 + torch.rand(len(kinds), 1, generator=generator)) + noise * torch.randn(
        len(kinds), width, generator=generator
    )
    text = np.array([WORDS[k] for k in kinds], dtype=object)
    return testing.recording_of({SITE: rows}, example=np.repeat(np.arange(examples), long), text=text)


def test_planted_factors_get_their_words_and_leave_nothing():
    report = neuron_factors(planted(), SITE, features=(1, 3), share=0.2, active=(1, 2), restarts=3)
    assert {t.split()[0] for t in report["factors"].columns["tokens"]} == set(WORDS)
    assert all(
        f"[{t.split()[0]}]" in c for t, c in zip(report["factors"].columns["tokens"], report["factors"].columns["contexts"], strict=True)
    )
    curve = report["error by size"].curves["SNMF"]
    assert curve[1] < 0.02 < curve[0]
    codes = report["error by active codes"]
    assert codes.curves["SNMF"][0] < 0.02
    assert codes.curves["SNMF"][0] < codes.curves["principal components"][0] + 0.05
    for name, band in codes.bands.items():
        assert (band[0] <= codes.curves[name] + 1e-12).all() and (codes.curves[name] <= band[1] + 1e-12).all()


def test_equal_codes_by_hand():
    snmf = SNMF(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    rows = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    left = left_with(snmf, rows, [1, 2])
    # Row 0: codes (1.25, 1.25); of equal ones the first is kept, and refitted it leaves (0, 1). Row 1: only the second, which leaves 9 − 2.4².
    assert left[:, 0].tolist() == pytest.approx([1.0, 9 - 2.4**2], abs=1e-6)
    assert left[:, 1].tolist() == pytest.approx([0.0, 9 - 2.4**2], abs=1e-6)
    eye = controls.identity(2)
    assert left_with(eye, rows, [1]).tolist() == [[pytest.approx(1.0)], [pytest.approx(0.0, abs=1e-6)]]


def test_text_with_a_model_and_another_dictionary():
    model = act.load("scribe")
    recording = model.run(testing.texts(4) * 2, read=SITE)
    report = neuron_factors(recording, SITE, model, features=(4,), active=(1, 4), others={"identity": controls.identity(512)}, contexts=2)
    assert all(len(words.split()) == 2 for words in report["factors"].columns["promotes"])
    assert set(report["error by active codes"].curves) == {"SNMF", "principal components", "identity"}
    assert "identity" in " ".join(report.words)


def test_images_are_patches_in_words():
    glyph = act.load("glyph")
    recording = glyph.run(testing.images(6, size=64), read="blocks.3.mlp.post")
    report = neuron_factors(recording, "blocks.3.mlp.post", glyph, features=(3,), active=(1,), contexts=1)
    assert all(words.startswith("image ") for words in report["factors"].columns["contexts"])


def test_refusals():
    with pytest.raises(InputError, match=r"rows of 2 examples; at least 4 are needed"):
        neuron_factors(planted(examples=2), SITE, features=(2,))
    with pytest.raises(InputError, match=r"give numbers from 1"):
        neuron_factors(planted(), SITE, features=())
    with pytest.raises(InputError, match=r"'x' reads 3 numbers and writes 3; blocks.1.mlp.post has 20"):
        neuron_factors(planted(), SITE, features=(2,), others={"x": controls.identity(3)})
    with pytest.raises(UnknownSite, match=r"blocks.9"):
        neuron_factors(planted(), "blocks.9.mlp.post")
