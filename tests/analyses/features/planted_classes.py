"""Recordings whose classes are known: rows are sums of unit atoms, and a dictionary that has exactly these atoms."""

from __future__ import annotations

import numpy as np
import torch

from activarium.dictionaries import SAE, Design, Origin
from activarium.testing import recording_of

SITE = "blocks.0.resid_post"


def atoms(count: int, width: int, seed: int = 5) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def dictionary(directions: torch.Tensor, site: str = SITE) -> SAE:
    """Reads and writes along these directions; codes below 0.3 are cut."""
    features, width = directions.shape
    weights = {"encoder": directions, "W_dec": directions.clone(), "b_enc": torch.zeros(features), "b_dec": torch.zeros(width)}
    weights["threshold"] = torch.full((features,), 0.3)
    return SAE.of_weights(Design(width, features, "jumprelu"), weights, Origin(site=site))


def recording(rates: np.ndarray, directions: torch.Tensor, *, rows: int = 4, noise: float = 0.02, seed: int = 0, **columns):
    """One example for each line of `rates` (example × atom): in each row an atom is on with this chance, size 1 to 2."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.as_tensor(np.repeat(rates, rows, axis=0), dtype=torch.float32)
    on = torch.rand(chance.shape, generator=generator) < chance
    sizes = on * (1 + torch.rand(chance.shape, generator=generator))
    x = sizes @ directions + noise * torch.randn(len(chance), directions.shape[1], generator=generator)
    return recording_of({SITE: x}, example=np.repeat(np.arange(len(rates)), rows).tolist(), **columns)
