"""What is read while a model writes equals one clean forward over what it wrote."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.activations import Activations
from activarium.capture._runner import TorchRunner
from activarium.capture._steps import Steps
from activarium.edits import Add, Scale, SkipBlock, Where, Zero
from activarium.errors import InputError, SilentHook

PROMPTS = [[20, 21, 22, 23, 24, 25], [30, 31], [40, 41, 42, 43]]
FAMILIES = ["gpt2", "llama", "mistral", "gemma2", "gpt_neox", "opt", "qwen3", "phi", "mixtral", "bloom", "gptj"]
QUICK = ("gpt2", "llama", "mistral")
FEW = [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]


@pytest.fixture(scope="module")
def llama():
    return act.wrap(*testing.tiny("llama"), name="llama", certify=False)


def wrapped(family):
    return act.wrap(*testing.tiny(family), name=family, certify=False)


def law(model, made, names, edits=(), atol=1e-5):
    """Every site of the generation against one clean forward over the final texts."""
    clean = model.run(made.inputs, read=names, edits=edits)
    for name in names:
        ours, theirs = made.recording[name], clean[name]
        assert ours.axes == theirs.axes and ours.shape == theirs.shape, name
        if "query" in ours.axes:
            for e in ours.index.examples:
                a, b = ours.example(e).tensor, theirs.example(e).tensor
                assert torch.equal(a == -torch.inf, b == -torch.inf), name
                assert torch.allclose(a.nan_to_num(neginf=0), b.nan_to_num(neginf=0), atol=atol, rtol=1e-5), name
        else:
            size = float(theirs.tensor.abs().max())
            assert float((ours.tensor - theirs.tensor).abs().max()) <= atol * max(size, 1), name
    for column in ("example", "position", "token", "text", "kind"):
        assert (made.recording.rows[clean["logits"].space][column] == clean["logits"].index[column]).all()


def everything(model):
    return [n for n in model.sites if not n.endswith(("scores",))]


@pytest.mark.parametrize("family", FEW)
def test_every_site_equals_a_clean_forward_over_the_final_text(family):
    model = wrapped(family)
    names = everything(model)
    made = model.generate(PROMPTS, max_new_tokens=6, read=names)
    law(model, made, names)
    assert made.recording.provenance["generated"]["max_new_tokens"] == 6 and made.recording.provenance["eager_blocks"] == []


@pytest.mark.parametrize("family", FEW)
def test_greedy_ids_equal_those_of_the_untouched_model(family):
    hf, tokenizer = testing.tiny(family)
    ids, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    for i, prompt in enumerate(PROMPTS):
        ids[i, 6 - len(prompt) :], mask[i, 6 - len(prompt) :] = torch.tensor(prompt), 1
    theirs = hf.generate(ids, attention_mask=mask, max_new_tokens=7, do_sample=False, pad_token_id=0)[:, 6:]
    made = act.wrap(hf, tokenizer, certify=False).generate(PROMPTS, max_new_tokens=7, read="blocks.*.resid_post")
    for ours, row in zip(made.ids, theirs, strict=True):
        assert torch.equal(ours, row[: len(ours)]) and (row[len(ours) :] == 0).all()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 2e-2), (torch.float64, 1e-12)])
def test_other_types_of_numbers(dtype, atol):
    hf, tokenizer = testing.tiny("mistral")
    model = act.wrap(hf.to(dtype), tokenizer, certify=False)
    names = ["blocks.*.resid_post", "blocks.1.attn.pattern", "logits"]
    edits = [Scale("blocks.0.attn.pattern", 0.5)]
    made = model.generate(PROMPTS, max_new_tokens=5, read=names, edits=edits)
    law(model, made, model.sites.select(names), edits, atol=atol)
    assert made.recording["logits"].dtype == dtype


def test_phases_and_steps(llama):
    made = llama.generate(PROMPTS, max_new_tokens=3, read="blocks.0.resid_post")
    rows = made.recording.rows[""]
    for e, prompt in enumerate(PROMPTS):
        span, count = rows.span(e), len(made.ids[e])
        assert rows["phase"][span].tolist() == ["prompt"] * len(prompt) + ["response"] * count
        assert rows["step"][span].tolist() == [0] * len(prompt) + list(range(1, count + 1))
        assert rows["token"][span].tolist() == prompt + made.ids[e].tolist()
        assert rows["position"][span].tolist() == list(range(len(prompt) + count))
    assert made.recording["blocks.0.resid_post"].index is rows
    assert made.texts == [llama.tokenizer.decode(i, skip_special_tokens=True) for i in made.ids] and made.texts[0] in repr(made)


def test_chosen_examples_keep_their_numbers_and_their_order(llama):
    chosen = llama.inputs(PROMPTS).select([2, 0])
    names = ["blocks.1.resid_post", "blocks.1.attn.pattern", "blocks.0.attn.pattern"]
    edits = [Zero("blocks.0.attn.pattern", where=Where(examples=2, heads=0))]
    made = llama.generate(chosen, max_new_tokens=3, read=names, edits=edits)
    assert made.recording.rows[""].examples == [2, 0] and made.inputs.numbers.tolist() == [2, 0]
    law(llama, made, names, edits)
    assert (made.recording["blocks.0.attn.pattern"].example(2).tensor[0] == 0).all()


@pytest.mark.parametrize(
    "own", [{"num_beams": 3, "num_return_sequences": 2}, {"prefill_chunk_size": 2}, {"do_sample": True}, {"use_cache": False}]
)
def test_settings_of_the_model_do_not_bend_the_law(own):
    model = wrapped("llama")
    wanted = model.generate(PROMPTS, max_new_tokens=4).ids
    for name, value in own.items():
        setattr(model.torch_module.generation_config, name, value)
    made = model.generate(PROMPTS, max_new_tokens=4, read="blocks.0.resid_post")
    assert all(torch.equal(a, b) for a, b in zip(made.ids, wanted, strict=True))
    law(model, made, ["blocks.0.resid_post"])


def test_labels_come_along(llama):
    made = llama.generate({"text": PROMPTS, "label": ["a", "b", "c"]}, max_new_tokens=2, read="blocks.0.resid_post")
    rows = made.recording.rows[""]
    assert [rows["label"][rows.span(e)].tolist() for e in range(3)] == [[w] * (len(p) + 2) for w, p in zip("abc", PROMPTS, strict=True)]


def test_any_module_is_read_in_every_step(llama):
    names = ["module:model.layers.0.mlp", "blocks.0.mlp.out"]
    made = llama.generate(PROMPTS, max_new_tokens=4, read=names)
    law(llama, made, names)
    assert torch.equal(made.recording[names[0]].tensor, made.recording[names[1]].tensor)
    t5 = wrapped("t5")
    with pytest.raises(InputError, match="may run in the encoder or in the decoder"):
        t5.generate({"encoder": PROMPTS}, read="module:shared")


def test_bos_and_text(llama):
    made = llama.generate(["the cat sat", "Anna"], max_new_tokens=2, read="blocks.0.resid_post")
    rows = made.recording.rows[""]
    assert rows["kind"].tolist().count("bos") == 2 and rows["text"][0] == "<bos>"
    law(llama, made, ["blocks.0.resid_post"])
    assert len(llama.generate(["the cat sat"], 1, "embed", bos=False).recording.rows[""]) == 4


@pytest.fixture(scope="module")
def plain(llama):
    return llama.generate(PROMPTS, max_new_tokens=8)


@pytest.mark.parametrize("after", [0, 2, 7])
def test_rows_after_a_stop_do_not_exist(llama, plain, after):
    """Stop at a token that one of the texts writes: it ends there, the others go on."""
    token = int(plain.ids[0][after])
    names = ["blocks.*.resid_post", "blocks.1.attn.pattern", "blocks.0.attn.k_rot"]
    made = llama.generate(PROMPTS, max_new_tokens=8, read=names, stop=token)
    for before, now in zip(plain.ids, made.ids, strict=True):
        ends = (before == token).nonzero().flatten()
        assert torch.equal(now, before[: int(ends[0]) + 1] if len(ends) else before)
    assert len(made.recording.rows[""]) == sum(map(len, PROMPTS)) + sum(map(len, made.ids))
    law(llama, made, llama.sites.select(names))


def test_stop_words_end_a_text(llama, plain):
    words = llama.tokenizer.convert_ids_to_tokens(plain.ids[0].tolist())
    made = llama.generate(PROMPTS, max_new_tokens=8, read="blocks.0.resid_post", stop=f"{words[1]} {words[2]}")
    assert made.ids[0].tolist() == plain.ids[0][:3].tolist()
    law(llama, made, ["blocks.0.resid_post"])
    with pytest.raises(InputError, match="stop='' would end every text at once"):
        llama.generate(PROMPTS, stop="")
    bare = act.wrap(testing.tiny("llama")[0], certify=False)
    with pytest.raises(InputError, match="stop='cat' is a word, and this model was wrapped without a tokenizer"):
        bare.generate(PROMPTS, stop="cat")


def test_sampling_repeats_with_its_seed_and_leaves_the_generator_alone(llama):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5, "read": "blocks.1.resid_post"}
    one, same, other = (llama.generate(PROMPTS, **options, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.ids, same.ids, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.ids, other.ids, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    law(llama, one, ["blocks.1.resid_post"])
    likeliest = llama.generate(PROMPTS, max_new_tokens=6, do_sample=True, top_k=1)
    assert all(torch.equal(a, b) for a, b in zip(likeliest.ids, llama.generate(PROMPTS, max_new_tokens=6).ids, strict=True))


# --- edits


def test_steering_applies_to_every_step(llama):
    vector = torch.linspace(-2, 2, 32)
    edit = Add("blocks.0.resid_post", vector)
    names = ["blocks.*.resid_post", "blocks.1.attn.z", "logits"]
    made = llama.generate(PROMPTS, max_new_tokens=6, read=names, edits=[edit])
    law(llama, made, llama.sites.select(names), [edit])
    with llama.edited(edit):
        standing = llama.generate(PROMPTS, max_new_tokens=6)
    plain = llama.generate(PROMPTS, max_new_tokens=6)
    assert all(torch.equal(a, b) for a, b in zip(made.ids, standing.ids, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(made.ids, plain.ids, strict=True))


@pytest.mark.parametrize(
    "edit",
    [
        Add("blocks.0.attn.k_rot", torch.ones(8)),
        Scale("blocks.1.attn.k_rot", -1.0, where=Where(positions=(1, 2))),
        Zero("blocks.0.attn.v", where=Where(heads=1)),
        Scale("blocks.0.attn.q_rot", 2.0),
        Zero("blocks.0.attn.pattern", where=Where(heads=(1, 2))),
        Zero("blocks.1.attn.pattern", where=Where(keys=0)),
        Scale("blocks.1.attn.scores", 0.5),
        Add("blocks.0.resid_mid", torch.ones(32), where=Where(examples=1)),
        SkipBlock(site="blocks.1"),
        SkipBlock("blocks.0", where=Where(positions=(1, 7))),
        SkipBlock("blocks.1", where=Where(examples=(0, 2))),
        Zero("blocks.0.mlp.out", where=Where(positions=3)),
    ],
)
@pytest.mark.parametrize("family", ["llama", pytest.param("mistral", marks=pytest.mark.slow)])
def test_an_edited_generation_equals_an_edited_forward(family, edit):
    """Also where the cache holds keys as they were before the edit, and where a window's cache has dropped the first ones."""
    model = wrapped(family)
    names = ["blocks.*.resid_post", "blocks.*.attn.z", "blocks.*.attn.pattern", "blocks.*.attn.scores", "blocks.*.attn.k_rot"]
    made = model.generate(PROMPTS, max_new_tokens=6, read=names, edits=[edit])
    law(model, made, model.sites.select(names), [edit])
    eager = [edit.site.rpartition(".")[0]] if edit.site.endswith(("scores", "pattern")) else []
    assert made.recording.provenance["eager_blocks"] == eager


