"""Top-k inference: what the answers lose when each row keeps only its k strongest neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from activarium.analyses.changed_answers import Answers, changed_answers
from activarium.analyses.layer_sites import layer_number
from activarium.analyses.sparsity.calibration_error import BINS, CalibrationError, calibration_error
from activarium.analyses.sparsity.cost_of_dropping import Intervals, cost_parts
from activarium.edits import Edit, Keep, Replace
from activarium.errors import InputError, MissingSite
from activarium.protocols import Runner
from activarium.recording import matching
from activarium.results import Grid, Report, Result, Series

EVERY = "all layers"


def top_k_inference(
    model: Runner,
    inputs: Any,
    ks: Sequence[int] | None = None,
    *,
    layers: Mapping[str, Sequence[int]] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """What do the answers lose when each row keeps only its k strongest MLP neurons?

    At `mlp.act`, after the activation function, all but the k numbers of largest size |a| are set to zero, in every row and in all
    layers of a set at once. After a ReLU these are the k largest; of a GELU or SiLU a number well below zero also counts as strong.
    The model was not trained for it: this measures what inference alone bears. With k neurons or fewer not zero, nothing changes.

    Args:
        model: The model; left as it was.
        inputs: Texts, or images, with labels as `{"images": …, "label": numbers}` if loss and calibration are wanted.
        ks: How many neurons a row keeps; by default 1, 2, 4, … up to all of them.
        layers: Name → block numbers (in each stack) that are thinned together; by default one set with all of them.
        confidence: Share of resampled sequence sets inside the intervals.
        resamples: How many times the sequences are drawn again.
        seed: Draws the sequences.
        progress: Show a bar.

    Returns:
        A report of series over k, one curve per set of layers: `KL` (full ‖ thinned) and `rise of loss` (where the right answer is known),
        both in nats, `agreement` (share of top answers that stay the same), `nonzero` (percent of neurons left in those layers: at most
        100 k / width, less where a row has fewer nonzero neurons, in the thinned model itself), and where the right answer is known
        `accuracy`, `calibration` (expected calibration error: 15 bins of equal width over the confidence of the top answer) and
        `confidence bins` (grid `set k bin`: answers in each). The full model's are `diagnostics["accuracy"]` and
        `diagnostics["calibration error"]`. Intervals are over sequences, a classifier's over images.

    Raises:
        MissingSite: The model offers no `mlp.act`, as a mixture of experts.
        InputError: A k is not a whole number from 1 to the width, or a set names no layer there is.

    Source:
        Li et al. 2022, The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers, arXiv:2210.06313, on
        Top-k thresholding. Calibration error: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599.

    Differs:
        The paper trains with the threshold; here it is put into a trained model. Its values of k are not used.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> act.analyses.top_k_inference(model, ["the cat sat", "a dog"], [1, 48])["KL"].curves["all layers"][1].item()
        0.0
    """
    sites, width = _sites(model)
    ks = _checked(ks, width)
    sets = {EVERY: list(sites)} if layers is None else {name: _chosen(name, numbers, sites) for name, numbers in layers.items()}
    counts = {(name, k): _Nonzero() for name in sets for k in ks}
    changes: dict[str, list[Edit]] = {"full": []}
    for (name, k), counter in counts.items():
        changes[f"{name}|{k}"] = [edit for site in sets[name] for edit in (Keep(site, k), Replace(site, counter))]
    found = changed_answers(model, inputs, changes, progress=progress, doing="thinning")
    answers = {name: [found[f"{name}|{k}"] for k in ks] for name in sets}
    x, draw = np.asarray(ks), Intervals(confidence, resamples, seed)
    parts: dict[str, Result] = dict(cost_parts(x, "k", answers, draw, " with k neurons in each row"))
    left = {name: np.array([counts[name, k].percent for k in ks]) for name in sets}
    parts["nonzero"] = Series(x, left, "k", title="Neurons left after thinning", unit="percent")
    notes: dict[str, object] = {"width": width, "site": "mlp.act", "kept by": "size |a|", "sets": {n: list(s) for n, s in sets.items()}}
    if found["full"].known.any():
        more, said = _right_or_wrong(x, answers, found["full"], draw)
        parts, notes = parts | more, notes | said
    answered = {"answers": len(found["full"]), "examples": len(np.unique(found["full"].example)), "confidence": confidence, "seed": seed}
    return Report(parts, _words(parts, ks, width, notes), title="Answers with the k strongest neurons", diagnostics=notes | answered)


class _Nonzero:
    """Counts the neurons that are not zero where they pass by, in whole numbers."""

    def __init__(self) -> None:
        self.nonzero = self.all = 0

    def __call__(self, values: Tensor) -> Tensor:
        self.nonzero, self.all = self.nonzero + int((values != 0).sum()), self.all + values.numel()
        return values

    @property
    def percent(self) -> float:
        return 100 * self.nonzero / self.all


def _sites(model: Runner) -> tuple[list[str], int]:
    """Where the activation function's output is, and its width."""
    sites = [
        s for stack in ("", "encoder.", "decoder.", "vision.", "text.") for s in matching(f"{stack}blocks.*.mlp.act", list(model.sites))
    ]
    usable = [s for s in sites if model.sites[s].missing is None]
    if not usable:
        raise MissingSite(
            f"{model.name} offers no site blocks.*.mlp.act, so no neuron can be kept or dropped there. Use a model with dense MLPs."
        )
    return usable, max(int(model.sites[s].shape[-1]) for s in usable)


