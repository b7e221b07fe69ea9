"""What a run reads is what plain hooks read; nothing is left behind, whatever happens."""

import gc
import threading
import weakref

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import Add, Zero
from activarium.errors import InputError, SilentHook, UnknownName, UnknownSite
from activarium.metrics import Metric, log_probability, logit_difference

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


@pytest.fixture(scope="module")
def llama():
    return act.wrap(*testing.tiny("llama"), name="llama", certify=False)


def by_hand(model, module, side="output"):
    """The value at a module with nothing but torch."""
    seen = []
    hook = (lambda m, a, o: seen.append(o)) if side == "output" else (lambda m, a: seen.append(a[0]))
    handle = module.register_forward_hook(hook) if side == "output" else module.register_forward_pre_hook(hook)
    with torch.no_grad():
        logits = model(IDS).logits
    handle.remove()
    return seen[0], logits


def test_reads_equal_plain_hooks(llama):
    hf = llama.torch_module
    rec = llama.run(IDS, read=["blocks.1.resid_post", "blocks.0.mlp.post", "blocks.1.attn.z"])
    for name, module, side in [
        ("blocks.1.resid_post", hf.model.layers[1], "output"),
        ("blocks.0.mlp.post", hf.model.layers[0].mlp.down_proj, "input"),
        ("blocks.1.attn.z", hf.model.layers[1].self_attn.o_proj, "input"),
    ]:
        value, logits = by_hand(hf, module, side)
        assert torch.equal(rec[name].tensor.flatten(1), value.flatten(0, 1))
        assert torch.equal(rec.logits.tensor, logits.flatten(0, 1))


def test_stack_and_aliases(llama):
    rec = llama.run(IDS, read=["blocks.*.resid_post", "blocks.1.resid_pre", "embed"])
    assert rec["blocks.*.resid_post"].axes == ("layer", "row", "d_model")
    assert rec["blocks.1.resid_pre"].tensor is rec["blocks.0.resid_post"].tensor  # stored once
    assert "embed" in rec and torch.equal(rec["embed"].tensor, rec["blocks.0.resid_pre"].tensor)
    assert torch.equal(llama.run(IDS, read="blocks.1.hook_resid_pre")["blocks.1.resid_pre"].tensor, rec["blocks.0.resid_post"].tensor)


def test_unknown_names_are_errors(llama):
    with pytest.raises(UnknownSite, match=r"No site in this model called 'blocks.0.resid_pst'. Did you mean 'blocks.0.resid_post'"):
        llama.run(IDS, read="blocks.0.resid_pst")
    with pytest.raises(UnknownSite, match="No site in this model called"):
        llama.run(IDS, read="blocks.*.mlp.pots")
    with pytest.raises(UnknownSite, match=r"blocks\.9\.mlp\.post"):
        llama.run(IDS, read=["blocks.0.mlp.post", "blocks.9.mlp.post"])
    with pytest.raises(UnknownName, match="No module in this model called"):
        llama.run(IDS, read="module:model.layers.0.mpl")


def test_several_metrics_from_one_forward(llama):
    calls = []
    handle = llama.torch_module.register_forward_hook(lambda *a: calls.append(1))
    rec = llama.run(
        IDS,
        metrics={"gap": logit_difference([1, 2], [3, 4]), "own": log_probability([1, 2]), "first": Metric(lambda x: x[:, 0], position=0)},
    )
    handle.remove()
    logits = rec.logits.tensor.reshape(2, 5, -1)
    assert len(calls) == 1
    assert torch.equal(rec.metric["gap"], torch.stack([logits[0, -1, 1] - logits[0, -1, 3], logits[1, -1, 2] - logits[1, -1, 4]]))
    assert torch.allclose(rec.metric["own"], logits[:, -1].log_softmax(-1)[[0, 1], [1, 2]])
    assert torch.equal(rec.metric["first"], logits[:, 0, 0])
    with pytest.raises(InputError, match="reads position 7; example 0 has 5 rows"):
        llama.run(IDS, metrics=Metric(lambda x: x[:, 0], position=7))


