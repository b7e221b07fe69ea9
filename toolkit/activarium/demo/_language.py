"""scribe: what it predicts, at which layer answers appear, how large its activations get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import activarium as act
from activarium.data import corpus  # pyright: ignore[reportAttributeAccessIssue]  (a path that is found at run time)
from activarium.demo._tour import SEED, SENTENCES, Tour
from activarium.results import Overlay


def language(tour: Tour) -> None:
    """scribe: what it predicts, at which layer answers appear, how large its activations get."""
    examples = [item for family in corpus.FAMILIES for item in corpus.held_out(family, SEED, SENTENCES)]
    model, store = tour.captured("scribe", [item.text for item in examples])
    indirect = [i for i, item in enumerate(examples) if item.family == "ioi"]
    shown, item = indirect[0], examples[indirect[0]]
    loss = token_loss(store, shown)
    lens = act.analyses.logit_lens(store, model, example=shown, target=item.answer)
    tour.say("scribe · how surprised it is", [_surprise(loss)])
    tour.parts["scribe · loss of each token, given those before it"] = loss
    tour.say("scribe · when the receiver's name appears", [*lens.words, *_appearance(tour, model, store, examples, indirect)])
    tour.keep(f"scribe · probability of {item.answer!r} by layer and position", lens, "probability")
    tour.keep("scribe · entropy of each layer's answer", lens, "entropy")
    massive = act.analyses.massive_activations(store)
    tour.say("scribe · massive activations", massive.words)
    tour.keep("scribe · largest activations by layer", massive, "sizes")
    tour.keep("scribe · the largest number of each layer", massive, "largest")


def token_loss(recording: Any, example: int) -> Overlay:
    """How surprising is each token, given those before it? Nats; the first one has nothing before it."""
    logits = recording.logits.example(example)
    ids = np.asarray(logits.index["token"], dtype=np.int64)
    known = logits.tensor.float().log_softmax(1).cpu().numpy()
    loss = -known[np.arange(len(ids) - 1), ids[1:]]
    tokens = tuple(str(t) for t in logits.index["text"])
    return Overlay(np.r_[np.nan, loss][None], ("loss",), tokens, title="Loss of each token, given those before it", unit="nats")


def _surprise(loss: Overlay) -> str:
    values = loss.values[0, 1:]
    worst = int(values.argmax()) + 1
    return (
        f"The shown sentence costs {values.mean():.2f} nats a token on average; the most surprising one is {loss.tokens[worst]!r} "  # type: ignore[index]
        f"with {values.max():.2f}, the least {loss.tokens[int(values.argmin()) + 1]!r} with {values.min():.3f}."  # type: ignore[index]
    )


def _appearance(tour: Tour, model: Any, store: Any, examples: Sequence[Any], chosen: Sequence[int]) -> list[str]:
    """How probable the receiver is after each layer, at the place where it is said, over many sentences."""
    probability, rank = [], []
    for i in chosen:
        lens = act.analyses.logit_lens(store, model, example=i, target=examples[i].answer)
        probability.append(lens["probability"].values[:, examples[i].positions["end"]])
        rank.append(lens["rank"].values[:, examples[i].positions["end"]])
    names, shares, first = lens["rank"].label("layer"), np.mean(probability, axis=0), np.mean(np.array(rank) == 1, axis=0)
    lines = [[name, f"{p:.3f}", f"{f:.0%}"] for name, p, f in zip(names, shares, first, strict=True)]
    tour.table(f"The receiver's name in {len(chosen)} unseen sentences", ["read after", "mean probability", "top answer"], lines)
    jump = int(np.diff(shares).argmax()) + 1
    return [
        f"Over {len(chosen)} unseen sentences its mean probability rises most at {names[jump]}, from {shares[jump - 1]:.2f} to {shares[jump]:.2f}; "
        f"at the end it is the top answer in {first[-1]:.0%}."
    ]