def test_phases_are_edited_apart(llama):
    vector = torch.ones(32)
    site = "blocks.0.resid_post"
    edits = {p: [Add(site, vector, where=Where(phases=p))] for p in ("prompt", "response")}
    for phase, edit in edits.items():
        made = llama.generate(PROMPTS, max_new_tokens=3, read=[site, "blocks.0.mlp.out", "blocks.0.resid_mid"], edits=edit)
        rec = made.recording
        moved = rec[site].tensor - rec["blocks.0.mlp.out"].tensor - rec["blocks.0.resid_mid"].tensor
        touched = torch.as_tensor(rec.rows[""]["phase"] == phase)
        assert torch.allclose(moved[touched], vector.expand(int(touched.sum()), -1), atol=1e-5)
        assert torch.allclose(moved[~touched], torch.zeros(32), atol=1e-5)
    pattern = [Zero("blocks.0.attn.pattern", where=Where(phases="response", heads=1))]
    made = llama.generate(PROMPTS, max_new_tokens=3, read="blocks.0.attn.pattern", edits=pattern)
    for e, prompt in enumerate(PROMPTS):
        whole = made.recording["blocks.0.attn.pattern"].example(e).tensor
        assert (whole[1, len(prompt) :] == 0).all() and torch.allclose(whole[1, : len(prompt)].sum(-1), torch.ones(len(prompt)))
        assert torch.allclose(whole[0].sum(-1), torch.ones(len(whole[0])))


