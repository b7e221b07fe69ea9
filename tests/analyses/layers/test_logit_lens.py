"""logit_lens: two layers by hand, agreement with transformers, exactness of the last layer, patches, refusals."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

import activarium as act
from activarium.activations import Activations
from activarium.errors import InputError, NotFinite, UnknownName, UnknownSite
from activarium.recording import Recording
from activarium.rows import Rows

logit_lens = act.analyses.logit_lens
HALF = float(np.log(2))


def text_rows(*words: str) -> Rows:
    n = len(words)
    columns = {"example": np.zeros(n, int), "position": np.arange(n), "token": np.arange(n), "text": np.array(words, dtype=object)}
    return Rows(columns | {"kind": np.full(n, "token", dtype=object)})


def image_rows() -> Rows:
    kinds = np.array(["cls", "patch", "patch", "patch", "patch"], dtype=object)
    text = np.array(["cls", "0,0", "0,1", "1,0", "1,1"], dtype=object)
    grid = {"y": np.array([-1, 0, 0, 1, 1]), "x": np.array([-1, 0, 1, 0, 1])}
    return Rows({"example": np.zeros(5, int), "position": np.arange(5), "token": np.full(5, -1), "text": text, "kind": kinds} | grid)


def recorded(rows: Rows, *layers: list[list[float]], logits: list[list[float]] | None = None) -> Recording:
    sites = {
        f"blocks.{i}.resid_post": Activations(torch.tensor(h), "row d_model", site=f"blocks.{i}.resid_post", index=rows)
        for i, h in enumerate(layers)
    }
    if logits is not None:
        sites["logits"] = Activations(torch.tensor(logits), "row vocab", site="logits", index=rows)
    return Recording(sites, {"": rows})


def identity(**more: object) -> SimpleNamespace:
    return SimpleNamespace(name="identity", readout=lambda resid: resid, **more)


def test_two_layers_by_hand():
    recording = recorded(text_rows("a", "b"), [[0.0, 0.0], [0.0, HALF]], [[0.0, HALF], [HALF, 0.0]])
    report = logit_lens(recording, identity(class_names=("no", "yes")))
    assert report["probability"].values == pytest.approx(np.array([[1 / 2, 1 / 3], [2 / 3, 2 / 3]]))
    assert report["rank"].values.tolist() == [[1, 2], [1, 1]]
    assert report["entropy"].values[0, 0] == pytest.approx(HALF)
    assert report["kl"].values[1].tolist() == [0, 0]
    assert report["kl"].values[0, 1] == pytest.approx(HALF / 3)  # 2/3 ln 2 - 1/3 ln 2
    assert report["probability"].diagnostics["answers"].tolist() == [["no", "yes"], ["yes", "no"]]
    assert "At position 1 ('b'), 'no' is the top answer from blocks.1 on" in report.words[0]


def test_the_next_token_is_followed_up_to_the_last_one():
    recording = recorded(text_rows("a", "b"), [[0.0, HALF], [0.0, 0.0]], [[HALF, 0.0], [0.0, 0.0]])
    report = logit_lens(recording, identity(), target="next")  # token 1 follows token 0
    assert report["probability"].values[:, 0] == pytest.approx([2 / 3, 1 / 3])
    assert np.isnan(report["probability"].values[:, 1]).all()
    assert np.isnan(report["rank"].values[:, 1]).all()


def test_patches_are_asked_for_the_class_of_the_cls_row():
    before = [[0.0, 0.0, 0.0]] * 5
    after = [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [6.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]
    picture = np.zeros((4, 4, 3), np.uint8)
    report = logit_lens(recorded(image_rows(), before, after), identity(class_names=["disc", "ring", "star"]), image=picture)
    assert report["evidence"].values[1].tolist() == [2, -1, 4, 0, -1]
    assert report["patches"].values[1].tolist() == [[-1, 4], [0, -1]]
    assert report["overlay"].values.shape == (2, 2, 2)
    assert report["overlay"].image.shape == (4, 4, 3)
    assert report["probability"].title == "Probability of 'disc'"
    assert report["kl"].values[1, 0] == 0
    assert report["kl"].values[1, 1] > 0
    assert "the patch with most evidence for 'disc' is 0,1" in report.words[-1]


def test_a_class_can_be_chosen_by_name_or_number():
    recording = recorded(image_rows(), [[0.0, 0.0, 9.0]] * 5)
    model = identity(class_names=["disc", "ring", "star"])
    by_name, by_number = logit_lens(recording, model, target="ring"), logit_lens(recording, model, target=1)
    assert np.array_equal(by_name["rank"].values, by_number["rank"].values)
    assert (by_name["rank"].values == 2).all()


@pytest.fixture(scope="module")
def language() -> act.capture:  # type: ignore[valid-type]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60, n_positions=32, n_embd=32, n_layer=3, n_head=4, initializer_range=0.3, bos_token_id=None, eos_token_id=None
    )
    return act.wrap(GPT2LMHeadModel(config).eval())


TEXTS = [[3, 4, 5, 6, 7], [8, 9]]
SITES = ["embed", "blocks.*.resid_post", "logits"]


def test_the_last_layer_is_the_models_own_answer_exactly(language):
    recording = language.run([TEXTS[0]], read=SITES)
    report = logit_lens(recording, language)
    assert report.diagnostics["largest difference from the model's logits"] == 0.0
    logits = recording.logits.example(0).tensor
    assert report["probability"].values[-1].tolist() == logits.softmax(1).max(1).values.double().tolist()
    assert (report["kl"].values[-1] == 0).all()
    assert (report["rank"].values[-1] == 1).all()


def test_it_agrees_with_transformers_hidden_states(language):
    report = logit_lens(language.run(TEXTS, read=SITES), language, example=1)
    model = language.torch_module
    with torch.no_grad():
        hidden = model(torch.tensor([TEXTS[1]]), output_hidden_states=True).hidden_states[:-1]  # the last one is normed already
        shares = torch.stack([model.lm_head(model.transformer.ln_f(h[0])).softmax(1) for h in hidden])
        final = model(torch.tensor([TEXTS[1]])).logits[0].argmax(1)
    assert report["probability"].label("layer") == ["embed", "blocks.0", "blocks.1", "blocks.2"]
    assert report["probability"].values[:-1] == pytest.approx(shares[:, [0, 1], final].double().numpy(), abs=1e-5)
    entropy = -(shares * shares.log()).sum(-1)
    assert report["entropy"].values[:-1] == pytest.approx(entropy.double().numpy(), abs=1e-5)


def test_a_vision_transformer_answers_at_its_cls_row_exactly():
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=5
    )
    model = act.wrap(ViTForImageClassification(config).eval())
    recording = model.run(torch.randn(2, 3, 16, 16), read=["blocks.*.resid_post", "logits"])
    report = logit_lens(recording, model, example=1)
    assert report.diagnostics["largest difference from the model's logits"] <= 1e-6
    assert report["patches"].values.shape == (2, 4, 4)
    assert report["evidence"].values[1, 0] == pytest.approx(
        float(recording.logits.tensor[1].max() - recording.logits.tensor[1].mean()), abs=1e-5
    )


def test_another_model_is_noticed(language):
    torch.manual_seed(1)
    other = act.wrap(
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=32, n_embd=32, n_layer=3, n_head=4, initializer_range=0.3)).eval()
    )
    with pytest.raises(InputError, match=r"last layer's readout differs from the recorded logits by .* with this very model"):
        logit_lens(language.run(TEXTS, read=SITES), other)


def test_missing_last_layers_are_noticed(language):
    with pytest.raises(InputError, match=r"Read all of blocks.\*.resid_post"):
        logit_lens(language.run(TEXTS, read=["blocks.{0,1}.resid_post", "logits"]), language)


def test_heads_that_pool_are_refused():
    pooling = SimpleNamespace(name="mean pooler", readout=lambda resid: resid.mean(0, keepdim=True))
    with pytest.raises(InputError, match=r"The readout of mean pooler gave shape .* Heads that pool several rows have no logit lens"):
        logit_lens(recorded(text_rows("a", "b"), [[0.0, 1.0], [1.0, 0.0]]), pooling)


def test_an_image_without_cls_is_refused():
    rows = image_rows().take(slice(1, 5))
    with pytest.raises(InputError, match="patches have no cls row"):
        logit_lens(recorded(rows, [[0.0, 1.0]] * 4), identity())


def test_several_stacks_are_refused_with_the_way_out():
    rows = text_rows("a")
    sites = {
        n: Activations(torch.ones(1, 2), "row d_model", site=n, index=rows)
        for n in ("vision.blocks.0.resid_post", "text.blocks.0.resid_post")
    }
    with pytest.raises(InputError, match=r"has the stacks 'vision' and 'text'; the lens reads one. Pass it: rec\['vision.blocks"):
        logit_lens(Recording(sites, {"vision": rows, "text": rows}), identity())


def test_an_unknown_class_is_answered_with_the_known_ones():
    with pytest.raises(UnknownName, match=r"No class called 'rng'. Did you mean 'ring'"):
        logit_lens(recorded(image_rows(), [[0.0, 1.0]] * 5), identity(class_names=["disc", "ring"]), target="rng")


def test_an_id_out_of_range_is_refused():
    with pytest.raises(InputError, match="target=7 is no answer of this model: its ids go from 0 to 1"):
        logit_lens(recorded(text_rows("a"), [[0.0, 1.0]]), identity(), target=7)


def test_patches_have_no_next_token():
    with pytest.raises(InputError, match="'next' asks for the next token; these rows are patches"):
        logit_lens(recorded(image_rows(), [[0.0, 1.0]] * 5), identity(), target="next")


def test_a_strange_image_is_described():
    with pytest.raises(InputError, match=r"should be uint8 \(height, width, 3\) or a PIL image; found float64 \(4, 4, 3\)"):
        logit_lens(recorded(image_rows(), [[0.0, 1.0]] * 5), identity(), image=np.zeros((4, 4, 3)))


def test_nan_is_named():
    with pytest.raises(NotFinite, match=r"blocks.0.resid_post holds 1 NaN"):
        logit_lens(recorded(text_rows("a"), [[0.0, float("nan")]]), identity())


def test_no_answers_and_no_sites_are_refused():
    with pytest.raises(InputError, match="top=0 lists no answers"):
        logit_lens(recorded(text_rows("a"), [[0.0, 1.0]]), identity(), top=0)
    with pytest.raises(UnknownSite, match=r"no site 'blocks.\*.resid_post'"):
        logit_lens(recorded(text_rows("a")), identity())
