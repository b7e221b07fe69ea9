"""Attention bias: how far one key and one value of its own could stand in for a head's sinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from activarium.analyses.layer_sites import layer_number
from activarium.analyses.massive.one_key import KeySums, SinkPart, ValueSums, sink_part
from activarium.analyses.massive.received import recordings
from activarium.errors import InputError, UnknownSite
from activarium.protocols import Runner
from activarium.recording import matching
from activarium.results import Grid, Report, Result, Series

READ = ("q_rot", "scores", "pattern", "v")


def attention_bias(
    model: Runner, inputs: Any, *, sinks: Sequence[int] = (0,), stack: str = "", skip: int = 8, progress: bool = False
) -> Report:
    """How much of what attention sinks do could one learned key and value per head absorb?

    A head's update is split by keys, and its part from the sinks is approximated by one key k' and one value v', the same for
    every text: softmax(q [K; k']ᵀ) [V; v'] without the sinks. k' is fitted to the sinks' scores and v' to their update, by least
    squares, on every second sequence; how much is explained is measured on the others. Where all texts begin with the same token it
    is everything: the first key is then one and the same.

    Args:
        model: The model.
        inputs: Two sequences or more.
        sinks: Positions of the sinks, as `attention_sinks` finds them.
        stack: `encoder` or `decoder`, `vision` or `text`, where there are several.
        skip: First query that counts.
        progress: Show a bar.

    Returns:
        A report with `absorbed` (layer × head: share of the energy of the sinks' update that k' and v' explain; 1 is all, below 0 is
        worse than nothing), `constant` (the same for a constant update, without a key) and `layers` (both, over all heads together).

    Raises:
        UnknownSite: The model's queries, scores or values cannot be read.
        InputError: Fewer than two sequences are longer than `skip` and hold every sink.

    Source:
        Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762, section 4 (explicit attention biases, which
        are trained there).

    Differs:
        k' and v' are fitted to a finished model, by least squares; nothing is trained.

    Example:
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> texts = [[1, *range(5 + i, 25 + i)] for i in range(4)]  # the same token first
        >>> float(act.analyses.attention_bias(model, texts)["absorbed"].values.min().round(6))
        1.0
    """
    prefix = f"{stack}." if stack else ""
    blocks = [s.removesuffix(".pattern") for s in matching(f"{prefix}blocks.*.attn.pattern", list(model.sites))]
    read = [f"{block}.{name}" for block in blocks for name in READ]
    missing = [name for name in read if name not in model.sites]
    if not blocks or missing:
        raise UnknownSite(
            f"{model.name} has no site {missing[0] if missing else f'{prefix}blocks.*.attn.pattern'!r} that can be read. See model.sites."
        )
    encoded = model.inputs(inputs)
    lengths = encoded.rows_of(model.sites[blocks[0] + ".pattern"].rows)
    if not len(sinks) or min(sinks) < 0 or skip < 0:
        raise InputError(f"sinks={list(sinks)} and skip={skip} should be positions, counted from 0.")
    long = np.flatnonzero(lengths > max(skip, *sinks))
    if len(long) < 2:
        raise InputError(
            f"{len(long)} sequences are longer than skip={skip} and hold the sinks {list(sinks)}; one fits and another measures, so give two or more."
        )
    encoded = encoded.select(long)
    fitting = {int(e) for e in encoded.numbers[::2]}

    def each(chosen: Any, do: Callable[[int, int, SinkPart], None]) -> None:
        for recording in recordings(model, chosen, read, progress):
            index = recording[f"{blocks[0]}.pattern"].index
            assert index is not None
            for example in index.examples:
                for i, block in enumerate(blocks):
                    do(i, example, sink_part(recording, block, example, sinks, skip))

    keys = [KeySums() for _ in blocks]
    each(encoded.select(range(0, len(encoded), 2)), lambda i, example, part: keys[i].add(part))
    found = [k.key() for k in keys]
    sums = {half: [ValueSums() for _ in blocks] for half in (True, False)}
    each(encoded, lambda i, example, part: sums[example in fitting][i].add(part, found[i]))
    return _report(blocks, sums[True], sums[False], {"sinks": list(sinks), "skip": skip, "fitted": len(fitting), "sequences": len(encoded)})


def _report(blocks: Sequence[str], fitted: Sequence[ValueSums], held: Sequence[ValueSums], notes: dict[str, Any]) -> Report:
    both = [h.explained(f.value(), f.mean()) for f, h in zip(fitted, held, strict=True)]
    absorbed, constant = (np.stack([pair[i].cpu().numpy() for pair in both]) for i in (0, 1))
    energy = np.stack([np.asarray(h.energy) for h in held])
    whole = [np.nansum(share * energy, 1) / energy.sum(1) for share in (absorbed, constant)]
    labels = {"layer": list(blocks)}
    numbers = np.array([layer_number(f"{b}.pattern", i) for i, b in enumerate(blocks)])
    curves = {"a key and a value": whole[0], "a constant": whole[1]}
    parts: dict[str, Result] = {
        "absorbed": Grid(absorbed, ("layer", "head"), labels, title="Of the sinks' update, explained by one key and value", unit="share of energy"),
        "constant": Grid(constant, ("layer", "head"), labels, title="Of the sinks' update, explained by a constant", unit="share of energy"),
        "layers": Series(numbers, curves, "block", title="Of the sinks' update, all heads together", unit="share of energy"),
    }  # fmt: skip
    total = [float(np.nansum(share * energy) / energy.sum()) for share in (absorbed, constant)]
    (b, h), (c, g) = (divmod(int(pick(absorbed)), absorbed.shape[1]) for pick in (np.nanargmax, np.nanargmin))
    words = (
        f"one key and one value per head explain {total[0]:.1%} of the energy of what the sinks {notes['sinks']} write, on sequences that were "
        f"not fitted; a constant explains {total[1]:.1%}.",
        f"most in {blocks[b]} head {h} ({absorbed[b, h]:.1%}), least in {blocks[c]} head {g} ({absorbed[c, g]:.1%}).",
    )
    return Report(parts, words, title="Sinks as an explicit attention bias", diagnostics=notes)
