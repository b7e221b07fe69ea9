"""Ragged inputs: the same rows whatever the padding, no pad ever a row, and bad input refused with words."""

import copy
import warnings

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.errors import InputError

TEXT = ["gpt2", "llama", "mistral", "qwen3", "gemma2", "gpt_neox", "opt", "phi", "bert"]
RAGGED = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15]]


def padded(side):
    width = max(map(len, RAGGED))
    ids, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    for i, row in enumerate(RAGGED):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_left_right_and_one_by_one_give_the_same_rows(family, dtype, gap):
    hf, tokenizer = testing.tiny(family)
    model = act.wrap(copy.deepcopy(hf).to(dtype), tokenizer, certify=False)
    sites = ["blocks.*.resid_post", "blocks.*.attn.z", "blocks.*.mlp.post"]
    left, right = (model.run(padded(side), read=sites) for side in ("left", "right"))
    alone = [model.run([row], read=sites) for row in RAGGED]
    for name in left:
        single = torch.cat([a[name].tensor for a in alone])
        assert len(left[name]) == sum(map(len, RAGGED))
        assert torch.equal(left[name].tensor, right[name].tensor)
        assert float((left[name].tensor - single).abs().max() / single.abs().max()) <= gap, name


def test_rows_name_every_token_once():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    rows = model.run(padded("left")).rows[""]
    assert rows["token"].tolist() == sum(RAGGED, [])
    assert rows["example"].tolist() == [0] * 7 + [1] * 3 + [2]
    assert rows["position"].tolist() == [*range(7), *range(3), 0]


def test_bos_policy_is_explicit():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    text = testing.texts()[0]
    own, without, forced = (model.inputs(text, bos=b) for b in ("tokenizer", False, True))
    begin = model.tokenizer.bos_token_id
    assert own.data[""][0][0] == begin and without.data[""][0][0] != begin
    assert torch.equal(own.data[""][0], forced.data[""][0])  # never twice
    assert own.describe()["bos"] == "tokenizer" and without.describe()["bos"] is False
    assert model.run(text).rows[""]["kind"][0] == "bos"
    with pytest.raises(InputError, match="is no policy"):
        model.inputs(text, bos="maybe")
    bare = act.wrap(*testing.tiny("bert"), certify=False)
    bare.tokenizer.bos_token = None
    with pytest.raises(InputError, match="this tokenizer has none"):
        bare.inputs(text, bos=True)


def test_special_rows_are_marked():
    model = act.wrap(*testing.tiny("bert"), certify=False)
    kinds = model.run(testing.texts()[0]).rows[""]["kind"].tolist()
    assert kinds[0] == "cls" and kinds[-1] == "special" and set(kinds[1:-1]) == {"token"}


@pytest.mark.parametrize(
    ("family", "prefix"), [("vit", ["cls"]), ("dinov2", ["cls"]), ("dinov2_registers", ["cls", "register", "register", "register"])]
)
def test_image_rows_have_grid_cls_and_registers(family, prefix):
    model = act.wrap(*testing.tiny(family), certify=False)
    space = model._encoder.spaces[""]
    rows = model.run(torch.randn(2, *space.image)).rows[""]
    height, width = space.image[1] // space.patch[0], space.image[2] // space.patch[1]
    one = rows.take(rows.span(1))
    assert one["kind"].tolist() == prefix + ["patch"] * (height * width)
    patches = one.take(np.flatnonzero(one["kind"] == "patch"))
    assert [(int(y), int(x)) for y, x in zip(patches["y"], patches["x"], strict=True)] == [
        (y, x) for y in range(height) for x in range(width)
    ]


def test_patch_rows_are_row_major():
    """Change one patch of the picture: only its row of the patch embedding changes."""
    model = act.wrap(*testing.tiny("vit"), certify=False)
    space = model._encoder.spaces[""]
    image = torch.randn(1, *space.image)
    other = image.clone()
    p, q = space.patch
    other[:, :, p : 2 * p, 2 * q : 3 * q] += 1  # patch y=1, x=2
    before, after = (model.run(i, read="token_embed")["token_embed"] for i in (image, other))
    changed = (before.tensor != after.tensor).any(-1).nonzero().flatten().tolist()
    assert len(changed) == 1
    assert (before.index["y"][changed[0]], before.index["x"][changed[0]]) == (1, 2)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "Text 0 is empty: a text needs at least one token"),
        (["fine", "  "], "Text 1 is empty"),
        ([], "empty; give at least one"),
        ([[]], "is empty: a text needs at least one token"),
        ([[5, 10_000]], r"Text 0 holds token id 10000; this model knows ids 0 to \d+"),
        ([[-1]], "holds token id -1"),
        ([list(range(3, 30)) * 4], r"Text 0 has 108 tokens; this model has 64 positions"),
        ({"picture": 1}, "No input called 'picture'. Known: "),
        ({"images": [np.zeros((4, 4, 3), np.uint8)]}, "is for vision; this model takes text"),
        (np.zeros((4, 4, 3), np.uint8), "cannot be fed to this model, which takes text"),
    ],
)
def test_bad_text_is_refused_with_words(data, words):
    model = act.wrap(*testing.tiny("llama"), certify=False)
    with pytest.raises(InputError, match=words):
        model.run(data)


def test_text_without_a_tokenizer():
    hf, _ = testing.tiny("llama")
    with pytest.raises(InputError, match="wrapped without a tokenizer"):
        act.wrap(hf, certify=False).run("hello")


def test_bad_images_are_refused_with_words():
    from PIL import Image

    hf, processor = testing.tiny("vit")
    model = act.wrap(hf, processor, certify=False)
    _, height, width = model._encoder.spaces[""].image
    with pytest.raises(InputError, match="has mode 'L'; this model takes 'RGB'"):
        model.run(Image.new("L", (width, height)))
    with pytest.raises(InputError, match="has mode 'RGBA'"):
        model.run([Image.new("RGBA", (width, height))])
    with pytest.raises(InputError, match=r"Image 0 has shape \(4, 4\); wanted"):
        model.run(np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match="holds float64; wanted uint8"):
        model.run(np.zeros((height, width, 3)))
    with pytest.raises(InputError, match=r"Images reach the model with shape \(3, 5, 5\)"):
        model.run(torch.randn(1, 3, 5, 5))
    with pytest.raises(InputError, match="NaN or infinity"):
        model.run(torch.full((1, 3, height, width), float("nan")))
    processor.do_resize = False
    with pytest.raises(InputError, match="its processor does not resize"):
        model.run(np.zeros((height + 1, width, 3), np.uint8))


def test_selection_keeps_example_numbers_and_hash_tells_data_apart():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    inputs = model.inputs(RAGGED)
    assert inputs.lengths.tolist() == [7, 3, 1]
    assert model.run(inputs.select([2, 0])).rows[""].examples == [2, 0]
    assert inputs.hash == model.inputs(RAGGED).hash != model.inputs(RAGGED[:2]).hash


def test_two_bos_tokens_are_told_of():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    begin = model.tokenizer.bos_token_id
    with pytest.warns(UserWarning, match=r"1 of 2 texts begin with two BOS tokens \(text 1 first\).*pass bos=False"):
        model.inputs(["the cat", "<bos> the cat"])  # the tokenizer adds another
    with pytest.warns(UserWarning, match="1 of 1 texts begin with two BOS tokens"):
        model.run([[begin, begin, 9]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.inputs(["<bos> the cat"], bos=False).data[""][0][:2].tolist() != [begin, begin]
        model.inputs([[begin, 9, begin, begin], [begin]])
