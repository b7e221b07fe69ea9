"""Void skipping: the four things that are called skipping a layer, and what each costs and saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from activarium.analyses.changed_answers import AT_ONCE, Change, changed_answers
from activarium.analyses.layer_sites import examples_of
from activarium.analyses.layers.intervals import Intervals
from activarium.analyses.layers.norm_progress import active, lengths
from activarium.analyses.layers.skip_cost import against_random, cost_table
from activarium.analyses.layers.skip_plans import Judged, Static, per_example
from activarium.analyses.layers.skipping import answering_blocks
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.results import Report, Result

MODES = ("readout", "bypass", "static", "halt")
CUT = 0.5
CONFIDENCE = 0.95


def void_skipping(
    model: Runner,
    inputs: Any,
    mode: str = "readout",
    *,
    alpha: float = 0.8,
    cut: float | None = None,
    calibration: Any = None,
    exclude_dims: Sequence[int] = (),
    draws: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """What does skipping voids cost in answers, and what does it really save?

    Which layers are voids is said under `layer_voids`. Skipping them means one of four things:

    - `"readout"`: all blocks run as they are; the last state is replaced by the one after the row's last active layer (the
      embedding if there is none), and the head reads that.
    - `"bypass"`: a void's output is replaced by its input at that row, so later blocks see another state and are judged by
      it. The progress that a bypassed layer would have made still counts in the range.
    - `"static"`: layers that are active for less than `cut` of the rows of `calibration` are left out for every row.
    - `"halt"`: an example stops for good after the first layer in which all its rows rest, that is, progress by less (of
      either sign) than `alpha` times the range of all its rows' progress before, zero included.

    Args:
        model: Runs everything; left as it was.
        inputs: What the cost is measured on; labels that are numbers of classes give the accuracy of an image classifier.
        mode: One of the four.
        alpha: Share of the range of progress that a layer must reach.
        cut: Smallest rate that keeps a layer, for `"static"` alone; 0.5 if not given.
        calibration: Inputs that the rates of `"static"` are measured on; `inputs` if not given.
        exclude_dims: Dimensions left out of every length, such as massive ones.
        draws: How many random sets of layers to compare with, each with as many active layers per row (`"halt"`: per
            example, `"static"`: in all): so many drawn from all layers, and so many from those after the first. Few models can do
            without the first layer, and this rule nearly always keeps it, so the second kind is the sterner test.
        seed: Draws those layers, and the sequences for the intervals.
        progress: Show a bar.

    Returns:
        A report with `cost` (ranking by KL(full ‖ skipped) in nats, with its interval over sequences, agreement of the top
        answer, share of active layers, and loss and right answers where they are known; the random layers stand beside)
        and `active` (series: share of rows that each layer is active for). `"static"` adds `time`: seconds of a forward
        with and without the layers, which then do not run, or says why there is none. `diagnostics` hold the KL above
        that of random layers with its interval.

    Raises:
        InputError: No such mode, `cut` or `calibration` without `"static"`, a dimension, alpha or cut that is not there, or answers
            that are no distribution.
        UnknownSite: The model has several stacks of which none answers.

    Source:
        Void in Language Models, 2025, arXiv:2505.14467 (its released code is `"readout"`); L2 Norm Guided Adaptive Computation,
        ICLR 2023 Tiny Papers (`"halt"`).

    Differs:
        `"halt"` decides for each example alone and stops at once; the published code pools the batch and runs one layer more.
        `"bypass"`, `"static"` with measured time, random layers and intervals are ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> report = act.analyses.void_skipping(model, ["the cat sat on the house ."], "bypass", draws=2)
        >>> report["active"].x.tolist()
        [0, 1]
    """
    cut = _check(mode, alpha, cut, calibration, draws)
    prefix, depth = answering_blocks(model.sites)
    encoded = model.inputs(inputs)
    draw = Intervals(CONFIDENCE, 1000, seed)
    if mode == "static":
        rates = _rates(model, encoded if calibration is None else model.inputs(calibration), prefix, depth, alpha, exclude_dims)
        plan: Static | Judged = Static(prefix, depth, rates, cut, draws, seed)
    else:
        plan = Judged(mode, prefix, depth, alpha, exclude_dims, draws, seed)
        _check_dims(model, encoded, prefix, exclude_dims)
    changes: dict[str, Change] = {plan.name: plan.chosen}
    changes |= {f"{kind} {i + 1}": change for kind, drawn in plan.drawn.items() for i, change in enumerate(drawn)}
    found = changed_answers(model, encoded, changes, progress=progress, doing="skipping")
    above, below = plan.sums()
    share = float(above.sum() / below.sum() / depth)
    title = f"Skipping by {mode}"
    parts: dict[str, Result] = {
        "cost": cost_table(found, dict.fromkeys(found, share), draw, f"{title}: KL(full ‖ skipped) beside random layers"),
        "active": draw.series(np.arange(depth), {"active": (above, below)}, "Share of rows each layer is active for", "share"),
    }
    chosen = found[plan.name]
    words = [f"{plan.name}: {share:.0%} of the layers are active for a row; KL(full ‖ skipped) {chosen.mean('kl'):.3g} nats."]
    notes: dict[str, Any] = {"mode": mode, "alpha": alpha, "exclude_dims": list(exclude_dims), "active layers": share, "seed": seed}
    for kind, drawn in plan.drawn.items():
        if drawn:
            others = [found[f"{kind} {i + 1}"] for i in range(len(drawn))]
            apart, low, high = against_random(chosen, others, draw)
            notes |= {f"KL above {kind}": apart, f"interval above {kind}": [low, high]}
            mean = np.mean([o.mean("kl") for o in others])
            words.append(f"as many {kind} cost {mean:.3g} ({len(others)} draws); {_verdict(low, high)}.")
    saved, more = plan.saved(model, encoded)
    return Report(parts | more, (*words, saved), title=title, diagnostics=notes | plan.notes)


def _check(mode: str, alpha: float, cut: float | None, calibration: Any, draws: int) -> float:
    if mode not in MODES:
        raise InputError(f"mode={mode!r} is no way of skipping; choose one of {', '.join(map(repr, MODES))}.")
    given = "cut" if cut is not None else "calibration" if calibration is not None else None
    if mode != "static" and given:
        raise InputError(f"{given}= chooses the layers of mode='static'; {mode!r} judges each row by alpha. Leave it out.")
    if not alpha >= 0:
        raise InputError(f"alpha is a share of a range, 0 or more (the paper takes 0.8); found {alpha}.")
    cut = CUT if cut is None else cut
    if not 0 <= cut <= 1:
        raise InputError(f"cut is the smallest share of rows that keeps a layer, from 0 to 1; found {cut}.")
    if draws < 0:
        raise InputError(f"draws={draws}: there are no fewer than 0 sets of random layers. Give 0 to leave the comparison out.")
    return cut


def _check_dims(model: Runner, encoded: Any, prefix: str, exclude: Sequence[int]) -> None:
    width = model.sites[f"{prefix}blocks.0.resid_post"].shape[-1]
    strange = [d for d in exclude if not 0 <= d < width]
    if strange:
        raise InputError(f"The residual stream of {model.name} has features 0 to {width - 1}; exclude_dims= names {strange[0]}.")


def _rates(model: Runner, encoded: Any, prefix: str, depth: int, alpha: float, exclude: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Active rows per example and layer, and rows per example, of the model as it is."""
    _check_dims(model, encoded, prefix, exclude)
    sites = [f"{prefix}blocks.0.resid_pre", *(f"{prefix}blocks.{i}.resid_post" for i in range(depth))]
    verdicts, owners = [], []
    for start in range(0, len(encoded), AT_ONCE):
        here = encoded.select(range(start, min(start + AT_ONCE, len(encoded))))
        with torch.no_grad():
            recording = model.run(here, read=sites)
        verdicts.append(active(torch.stack([lengths(recording[s].tensor, exclude) for s in sites], 1).diff(dim=1), alpha).cpu())
        owners.append(examples_of(recording[sites[0]]))
    return per_example(torch.cat(verdicts), np.concatenate(owners))


def _verdict(low: float, high: float) -> str:
    if np.isnan(low):
        return "one sequence has no interval"
    if high < 0:
        return f"the voids cost less (difference {low:.3g} to {high:.3g})"
    if low > 0:
        return f"the voids cost more (difference {low:.3g} to {high:.3g})"
    return f"there is no telling them apart (difference {low:.3g} to {high:.3g})"