@pytest.mark.parametrize("phase", ["prompt", "response"])
def test_a_block_is_skipped_in_one_phase(llama, phase):
    read = ["blocks.0.resid_pre", "blocks.0.resid_post", "blocks.0.attn.v", "blocks.1.resid_post", "logits"]
    made = llama.generate(PROMPTS, max_new_tokens=3, read=read, edits=[SkipBlock("blocks.0", where=Where(phases=phase))])
    rec = made.recording
    same = (rec["blocks.0.resid_pre"].tensor == rec["blocks.0.resid_post"].tensor).all(1)
    assert same.tolist() == (rec.rows[""]["phase"] == phase).tolist()
    # Which rows skipped is known: the same as positions, in one clean forward over the final texts.
    edits = []
    for e, prompt in enumerate(PROMPTS):
        length = len(prompt) + len(made.ids[e])
        positions = tuple(range(len(prompt)) if phase == "prompt" else range(len(prompt), length))
        edits.append(SkipBlock("blocks.0", where=Where(examples=e, positions=positions)))
    law(llama, made, read, edits)


def test_the_newest_row_is_the_last_one(llama):
    site = "blocks.0.resid_post"
    made = llama.generate(PROMPTS[:1], max_new_tokens=2, read=[site], edits=[Zero(site, where=Where(positions=-1))])
    zero = (made.recording[site].tensor == 0).all(-1)
    assert zero.tolist() == [False] * 5 + [True] * 3  # the end of the prompt, then every row that was written


