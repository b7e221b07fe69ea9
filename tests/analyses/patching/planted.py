"""A circuit planted by hand: a previous-token head and an induction head in a GPT-2 without MLPs, among heads that say nothing of use."""

import torch

import activarium as act

TOKENS, PLACES, BLOCKS = 8, 6, 5  # words, positions, subspaces: token, position, previous token, answer, noise
TOKEN, POSITION, PREVIOUS, ANSWER, NOISE = range(BLOCKS)
WIDTH = BLOCKS * TOKENS  # every number is stored with its opposite, so that a mean over features is always zero


def planted(seed: int = 0):
    """A float64 runner: head 0 of block 0 copies each previous token, head 1 of block 1 finds what followed the last token before.

    The other two heads read everything, with random weights, and write where nobody reads. Norms have an epsilon that makes them
    plain centring. After `A B … A` the answer is `B`.
    """
    model, _ = act.testing.tiny(
        "gpt2", n_embd=2 * WIDTH, n_head=2, n_layer=2, n_inner=8, n_positions=TOKENS, vocab_size=TOKENS, layer_norm_epsilon=1e16,
        tie_word_embeddings=False,
    )  # fmt: skip
    runner = act.wrap(model.double(), certify=False)  # found with random weights: a planted zero would be no sign of anything
    random = torch.Generator().manual_seed(seed)
    body = model.transformer
    with torch.no_grad():
        for norm in (body.ln_f, *(n for b in body.h for n in (b.ln_1, b.ln_2))):
            norm.weight.fill_(1e8)
            norm.bias.zero_()
        body.wte.weight.copy_(_both(_basis(TOKEN)))
        body.wpe.weight.copy_(_both(_basis(POSITION)))
        model.lm_head.weight.copy_(_both(_basis(ANSWER)) / 2)
        for block in body.h:
            for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
        shift = torch.eye(TOKENS).roll(1, 0).double()  # position i asks for position i - 1
        _head(body.h[0].attn, 0, query=_read(POSITION) @ shift, key=_read(POSITION), value=_read(TOKEN), write=_write(PREVIOUS))
        _head(body.h[1].attn, 1, query=_read(TOKEN), key=_read(PREVIOUS), value=_read(TOKEN), write=_write(ANSWER))
        for block, head in ((0, 1), (1, 0)):
            noise = [torch.randn(2 * WIDTH, TOKENS, generator=random, dtype=torch.float64) for _ in range(3)]
            mixed = torch.randn(TOKENS, TOKENS, generator=random, dtype=torch.float64)
            _head(body.h[block].attn, head, *noise, write=mixed @ _write(NOISE))
    return runner


def _basis(block: int) -> torch.Tensor:
    made = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)
    made[:, block * TOKENS : (block + 1) * TOKENS] = torch.eye(TOKENS)
    return made


def _both(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, -rows], 1)


def _read(block: int) -> torch.Tensor:
    return (_both(_basis(block)) / 2).T


def _write(block: int) -> torch.Tensor:
    return _both(_basis(block))


def _head(attention, head: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, write: torch.Tensor) -> None:
    """Put one head's matrices in place; scores so large that a pattern is all on one key or even over all that tie."""
    start, sharp = head * WIDTH, 2000.0 * WIDTH**0.5
    for third, matrix in enumerate((query * sharp, key, value)):
        attention.c_attn.weight[:, third * 2 * WIDTH + start : third * 2 * WIDTH + start + TOKENS] = matrix
    attention.c_proj.weight[start : start + TOKENS] = write
