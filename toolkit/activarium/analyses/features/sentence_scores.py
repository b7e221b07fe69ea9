"""How near a sentence comes to a direction, and how well that tells two kinds of sentences apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.dictionaries import RowSource


def highest_cosines(source: RowSource, directions: Tensor, examples: np.ndarray) -> np.ndarray:
    """The largest cosine of any row of an example with each direction, `example feature`; NaN for examples without rows."""
    unit = torch.nn.functional.normalize(directions.detach().float(), dim=1)
    owner = owners(source)
    found = torch.full((len(examples), len(unit)), -torch.inf)
    for index, rows, _ in source.pieces():
        cosine = torch.nn.functional.normalize(rows, dim=1) @ unit.T
        number = torch.as_tensor(np.searchsorted(examples, owner[index]))
        found.scatter_reduce_(0, number[:, None].expand_as(cosine), cosine, "amax")
    return found.masked_fill(found == -torch.inf, torch.nan).double().numpy()


def mean_rows(source: RowSource, examples: np.ndarray) -> Tensor:
    """Mean row over all rows of these examples, float64."""
    owner = owners(source)
    total, count = torch.zeros(source.width, dtype=torch.float64), 0
    for index, rows, _ in source.pieces():
        chosen = torch.as_tensor(np.isin(owner[index], examples))
        total += rows[chosen].double().sum(0)
        count += int(chosen.sum())
    return total / max(1, count)


def owners(source: RowSource) -> np.ndarray:
    """The example of each row of the recording."""
    if source.inputs.index is None:
        return np.arange(len(source.inputs))
    return np.asarray(source.inputs.index["example"], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Apart:
    """One score per sentence, some of which show a concept: how well the score tells them apart.

    Attributes:
        wins: 1 where a showing sentence (row) scores above a neutral one (column), 0.5 where they are equal.
        gap: Mean score of showing sentences less that of neutral ones.
    """

    wins: np.ndarray
    gap: float

    @staticmethod
    def of(scores: np.ndarray, shows: np.ndarray) -> Apart:
        """From a score and a truth per sentence."""
        yes, no = scores[shows], scores[~shows]
        wins = (yes[:, None] > no[None, :]) + 0.5 * (yes[:, None] == no[None, :])
        return Apart(wins, float(yes.mean() - no.mean()))

    @property
    def auc(self) -> float:
        """Share of pairs in which the showing sentence scores higher."""
        return float(self.wins.mean())

    def again(self, draws: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """AUC in each resample: `draws` say how often each showing and each neutral sentence is drawn, `resample sentence`."""
        yes, no = draws
        return np.einsum("ri,ij,rj->r", yes, self.wins, no) / (yes.sum(1) * no.sum(1))


def draws_of(yes: int, no: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each sentence is drawn, within its kind; the same draws serve every method, so that differences are paired."""
    generator = np.random.default_rng(seed)
    one, other = (generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64) for n in (yes, no))
    return one, other


def auc_of_each(scores: np.ndarray, shows: np.ndarray) -> np.ndarray:
    """AUC of each column of `example feature`."""
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=0)
    yes = int(shows.sum())
    return (ranks[shows].sum(0) - yes * (yes + 1) / 2) / (yes * (len(shows) - yes))
