"""TransformerLens models: the same sites hold the same numbers as in the Hugging Face model with the same weights."""

import pickle
from functools import cache

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import Add, ProjectOut, Scale, Set, SkipBlock, Where, Zero
from activarium.errors import CertificateError, InputError, MissingSite, UnknownName, UnknownSite
from activarium.metrics import logit_difference

from .lens_models import FAMILIES, KINDS, bridge, hooked

pytest.importorskip("transformer_lens", reason="the extra [lens] is not installed")
pytestmark = [
    pytest.mark.slow,  # TransformerLens takes seconds to import
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),  # told to whoever makes one
]

RAGGED = [torch.tensor([20, 31, 42, 53, 64, 75, 86]), torch.tensor([33, 44]), torch.tensor([50, 61, 72, 83])]
BOTH = [(family, kind) for family in FAMILIES for kind in KINDS]
EVERY = {"resid_pre", "attn.in", "attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.z", "attn.head_out", "attn.proj"} | {
    "attn.out", "mlp.in", "mlp.pre", "mlp.post", "mlp.proj", "mlp.out", "resid_post"
}  # fmt: skip
ALSO = {  # what a family has beyond those that all share
    ("gpt2", "HookedTransformer"): {"attn.q_rot", "attn.k_rot", "resid_mid", "mlp.act"},
    ("gpt2", "TransformerBridge"): {"attn.q_rot", "attn.k_rot", "resid_mid", "mlp.act"},
    ("llama", "HookedTransformer"): {"attn.q_rot", "attn.k_rot", "resid_mid", "mlp.up"},
    ("llama", "TransformerBridge"): {"attn.q_rot", "attn.k_rot", "resid_mid", "mlp.up"},
    ("gpt_neox", "HookedTransformer"): {"attn.q_rot", "attn.k_rot", "mlp.act"},
    ("gpt_neox", "TransformerBridge"): {"mlp.act"},  # this bridge rotates without a hook point
}


@cache
def original(family):
    return act.wrap(*testing.tiny(family), name=family)


@cache
def lens(family, kind):
    return act.wrap(*KINDS[kind](family), name=f"{family} in {kind}")


def parts(found):
    """The values of a site, one tensor per example for patterns."""
    return [found.example(e).tensor for e in range(len(RAGGED))] if "query" in found.axes else [found.tensor]


def gap(ours, theirs):
    """Largest difference relative to the largest value; hidden scores must be hidden in both."""
    worst = 0.0
    for a, b in zip(parts(ours), parts(theirs), strict=True):
        assert a.shape == b.shape and torch.equal(a.isinf(), b.isinf())
        a, b = (x.double().masked_fill(x.isinf(), 0) for x in (a, b))
        worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst


@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_every_site_holds_the_same_numbers(family, kind):
    ours, theirs = lens(family, kind), original(family)
    shared = [n for n in theirs.sites if n in ours.sites]
    blocks = len(theirs.anatomy.stacks[""].blocks)
    here = {n.split(".", 2)[2] for n in shared if n.startswith("blocks.")}
    assert here == EVERY | ALSO[family, kind]
    assert len([n for n in shared if n.startswith("blocks.")]) == blocks * len(here)
    assert {"token_embed", "embed", "final_norm", "logits"} <= set(shared)
    a, b = ours.run(RAGGED, shared), theirs.run(RAGGED, shared)
    assert a.rows[""].frame().equals(b.rows[""].frame())
    for name in shared:
        assert ours.sites[name].axes == theirs.sites[name].axes and ours.sites[name].shape == theirs.sites[name].shape, name
        assert gap(a[name], b[name]) < 1e-5, name


