"""path_patching: a planted circuit's one edge, exact zeros, and equality with what can be computed in another way."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.edits import Add, Set
from activarium.errors import InputError, MissingSite, UnknownSite

from .planted import planted

path_patching, activation_patching = act.analyses.path_patching, act.analyses.activation_patching
A, B, C, D, E, X, FIRST = range(7)  # the first token has none before it
DECODERS = ("gpt2", "llama", "gpt_neox", "gemma2", "opt")


def made(family: str):
    return act.wrap(*act.testing.tiny(family), certify=False)


def pairs_of(model) -> act.pairs.Pairs:
    clean = ["Anna saw the cat near the river", "the dog ran to Tom", "who ran to the red house ?"]
    corrupt = ["Tom gave the dog near the house", "the cat ran to Anna", "who sat on the blue house ?"]
    return act.pairs(model, clean, corrupt, answers=["Anna", "Tom", "cat"], foils=["Tom", "Anna", "dog"])


def vision_pairs(model) -> act.pairs.Pairs:
    return act.pairs.images(model, act.testing.images(2), "shuffle", answers=[0, 1], foils=[1, 2])


# --- the planted circuit


@pytest.fixture(scope="module")
def circuit():
    model = planted()
    clean = [[FIRST, A, B, C, A], [FIRST, C, D, E, C], [FIRST, D, A, B, A]]
    corrupt = [[FIRST, X, B, C, A], [FIRST, B, D, E, C], [FIRST, D, X, B, A]]
    return model, act.pairs(model, clean, corrupt, answers=[B, D, B], foils=[E, A, E])


def test_the_planted_circuit_does_what_was_planted(circuit) -> None:
    model, pairs = circuit
    for inputs, wanted in ((pairs.clean, [1, 1, 1]), (pairs.corrupt, [0.2, 0.2, 0.2])):  # without a match: even over five tokens
        found = model.run(inputs, metrics=pairs.metric).metric["logit_difference"]
        assert found.tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_only_the_two_planted_heads_have_an_exact_effect(circuit, direction: str) -> None:
    model, pairs = circuit
    effects = activation_patching(model, pairs, "blocks.*.attn.z", positions="all", direction=direction, progress=False).values
    whole = 0.8 if direction == "denoise" else -0.8
    assert np.allclose(effects, [[whole, 0], [0, whole]], atol=1e-9)
    moved = model.run(pairs.clean, read="blocks.*.attn.z"), model.run(pairs.corrupt, read="blocks.*.attn.z")
    for site, head in (("blocks.0.attn.z", 1), ("blocks.1.attn.z", 0)):
        assert (moved[0][site].tensor[:, head] - moved[1][site].tensor[:, head]).abs().max() > 0.1, "the others change as well"


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("freeze_mlps", [False, True])
def test_path_patching_finds_exactly_the_planted_edge(circuit, direction: str, freeze_mlps: bool) -> None:
    """Of all edges from a head to a head's query, key or value, one carries the whole effect and the others nothing."""
    model, pairs = circuit
    whole = 0.8 if direction == "denoise" else -0.8
    edges = {}
    for side in "qkv":
        for head in (0, 1):
            found = path_patching(model, pairs, receivers={f"blocks.1.attn.{side}": [head]}, direction=direction, freeze_mlps=freeze_mlps)
            edges |= {(sender, side, head): found.values[0, sender] for sender in (0, 1)}
            assert (found.values[1] == 0).all()
            assert found.masks["known_zero"].tolist() == [[False, False], [True, True]]
    assert edges.pop((0, "k", 1)) == pytest.approx(whole, abs=1e-9)
    assert max(map(abs, edges.values())) < 1e-9


def test_only_the_induction_head_speaks_to_the_answer_directly(circuit) -> None:
    model, pairs = circuit
    assert np.allclose(path_patching(model, pairs).values, [[0, 0], [0, 0.8]], atol=1e-9)


def test_the_position_of_the_edge_is_the_one_after_the_first_token(circuit) -> None:
    model, pairs = circuit
    found = path_patching(model, pairs, receivers={"blocks.1.attn.k": 1}, positions="each")
    assert found.axes == ("layer", "position", "head")
    wanted = np.zeros((3, 5))
    wanted[[0, 1, 2], [2, 2, 3]] = 0.8
    assert np.allclose(found.per_example[:, 0, :, 0], wanted, atol=1e-9)


# --- identities


