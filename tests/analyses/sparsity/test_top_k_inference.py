"""top_k_inference: against hooks set by hand, exactly nothing at full width, percentages as reached, and its refusals."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.data import scenes  # pyright: ignore[reportAttributeAccessIssue]
from activarium.errors import InputError, MissingSite

top_k_inference = act.analyses.top_k_inference
TEXTS = ["the cat sat on the mat", "Anna saw a dog", "the dog ran to the house", "a book"]


@pytest.fixture(scope="module")
def llama():
    return act.wrap(*testing.tiny("llama"), name="llama", certify=False)


def thinned_by_hand(model, k: int, blocks: list[int]) -> tuple[torch.Tensor, float]:
    """Logits row by row, one text at a time, with our own hooks on the activation function; and the share of nonzero neurons."""
    kept: list[torch.Tensor] = []

    def thin(_module, _inputs, output):
        limit = output.abs().sort(-1, descending=True).values[..., k - 1 : k]
        kept.append(torch.where(output.abs() >= limit, output, 0))
        return kept[-1]

    layers = model.torch_module.model.layers
    handles = [layers[i].mlp.act_fn.register_forward_hook(thin) for i in blocks]
    encoded = model.inputs(TEXTS)
    with torch.no_grad():
        logits = torch.cat([model.torch_module(encoded.data[""][i][None]).logits[0] for i in range(len(TEXTS))])
    for handle in handles:
        handle.remove()
    return logits, float(torch.cat([x.flatten() for x in kept]).ne(0).double().mean())


@pytest.mark.parametrize("blocks", [[0, 1], [1]])
def test_the_model_is_thinned_as_by_hooks_of_ones_own(llama, blocks: list[int]):
    report = top_k_inference(llama, TEXTS, [3], layers={"some": blocks})
    full, changed = llama.run(TEXTS)["logits"].tensor, thinned_by_hand(llama, 3, blocks)
    before, after = full.double().log_softmax(1), changed[0].double().log_softmax(1)
    assert report["KL"].curves["some"][0] == pytest.approx(float((before.exp() * (before - after)).sum(1).mean()), rel=1e-4)
    assert report["agreement"].curves["some"][0] == pytest.approx(float((before.argmax(1) == after.argmax(1)).double().mean()))
    assert report["nonzero"].curves["some"][0] == pytest.approx(100 * changed[1]) == pytest.approx(100 * 3 / 48)


def test_all_neurons_are_the_model_itself_bit_for_bit(llama):
    report = top_k_inference(llama, TEXTS, [48])
    assert report["KL"].curves["all layers"].tolist() == [0.0]
    assert report["rise of loss"].curves["all layers"].tolist() == [0.0]
    assert report["agreement"].curves["all layers"].tolist() == [1.0]
    assert report["calibration"].curves["all layers"].tolist() == [report.diagnostics["calibration error"]]
    assert report["accuracy"].curves["all layers"].tolist() == [report.diagnostics["accuracy"]]


def test_a_rectified_layer_may_have_fewer_than_k():
    model = act.wrap(*testing.tiny("opt"), certify=False)
    recorded = model.run(TEXTS, read="blocks.0.mlp.act")["blocks.0.mlp.act"].tensor
    k = 20
    report = top_k_inference(model, TEXTS, [k], layers={"first": [0]})
    wanted = 100 * float((recorded != 0).sum(1).clamp_max(k).double().mean()) / recorded.shape[1]
    assert report["nonzero"].curves["first"][0] == pytest.approx(wanted)
    assert wanted < 100 * k / recorded.shape[1]


def test_by_default_k_doubles_up_to_the_width(llama):
    report = top_k_inference(llama, TEXTS[:2])
    assert report["KL"].x.tolist() == [1, 2, 4, 8, 16, 32, 48]
    assert report["confidence bins"].values.shape == (1, 7, 15)
    known = sum(n - 1 for n in llama.inputs(TEXTS[:2]).lengths)
    assert (report["confidence bins"].values.sum(2) == known).all()


def test_images_with_labels_are_scored_and_without_are_not():
    glyph = act.load("glyph")
    images, labels = scenes.batch(scenes.TEST_SEED, 0, 8)
    report = top_k_inference(glyph, {"images": list(images), "label": labels}, [2, 512])
    blind, full = report["accuracy"].curves["all layers"]
    assert full == report.diagnostics["accuracy"] > blind
    assert report["rise of loss"].curves["all layers"][0] > 0.5
    plain = top_k_inference(glyph, list(images), [2, 512])
    assert "accuracy" not in plain.parts and "rise of loss" not in plain.parts
    assert act.identical(plain["KL"], report["KL"])


def test_intervals_hold_their_curves(llama):
    report = top_k_inference(llama, TEXTS, [1, 8])
    for part in ("KL", "rise of loss", "agreement", "accuracy"):
        low, high = report[part].bands["all layers"]
        assert (low <= report[part].curves["all layers"]).all() and (report[part].curves["all layers"] <= high).all()


def test_the_model_is_left_as_it_was(llama):
    before = llama.run(TEXTS)["logits"].tensor.clone()
    top_k_inference(llama, TEXTS, [1])
    assert torch.equal(before, llama.run(TEXTS)["logits"].tensor)


def test_both_stacks_are_thinned():
    model = act.wrap(*testing.tiny("t5"), certify=False)
    report = top_k_inference(model, {"encoder": TEXTS, "decoder": TEXTS}, [2, 48])
    assert report.diagnostics["sets"]["all layers"][0].startswith("encoder.")
    assert report["KL"].curves["all layers"][0] > 0 == report["KL"].curves["all layers"][1]


def test_what_cannot_be_answered_is_refused(llama):
    for wrong in (0, 49, 2.5):
        with pytest.raises(InputError, match=rf"how many of 48 neurons a row keeps, a whole number from 1 to 48; found {wrong}"):
            top_k_inference(llama, TEXTS, [wrong])
    with pytest.raises(InputError, match="ks= is empty"):
        top_k_inference(llama, TEXTS, [])
    with pytest.raises(InputError, match=r"set 'last' of layers \[7\] names none of \[0, 1\]"):
        top_k_inference(llama, TEXTS, layers={"last": [7]})
    with pytest.raises(MissingSite, match=r"mixtral offers no site blocks.\*.mlp.act"):
        top_k_inference(act.wrap(*testing.tiny("mixtral"), name="mixtral", certify=False), TEXTS)


def test_numbers_do_not_depend_on_batches(llama, monkeypatch):
    whole = top_k_inference(llama, TEXTS, [4])
    monkeypatch.setattr("activarium.analyses.changed_answers.AT_ONCE", 1)
    apart = top_k_inference(llama, TEXTS, [4])
    for part in ("KL", "nonzero", "calibration"):
        assert np.allclose(whole[part].curves["all layers"], apart[part].curves["all layers"], rtol=1e-4)
