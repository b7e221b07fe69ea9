"""Relevance rules: values bit for bit, gradients as the formulas say, counted, and gone when the forward is over."""

import copy

import pytest
import torch
from torch import nn

import activarium as act
from activarium import testing
from activarium.edits import Detach, Edit, Scale, Zero
from activarium.errors import InputError, UnknownName
from activarium.metrics import Metric, logit_difference
from activarium.rules import PRESETS, Rules

IDS = torch.tensor([[20, 31, 42, 53, 64]])
OTHER = torch.tensor([[20, 75, 42, 33, 64]])
METRIC = logit_difference([7], [11])
CLASSES = Metric(lambda x: x[:, 0] - x[:, 1], name="classes")


class Root(nn.Module):
    """RMSNorm that computes in the type of its input; the families' own go through float32."""

    def __init__(self, theirs):
        super().__init__()
        self.weight, self.eps = theirs.weight, theirs.variance_epsilon

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


def double(family, **values):
    """A tiny model in float64, norms included."""
    hf, processor = testing.tiny(family, **values)
    hf = copy.deepcopy(hf).double()
    for path, module in list(hf.named_modules()):
        if hasattr(module, "variance_epsilon"):
            parent, _, name = path.rpartition(".")
            setattr(hf.get_submodule(parent), name, Root(module))
    return act.wrap(hf, processor, name=family, certify=False)


def inputs(family):
    if family in ("clip", "siglip"):
        return {"text": testing.texts(2), "images": testing.images(2)}
    if testing.FAMILIES[family].images:
        return testing.images(2)
    if family.startswith("t5"):
        return {"encoder": [IDS[0], OTHER[0, :3]], "decoder": [IDS[0, :3], OTHER[0, :4]]}
    return [IDS[0], OTHER[0, :3]]


def measured(model, data=IDS, rules=None, read=(), metric=METRIC, **options):
    rec = model.run(data, read=read, metrics={"m": metric}, grad=True, rules=rules, **options)
    if read:
        rec.backward("m")
    return rec


def gradient(model, site, rules=None, **options):
    return measured(model, rules=rules, read=site, **options).gradient[site].tensor


def near(a, b, size=1e-10):
    return (a - b).abs().max() <= size * b.abs().max()


# --- values stay, bit for bit


QUICK = ("gpt2", "llama", "gpt_neox", "bert", "vit")


@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in testing.FAMILIES])
def test_logits_are_bit_identical(family):
    model = act.wrap(*testing.tiny(family), name=family, certify=False)
    data = inputs(family)
    metric = CLASSES if "example" in model.sites["logits"].axes else logit_difference([7, 7], [11, 11])
    plain = measured(model, data, metric=metric)
    for name in PRESETS:
        if (family, name) == ("siglip", "gim"):  # its texts attend to their pads, which are no rows: a mix of rows is not its mix
            with pytest.raises(InputError, match=r"rule for text_model.encoder.layers.0.self_attn gives other values than the module"):
                measured(model, data, name, metric=metric)
            continue
        ruled = measured(model, data, name, metric=metric)
        assert torch.equal(ruled.logits.tensor, plain.logits.tensor)
        assert torch.equal(ruled.metric["m"], plain.metric["m"])
        assert ruled.provenance["rules"]["name"] == name


def test_rules_that_are_all_off_are_the_ordinary_gradient():
    model = double("llama")
    sites = ["blocks.0.resid_pre", "blocks.1.mlp.pre"]
    plain, ruled = measured(model, read=sites), measured(model, read=sites, rules=Rules())
    assert all(torch.equal(plain.gradient[s].tensor, ruled.gradient[s].tensor) for s in sites)
    assert "rules" not in plain.provenance
    assert ruled.provenance["rules"]["fields"] == {
        "norms": False,
        "activations": False,
        "gates": False,
        "attention": "ordinary",
        "qk_norms": False,
    }


# --- what the rules mean


def leaves(model, rules, data=IDS, metric=METRIC):
    """Metric, relevance of the embeddings, relevance of the biases above them."""
    spaces = [s.prefix for s in model.anatomy.stacks.values()]
    sites = [f"{p}embed" for p in spaces]
    rec = measured(model, data, rules, sites, metric, edits=[Detach(s) for s in sites])
    embed = sum((rec[s].tensor * rec.gradient[s].tensor).sum().item() for s in sites)
    biases = [p for n, p in model.torch_module.named_parameters() if n.endswith("bias")]
    m = rec.metric["m"].sum()
    found = torch.autograd.grad(m, biases, allow_unused=True) if biases else ()
    return m.item(), embed, sum((p * g).sum().item() for p, g in zip(biases, found, strict=True) if g is not None)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2", "phi", "opt", "bert", "vit", "dinov2", "gemma2", "t5_gated"])