@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_together_is_one_by_one_whatever_the_padding_side(family, kind):
    model = lens(family, kind)
    names = [n for n in model.sites if "query" not in model.sites[n].axes]
    before = getattr(model.torch_module.tokenizer, "padding_side", None)
    for side in ("left", "right") if before else ("",):
        if side:
            model.torch_module.tokenizer.padding_side = side
        together = model.run(RAGGED, names)
        for e, text in enumerate(RAGGED):
            alone = model.run([text], names)
            for name in names:
                rows = together[name].tensor[together[name].index.span(e)]
                assert torch.allclose(rows, alone[name].tensor, atol=1e-5 * float(alone[name].tensor.abs().max())), (name, side)
        if side:
            assert model.torch_module.tokenizer.padding_side == side
            model.torch_module.tokenizer.padding_side = before


VECTOR = torch.linspace(-1, 1, 32)
EDITS = {
    "add to the stream": [Add("blocks.0.resid_pre", VECTOR, where=Where(examples=(0, 2), positions=(-1,)))],
    "set what attention takes in": [Set("blocks.1.attn.in", VECTOR, where=Where(positions=(1,)))],
    "one head's queries": [Scale("blocks.0.attn.q", 2.0, where=Where(heads=(1,)))],
    "one key head": [Zero("blocks.1.attn.k", where=Where(heads=(1,)))],
    "one head's mix": [Zero("blocks.0.attn.z", where=Where(heads=(2,)))],
    "neurons": [Scale("blocks.0.mlp.post", 3.0, where=Where(features=(0, 5))), Zero("blocks.1.mlp.pre", where=Where(positions=(0,)))],
    "a write, then a direction": [Scale("blocks.0.attn.out", 0.5), ProjectOut("blocks.1.mlp.out", VECTOR)],
    "a block": [SkipBlock("blocks.0")],
    "the end": [Scale("final_norm", 0.5)],
}


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_edits_do_the_same(family, kind, what):
    ours, theirs = lens(family, kind), original(family)
    read = ["blocks.*.resid_post", "blocks.*.attn.pattern"]
    a, b = (m.run(RAGGED, read, edits=EDITS[what]) for m in (ours, theirs))
    assert not torch.allclose(a.logits.tensor, ours.run(RAGGED).logits.tensor, atol=1e-3)
    for name in [*b, "logits"]:
        assert gap(a[name], b[name]) < 1e-5, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_block_does_not_run(kind):
    model = lens("llama", kind)
    skipped = model.run(RAGGED, edits=[SkipBlock("blocks.0")]).logits.tensor
    with model.removed(["blocks.0"]):
        assert torch.equal(model.run(RAGGED).logits.tensor, skipped)
    assert not torch.equal(model.run(RAGGED).logits.tensor, skipped)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", ["resid_mid", "attn.q_rot", "attn.k_rot"])
def test_edits_where_only_some_have_the_site(kind, site):
    edit = Scale(f"blocks.0.{site}", 1.7, where=Where(positions=(1,)))
    a, b = (m.run(RAGGED, "blocks.*.resid_post", edits=[edit]) for m in (lens("llama", kind), original("llama")))
    assert gap(a.logits, b.logits) < 1e-5
    assert gap(a.logits, original("llama").run(RAGGED).logits) > 1e-3


PATTERNS = {
    "no head looks at the first token": [Zero("blocks.0.attn.pattern", where=Where(keys=(0,)))],
    "one head looks at the last token": [Set("blocks.1.attn.pattern", 1.0, where=Where(heads=(1,), keys=(-1,)))],
    "one query's scores": [Scale("blocks.0.attn.scores", 0.5, where=Where(positions=(-1,), heads=(2,)))],
    "both, in two blocks": [Scale("blocks.0.attn.scores", 2.0), Scale("blocks.1.attn.pattern", 0.5, where=Where(examples=(1,)))],
}


@pytest.mark.parametrize("what", PATTERNS)
@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_pattern_edits_do_the_same(family, kind, what):
    ours, theirs = lens(family, kind), original(family)
    read = ["blocks.*.attn.pattern", "blocks.*.attn.scores", "blocks.*.resid_post"]
    a, b = (m.run(RAGGED, read, edits=PATTERNS[what]) for m in (ours, theirs))
    assert gap(ours.run(RAGGED).logits, b.logits) > 1e-4  # the edit does something
    for name in [*b, "logits"]:
        assert gap(a[name], b[name]) < 1e-5, name