@pytest.mark.parametrize("family", [*DECODERS, "vit"])
@pytest.mark.parametrize("freeze_mlps", [False, True])
def test_equal_inputs_give_exactly_zero(family: str, freeze_mlps: bool) -> None:
    model = made(family)
    pairs = vision_pairs(model) if family == "vit" else pairs_of(model)
    same = act.pairs(model, pairs.clean, pairs.clean, pairs.metric)
    for receivers in ("logits", "blocks.1.attn.q", "blocks.1.mlp.in"):
        assert (path_patching(model, same, receivers=receivers, freeze_mlps=freeze_mlps).per_example == 0).all()


@pytest.mark.parametrize("family", [*DECODERS, "vit"])
def test_the_last_blocks_heads_reach_the_answer_directly_or_not_at_all(family: str) -> None:
    """No head comes after them: with MLPs computed anew the path to the logits is the whole effect, by plain patching."""
    model = made(family)
    pairs = vision_pairs(model) if family == "vit" else pairs_of(model)
    for direction in ("denoise", "noise"):
        direct = path_patching(model, pairs, direction=direction).values[-1]
        whole = activation_patching(model, pairs, "blocks.*.attn.z", positions="all", direction=direction).values[-1]
        assert np.allclose(direct, whole, atol=2e-6)
        assert np.abs(whole).max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_with_mlps_held_a_head_changes_the_stream_by_its_own_write(family: str) -> None:
    """Then the answer is the model's own read-out of the last stream plus the head's change; the norm's true scale is used."""
    model = made(family)
    pairs = pairs_of(model)
    found = path_patching(model, pairs, freeze_mlps=True)
    depth = found.values.shape[0]
    read = ["blocks.*.attn.head_out", f"blocks.{depth - 1}.resid_post"]
    base, source = model.run(pairs.corrupt, read=read), model.run(pairs.clean, read=read)
    ends = np.cumsum(pairs.clean.lengths) - 1
    stream = base[f"blocks.{depth - 1}.resid_post"].tensor[ends]
    low = pairs.metric.of(model.readout(stream)).double()
    for layer in range(depth):
        change = (source[f"blocks.{layer}.attn.head_out"].tensor - base[f"blocks.{layer}.attn.head_out"].tensor)[ends]
        for head in range(change.shape[1]):
            wanted = pairs.metric.of(model.readout(stream + change[:, head])).double() - low
            assert np.allclose(found.per_example[:, layer, head], wanted, atol=5e-6)


def test_with_mlps_held_a_reader_gets_the_senders_write_through_its_true_norm() -> None:
    """The single edge from a head to an MLP's input, set by hand: the block's norm of the stream plus the head's change."""
    model = made("gpt2")
    pairs = pairs_of(model)
    found = path_patching(model, pairs, receivers="blocks.2.mlp.in", freeze_mlps=True)
    base, source = (
        model.run(side, read=["blocks.0.attn.head_out", "blocks.2.resid_mid"], metrics=pairs.metric)
        for side in (pairs.corrupt, pairs.clean)
    )
    norm = model.torch_module.transformer.h[2].ln_2
    for head in range(4):
        change = (source["blocks.0.attn.head_out"].tensor - base["blocks.0.attn.head_out"].tensor)[:, head]
        with torch.no_grad():
            told = norm(base["blocks.2.resid_mid"].tensor + change)
        patched = model.run(pairs.corrupt, edits=[Set("blocks.2.mlp.in", told)], metrics=pairs.metric)
        wanted = (patched.metric["logit_difference"] - base.metric["logit_difference"]).double()
        assert np.allclose(found.per_example[:, 0, head], wanted, atol=5e-6)
    assert np.abs(found.values[0]).max() > 1e-3


def test_computed_and_held_mlps_differ_and_say_so() -> None:
    model = made("gpt2")
    pairs = pairs_of(model)
    anew, held = (path_patching(model, pairs, freeze_mlps=f) for f in (False, True))
    assert np.abs(anew.values - held.values).max() > 1e-3
    assert (anew.diagnostics["mlps"], held.diagnostics["mlps"]) == ("computed anew", "held")
    assert anew.diagnostics["receivers"] == "logits"


def test_noise_is_denoise_of_the_exchanged_pairs() -> None:
    model = made("llama")
    pairs = pairs_of(model)
    exchanged = act.pairs(model, pairs.corrupt, pairs.clean, pairs.metric)
    a, b = (
        path_patching(model, pairs, receivers="blocks.1.attn.v", direction="noise"),
        path_patching(model, exchanged, receivers="blocks.1.attn.v"),
    )
    assert (a.per_example == b.per_example).all()
    assert a.diagnostics["direction"] == "noise"


