"""Which sites of a recording belong to one question, stack by stack, and their rows example by example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.errors import AxisError, InputError, NotFinite, UnknownSite
from activarium.recording import Recording

STACKS = ("", "encoder.", "decoder.", "vision.", "text.")
Stacks = Mapping[str, Mapping[str, Activations]]


def layer_sites(source: Recording | Activations, endings: Sequence[str], axes: str) -> dict[str, dict[str, Activations]]:
    """Stack name → site → activations, at the first of `endings` (`mlp.act`, `resid_post`) that the recording holds.

    Args:
        source: A recording, or one site or stack of sites already chosen.
        endings: What stands behind `blocks.i.`, the preferred one first.
        axes: Axes that every site must have.

    Raises:
        UnknownSite: None of the sites was recorded; the message says what to read.
        AxisError: A site has other axes.
    """
    found = {"": source.layers()} if isinstance(source, Activations) else _recorded(source, endings)
    for sites in found.values():
        for site, activations in sites.items():
            if activations.axes != tuple(axes.split()):
                have = " ".join(activations.axes)
                raise AxisError(f"This needs axes {axes!r}; {site or 'it'} has {have!r} with shape {activations.shape}. {_hint(endings)}")
    return found


def _recorded(recording: Recording, endings: Sequence[str]) -> dict[str, dict[str, Activations]]:
    for ending in endings:
        found = {}
        for stack in STACKS:
            try:
                found[stack.rstrip(".")] = recording[f"{stack}blocks.*.{ending}"].layers()
            except UnknownSite:
                continue
        if found:
            return found
    have = ", ".join(list(recording)[:8]) or "no sites"
    raise UnknownSite(f"This recording has no site 'blocks.*.{endings[0]}'; it has {have}. {_hint(endings)}")


def _hint(endings: Sequence[str]) -> str:
    return f'Read it: model.run(inputs, read="blocks.*.{endings[0]}").'


def layer_number(site: str, default: int) -> int:
    """The block a site belongs to: 3 for `encoder.blocks.3.resid_post`."""
    parts = site.split(".")
    after = parts[parts.index("blocks") + 1] if "blocks" in parts[:-1] else ""
    return int(after) if after.isdigit() else default


def examples_of(activations: Activations) -> np.ndarray:
    """The example of each row; without a row table all rows are one example."""
    if activations.index is None:
        return np.zeros(len(activations), dtype=np.int64)
    return np.asarray(activations.index["example"], dtype=np.int64)


def column(activations: Activations, name: str, default: object) -> np.ndarray:
    """A column of the row table, or the same value for every row where there is none."""
    if activations.index is not None and name in activations.index:
        return np.asarray(activations.index[name])
    return np.full(len(activations), default)


def by_example(activations: Activations) -> Iterator[tuple[int, int, Tensor]]:
    """Example number, its first row and its values `row d_model`, also where an example lies across two parts."""
    examples = examples_of(activations)
    if len(examples) != len(activations):
        raise InputError(f"{activations.site} has {len(activations)} rows but its row table has {len(examples)}. Capture it again.")
    start, pending = 0, []
    for batch in activations.batches():
        edges = np.flatnonzero(np.diff(examples[start : start + len(batch)])) + 1
        for piece in torch.tensor_split(batch, edges.tolist()):
            if pending and len(piece) and examples[start] != examples[start - 1]:
                yield _joined(examples, start, pending)
                pending = []
            pending.extend([piece] if len(piece) else [])
            start += len(piece)
    if pending:
        yield _joined(examples, start, pending)


def _joined(examples: np.ndarray, stop: int, pieces: list[Tensor]) -> tuple[int, int, Tensor]:
    first = stop - sum(len(p) for p in pieces)
    return int(examples[stop - 1]), first, pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def describe_row(activations: Activations, row: int) -> str:
    """Where a row is, for a reader: `example 4, position 17 ('the')`."""
    if activations.index is None:
        return f"row {row}"
    texts = column(activations, "text", "")
    positions = column(activations, "position", row)
    return f"example {examples_of(activations)[row]}, position {positions[row]} ({str(texts[row])!r})"


def refuse_strange(activations: Activations, consequence: str) -> None:
    """Raise for the first NaN or infinity of a site.

    Raises:
        NotFinite: With the site, how many there are, where the first one is and what it would have done.
    """
    nan = infinite = start = 0
    first: int | None = None
    for batch in activations.batches():
        strange = ~batch.isfinite()
        nan, infinite = nan + int(batch.isnan().sum()), infinite + int(batch.isinf().sum())
        if first is None and bool(strange.any()):
            first = start + int(strange.flatten(1).any(1).nonzero()[0])
        start += len(batch)
    if first is not None:
        raise NotFinite(
            f"{activations.site or 'This site'} holds {nan:,} NaN and {infinite:,} infinite numbers among {int(np.prod(activations.shape)):,}; "
            f"the first in {describe_row(activations, first)}. {consequence} Run the model in float32 or bfloat16, or leave that example out."
        )
