"""Register neurons: the few neurons that make high-norm patches, and what happens without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from activarium.analyses.changed_answers import Answers, Change, changed_answers
from activarium.analyses.massive.batches import batches
from activarium.analyses.massive.outlier_patches import Patches, find_patches, norms_of, read, score_neurons
from activarium.analyses.massive.register_edits import Chosen, at_random, moved, registers_at_mean, silenced
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.results import Ranking, Report, Result, Series

Norms = dict[str, list[np.ndarray]]  # change → norms of all rows at each block


def register_neurons(
    model: Runner,
    images: Any,
    *,
    threshold: float | None = None,
    top_k: int = 10,
    layers: int | None = None,
    controls: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Which few neurons make high-norm patches, and can the model do without them there?

    High-norm patches are looked up after the first block at which they are a group of their own (see `token_norms`). A neuron's score is
    the mean of |activation| at them, per picture, averaged over the pictures that have any; the `top_k` of all blocks up to
    `layers` are the register neurons. Then they are silenced on the patches, moved into rows that can hold them, and compared
    with as many neurons at random from the same blocks.

    Args:
        model: A vision transformer, or a model with a vision stack.
        images: Pictures, or anything else that the model takes.
        threshold: Norm of a high-norm patch, model units (OpenCLIP-B/16: 75, DINOv2-L: 150); None finds one per block.
        top_k: How many neurons.
        layers: The last block whose neurons are scored (counted from 0); by default the first block with high-norm patches.
        controls: How many random sets are tried.
        seed: Draws the random sets.
        progress: Show bars.

    Returns:
        A report with `layers` (percent of patches that are high-norm after each block, as the model is and after each change; the
        threshold stays that of the unchanged model), and, if there are any, `neurons` (ranking by score, with the mean |activation|
        on all other patches) and `effects` (ranking of changes by KL: agreement of the top answer, accuracy where labels are known,
        largest norm of patches and of other rows in the last block). Changes: `silenced`, `moved` (into the registers, or
        into `cls` where there are none), `random 1` …, and `registers at their mean` for models with registers.

    Raises:
        InputError: `top_k`, `layers`, `threshold` or `controls` make no sense, or no row is a patch.
        NotFinite: NaN or infinite numbers.
        MissingExtra: scikit-learn is not installed.

    Source:
        Jiang et al. 2025, Vision Transformers Don't Need Trained Registers, arXiv:2506.08010, and its code (score,
        largest signed activation moved); Sun et al. 2024, arXiv:2402.17762, section 5 (Fix-Reg-Mean).

    Differs:
        The paper moves activations into a token that is appended; here they go into rows that the model has, for no row is added without
        rebuilding it. The random sets are drawn from the same blocks.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("vit"), certify=False)
        >>> register_neurons(model, act.testing.images(2), threshold=1e6).words
        ('High-norm patches: none, so there are no register neurons to find.',)
    """
    _check(threshold, top_k, layers, controls)
    inputs = model.inputs(images)
    patches = find_patches(model, inputs, threshold, seed, progress)
    notes: dict[str, Any] = {"threshold": "per block" if threshold is None else threshold, "top_k": top_k, "seed": seed}
    first = patches.first
    if first is None:
        unchanged = {"unchanged": [s.norms for s in patches.sizes]}
        none = "High-norm patches: none, so there are no register neurons to find."
        return Report({"layers": _layers(patches, unchanged)}, (none,), title="Register neurons", diagnostics=notes)
    last = first if layers is None else min(layers, len(patches.sizes) - 1)
    score, elsewhere, signed = score_neurons(model, inputs, patches, first, last, progress)
    neurons = _neurons(patches.prefix, score, elsewhere, signed, top_k)
    chosen: Chosen = {
        int(b): tuple(int(n) for n in neurons.columns["neuron"][neurons.columns["block"] == b]) for b in np.unique(neurons.columns["block"])
    }
    changes = _changes(model, inputs, patches, chosen, score.shape[1], controls, seed, progress)
    norms = {"unchanged": [s.norms for s in patches.sizes]} | _norms(model, inputs, patches, changes, progress)
    answers = changed_answers(model, inputs, changes, progress=progress, doing="changing") if "logits" in model.sites else {}
    parts: dict[str, Result] = {"neurons": neurons, "layers": _layers(patches, norms), "effects": _effects(patches, norms, answers)}
    notes |= {
        "high-norm patches": int(patches.high(first).sum()),
        "patches": int((patches.kind == "patch").sum()),
        "looked up after block": first,
    }
    words = _words(patches, first, neurons, norms, answers)
    return Report(parts, tuple(words), title="Register neurons", diagnostics=notes)


def _check(threshold: float | None, top_k: int, layers: int | None, controls: int) -> None:
    if threshold is not None and not threshold > 0:
        raise InputError(f"threshold={threshold} would call every patch high-norm; give a positive norm, or None to find one per block.")
    if top_k < 1 or controls < 0 or (layers is not None and layers < 0):
        raise InputError(
            f"top_k={top_k}, layers={layers}, controls={controls}: take at least one neuron, blocks from 0 on, and no negative number of controls."
        )


