"""Training from a store: what its rows cost beside rows in memory, and how fast random batches come from it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from activarium.bench._timing import Row, interleaved, medians, ratio


def feeding(rows: Tensor, features: int, k: int, batch: int, rounds: int, shape: str) -> list[Row]:
    """Whole trainings of a few steps with rows from a store and from memory; how fast a store gives batches, and how fast they are used up."""
    import activarium as act
    from activarium.activations import Activations
    from activarium.dictionaries import Recipe, RowSource, train
    from activarium.recording import Recording

    site, recipe = "blocks.0.resid_post", Recipe(features, k=k)
    model = act.wrap(*act.testing.tiny("gpt2", n_embd=rows.shape[1], n_head=8, n_layer=1), certify="quick")
    words = [" ".join(["the cat sat on the house ."] * 8)] * (12 * batch // 56)
    with tempfile.TemporaryDirectory() as folder:
        store = act.capture(model, words, [site], to=Path(folder) / "rows.acts", progress=False)
        held = Recording({site: Activations(store[site].tensor.clone(), "row d_model", site=site, index=store[site].index)}, store.rows)

        def call(source: Any) -> Callable[[], Any]:
            return lambda: train(source, site, recipe, batch=batch, steps=8, progress=False)

        times = interleaved({"memory": call(held), "store": call(store)}, max(2, rounds // 2))
        found = ratio(f"training from memory / from a store, 8 steps and their statistics, {shape}", times, "memory", "store", "≥ 0.95")
        return [found, _read(RowSource(store[site]), recipe, batch, rounds, shape)]


def _read(source: Any, recipe: Any, batch: int, rounds: int, shape: str) -> Row:
    from activarium.dictionaries.learner import Learner

    feed, learner = source.batches(batch, 0), Learner(recipe, source.statistics(0), False, 10_000)
    held = next(feed)
    times = interleaved({"read": lambda: next(feed), "learn": lambda: learner.learn(*held)}, max(3, rounds))
    seconds = {name: wall for name, (wall, _) in medians(times).items()}
    note = f"{batch / seconds['read']:,.0f} rows/s read, mixed over the store, against {batch / seconds['learn']:,.0f} rows/s learnt from"
    return ratio(f"learning from a random batch / reading it from a store, {shape}", times, "learn", "read", "≥ 5", note)
