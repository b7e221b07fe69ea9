"""Sparse MLPs: equal to masking the dense layer, dense in the prompt, and gone without a trace."""

import pytest
import torch
from torch.nn import functional

import activarium as act
from activarium.capture._generate import Generation
from activarium.edits import Mean, Where, Zero
from activarium.errors import InputError, MissingSite

PROMPTS = ["the cat sat on the book", "Anna saw"]
MORE = 5
FAMILIES = {
    "gpt2": "blocks.*.mlp.post", "llama": "blocks.*.mlp.post", "mistral": "blocks.*.mlp.post", "qwen3": "blocks.*.mlp.post",
    "gpt_neox": "blocks.*.mlp.post", "opt": "blocks.*.mlp.post", "gemma2": "blocks.*.mlp.post", "phi": "blocks.*.mlp.post",
    "gptj": "blocks.*.mlp.post", "bloom": "blocks.*.mlp.post", "t5": "decoder.blocks.*.mlp.post", "t5_gated": "decoder.blocks.*.mlp.post",
}  # fmt: skip


def tiny(family: str) -> act.capture.TorchRunner:
    return act.wrap(*act.testing.tiny(family), certify=False)


def some_cores(model: act.capture.TorchRunner, pattern: str, keep: int = 17) -> dict[str, torch.Tensor]:
    """Other neurons in every layer, in no order; the first layer stays dense."""
    random = torch.Generator().manual_seed(3)
    sites = model.sites.select(pattern)[1:]
    return {site: torch.randperm(model.sites[site].shape[-1], generator=random)[:keep] for site in sites}


def rest(model: act.capture.TorchRunner, site: str, core: torch.Tensor) -> Where:
    others = sorted(set(range(model.sites[site].shape[-1])) - set(core.tolist()))
    return Where(features=tuple(others), phases=("response",))


def at_step(written: Generation, step: int) -> torch.Tensor:
    logits = written.recording["logits"]
    return logits.tensor[torch.as_tensor(written.recording.rows[logits.space]["step"] == step)]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_masking_the_neurons_of_the_dense_layer(family: str):
    model = tiny(family)
    cores = some_cores(model, FAMILIES[family])
    dense = model.generate(PROMPTS, MORE, read="logits")
    with model.sparse(cores) as running:
        sparse = model.generate(PROMPTS, MORE, read="logits")
    masked = model.generate(PROMPTS, MORE, read="logits", edits=[Zero(s, where=rest(model, s, c)) for s, c in cores.items()])
    assert running.forwards == MORE  # the last one reads the last token
    assert sparse.texts == masked.texts
    found, wanted = (g.recording["logits"].tensor for g in (sparse, masked))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    # The prompt is dense, and what follows is not: a sparse path that never ran would differ from the mask, one that always ran from this.
    assert torch.equal(at_step(sparse, 0), at_step(dense, 0))
    assert (at_step(sparse, 1) - at_step(dense, 1)).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "t5"])
