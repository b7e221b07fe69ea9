"""Patterns while the model runs its own kernel: equal to transformers' eager attention, tile by tile, whatever the mask."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import activarium as act
from activarium import testing
from activarium.attention import AttentionSpec, attention_part, scores_and_pattern
from activarium.capture._masks import Span, describe
from activarium.errors import AxisError, InputError, StoreError

RAGGED = [[20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41, 42, 43, 44, 45]]
TEXT = [
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt_neox", "opt", "phi", "mixtral", "bert", "distilbert", "albert", "t5",
    "t5_gated",
]  # fmt: skip
PICTURES = ["vit", "dinov2", "dinov2_registers", "siglip", "clip"]
QUICK = ("llama", "gemma2", "t5", "clip", "bert")


def few(names):
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


def gpt_oss():
    import transformers

    config = transformers.GptOssConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_local_experts=4, num_experts_per_tok=2, sliding_window=4, max_position_embeddings=64, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    return built(transformers.GptOssForCausalLM, config)


def modernbert():
    """Every second layer looks four positions to both sides."""
    import transformers

    config = transformers.ModernBertConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, local_attention=4,
        global_attn_every_n_layers=2, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, max_position_embeddings=64,
    )  # fmt: skip
    return built(transformers.ModernBertForMaskedLM, config)


def llama4():
    """Attention in chunks: causal, but no window."""
    import transformers

    config = transformers.Llama4TextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attention_chunk_size=4, no_rope_layers=[1, 0], interleave_moe_layer_step=10, moe_layers=[],
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return built(transformers.Llama4ForCausalLM, config)


def beit():
    """A learned bias for every pair of patches, handed over as the mask."""
    import transformers

    config = transformers.BeitConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8, num_labels=5,
        use_relative_position_bias=True,
    )  # fmt: skip
    return built(transformers.BeitForImageClassification, config)


def built(kind, config):
    torch.manual_seed(0)
    model = kind(config).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return model


def eager(hf, **arguments):
    """What transformers' own eager attention answers."""
    twin = copy.deepcopy(hf)
    twin.set_attn_implementation("eager")
    with torch.no_grad():
        return twin(**arguments, output_attentions=True)


def padded(texts, pad=0):
    width = max(map(len, texts))
    ids = torch.tensor([t + [pad] * (width - len(t)) for t in texts])
    mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts])
    return {"input_ids": ids, "attention_mask": mask}


# Further up, the rounding of two kernels has gone through whole blocks; run both with one kernel and 1e-6 holds everywhere.
FIRST, DRIFTED = 1e-6, 5e-6


def same(rec, name, weights, lengths, keys=None, kernel="eager"):
    """Every example's pattern against the padded weights `example head query key` of the reference."""
    first = kernel == "eager" or (".0." in name and ".cross." not in name)
    for e, n in enumerate(lengths):
        theirs = weights[e, :, :n, : (keys or lengths)[e]]
        assert torch.allclose(rec[name].example(e).tensor, theirs, atol=FIRST if first else DRIFTED, rtol=0), f"{name}, example {e}"
        assert float(theirs.max()) > 1.2 / theirs.shape[-1]  # a uniform pattern would prove nothing


@pytest.mark.parametrize("kernel", ["its own", "eager"])
@pytest.mark.parametrize("family", few(TEXT))
def test_text_patterns_equal_eager_ones_in_a_ragged_batch(family, kernel):
    hf, tokenizer = testing.tiny(family)
    if kernel == "eager":
        hf.set_attn_implementation("eager")
    model = act.wrap(hf, tokenizer, certify=False)
    lengths = [len(t) for t in RAGGED]
    if family.startswith("t5"):
        starts = [[0, 9, 10], [0, 11], [0, 12, 13]]
        rec = model.run({"encoder": RAGGED, "decoder": starts}, read=["encoder.blocks.*.attn.pattern", "decoder.blocks.*.*.pattern"])
        given, decoder = padded(RAGGED), padded(starts)
        out = eager(hf, **given, **{f"decoder_{k}": v for k, v in decoder.items()})
        short = [len(t) for t in starts]
        for i, weights in enumerate(out.encoder_attentions):
            same(rec, f"encoder.blocks.{i}.attn.pattern", weights, lengths, kernel=kernel)
        for i, (own, cross) in enumerate(zip(out.decoder_attentions, out.cross_attentions, strict=True)):
            same(rec, f"decoder.blocks.{i}.attn.pattern", own, short, kernel=kernel)
            same(rec, f"decoder.blocks.{i}.cross.pattern", cross, short, lengths, kernel)
        return
    rec = model.run(RAGGED, read="blocks.*.attn.pattern")
    out = eager(hf, **padded(RAGGED))
    for i, weights in enumerate(out.attentions):
        same(rec, f"blocks.{i}.attn.pattern", weights, lengths, kernel=kernel)


