"""Block influence: how much each block changes what it is given, and what the model loses without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas

from activarium.analyses.layer_sites import layer_number, layer_sites, refuse_strange
from activarium.analyses.layers.block_ends import Blocks, block_ends
from activarium.analyses.layers.intervals import Intervals
from activarium.analyses.layers.redundancy import BINS, CALM, MEASURES, check_width, groups_of, spans, sums
from activarium.analyses.layers.removal import Removal, remove_each
from activarium.analyses.layers.similarity import DIRECTIONS, WIDEST, linear_cka
from activarium.analyses.layers.sublayers import sublayer_sums, sublayers
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Grid, Report, Result, Series


def block_influence(
    recording: Recording,
    model: Runner | None = None,
    inputs: Any = None,
    *,
    without: Sequence[int] = (),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """How much does each block change its input, and what does its removal cost?

    Everything is read at the blocks themselves. (The last entry of transformers' `hidden_states` has been through the
    final norm in most language models: an identity as last block would seem to do something.) A measure of change is
    no measure of need: with `model` and `inputs` each block is also replaced by the identity, which is the reference.

    Args:
        recording: Holds `blocks.*.resid_post` and `blocks.*.resid_pre`. Where a block has no `resid_pre`, the output of the
            block before it is its input, `embed` for the first. `resid_mid` (and `resid_cross`) add the sublayers; blocks
            without it, whose attention and MLP run side by side, add them by `attn.out` and `mlp.out`.
        model: Runs the removals.
        inputs: What it runs on, usually what was recorded.
        without: Features left out of every vector, such as massive dimensions, which alone make all cosines 1.
        confidence: Share of resampled sequence sets inside the intervals.
        resamples: How many times the sequences are drawn again.
        seed: Draws the sequences.
        progress: Show a bar while blocks are removed.

    Returns:
        A report with series over blocks, with intervals over sequences. `influence`: 1 − mean cosine of input and output, from
        0 to 2, over all rows, without first and special rows, and for each kind of row. `updates`: size of the update over
        size of the input, and its parts `along` (it scales; negative shrinks) and `across` (it turns), over all rows.
        `sublayers`: influence of attention and MLP. Over all rows, without intervals: `similarity`, the linear CKA of input
        and output, which no rotation or scale lowers (beyond 512 features an estimate over 256 random directions), and
        `cosines`, the histogram behind the mean. The grid `angles` holds the angle between the input of block `from` and
        the output `blocks` later, as a share of 180°, at the last row of a text (an image: its cls row, or else its
        patches). With a model, `removal`: KL(full ‖ removed) and for language models the rise of the next token's loss, both
        in nats, and `agreement`, the share of unchanged top answers. Models with several stacks have each part per stack.

    Raises:
        UnknownSite: The recording holds no `resid_post`.
        InputError: The input of a block was not recorded, only one of `model` and `inputs` is given, or `without` names a
            feature that is not there.
        NotFinite: NaN or infinite numbers in the residual stream.

    Source:
        Influence: Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect,
        arXiv:2403.03853. Similarity: Kornblith et al. 2019, arXiv:1905.00414. Angles: Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887.

    Differs:
        Both average over real rows only, in float64, and leave zero vectors out, where the published code adds pads to the sum
        or counts a cosine of 0.5. Updates, sublayers, groups of rows and the removal beside them are ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> recording = model.run(["the cat sat"], read=["blocks.*.resid_pre", "blocks.*.resid_post"])
        >>> act.analyses.block_influence(recording)["angles"].values.shape
        (2, 2)
    """
    if (model is None) != (inputs is None):
        raise InputError("The cost of removing a block needs both model= and inputs=. Give both, or neither.")
    stacks = {stack: block_ends(recording, stack, sites) for stack, sites in layer_sites(recording, ("resid_post",), "row d_model").items()}
    draw = Intervals(confidence, resamples, seed)
    parts: dict[str, Result] = {}
    words, notes = [], {"confidence": confidence, "seed": seed, "without": list(without)}
    for stack, blocks in stacks.items():
        made, said, found = _of_stack(recording, blocks, without, draw)
        if model is not None:
            removal, more, agreeing = _removal(model, inputs, blocks, made["influence"], draw, progress)
            made, said, found = made | removal, said + more, found | agreeing
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        notes |= {f"{stack} {name}".strip(): value for name, value in found.items()}
        words += [f"{stack}: {line}" if stack else line for line in said]
    return Report(parts, tuple(words), title="Block influence", diagnostics=notes)


def _of_stack(
    recording: Recording, blocks: Blocks, without: Sequence[int], draw: Intervals
) -> tuple[dict[str, Result], list[str], dict[str, Any]]:
    first = next(iter(blocks.values()))[0]
    check_width(first, without)
    for x, y in blocks.values():
        refuse_strange(x, "No angle can be taken from it.")
        refuse_strange(y, "No angle can be taken from it.")
    numbers = np.array([layer_number(f"{name}.", i) for i, name in enumerate(blocks)])
    groups = groups_of(first)
    found = [sums((x, (y,), False), groups, without) for x, y in blocks.values()]
    above, below = np.stack([f.above for f in found], 1), np.stack([f.below for f in found], 1)  # sequence, block, group[, measure]
    influence = {name: (above[:, :, g, 0], below[:, :, g]) for g, name in enumerate(groups)}
    updates = {name: (above[:, :, 0, m + 1], below[:, :, 0]) for m, name in enumerate(MEASURES[1:])}
    turned, where = spans([x for x, _ in blocks.values()], [y for _, y in blocks.values()], without)
    parts: dict[str, Result] = {
        "influence": draw.series(numbers, influence, "Influence of each block", "1 − cosine"),
        "updates": draw.series(numbers, updates, "Size of each block's update over its input", "share"),
        "angles": _angles(turned, list(blocks), where),
        "similarity": _similarity(numbers, blocks, without),
        "cosines": _cosines({name: f.cosines for name, f in zip(blocks, found, strict=True)}),
    }
    if pairs := sublayers(recording, blocks):
        parts["sublayers"] = draw.series(numbers, sublayer_sums(pairs, groups, without), "Influence of attention and MLP", "1 − cosine")
    zeros = {name: f.zeros for name, f in zip(blocks, found, strict=True) if f.zeros}
    notes = {"rows": len(first), "sequences": len(above), "zero rows left out": zeros, "angles at": where}
    return parts, [*_words(list(blocks), parts), *_zero_words(zeros)], notes


def _similarity(numbers: np.ndarray, blocks: Blocks, without: Sequence[int]) -> Series:
    curve = np.array([linear_cka(x, y, without) for x, y in blocks.values()])
    width = next(iter(blocks.values()))[0].shape[-1]
    how = f"{DIRECTIONS} random directions of {width} features" if width > WIDEST else "all features"
    title = "Similarity of each block's input and output (linear CKA)"
    return Series(numbers, {"linear CKA": curve}, "block", title=title, unit="share", diagnostics={"over": how})


def _cosines(counts: Mapping[str, np.ndarray]) -> Series:
    """Share of all rows by the cosine of a block's input and output."""
    middle = (BINS[:-1] + BINS[1:]) / 2
    shares = {name: found / max(found.sum(), 1) for name, found in counts.items()}
    return Series(middle, shares, "cosine of input and output", title="Rows by how far each block turns them", unit="share of rows")