def test_a_pattern_has_no_features():
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.pattern has no features; choose keys"):
        lens("gpt2", "HookedTransformer").run(RAGGED, edits=[Zero("blocks.0.attn.pattern", where=Where(features=(0,)))])


@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_gradients_are_the_same(family, kind):
    ours, theirs = lens(family, kind), original(family)
    names = [n for n in theirs.sites if n in ours.sites and not n.endswith(("scores", "head_out", "logits"))]
    metric = logit_difference([3, 4, 5], [6, 7, 8])
    found = []
    for model in (ours, theirs):
        rec = model.run(RAGGED, names, metrics=metric, grad=True)
        rec.backward("logit_difference")
        found.append(rec.gradient)
    assert set(found[0]) == set(found[1])
    for name in found[1]:
        assert gap(found[0][name], found[1][name]) < 1e-4, name
    assert "blocks.0.attn.in" in found[0] and "blocks.0.attn.pattern" in found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_readout_and_resume_are_the_same(kind):
    for family in FAMILIES:
        ours, theirs = lens(family, kind), original(family)
        for name in theirs.weights:
            if name in ours.weights:
                assert torch.allclose(ours.weight(name), theirs.weight(name), atol=1e-6), name
        assert {"W_U", "blocks.0.attn.W_O", "blocks.1.mlp.W_down", "blocks.0.attn.W_K"} <= set(ours.weights)
        stream = theirs.run(RAGGED, ["blocks.0.resid_post"])["blocks.0.resid_post"].tensor
        assert torch.allclose(ours.readout(stream), theirs.readout(stream), atol=1e-5)
        rest = ours.resume(RAGGED, "blocks.0.resid_post", stream, "blocks.1.mlp.post")
        assert gap(rest.logits, theirs.run(RAGGED).logits) < 1e-5
    with pytest.raises(InputError, match=r"resumes from position 0 only; drop start="):
        ours.resume(RAGGED, "blocks.0.resid_post", stream, start=1)
    for writes in (ours.generate, ours.decode, ours.sparse):
        with pytest.raises(InputError, match=r"is not read while it writes. Wrap the Hugging Face model"):
            writes(RAGGED)
    with pytest.raises(UnknownName, match=r"No weight called 'blocks\.0\.attn\.W_X'"):
        ours.weight("blocks.0.attn.W_X")


# --- names


def test_names_go_both_ways():
    model = lens("gpt2", "HookedTransformer")
    hooks = set(model.torch_module.hook_dict)
    for name in model.sites:
        theirs = act.capture.lens_name(name)
        if theirs is not None:
            assert model.sites.find(theirs).name == model.sites.find(name).name
            assert model.sites.select(theirs) == [act.capture.lens_alias(theirs)]
    assert {act.capture.lens_name(f"blocks.1.{s}") for s in ("resid_pre", "attn.z", "mlp.post")} <= hooks
    assert act.capture.lens_name("blocks.1.attn.in") == "blocks.1.attn.hook_in"
    rec = model.run(RAGGED, ["blocks.1.hook_resid_pre", "blocks.0.attn.hook_z"])
    assert torch.equal(rec["blocks.1.resid_pre"].tensor, model.run(RAGGED, "blocks.0.resid_post")["blocks.0.resid_post"].tensor)


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_pst", "blocks.9.hook_resid_pre", "blocks.0.ln1.hook_normalized", "hook_resid_pre"])
def test_unknown_names_are_errors(name):
    with pytest.raises(UnknownSite, match="No site in this model called"):
        lens("gpt2", "HookedTransformer").run(RAGGED, name)