@pytest.mark.parametrize("kernel", ["its own", "eager"])
@pytest.mark.parametrize("family", few(PICTURES))
def test_picture_patterns_equal_eager_ones(family, kernel):
    hf, processor = testing.tiny(family)
    if kernel == "eager":
        hf.set_attn_implementation("eager")
    model = act.wrap(hf, processor, certify=False)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    towers = family in ("clip", "siglip")
    prefix = "vision." if towers else ""
    data = {"pixel_values": pixels} | ({"text": RAGGED} if family == "clip" else {})
    rec = model.run(data, read=[f"{p}blocks.*.attn.pattern" for p in ([prefix, "text."] if family == "clip" else [prefix])])
    weights = eager(hf.vision_model if towers else hf, pixel_values=pixels).attentions
    for i, theirs in enumerate(weights):
        same(rec, f"{prefix}blocks.{i}.attn.pattern", theirs, [theirs.shape[-1]] * 3, kernel=kernel)
    if family == "clip":  # its text is causal and says so in is_causal alone
        for i, theirs in enumerate(eager(hf.text_model, **padded(RAGGED)).attentions):
            same(rec, f"text.blocks.{i}.attn.pattern", theirs, [len(t) for t in RAGGED], kernel=kernel)
            assert (rec[f"text.blocks.{i}.attn.pattern"].example(0).tensor.triu(1) == 0).all()


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        (gpt_oss, False),
        pytest.param(modernbert, True, marks=pytest.mark.slow),
        (llama4, True),
        pytest.param(beit, True, marks=pytest.mark.slow),
    ],
)
def test_other_masks_and_sinks_equal_eager_ones(build, kept):
    hf = build()
    model = act.wrap(hf, certify=False)
    if build is beit:
        data = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
        given, lengths = data, [17, 17]
    else:
        data, given, lengths = RAGGED, padded(RAGGED), [len(t) for t in RAGGED]
    rec = model.run(data, read="blocks.*.attn.pattern")
    for i, weights in enumerate(eager(hf, **given).attentions):
        same(rec, f"blocks.{i}.attn.pattern", weights, lengths, kernel="its own")
    assert any(spec.mask is not None for spec in rec.attention.values()) == kept
    if build is gpt_oss:
        total = rec["blocks.0.attn.pattern"].example(0).tensor.sum(-1)
        assert (total < 0.999).any() and (total > 0).all()  # what is missing went into the sinks


def test_attention_outside_the_interface_is_refused_by_name():
    """BLOOM's ALiBi never passes the attention interface."""
    model = act.wrap(*testing.tiny("bloom"), name="bloom", certify=False)
    with pytest.raises(
        LookupError, match="bloom has no site 'blocks.0.attn.pattern': its attention does not pass through the attention interface"
    ):
        model.run(RAGGED, read="blocks.0.attn.pattern")


