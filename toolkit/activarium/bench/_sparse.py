"""Writing on with some of the neurons beside all of them: tokens per second of the whole model, and the down projection alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from activarium.bench._shapes import tokens
from activarium.bench._timing import Row, Times, interleaved, medians, ratio

SHARES = (0.5, 0.2, 0.1)
LARGE: dict[str, int] = {"width": 768, "neurons": 3072, "layers": 6, "heads": 12, "vocab_size": 8000}
SMALL: dict[str, int] = {"width": 64, "neurons": 256, "layers": 2, "heads": 4, "vocab_size": 500}  # for trying the bench itself
PROMPT = 16


def sparse_decoding(shape: dict[str, int], steps: int, rounds: int) -> list[Row]:
    """Dense seconds over sparse seconds for the same tokens, a plain and a gated model, and the ways to project down."""
    import torch

    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for words, made in (("plain MLP, ReLU (OPT)", _opt(shape)), ("gated MLP, SiLU (Llama)", _llama(shape))):
            found += [_decoding(made, words, shape, share, steps, rounds) for share in SHARES]
        found += [row for share in SHARES for row in _down(shape, share, 10 * rounds)]
    return found


def _opt(shape: dict[str, int]) -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            hidden_size=shape["width"],
            ffn_dim=shape["neurons"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            vocab_size=shape["vocab_size"],
            word_embed_proj_dim=shape["width"],
            max_position_embeddings=256,
        )
    ).eval()


def _llama(shape: dict[str, int]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape["width"],
            intermediate_size=shape["neurons"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            vocab_size=shape["vocab_size"],
            max_position_embeddings=256,
        )
    ).eval()


def _decoding(hf_model: Any, words: str, shape: dict[str, int], share: float, steps: int, rounds: int) -> Row:
    """Every layer is sparse, with neurons drawn at random: which ones they are does not change the time."""
    import torch

    import activarium as act

    model: Any = act.wrap(hf_model, name=words, certify="quick")
    prompt, given = tokens(shape, (1, PROMPT)), tokens(shape, (1, steps), 1)
    sites = model.sites.select("blocks.*.mlp.post")
    cores = {site: torch.randperm(shape["neurons"])[: int(share * shape["neurons"])] for site in sites}
    times: Times = {"dense": [], "sparse": []}
    for turn in range(-1, rounds):
        for name in list(times)[:: -1 if turn % 2 else 1]:
            with model.sparse(cores) if name == "sparse" else nullcontext():
                made = model.decode(prompt, tokens=given)
            if turn >= 0:  # the first turn warms up; gathering and the prompt are in no time
                times[name].append((sum(made.seconds), sum(made.processor)))
    row = ratio(f"decoding, {words}, {_size(shape)}, {share:.0%} of the neurons: dense / sparse seconds", times, "dense", "sparse")
    rate = {name: (steps - 1) / wall for name, (wall, _) in medians(times).items()}
    row.note = (
        f"{rate['sparse']:.1f} tokens/s beside {rate['dense']:.1f}; batch 1, decode after a dense prompt of {PROMPT} tokens, weights gathered "
        f"before, indices known; at most {_ceiling(model, share):.2f} × by what is multiplied; largest difference to masked dense "
        f"{_gap(model, prompt, given, cores):.1e} of the largest logit"
    )
    return row


def _size(shape: dict[str, int]) -> str:
    return f"{shape['layers']} layers of {shape['width']} × {shape['neurons']}"


def _ceiling(model: Any, share: float) -> float:
    sizes = {n: model.weight(n).numel() for n in model.weights if n == "W_U" or (".W_" in n and "W_E" not in n)}
    mlp = sum(size for name, size in sizes.items() if ".mlp." in name) / sum(sizes.values())
    return 1 / ((1 - mlp) + mlp * share)


def _gap(model: Any, prompt: Any, given: Any, cores: dict[str, Any]) -> float:
    """The numbers must be those of the dense model with the other neurons at zero."""
    import torch

    from activarium.edits import Where, Zero

    with model.sparse(cores):
        found = model.decode(prompt, tokens=given)
    rows = tuple(range(-given.shape[1], -1))
    edits = []
    for site, neurons in cores.items():
        others = torch.ones(model.sites[site].shape[-1], dtype=torch.bool).index_fill(0, neurons, False).nonzero().flatten()
        edits.append(Zero(site, where=Where(features=tuple(others.tolist()), positions=rows)))
    masked = model.run(found.inputs, read="logits", edits=edits)["logits"].tensor[-given.shape[1] : -1]
    gap = float((found.logits[0, 1:] - masked).abs().max() / masked.abs().max())
    assert gap < 1e-4, f"sparse decoding differs from the masked dense model by {gap:.2g} of the largest logit"
    return gap


def _down(shape: dict[str, int], share: float, rounds: int) -> list[Row]:
    """One row of activations through the down projections of all layers in turn, so that no cache holds the next one."""
    import torch
    from torch.nn import functional

    dense = [torch.randn(shape["width"], shape["neurons"]) for _ in range(shape["layers"])]
    chosen = [torch.randperm(shape["neurons"])[: int(share * shape["neurons"])].sort().values for _ in dense]
    rows = [w.T.contiguous() for w in dense]
    gathered = [w[:, c].contiguous() for w, c in zip(dense, chosen, strict=True)]
    full = [torch.randn(1, shape["neurons"]) for _ in dense]
    few = [x[:, c].contiguous() for x, c in zip(full, chosen, strict=True)]

    def bag(i: int) -> Any:
        return functional.embedding_bag(chosen[i][None], rows[i], per_sample_weights=few[i], mode="sum")

    ways: dict[str, Callable[[int], Any]] = {
        "dense": lambda i: functional.linear(full[i], dense[i]),
        "gathered": lambda i: functional.linear(few[i], gathered[i]),
        "embedding_bag": bag,
        "index_select": lambda i: functional.linear(few[i], dense[i][:, chosen[i]]),
    }
    assert all(torch.allclose(bag(i), ways["gathered"](i), rtol=1e-3, atol=1e-2) for i in range(len(dense)))
    times = interleaved({name: _each(way, range(len(dense))) for name, way in ways.items()}, rounds)
    what = f"down projection alone, {_size(shape)}, {share:.0%} of the neurons: dense / "
    held = sum(w.numel() * w.element_size() for w in gathered) / 2**20
    note = f"the gathered weights of all layers take {held:.0f} MiB: where a cache holds them, the ratio passes {1 / share:.3g}"
    return [ratio(f"{what}{name}", times, "dense", name, note=note) for name in list(ways)[1:]]


def _each(way: Callable[[int], Any], layers: Sequence[int]) -> Callable[[], None]:
    def run() -> None:
        for i in layers:
            way(i)

    return run
