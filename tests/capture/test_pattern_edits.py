"""Edited scores and patterns: the edited blocks alone run eagerly, and what follows is what a hand-written forward gives."""

import copy
import sys

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import Add, Keep, Mean, Scale, Set, Where, Zero
from activarium.errors import InputError, StoreError
from activarium.metrics import Metric

RAGGED = [[20, 21, 22, 23, 24, 25, 26], [30, 31, 32, 33]]
PATTERN, SCORES = "blocks.0.attn.pattern", "blocks.0.attn.scores"


def wrapped(family):
    if family == "gpt_oss":
        import transformers

        config = transformers.GptOssConfig(
            vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            num_local_experts=4, num_experts_per_tok=2, sliding_window=4, max_position_embeddings=64, pad_token_id=0, eos_token_id=3,
        )  # fmt: skip
        torch.manual_seed(0)
        hf = transformers.GptOssForCausalLM(config).eval()
        for weights in hf.parameters():
            torch.nn.init.normal_(weights, std=0.3)
        return act.wrap(hf, certify=False)
    return act.wrap(*testing.tiny(family), certify=False)


@pytest.fixture(scope="module")
def llama():
    return wrapped("llama")


def by_hand(model, patch, ids):
    """Logits of one text by transformers' own eager attention whose softmax is followed by `patch(layer, weights)`."""
    twin = copy.deepcopy(model.torch_module)
    twin.set_attn_implementation("eager")
    room = sys.modules[type(twin).__module__]
    original, layer = torch.nn.functional.softmax, [-1]

    def softmax(values, *args, **options):
        layer[0] += 1
        return patch(layer[0], original(values, *args, **options))

    room.nn.functional.softmax = softmax
    try:
        with torch.no_grad():
            return twin(torch.tensor([ids])).logits[0]
    finally:
        room.nn.functional.softmax = original


def zero_head(layer, weights):
    if layer == 0:
        weights = weights.clone()
        weights[:, 1] = 0
    return weights


# Grouped heads, soft-cap, windows, rotary and learned positions; two texts of different length.
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2", "gpt_neox"])
def test_a_zeroed_head_equals_a_patched_softmax(family):
    model = wrapped(family)
    rec = model.run(RAGGED, edits=[Zero(PATTERN, where=Where(heads=1))])
    for e, ids in enumerate(RAGGED):
        assert torch.allclose(rec["logits"].example(e).tensor, by_hand(model, zero_head, ids), atol=2e-5)
        assert not torch.allclose(rec["logits"].example(e).tensor, by_hand(model, lambda _, weights: weights, ids), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "bert", "t5"])
def test_zeroing_a_pattern_is_zeroing_z(family):
    model = wrapped(family)
    prefix = "encoder." if family == "t5" else ""
    data = {"encoder": RAGGED} if family == "t5" else RAGGED
    stem, where = f"{prefix}blocks.1.attn", Where(heads=(0, 2), positions=(1, -1))
    one = model.run(data, edits=[Zero(f"{stem}.pattern", where=where)])
    other = model.run(data, edits=[Zero(f"{stem}.z", where=where)])
    plain = model.run(data)
    assert torch.allclose(one.logits.tensor, other.logits.tensor, atol=2e-5)
    assert not torch.allclose(one.logits.tensor, plain.logits.tensor, atol=1e-3)


def test_a_uniform_pattern_is_the_mean_of_v():
    model = wrapped("bert")
    name = "blocks.1.attn"
    for e, ids in enumerate(RAGGED):
        rec = model.run(RAGGED, read=[f"{name}.v", f"{name}.z"], edits=[Set(f"{name}.pattern", 1 / len(ids), where=Where(examples=e))])
        z, v = rec[f"{name}.z"].example(e).tensor, rec[f"{name}.v"].example(e).tensor
        assert torch.allclose(z, v.mean(0).expand_as(z), atol=1e-6)


def test_a_causal_uniform_pattern_is_the_running_mean_of_v(llama):
    """The mask stays: a text sees no future, whatever its pattern is set to."""
    n = len(RAGGED[0])
    share = 1 / torch.arange(1, n + 1)
    read = ["blocks.0.attn.v", "blocks.0.attn.z", PATTERN]
    rec = llama.run(RAGGED[:1], read=read, edits=[Set(PATTERN, share[:, None].expand(n, n))])
    v = rec["blocks.0.attn.v"].tensor.repeat_interleave(2, 1)
    assert torch.allclose(rec["blocks.0.attn.z"].tensor, v.cumsum(0) * share[:, None, None], atol=1e-6)
    assert (rec[PATTERN].example(0).tensor.triu(1) == 0).all()


