"""One vector per head and example: what attention heads read where an example ends, at its class token, or over its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, examples_of, layer_sites
from activarium.errors import AxisError, InputError, NotFinite, unknown
from activarium.recording import Recording

ROWS = ("last", "cls", "patches")
Vectors = Mapping[str, Tensor]  # site → `example head d_head`, float64


def head_sites(recording: Recording | Activations) -> dict[str, Activations]:
    """`blocks.*.attn.z` of the one stack that is asked about.

    Raises:
        InputError: The recording has several stacks, or rows without a row table.
        AxisError, UnknownSite: They have other axes, or were not recorded.
    """
    stacks = layer_sites(recording, ("attn.z",), "row head d_head")
    if len(stacks) > 1:
        raise InputError(
            f"This recording has heads of {len(stacks)} stacks: {', '.join(repr(s) for s in stacks)}. "
            f"Pass one of them: recording['{next(iter(stacks))}.blocks.*.attn.z']."
        )
    sites = next(iter(stacks.values()))
    bare = next((name for name, site in sites.items() if site.index is None), None)
    if bare is not None:
        raise InputError(f"{bare or 'These heads'} have no row table, so nobody knows where an example ends. Take them from a recording.")
    return sites


def which_rows(site: Activations, rows: str | None) -> str:
    """The rows that are read: those asked for, or the class token of an image, its patches where there is none, the last token of a text."""
    kinds = set(column(site, "kind", "token").astype(str))
    if rows is None:
        return "last" if "patch" not in kinds else "cls" if "cls" in kinds else "patches"
    if rows not in ROWS:
        raise unknown("choice of rows", rows, ROWS)
    wanted = {"cls": "cls", "patches": "patch"}.get(rows)
    if wanted and wanted not in kinds:
        raise InputError(f"rows={rows!r} needs rows of kind {wanted!r}; {site.site} has {', '.join(sorted(kinds))}. Choose rows='last'.")
    return rows


def read_vectors(sites: Mapping[str, Activations], rows: str, chosen: Sequence[int] | np.ndarray | None = None) -> dict[str, Tensor]:
    """One pass over what was recorded: site → `example head d_head` (`example d_model` of the stream), in the order of the examples, in float64.

    Args:
        sites: The heads.
        rows: `last`, `cls` or `patches` (their mean).
        chosen: Positions of examples in the recording's order; None for all.

    Raises:
        InputError: An example has no such row.
        NotFinite: A head wrote NaN or infinity there.
    """
    first = next(iter(sites.values()))
    index, owner = _rows_of(first, rows, chosen)
    found: dict[str, Tensor] = {}
    for name, site in sites.items():
        values = site.rows(index).double().cpu()
        if not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
            raise NotFinite(f"{name} holds NaN or infinity in row {int(index[bad]):,}: no angle can be taken. Run the model in float32.")
        count = int(owner.max()) + 1
        summed = torch.zeros(count, *values.shape[1:], dtype=torch.float64).index_add_(0, owner, values)
        found[name] = summed / torch.bincount(owner, minlength=count).reshape(-1, *[1] * (values.ndim - 1))
    return found


def example_numbers(site: Activations) -> np.ndarray:
    """Example numbers in the order of their rows."""
    owner = examples_of(site)
    return owner[np.r_[True, owner[1:] != owner[:-1]]] if len(owner) else owner


def labels_of(site: Activations, labels: Sequence[object] | np.ndarray | None) -> np.ndarray:
    """The class of each example, in words: as given, or the row table's column `label`.

    Raises:
        InputError: Nothing was given and there is no such column, or there are more or fewer than examples.
    """
    owner = examples_of(site)
    count = len(example_numbers(site))
    if labels is None:
        if site.index is None or "label" not in site.index:
            raise InputError("Nobody said which class an example is of: give labels=…, one for each, or run with a dict that has 'label'.")
        labels = np.asarray(site.index["label"])[np.r_[True, owner[1:] != owner[:-1]]]
    found = np.asarray(labels)
    if found.ndim != 1 or len(found) != count:
        raise InputError(f"labels have shape {found.shape}; the recording has {count} examples. Give one label for each, in their order.")
    return np.array([str(x) for x in found.tolist()], dtype=object)


def _rows_of(site: Activations, rows: str, chosen: Sequence[int] | np.ndarray | None) -> tuple[np.ndarray, Tensor]:
    """Numbers of the rows that are read, and the place of each one's example among those chosen."""
    owner = examples_of(site)
    if len(owner) != len(site):
        raise AxisError(f"{site.site} has {len(site)} rows but its row table has {len(owner)}. Capture it again.")
    begins = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    ends = np.r_[begins[1:], len(owner)]
    kinds = column(site, "kind", "token").astype(str)
    parts = []
    for place in range(len(begins)) if chosen is None else chosen:
        here = np.arange(begins[place], ends[place])
        kept = here[-1:] if rows == "last" else here[kinds[here] == ("cls" if rows == "cls" else "patch")]
        if not len(kept):
            raise InputError(f"Example {int(owner[begins[place]])} has no row of kind {rows!r}. Leave it out, or choose rows='last'.")
        parts.append(kept)
    owners = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    return np.concatenate(parts) if parts else np.empty(0, int), torch.as_tensor(owners)
