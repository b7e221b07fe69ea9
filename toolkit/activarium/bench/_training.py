"""Training dictionaries: a step of ours beside a step of sae-lens' trainer on the same rows, in time, in memory, and on an accelerator."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.bench._feeding import feeding
from activarium.bench._memory import peak
from activarium.bench._timing import Row, absent, interleaved, ratio

RATE = 3e-4
MISSING = "sae-lens is not installed"


def training(small: bool, rounds: int) -> list[Row]:
    """Rows per second of top-k, batch top-k and standard training on one thread and on two, memory, what a store costs, an accelerator."""
    width, features, k, batch = (64, 256, 8, 256) if small else (512, 4096, 32, 4096)
    rows = _planted(12 * batch, width, 2 * width)
    shape = f"d_in {width}, {features} features, k {k}, {batch} rows a step"
    found = []
    for count in (1, 2) if (os.cpu_count() or 1) > 1 else (1,):
        with _threads(count):
            found += [_beside(kind, rows, features, k, batch, rounds, shape) for kind in ("topk", "batchtopk", "standard")]
    found += _memory(rows, features, k, batch, shape)
    return [*found, *feeding(rows, features, k, batch, rounds, shape), on_accelerator()]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _planted(count: int, width: int, atoms: int) -> Tensor:
    """Rows of about sixteen of many unit atoms."""
    generator = torch.Generator().manual_seed(12)
    unit = torch.nn.functional.normalize(torch.randn(atoms, width, generator=generator), dim=1)
    on = torch.rand(count, atoms, generator=generator) < 16 / atoms
    return (on * (0.5 + torch.rand(count, atoms, generator=generator))) @ unit


def _beside(kind: str, rows: Tensor, features: int, k: int, batch: int, rounds: int, shape: str) -> Row:
    what = f"sae-lens' trainer / ours, one step of {kind}, {shape}, {_count()}"
    goal = "≥ 5" if kind != "standard" else ""
    try:
        theirs = _sae_lens(kind, rows.shape[1], features, k, batch)
    except ImportError:
        return absent(what, MISSING, goal)
    ours = _ours(kind, rows, features, k)
    feeds = [_endless(rows, batch), _endless(rows, batch)]

    def step() -> None:
        x = next(feeds[0])
        ours.learn(x, x)

    times = interleaved({"sae-lens": lambda: theirs.step(next(feeds[1])), "activarium": step}, rounds)
    per_second = {name: batch / sorted(w for w, _ in found)[len(found) // 2] for name, found in times.items()}
    fvu = _unexplained(ours.finished(ours_origin()), rows), _unexplained(theirs.sae, rows)
    note = f"{per_second['activarium']:,.0f} rows/s against {per_second['sae-lens']:,.0f}, {_count()}"
    note += f"; after the same {ours.step} steps {fvu[0]:.1%} of the variance is unexplained, theirs {fvu[1]:.1%}"
    return ratio(what, times, "sae-lens", "activarium", goal, note)


def _count() -> str:
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _ours(kind: str, rows: Tensor, features: int, k: int) -> Any:
    """A learner with sae-lens' learning rate, which neither rises in the beginning nor falls so soon."""
    from activarium.dictionaries.learner import Learner
    from activarium.dictionaries.recipe import Recipe
    from activarium.dictionaries.rows import RowSource

    few = None if kind == "standard" else k
    recipe = Recipe(features, kind, k=few, learning_rate=RATE, warm_up=0.0)  # pyright: ignore[reportArgumentType]
    return Learner(recipe, RowSource(_activations(rows)).statistics(0), False, 10_000)


def _memory(rows: Tensor, features: int, k: int, batch: int, shape: str) -> list[Row]:
    """The most that building a learner and two of its steps take."""
    with _threads(1):
        calls: dict[str, Callable[[], Any]] = {
            "activarium": lambda: _ours("topk", rows[:batch], features, k),
            "sae-lens": lambda: _sae_lens("topk", rows.shape[1], features, k, batch),
        }
        found = []
        for who, made in calls.items():
            what = f"peak memory of training topk, {who}, {shape}"
            try:
                made()
            except ImportError:
                found.append(absent(what, MISSING))
                continue

            def steps(made: Callable[[], Any] = made) -> Any:
                learner, feed = made(), _endless(rows, batch)
                for _ in range(2):
                    x = next(feed)
                    learner.learn(x, x) if hasattr(learner, "learn") else learner.step(x)
                return learner

            told = peak(steps)
            found.append(Row(what, told, "MiB") if told is not None else absent(what, "this system does not tell"))
        return found


def on_accelerator(features: int = 32_768, width: int = 2304, k: int = 64, batch: int = 4096, steps: int = 30) -> Row:
    """Rows per second on a GPU, and the share of a step that the one dense product takes alone."""
    what = f"training topk on a GPU: share of the encode product's own speed, d_in {width}, {features} features, k {k}, {batch} rows a step"
    if not torch.cuda.is_available():
        return absent(what, "no GPU here", "≥ 0.5")
    from activarium.dictionaries.learner import Learner
    from activarium.dictionaries.recipe import Recipe
    from activarium.dictionaries.rows import RowSource

    rows = _planted(2 * batch, width, 2 * width)
    learner = Learner(Recipe(features, k=k), RowSource(_activations(rows)).statistics(0), False, 10_000, "cuda")
    x = rows[:batch].cuda()
    encoder, bias = learner.sae.encoder.detach(), learner.sae.b_enc.detach()
    step = _seconds(lambda: learner.learn(x, x), steps)
    product = _seconds(lambda: torch.addmm(bias, x, encoder.T), steps)
    note = f"{batch / step:,.0f} rows/s in float32 on {torch.cuda.get_device_name()}; {2 * batch * width * features / product / 1e12:.1f} Tflop/s alone"
    return Row(what, product / step, "×", "≥ 0.5", seconds={"step": step, "product": product}, note=note)


def _seconds(call: Callable[[], Any], times: int) -> float:
    for _ in range(3):
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / times


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