def test_pairs_together_or_one_by_one() -> None:
    model = made("gpt2")
    pairs = pairs_of(model)
    for receivers in ("logits", "blocks.2.attn.q"):
        whole, single = (path_patching(model, pairs, receivers=receivers, positions="each", batch=b) for b in (3, 1))
        assert np.allclose(whole.per_example, single.per_example, atol=5e-6, equal_nan=True)
    assert whole.diagnostics["forwards"] < single.diagnostics["forwards"]


def test_normalised_shares_are_effects_over_the_difference() -> None:
    model = made("gpt2")
    pairs = pairs_of(model)
    plain, shares = (path_patching(model, pairs, normalise=n) for n in (False, True))
    scale = plain.diagnostics["clean"] - plain.diagnostics["corrupt"]
    assert np.allclose(shares.values * scale, plain.values, atol=1e-6)
    assert shares.unit == "share of M+ - M-"


def test_mlps_and_the_embedding_send_too() -> None:
    """An MLP of the last block reaches the logits directly or not at all; the embedding's direct path is that of its rows alone."""
    model = made("gpt2")
    pairs = pairs_of(model)
    direct = path_patching(model, pairs, "blocks.*.mlp.out")
    assert direct.axes == ("layer",)
    whole = activation_patching(model, pairs, "blocks.*.mlp.out", positions="all").values
    assert direct.values[-1] == pytest.approx(whole[-1], abs=2e-6)
    embedded = path_patching(model, pairs, "embed", freeze_mlps=True).per_example[:, 0]
    sides = [model.run(s, read=["embed", "blocks.2.resid_post"]) for s in (pairs.corrupt, pairs.clean)]
    ends = np.cumsum(pairs.clean.lengths) - 1
    stream = sides[0]["blocks.2.resid_post"].tensor[ends]
    moved = stream + (sides[1]["embed"].tensor - sides[0]["embed"].tensor)[ends]
    wanted = pairs.metric.of(model.readout(moved)) - pairs.metric.of(model.readout(stream))
    assert np.allclose(embedded, wanted.double(), atol=5e-6)


def test_a_unit_sends_through_its_own_mlp_when_others_are_held() -> None:
    """All units of an MLP together are its write."""
    model = made("gpt2")
    pairs = pairs_of(model)
    post = path_patching(model, pairs, "blocks.{0,1}.mlp.post", freeze_mlps=True)
    out = path_patching(model, pairs, "blocks.{0,1}.mlp.out", freeze_mlps=True)
    assert np.allclose(post.per_example, out.per_example, atol=5e-6)
    assert np.abs(out.values).min() > 1e-4


def test_grouped_keys_and_values_have_their_own_heads() -> None:
    model = made("llama")  # four query heads, two of keys and values
    pairs = pairs_of(model)
    both = path_patching(model, pairs, receivers="blocks.1.attn.v").values
    each = [path_patching(model, pairs, receivers={"blocks.1.attn.v": [h]}).values for h in (0, 1)]
    assert not np.allclose(each[0], each[1])
    assert not np.allclose(both, each[0])
    with pytest.raises(InputError, match=r"blocks.1.attn.v has 2 heads, numbered from 0; \[2\] was asked for"):
        path_patching(model, pairs, receivers={"blocks.1.attn.v": 2})


def test_parallel_blocks_have_no_path_from_their_attention_to_their_mlp() -> None:
    parallel, sequential = (path_patching(made(f), pairs_of(made(f)), receivers="blocks.1.mlp.in") for f in ("gpt_neox", "gpt2"))
    assert parallel.masks["known_zero"][1].all()
    assert (parallel.values[1] == 0).all()
    assert not sequential.masks["known_zero"][1].any()
    assert np.abs(sequential.values[1]).max() > 1e-4


def test_the_encoder_reaches_the_decoder_through_cross_attention_only() -> None:
    model = made("t5")
    sides = ({"encoder": [t], "decoder": ["the cat"]} for t in ("Anna saw the cat", "Tom gave the dog"))
    pairs = act.pairs(model, *sides, answers=["Anna"], foils=["Tom"])
    through = path_patching(model, pairs, "encoder.blocks.*.attn.z", ["decoder.blocks.*.cross.k", "decoder.blocks.*.cross.v"])
    assert (np.abs(through.values) > 1e-6).all()
    own = path_patching(model, pairs, "encoder.blocks.*.attn.z", "decoder.blocks.*.attn.q")
    assert (own.values == 0).all()
    back = path_patching(model, pairs, "decoder.blocks.*.attn.z", "encoder.blocks.1.mlp.in")
    assert back.masks["known_zero"].all()
    together = activation_patching(model, pairs, "encoder.blocks.1.attn.z", positions="all").values[0]
    assert np.allclose(through.values[1], together, atol=2e-6), "of the last block, all paths to the answer are these"