def test_ragged_metric_reads_the_last_real_row(llama):
    ragged = [[5, 6, 7, 8, 9], [10, 11]]
    together = llama.run(ragged, metrics=Metric(lambda x: x[:, 3], name="m")).metric["m"]
    alone = [llama.run([r], metrics=Metric(lambda x: x[:, 3], name="m")).metric["m"] for r in ragged]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize(
    "site",
    [
        "blocks.0.resid_pre",
        "blocks.0.attn.z",
        "blocks.1.mlp.post",
        "blocks.1.attn.q",
        "blocks.0.resid_mid",
        "blocks.1.attn.k_rot",
        "token_embed",
    ],
)
def test_gradient_equals_finite_differences(site):
    """In float64 (GPT-2: RMSNorm computes in float32), against the metric really moved by a small edit at that site."""
    hf, tokenizer = testing.tiny("gpt2")
    model = act.wrap(hf.double(), tokenizer, certify=False)
    metric = logit_difference([1, 2], [3, 4])
    rec = model.run(IDS, read=site, metrics=metric, grad=True)
    gradient = rec.backward()[site].tensor
    assert rec.gradient is not None and gradient.shape == rec[site].tensor.shape
    direction = torch.randn(gradient.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-6
    up, down = (model.run(IDS, metrics=metric, edits=[Add(site, direction, s)]).metric["logit_difference"].sum() for s in (step, -step))
    assert torch.allclose((up - down) / (2 * step), (gradient * direction).sum(), rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_gradient_at_a_pattern_equals_eager_autograd(family):
    hf, tokenizer = testing.tiny(family)
    model = act.wrap(hf, tokenizer, certify=False)
    data = torch.randn(1, *model._encoder.spaces[""].image) if family == "vit" else IDS[:1]
    rec = model.run(data, read=["blocks.0.attn.pattern"], metrics=Metric(lambda x: x[:, 1], name="m"), grad=True)
    ours = rec.backward("m")["blocks.0.attn.pattern"].tensor
    hf.set_attn_implementation("eager")
    out = hf(data, output_attentions=True)
    answer = out.logits[:, 1].sum() if family == "vit" else out.logits[:, -1, 1].sum()
    (theirs,) = torch.autograd.grad(answer, [out.attentions[0]])
    open_ = rec["blocks.0.attn.pattern"].tensor[0] > 0  # behind the mask eager's own gradient is defined, but nothing flows
    assert torch.allclose(ours[:, open_[0]], theirs[0][:, open_[0]], atol=1e-5)


def test_gradient_of_frozen_weights_and_of_pixels():
    hf, processor = testing.tiny("vit")
    model = act.wrap(hf.requires_grad_(False), processor, certify=False)
    pixels = torch.randn(2, *model._encoder.spaces[""].image)
    rec = model.run(pixels, read=["pixels", "blocks.0.resid_post"], metrics=Metric(lambda x: x[:, 1], name="m"), grad=True)
    gradient = rec.backward("m")
    twin = pixels.clone().requires_grad_()
    hf(twin).logits[:, 1].sum().backward()
    assert torch.allclose(gradient["pixels"].tensor, twin.grad, atol=1e-7)
    assert not any(p.grad is not None for p in hf.parameters())


def test_two_backwards_from_one_forward(llama):
    rec = llama.run(
        IDS, read="blocks.1.mlp.out", metrics={"a": logit_difference([1, 1], [2, 2]), "b": logit_difference([3, 3], [2, 2])}, grad=True
    )
    a, b = rec.backward("a")["blocks.1.mlp.out"].tensor, rec.backward("b")["blocks.1.mlp.out"].tensor
    assert not torch.equal(a, b)
    with pytest.raises(InputError, match="nothing to differentiate"):
        llama.run(IDS, read="embed").backward()


def test_stop_after_ends_the_forward(llama):
    ran = []
    handle = llama.torch_module.model.layers[1].register_forward_hook(lambda *a: ran.append(1))
    rec = llama.run(IDS, read=["blocks.0.mlp.post"], stop_after="blocks.0.mlp.post")
    handle.remove()
    assert not ran and "logits" not in rec
    assert torch.equal(rec["blocks.0.mlp.post"].tensor, llama.run(IDS, read="blocks.0.mlp.post")["blocks.0.mlp.post"].tensor)
    with pytest.raises(SilentHook, match=r"blocks.1.mlp.post did not fire"):
        llama.run(IDS, read=["blocks.1.mlp.post"], stop_after="blocks.0.mlp.post")


def clean(hf):
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in hf.modules())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_run_leaves_the_model_as_it_was(llama, error):
    hf = llama.torch_module
    before = {k: v.clone() for k, v in hf.state_dict().items()}
    setting = hf.config._attn_implementation
    llama.run(IDS, read=["blocks.*.attn.pattern"])
    norm, forward = hf.model.norm, hf.model.norm.forward

    def broken(x):
        raise error("on purpose")

    norm.forward = broken
    with pytest.raises(error), llama.edited(Zero("blocks.0.mlp.out")):
        llama.run(IDS, read=["blocks.*.attn.pattern", "blocks.0.resid_mid"], edits=[Add("blocks.0.attn.q_rot", torch.ones(8))])
    with pytest.raises(error):
        llama.resume(IDS, "blocks.1.resid_pre", torch.zeros(10, 32))
    norm.__dict__.pop("forward")
    assert forward is not None
    assert clean(hf) and hf.config._attn_implementation == setting and not llama._standing
    assert all(torch.equal(v, before[k]) for k, v in hf.state_dict().items())


def test_training_mode_is_refused(llama):
    llama.torch_module.train()
    try:
        with pytest.raises(InputError, match="is in training mode"):
            llama.run(IDS)
    finally:
        llama.torch_module.eval()


def test_two_models_from_one_config_do_not_share_the_setting():
    import transformers

    hf, _ = testing.tiny("llama")
    twin = transformers.LlamaForCausalLM(hf.config).eval()
    one, two = act.wrap(hf, certify=False), act.wrap(twin, certify=False)
    assert one.torch_module.config is not two.torch_module.config
    assert one.torch_module.model.config is one.torch_module.config
    seen = []
    handle = hf.register_forward_pre_hook(lambda *a: seen.append(twin.config._attn_implementation))
    one.run(IDS, read="blocks.0.attn.q_rot")
    handle.remove()
    assert seen == ["sdpa"]


def test_threads_take_turns(llama):
    results, errors = {}, []

    def work(i):
        try:
            edit = [Add("blocks.0.resid_post", torch.full((32,), float(i)))]
            results[i] = llama.run(IDS, read=["blocks.0.attn.pattern", "blocks.1.resid_post"], edits=edit)["blocks.1.resid_post"].tensor
        except Exception as error:  # a thread's exception would vanish
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    for i in range(6):
        alone = llama.run(IDS, read="blocks.1.resid_post", edits=[Add("blocks.0.resid_post", torch.full((32,), float(i)))])
        assert torch.equal(results[i], alone["blocks.1.resid_post"].tensor)


def test_memory_is_flat_and_models_are_released():
    hf, tokenizer = testing.tiny("gpt2")
    model = act.wrap(hf, tokenizer, certify=False)

    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    model.run(IDS, read="blocks.*.attn.pattern", metrics=logit_difference([1, 1], [2, 2]), grad=True).backward()
    before = tensors()
    for _ in range(5):
        model.run(IDS, read="blocks.*.attn.pattern", metrics=logit_difference([1, 1], [2, 2]), grad=True).backward()
    assert tensors() <= before
    gone = weakref.ref(model)
    del model, hf
    gc.collect()
    assert gone() is None


def test_two_towers_alone_and_together():
    model = act.wrap(*testing.tiny("clip"), certify=False)
    pixels, ids = torch.randn(2, *model._encoder.spaces["vision"].image), torch.tensor([[5, 6, 7], [8, 9, 2]])
    both = model.run({"pixel_values": pixels, "input_ids": ids}, read=["vision.blocks.*.resid_post", "text.blocks.0.mlp.post"])
    one = model.run({"pixel_values": pixels}, read="vision.blocks.*.resid_post")
    assert torch.equal(both["vision.blocks.1.resid_post"].tensor, one["vision.blocks.1.resid_post"].tensor)
    assert set(both.rows) >= {"vision", "text", "example"} and both.logits.axes == ("example", "class")
    assert torch.equal(
        model.run({"input_ids": ids}, read="text.blocks.0.mlp.post")["text.blocks.0.mlp.post"].tensor, both["text.blocks.0.mlp.post"].tensor
    )
    with pytest.raises(SilentHook, match="text.blocks.0.mlp.post did not fire"):
        model.run({"pixel_values": pixels}, read="text.blocks.0.mlp.post")


def test_table_and_repr(llama):
    assert "blocks.*.mlp.post" in repr(llama.sites) and "<table>" in llama.sites._repr_html_()
    assert "llama" in repr(llama)
    assert llama.identity["weight_hash"] and llama.identity["class"] == "LlamaForCausalLM"
