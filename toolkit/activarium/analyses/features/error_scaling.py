"""Is the error of a larger dictionary foretold, row by row, by that of a smaller one?"""

from __future__ import annotations

import numpy as np
import torch

from activarium.analyses.features.recovered import Draw
from activarium.analyses.features.spread import Spread
from activarium.results import Ranking


def error_scaling(lengths: dict[str, np.ndarray], held: np.ndarray, owner: np.ndarray, names: tuple[str, str], draw: Draw) -> Ranking:
    """How much of the length of the larger one's error, row by row, do lengths that a smaller one leaves explain?

    Args:
        lengths: `x`, `small error`, `small nonlinear` and `large error`, one number per row.
        held: Rows that are measured on; the others are fitted to.
        owner: Group of examples of each row.
        names: Of the smaller and the larger dictionary.
        draw: Of the intervals.
    """
    one = np.ones_like(lengths["x"])
    from_what = {
        "‖x‖": ["x"],
        "‖e‖ of the smaller": ["small error"],
        "‖e‖ and ‖n‖ of the smaller": ["small error", "small nonlinear"],
    }
    wanted = lengths["large error"]
    spread = Spread(1, int(owner.max()) + 1)
    spread.add(torch.as_tensor(wanted[held])[:, None], torch.as_tensor(owner[held]))
    total = spread.about_mean()
    found = {}
    for name, used in from_what.items():
        columns = np.stack([one, *(lengths[u] for u in used)], 1)
        weight = np.linalg.lstsq(columns[~held], wanted[~held], rcond=None)[0]
        left = np.bincount(owner[held], np.square(wanted - columns @ weight)[held], len(total))
        found[name] = draw(total - left, total)
    order = sorted(found, key=lambda name: -found[name][0])
    values = np.array([found[name] for name in order])
    title = f"What foretells the length of the error of {names[1]}, row by row, with {names[0]} as the smaller"
    return Ranking(tuple(order), values[:, 0], {"low": values[:, 1], "high": values[:, 2]}, title=title, unit="R²")
