"""What branches share is left out, and their metric is that of whole forwards; the counters say how much was run."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.branches import Branches, run_whole
from activarium.metrics import Metric, logit_difference

from .lens_models import hooked

TEXTS = ["the cat saw Anna now", "Tom gave the book to Anna"]
OTHERS = ["the cat saw Tom now", "Tom gave the cup to Anna"]
TEXT_FAMILIES = ["gpt2", "llama", "mistral", "qwen3", "gemma2", "gpt_neox", "phi", "opt", "gptj", "bert", "albert"]
METRIC = logit_difference([7, 9], [8, 12])


def make(family, **values):
    net, tokenizer = testing.tiny(family, **values)
    return act.wrap(net.double(), tokenizer, certify=False)


def branches(model, site, clean, corrupt, position=None, part=None):
    """Every row of every example a branch of its own, or all rows together."""
    base, source = model.run(clean, read=site)[site].tensor, model.run(corrupt, read=site)[site].tensor
    lengths = model.inputs(clean).lengths
    starts = np.r_[0, np.cumsum(lengths)[:-1]]
    if position == "all":
        example, position = np.arange(len(lengths)), np.full(len(lengths), -1)
    else:
        example = np.repeat(np.arange(len(lengths)), lengths)
        position = np.concatenate([np.arange(n) for n in lengths])
    parts = np.full(len(example), -1 if part is None else part)
    return Branches(site, example, position, parts, base, source, starts, lengths)


def pixels(model, seed):
    image = model._encoder.spaces[""].image
    return {"pixel_values": torch.randn(2, *image, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}


@pytest.mark.parametrize("family", [*TEXT_FAMILIES, "vit", "dinov2_registers"])
def test_branches_are_whole_forwards(family):
    model = make(family)
    clean, corrupt = (TEXTS, OTHERS) if family in TEXT_FAMILIES else (pixels(model, 0), pixels(model, 1))
    metric = METRIC if family in TEXT_FAMILIES else logit_difference([0, 1], [2, 3])
    sites = [
        n for n in ("resid_pre", "resid_mid", "resid_post", "attn.out", "mlp.out", "mlp.post", "mlp.in") if f"blocks.1.{n}" in model.sites
    ]
    made = [branches(model, f"blocks.{i}.{n}", clean, corrupt, position) for n in sites for i in (0, 1) for position in (None, "all")]
    if "blocks.0.attn.z" in model.sites:
        made += [branches(model, f"blocks.{i}.attn.{n}", clean, corrupt, part=1) for i in (0, 1) for n in "qkvz"]
    made.append(branches(model, "embed", clean, corrupt))
    inputs = model.inputs(clean)
    found, spent = model.branches(inputs, made, metric)
    assert spent["reuse"].startswith("blocks") and spent["block_rows"] < spent["whole_block_rows"]
    for one, mine, wanted in zip(made, found, run_whole(model, inputs, made, metric), strict=True):
        assert np.abs(mine - wanted).max() < 1e-9 * max(1.0, np.abs(wanted).max()), one.site


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("family", ["t5", "t5_gated"])
def test_branches_of_two_stacks(family, stack):
    """Two examples of one length in one walk: each decoder must be given the encoder of its own example."""
    model = make(family)
    decoder = ["the cat", "a dog"]
    clean = {"encoder": ["the cat saw Anna", "Tom gave the book"], "decoder": decoder}
    corrupt = {"encoder": ["the dog saw Tom", "Anna took the book"], "decoder": decoder}
    made = []
    for name in ("resid_pre", "resid_mid", "attn.out", "mlp.out", "mlp.post", *(("cross.out", "cross.q") if stack == "decoder" else ())):
        site = f"{stack}.blocks.1.{name}"
        base, source = model.run(clean, read=site)[site].tensor, model.run(corrupt, read=site)[site].tensor
        lengths = model.inputs(clean).rows_of(stack)
        example = np.repeat(np.arange(2), lengths)
        position = np.concatenate([np.arange(n) for n in lengths])
        part = np.full(len(example), 1 if name == "cross.q" else -1)
        made.append(Branches(site, example, position, part, base, source, np.r_[0, np.cumsum(lengths)[:-1]], lengths))
    inputs = model.inputs(clean)
    found, spent = model.branches(inputs, made, METRIC)
    assert spent["reuse"] == "blocks"
    for one, mine, wanted in zip(made, found, run_whole(model, inputs, made, METRIC), strict=True):
        assert np.abs(mine - wanted).max() < 1e-9 * max(1.0, np.abs(wanted).max()), one.site
        assert len({round(float(w), 9) for w in wanted}) > 3  # each branch does something of its own


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_a_transformer_lens_model_is_branched_as_well():
    pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
    net, tokenizer = hooked("gpt2")
    model = act.wrap(net, tokenizer, certify=False)
    made = [branches(model, f"blocks.1.{n}", TEXTS, OTHERS) for n in ("resid_pre", "attn.out", "mlp.out", "mlp.post")]
    found, spent = model.branches(TEXTS, made, METRIC)
    assert spent["reuse"] == "blocks"
    for mine, wanted in zip(found, run_whole(model, model.inputs(TEXTS), made, METRIC), strict=True):
        assert np.abs(mine - wanted).max() < 1e-4


def test_rows_that_blocks_are_run_on_are_counted():
    """By hand: three blocks, five positions, the texts differ at position 2 only."""
    model = make("gpt2")
    clean, corrupt = ["the cat saw Anna now"], ["the cat gave Anna now"]
    made = [branches(model, f"blocks.{i}.resid_pre", clean, corrupt) for i in range(3)]
    _, spent = model.branches(model.inputs(clean), made, logit_difference([7], [8]))
    # Before block 0 only row 2 differs: it and its two successors go through three blocks. Above, rows 2, 3, 4 leave one by one.
    assert spent["block_rows"] == 3 * 3 + (3 + 2 + 1) * 2 + (3 + 2 + 1) * 1
    assert spent["idle"] == 4 + 2 + 2
    assert spent["reuse"] == "blocks and positions"
    vit = make("vit")
    made = [branches(vit, f"blocks.{i}.resid_pre", pixels(vit, 0), pixels(vit, 1)) for i in range(2)]
    _, spent = vit.branches(vit.inputs(pixels(vit, 0)), made, logit_difference([0, 1], [2, 3]))
    # Patches look both ways, so all 17 rows are run; the class token is the same in both before block 0.
    assert spent["block_rows"] == 2 * (16 * 2 + 17 * 1) * 17 and spent["idle"] == 2


def test_little_memory_gives_the_same_in_more_walks():
    model = make("llama")
    made = [branches(model, f"blocks.{i}.attn.out", TEXTS, OTHERS) for i in range(2)]
    found, spent = model.branches(TEXTS, made, METRIC)
    again, more = model.branches(TEXTS, made, METRIC, memory=1)
    assert more["walks"] > spent["walks"] and more["block_rows"] == spent["block_rows"]
    assert all(np.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(found, again, strict=True))


def test_metrics_of_several_positions_and_of_all_logits():
    model = make("gpt2")
    made = [branches(model, "blocks.1.resid_pre", TEXTS, OTHERS)]
    inputs = model.inputs(TEXTS)
    for metric in (
        Metric(lambda x: x[:, 0, 3] - x[:, 1, 4], position=(-2, -1), name="two rows"),
        Metric(lambda x: x.log_softmax(-1)[:, 5], name="all logits"),
        Metric(lambda x: x[:, 2], position=np.array([3, 5]), name="one row each"),
    ):
        wanted = run_whole(model, inputs, made, metric)[0]
        assert np.allclose(model.branches(inputs, made, metric)[0][0], wanted, rtol=0, atol=1e-10), metric.name


def test_what_cannot_be_shared_is_run_whole_and_said():
    bloom = make("bloom")
    made = [branches(bloom, "blocks.1.resid_pre", TEXTS, OTHERS)]
    inputs = bloom.inputs(TEXTS)
    with pytest.warns(UserWarning, match="Every cell is run as a whole forward"):
        found, spent = bloom.branches(inputs, made, METRIC)
    assert spent["reuse"].startswith("none: the blocks do not take")
    assert np.allclose(found[0], run_whole(bloom, inputs, made, METRIC)[0])
    gpt2 = make("gpt2")
    made = [branches(gpt2, "blocks.1.resid_pre", TEXTS, OTHERS)]
    with gpt2.edited(act.edits.Zero("blocks.0.mlp.out")):
        found, spent = gpt2.branches(TEXTS, made, METRIC)
        wanted = run_whole(gpt2, gpt2.inputs(TEXTS), made, METRIC)
    assert spent["reuse"] == "none: the model runs with edits" and np.array_equal(found[0], wanted[0])


def test_a_control_that_differs_is_not_hidden():
    """A model whose blocks depend on how many examples there are cannot be run in parts."""
    model = make("gpt2")
    block = model.torch_module.transformer.h[1]
    handle = block.register_forward_hook(lambda module, args, output: output * (1 + 0.1 * (len(args[0]) > 1)))
    made = [branches(model, "blocks.0.resid_pre", TEXTS, OTHERS)]
    try:
        with pytest.warns(UserWarning, match="an untouched example gives .* in parts .* in one forward"):
            _, spent = model.branches(TEXTS, made, METRIC)
    finally:
        handle.remove()
    assert spent["reuse"].startswith("none")


def test_the_model_is_left_as_it_was_also_after_an_error():
    model = make("gpt2")
    before = {
        n: (id(m.__dict__.get("forward")), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.torch_module.named_modules()
    }
    made = [branches(model, f"blocks.1.{n}", TEXTS, OTHERS) for n in ("resid_pre", "mlp.post")]
    model.branches(TEXTS, made, METRIC)

    def fails(logits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.branches(TEXTS, made, Metric(fails))
    after = {
        n: (id(m.__dict__.get("forward")), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.torch_module.named_modules()
    }
    assert after == before
