"""Attention sinks: the keys that many heads look at whatever they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from activarium.analyses.massive.sinks import StackOfSinks, attention_stacks
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Report, Result


def attention_sinks(
    source: Runner | Recording,
    inputs: Any = None,
    *,
    epsilon: float = 0.3,
    length: int | None = None,
    subtract: bool = False,
    sinks: Sequence[int] | None = None,
    skip: int = 8,
    random_sets: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Which positions do attention heads look at whatever stands there?

    The importance of key k for a head is its mean attention over the queries that can see k. A head sinks at k where this is above
    `epsilon`; the metric is the percentage of heads (over layers, heads and sequences) that do, not a share of attention. Early
    keys collect attention even if it is uniform, so that is always shown beside it, and short sequences are refused.

    Args:
        source: A model, or a recording with `blocks.*.attn.pattern`; with `blocks.*.attn.v` too, the heads' updates are split.
        inputs: What the model runs on; none for a recording.
        epsilon: Importance above which a head sinks.
        length: Rows of a sequence that count. All sequences are cut to it and shorter ones are left out, since the metric depends
            on it; by default 64, or what half of the sequences have. Where rows look ahead (images, BERT) nothing can be cut:
            only sequences of exactly this length count, by default the most frequent one.
        subtract: Compare importance minus what uniform attention would give; allows lengths below 16.
        sinks: Positions taken for sinks in `mass` and in what follows; by default the one with the highest percentage among those
            that many queries see, half as many as see the best seen one: the last keys look important to the few behind them.
        skip: First query that counts for mass and updates: the first ones have hardly anything else to look at.
        random_sets: Sets of as many other positions, against which the constancy of the sinks' update is held.
        seed: Draws them, and the sequences for intervals.
        progress: Show a bar.

    Returns:
        A report with series over positions: `sinks` (percent of heads, with its interval over sequences, beside the percentage
        under uniform attention) and `importance` (averaged over heads, beside uniform); grids layer × head: `heads` (percent of
        sequences in which the head sinks at a sink) and `mass` (share of attention on the sinks from query `skip` on);
        `kv heads`, if heads share keys: the same percentages averaged over those that share; series over layers: `layers`
        (mass, beside uniform) and, with values, `constancy` (how far the update by the sinks varies over queries: 0 is a bias;
        beside random sets), `update` (its share) and `value norms`. Models with several stacks have each part per stack.

    Raises:
        UnknownSite: No attention pattern was recorded.
        InputError: Sequences are too short for the threshold to mean anything, or a setting is out of range.

    Source:
        Gu et al. 2024, When Attention Sink Emerges in Language Models: An Empirical View, arXiv:2410.10781 (metric); Sun et al. 2024,
        Massive Activations in Large Language Models, arXiv:2402.17762, section 4 (split of the update).

    Differs:
        Queries that a sliding window keeps from a key do not count for it, and T − k becomes T where rows look ahead. The uniform
        baseline, intervals, constancy against random sets and the refusal of short sequences are ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> text = [i % 40 + 5 for i in range(40)]
        >>> act.analyses.attention_sinks(model, [text])["sinks"].x.shape
        (40,)
    """
    if isinstance(source, Recording) != (inputs is None):
        raise InputError(
            "A model needs inputs=, a recording has its own. Give attention_sinks(model, inputs) or attention_sinks(recording)."
        )
    if not 0 < epsilon < 1:
        raise InputError(f"epsilon={epsilon} is no share of attention; give a number between 0 and 1 (Gu et al. use 0.3).")
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, Any] = {"epsilon": epsilon, "subtract": subtract, "skip": skip, "seed": seed}
    for name, sites, lengths, ahead in attention_stacks(source, inputs):
        stack = StackOfSinks(
            source, inputs, (sites, lengths, ahead), epsilon=epsilon, length=length, subtract=subtract, skip=skip, progress=progress
        )
        made, said, found = stack.answer(sinks, random_sets, seed)
        parts |= {f"{name} {part}".strip(): result for part, result in made.items()}
        notes |= {f"{name} {note}".strip(): value for note, value in found.items()}
        words += [f"{name}: {line}" if name else line for line in said]
    return Report(parts, tuple(words), title="Attention sinks", diagnostics=notes)