def test_an_arbitrary_additive_mask_is_kept_exactly():
    """Against softmax by hand: numbers between 0 and minus infinity count, per example and per head."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 5, 4, generator=generator), torch.randn(2, 3, 5, 4, generator=generator)
    mask = torch.randn(2, 3, 5, 5, generator=generator)
    mask[:, :, 0, 3] = torch.finfo(torch.float32).min
    spans = [Span(0, slice(0, 5), slice(0, 5)), Span(1, slice(0, 3), slice(0, 3))]
    spec = describe(torch.nn.Identity(), q, k, mask, {}, False, spans)
    for span in spans:
        n = span.queries.stop
        ours = scores_and_pattern(q[span.row, :, :n].transpose(0, 1), k[span.row, :, :n].transpose(0, 1), spec, example=span.row)[1]
        wanted = (q[span.row, :, :n] @ k[span.row, :, :n].mT / 2 + mask[span.row, :, :n, :n]).softmax(-1)
        assert torch.allclose(ours, wanted, atol=1e-7)
    assert not spec.causal and spec.mask is not None
    assert describe(torch.nn.Identity(), q, k, mask[:, :1] * 0, {}, False, spans).mask is None  # hides nothing, adds nothing
    with pytest.raises(InputError, match="This attention has mask, which JSON cannot hold"):
        spec.to_json()


# --- tiles


@pytest.mark.parametrize("build", ["mistral", "gemma2", "t5", gpt_oss, llama4])
def test_tiles_put_together_are_the_whole(build):
    hf, tokenizer = testing.tiny(build) if isinstance(build, str) else (build(), None)
    model = act.wrap(hf, tokenizer, certify=False)
    prefix = "encoder." if build == "t5" else ""
    read = [f"{prefix}blocks.*.attn.pattern", f"{prefix}blocks.*.attn.scores"]
    rec = model.run({"encoder": RAGGED} if prefix else RAGGED, read=read)
    for name in (f"{prefix}blocks.1.attn.pattern", f"{prefix}blocks.0.attn.scores"):
        whole = [torch.zeros_like(rec[name].example(e).tensor) for e in range(3)]
        for tile in rec[name].tiles(queries=2, heads=3):
            assert tile.values.shape[0] <= 3 and tile.values.shape[1] <= 2
            whole[tile.example][tile.heads, tile.queries] = tile.values
        for e, put_together in enumerate(whole):
            assert torch.allclose(put_together, rec[name].example(e).tensor, atol=1e-6)
    stack = rec[f"{prefix}blocks.*.attn.pattern"]
    tile = list(stack.tiles(queries=3))[1]
    assert torch.allclose(tile.values, stack.example(0).tensor[:, tile.heads, tile.queries], atol=1e-6) and tile.queries == slice(3, 6)


def test_chosen_heads_and_queries_of_one_example():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    pattern = model.run(["the cat sat on the book", "Anna saw Tom"], read="blocks.0.attn.pattern")["blocks.0.attn.pattern"]
    whole, part = pattern.example(0), pattern.example(0, heads=2, queries=slice(1, 4))
    assert part.shape == (1, 3, 7) and torch.allclose(part.tensor, whole.tensor[2:3, 1:4])
    assert part.labels["query"] == ["the", "cat", "sat"] and len(part.labels["key"]) == 7
    assert torch.allclose(pattern.example(1, queries=-1).tensor, pattern.example(1).tensor[:, -1:])
    rows = model.run(["the cat"], read="embed")["embed"]
    with pytest.raises(AxisError, match="heads= and queries= choose from 'head query key' only"):
        rows.example(0, heads=1)
    with pytest.raises(AxisError, match="only 'head query key' comes in tiles"):
        next(rows.tiles())
    with pytest.raises(InputError, match="ask for tiles before choosing an example"):
        next(whole.tiles())


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made while it watches."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in given]
        self.bytes = max([self.bytes, *(t.numel() * t.element_size() for t in made)])
        return out


@pytest.mark.parametrize("what", ["scores", "pattern"])
def test_a_tile_never_makes_anything_larger_than_itself(what):
    """Grouped heads, soft-cap, window, bias, sinks and a mask of its own, all at once; 64 queries of 1000 keys."""
    generator = torch.Generator().manual_seed(0)
    n, heads = 1000, 4
    q, k = (torch.randn(n, h, 16, generator=generator) for h in (heads, 2))
    spec = AttentionSpec(
        0.25, True, 300, 2.0, torch.randn(heads, n, n, generator=generator), torch.randn(heads, generator=generator),
        torch.rand(1, 1, n, n, generator=generator) > 0.1,
    )  # fmt: skip
    part = attention_part(what, lambda: q, lambda: k, (heads, n, n), spec, q.dtype, 0)
    with Largest() as seen:
        tile = part.tile(slice(1, 2), slice(512, 576))
    assert tile.shape == (1, 64, n) and seen.bytes == tile.numel() * 4
    with Largest() as seen:
        whole = part.load()
    assert seen.bytes == whole.numel() * 4 and torch.allclose(tile, whole[1:2, 512:576], atol=1e-6)


# --- stores


@pytest.mark.parametrize("build", ["mistral", gpt_oss, llama4, pytest.param(modernbert, marks=pytest.mark.slow)])
def test_stored_tiles_equal_live_ones(tmp_path, build):
    hf, tokenizer = testing.tiny(build) if isinstance(build, str) else (build(), None)
    model = act.wrap(hf, tokenizer, certify=False)
    texts = [*RAGGED, [50, 51]]  # too short to show a mask of its own
    live = model.run(texts, read=["blocks.*.attn.pattern"])
    for to in (None, tmp_path / "patterns.acts"):
        stored = act.capture(model, texts, "blocks.*.attn.pattern", to=to, progress=False, batch_tokens=16)
        for name in ("blocks.0.attn.pattern", "blocks.1.attn.pattern"):
            tiles = list(stored[name].tiles(queries=4))
            assert sorted({t.example for t in tiles}) == [0, 1, 2, 3]
            for tile in tiles:
                wanted = live[name].example(tile.example, heads=tile.heads, queries=tile.queries)
                assert torch.allclose(tile.values, wanted.tensor, atol=1e-6)


def test_a_mask_that_differs_between_examples_is_not_stored(tmp_path):
    from activarium.store._constants import describe as entries

    specs = {"blocks.0.attn": AttentionSpec(1.0, False, mask=torch.ones(2, 1, 3, 3))}
    with pytest.raises(StoreError, match=r"blocks.0.attn has another mask for every example, which a store cannot keep"):
        entries(specs, {"blocks.0.attn.q_rot": 0, "blocks.0.attn.k_rot": 0}, {})
    assert entries(specs, {"blocks.0.attn.z": 0}, {}) == {}
