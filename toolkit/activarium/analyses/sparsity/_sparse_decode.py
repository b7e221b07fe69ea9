"""Sparse decode: the model writes on with a fixed set of neurons; tokens per second beside what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from activarium.analyses.sparsity.core_sets import groups_of, nearest
from activarium.analyses.sparsity.cores import Core, Settings
from activarium.analyses.sparsity.row_kinds import EXCLUDED
from activarium.analyses.sparsity.sparse_report import Outcome, report_of
from activarium.analyses.sparsity.sparse_runs import RANDOM, STATIC, Read, random_sets, read_prompt, static_sets, trial
from activarium.errors import InputError, UnknownSite
from activarium.progress import progress_bar
from activarium.protocols import Writer
from activarium.results import Report

STRATEGIES = ("stability", "similarity", STATIC)


def sparse_decode(
    model: Writer,
    prompts: Any,
    *,
    alpha: float = 0.4,
    beta: float = 0.2,
    strategy: str = "stability",
    clusters: Report | None = None,
    skip_layers: int | None = None,
    max_new_tokens: int = 32,
    rounds: int = 3,
    exclude: Sequence[str] = EXCLUDED,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """How much faster does a model write with its core neurons alone, and at what cost?

    Each prompt is read densely and by itself; then the MLPs run with a fixed set of neurons, from rows of the weights that were
    gathered once, for every token that follows. The dense model's own likeliest continuation is given to all, so that they
    are compared at the same tokens: KL and perplexity token by token. An equally large static set, the same for all prompts,
    and a random one say whether choosing neurons by prompt was worth it. Dense and sparse steps are timed in turns in this
    process; times are as noisy as the machine is busy.

    Args:
        model: A model that writes text.
        prompts: Texts or token ids; each is decoded alone, at batch 1.
        alpha: Share of a token's positive activations that are its core.
        beta: Share of all neurons that are a sentence's core.
        strategy: `stability`: the core of the prompt itself. `similarity`: the neurons of the cluster of sentences most like it.
            `static`: the neurons in most cores of all tokens of all prompts, the same for every prompt.
        clusters: What `core_clusters` gave, for `similarity`; its `gamma` then sets the size.
        skip_layers: First layers that stay dense; 3 as in the paper, but no more than a quarter of the layers.
        max_new_tokens: Tokens to write for each prompt, at least 2: the first one is the prompt's own. Nothing ends a text early.
        rounds: How often dense and sparse decoding are timed for each prompt.
        exclude: Row kinds that count for no core.
        seed: Of the random set.
        progress: Show a bar.

    Returns:
        A report with `quality` (ranking of the sets by KL to the dense model, nats per token, with its interval over prompts,
        perplexity of the dense continuation, agreement of the top token, energy recall), `speed` (ranking: tokens per second
        sparse and dense, medians with range), `kl` and `energy recall` by token, and `recall by layer`. Energy recall is the share of
        Σ (activation · norm of its output weights)² that the frozen set holds at the tokens written: what can be watched online by
        running a dense step now and then. `diagnostics` has the conditions of the timing (batch, phase, layout, whether indices
        were known before, union density of all prompts, largest difference to the masked dense model, threads), the
        ceilings, and the seconds that choosing and gathering took.

    Raises:
        MissingSite: A mixture of experts, or modules whose roles are not known.
        InputError: An unknown strategy, no clusters, too few tokens or layers, or a model that does not write.

    Source:
        Wang et al. 2024, CoreInfer, arXiv:2410.18311, sections 4 and 5. Ceilings: Amdahl's law over counted weights.

    Differs:
        Prefill is told by an empty cache (the published code looks at the first axis of a tensor, so its OPT runs densely from a
        batch of two on); no prompt token is fed twice; nothing stops at a full stop. The static and random sets, the energy recall
        and the offset by the means of the prompt (`with means`) are ours.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("opt"), certify=False)
        >>> report = sparse_decode(model, ["the cat sat on the book"], max_new_tokens=4, rounds=1)
        >>> sorted(report["quality"].names)
        ['random', 'stability', 'stability with means', 'static']
    """
    settings = Settings(alpha, beta)
    if strategy not in STRATEGIES:
        raise InputError(f"strategy={strategy!r} is not known; choose {', '.join(map(repr, STRATEGIES))}.")
    if max_new_tokens < 2 or rounds < 1:
        wrong = f"max_new_tokens={max_new_tokens}" if max_new_tokens < 2 else f"rounds={rounds}"
        raise InputError(
            f"{wrong}: the first token is the prompt's own, so nothing would be decoded. Ask for at least 2 tokens and 1 round."
        )
    groups = _groups(strategy, clusters)
    every = _layers(model)
    skipped = _skipped(skip_layers, len(every))
    sites = every[skipped:]
    encoded = model.inputs(prompts)
    each = [encoded.select([i]) for i in range(len(encoded))]
    reads = [read_prompt(model, prompt, sites, settings, exclude) for prompt in each]
    widths = {site: model.sites[site].shape[-1] for site in sites}
    trials, chosen = [], []
    with progress_bar(progress, "decoding", len(each), "prompts") as advance:
        for i, (prompt, read) in enumerate(zip(each, reads, strict=True)):
            own = _chosen(strategy, reads, read, groups)
            sizes = {site: len(neurons) for site, neurons in own.items()}
            others = {STATIC: static_sets(reads, sizes), RANDOM: random_sets(sizes, widths, seed + i)}
            trials.append(trial(model, prompt, {strategy: own} | others, read.means, max_new_tokens, rounds, read.seconds, check=i == 0))
            chosen.append(own)
            advance(1)
    outcome = Outcome(
        strategy, trials, chosen, widths, len(every), _share(model, sites), sum(c.short for r in reads for c in r.cores.values())
    )
    notes = {"alpha": alpha, "beta": beta, "skip_layers": skipped, "seed": seed, "threads": torch.get_num_threads()}
    return report_of(outcome, notes, default_skip=skip_layers is None, prompt_lengths=[_length(r) for r in reads])


def _groups(strategy: str, clusters: Report | None) -> dict[str, dict[str, np.ndarray]] | None:
    if strategy != "similarity":
        if clusters is not None:
            raise InputError(f"clusters= belongs to strategy='similarity'; strategy is {strategy!r}. Leave one of them out.")
        return None
    if clusters is None:
        raise InputError(
            "strategy='similarity' takes the neurons of the nearest cluster of sentences; pass clusters=core_clusters(recording)."
        )
    return groups_of(clusters)


def _layers(model: Writer) -> list[str]:
    """The MLPs of the stack that writes, `blocks.0.mlp.post` and on."""
    for prefix in ("", "decoder.", "text."):
        if any(name.startswith(f"{prefix}blocks.0.") for name in model.sites):
            found = [name for name in model.sites if name.startswith(f"{prefix}blocks.") and name.endswith(".mlp.post")]
            return found or [model.sites.find(f"{prefix}blocks.0.mlp.post").name]  # type: ignore[attr-defined]
    raise UnknownSite(f"No blocks were recognised in {model.name}, so it has no layers to run sparsely. See model.certificate.")


def _skipped(asked: int | None, layers: int) -> int:
    if asked is None:
        return min(3, layers // 4)
    if not 0 <= asked < layers:
        raise InputError(f"skip_layers={asked} leaves none of the {layers} layers to run sparsely; skip 0 to {layers - 1}.")
    return asked


def _chosen(strategy: str, reads: Sequence[Read], read: Read, groups: dict[str, dict[str, np.ndarray]] | None) -> dict[str, np.ndarray]:
    if strategy == STATIC:
        return static_sets(reads, {site: core.wanted for site, core in read.cores.items()})
    if groups is None:
        return read.sets
    missing = next((site for site in read.cores if any(site not in sets for sets in groups.values())), None)
    if missing:
        raise InputError(
            f"The clusters have no core sets for {missing}. Make them from a recording of all layers of this model at mlp.post."
        )
    name, _ = nearest(read.sets, groups)
    return {site: groups[name][site] for site in read.cores}


def _share(model: Writer, sites: Sequence[str]) -> float:
    """Weights of these MLPs over all weights that a step multiplies by; attention over earlier tokens is left out."""
    prefix = sites[0].partition("blocks.")[0]
    names = [n for n in model.weights if n == "W_U" or (n.startswith(f"{prefix}blocks.") and ".W_" in n)]
    sizes = {name: model.weight(name).numel() for name in names}
    stems = tuple(site.removesuffix("post") for site in sites)
    return sum(size for name, size in sizes.items() if name.startswith(stems)) / sum(sizes.values())


def _length(read: Read) -> int:
    first: Core = next(iter(read.cores.values()))
    return first.tokens