def test_what_is_missing_says_why():
    with pytest.raises(MissingSite, match="its attention and MLP run in parallel"):
        lens("gpt_neox", "HookedTransformer").run(RAGGED, "blocks.0.hook_resid_mid")
    with pytest.raises(MissingSite, match="what enters the scores passes no hook point"):
        lens("gpt_neox", "TransformerBridge").run(RAGGED, "blocks.0.attn.q_rot")
    with pytest.raises(MissingSite, match=r"blocks\.0\.attn\.q_rot cannot be kept: what enters the scores passes no hook point"):
        act.capture(lens("gpt_neox", "TransformerBridge"), ["the cat"], "blocks.0.attn.pattern", progress=False)
    with pytest.raises(MissingSite, match="in one step; read mlp.post"):
        lens("llama", "HookedTransformer").run(RAGGED, "blocks.0.mlp.act")


# --- the certificate


@pytest.mark.parametrize(
    ("site", "hook"),
    [
        ("attn.v", "attn.hook_q"),
        ("attn.q", "attn.hook_k"),
        ("attn.z", "attn.hook_v"),
        ("resid_mid", "hook_resid_pre"),
        ("resid_pre", "hook_resid_mid"),
        ("mlp.in", "ln2.hook_normalized"),
        ("mlp.post", "mlp.hook_pre"),
        ("mlp.pre", "mlp.hook_post"),
    ],
)
def test_a_wrong_place_is_caught(monkeypatch, site, hook):
    from activarium.capture import _lens_places

    monkeypatch.setitem(_lens_places.HOOKED, site, (_lens_places.at(hook),))
    with pytest.raises(CertificateError, match="What would be read is not what this model computes"):
        act.wrap(*hooked("gpt2"))


def test_a_write_that_does_not_add_up_is_not_offered(monkeypatch):
    from activarium.capture import _lens_places

    monkeypatch.setitem(_lens_places.HOOKED, "attn.out", (_lens_places.at("hook_mlp_out"),))
    model = act.wrap(*hooked("gpt2"))
    with pytest.raises(MissingSite, match="the block's sum was not found among its hook points"):
        model.run(RAGGED, "blocks.0.attn.out")


def test_the_sums_of_the_stream_are_proven():
    names = {c.name for c in lens("gpt2", "HookedTransformer").certificate.checks}
    assert {"resid_mid = resid_pre + attn.out", "resid_post = resid_mid + mlp.out"} <= names


