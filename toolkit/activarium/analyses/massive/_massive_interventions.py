"""Massive interventions: what the model loses when its massive numbers are set to zero, or to what they always are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.analyses.changed_answers import Change, changed_answers
from activarium.analyses.layer_sites import layer_number
from activarium.analyses.massive.calibration import MODES, Hits, calibration_ranking, edit_at, edit_online, replacements, usual_values
from activarium.analyses.massive.costs import cost_parts, cost_words
from activarium.analyses.massive.sink_mass import sink_mass
from activarium.analyses.massive.stacks import Layer, check_thresholds, dimensions_of, largest_of, layers_of_run, matching_sites
from activarium.errors import InputError, unknown
from activarium.protocols import Runner
from activarium.results import Ranking, Report, Result

ENOUGH = 100  # sequences from which a usual value is taken
TITLE = "What massive activations are needed for"


def massive_interventions(
    model: Runner,
    inputs: Any,
    calibration: Any = None,
    *,
    modes: Sequence[str] = MODES,
    value: float | None = None,
    clip: float = 10.0,
    at: int | str | None = None,
    detect: str = "clean",
    absolute: float = 100.0,
    ratio: float = 1000.0,
    example: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """What does a model lose when its massive activations are set to zero, or to their mean?

    Massive numbers are found by the criteria of `massive_activations`, and each is replaced once, where it is born: at the
    output of one block, at its own row and dimension. Everything else, and all later blocks, run untouched. Where zero breaks
    a model and the mean does not, these numbers are constants that it relies on, not messages.

    Args:
        model: The model; left as it was.
        inputs: What the cost is measured on.
        calibration: Inputs from which the usual value of each dimension and class of rows is taken, best 100 or more; `inputs`
            itself if not given.
        modes: What replaces a massive number. `zero`; `mean`, the signed mean of its dimension and class of rows over the
            calibration; `median`, its sequence's median size with its own sign; `clip`, at most `clip` times that median.
        value: Also set it to this number, in model units: mode `value`.
        clip: Multiple of the median for `clip`.
        at: Block (or its `resid_post`) where to act; by default where the dimension with most hits is born in the calibration.
        detect: `clean` finds the numbers in a forward without edits, `online` in the very forward that is edited. They differ only
            where other edits stand before.
        absolute: Smallest size, exclusive, in model units.
        ratio: Smallest multiple of the sequence's median, inclusive.
        example: Whose rows are shown; by default the first with a massive number.
        seed: Draws the sequences for the intervals.
        progress: Show bars.

    Returns:
        A report with `usual values` (ranking: signed mean, variation and number per dimension and class), `cost` (ranking of the
        modes by KL(full ‖ changed) in nats over all rows, with its interval over sequences, KL at the massive rows and at all
        others of the same sequences, rise of the next token's loss, share of unchanged top answers), `KL by position` (mode ×
        position, averaged over the sequences with a massive number), `rows` (KL at each row of one example) and `attention` (share
        that later blocks give to the massive rows, before and after, beside uniform attention). Classifiers have one
        answer per example, so neither positions nor rows. Where there is nothing massive, the words say so and `largest`
        shows the largest number of each block.

    Raises:
        InputError: A mode is missing its `value`, a number is out of range, or the model answers with no distribution.
        UnknownName: There is no such mode, detection or block.
        NotFinite: NaN or infinite numbers in the residual stream.

    Source:
        Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762, section 3 (zero and mean); Owen et al.
        2025, A Refined Analysis of Massive Activations in LLMs, arXiv:2503.22329.

    Differs:
        Nothing is written down per model: dimensions, rows and values are found. KL, `median`, `clip` and the split into
        massive and other rows are ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> report = act.analyses.massive_interventions(model, ["the cat sat on the book"], absolute=0.5, ratio=2.0)
        >>> report["cost"].names[0]  # what costs most
        'zero'
    """
    chosen = _checked(modes, value, clip, detect, absolute, ratio)
    layers = layers_of_run(model, inputs if calibration is None else calibration, absolute, ratio, progress=progress)
    site, words = _site(model, layers, at)
    notes = {"absolute": absolute, "ratio": ratio, "detect": detect, "at": site, "clip": clip, "calibrated on inputs": calibration is None}
    layer = next((layer for every in layers.values() for layer in every if layer.site == site), None)
    if layer is None or not len(layer.hits["dim"]):
        return _nothing(layers, words, notes, absolute, ratio, site)
    usual, sequences = usual_values(Hits.of(layer.hits)), len(layer.measured)
    parts: dict[str, Result] = {"usual values": calibration_ranking(usual, site)}
    notes |= {"calibration sequences": sequences}
    if sequences < ENOUGH:
        words.append(f"the mean comes from {sequences} sequences only; give a calibration set of {ENOUGH} or more before believing it.")
    if calibration is None:
        words.append("the mean comes from the inputs themselves, which flatters it; give a calibration= of other sequences.")
    hits = _hits(model, inputs, site, absolute, ratio)
    if not len(hits):
        words.append("the calibration has massive numbers there, the inputs have none: nothing was changed.")
        return Report(parts, tuple(words), title=TITLE, diagnostics=notes)
    space = model.sites[site].rows
    changes: dict[str, Change] = {}
    for mode in chosen:
        new, known = replacements(mode, hits, usual, value, clip)
        if not known.all():
            words.append(f"{(~known).sum()} massive numbers are in dimensions that the calibration does not know; mode 'mean' leaves them.")
        online = edit_online(site, space, absolute, ratio, lambda h, m=mode: replacements(m, h, usual, value, clip)[0])
        changes[mode] = edit_at(hits, new, site, space) if detect == "clean" else online
    answers = changed_answers(model, inputs, changes, progress=progress, doing="intervening")
    parts |= cost_parts(model, inputs, answers, hits, example, seed)
    said, more = _attention(model, inputs, changes, hits, site)
    cost = parts["cost"]
    assert isinstance(cost, Ranking)
    words += cost_words(cost, answers, hits) + said
    return Report(parts | more, tuple(words), title=TITLE, unit="nats", diagnostics=notes | {"massive numbers": len(hits)})


def _checked(modes: Sequence[str], value: float | None, clip: float, detect: str, absolute: float, ratio: float) -> list[str]:
    check_thresholds(absolute, ratio)
    chosen = [modes] if isinstance(modes, str) else list(modes)
    chosen += ["value"] if value is not None and "value" not in chosen else []
    for mode in chosen:
        if mode not in (*MODES, "value"):
            raise unknown("mode", mode, (*MODES, "value"))
    if not chosen:
        raise InputError(f"modes is empty, so nothing would be replaced. Choose among {', '.join(MODES)}, or give value=.")
    if "value" in chosen and value is None:
        raise InputError("Mode 'value' sets a number that you choose: give value=, in model units.")
    if not clip > 0:
        raise InputError(f"clip={clip} is no size; give the positive multiple of the median to clip to.")
    if detect not in ("clean", "online"):
        raise unknown("way to detect", detect, ("clean", "online"))
    return chosen


def _site(model: Runner, layers: Mapping[str, list[Layer]], at: int | str | None) -> tuple[str, list[str]]:
    """Where to act, and what is said about it; no site if nothing is massive anywhere."""
    sites = matching_sites(model)
    if at is not None:
        wanted = [s for s in sites if s == at or (str(at).isdigit() and layer_number(s, -1) == int(at))]
        if not wanted:
            raise unknown("block output", str(at), sites)
        if len(wanted) > 1:
            raise InputError(f"Block {at} is in several stacks: {', '.join(wanted)}. Give the name of one.")
        return wanted[0], []
    for stack, every in layers.items():
        dims = dimensions_of(every)
        if len(dims.names):
            births = dims.columns["birth"].tolist()
            site = next(layer.site for i, layer in enumerate(every) if layer_number(layer.site, i) == births[0])
            later = sorted({b for b in births if b != births[0]})
            others = f"; other dimensions are born at blocks {', '.join(map(str, later))} and stay: act there with at=" if later else ""
            return site, [f"{f'{stack}: ' if stack else ''}acted at {site}, where {dims.names[0]} is born{others}."]
    return "", []


def _nothing(
    layers: Mapping[str, list[Layer]], words: list[str], notes: dict[str, Any], absolute: float, ratio: float, site: str
) -> Report:
    """The answer where there is nothing to replace."""
    rule = f"|h| > {absolute:g} and at least {ratio:g} times the sequence's median"
    where = f"at {site}" if site else "at any block"
    sequences = len(next(iter(layers.values()))[0].measured)
    words = [f"none: no number {where} is massive ({rule}) in {sequences} sequences, so nothing was changed."]
    parts: dict[str, Result] = {f"{stack} largest".strip(): largest_of(every) for stack, every in layers.items()}
    for part in parts.values():
        assert isinstance(part, Ranking)
        words.append(f"the largest is {part.values[0]:,.0f} times the median ({part.names[0]}, value {part.columns['value'][0]:.4g}).")
    return Report(parts, tuple(words), title=TITLE, diagnostics=notes)


def _hits(model: Runner, inputs: Any, site: str, absolute: float, ratio: float) -> Hits:
    (layers,) = layers_of_run(model, inputs, absolute, ratio, read=site).values()
    return Hits.of(layers[0].hits)


def _attention(model: Runner, inputs: Any, changes: Mapping[str, Change], hits: Hits, site: str) -> tuple[list[str], dict[str, Result]]:
    """What later blocks give to the massive rows, where patterns can be read and a later block exists."""
    stem, block = site.removesuffix(".resid_post"), layer_number(site, 0)
    blocks = [layer_number(s, 0) for s in matching_sites(model) if s.startswith(stem.removesuffix(str(block)))]
    sites = {b: f"{stem.removesuffix(str(block))}{b}.attn.pattern" for b in blocks if b > block}
    sites = {b: s for b, s in sites.items() if s in model.sites}
    if not sites:
        return ["no later block with a readable attention pattern: attention before and after is not shown."], {}
    rows = {int(e): hits.position[hits.example == e].tolist() for e in np.unique(hits.example)}
    back = model.looks_back(model.sites[site].rows)
    return [], {"attention": sink_mass(model, inputs, changes, rows, sites, back)}
