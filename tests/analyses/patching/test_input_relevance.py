"""input_relevance: against finite differences, conservation leaf by leaf, completeness of paths, text and images, refusals."""

import copy
import warnings

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import Scale, Where
from activarium.errors import InputError, UnknownName
from activarium.metrics import Metric, class_logit, log_probability, logit_difference

input_relevance = act.analyses.input_relevance
TEXTS = ["Anna gave Tom the book .", "the cat sat on the red house"]
METRIC = logit_difference([7, 9], [11, 13])


def double(family, **values):
    hf, processor = testing.tiny(family, **values)
    return act.wrap(copy.deepcopy(hf).double(), processor, name=family, certify=False)


@pytest.fixture(scope="module")
def gpt2():
    return double("gpt2")


def leaf_sum(found):
    """Rows of every kind and biases, as they are listed."""
    return sum(v for n, v in found.diagnostics.items() if n.endswith(" rows") or n == "biases")


def test_gradient_times_input_is_the_slope_when_a_row_grows(gpt2):
    found = input_relevance(gpt2, TEXTS, METRIC, method="gradient_x_input", example=1)
    assert found.tokens == tuple(TEXTS[1].split())
    for position in (0, 3, 6):
        where, h = Where(examples=(1,), positions=(position,)), 1e-5
        high, low = (
            gpt2.run(TEXTS, metrics=METRIC, edits=[Scale("embed", 1 + s * h, where=where)]).metric["logit_difference"][1].item()
            for s in (1, -1)
        )
        assert found.values[0, position] == pytest.approx((high - low) / (2 * h), rel=1e-6, abs=1e-9)


def test_relp_with_frozen_attention_adds_up_to_the_metric(gpt2):
    found = input_relevance(gpt2, TEXTS, METRIC)
    metric = gpt2.run(TEXTS, metrics=METRIC).metric["logit_difference"][0].item()
    assert found.diagnostics["metric"] == pytest.approx(metric, rel=1e-12)
    assert found.values.sum() + found.diagnostics["biases"] == pytest.approx(metric, rel=1e-9)
    assert abs(found.diagnostics["remainder"]) < 1e-9
    assert abs(found.diagnostics["biases"]) > 0.01  # without this leaf nothing would add up
    assert found.diagnostics["conservation"].startswith("conserved: embeddings")
    assert (found.diagnostics["rule norms"], found.diagnostics["rule activations"], found.diagnostics["rule attention"]) == (7, 3, 3)


@pytest.mark.parametrize("method", ["relp", "attnlrp", "gim", "ln", "ln-id", "gradient_x_input"])
def test_other_methods_say_what_is_left_over(gpt2, method):
    found = input_relevance(gpt2, TEXTS, METRIC, method=method)
    assert f"{method} does not promise it, relp-ah does" in found.diagnostics["conservation"]
    assert abs(found.diagnostics["remainder"]) > 1e-3
    assert leaf_sum(found) + found.diagnostics["remainder"] == pytest.approx(found.diagnostics["metric"])


def test_a_metric_that_is_not_linear_in_the_logits_is_not_conserved(gpt2):
    found = input_relevance(gpt2, TEXTS, log_probability([7, 9]))
    assert "log_probability may not be linear in the logits" in found.diagnostics["conservation"]
    assert found.unit == "nats"


def test_one_input_has_the_same_relevance_alone_and_among_others(gpt2):
    for method in ("relp-ah", "integrated_gradients"):
        among = input_relevance(gpt2, TEXTS, METRIC, method=method, example=1)
        alone = input_relevance(gpt2, TEXTS[1], METRIC.select([1]), method=method)
        assert np.allclose(among.values, alone.values, rtol=1e-9, atol=1e-12)
        assert among.tokens == alone.tokens


def test_rows_after_the_answer_have_none(gpt2):
    found = input_relevance(gpt2, TEXTS, logit_difference([7, 9], [11, 13], position=2))
    assert np.abs(found.values[0, :3]).min() > 0
    assert (found.values[0, 3:] == 0).all()