def test_relevance_is_conserved_with_frozen_attention_and_bias_leaves_and_not_otherwise(family):
    values = {"tie_word_embeddings": False} if family == "t5_gated" else {}
    model = double(family, **values)
    data = [IDS[0]] if not testing.FAMILIES[family].images else testing.images(1)
    data = {"encoder": [IDS[0]], "decoder": [OTHER[0, :3]]} if family.startswith("t5") else data
    metric = CLASSES if testing.FAMILIES[family].images else METRIC
    m, embed, biases = leaves(model, "relp-ah", data, metric)
    # Gemma's norms compute in float32 whatever the model's type is.
    assert abs(m - embed - biases) <= (1e-5 if family == "gemma2" else 1e-9) * max(abs(embed), abs(biases), abs(m))
    for other in ("relp", None):
        m, embed, biases = leaves(model, other, data, metric)
        assert abs(m - embed - biases) > 1e-2 * abs(m)


class Frozen:
    """A forward of a Hugging Face model in which every norm scale, pattern, activation ratio and gate operand is a number of the
    base run. Made with replaced forwards and none of the code under test."""

    def __init__(self, hf, ids):
        self.hf, self.ids, self.kept, self.keeping = hf, ids, {}, True
        self.calls = 0
        for module in [m for m in hf.modules() if isinstance(m, (Root, nn.LayerNorm))]:
            module.forward = self.norm(module)
        for module in [m for m in hf.modules() if type(m).__name__ in ("NewGELUActivation", "GELUActivation", "SiLUActivation", "SiLU")]:
            module.forward = self.activation(module, type(module).forward.__get__(module))
        for module in [m for m in hf.modules() if hasattr(m, "gate_proj")]:
            module.forward = self.gated(module)
        from transformers import AttentionInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

        AttentionInterface.register("frozen_in_a_test", self.attend)
        AttentionMaskInterface.register("frozen_in_a_test", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        hf.set_attn_implementation("frozen_in_a_test")
        self.base = self()
        self.keeping = False

    def once(self, key, make):
        if self.keeping:
            self.kept[key] = make()
        return self.kept[key]

    def norm(self, module):
        def forward(x):
            c = x - x.mean(-1, keepdim=True) if isinstance(module, nn.LayerNorm) else x
            variance = c.square().mean(-1, keepdim=True) + module.eps
            scale = self.once((module, "scale"), variance.rsqrt)
            return c * scale * module.weight + (module.bias if isinstance(module, nn.LayerNorm) else 0)

        return forward

    def activation(self, module, original):
        return lambda x: x * self.once((module, "ratio"), lambda: original(x) / x)

    def gated(self, module):
        def forward(x):
            a, u = module.act_fn(module.gate_proj(x)), module.up_proj(x)
            a_base, u_base = self.once((module, "a"), lambda: a), self.once((module, "u"), lambda: u)
            return module.down_proj((a * u_base + a_base * u) / 2)

        return forward

    def attend(self, module, q, k, v, mask, scaling=None, **options):
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))

        def pattern():
            scores = q @ k.transpose(-1, -2) * (scaling or q.shape[-1] ** -0.5)
            hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
            return scores.masked_fill(hidden, -torch.inf).softmax(-1)

        return (self.once((module, "pattern"), pattern) @ v).transpose(1, 2), None

    def __call__(self, module=None, position=None, value=None):
        """The metric, with one module's output replaced at one position."""

        def replace(_m, _a, output):
            first = (output if isinstance(output, torch.Tensor) else output[0]).clone()
            first[0, position] = value
            return first if isinstance(output, torch.Tensor) else (first, *output[1:])

        handle = module.register_forward_hook(replace) if module is not None else None
        with torch.no_grad():
            logits = self.hf(self.ids).logits[0, -1]
        if handle is not None:
            handle.remove()
        return float(logits[7] - logits[11])


PARTS = {
    "gpt2": lambda hf: [(b, b.attn, b.mlp) for b in hf.transformer.h],
    "llama": lambda hf: [(b, b.self_attn, b.mlp) for b in hf.model.layers],
    "gpt_neox": lambda hf: [(b, b.attention, b.mlp) for b in hf.gpt_neox.layers],
}


