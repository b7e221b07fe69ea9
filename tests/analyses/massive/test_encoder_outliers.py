"""encoder_outliers: planted patches, both kinds of attention by hand, the layer a model uses, and a biased pass that sees nothing else."""

import numpy as np
import pytest
import torch
import transformers

import activarium as act
from activarium import testing
from activarium.analyses.massive._encoder_outliers import _rows_of, _unseen
from activarium.analyses.massive.contrast import hidden, image_positions
from activarium.edits import Add, Where
from activarium.errors import InputError, UnknownName
from activarium.rows import Rows

from .planted_llava import IMAGE, TEXTS, inputs, llava

encoder_outliers = act.analyses.encoder_outliers
PLANTED = {0: ((1, 2), (3, 3)), 1: ((0, 0), (2, 1))}


def planted(block: int = 1):
    """In one block of the encoder the class token looks at two patches of each image."""
    return [
        Add(f"vision.blocks.{block}.attn.scores", torch.tensor(8.0), where=Where(examples=(e,), positions=(0,), keys=(1 + 4 * y + x,)))
        for e, places in PLANTED.items()
        for y, x in places
    ]


@pytest.fixture(scope="module")
def report():
    with llava().edited(planted()):
        return encoder_outliers(llava(), inputs(), top_k=2, image=testing.images(1)[0])


def test_the_planted_patches_and_no_other(report):
    columns = report["patches"].columns
    found = {e: {(y, x) for a, y, x in zip(columns["example"], columns["y"], columns["x"], strict=True) if a == e} for e in PLANTED}
    assert found == {e: set(places) for e, places in PLANTED.items()}
    assert report["answers"].columns["tokens"].tolist() == [2, 2]
    assert report["overlay"].values.shape == (1, 4, 4)


def test_the_layer_is_the_one_whose_output_the_model_uses(report):
    """The configuration says -2 of four states (embedding and three blocks): the output of block 1."""
    assert report.diagnostics["layer"] == 1
    model = llava()
    rec = model.run(inputs(), read="vision.blocks.1.resid_post")
    with torch.no_grad():
        states = model.torch_module.model.vision_tower(inputs()["pixel_values"], output_hidden_states=True).hidden_states
    assert torch.allclose(states[-2].flatten(0, 1), rec["vision.blocks.1.resid_post"].tensor, atol=1e-5)
    with model.edited(planted(block=2)):
        other = encoder_outliers(model, inputs(), top_k=2)
        there = encoder_outliers(model, inputs(), top_k=2, layer=2)
    places = {(y, x) for y, x in zip(there["patches"].columns["y"], there["patches"].columns["x"], strict=True)}
    assert places == {p for ps in PLANTED.values() for p in ps}
    assert other["patches"].values.max() < there["patches"].values.max()


def test_both_kinds_of_attention_by_hand():
    model = llava()
    rec = model.run(inputs(), read=[f"vision.blocks.1.attn.{leaf}" for leaf in ("q", "k", "pattern")])
    rows = rec.rows["vision"].span(0)
    q, k = (rec[f"vision.blocks.1.attn.{leaf}"].tensor[rows] for leaf in "qk")
    separate = torch.stack([(q[0, h] @ k[:, h].T / q.shape[2] ** 0.5).softmax(0) for h in range(q.shape[1])]).mean(0)[1:].reshape(4, 4)
    joint = (q[0].flatten() @ k.flatten(1).T / q[0].numel() ** 0.5).softmax(0)[1:].reshape(4, 4)
    assert not torch.allclose(separate, joint, atol=1e-3)
    assert encoder_outliers(model, inputs())["attention"].values == pytest.approx(separate.numpy(), abs=1e-5)
    assert encoder_outliers(model, inputs(), merged=True)["attention"].values == pytest.approx(joint.numpy(), abs=1e-5)


def test_the_biased_pass_sees_the_outliers_alone():
    """Whatever stands at the other image rows, no text row changes; at the outliers it does."""
    model = llava()
    encoded = model.inputs(inputs())
    positions = image_positions(encoded.batch.rows["text"])
    seen = {0: (3, 9), 1: (2,)}
    edits = [e for n in (0, 1) for e in _unseen("text.", 5, hidden(seen, positions))(n)]
    noise = torch.randn(512, generator=torch.Generator().manual_seed(1))
    plain = model.run(encoded, read="logits", edits=edits)["logits"]
    elsewhere = [
        Add("text.embed", noise, strength=50.0, where=Where(examples=(e,), positions=h)) for e, h in hidden(seen, positions).items()
    ]
    at_them = [Add("text.embed", noise, strength=50.0, where=Where(examples=(e,), positions=s)) for e, s in seen.items()]
    text = torch.from_numpy(plain.index["kind"].astype(str) == "token")
    text[[0, 20, 21]] = False  # before their images there is nothing to see
    assert torch.equal(model.run(encoded, read="logits", edits=[*elsewhere, *edits])["logits"].tensor[text], plain.tensor[text])
    assert (model.run(encoded, read="logits", edits=[*at_them, *edits])["logits"].tensor[text] != plain.tensor[text]).any(1).all()


def test_one_image_row_may_stand_for_several_patches():
    kinds = np.array(["token", *["image"] * 4], dtype=object)
    rows = Rows({"example": np.zeros(5, int), "kind": kinds, "y": np.array([-1, 0, 0, 1, 1]), "x": np.array([-1, 0, 1, 0, 1])})
    positions = np.array([1, 2, 3, 4])
    assert _rows_of(rows, 0, positions, np.array([[0, 1], [3, 0], [2, 1]]), (4, 4), "m") == (1, 3)
    assert _rows_of(rows, 0, positions, np.array([[1, 1]]), (2, 2), "m") == (4,)
    bare = Rows({"example": np.zeros(5, int), "kind": kinds, "y": np.full(5, -1), "x": np.full(5, -1)})
    with pytest.raises(InputError, match="image rows of example 0 have no grid"):
        _rows_of(bare, 0, positions, np.array([[0, 0]]), (4, 4), "m")


def test_all_patches_seen_is_no_bias():
    report = encoder_outliers(llava(), inputs(), top_k=16, beta=0.0)
    assert report["answers"].values == pytest.approx([0, 0], abs=1e-9)
    assert not report["answers"].columns["changed"].any()


def test_an_encoder_without_a_class_token_is_refused():
    sizes = {"num_attention_heads": 4, "intermediate_size": 48, "hidden_size": 32, "num_hidden_layers": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**sizes, image_size=32, patch_size=8),
        text_config=transformers.LlamaConfig(**sizes, vocab_size=100, max_position_embeddings=64),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
    )
    model = act.wrap(transformers.LlavaForConditionalGeneration(config).eval(), certify=False)
    with pytest.raises(InputError, match="has no class token \\(rows: patch\\)"):
        encoder_outliers(model, inputs())


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(InputError, match="top_k=0 patches leave nothing to see"):
        encoder_outliers(llava(), inputs(), top_k=0)
    with pytest.raises(InputError, match="layer=3 is none of the encoder's 3 blocks"):
        encoder_outliers(llava(), inputs(), layer=3)
    with pytest.raises(InputError, match="alpha=1.0, beta=3"):
        encoder_outliers(llava(), inputs(), beta=3)
    with pytest.raises(InputError, match="llava was given no image"):
        encoder_outliers(llava(), {"text": [[5, 6]]})
    with pytest.raises(UnknownName, match="No example called '9'"):
        encoder_outliers(llava(), inputs(TEXTS), example=9)