def _angles(turned: np.ndarray, names: list[str], where: str) -> Grid:
    known = np.isfinite(turned)
    count = known.sum(0)
    mean = np.divide(np.where(known, turned, 0).sum(0), count, out=np.full(count.shape, np.nan), where=count > 0)
    depth = len(names)
    beyond = np.add.outer(np.arange(depth), np.arange(depth)) >= depth
    labels = {"from": names, "blocks": [str(k + 1) for k in range(depth)]}
    return Grid(mean, ("from", "blocks"), labels, {"no_row": beyond}, turned, title=f"Angle across blocks at {where}", unit="share of 180°")


def _removal(
    model: Runner, inputs: Any, blocks: Blocks, influence: Result, draw: Intervals, progress: bool
) -> tuple[dict[str, Result], list[str], dict[str, Any]]:
    cost: Removal = remove_each(model, inputs, list(blocks), progress)
    assert isinstance(influence, Series)
    answers, predicted = cost.answers[:, None], cost.predicted[:, None]
    curves = {"KL": (cost.kl, answers)} | ({"rise of loss": (cost.loss, predicted)} if cost.loss is not None else {})
    removal = draw.series(influence.x, curves, "Cost of removing each block", "nats")
    parts: dict[str, Result] = {
        "removal": removal,
        "agreement": draw.series(influence.x, {"top-1 agreement": (cost.agreement, answers)}, "Top answers that stay the same", "share"),
    }
    kl, change = removal.curves["KL"], influence.curves["all rows"]
    rank = float(pandas.DataFrame({"kl": kl, "change": change}).rank().corr().iloc[0, 1])
    names = list(blocks)
    words = [f"removing {names[int(kl.argmin())]} costs least (KL {kl.min():.3g} nats), {names[int(kl.argmax())]} most ({kl.max():.3g})."]
    if len(kl) > 2 and np.isfinite(rank):
        words.append(f"over {len(kl)} blocks, influence and the cost of removal have rank correlation {rank:.2f}.")
    notes: dict[str, Any] = {"rank correlation of influence and KL": rank, "removal sequences": len(cost.kl)}
    if cost.loss is not None:
        notes["loss of the full model"] = float(cost.full_loss.sum() / cost.predicted.sum())
    return parts, words, notes


def _words(names: list[str], parts: Mapping[str, Result]) -> list[str]:
    influence, angles = parts["influence"], parts["angles"]
    assert isinstance(influence, Series)
    assert isinstance(angles, Grid)
    change = influence.curves["all rows"]
    if np.isnan(change).all():
        return ["no row is left: every one is a zero vector."]
    low, high = int(np.nanargmin(change)), int(np.nanargmax(change))
    said = [f"{names[low]} changes its input least (influence {change[low]:.3g}), {names[high]} most ({change[high]:.3g})."]
    calm = influence.curves.get(CALM)
    if calm is not None and np.isfinite(calm).all() and int(calm.argmin()) != low:
        said.append(f"{CALM} it is {names[int(calm.argmin())]} that changes least: a few rows decide the average.")
    flat = angles.values[:, 1:]
    if np.isfinite(flat).any():
        start, more = np.unravel_index(np.nanargmin(flat), flat.shape)
        said.append(
            f"of all spans of several blocks, {names[int(start)]} to {names[int(start) + int(more) + 1]} turns least ({180 * flat[start, more]:.3g}°)."
        )
    return said


def _zero_words(zeros: Mapping[str, int]) -> list[str]:
    return [f"left out as zero vectors: {', '.join(f'{n} rows at {name}' for name, n in zeros.items())}."] if zeros else []
