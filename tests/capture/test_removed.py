"""Blocks that do not run: the same answers as when they run in vain, and a model that is as before afterwards."""

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import SkipBlock
from activarium.errors import InputError, SilentHook, UnknownName

TEXTS = testing.texts()


def wrapped(family):
    return act.wrap(*testing.tiny(family), certify=False)


def runs_of(model, path):
    """How often a module runs, counted by a hook of its own first child that has weights."""
    count = [0]
    inside = next(m for n, m in model.module(path).named_modules() if n and not list(m.children()) and list(m.parameters()))

    def counted(*_):
        count[0] += 1

    return count, inside.register_forward_hook(counted)


@pytest.mark.parametrize("blocks", [["blocks.0"], ["blocks.1"], ["blocks.0", "blocks.1"]])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert", "albert", "vit", "dinov2"])
def test_answers_are_those_of_skipping(family, blocks):
    model = wrapped(family)
    data = testing.images() if family in ("vit", "dinov2") else TEXTS
    answer = next(n for n in ("logits", "final_norm", "blocks.*.resid_post") if n in model.sites or "*" in n)
    skipped = model.run(data, read=answer, edits=[SkipBlock(b) for b in blocks])
    before = model.run(data, read=answer)
    with model.removed(blocks):
        removed = model.run(data, read=answer)
    after = model.run(data, read=answer)
    for name in skipped:
        assert torch.equal(removed[name].tensor, skipped[name].tensor), name
        assert torch.equal(after[name].tensor, before[name].tensor), name
    last = list(skipped)[-1]
    assert not torch.equal(removed[last].tensor, before[last].tensor)


def test_a_removed_block_does_not_run_and_runs_again_afterwards():
    model = wrapped("llama")
    path = model.anatomy.stacks[""].blocks[1].path
    count, handle = runs_of(model, path)
    with model.removed(["blocks.1"]):
        rec = model.run(TEXTS, read=["blocks.1.resid_pre", "blocks.1.resid_post"])
        assert count == [0]
        with pytest.raises(SilentHook, match="blocks.1.* did not fire"):
            model.run(TEXTS, read="blocks.1.mlp.out")
    assert torch.equal(rec["blocks.1.resid_pre"].tensor, rec["blocks.1.resid_post"].tensor)
    model.run(TEXTS)
    assert count == [1]
    handle.remove()


def test_the_model_is_as_before_however_it_ends():
    model = wrapped("gpt2")
    before = model.run(TEXTS).logits.tensor
    with pytest.raises(KeyboardInterrupt), model.removed(["blocks.0"]):
        raise KeyboardInterrupt
    assert "forward" not in model.module("transformer.h.0").__dict__
    assert torch.equal(model.run(TEXTS).logits.tensor, before)


def test_removals_nest():
    model = wrapped("gpt2")
    with model.removed(["blocks.0", "blocks.2"]):
        both = model.run(TEXTS).logits.tensor
    with model.removed(["blocks.2"]):
        with model.removed(["blocks.0"]):
            assert torch.equal(model.run(TEXTS).logits.tensor, both)
        assert not torch.equal(model.run(TEXTS).logits.tensor, both)


def test_refusals():
    model = wrapped("llama")
    with pytest.raises(UnknownName, match="blocks.7"), model.removed(["blocks.7"]):
        pass
    with model.removed(["blocks.0"]), pytest.raises(InputError, match="blocks.0 is removed, so it would leave a hole in the cache"):
        model.generate(TEXTS, 2)
    assert len(model.generate(TEXTS, 1).ids) == len(TEXTS)
    with pytest.raises(InputError, match="hands on more than the stream"), wrapped("t5").removed(["decoder.blocks.0"]):
        pass
