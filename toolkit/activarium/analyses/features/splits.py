"""Which feature of a small dictionary becomes which of a larger one: near in direction, and active where the small one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from activarium.analyses.features.firing_together import Together, matrix, pick, together
from activarium.analyses.features.geometry import nearest, pairs_above
from activarium.dictionaries.coded import CodedRows


@dataclass(frozen=True)
class Rule:
    """When a large feature counts as a part of a small one.

    Attributes:
        cosine: Their directions' cosine is at least this.
        contained: The small one is active in at least this share of the rows in which the large one is.
        least: Rows in which the large one must be active before that share is believed.
    """

    cosine: float
    contained: float
    least: int


@dataclass(frozen=True, eq=False)
class Step:
    """A small and a large dictionary held against one another.

    Attributes:
        small: How many features the small one has.
        large: How many the large one has.
        first: Small feature of each link.
        second: Large feature of each link.
        cosine: Cosine of each link.
        contained: P(small is active | large is), of each link; NaN without a recording.
        chance: P(small is active) over all rows, of each link: what containment would be by chance.
        largest: Largest cosine of each large feature with any small one.
        nearest: That small feature.
        near: Large features at the cosine from some small one, whatever fires.
        fires: Rows in which each small and each large feature is active, or None.
        covered: Of each small feature, the share of its rows in which a linked large one is active; NaN without a recording.
    """

    small: int
    large: int
    first: np.ndarray
    second: np.ndarray
    cosine: np.ndarray
    contained: np.ndarray
    chance: np.ndarray
    largest: np.ndarray
    nearest: np.ndarray
    near: np.ndarray
    fires: tuple[np.ndarray, np.ndarray] | None
    covered: np.ndarray

    @property
    def parts(self) -> np.ndarray:
        """How many large features each small one is linked to."""
        return np.bincount(self.first, minlength=self.small)

    def counts(self, least: int) -> dict[str, int]:
        """How many small and large features came to what: the columns of the report's table."""
        parts = self.parts
        linked = np.bincount(self.second, minlength=self.large) > 0
        silent = np.zeros(self.large, bool) if self.fires is None else self.fires[1] < least
        return {
            "links": len(self.first),
            "split": int((parts > 1).sum()),
            "kept": int((parts == 1).sum()),
            "lost": int((parts == 0).sum()),
            "parts": int(linked.sum()),
            "near but apart": int((self.near & ~linked & ~silent).sum()),
            "near but silent": int((self.near & ~linked & silent).sum()),
            "novel": int((~self.near).sum()),
        }


def compare(small: Tensor, large: Tensor, rule: Rule, shared: Together | None, codes: Sequence[CodedRows] = ()) -> Step:
    """Hold two dictionaries against one another.

    Args:
        small: Unit directions, `feature d_model`.
        large: Unit directions, `feature d_model`.
        rule: What counts as a link.
        shared: Firings on the same rows, small first; None looks at directions alone.
        codes: Codes of both, to see what the links cover; nothing is covered where they are not given.
    """
    first, second, cosine = pairs_above(small, large, rule.cosine)
    near = np.bincount(second, minlength=len(large)) > 0
    contained = chance = np.full(len(first), np.nan)
    if shared is not None:
        fires = shared.fires[1][second]
        contained = np.divide(pick(shared.both, first, second), fires, out=np.zeros(len(first)), where=fires > 0)
        chance = shared.fires[0][first] / shared.rows
        linked = (contained >= rule.contained) & (fires >= max(rule.least, 1))
        first, second, cosine, contained, chance = (x[linked] for x in (first, second, cosine, contained, chance))
    largest, which = (part[:, 0] for part in nearest(large, small))
    covered = np.full(len(small), np.nan)
    if shared is not None and len(codes) == 2:
        covered = _covered(first, second, codes[0], codes[1], shared.fires[0])
    found = (first, second, cosine, contained, chance, largest, which, near)
    return Step(len(small), len(large), *found, None if shared is None else shared.fires, covered)


def without_alignment(codes: Sequence[CodedRows], seed: int) -> Together:
    """Firings of both where the large one's rows were dealt out anew: what only chance brings together."""
    return together(codes[0], codes[1], shuffle=seed)


def _covered(first: np.ndarray, second: np.ndarray, small: CodedRows, large: CodedRows, fires: np.ndarray) -> np.ndarray:
    """Share of each small feature's rows in which one of its linked features is active; NaN where it never is."""
    from scipy.sparse import csr_array

    links = csr_array((np.ones(len(first)), (second, first)), shape=(large.width, small.width))
    count = np.zeros(small.width)
    for (_, a), (_, b) in zip(small.pieces(), large.pieces(), strict=True):
        together_here = ((matrix(b) != 0).astype(np.float64) @ links > 0).multiply(matrix(a) != 0)
        count += np.asarray(together_here.sum(0)).ravel()
    return np.divide(count, fires, out=np.full(small.width, np.nan), where=fires > 0)
