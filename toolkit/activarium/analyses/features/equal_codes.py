"""Dictionaries held against one another at the same number of active codes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.dictionaries import FeatureDictionary


def left_with(dictionary: FeatureDictionary, rows: Tensor, counts: list[int]) -> np.ndarray:
    """‖x − x̂‖² of each row, `row count`, when a row keeps only its largest codes.

    The codes that write most (|code| · ‖direction‖) are kept and fitted again by least squares on their directions: every dictionary
    is treated alike, and none is punished for codes that were made to work together.
    """
    with torch.no_grad():
        codes = dictionary.encode(rows)
        shift = dictionary.decode(torch.zeros(1, dictionary.width, dtype=dictionary.dtype))[0].double()
        directions = dictionary.directions.double()
    size = codes.double().abs() * directions.norm(dim=1)
    order = size.argsort(dim=1, descending=True, stable=True)
    rest, made = rows.double() - shift, np.empty((len(rows), len(counts)))
    for column, count in enumerate(counts):
        chosen = order[:, :count]
        used = directions[chosen] * (size.gather(1, chosen) > 0)[:, :, None]  # row, code, d; codes of zero write nothing
        gram = used @ used.mT
        # A little ridge: kept directions may repeat one another, and unused ones are zero.
        gram += torch.eye(chosen.shape[1], dtype=gram.dtype) * 1e-9 * gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(1e-30)[:, None, None]
        fitted = torch.linalg.solve(gram, used @ rest[:, :, None])
        made[:, column] = (rest - (used.mT @ fitted)[:, :, 0]).square().sum(1).numpy()
    return made