# --- lazily assembled patterns


@pytest.mark.parametrize("family", ["mistral", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_patterns_of_the_final_text_come_in_tiles(family):
    model = wrapped(family)
    made = model.generate(PROMPTS, max_new_tokens=6, read="blocks.*.attn.pattern")
    pattern, clean = made.recording["blocks.1.attn.pattern"], model.run(made.inputs, read="blocks.1.attn.pattern")["blocks.1.attn.pattern"]
    assert isinstance(pattern, Activations)
    for tile in pattern.tiles(queries=4):
        assert torch.allclose(tile.values, clean.example(tile.example).tensor[tile.heads, tile.queries], atol=1e-5)


# --- encoder and decoder


@pytest.mark.parametrize("family", ["t5", pytest.param("t5_gated", marks=pytest.mark.slow)])
def test_encoder_decoder(family):
    model = wrapped(family)
    names = [*everything(model), "decoder.blocks.0.attn.scores"]
    made = model.generate({"encoder": PROMPTS}, max_new_tokens=5, read=names)
    law(model, made, names)
    assert made.recording.rows["encoder"]["phase"].tolist() == ["prompt"] * 12
    assert made.recording.rows["decoder"]["phase"].tolist()[:2] == ["prompt", "response"]
    edits = [
        Zero("encoder.blocks.0.mlp.out"),
        Scale("decoder.blocks.1.cross.v", 2.0),
        Zero("decoder.blocks.0.cross.pattern", where=Where(keys=0)),
    ]
    names = ["decoder.blocks.*.resid_post", "decoder.blocks.0.cross.pattern", "encoder.final_norm", "decoder.token_embed"]
    made = model.generate({"encoder": PROMPTS}, max_new_tokens=5, read=names, edits=edits)
    law(model, made, model.sites.select(names), edits)


def test_decoder_texts_of_different_length_are_padded_on_the_left():
    """Positions are relative, and keys that are pads stay unseen."""
    model = wrapped("t5")
    names = ["decoder.blocks.*.resid_post", "decoder.blocks.*.attn.pattern", "decoder.blocks.*.cross.pattern", "logits"]
    made = model.generate({"encoder": PROMPTS, "decoder": [[0, 50, 51, 52], [0], [0, 53]]}, max_new_tokens=4, read=names)
    law(model, made, model.sites.select(names))
    assert made.recording.rows["decoder"]["phase"].tolist().count("prompt") == 7


def test_greedy_ids_of_an_encoder_decoder_equal_those_of_the_untouched_model():
    hf, tokenizer = testing.tiny("t5", num_decoder_layers=2)  # transformers itself needs stacks of one depth
    ids = torch.tensor([[20, 21, 22], [30, 31, 32]])
    theirs = hf.generate(ids, max_new_tokens=6, do_sample=False)[:, 1:]
    made = act.wrap(hf, tokenizer, certify=False).generate({"encoder": ids.tolist()}, max_new_tokens=6, read="decoder.blocks.*.resid_post")
    for ours, row in zip(made.ids, theirs, strict=True):
        assert torch.equal(ours, row[: len(ours)])


# --- what is refused, and what is left behind


def test_what_is_refused(llama):
    with pytest.raises(InputError, match="num_beams=4: several beams share and drop rows"):
        llama.generate(PROMPTS, num_beams=4)
    with pytest.raises(
        InputError, match="The longest prompt has 6 tokens and max_new_tokens is 60; this model has 64 positions. Ask for at most 58"
    ):
        llama.generate(PROMPTS, max_new_tokens=60)
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        llama.generate(PROMPTS, max_new_tokens=0)
    for family, data in (("bert", PROMPTS), ("vit", torch.randn(1, 3, 32, 32))):
        with pytest.raises(InputError, match=rf"{family} \(\w+\) does not write text"):
            wrapped(family).generate(data)
    hf, tokenizer = testing.tiny("gpt2")
    hf.set_attn_implementation("eager")
    double = act.wrap(hf.double(), tokenizer, name="gpt2", certify=False)
    with pytest.raises(InputError, match="gpt2 runs eager attention in float64, where the padding .* gives NaN"):
        double.generate(PROMPTS)
    law(double, double.generate([[5, 6, 7], [8, 9, 10]], read="blocks.0.resid_post"), ["blocks.0.resid_post"], atol=1e-10)
    llama.torch_module.train()
    with pytest.raises(InputError, match="llama is in training mode"):
        llama.generate(PROMPTS)
    llama.torch_module.eval()


def test_a_state_that_is_no_cache_of_keys_is_refused():
    import transformers

    small = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    mamba = act.wrap(transformers.MambaForCausalLM(transformers.MambaConfig(**small)).eval(), name="mamba", certify=False)
    with pytest.raises(InputError, match=r"mamba \(MambaForCausalLM\) keeps no keys and values of earlier tokens"):
        mamba.generate(PROMPTS)


def test_a_pattern_that_steps_cannot_tell_is_refused(llama):
    """Attention in chunks: its mask is no causal window, and each step sees only its own row of it."""
    import transformers

    config = transformers.Llama4TextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attention_chunk_size=4, no_rope_layers=[1, 0], interleave_moe_layer_step=10, moe_layers=[],
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = act.wrap(transformers.Llama4ForCausalLM(config).eval(), certify=False)
    made = model.generate(PROMPTS, max_new_tokens=4, read=["blocks.*.attn.pattern", "blocks.*.attn.z"])
    law(model, made, ["blocks.0.attn.z", "blocks.1.attn.z", "blocks.1.attn.pattern"])  # the other layer attends to everything
    with pytest.raises(
        InputError, match="blocks.0.attn.pattern cannot be put together from the steps: its mask is neither full, causal nor"
    ):
        made.recording["blocks.0.attn.pattern"]
    pooled = wrapped("llama")
    pooled.sites._sites["final_norm"] = replace(pooled.sites["final_norm"], rows="example")
    with pytest.raises(InputError, match="has one value for an example, not one for each row"):
        pooled.generate(PROMPTS, read="final_norm")


def test_a_model_without_a_cache_is_refused(llama, monkeypatch):
    hf = llama.torch_module
    monkeypatch.setattr(hf, "prepare_inputs_for_generation", lambda input_ids, **kwargs: {"input_ids": input_ids})
    with pytest.raises(InputError, match="llama keeps no keys and values of earlier tokens"):
        llama.generate(PROMPTS[:1], read="embed")


def clean(hf):
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in hf.modules())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_generation_leaves_the_model_as_it_was(llama, error):
    hf, calls = llama.torch_module, []
    before = {k: v.clone() for k, v in hf.state_dict().items()}
    setting, state = hf.config._attn_implementation, torch.random.get_rng_state()
    wanted = llama.generate(PROMPTS, max_new_tokens=4).ids

    def broken(x):
        calls.append(1)
        if len(calls) == 3:
            raise error("on purpose")
        return type(hf.model.norm).forward(hf.model.norm, x)

    hf.model.norm.forward = broken
    with pytest.raises(error):
        llama.generate(
            PROMPTS, max_new_tokens=4, read=["blocks.*.attn.pattern", "blocks.0.resid_mid"], edits=[Zero("blocks.0.attn.pattern")]
        )
    del hf.model.norm.__dict__["forward"]
    assert len(calls) == 3 and clean(hf) and hf.config._attn_implementation == setting
    assert torch.equal(state, torch.random.get_rng_state()) and all(torch.equal(v, before[k]) for k, v in hf.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(llama.generate(PROMPTS, max_new_tokens=4).ids, wanted, strict=True)) and clean(hf)


def test_a_hook_that_is_silent_in_one_step_is_an_error(llama):
    """A block that stands aside from the third forward on."""
    layer, calls = llama.torch_module.model.layers[1], []
    mlp = layer.mlp

    def sometimes(*args, **kwargs):
        calls.append(1)
        layer.mlp = mlp if len(calls) < 3 else torch.nn.Identity()
        return type(layer).forward(layer, *args, **kwargs)

    layer.forward = sometimes
    try:
        with pytest.raises(SilentHook, match="blocks.1.mlp.post did not fire in one forward"):
            llama.generate(PROMPTS, max_new_tokens=4, read="blocks.1.mlp.post")
    finally:
        del layer.__dict__["forward"]
        layer.mlp = mlp
    assert clean(llama.torch_module)


def test_memory_is_that_of_the_rows_and_not_of_every_cache(llama, monkeypatch):
    """A view of a step's keys would keep that step's whole cache alive."""
    seen, whole = [], Steps.recording
    monkeypatch.setattr(Steps, "recording", lambda steps, *a: seen.append(steps) or whole(steps, *a))
    made = llama.generate([[5, 6, 7]], max_new_tokens=20, read="blocks.0.attn.k_rot")
    pieces = seen[0]._pieces["blocks.0.attn.k_rot"]
    assert len(pieces) == 1 + len(made.ids[0]) > 10
    assert all(piece.untyped_storage().nbytes() == piece.numel() * 4 for piece in pieces)


def test_scribe_writes_and_is_read():
    model = act.load("scribe", certify=False)
    texts = ["Anna gave Tom the book . Tom", "the cat"]
    names = ["blocks.*.resid_post", "blocks.*.attn.pattern", "blocks.*.mlp.post", "logits"]
    made = model.generate(texts, max_new_tokens=12, read=names, stop=".")
    law(model, made, model.sites.select(names))
    assert all(t.count(".") <= 1 for t in made.texts)
    frame = made.recording.table()
    assert set(frame["phase"]) == {"prompt", "response"} and np.issubdtype(frame["step"].dtype, np.integer)


@pytest.mark.parametrize("documented", [TorchRunner.generate, TorchRunner.sparse, Activations.tiles])
def test_docstring_examples_run(documented):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, documented.__name__, globs={})
    assert runner.run(example).failed == 0