def test_an_edited_score_moves_the_softmax_and_opens_nothing(llama):
    """`+ log 3` at one key triples its odds."""
    edit = Add(SCORES, torch.log(torch.tensor(3.0)), where=Where(keys=1, heads=3, positions=(0, 4), examples=0))
    before, after = llama.run(RAGGED, read=[PATTERN, SCORES]), llama.run(RAGGED, read=[PATTERN, SCORES], edits=[edit])
    was, now = before[PATTERN].example(0).tensor, after[PATTERN].example(0).tensor
    odds = now[3, 4, 1] / (1 - now[3, 4, 1]) / (was[3, 4, 1] / (1 - was[3, 4, 1]))
    assert torch.allclose(odds, torch.tensor(3.0), rtol=1e-4)
    assert now[3, 0, 1] == 0 and after[SCORES].example(0).tensor[3, 0, 1] == -torch.inf  # key 1 lies in the future of query 0
    untouched = torch.ones_like(was, dtype=torch.bool)
    untouched[3, 4] = False
    assert torch.allclose(now[untouched], was[untouched], atol=1e-7)
    assert torch.allclose(after[PATTERN].example(1).tensor, before[PATTERN].example(1).tensor, atol=1e-7)
    assert torch.allclose(
        llama.run(RAGGED, edits=[Set(SCORES, 0.0)], read=PATTERN)[PATTERN].example(1).tensor[:, 2, :3], torch.tensor(1 / 3)
    )


@pytest.mark.parametrize(
    ("edit", "wanted"),
    [
        (Scale(PATTERN, 0.5), lambda p: 0.5 * p),
        (Mean(PATTERN, 0.25, {"data": "by hand"}), lambda p: torch.where(p > 0, 0.25, p)),
        (Add(PATTERN, torch.tensor(0.1)), lambda p: torch.where(p > 0, p + 0.1, p)),
        (Keep(PATTERN, 1), lambda p: torch.where(p == p.max(-1, keepdim=True).values, p, 0)),
        (Zero(PATTERN, where=Where(keys=-1)), lambda p: torch.cat([p[..., :-1], p[..., -1:] * 0], -1)),
        (Zero(PATTERN, where=Where(kinds="bos")), lambda p: p),  # there is no such query here
    ],
)
def test_reads_give_the_edited_pattern_and_z_follows_it(llama, edit, wanted):
    read = [PATTERN, "blocks.0.attn.v", "blocks.0.attn.z"]
    before, after = llama.run(RAGGED, read=read), llama.run(RAGGED, read=read, edits=[edit])
    for e in range(2):
        pattern = after[PATTERN].example(e).tensor
        assert torch.allclose(pattern, wanted(before[PATTERN].example(e).tensor), atol=1e-6)
        v = after["blocks.0.attn.v"].example(e).tensor.repeat_interleave(2, 1)
        assert torch.allclose(after["blocks.0.attn.z"].example(e).tensor, torch.einsum("hqk,khd->qhd", pattern, v), atol=1e-6)
    tile = next(iter(after[PATTERN].tiles(queries=2)))
    assert torch.equal(tile.values, after[PATTERN].example(0).tensor[tile.heads, tile.queries])


def test_a_pattern_set_to_itself_changes_nothing(llama):
    """Eager against the fused kernel, with sinks, caps and all, is the same sum in another order."""
    for model in (llama, wrapped("gemma2"), wrapped("gpt_oss")):
        plain = model.run(RAGGED[:1], read=PATTERN)
        same = model.run(RAGGED[:1], edits=[Set(PATTERN, plain[PATTERN].example(0).tensor)])
        assert torch.allclose(same.logits.tensor, plain.logits.tensor, atol=2e-5)
        assert same.provenance["eager_blocks"] == ["blocks.0.attn"]