def _checked(ks: Sequence[int] | None, width: int) -> list[int]:
    if ks is None:
        return sorted({width, *(2**i for i in range(width.bit_length()))})
    for k in ks:
        if int(k) != k or not 1 <= k <= width:
            raise InputError(f"k is how many of {width} neurons a row keeps, a whole number from 1 to {width}; found {k}.")
    if not ks:
        raise InputError("ks= is empty. Name at least one number of neurons, or leave it out.")
    return sorted({int(k) for k in ks})


def _chosen(name: str, numbers: Sequence[int], sites: Sequence[str]) -> list[str]:
    found = [s for s in sites if layer_number(s, 0) in numbers]
    if not found:
        have = sorted({layer_number(s, 0) for s in sites})
        raise InputError(f"The set {name!r} of layers {list(numbers)} names none of {have}. Count blocks from 0.")
    return found


def _right_or_wrong(
    x: np.ndarray, answers: Mapping[str, Sequence[Answers]], full: Answers, draw: Intervals
) -> tuple[dict[str, Result], dict[str, object]]:
    right = {name: _Right([calibration_error(a, **draw.options) for a in many], many, draw) for name, many in answers.items()}
    error = {name: np.array([e.error for e in r.errors]) for name, r in right.items()}
    error_bands = {name: np.array([[e.low for e in r.errors], [e.high for e in r.errors]]) for name, r in right.items()}
    bins = [f"{b / BINS:.2f} to {(b + 1) / BINS:.2f}" for b in range(BINS)]
    labels = {"set": list(right), "k": [str(k) for k in x], "bin": bins}
    counts = np.stack([np.stack([e.counts for e in r.errors]) for r in right.values()])
    own = calibration_error(full, **draw.options)
    notes: dict[str, object] = {
        "accuracy": full.mean("correct"),
        "calibration error": own.error,
        "calibration error interval": (own.low, own.high),
    }
    notes["confidence bins"] = own.counts.tolist()
    return {
        "accuracy": Series(
            x,
            {n: r.accuracy for n, r in right.items()},
            "k",
            {n: r.ends for n, r in right.items()},
            title="Answers that are right",
            unit="share",
        ),
        "calibration": Series(x, error, "k", error_bands, title="Expected calibration error", unit="share"),
        "confidence bins": Grid(counts, ("set", "k", "bin"), labels, title="Answers by confidence", unit="answers"),
    }, notes


@dataclass
class _Right:
    """How often one set's answers are right, at each k, and how that compares with their confidence."""

    errors: Sequence[CalibrationError]
    answers: Sequence[Answers]
    draw: Intervals

    def __post_init__(self) -> None:
        sums = [a.sums(a.correct.astype(np.float64), a.known) for a in self.answers]
        above, below = (np.stack([s[i] for s in sums], 1) for i in (0, 1))
        self.accuracy, self.ends = above.sum(0) / below.sum(0), self.draw.ends(above, below)


def _words(parts: Mapping[str, Result], ks: Sequence[int], width: int, notes: Mapping[str, Any]) -> tuple[str, ...]:
    kl, agreement, nonzero = parts["KL"], parts["agreement"], parts["nonzero"]
    assert isinstance(kl, Series)
    assert isinstance(agreement, Series)
    assert isinstance(nonzero, Series)
    said = []
    for name, agrees in agreement.curves.items():
        enough = [i for i in range(len(ks)) if agrees[i] >= 0.99]
        i = enough[0] if enough else len(ks) - 1
        least = "the least tried that leaves 99 % of the top answers as they are" if enough else "the most tried"
        said.append(
            f"{name}: {ks[i]:,} of {width:,} neurons are {least}: {100 * agrees[i]:.1f} % agree, KL {kl.curves[name][i]:.3g} nats, "
            f"{nonzero.curves[name][i]:.2f} % of the neurons are not zero."
        )
    if "accuracy" in notes:
        said.append(
            f"the full model is right in {100 * notes['accuracy']:.1f} % and has a calibration error of {notes['calibration error']:.3f}."
        )
    return tuple(said)
