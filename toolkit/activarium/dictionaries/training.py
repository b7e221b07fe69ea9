"""Training dictionaries on captured rows, straight from a store or from memory, several in one pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from activarium.activations import Activations
from activarium.dictionaries.coded import origin_of
from activarium.dictionaries.design import Origin
from activarium.dictionaries.learner import Learner
from activarium.dictionaries.recipe import Recipe
from activarium.dictionaries.rows import EXCLUDED, RowSource
from activarium.dictionaries.sae import SAE
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.recording import Recording
from activarium.results import Report, Series

NOTE = 50  # steps from one note to the next


@dataclass(frozen=True, eq=False)
class Trained:
    """A dictionary and how its training went.

    Attributes:
        sae: Takes rows as the model has them.
        report: Unexplained variance, codes per row and dead features over the steps.
    """

    sae: SAE
    report: Report


def train(
    recording: Recording,
    site: str,
    recipe: Recipe | Sequence[Recipe],
    *,
    target: str | None = None,
    batch: int = 4096,
    steps: int | None = None,
    exclude: Sequence[str] = EXCLUDED,
    seed: int = 0,
    pause: str | Path | None = None,
    every: int = 500,
    device: str = "cpu",
    progress: bool = True,
) -> Trained | list[Trained]:
    """Train dictionaries on a site's rows.

    Rows come in an order that mixes the whole recording and depends on their number and the seed alone, so a store and the same
    rows in memory give the same weights, bit for bit. They are scaled to mean length √d_in and centred; both are folded back
    into the weights at the end. With top-k codes only the encode product is dense, in the forward and in the backward.

    Args:
        recording: A store or a recording.
        site: What the dictionary reads, one site of one layer, rows of a text or patches of an image alike.
        recipe: One, or several that are trained side by side on the same batches.
        target: The site that it writes, for a transcoder.
        batch: Rows in a step.
        steps: How many steps; None goes through the rows ten times, in 200 to 20 000 steps.
        exclude: Row kinds that are left out: first tokens and class tokens are often many times larger than all others.
        seed: Order of the rows.
        pause: A file that the state is written to now and then; a call with the same arguments goes on from it, to the same bits.
        every: Steps between such writes.
        device: Where it learns, `cpu` or `cuda`. Rows are read and their order drawn on the processor, so they are the same everywhere.
        progress: Show a bar with unexplained variance, codes per row and dead features of the last steps.

    Returns:
        A `Trained` for a recipe, a list for several.

    Raises:
        InputError: Fewer rows than one batch, other axes, or a paused training of something else.
        NotFinite: NaN or infinity in a row, or a training that diverged.
        UnknownSite: The recording does not hold the site.

    Source:
        See `act.dictionaries.Recipe` for the kinds; Gao et al. 2024, arXiv:2406.04093 (top-k, dead features); Bussmann et al.
        2024, arXiv:2412.06410 (batch top-k); Bussmann et al. 2025, arXiv:2503.17547 (matryoshka); Rajamanoharan et al. 2024,
        arXiv:2407.14435 and 2404.16014 (jumprelu, gated); Movva et al. 2025, arXiv:2510.26202 (signed codes of a batch); Fel et al. 2025,
        arXiv:2502.12892 (archetypes); Dunefsky et al. 2024, arXiv:2406.11944 (transcoders).

    Differs:
        Which features are dead is looked at every ten steps, so that no step waits for its device. The weight of the dead features'
        term is relative to the rows' squared length. The threshold of `batchtopk` is a running mean corrected for its beginning.

    Example:
        >>> import activarium as act
        >>> model = act.load("scribe")
        >>> rec = model.run(["Anna gave Tom the book ."] * 8, read="blocks.1.mlp.post")
        >>> recipe = act.dictionaries.Recipe(features=64, k=4)
        >>> made = act.dictionaries.train(rec, "blocks.1.mlp.post", recipe, batch=16, steps=3, progress=False)
        >>> made.sae.design.kind, made.sae.origin.site
        ('topk', 'blocks.1.mlp.post')
    """
    _check_device(device)
    recipes = [recipe] if isinstance(recipe, Recipe) else list(recipe)
    source = RowSource(_one(recording, site), None if target is None else _one(recording, target), exclude)
    if len(source) < batch:
        left = f" after {', '.join(f'{n:,} {kind}' for kind, n in source.dropped.items())} rows were left out" if source.dropped else ""
        raise InputError(
            f"{site} has {len(source):,} rows{left}; one batch takes {batch:,}. Capture more, or take batch={max(1, len(source) // 4)}."
        )
    wanted = steps or int(np.clip(10 * len(source) / batch, 200, 20_000))
    statistics = source.statistics(seed, keep=any(one.centre == "median" or one.archetypes for one in recipes))
    learners = [Learner(one, statistics, target is not None, wanted, device) for one in recipes]
    plan = _plan(recording, site, target, recipes, batch, wanted, list(exclude), seed)
    history: list[list[dict[str, float]]] = [[] for _ in recipes]
    first = _go_on(pause, plan, learners, history)
    with _bar(progress, wanted, first) as show:
        rows = source.batches(batch, seed, first)
        for step, (x, y) in zip(range(first, wanted), rows if device == "cpu" else _ahead(rows), strict=False):
            for learner in learners:
                learner.learn(x, y)
            if (step + 1) % NOTE == 0 or step + 1 == wanted:
                for learner, notes in zip(learners, history, strict=True):
                    notes.append({"step": step + 1, **learner.note()})
                show(step + 1, history)
            if pause is not None and ((step + 1) % every == 0 or step + 1 == wanted):
                _write(Path(pause), plan, learners, history)
    made = [
        _trained(learner, notes, origin_of(recording, site, source, exclude, target or ""))
        for learner, notes in zip(learners, history, strict=True)
    ]
    return made[0] if isinstance(recipe, Recipe) else made


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    here = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if kind not in here or not 0 <= int(number or 0) < here[kind]:
        raise InputError(
            f"There is no device {device!r} here to train on; there is {'cpu, cuda' if here['cuda'] else 'cpu'}. Leave device= out."
        )


def _ahead(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches, the next one read and pinned while an accelerator works on this one."""

    def read() -> tuple[Tensor, Tensor]:
        x, y = next(batches)
        pinned = x.pin_memory()
        return pinned, pinned if y is x else y.pin_memory()

    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(read)
        while True:
            ready, waiting = waiting.result(), reader.submit(read)
            yield ready


