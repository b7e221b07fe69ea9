"""Training dictionaries: a step of ours beside a step of sae-lens' trainer on the same rows, and rows from a store beside rows in memory."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.bench._timing import Row, absent, interleaved, ratio

RATE = 3e-4


def training(small: bool, rounds: int) -> list[Row]:
    """Rows per second of top-k, batch top-k and standard training, and what a store costs."""
    width, features, k, batch = (64, 256, 8, 256) if small else (512, 4096, 32, 4096)
    rows = _planted(12 * batch, width, 2 * width)
    shape = f"d_in {width}, {features} features, k {k}, {batch} rows a step"
    found = [_beside(kind, rows, features, k, batch, rounds, shape) for kind in ("topk", "batchtopk", "standard")]
    return [*found, _from_store(rows, features, k, batch, rounds, shape)]


def _planted(count: int, width: int, atoms: int) -> Tensor:
    """Rows of about sixteen of many unit atoms."""
    generator = torch.Generator().manual_seed(12)
    unit = torch.nn.functional.normalize(torch.randn(atoms, width, generator=generator), dim=1)
    on = torch.rand(count, atoms, generator=generator) < 16 / atoms
    return (on * (0.5 + torch.rand(count, atoms, generator=generator))) @ unit


def _beside(kind: str, rows: Tensor, features: int, k: int, batch: int, rounds: int, shape: str) -> Row:
    from activarium.dictionaries.learner import Learner
    from activarium.dictionaries.recipe import Recipe
    from activarium.dictionaries.rows import RowSource

    what = f"sae-lens' trainer / ours, one step of {kind}, {shape}"
    goal = "≥ 5" if kind != "standard" else ""
    try:
        theirs = _sae_lens(kind, rows.shape[1], features, k, batch)
    except ImportError:
        return absent(what, "sae-lens is not installed", goal)
    recipe = Recipe(features, kind, k=None if kind == "standard" else k, learning_rate=RATE)  # pyright: ignore[reportArgumentType]
    ours = Learner(recipe, RowSource(_activations(rows)).statistics(0), False, 10_000)
    feeds = [_endless(rows, batch), _endless(rows, batch)]

    def step() -> None:
        x = next(feeds[0])
        ours.learn(x, x)

    times = interleaved({"sae-lens": lambda: theirs.step(next(feeds[1])), "activarium": step}, rounds)
    per_second = {name: batch / sorted(w for w, _ in found)[len(found) // 2] for name, found in times.items()}
    fvu = _unexplained(ours.finished(ours_origin()), rows), _unexplained(theirs.sae, rows)
    note = f"{per_second['activarium']:,.0f} rows/s against {per_second['sae-lens']:,.0f}, {torch.get_num_threads()} threads"
    note += f"; after the same {ours.step} steps {fvu[0]:.1%} of the variance is unexplained, theirs {fvu[1]:.1%}"
    return ratio(what, times, "sae-lens", "activarium", goal, note)


def ours_origin() -> Any:
    """A dictionary of rows that were made here."""
    from activarium.dictionaries.design import Origin

    return Origin()


def _sae_lens(kind: str, width: int, features: int, k: int, batch: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        called = {"topk": "TopK", "batchtopk": "BatchTopK", "standard": "Standard"}[kind]
        # Its sparse codes do not run in its own trainer on processors: a view of a sparse tensor is refused.
        more: dict[str, Any] = {"l1_coefficient": 1.0} if kind == "standard" else {"k": k, "use_sparse_activations": False}
        config = getattr(sae_lens, f"{called}TrainingSAEConfig")(d_in=width, d_sae=features, **more)
        sae = getattr(sae_lens, f"{called}TrainingSAE")(config)
    settings = SAETrainerConfig(total_training_samples=10_000 * batch, train_batch_size_samples=batch, lr=RATE, lr_end=RATE / 10)
    return SAETrainer(settings, sae, iter(()))


def _endless(rows: Tensor, batch: int) -> Iterator[Tensor]:
    """The same batches for both, again and again, of mean length √d_in."""
    scale = rows.shape[1] ** 0.5 / float(rows.norm(dim=1).mean())
    while True:
        for piece in rows.split(batch):
            yield scale * piece


def _unexplained(sae: Any, rows: Tensor) -> float:
    with torch.no_grad():
        x = next(_endless(rows[: 4096 + 1], 4096))
        return float((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())


def _activations(rows: Tensor) -> Any:
    from activarium.activations import Activations
    from activarium.rows import Rows

    index = Rows({"example": np.arange(len(rows)) // 128, "position": np.arange(len(rows)) % 128})
    return Activations(rows * rows.shape[1] ** 0.5 / float(rows.norm(dim=1).mean()), "row d_model", site="blocks.0.resid_post", index=index)


def _from_store(rows: Tensor, features: int, k: int, batch: int, rounds: int, shape: str) -> Row:
    """Whole trainings of a few steps: their rows from a store on the disk, and held in memory."""
    import activarium as act
    from activarium.activations import Activations
    from activarium.dictionaries import Recipe, train
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
        return ratio(f"training from memory / from a store, 8 steps and their statistics, {shape}", times, "memory", "store", "≥ 0.95")
