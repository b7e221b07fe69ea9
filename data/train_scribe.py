"""Trains scribe and scribe-relu, the bundled language models, on the generated corpus.

Run it as `python data/train_scribe.py scribe`, or `… scribe-relu`. The same seed, machine and thread count give the same weights, bit by bit; other machines give the same behaviour.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

if __package__:  # imported as activarium.data.train_scribe
    from . import corpus
    from .scribe_card import write_card
else:  # run as a script
    import corpus
    from scribe_card import write_card

HERE = Path(__file__).parent
ACTIVATIONS = {"scribe": "gelu_new", "scribe-relu": "relu"}
BOS, EOS, PAD = (corpus.SPECIAL.index(token) for token in ("<bos>", "<eos>", "<pad>"))
IGNORE = -100  # what cross_entropy leaves out
PROBE_SEED = 990_001  # the ten fixed sequences of the massive-activation series


@dataclass(frozen=True)
class Recipe:
    """With which settings is a model trained? The defaults are the ones the bundled weights come from."""

    activation: str = "gelu_new"
    steps: int = 3000
    batch: int = 32
    context: int = 128
    width: int = 128
    layers: int = 4
    heads: int = 4
    learning_rate: float = 2e-3
    warm_up: int = 150
    weight_decay: float = 0.05
    seed: int = 20260
    threads: int = 1


def build_tokenizer(context: int = 128) -> PreTrainedTokenizerFast:
    """Which tokenizer turns corpus text into ids? One id per word or mark, `<bos>` in front, exact decoding."""
    ids = {token: index for index, token in enumerate(corpus.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)])
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # joins with spaces, then closes them before "." and ","
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        padding_side="right", model_max_length=context, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_model(recipe: Recipe) -> GPT2LMHeadModel:
    """Which untrained model does the recipe start from?"""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=len(corpus.VOCABULARY), n_positions=recipe.context, n_embd=recipe.width, n_layer=recipe.layers,
        n_head=recipe.heads, activation_function=recipe.activation, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def batches(recipe: Recipe, seed: int) -> Iterator[Tensor]:
    """Which rows of ids does the model see? `<bos>`, as many whole sentences as fit, `<eos>`, padding."""
    ids = {token: index for index, token in enumerate(corpus.VOCABULARY)}
    stream = corpus.training(seed)
    sentence: list[int] = []
    while True:
        rows = np.full((recipe.batch, recipe.context), PAD)
        for row in rows:
            filled = [BOS]
            while len(filled) + len(sentence) < recipe.context:
                filled += sentence
                sentence = [ids[word] for word in corpus.words(next(stream).text)]
            filled.append(EOS)
            row[: len(filled)] = filled
        yield torch.from_numpy(rows)


def rate(recipe: Recipe, step: int) -> float:
    """With which learning rate is this step taken? Linear warm-up, then a cosine down to one twentieth."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.learning_rate * (0.05 + 0.95 * (1 + cos(pi * done)) / 2)


@contextmanager
def reproducible(threads: int):
    """Within this block the same inputs give the same bits: fixed thread count, deterministic kernels."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def train(recipe: Recipe, watch: Callable[[int, GPT2LMHeadModel, float], None]) -> GPT2LMHeadModel:
    """Which model does the recipe give? `watch(step, model, loss)` is called before every step and after the last."""
    with reproducible(recipe.threads):
        model = build_model(recipe).train()
        # The same function as gelu_new, in one kernel: a step takes about 0.7 of the time. The saved config says gelu_new.
        if recipe.activation == "gelu_new":
            for block in model.transformer.h:
                block.mlp.act = nn.GELU(approximate="tanh")
        optimiser = torch.optim.AdamW(_groups(model, recipe), betas=(0.9, 0.98), fused=True)
        loss, stream = float("nan"), batches(recipe, recipe.seed)
        for step in range(recipe.steps):
            watch(step, model, loss)
            loss = _step(model, optimiser, next(stream), rate(recipe, step))
        watch(recipe.steps, model, loss)
    return model.eval()


def _groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Matrices decay, gains and biases do not."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    return [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _step(model: GPT2LMHeadModel, optimiser: torch.optim.Optimizer, rows: Tensor, learning_rate: float) -> float:
    """One optimiser step on next-word prediction; returns the loss in nats."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    targets = rows[:, 1:].masked_fill(rows[:, 1:] == PAD, IGNORE)
    # Padding stands on the right, where a causal model cannot see it: every position may attend.
    logits = model(rows, attention_mask=torch.ones_like(rows), use_cache=False).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def probe_steps(steps: int, count: int = 60) -> list[int]:
    """At which steps is the massive-activation series recorded? 0, 1, then evenly in the logarithm, up to the last."""
    return sorted({0, *np.unique(np.geomspace(1, steps, count).round().astype(int)).tolist()})


def probe_rows(context: int) -> Tensor:
    """Which ten sequences does the series look at? Cut at the shortest, so that none of them holds padding."""
    rows = next(batches(Recipe(batch=10, context=context), PROBE_SEED))
    return rows[:, : int((rows != PAD).sum(1).min())]


def massive_ratio(stream: Tensor) -> float:
    """How far does the largest entry stand out? Mean over sequences of max |h| / lower-median |h|."""
    sizes = stream.abs().flatten(1)
    return float((sizes.max(1).values / sizes.median(1).values).mean())


@torch.no_grad()
def massive_ratios(model: GPT2LMHeadModel, rows: Tensor) -> list[float]:
    """How far does the largest entry of the residual stream stand out after each block?"""
    ratios: list[float] = []

    def note(_block: nn.Module, _inputs: tuple, stream: Tensor) -> None:
        ratios.append(massive_ratio(stream))

    hooks = [block.register_forward_hook(note) for block in model.transformer.h]
    try:
        model(rows, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return ratios


class Watch:
    """Notes the massive-activation series during training and prints the loss now and then."""

    def __init__(self, recipe: Recipe):
        self.at = set(probe_steps(recipe.steps))
        self.rows = probe_rows(recipe.context)
        self.series: list[dict] = []
        self.start = time.monotonic()

    def __call__(self, step: int, model: GPT2LMHeadModel, loss: float) -> None:
        if step in self.at:
            self.series.append({"step": step, "ratio": [round(r, 4) for r in massive_ratios(model, self.rows)]})
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss:.4f}  {(time.monotonic() - self.start) / 60:.1f} min", flush=True)


def main() -> None:
    """Train one model and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(ACTIVATIONS))
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="fewer steps, for a trial")
    parser.add_argument("--to", type=Path, default=HERE, help="the folder that gets the model's folder")
    chosen = parser.parse_args()
    recipe = Recipe(activation=ACTIVATIONS[chosen.name], steps=chosen.steps)
    watch, processor_start = Watch(recipe), time.process_time()
    model = train(recipe, watch)
    minutes = {
        "wall": round((time.monotonic() - watch.start) / 60, 1),
        "processor": round((time.process_time() - processor_start) / 60, 1),
    }
    folder = chosen.to / chosen.name
    model.save_pretrained(folder)
    build_tokenizer(recipe.context).save_pretrained(folder)
    write_card(folder, asdict(recipe), minutes, watch.series)


if __name__ == "__main__":
    main()