def test_scribes_name_reader_tells_later_queries_where_to_look() -> None:
    """Trained weights: the head of block 1 that matters most works through the queries of the last block, hardly through its keys."""
    model = act.load("scribe", certify=False)
    pairs = act.pairs.ioi(model, 24)
    whole = activation_patching(model, pairs, "blocks.*.attn.z", positions="all", progress=False)
    (layer, head), effect = next((cell, v) for cell, v in whole.top() if "blocks.3" not in cell[0])
    place = whole.label("layer").index(layer), whole.label("head").index(head)
    queries, keys = (path_patching(model, pairs, receivers=f"blocks.3.attn.{side}").values[place] for side in "qk")
    assert queries > 0.5 * effect > 5
    assert abs(keys) < 0.1 * effect


@pytest.mark.slow  # TransformerLens takes seconds to import
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")  # told to whoever makes one
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_transformerlens_models_have_the_same_paths(family: str, kind: str) -> None:
    from ...capture import lens_models

    plain, twin = made(family), act.wrap(*getattr(lens_models, kind)(family), certify=False)
    for receivers in ("logits", "blocks.1.attn.k"):
        for freeze_mlps in (False, True):
            a, b = (path_patching(m, pairs_of(m), receivers=receivers, freeze_mlps=freeze_mlps) for m in (plain, twin))
            assert np.allclose(a.per_example, b.per_example, atol=1e-4 * np.abs(a.per_example).max())
            assert (a.masks["known_zero"] == b.masks["known_zero"]).all()


def test_the_model_is_left_as_it_was() -> None:
    model = made("gpt2")
    pairs = pairs_of(model)
    before = model.run(pairs.clean).logits.tensor
    path_patching(model, pairs, receivers="blocks.2.attn.q")
    assert torch.equal(model.run(pairs.clean).logits.tensor, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.torch_module.modules())


# --- refusals


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"receivers": "blocks.1.resid_post"}, "blocks.1.resid_post is no reader's input, so no path ends there. Receivers are attn.q"),
        ({"receivers": ["logits", "blocks.1.attn.q"]}, "would overwrite what other receivers change; ask for 'logits' alone"),
        ({"receivers": {"blocks.1.attn.q": [4]}}, r"blocks.1.attn.q has 4 heads, numbered from 0; \[4\] was asked for"),
        ({"receivers": {"blocks.1.mlp.in": [0]}}, r"blocks.1.mlp.in has 0 heads"),
        ({"receivers": {"logits": [0]}}, "logits has no heads; give None"),
        ({"receivers": []}, "There is no receiver; name sites such as"),
        ({"senders": "blocks.*.resid_mid"}, "blocks.0.resid_mid is no one part's write, so no path starts there. Senders are attn.z"),
        ({"direction": "both"}, "direction='both' is not known"),
    ],
)
def test_what_is_no_path_is_refused(options: dict, wanted: str) -> None:
    model = made("gpt2")
    with pytest.raises(InputError, match=wanted):
        path_patching(model, pairs_of(model), **options)


def test_blocks_after_the_receivers_are_run_once_per_sender() -> None:
    """The run in which receivers listen ends with them; only the one in which they speak goes on to the answer."""
    model = made("gpt2")
    pairs, seen = pairs_of(model), []
    hook = model.torch_module.transformer.h[2].register_forward_hook(lambda *_: seen.append(1))
    try:
        found = path_patching(model, pairs, "blocks.0.attn.z", ["blocks.1.attn.q", "blocks.1.attn.v"])
    finally:
        hook.remove()
    assert len(seen) == 2 + 4, "both inputs, and four senders"
    assert found.diagnostics["forwards"] == 2 + 2 * 4


def test_unknown_sites_are_named() -> None:
    model = made("gpt2")
    with pytest.raises(UnknownSite, match="blocks.9.attn.q"):
        path_patching(model, pairs_of(model), receivers="blocks.9.attn.q")


def test_heads_that_cannot_be_held_are_refused() -> None:
    model = made("bloom")
    with pytest.raises(MissingSite, match=r"blocks.0.attn.z cannot be held \(its attention does not pass through the attention interface"):
        path_patching(model, pairs_of(model), "blocks.*.mlp.out")


def test_the_last_stream_is_called_the_logits() -> None:
    model = made("gpt2")
    pairs = pairs_of(model)
    named, plain = (path_patching(model, pairs, receivers=r) for r in ("blocks.2.resid_post", "logits"))
    assert (named.per_example == plain.per_example).all()
    with model.edited(Add("blocks.1.resid_post", torch.ones(32))):
        assert not np.allclose(path_patching(model, pairs).values, plain.values), "standing edits count"