def _neurons(prefix: str, score: np.ndarray, elsewhere: np.ndarray, signed: np.ndarray, top_k: int) -> Ranking:
    order = np.argsort(-score.ravel(), kind="stable")[:top_k]
    block, neuron = np.unravel_index(order, score.shape)
    columns = {
        "block": block,
        "neuron": neuron,
        "elsewhere": elsewhere[block, neuron],
        "times": score[block, neuron] / np.where(elsewhere[block, neuron] > 0, elsewhere[block, neuron], np.nan),
        "signed mean": signed[block, neuron],
    }
    names = tuple(f"{prefix}blocks.{b}.mlp.post · neuron {n}" for b, n in zip(block, neuron, strict=True))
    title = "Neurons by their mean |activation| at high-norm patches"
    return Ranking(names, score.ravel()[order], columns, title=title, unit="model units")


def _changes(
    model: Runner, inputs: Any, patches: Patches, chosen: Chosen, width: int, controls: int, seed: int, progress: bool
) -> dict[str, Change]:
    kinds = set(patches.kind)
    made: dict[str, Change] = {"silenced": silenced(patches.prefix, chosen)}
    into = next((k for k in ("register", "cls") if k in kinds), None)
    if into is not None:
        made["moved"] = moved(patches.prefix, chosen, into)
    random = np.random.default_rng(seed)
    made |= {f"random {i + 1}": silenced(patches.prefix, at_random(chosen, width, random)) for i in range(controls)}
    fixed = registers_at_mean(model, inputs, patches, progress)
    return made | ({"registers at their mean": fixed} if fixed else {})


def _norms(model: Runner, inputs: Any, patches: Patches, changes: Mapping[str, Change], progress: bool) -> Norms:
    sites = [f"{patches.prefix}blocks.{i}.resid_post" for i in range(len(patches.sizes))]
    found: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in sites] for name in changes}
    for here in batches(model, inputs, "measuring changes", progress):
        for name, change in changes.items():
            rec = read(model, here, sites, change(here) if callable(change) else change)
            for site, kept in zip(sites, found[name], strict=True):
                kept.append(norms_of(rec[site]))
    return {name: [np.concatenate(kept) for kept in blocks] for name, blocks in found.items()}


def _percent(patches: Patches, norms: list[np.ndarray]) -> np.ndarray:
    """Patches above the unchanged model's threshold, percent per block."""
    patch = patches.kind == "patch"
    return np.array([100 * (n[patch] > s.threshold).mean() for n, s in zip(norms, patches.sizes, strict=True)])


def _layers(patches: Patches, norms: Norms) -> Series:
    curves = {name: _percent(patches, each) for name, each in norms.items()}
    return Series(np.arange(len(patches.sizes)), curves, "block", title="High-norm patches after each block", unit="percent of patches")


def _effects(patches: Patches, norms: Norms, answers: Mapping[str, Answers]) -> Ranking:
    names = [n for n in norms if n != "unchanged"]
    patch = patches.kind == "patch"
    kl = np.array([answers[n].mean("kl") if n in answers else np.nan for n in names])
    columns: dict[str, Any] = {
        "same top answer": [answers[n].mean("agrees") if n in answers else np.nan for n in names],
        "accuracy": [answers[n].mean("correct") if n in answers else np.nan for n in names],
        "unchanged accuracy": [answers[n].mean("full_correct") if n in answers else np.nan for n in names],
        "high-norm patches, percent, last block": [_percent(patches, norms[n])[-1] for n in names],
        "largest patch norm, last block": [norms[n][-1][patch].max() for n in names],
        "largest other norm, last block": [norms[n][-1][~patch].max(initial=0) for n in names],
    }
    order = np.argsort(-np.nan_to_num(kl), kind="stable")
    chosen = {name: np.asarray(c, dtype=np.float64)[order] for name, c in columns.items()}
    return Ranking(tuple(names[i] for i in order), kl[order], chosen, title="What each change does to the answers", unit="nats (KL)")


def _words(patches: Patches, first: int, neurons: Ranking, norms: Norms, answers: Mapping[str, Answers]) -> list[str]:
    high, patch = patches.high(first), patches.kind == "patch"
    with_any = len(np.unique(patches.example[high]))
    said = [
        f"{high.sum():,} of {patch.sum():,} patches ({100 * high.sum() / patch.sum():.2f} %) have a norm above {patches.sizes[first].threshold:.4g} "
        f"({patches.sizes[first].rule}) after block {first}, in {with_any} of {len(np.unique(patches.example))} pictures.",
        f"The strongest neuron there is {neurons.names[0]}: mean |activation| {neurons.values[0]:.3g}, elsewhere {neurons.columns['elsewhere'][0]:.3g}.",
    ]
    shares = {name: _percent(patches, each)[first] for name, each in norms.items()}
    before = shares.pop("unchanged")
    random = [s for name, s in shares.items() if name.startswith("random")]
    beside = f"; with as many at random {np.mean(random):.2f} % remain" if random else ""
    said.append(
        f"With the {len(neurons.names)} neurons silenced on patches {shares['silenced']:.2f} % remain high-norm (before: {before:.2f} %){beside}."
    )
    costs = {name: a.mean("kl") for name, a in answers.items()}
    if costs:
        said.append("Cost in KL, nats: " + "; ".join(f"{name} {cost:.3g}" for name, cost in costs.items()) + ".")
    return said
