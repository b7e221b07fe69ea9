"""A small vision–language model: both stacks readable, and an image keeps its grid inside the text."""

import functools

import pytest
import torch
import transformers

import activarium as act
from activarium.errors import InputError, SilentHook
from activarium.testing import census

IMAGE = 99


@functools.cache
def llava():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=16),
        text_config=transformers.LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=100, max_position_embeddings=64),
        image_token_index=IMAGE,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    census.fresh(model, "llava")
    return act.wrap(model, name="llava")


def pixels(seed=0):
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


TEXTS = [[5, IMAGE, 6, 7], [IMAGE, 8]]


def test_both_stacks_are_certified():
    model = llava()
    assert model.certificate.verdict.startswith("certified (full")
    assert set(model.certificate.algebra) == {"vision", "text"}
    assert {n for n in model.sites.missing if not n.endswith("mlp.up")} == set()


def test_image_rows_keep_their_grid():
    rec = llava().run({"text": TEXTS, "pixel_values": pixels()}, read=["text.blocks.*.resid_post", "vision.blocks.0.resid_post"])
    rows = rec.rows["text"]
    assert rows.columns == ["example", "position", "token", "text", "kind", "y", "x"]
    assert rows["kind"].tolist() == ["token", *["image"] * 16, "token", "token", *["image"] * 16, "token"]
    first = rows["example"] == 0
    grid = [(y, x) for y in range(4) for x in range(4)]
    assert list(zip(rows["y"][first], rows["x"][first], strict=True)) == [(-1, -1), *grid, (-1, -1), (-1, -1)]
    assert rec.rows["vision"]["kind"].tolist()[:2] == ["cls", "patch"]
    assert rec["text.blocks.0.resid_post"].shape == (36, 32)
    assert rec["vision.blocks.0.resid_post"].shape == (34, 32)


def test_rows_are_those_of_a_plain_forward():
    model = llava()
    rec = model.run({"text": TEXTS[:1], "pixel_values": pixels()[:1]}, read=["text.blocks.*.resid_post", "text.embed"])
    ids = torch.tensor([[5, *[IMAGE] * 16, 6, 7]])
    with torch.no_grad():
        plain = model.torch_module(input_ids=ids, pixel_values=pixels()[:1], output_hidden_states=True)
    assert torch.allclose(rec["text.blocks.0.resid_post"].tensor, plain.hidden_states[1][0], atol=1e-5)
    assert torch.allclose(rec.logits.tensor, plain.logits[0], atol=1e-5)


def test_what_one_patch_says_stands_at_its_place():
    """Another pixel in one patch changes the projected row at that patch's place in the grid, and no other before attention mixes them."""
    model = llava()
    other = pixels().clone()
    other[0, :, 8:16, 16:24] += 1.0
    read = ["text.embed", "vision.token_embed"]
    a, b = (model.run({"text": TEXTS, "pixel_values": p}, read=read) for p in (pixels(), other))
    changed = (a["vision.token_embed"].tensor != b["vision.token_embed"].tensor).any(-1)
    rows = a["vision.token_embed"].index
    assert [(int(rows["y"][i]), int(rows["x"][i])) for i in changed.nonzero().flatten()] == [(1, 2)]


def test_texts_without_an_image_run_alone():
    rec = llava().run({"text": [[5, 6, 7]]}, read="text.blocks.1.resid_post")
    assert rec.rows["text"]["kind"].tolist() == ["token"] * 3
    with pytest.raises(SilentHook, match="vision.blocks.0.resid_post did not fire"):
        llava().run({"text": [[5, 6, 7]]}, read="vision.blocks.0.resid_post")


def test_images_and_image_tokens_must_match():
    with pytest.raises(
        InputError, match=r"Text 0 holds 0 image tokens \(id 99\) for its image of 16 rows; write the token once, or 16 times"
    ):
        llava().run({"text": [[5, 6]], "pixel_values": pixels()[:1]})
    with pytest.raises(InputError, match=r"Text 0 holds 1 image tokens \(id 99\), but no image was given"):
        llava().run({"text": [[5, IMAGE]]})
    with pytest.raises(InputError, match="There are 1 texts and 2 images; give one image for each text"):
        llava().run({"text": [[5, IMAGE]], "pixel_values": pixels()})