@pytest.mark.parametrize(("room", "point"), [("mlp", "hook_pre"), ("attn", "hook_q"), ("attn", "hook_k"), ("attn", "hook_v")])
def test_a_hook_point_that_nobody_heeds_is_caught(room, point):
    """Reads are right there and writes do nothing: only the write tests can tell."""
    from torch import nn

    class Deaf(nn.Module):  # shows a value to hooks and goes on with the one it was given
        def __init__(self, heard):
            super().__init__()
            self.heard = heard

        def __call__(self, value):
            self.heard(value)
            return value

    model, tokenizer = hooked("gpt2")
    for block in model.blocks:
        part = getattr(block, room)
        heard = getattr(part, point)
        delattr(part, point)
        part.__dict__[point] = Deaf(heard)
        part.add_module(f"{point}_seen", heard)
    from activarium.capture import _lens_places

    short = {"hook_pre": "mlp.pre"}.get(point, f"attn.{point[-1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_lens_places.HOOKED, short, (_lens_places.at(f"{room}.{point}_seen"),))
        assert act.wrap(model, tokenizer, certify="quick").certificate.verdict.startswith("certified (quick")
        with pytest.raises(CertificateError, match="a write changes what follows"):
            act.wrap(model, tokenizer)


def test_hooks_of_others_are_told():
    model, _ = hooked("gpt2")
    model.add_perma_hook("blocks.0.hook_resid_pre", lambda value, hook: value + 1)
    wrapped = act.wrap(model)
    assert any("1 hook functions were on the model" in n for n in wrapped.certificate.notes)
    assert "act in every run" in repr(wrapped.certificate)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_other_types_are_certified(family, kind, dtype):
    made, tokenizer = KINDS[kind](family)
    model = act.wrap(made.to(dtype), tokenizer)
    assert model.certificate.verdict.startswith("certified (full") and model.dtype == dtype
    assert model.run(RAGGED, "blocks.0.mlp.post")["blocks.0.mlp.post"].dtype == dtype


# --- processed weights


def processed(kind):
    if kind == "TransformerBridge":
        made, tokenizer = bridge("gpt2")
        made.enable_compatibility_mode(disable_warnings=True)
        return made, tokenizer
    made, tokenizer = hooked("gpt2")
    made.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    return made, tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_processing_is_measured_and_told(kind):
    ours, theirs = act.wrap(*processed(kind)), original("gpt2")
    assert ours.identity["processing"] == dict.fromkeys(("folded_norms", "centred_writing", "centred_unembed", "folded_value_biases"), True)
    for words in (
        "as after folding them into the weights that follow",
        "writing weights are centred",
        "unembedding is centred",
        "value biases are folded",
    ):
        assert any(words in n for n in ours.certificate.notes) and words in repr(ours.certificate)
    assert not any(lens("gpt2", kind).identity["processing"].values())
    assert ours.identity["weight_hash"] != lens("gpt2", kind).identity["weight_hash"]
    names = ["blocks.*.attn.q", "blocks.*.mlp.post", "blocks.*.attn.pattern", "blocks.*.resid_post", "blocks.*.attn.v"]
    a, b = ours.run(RAGGED, names), theirs.run(RAGGED, names)
    for name in b:  # what processing leaves alone is the same
        if name.endswith(("q", "mlp.post", "pattern")):
            assert gap(a[name], b[name]) < 1e-5, name
    logits, stream = b.logits.tensor, b["blocks.1.resid_post"].tensor
    assert torch.allclose(a.logits.tensor, logits - logits.mean(-1, keepdim=True), atol=1e-5)
    assert torch.allclose(a["blocks.1.resid_post"].tensor, stream - stream.mean(-1, keepdim=True), atol=1e-5)
    assert gap(a["blocks.1.resid_post"], b["blocks.1.resid_post"]) > 1e-2 and gap(a["blocks.1.attn.v"], b["blocks.1.attn.v"]) > 1e-2


# --- captures and analyses take it as any other


@pytest.mark.parametrize("kind", KINDS)
def test_capture_and_analyses_take_it(kind, tmp_path):
    ours, theirs = lens("gpt2", kind), original("gpt2")
    texts = testing.texts()
    stored = [
        act.capture(
            m, texts, ["blocks.*.mlp.post", "blocks.*.attn.pattern"], to=tmp_path / f"{m is ours}.acts", progress=False, batch_tokens=32
        )
        for m in (ours, theirs)
    ]
    for name in ("blocks.1.mlp.post", "blocks.2.attn.pattern"):
        for e in range(len(texts)):
            a, b = (s[name].example(e).tensor for s in stored)
            assert torch.allclose(a, b, atol=1e-5)
    with pytest.warns(UserWarning, match="smooth activation"):
        lazy = [act.analyses.lazy_neurons(s, resamples=20) for s in stored]
    assert lazy[0]["layers"].to_frame().equals(lazy[1]["layers"].to_frame())
    rec = [m.run(texts, ["embed", "blocks.*.resid_post"]) for m in (ours, theirs)]
    seen = [act.analyses.logit_lens(r, m) for r, m in zip(rec, (ours, theirs), strict=True)]
    assert torch.allclose(torch.tensor(seen[0]["probability"].values), torch.tensor(seen[1]["probability"].values), atol=1e-5)
    assert act.open(tmp_path / "True.acts").provenance["model"]["kernel"] == "transformer_lens"


# --- what is refused, and what is left behind


def test_what_it_cannot_read_is_refused():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 32, "d_vocab": 50, "act_fn": "relu", "device": "cpu"}
    both_ways = HookedTransformer(HookedTransformerConfig(**shape, attention_dir="bidirectional", seed=0))
    with pytest.raises(InputError, match="attends both ways; act.wrap reads causal TransformerLens models"):
        act.wrap(both_ways)
    with pytest.raises(InputError, match="no single chain of text blocks that ends in a vocabulary"):
        act.wrap(*bridge("t5"))
    attention_only = HookedTransformer(HookedTransformerConfig(**shape, attn_only=True, seed=0))
    model = act.wrap(attention_only)
    assert model.certificate.verdict.startswith("certified") and "blocks.0.mlp.post" in model.sites.missing


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_behind(kind):
    model = lens("llama", kind)
    before = {n: v.clone() for n, v in model.torch_module.state_dict().items()}

    def interrupted(name, value):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.run(RAGGED, "blocks.0.mlp.post", keep=interrupted)
    assert not [p for p, m in model.torch_module.named_modules() if m._forward_hooks or (m._forward_pre_hooks and "hook" in p)]
    assert all(torch.equal(v, before[n]) for n, v in model.torch_module.state_dict().items())
    assert gap(model.run(RAGGED).logits, original("llama").run(RAGGED).logits) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["blocks.0.attn", "blocks.1.mlp", "ln_final", "unembed"])
