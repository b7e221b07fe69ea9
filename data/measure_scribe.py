"""What does a trained scribe do on sentences whose combinations it never saw?"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

if __package__:  # imported as activarium.data.measure_scribe
    from . import corpus
    from .cards import figure
    from .corpus import _two_hop
else:  # run from a script in data/
    import corpus
    from cards import figure
    from corpus import _two_hop

BATCH = 256


@torch.no_grad()
def end_logits(model, tokenizer, prompts: Sequence[str]) -> Tensor:
    """Which logits (example, vocab) does the model give for the word after each prompt?"""
    found = []
    for start in range(0, len(prompts), BATCH):
        inputs = tokenizer(list(prompts[start : start + BATCH]), padding=True, return_tensors="pt")
        last = inputs.attention_mask.sum(1) - 1
        logits = model(**inputs, use_cache=False).logits
        found.append(logits[torch.arange(len(last)), last])
    return torch.cat(found)


def token_ids(tokenizer, tokens: Sequence[str]) -> Tensor:
    """Which ids do these words have?"""
    return torch.tensor(tokenizer.convert_tokens_to_ids(list(tokens)))


def first_choice(model, tokenizer, examples: Sequence[corpus.Example], before: Sequence[str] = ()) -> Tensor:
    """For which examples is the answer the likeliest word of the whole vocabulary? (`before`: text in front of each.)"""
    fronts = before or [""] * len(examples)
    prompts = [f"{front} {item.prompt}".strip() for front, item in zip(fronts, examples, strict=True)]
    return end_logits(model, tokenizer, prompts).argmax(-1) == token_ids(tokenizer, [item.answer for item in examples])


def preferred(model, tokenizer, examples: Sequence[corpus.Example]) -> Tensor:
    """For which examples has the answer a higher logit than every distractor?"""
    logits = end_logits(model, tokenizer, [item.prompt for item in examples])
    right = []
    for row, item in zip(logits, examples, strict=True):
        others = row[token_ids(tokenizer, item.distractors)]
        right.append(bool(row[tokenizer.convert_tokens_to_ids(item.answer)] > others.max()))
    return torch.tensor(right)


@torch.no_grad()
def induction_shares(model, tokenizer, examples: Sequence[corpus.Example]) -> Tensor:
    """Which share of the second half, from its second word on, is predicted in each repeated sequence?"""
    shares = []
    for start in range(0, len(examples), BATCH):
        chosen = examples[start : start + BATCH]
        inputs = tokenizer([item.text for item in chosen], padding=True, return_tensors="pt")
        guesses = model(**inputs, use_cache=False).logits.argmax(-1)
        for row, guess, item in zip(inputs.input_ids, guesses, chosen, strict=True):
            span = slice(item.positions["repeat"], item.positions["end"] + 1)
            shares.append((guess[span] == row[1:][span]).float().mean())
    return torch.stack(shares)


def behaviours(model, tokenizer, seed: int, n: int) -> dict[str, dict]:
    """How well does the model do on `n` held-out examples of each family?

    Args:
        model: A `GPT2LMHeadModel` in eval mode.
        tokenizer: Its tokenizer.
        seed: Draws the held-out examples.
        n: Examples per family. Two-hop questions are counted as they are: all held-out compositions, once each.

    Returns:
        Behaviour → value, n and 95 % interval. The interval of induction counts sequences, not words, as the words of
        one sequence are not independent.
    """
    draw = {family: corpus.held_out(family, seed, n) for family in corpus.FAMILIES}
    choose, prefer = partial(first_choice, model, tokenizer), partial(preferred, model, tokenizer)
    results = {
        "ioi: receiver is first choice": choose(draw["ioi"]),
        "ioi: receiver above giver": prefer(draw["ioi"]),
        "ioi: first choice after three other sentences": choose(draw["ioi"], before=_fronts(seed, n)),
        "induction: second half is first choice": induction_shares(model, tokenizer, draw["induction"]),
        "agreement: right form above wrong": prefer(draw["agreement"]),
        "agreement: with attractors": prefer([item for item in draw["agreement"] if item.details["attractors"]]),
        "brackets: right kind above other kinds": prefer(draw["brackets"]),
        "brackets: with brackets inside": prefer([item for item in draw["brackets"] if item.details["distance"] > 2]),
        "sentiment: verdict is first choice": choose(draw["sentiment"]),
        "sentiment: mixed reviews": choose([item for item in draw["sentiment"] if len(set(item.details["signs"])) > 1]),
        "two_hop: held-out compositions are first choice": choose(compositions(held_out=True)),
        "two_hop: trained compositions are first choice": choose(compositions(held_out=False)),
    }
    return {name: figure(float(right.float().mean()), len(right)) for name, right in results.items()}


def compositions(held_out: bool) -> list[corpus.Example]:
    """Which two-hop questions exist on this side of the held-out rule? Each of them once."""
    every = [_two_hop.composition(who, what) for who in _two_hop.PEOPLE for what in _two_hop.RELATIONS]
    return [item for item in every if corpus.is_held_out(item) == held_out]


def _fronts(seed: int, n: int) -> list[str]:
    """Three training sentences to stand in front of each example."""
    sentences = corpus.training_text(seed + 1, 3 * n)
    return [" ".join(sentences[3 * index : 3 * index + 3]) for index in range(n)]


@torch.no_grad()
def nonzero_shares(model, tokenizer, texts: Sequence[str]) -> list[float]:
    """Which share of the activation function's outputs is above zero, per layer, over the real tokens of `texts`?"""
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    real, shares, hooks = inputs.attention_mask.bool(), [], []

    def note(_module: object, _inputs: object, output: torch.Tensor) -> None:
        shares.append(float((output[real] > 0).float().mean()))

    for block in model.transformer.h:
        hooks.append(block.mlp.act.register_forward_hook(note))
    try:
        model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [round(share, 4) for share in shares]