@pytest.mark.parametrize("family", PARTS)
def test_exact_patching_in_the_frozen_model_equals_the_scores_with_frozen_attention(family):
    """Nobody passes this by accident: the rules' first-order score is exact where every coefficient is a constant."""
    model = double(family)
    sites = ["blocks.*.resid_post", "blocks.*.attn.out", "blocks.*.mlp.out"]
    source = model.run(OTHER, read=sites)
    base = measured(model, IDS, "relp-ah", sites)
    ordinary = measured(model, IDS, None, sites)
    frozen = Frozen(copy.deepcopy(model.torch_module), IDS)
    assert abs(frozen.base - base.metric["m"].item()) < 1e-10  # the hand-made forward is the model
    worst, size, differs = 0.0, 0.0, 0.0
    for i, modules in enumerate(PARTS[family](frozen.hf)):
        for module, site in zip(modules, ("resid_post", "attn.out", "mlp.out"), strict=True):
            name = f"blocks.{i}.{site}"
            delta = source[name].tensor - base[name].tensor.detach()
            for position in range(IDS.shape[1]):
                exact = frozen(module, position, source[name].tensor[position]) - frozen.base
                score = float((delta * base.gradient[name].tensor)[position].sum())
                worst, size = max(worst, abs(exact - score)), max(size, abs(exact))
                differs = max(differs, abs(exact - float((delta * ordinary.gradient[name].tensor)[position].sum())))
    assert size > 0.1
    assert worst <= 1e-10 * size
    assert differs > 1e-2 * size  # the ordinary gradient does not pass


def silu(x):
    return x * torch.sigmoid(x)


def test_gated_neurons_follow_the_two_rules():
    """The formulas, written out: half of the product's gradient times the other branch, through f(x)/x."""
    model = double("llama")
    block, sites = "blocks.1.mlp.", ["pre", "up", "act", "post"]
    values = measured(model, read=[block + s for s in sites], rules="relp")
    x, u = values[block + "pre"].tensor, values[block + "up"].tensor
    g = {s: values.gradient[block + s].tensor for s in sites}
    assert near(g["act"], g["post"] * u / 2)
    assert near(g["up"], g["post"] * silu(x) / 2)
    assert near(g["pre"], g["act"] * torch.sigmoid(x))
    alone = measured(model, read=[block + s for s in sites], rules=Rules(activations=True)).gradient
    assert near(alone[block + "act"].tensor, alone[block + "post"].tensor * u)


def test_fused_gate_without_an_activation_module():
    """DINOv2's SwiGLU holds both branches in one projection and calls a function."""
    model = double("dinov2", use_swiglu_ffn=True)
    sites = ["blocks.0.mlp.pre", "blocks.0.mlp.up", "blocks.0.mlp.post"]
    rec = measured(model, testing.images(1), "relp", sites, CLASSES)
    x, u, _ = (rec[s].tensor for s in sites)
    g_x, g_u, g = (rec.gradient[s].tensor for s in sites)
    assert near(g_x, g / 2 * u * torch.sigmoid(x))
    assert near(g_u, g / 2 * silu(x))
    assert rec.provenance["rules"]["gates"] == rec.provenance["rules"]["activations"] == 2
    m, embed, biases = leaves(model, "relp-ah", testing.images(1), CLASSES)
    assert abs(m - embed - biases) <= 1e-9 * max(abs(m), abs(embed), abs(biases))


def test_a_functional_activation_at_zero_has_its_slope():
    model = double("dinov2", use_swiglu_ffn=True)
    sites = ["blocks.0.mlp.pre", "blocks.0.mlp.up", "blocks.0.mlp.post"]
    rec = measured(model, testing.images(1), Rules(activations=True), sites, CLASSES, edits=[Zero(sites[0])])
    assert near(rec.gradient[sites[0]].tensor, rec.gradient[sites[2]].tensor * rec[sites[1]].tensor / 2)


@pytest.mark.parametrize(("family", "slope"), [("gpt2", 0.5), ("gpt_neox", 0.5), ("opt", 0.0)])
def test_at_zero_the_ratio_is_the_slope(family, slope):
    """An epsilon under the fraction would give 0 or infinity here."""
    model = double(family)
    sites = ["blocks.0.mlp.pre", "blocks.0.mlp.post"]
    rec = measured(model, read=sites, rules=Rules(activations=True), edits=[Zero(sites[0])])
    before, after = (rec.gradient[s].tensor for s in sites)
    assert after.abs().max() > 1e-3
    assert torch.allclose(before, slope * after, rtol=1e-12, atol=0)