def test_a_changed_weight_is_another_model(kind, path):
    model = act.wrap(*KINDS[kind]("gpt2"), certify=False)
    before, logits = model.identity["weight_hash"], model.run(RAGGED).logits.tensor
    assert model.identity["weight_hash"] == before
    # A bridge keeps the fused projection, too, but computes with the parts it was split into.
    live = f"{path}.v" if path.endswith("attn") and kind == "TransformerBridge" else path
    weights = max(model.module(live).parameters(), key=lambda p: p.numel())
    with torch.no_grad():
        weights.add_(0.1)
    assert not torch.equal(model.run(RAGGED).logits.tensor, logits)
    assert model.identity["weight_hash"] != before


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_is_what_the_certificate_says(family):
    made, tokenizer = bridge(family)
    model = act.wrap(made, tokenizer)
    would = made.cfg.default_prepend_bos
    assert any(f"would {'' if would else 'not '}prepend BOS" in n for n in model.certificate.notes)
    theirs = made.to_tokens("the cat sat")[0]
    assert torch.equal(model.inputs("the cat sat", bos=bool(would)).data[""][0], theirs)
    plain = tokenizer("the cat sat", return_tensors="pt")["input_ids"][0]
    assert torch.equal(model.inputs("the cat sat").data[""][0], plain)


def test_it_travels_to_another_process_as_what_it_is():
    from activarium.capture import LensRunner

    model = lens("gpt2", "HookedTransformer")
    again = pickle.loads(pickle.dumps(model))  # as a cluster's transport does between processes; nothing is stored so
    assert type(again) is LensRunner
    assert torch.equal(again.run(RAGGED, "blocks.1.attn.pattern").logits.tensor, model.run(RAGGED).logits.tensor)
    assert again.processing == model.processing


@pytest.mark.parametrize("kind", KINDS)
def test_a_survey_is_that_of_the_hugging_face_model(kind):
    from activarium.summaries import Count, Moments

    wanted = {"blocks.*.mlp.post": [Count(), Moments()], "blocks.*.attn.q_rot": [Moments()]}
    theirs = act.wrap(*testing.tiny("gpt2"), certify=False)
    ours, plain = (act.survey(m, wanted, [t.tolist() for t in RAGGED], progress=False) for m in (lens("gpt2", kind), theirs))
    assert list(ours) == list(plain)
    for site in plain:
        assert torch.allclose(ours[site]["Moments"].mean, plain[site]["Moments"].mean, atol=1e-5), site
    assert ours["blocks.1.mlp.post"]["Count"].rows == sum(map(len, RAGGED))
