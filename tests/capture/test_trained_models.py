"""Trained models that nobody tuned to this code: they certify, and what is read off them agrees with what is known of them."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act

SHARED = Path(__file__).parents[3] / "shared"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="third-party models are not on this machine (../shared/models)"),
]


@pytest.mark.parametrize(
    "name",
    [
        "stories260K",
        "vit-mnist-10",
        "rxnmapper-albert",
        "gpt2-nano-sort",
        "shakespeare-gpt2-series/step1600",
        "shakespeare-gpt2-series/step0",
    ],
)
def test_trained_model_certifies(name):
    assert act.load(SHARED / "models" / name).certificate.verdict.startswith("certified (full")


def test_sorting_model_sorts_all_729_inputs():
    model = act.load(SHARED / "models" / "gpt2-nano-sort", certify=False)
    given = torch.tensor(list(product(range(3), repeat=6)))
    wanted = given.sort(dim=1).values
    ids = torch.cat([given, wanted[:, :5]], dim=1)
    logits = model.run(ids).logits.tensor.reshape(729, 11, 3)
    assert torch.equal(logits[:, 5:].argmax(-1), wanted)


def test_digits_are_read_as_published():
    """97.21 % on the whole test set; on 200 images the interval is wide."""
    model = act.load(SHARED / "models" / "vit-mnist-10", certify=False)
    with np.load(SHARED / "corpora" / "mnist" / "mnist_sample200.npz", allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    images = next(v for v in arrays.values() if v.ndim >= 3)
    labels = next(v for v in arrays.values() if v.ndim == 1)
    logits = model.run(list(images)).logits
    assert logits.axes == ("example", "class") and logits.shape == (200, 10)
    assert (logits.tensor.argmax(-1).numpy() == labels).mean() >= 0.94


def test_story_is_likely_and_shuffled_story_is_not():
    model = act.load(SHARED / "models" / "stories260K", certify=False)
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."

    def loss(ids):
        logits = model.run([ids.tolist()]).logits.tensor
        return float(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]))

    ids = model.inputs(text).data[""][0]
    shuffled = torch.cat([ids[:1], ids[1:][torch.randperm(len(ids) - 1, generator=torch.Generator().manual_seed(0))]])
    assert loss(ids) < 2.0 < loss(shuffled)


def test_sorting_model_sorts_while_it_writes():
    """All 729 inputs in one batch with the cache, and the rows read on the way are those of one forward."""
    model = act.load(SHARED / "models" / "gpt2-nano-sort", certify=False)
    given = torch.tensor(list(product(range(3), repeat=6)))
    made = model.generate(given, max_new_tokens=5, read=["blocks.*.attn.z", "logits"])
    assert torch.equal(torch.stack(made.ids), given.sort(dim=1).values[:, :5])
    clean = model.run(made.inputs, read="blocks.*.attn.z")
    for name in ("blocks.*.attn.z", "logits"):
        assert torch.allclose(made.recording[name].tensor, clean[name].tensor, atol=1e-4, rtol=1e-5)


def test_stories_of_different_length_go_on_as_transformers_alone_writes_them():
    model = act.load(SHARED / "models" / "stories260K", certify=False)
    texts = ["Once upon a time, there was a little girl named Lily.", "Tom had a red", "One day"]
    made = model.generate(texts, max_new_tokens=40, read=["blocks.*.resid_post", "blocks.*.attn.pattern"])
    for text, ids in zip(texts, made.ids, strict=True):
        alone = torch.tensor([model.tokenizer(text)["input_ids"]])
        theirs = model.torch_module.generate(alone, max_new_tokens=40, do_sample=False, attention_mask=torch.ones_like(alone))
        assert torch.equal(ids, theirs[0, alone.shape[1] :])
    clean = model.run(made.inputs, read=["blocks.*.resid_post", "blocks.*.attn.pattern"])
    for layer in range(len(model.anatomy.stacks[""].blocks)):
        ours, theirs = (r[f"blocks.{layer}.resid_post"].tensor for r in (made.recording, clean))
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5
        for tile in made.recording[f"blocks.{layer}.attn.pattern"].tiles(queries=16):
            wanted = clean[f"blocks.{layer}.attn.pattern"].example(tile.example, heads=tile.heads, queries=tile.queries).tensor
            assert torch.allclose(tile.values, wanted, atol=1e-5)