def _one(recording: Recording, site: str) -> Activations:
    found = recording[site]
    if found.axes[0] == "layer":
        raise InputError(f"{site!r} names several layers; a dictionary is trained on one site: {', '.join(list(found.layers())[:3])}.")
    return found


def _trained(learner: Learner, notes: Sequence[Mapping[str, float]], origin: Origin) -> Trained:
    steps = np.array([n["step"] for n in notes])
    units = {"unexplained variance": "share", "active": "codes per row", "dead": "features"}
    parts = {
        name: Series(steps, {name: np.array([n[name] for n in notes])}, "step", title=f"{name.capitalize()} in training", unit=unit)
        for name, unit in units.items()
    }
    last = notes[-1]
    words = (
        f"{learner.recipe.kind}: {last['unexplained variance']:.2%} of the variance unexplained with {last['active']:.1f} codes per row in the last {NOTE} steps; "
        f"{int(last['dead']):,} of {learner.recipe.features:,} features dead.",
    )
    settings = {k: v for k, v in asdict(learner.recipe).items() if isinstance(v, (int, float, str))}
    return Trained(
        learner.finished(origin), Report(parts, words, title=f"Training on {origin.site}", diagnostics=settings | {"steps": learner.steps})
    )


# --- pauses


def _plan(
    recording: Recording, site: str, target: str | None, recipes: Sequence[Recipe], batch: int, steps: int, exclude: list[str], seed: int
) -> str:
    said = {
        "id": recording.provenance.get("id"),
        "rows": len(recording[site]),
        "site": site,
        "target": target,
        "batch": batch,
        "steps": steps,
    }
    said |= {"exclude": exclude, "seed": seed, "recipes": [asdict(r) for r in recipes]}
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write(path: Path, plan: str, learners: Sequence[Learner], history: Sequence[Any]) -> None:
    tensors: dict[str, Tensor] = {}
    numbers = []
    for i, learner in enumerate(learners):
        held, said = learner.state()
        tensors |= {f"{i}.{name}": value.contiguous() for name, value in held.items()}
        numbers.append(said)
    temporary = path.with_name(path.name + ".part")
    words = json.dumps({"numbers": numbers, "history": list(history)})
    save_file(tensors, temporary, metadata={"plan": plan, "training": words})
    temporary.replace(path)


def _go_on(pause: str | Path | None, plan: str, learners: Sequence[Learner], history: list[list[dict[str, float]]]) -> int:
    """The step to begin with; learners and history are as they were at the pause."""
    if pause is None or not Path(pause).exists():
        return 0
    with safe_open(pause, framework="pt") as file:
        said = file.metadata() or {}
        if said.get("plan") != plan:
            raise InputError(
                f"{pause} holds a paused training with other rows, recipes or settings. Give another pause=, or remove the file."
            )
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    found = json.loads(said["training"])
    for i, (learner, numbers) in enumerate(zip(learners, found["numbers"], strict=True)):
        learner.resume({n.removeprefix(f"{i}."): v for n, v in tensors.items() if n.startswith(f"{i}.")}, numbers)
        history[i].extend(found["history"][i])
    return learners[0].step


@contextmanager
def _bar(show: bool, steps: int, first: int) -> Iterator[Any]:
    """A bar that also says how each dictionary does: unexplained variance, codes per row, dead features."""
    done = first
    with progress_bar(show, "training", steps, "steps") as advance:
        advance(first)

        def said(step: int, history: Sequence[Sequence[Mapping[str, float]]]) -> None:
            nonlocal done
            last = [notes[-1] for notes in history]
            advance(
                step - done, note=" | ".join(f"{n['unexplained variance']:.1%} · {n['active']:.1f} · {n['dead']:.0f} dead" for n in last)
            )
            done = step

        yield said