def quiet(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return input_relevance(*arguments, **options)


def test_integrated_gradients_are_complete_and_better_with_more_steps(gpt2):
    fine = input_relevance(gpt2, TEXTS, METRIC, method="integrated_gradients", steps=160)
    change = fine.diagnostics["metric at the input"] - fine.diagnostics["metric at the baseline"]
    assert fine.diagnostics["metric"] == pytest.approx(change)
    assert fine.values.sum() == pytest.approx(change, rel=1e-3)
    errors = [quiet(gpt2, TEXTS, METRIC, method="integrated_gradients", steps=m).diagnostics["completeness_error"] for m in (20, 40, 80)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]  # midpoint sums: a quarter with twice the steps
    assert errors[2] > fine.diagnostics["completeness_error"]


def test_the_baseline_has_positions_and_no_words(gpt2):
    found = quiet(gpt2, TEXTS, METRIC, method="integrated_gradients")
    hf = copy.deepcopy(gpt2.torch_module)
    with torch.no_grad():
        ids = torch.tensor([gpt2.tokenizer(TEXTS[0])["input_ids"]])
        logits = hf(inputs_embeds=torch.zeros(1, ids.shape[1], 32, dtype=torch.float64)).logits[0, -1]
    assert found.diagnostics["metric at the baseline"] == pytest.approx((logits[7] - logits[11]).item())


def test_too_few_steps_are_told(gpt2):
    with pytest.warns(UserWarning, match=r"Integrated gradients miss \d+% of the metric's change with steps=1; take more steps"):
        input_relevance(gpt2, TEXTS, METRIC, method="integrated_gradients", steps=1)


@pytest.mark.parametrize(
    ("family", "kinds"), [("vit", {"cls rows", "patch rows"}), ("dinov2_registers", {"cls rows", "register rows", "patch rows"})]
)
def test_an_image_has_its_patches_in_place_and_its_other_rows_listed(family, kinds):
    model, images = double(family), testing.images(2)
    found = input_relevance(model, images, class_logit([1, 2]), example=1)
    assert found.values.shape == (1, 4, 4)
    assert np.array_equal(found.image, images[1])
    assert kinds == {n for n in found.diagnostics if n.endswith(" rows")}
    assert found.values.sum() == pytest.approx(found.diagnostics["patch rows"])
    assert abs(found.diagnostics["remainder"]) < 1e-9 * max(1, abs(found.diagnostics["biases"]))
    model_rows = model.run(images, metrics=class_logit([1, 2]), grad=True, read="embed", rules="relp-ah")
    by_hand = (model_rows.backward()["embed"].tensor * model_rows["embed"].tensor).sum(-1).detach()[-1]  # the last patch
    assert found.values[0, -1, -1] == pytest.approx(by_hand.item())
    path = quiet(model, images, class_logit([1, 2]), method="integrated_gradients", example=1)
    assert path.diagnostics["cls rows"] == 0  # the baseline keeps it


def test_an_encoder_and_a_decoder_are_both_leaves():
    model = double("t5_gated")
    data = {"encoder": TEXTS, "decoder": [torch.tensor([20, 31]), torch.tensor([42, 53, 64])]}
    found = input_relevance(model, data, METRIC)
    assert len(found.tokens) == 7  # six words and the end
    other = input_relevance(model, data, METRIC, space="decoder", example=1)
    assert len(other.tokens) == len(model.inputs(data).data["decoder"][1])
    kinds = {n for n in found.diagnostics if n.endswith(" rows")}
    assert {k.split()[0] for k in kinds} == {"encoder", "decoder"}
    assert abs(found.diagnostics["remainder"]) < 1e-5 * abs(leaf_sum(found))  # T5's norms compute in float32


def test_two_towers_measure_one_picture():
    model, images = double("clip"), testing.images(2)
    data = {"images": images, "text": TEXTS}
    metric = logit_difference([0, 1], [1, 0])
    found = input_relevance(model, data, metric, method="gradient_x_input", example=1)
    wanted = model.run(data, metrics=metric).metric["logit_difference"][1].item()
    assert found.diagnostics["metric"] == pytest.approx(wanted)
    assert found.values.shape == (1, 4, 4)
    rec = model.run(data, metrics=metric, grad=True, read="vision.embed")
    rows = (rec.backward()["vision.embed"].tensor * rec["vision.embed"].tensor).sum(-1).detach()
    assert np.allclose(found.values[0].ravel(), rows[-16:])  # the second picture's


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bert", "t5_gated", "vit"])
def test_secants_are_complete(family):
    model = double(family)
    if family == "vit":
        data, metric = testing.images(2), class_logit([1, 2])
    else:
        data, metric = {"encoder": TEXTS, "decoder": [torch.tensor([20, 31])] * 2} if family == "t5_gated" else TEXTS, METRIC
    found = input_relevance(model, data, metric, method="deeplift", example=1)
    assert found.diagnostics["completeness_error"] < 1e-4  # some norms compute in float32
    path = quiet(model, data, metric, method="integrated_gradients", example=1, steps=1)
    for name in ("metric at the input", "metric at the baseline"):
        assert found.diagnostics[name] == pytest.approx(path.diagnostics[name])
    rows = sum(v for n, v in found.diagnostics.items() if n.endswith(" rows"))
    change = found.diagnostics["metric at the input"] - found.diagnostics["metric at the baseline"]
    assert rows == pytest.approx(change, rel=1e-4)
    assert not np.allclose(found.values, path.values, rtol=1e-2)


def test_two_towers_have_no_secants():
    data = {"images": testing.images(2), "text": TEXTS}
    with pytest.raises(InputError, match=r"clip has parts that no secant passes: embeddings are brought to length one"):
        input_relevance(double("clip"), data, logit_difference([0, 1], [1, 0]), method="deeplift")


def test_what_cannot_be_bound_is_said():
    model = act.wrap(*testing.tiny("mixtral"), name="mixtral", certify=False)
    found = input_relevance(model, TEXTS, METRIC)
    assert "shows no neurons" in found.diagnostics["conservation"]
    assert "not conserved" in found.diagnostics["conservation"]


def test_bundled_models_conserve():
    scribe = act.load("scribe", certify=False)
    text = "when Anna and Tom went to the store , Tom gave the book to"
    answer, foil = (scribe.tokenizer(w)["input_ids"][-1] for w in ("Anna", "Tom"))
    found = input_relevance(scribe, [text], logit_difference([answer], [foil]))
    assert found.diagnostics["conservation"].startswith("conserved")


def test_messages(gpt2):
    with pytest.raises(UnknownName, match=r"No method of input relevance called 'relpah'. Did you mean 'relp-ah'"):
        input_relevance(gpt2, TEXTS, METRIC, method="relpah")
    with pytest.raises(InputError, match="example=5; there are 2 inputs, counted from 0"):
        input_relevance(gpt2, TEXTS, METRIC, example=5)
    with pytest.raises(InputError, match="steps=0 makes no path"):
        input_relevance(gpt2, TEXTS, METRIC, method="integrated_gradients", steps=0)
    with pytest.raises(UnknownName, match="No row space among these inputs called 'decoder'"):
        input_relevance(gpt2, TEXTS, METRIC, space="decoder")
    with pytest.raises(InputError, match="float16"):
        input_relevance(act.wrap(copy.deepcopy(gpt2.torch_module).half(), gpt2.tokenizer, certify=False), TEXTS, METRIC)
    vit = act.wrap(*testing.tiny("vit"), certify=False)
    with pytest.raises(InputError, match="the picture is not among them. Give it: image=picture"):
        input_relevance(vit, vit.inputs(testing.images(1)), class_logit([1]))
    with pytest.raises(InputError, match="gave"):
        input_relevance(gpt2, TEXTS, Metric(lambda x: x.sum()))
