"""A Llama with one massive activation planted through its weights, and its twin without.

Token 17 alone has embedding dimension 5; the MLP of block 1 reads it and writes `size` into dimension 44, where nothing else writes.
"""

from collections.abc import Iterable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import activarium as act
from activarium.protocols import Runner

TOKEN, READ, DIM, LAYER, LAYERS = 17, 5, 44, 1, 4  # the trigger, the dimension only it has, where it writes, in which block, of how many
NEURON = 0  # of block LAYER, which writes
TEXT = [3, 4, TOKEN, 6]  # where it writes exactly `size`: elsewhere the norm before the MLP divides by another length


def planted(
    size: float = 1800.0, dtype: torch.dtype = torch.float32, *, token: int = TOKEN, text: Iterable[int] = TEXT, vocabulary: int = 40
) -> LlamaForCausalLM:
    """The model; with `size=0` its twin, which has the same weights but the one that writes."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model, text = LlamaForCausalLM(config).eval(), list(text)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[:, [READ, DIM]] = 0.0
        embedding[token, READ] = 0.5
        for block in model.model.layers:
            for silent in (READ, DIM):  # nothing else writes there
                block.self_attn.o_proj.weight[silent] = 0.0
                block.mlp.down_proj.weight[silent] = 0.0
        mlp = model.model.layers[LAYER].mlp
        for branch in (mlp.gate_proj, mlp.up_proj):
            branch.weight[NEURON] = 0.0
            branch.weight[NEURON, READ] = 1.0
        mlp.down_proj.weight[:, NEURON] = 0.0
        mlp.down_proj.weight[DIM, NEURON] = 1.0
        states = model.model(torch.tensor([text]), output_hidden_states=True).hidden_states[LAYER + 1]
        mlp.down_proj.weight[DIM, NEURON] = size / states[0, text.index(token), DIM]
    return model.to(dtype)


def wrapped(model: LlamaForCausalLM, certify: bool | str = "quick") -> Runner:
    """As a Runner; `quick` proves what is read, and nothing about writes."""
    return act.wrap(model, certify=certify)