def test_relu_has_the_ordinary_gradient():
    model = double("opt")
    site = "blocks.0.resid_pre"
    assert near(gradient(model, site, Rules(activations=True, gates=True)), gradient(model, site), 1e-12)


def test_the_scale_of_the_stream_does_not_matter_to_a_frozen_norm():
    model = double("gpt2")
    site = "blocks.2.resid_post"
    plain = measured(model, read=site, rules="ln")
    tenfold = measured(model, read=site, rules="ln", edits=[Scale(site, 10.0)])
    assert near(tenfold.gradient[site].tensor * 10, plain.gradient[site].tensor, 1e-4)  # up to the norm's epsilon
    assert near(tenfold[site].tensor * tenfold.gradient[site].tensor, plain[site].tensor * plain.gradient[site].tensor, 1e-4)
    shift = (plain[site].tensor * plain.gradient[site].tensor).sum().item()
    assert abs(shift) > 0.1  # the ordinary gradient of a norm has none along its input
    assert abs((plain[site].tensor * gradient(model, site)).sum().item()) < 1e-3 * abs(shift)


def test_attention_rules_scale_or_cut_queries_keys_and_values():
    """In the last block nothing else lies between, so the factors show as they are."""
    model = double("gemma2")
    sites = [f"blocks.1.attn.{n}" for n in ("q_rot", "k_rot", "v")]
    plain = measured(model, read=sites).gradient
    for rule, factors in {"quarter": (0.25, 0.25, 0.5), "frozen": (0.0, 0.0, 1.0)}.items():
        ruled = measured(model, read=sites, rules=Rules(attention=rule)).gradient
        for site, factor in zip(sites, factors, strict=True):
            assert torch.equal(ruled[site].tensor, factor * plain[site].tensor)


@pytest.mark.parametrize("family", ["llama", "t5", "mistral"])
def test_tempered_attention_by_its_formula(family):
    """Softmax backward with the pattern at temperature two, and the factors on queries, keys and values."""
    model = double(family)
    stem, data = ("decoder.blocks.2.cross", inputs("t5")) if family == "t5" else ("blocks.1.attn", IDS)
    metric = logit_difference([7, 7], [11, 11]) if family == "t5" else METRIC
    sites = [f"{stem}.{n}" for n in ("q_rot", "k_rot", "v", "z", "scores", "pattern")]
    rec = measured(model, data, Rules(attention="tempered"), sites, metric)
    q, k, v = (rec[f"{stem}.{n}"].example(0).tensor.detach() for n in ("q_rot", "k_rot", "v"))
    g = {n: rec.gradient[f"{stem}.{n}"].example(0).tensor for n in ("q_rot", "k_rot", "v", "z")}
    shared = q.shape[1] // k.shape[1]
    keys, values = (t.repeat_interleave(shared, 1) for t in (k, v))
    warm = (rec[f"{stem}.scores"].example(0).tensor.detach() / 2).softmax(-1)
    by_pattern = torch.einsum("qhd,khd->hqk", g["z"], values)
    by_score = warm * (by_pattern - (warm * by_pattern).sum(-1, keepdim=True)) * rec.attention[stem].scaling

    def grouped(heads):
        return heads.unflatten(1, (-1, shared)).sum(2)

    assert near(g["q_rot"], torch.einsum("hqk,khd->qhd", by_score, keys) / 4)
    assert near(g["k_rot"], grouped(torch.einsum("hqk,qhd->khd", by_score, q)) / 4)
    assert near(g["v"], grouped(torch.einsum("hqk,qhd->khd", rec[f"{stem}.pattern"].example(0).tensor.detach(), g["z"])) / 2)
    assert rec.provenance["rules"]["attention"] == {"t5": 8}.get(family, 2)


def test_the_soft_cap_of_the_logits_is_an_activation():
    model = double("gemma2")
    rec = measured(model, read="final_norm", rules=Rules(activations=True))
    before = rec["final_norm"].tensor[-1] @ model.weight("W_U")
    ratio = torch.tanh(before / 3.0) / (before / 3.0)
    by_hand = model.weight("W_U")[:, 7] * ratio[7] - model.weight("W_U")[:, 11] * ratio[11]
    assert near(rec.gradient["final_norm"].tensor[-1], by_hand)
    assert rec.provenance["rules"]["activations"] == 3  # two blocks and the cap


