"""Sparse decoding beside dense decoding: which neurons run, what it costs the answers, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.changed_answers import Answers, compared
from activarium.analyses.sparsity.core_sets import Sets
from activarium.analyses.sparsity.cores import Core, Settings, core_of, sentences
from activarium.edits import Where, Zero
from activarium.protocols import Writer
from activarium.rows import Rows

MEANS, STATIC, RANDOM = "with means", "static", "random"


@dataclass(frozen=True, eq=False)
class Read:
    """What a prompt shows before anything is written.

    Attributes:
        cores: Site → its core.
        means: Site → mean of every neuron over the prompt's rows.
        seconds: What reading and choosing took.
    """

    cores: dict[str, Core]
    means: dict[str, Tensor]
    seconds: float

    @property
    def sets(self) -> dict[str, np.ndarray]:
        """Site → core neurons."""
        return {site: core.neurons for site, core in self.cores.items()}


@dataclass(frozen=True, eq=False)
class Trial:
    """One prompt, written on densely and sparsely.

    Attributes:
        answers: Name of the set → answers beside the dense ones, one for each token but the first.
        recall: Name → share of the energy of all neurons that the set holds, `(layer, step)`; NaN where nothing is active.
        seconds: Dense and sparse seconds of the same steps, and the same in processor time: `(round, clock, 2)`.
        steps: How many steps those are.
        prepare: Seconds to read the prompt's neurons, choose and gather.
        prefill: Seconds of the prompt.
        gap: Largest difference between sparse logits and those of the masked dense model, over the largest logit; NaN if not looked at.
    """

    answers: dict[str, Answers]
    recall: dict[str, np.ndarray]
    seconds: np.ndarray
    steps: int
    prepare: float
    prefill: float
    gap: float


def read_prompt(model: Writer, prompt: Any, sites: Sequence[str], settings: Settings, exclude: Sequence[str]) -> Read:
    """The core neurons of one prompt in each layer, from one dense forward."""
    started = time.perf_counter()
    with torch.no_grad():
        recording = model.run(prompt, read=list(sites))
    rows = {site: next(values for _, values in sentences(recording[site], exclude)) for site in sites}
    cores = {site: core_of(values, settings) for site, values in rows.items()}
    return Read(cores, {site: values.float().mean(0) for site, values in rows.items()}, time.perf_counter() - started)


def static_sets(reads: Sequence[Read], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The neurons that are in most cores of all tokens of all prompts, so many of each site; ties by number."""
    found = {}
    for site, size in sizes.items():
        tokens = np.stack([r.cores[site].counts for r in reads]).sum(0, dtype=np.int64)
        found[site] = np.argsort(-tokens, kind="stable")[:size]
    return found


def random_sets(sizes: Mapping[str, int], widths: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """So many neurons of each site, drawn from a seed."""
    generator = np.random.default_rng(seed)
    return {site: generator.permutation(widths[site])[:size] for site, size in sizes.items()}


def trial(
    model: Writer,
    prompt: Any,
    sets: Mapping[str, Sets],
    means: Mapping[str, Tensor],
    tokens: int,
    rounds: int,
    chosen: float,
    *,
    check: bool,
) -> Trial:
    """Decode one prompt with each set of neurons on the dense model's own tokens; the first set is timed, in turns with the dense model.

    Args:
        model: The model.
        prompt: One encoded prompt.
        sets: Name → neurons by site; the first one is what the strategy chose.
        means: Means of the neurons, for that one.
        tokens: Tokens to write.
        rounds: How often both are timed.
        chosen: Seconds that choosing took.
        check: Also compare with the masked dense model.
    """
    dense = model.decode(prompt, tokens)
    first, *_ = sets
    answers, gathering = {}, 0.0
    forced = {name: _forced(model, prompt, cores, dense.ids) for name, cores in sets.items()}
    forced[f"{first} {MEANS}"] = _forced(model, prompt, sets[first], dense.ids, means)
    for name, logits in forced.items():
        answers[name] = compared(_rows(dense.logits, prompt), _rows(logits, prompt), dense.ids[0, 1:])
    clocks = np.empty((rounds, 2, 2))
    for turn in range(rounds):
        for sparse in (0, 1)[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            with model.sparse(sets[first]) if sparse else nullcontext():
                gathering = time.perf_counter() - started if sparse else gathering
                made = model.decode(prompt, tokens=dense.ids)
            clocks[turn, :, sparse] = sum(made.seconds), sum(made.processor)
    recall = _recall(model, dense.inputs, sets, tokens)
    gap = _gap(model, dense.inputs, sets[first], forced[first]) if check else float("nan")
    return Trial(answers, recall, clocks, tokens - 1, chosen + gathering, dense.prefill, gap)


def _forced(model: Writer, prompt: Any, cores: Sets, ids: Tensor, means: Mapping[str, Tensor] | None = None) -> Tensor:
    with model.sparse(cores, means=means):
        return model.decode(prompt, tokens=ids).logits


def _rows(logits: Tensor, prompt: Any) -> Activations:
    """Logits of the steps after the prompt's own, `row vocab`, numbered by step."""
    steps = np.arange(1, logits.shape[1])
    return Activations(logits[0, 1:], "row vocab", index=Rows({"example": np.full(len(steps), prompt.numbers[0]), "position": steps}))


def _recall(model: Writer, inputs: Any, sets: Mapping[str, Sets], tokens: int) -> dict[str, np.ndarray]:
    """Share of Σ (activation · norm of its output weights)² in each set, at every row that a step reads: `(layer, step)`."""
    sites = list(next(iter(sets.values())))
    with torch.no_grad():
        recording = model.run(inputs, read=sites)
    found: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    for site in sites:
        norms = model.weight(site.removesuffix("post") + "W_down").double().norm(dim=1)
        energy = (recording[site].tensor[-tokens:-1].double() * norms).square()  # the last token is written, but no step reads it
        total = energy.sum(1)
        for name, cores in sets.items():
            held = energy[:, torch.as_tensor(cores[site], device=energy.device)].sum(1)
            found[name].append(torch.where(total > 0, held / total, torch.nan).cpu().numpy())
    return {name: np.stack(layers) for name, layers in found.items()}


def _gap(model: Writer, inputs: Any, cores: Sets, logits: Tensor) -> float:
    """How far sparse logits are from those of one dense forward whose other neurons are set to zero at the same rows."""
    steps = tuple(range(-logits.shape[1], -1))
    edits = []
    for site, neurons in cores.items():
        others = np.delete(np.arange(model.sites[site].shape[-1]), neurons)
        edits.append(Zero(site, where=Where(features=tuple(others.tolist()), positions=steps)))
    with torch.no_grad():
        masked = model.run(inputs, read="logits", edits=edits)["logits"].tensor[-logits.shape[1] : -1]
    return float((masked - logits[0, 1:]).abs().max() / masked.abs().max())