def test_only_edited_blocks_leave_their_kernel_and_the_recording_says_so(llama, monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    plain = llama.run(RAGGED)
    assert len(calls) == 2 and plain.provenance["eager_blocks"] == [] and "eager" not in repr(plain)
    edited = llama.run(RAGGED, edits=[Scale("blocks.1.attn.pattern", 0.5)])
    assert len(calls) == 3 and edited.provenance["eager_blocks"] == ["blocks.1.attn"]
    assert "eager attention, because its pattern is edited: blocks.1.attn" in repr(edited)
    for idle in (Scale(PATTERN, 1.0), Add(SCORES, 1.0, 0.0), Zero(PATTERN, where=Where(examples=7))):
        calls.clear()
        same = llama.run(RAGGED, edits=[idle])
        assert len(calls) == 2 and torch.equal(same.logits.tensor, plain.logits.tensor) and same.provenance["eager_blocks"] == []


def test_standing_edits_and_other_edits_go_together(llama):
    """A q edit enters the scores before they are edited."""
    ones = torch.ones(8)
    with llama.edited(Scale(SCORES, 2.0)):
        rec = llama.run(RAGGED, read=[SCORES, "blocks.0.attn.q_rot", "blocks.0.attn.k_rot"], edits=[Add("blocks.0.attn.q_rot", ones)])
    q, k = rec["blocks.0.attn.q_rot"].example(1).tensor, rec["blocks.0.attn.k_rot"].example(1).tensor.repeat_interleave(2, 1)
    wanted = 2 * torch.einsum("qhd,khd->hqk", q, k) * 8**-0.5
    seen = torch.ones(4, 4).tril().bool()
    assert torch.allclose(rec[SCORES].example(1).tensor[:, seen], wanted[:, seen], atol=1e-4)


def test_gradients_flow_through_an_edited_pattern():
    """Against finite differences of the factor."""
    hf, tokenizer = testing.tiny("gpt2")
    model = act.wrap(hf.double(), tokenizer, certify=False)
    metric = Metric(lambda x: x[:, 1], name="m")

    def run(value, **options):
        return model.run(RAGGED, metrics=metric, edits=[Set(PATTERN, value, where=Where(heads=2))], **options)

    factor = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    rec = run(factor, grad=True)
    rec.metric["m"].sum().backward()
    step = 1e-6
    # The edit's numbers are read as float64: 0.3 ± 1e-6 must not be rounded to float32 first.
    numeric = (
        run(torch.tensor(0.3 + step, dtype=torch.float64)).metric["m"].sum()
        - run(torch.tensor(0.3 - step, dtype=torch.float64)).metric["m"].sum()
    ) / (2 * step)
    assert torch.allclose(factor.grad, numeric, rtol=1e-5)


def test_the_gradient_at_an_edited_pattern_is_that_of_z_and_v():
    """Adding a small number to one share moves the metric as its gradient says."""
    hf, tokenizer = testing.tiny("gpt2")
    model = act.wrap(hf.double(), tokenizer, certify=False)
    metric, edit = Metric(lambda x: x[:, 1], name="m"), Scale(PATTERN, 0.7)
    gradient = model.run(RAGGED, read=PATTERN, metrics=metric, edits=[edit], grad=True).backward("m")[PATTERN].example(0).tensor
    where, step = Where(examples=0, heads=1, positions=5, keys=2), 1e-6
    up, down = (model.run(RAGGED, metrics=metric, edits=[edit, Add(PATTERN, 1.0, s, where=where)]).metric["m"].sum() for s in (step, -step))
    assert torch.allclose((up - down) / (2 * step), gradient[1, 5, 2], rtol=1e-5)


def test_what_is_refused(llama, tmp_path):
    with pytest.raises(InputError, match=r"blocks.0.attn.pattern has no features; choose keys .* Where\(keys=…\)"):
        llama.run(RAGGED, edits=[Zero(PATTERN, where=Where(features=1))])
    with pytest.raises(InputError, match="blocks.0.attn.z has no keys; Where"):
        llama.run(RAGGED, edits=[Zero("blocks.0.attn.z", where=Where(keys=1))])
    with pytest.raises(InputError, match="these rows have no phase"):
        llama.run(RAGGED, edits=[Zero(PATTERN, where=Where(phases="response"))])
    with pytest.raises(InputError, match="No phase called 'answer'. Known: prompt, response"):
        Where(phases="answer")
    with (
        llama.edited(Zero(PATTERN, where=Where(heads=0))),
        pytest.raises(StoreError, match="blocks.0.attn has edited patterns, which a store cannot keep"),
    ):
        act.capture(llama, RAGGED, PATTERN, to=tmp_path / "edited.acts", progress=False)
    with llama.edited(Zero(PATTERN, where=Where(heads=0))):  # what does not follow from the pattern alone is stored as ever
        stored = act.capture(llama, RAGGED, "blocks.0.attn.z", to=tmp_path / "z.acts", progress=False)
    assert (stored["blocks.0.attn.z"].tensor[:, 0] == 0).all()
