"""The dimensions to leave out of cosines, probes, steering directions and dictionaries, because they dwarf all others."""

from __future__ import annotations

import numpy as np

from activarium.errors import InputError
from activarium.results import Ranking, Report


def persistent_dims(report: Report, stack: str = "") -> tuple[int, ...]:
    """The persistent dimensions that `massive_activations` found, in order: an exclusion mask.

    A few massive dimensions make all vectors look alike: cosines come near 1, a difference of means points along them, a probe
    or a dictionary spends itself on them, and steering along them breaks the model. `block_influence(recording, without=…)` takes
    them as they are; a direction is freed of them by setting these entries to zero.

    Args:
        report: Of `massive_activations`.
        stack: `encoder` or `decoder`, `vision` or `text`, where there are several.

    Returns:
        Empty where no dimension is persistent (in 90 % of the sequences at three layers in a row).

    Raises:
        InputError: The report has no ranking of dimensions.

    Example:
        >>> import torch
        >>> import activarium as act
        >>> from activarium.activations import Activations
        >>> h = torch.full((4, 8), 0.5)
        >>> h[1, 3] = -700.0
        >>> layers = [Activations(h, "row d_model", site=f"blocks.{i}.resid_post") for i in range(3)]
        >>> stream = Activations.stack(layers, [a.site for a in layers], "blocks.*.resid_post")
        >>> persistent_dims(act.analyses.massive_activations(stream))
        (3,)
    """
    name = f"{stack} dimensions".strip()
    table = report[name] if name in report.parts else None
    if not isinstance(table, Ranking) or "persistent" not in table.columns:
        raise InputError(f"This report has no part {name!r} of massive_activations; it has {', '.join(report) or 'none'}.")
    return tuple(sorted(table.columns["dim"][np.asarray(table.columns["persistent"], bool)].tolist()))