def test_means_of_the_others_equal_replacing_them_by_their_means(family: str):
    model = tiny(family)
    cores = some_cores(model, FAMILIES[family])
    means = {site: torch.randn(model.sites[site].shape[-1], generator=torch.Generator().manual_seed(1)) for site in cores}
    with model.sparse(cores, means=means):
        sparse = model.generate(PROMPTS, MORE, read="logits")
    edits = [Mean(s, means[s], where=rest(model, s, c)) for s, c in cores.items()]
    masked = model.generate(PROMPTS, MORE, read="logits", edits=edits)
    found, wanted = (g.recording["logits"].tensor for g in (sparse, masked))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_fused_branches_are_gathered_from_both_halves():
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    model = act.wrap(Phi3ForCausalLM(config).eval(), certify=False)
    cores = some_cores(model, "blocks.*.mlp.post")
    prompts = [[5, 6, 7, 8], [9, 10]]
    with model.sparse(cores):
        sparse = model.generate(prompts, MORE, read="logits").recording["logits"].tensor
    masked = model.generate(prompts, MORE, read="logits", edits=[Zero(s, where=rest(model, s, c)) for s, c in cores.items()])
    wanted = masked.recording["logits"].tensor
    assert torch.allclose(sparse, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_the_formula_by_hand():
    model = tiny("opt")
    core = [2, 3, 11, 40]
    with model.sparse({"blocks.1.mlp.post": core}):
        seen = model.generate(PROMPTS[0], 3, read=["blocks.1.mlp.in", "blocks.1.mlp.proj"]).recording
    layer = model.torch_module.model.decoder.layers[1]
    new = torch.as_tensor(seen.rows[""]["phase"] == "response")
    x, y = (seen[f"blocks.1.mlp.{n}"].tensor[new] for n in ("in", "proj"))
    inner = functional.relu(x @ layer.fc1.weight[core].T + layer.fc1.bias[core])
    assert torch.allclose(y, inner @ layer.fc2.weight[:, core].T + layer.fc2.bias, atol=1e-6)
    assert len(y) == 3


def test_every_neuron_gives_the_dense_model_and_none_gives_the_bias_alone():
    model = tiny("gpt2")
    site = "blocks.2.mlp.post"
    dense = model.decode(PROMPTS[0], MORE)
    with model.sparse({site: range(48)}) as running:
        whole = model.decode(PROMPTS[0], tokens=dense.ids)
    assert running.share == 1.0
    assert torch.allclose(whole.logits, dense.logits, atol=1e-5)
    with model.sparse({site: []}) as running:
        seen = model.generate(PROMPTS[0], 2, read="blocks.2.mlp.proj").recording
    assert running.share == 0.0
    last = seen["blocks.2.mlp.proj"].tensor[-1]
    assert torch.allclose(last, model.weight("blocks.2.mlp.b_down"))


def test_a_prompt_of_one_token_is_still_a_prompt_and_a_batch_is_still_sparse():
    model = tiny("opt")
    cores = some_cores(model, "blocks.*.mlp.post")
    dense, one = model.decode([[7], [8]], MORE), model.decode([[7]], MORE)
    with model.sparse(cores) as running:
        both = model.decode([[7], [8]], tokens=dense.ids)
        alone = model.decode([[7]], tokens=dense.ids[:1])
    assert running.forwards == 2 * (MORE - 1)
    assert torch.equal(both.logits[:, 0], dense.logits[:, 0])
    assert torch.equal(alone.logits[:, 0], one.logits[:, 0])
    assert torch.allclose(both.logits[:1], alone.logits, atol=1e-5)
    assert (both.logits[:, 1:] - dense.logits[:, 1:]).abs().max() > 1e-2


def test_the_model_is_bit_identical_afterwards_also_after_errors():
    model = tiny("llama")
    hf = model.torch_module
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    ids = torch.tensor([[5, 6, 7]])
    plain, forwards = hf(ids).logits, {name: module.forward for name, module in hf.named_modules()}
    cores = some_cores(model, "blocks.*.mlp.post")
    with model.sparse(cores):
        assert torch.equal(hf(ids).logits, plain)  # no earlier keys: dense
        model.decode(PROMPTS[0], 3)
    with pytest.raises(KeyboardInterrupt), model.sparse(cores):
        raise KeyboardInterrupt
    with pytest.raises(InputError), model.sparse(cores):
        model.decode(PROMPTS[0], 1000)
    cache = hf(ids, use_cache=True).past_key_values
    with model.sparse(cores) as running, pytest.raises(IndexError):
        hf(torch.tensor([[5000]]), past_key_values=cache)  # no such token: fails inside a sparse forward
    assert running.forwards == 1
    assert running.on is False
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    assert all("forward" not in module.__dict__ for module in hf.modules())
    assert all(module.forward == forwards[name] for name, module in hf.named_modules())
    assert not hf._forward_hooks and not hf._forward_pre_hooks and not model.running_sparse
    assert torch.equal(hf(ids).logits, plain)


def test_a_forward_that_somebody_replaced_before_is_replaced_again():
    model = tiny("opt")
    fc1 = model.torch_module.model.decoder.layers[1].fc1
    own = fc1.forward
    calls: list[int] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return own(x)

    fc1.forward = counted
    with model.sparse({"blocks.1.mlp.post": [1, 2]}):
        model.decode(PROMPTS[0], 3)
    assert fc1.forward is counted
    assert len(calls) == 1  # the prompt's


def test_layers_can_be_opened_one_inside_the_other():
    model = tiny("gpt2")
    cores = some_cores(model, "blocks.*.mlp.post")
    one, other = ({site: cores[site]} for site in cores)
    ids = model.decode(PROMPTS[0], MORE).ids
    with model.sparse(cores):
        together = model.decode(PROMPTS[0], tokens=ids).logits
    with model.sparse(one), model.sparse(other):
        nested = model.decode(PROMPTS[0], tokens=ids).logits
        with pytest.raises(InputError, match=r"blocks.1.mlp.post runs sparsely already. Leave the outer"), model.sparse(one):
            pass
    assert torch.equal(together, nested)


def test_decode_agrees_with_generate_and_with_one_clean_forward():
    for family in ("gpt2", "t5"):
        model = tiny(family)
        made = model.decode(PROMPTS[0], 4)
        written = model.generate(PROMPTS[0], 4)
        assert made.ids[0, : len(written.ids[0])].tolist() == written.ids[0].tolist()
        assert made.logits.shape[:2] == made.ids.shape == (1, 4)
        assert len(made.seconds) == 3
    model = tiny("gpt2")
    made = model.decode([[5, 6, 7]], tokens=[[8, 9]])
    clean = model.run(made.inputs, read="logits")["logits"].tensor
    assert torch.allclose(made.logits[0], clean[2:4], atol=1e-4)
    assert made.ids.tolist() == [[8, 9]]


def test_refusals_say_what_to_do():
    with (
        pytest.raises(MissingSite, match="has no site 'blocks.0.mlp.post': experts, or a gate"),
        tiny("mixtral").sparse({"blocks.0.mlp.post": [1]}),
    ):
        pass
    with pytest.raises(InputError, match="runs once, with the prompt, which stays dense. Give the layers that write: decoder"):
        tiny("t5").sparse({"encoder.blocks.0.mlp.post": [1]}).__enter__()
    with pytest.raises(InputError, match=r"keeps no keys and values of earlier tokens, so nothing tells its prompt"):
        tiny("vit").sparse({"blocks.0.mlp.post": [1]}).__enter__()
    model = tiny("llama")
    with pytest.raises(InputError, match="blocks.0.mlp.act is not where an MLP's neurons are. Give core neurons by blocks.i.mlp.post"):
        model.sparse({"blocks.0.mlp.act": [1]}).__enter__()
    with pytest.raises(InputError, match="has 48 neurons, numbered from 0; its core names 48"):
        model.sparse({"blocks.0.mlp.post": [1, 48]}).__enter__()
    with pytest.raises(InputError, match="names a neuron twice"):
        model.sparse({"blocks.0.mlp.post": [3, 3]}).__enter__()
    with pytest.raises(InputError, match=r"has shape \(3,\) for blocks.0.mlp.post; wanted \(48,\)"):
        model.sparse({"blocks.0.mlp.post": [3]}, means={"blocks.0.mlp.post": torch.zeros(3)}).__enter__()
    with pytest.raises(InputError, match=r"means= names blocks.1.mlp.post, which has no core neurons here"):
        model.sparse({"blocks.0.mlp.post": [3]}, means={"blocks.1.mlp.post": torch.zeros(48)}).__enter__()
    with model.sparse({"blocks.0.mlp.post": [3]}):
        for name in ("blocks.0.mlp.post", "blocks.0.mlp.act"):
            with pytest.raises(InputError, match=f"{name} has only its core neurons while blocks.0 runs sparsely"):
                model.generate("the cat", 2, read=name)
        with pytest.raises(InputError, match=r"blocks.0.mlp.post has only its core neurons"):
            model.generate("the cat", 2, edits=[Zero("blocks.0.mlp.post")])
        model.generate("the cat", 2, read=["blocks.1.mlp.post", "blocks.0.mlp.out"])
    with pytest.raises(InputError, match=r"the prompts have \[3, 7\] tokens. Decode one length at a time"):
        model.decode(PROMPTS)
    with pytest.raises(InputError, match="this model has 64 positions. Ask for at most 61"):
        model.decode("the cat", 100)
    with pytest.raises(InputError, match="There is no token to decode"):
        model.decode("the cat", 0)


def test_weights_that_blocks_share_are_refused():
    model = tiny("gpt2")
    layers = model.torch_module.transformer.h
    layers[2].mlp = layers[1].mlp
    model = act.wrap(model.torch_module, model.tokenizer, certify=False)
    with pytest.raises(InputError, match="shares its weights"):
        model.sparse({"blocks.1.mlp.post": [3]}).__enter__()