# --- what they bind to


COUNTS = {  # norms, q/k norms, activations, gates, attention
    "gpt2": (7, 0, 3, 0, 3),
    "llama": (5, 0, 2, 2, 2),
    "gpt_neox": (5, 0, 2, 0, 2),
    "phi": (3, 0, 2, 0, 2),
    "qwen3": (5, 4, 2, 2, 2),
    "gemma2": (9, 0, 3, 2, 2),
    "opt": (5, 0, 2, 0, 2),
    "bert": (6, 0, 3, 0, 2),
    "albert": (4, 0, 2, 0, 1),
    "t5_gated": (15, 0, 5, 5, 8),
    "vit": (5, 0, 2, 0, 2),
    "dinov2": (5, 0, 2, 0, 2),
    "clip": (11, 0, 4, 0, 4),
}


@pytest.mark.parametrize("family", COUNTS)
def test_bound_modules_are_counted(family):
    model = act.wrap(*testing.tiny(family), name=family, certify=False)
    metric = CLASSES if "example" in model.sites["logits"].axes else logit_difference([7, 7], [11, 11])
    rules = Rules(norms=True, activations=True, gates=True, attention="quarter", qk_norms=True)
    report = measured(model, inputs(family), rules, metric=metric).provenance["rules"]
    assert tuple(report[n] for n in ("norms", "qk_norms", "activations", "gates", "attention")) == COUNTS[family]
    assert report["name"] == "custom"
    assert [n for n in report["notes"] if "length one" not in n] == []


@pytest.mark.parametrize(
    ("family", "rule", "changes"),
    [
        ("gpt2", Rules(norms=True), True),
        ("gpt2", Rules(activations=True), True),
        ("gpt2", Rules(gates=True), False),
        ("gpt2", Rules(attention="frozen"), True),
        ("gpt2", Rules(attention="quarter"), True),
        ("gpt2", Rules(qk_norms=True), False),
        ("llama", Rules(gates=True), True),
        ("llama", Rules(norms=True), True),
        ("opt", Rules(activations=True), False),
        ("qwen3", Rules(norms=True, qk_norms=True), True),
    ],
)
def test_each_rule_alone_changes_what_has_its_component_and_nothing_else(family, rule, changes):
    model, site = double(family), "blocks.0.resid_pre"
    without = Rules(norms=True) if rule.qk_norms and rule.norms else None
    ruled, plain = gradient(model, site, rule), gradient(model, site, without)
    assert (not near(ruled, plain, 1e-4)) if changes else near(ruled, plain, 1e-12)


def test_norms_of_queries_and_keys_keep_their_gradient_unless_asked():
    model = double("qwen3")
    report = measured(model, rules="relp").provenance["rules"]
    assert (report["norms"], report["qk_norms"]) == (5, 0)


@pytest.mark.parametrize(
    ("family", "rule", "words"),
    [
        ("mixtral", Rules(gates=True), "blocks.0 shows no neurons"),
        ("gptj", Rules(attention="frozen"), "blocks.0 has an attention that is not seen"),
        ("siglip", Rules(attention="frozen"), "torch's own attention"),
        ("clip", Rules(norms=True), "length one"),
    ],
)
def test_what_cannot_be_bound_is_noted(family, rule, words):
    model = act.wrap(*testing.tiny(family), name=family, certify=False)
    metric = CLASSES if "example" in model.sites["logits"].axes else logit_difference([7, 7], [11, 11])
    notes = measured(model, inputs(family), rule, metric=metric).provenance["rules"]["notes"]
    assert any(words in note for note in notes)
    assert not measured(model, inputs(family), Rules(), metric=metric).provenance["rules"]["notes"]


# --- early, late, twice, nested, after an error: the same, and then a clean model


