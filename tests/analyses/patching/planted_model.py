"""A transformer whose circuit was put there by hand: a previous-token head, then an induction head, and nothing else that matters."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import activarium as act

WORDS, PLACES, JUNK = 10, 12, 6
TOKEN, PLACE, BEFORE, OUT = 0, WORDS, WORDS + PLACES, 2 * WORDS + PLACES  # where each part of the stream begins
WIDTH = 3 * WORDS + PLACES + JUNK
HEAD = WIDTH // 2
SHARP = 6.0 * HEAD**0.5


def planted():
    """In `a b … a` the answer is `b`. No norms; MLPs add a constant to the junk; the second head of each block writes where nobody reads."""
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=PLACES,
        n_embd=WIDTH,
        n_head=2,
        n_layer=2,
        n_inner=8,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).double().eval()
    blocks = model.transformer.h
    with torch.no_grad():
        for values in (model.transformer.wte.weight, model.transformer.wpe.weight, model.lm_head.weight):
            values.zero_()
        model.transformer.wte.weight[:, TOKEN:PLACE] = torch.eye(WORDS)
        model.transformer.wpe.weight[:, PLACE:BEFORE] = torch.eye(PLACES)
        model.lm_head.weight[:, OUT : OUT + WORDS] = torch.eye(WORDS)
        for block in blocks:
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias[-JUNK:] = torch.randn(JUNK).double()
            block.attn.c_attn.bias.zero_()
            block.attn.c_attn.weight.normal_()  # the idle heads look about at random …
            block.attn.c_attn.weight.view(WIDTH, 3, 2, HEAD)[:, :, 0] = 0
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.weight[HEAD:, -JUNK:] = torch.randn(HEAD, JUNK).double()  # … and write into the junk
        # The query at place p + 1 meets the key at place p; the word there goes to the part for the word before.
        _set(blocks[0], query=torch.eye(PLACES).roll(1, 0), at=PLACE, key=PLACE, out=BEFORE)
        # The word here meets places whose word before it is; the word there goes out.
        _set(blocks[1], query=torch.eye(WORDS), at=TOKEN, key=BEFORE, out=OUT)
    model.transformer.ln_f = nn.Identity()
    return act.wrap(model, None, name="planted", certify=False)


def _set(block, query, at, key, out):
    weights, size = block.attn.c_attn.weight.view(WIDTH, 3, 2, HEAD), len(query)
    for part, start, matrix in ((0, at, SHARP * query), (1, key, torch.eye(size)), (2, TOKEN, torch.eye(WORDS))):
        weights[start : start + len(matrix), part, 0, : len(matrix)] = matrix.double()
    block.attn.c_proj.weight[:WORDS, out : out + WORDS] = torch.eye(WORDS).double()


def planted_pairs(model):
    """The first word of each pattern is another one in the corrupted inputs: nothing says any more what follows the last word."""
    clean = [torch.tensor([0, 1, 2, 3, 4, 1]), torch.tensor([5, 6, 7, 8, 9, 6])]
    corrupt = [torch.tensor([0, 9, 2, 3, 4, 1]), torch.tensor([5, 1, 7, 8, 9, 6])]
    return act.pairs(model, clean, corrupt, answers=[2, 7], foils=[3, 8])