def state(hf):
    """Everything a rule could have left behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [p for p, m in hf.named_modules() if "forward" in m.__dict__],
        [p for p, m in hf.named_modules() if any(getattr(m, h) for h in hooks)],
        hf.config._attn_implementation,
        [p.grad for p in hf.parameters()],
        hf.training,
    )


class Breaks(Edit):
    site = "blocks.1.mlp.post"

    def change(self, values):
        raise RuntimeError("in the middle")


def test_late_twice_nested_and_after_an_error_the_scores_are_the_same():
    site, fresh = "blocks.0.resid_pre", double("llama")
    before = state(fresh.torch_module)
    wanted = gradient(fresh, site, "relp")
    model = double("llama")
    plain = gradient(model, site)
    model.run(IDS)
    assert torch.equal(gradient(model, site, "relp"), wanted)  # set late
    assert torch.equal(gradient(model, site, "relp"), wanted)  # and again

    def nested(logits):
        assert torch.equal(gradient(model, site, "ln"), ln)
        return METRIC.of(logits)

    ln = gradient(fresh, site, "ln")
    assert torch.equal(gradient(model, site, "relp", metric=Metric(nested)), wanted)
    with pytest.raises(RuntimeError, match="in the middle"):
        measured(model, rules="relp", edits=[Breaks()])
    with model.edited([Scale("blocks.0.mlp.out", 1.0)]):
        assert torch.equal(gradient(model, site, "relp"), wanted)
    assert torch.equal(gradient(model, site), plain)
    assert state(model.torch_module) == before
    assert before[:2] == ([], [])


def test_edits_and_rules_go_together():
    """Rules act on what is there: an edit of the norm's input changes the scale that is held."""
    model, site = double("gpt2"), "blocks.2.resid_post"
    rec = measured(model, read=[site, "final_norm"], rules="ln", edits=[Scale(site, 3.0)])
    c = rec[site].tensor - rec[site].tensor.mean(-1, keepdim=True)
    sigma = (c.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    wanted = rec.gradient["final_norm"].tensor * model.weight("final_norm.gain") / sigma
    assert near(rec.gradient[site].tensor, wanted - wanted.mean(-1, keepdim=True))


# --- errors


def test_messages():
    model = act.wrap(*testing.tiny("gpt2"), name="gpt2", certify=False)
    with pytest.raises(InputError, match=r"rules='relp' changes gradients and no values, so it needs grad=True"):
        model.run(IDS, rules="relp")
    with pytest.raises(UnknownName, match=r"No set of rules called 'relpah'. Did you mean 'relp-ah' or 'relp'"):
        model.run(IDS, rules="relpah", grad=True)
    with pytest.raises(InputError, match="neither a Rules nor the name of a set. Known sets: ln, ln-id, relp, relp-ah, attnlrp, gim"):
        model.run(IDS, rules=3, grad=True)
    with pytest.raises(InputError, match="attention='forzen' is no attention rule. Known: ordinary, frozen, quarter, tempered"):
        Rules(attention="forzen")
    with pytest.raises(InputError, match="norms='yes' is neither True nor False"):
        Rules(norms="yes")
    with pytest.raises(TypeError, match="norm"):
        Rules(norm=True)
    half = act.wrap(copy.deepcopy(model.torch_module).half(), model.tokenizer, name="gpt2", certify=False)
    with pytest.raises(InputError, match="gpt2 is float16, in which gradients underflow to zero. Load it in float32 or bfloat16"):
        half.run(IDS, rules="relp", grad=True)


def test_a_module_that_is_not_what_it_was_is_refused_by_name():
    """The rule is checked against the module's own output in every forward."""
    model = act.wrap(*testing.tiny("gpt2"), name="gpt2", certify=False)
    measured(model, rules="ln")
    norm = model.torch_module.transformer.ln_f
    handle = norm.register_forward_pre_hook(lambda m, a: (a[0].relu(),))
    measured(model, rules="ln")  # what enters the norm is another thing, and the norm is still one
    handle.remove()
    own = norm.forward
    norm.forward = lambda x: own(x).square()
    with pytest.raises(InputError, match=r"The relevance rule for transformer.ln_f gives other values than the module"):
        measured(model, rules="ln")


def test_bfloat16_follows_float32():
    hf, tokenizer = testing.tiny("llama")
    wide = act.wrap(copy.deepcopy(hf), tokenizer, certify=False)
    narrow = act.wrap(copy.deepcopy(hf).bfloat16(), tokenizer, certify=False)
    a, b = (gradient(m, "blocks.0.resid_pre", "relp").double().flatten() for m in (wide, narrow))
    assert torch.cosine_similarity(a, b, dim=0) > 0.99


def test_presets_are_what_they_are_called():
    assert Rules.named("relp") == Rules(norms=True, activations=True, gates=True)
    assert {n: r.attention for n, r in PRESETS.items() if r.attention != "ordinary"} == {
        "relp-ah": "frozen",
        "attnlrp": "quarter",
        "gim": "tempered",
    }
    assert [Rules.named(n).name for n in PRESETS] == list(PRESETS)
    assert act.Rules is Rules
