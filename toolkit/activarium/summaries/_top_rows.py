"""TopRows: the rows in which each feature is largest, with their context."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.errors import InputError
from activarium.results import Ranking
from activarium.rows import Rows
from activarium.summaries.base import CELLS, State, Summary

CONTEXT = 8  # tokens shown on each side
NOWHERE = -1


class TopRows(Summary):
    """In which rows is each feature largest?

    Only values above zero count: a feature that is never positive has no top row. Ties go to the earlier example and
    position, so that no split or order changes the list. NaN is never a top value.

    State: `rows`, `score` (`feature rank`, float64, 0 where there is none), `row` (`feature rank (example, position)`, -1).

    Attributes:
        settings: `count`, rows per feature; `magnitude` ranks |x| in place of x (residual streams have no preferred sign).
    """

    needs_rows = True

    def __init__(self, count: int = 10, magnitude: bool = False) -> None:
        if count < 1:
            raise InputError(f"TopRows keep {count} rows of each feature; wanted at least one.")
        super().__init__(count=count, magnitude=magnitude)

    def _bytes(self, width: int) -> int:
        return 24 * self.settings["count"] * width

    def _of(self, values: Tensor, rows: Tensor | None) -> State:
        assert rows is not None
        count, width = self.settings["count"], values.shape[1]
        row, feature = self._candidates(values)
        score = values[row, feature].double().abs().cpu()  # a candidate is above zero already, or ranked by magnitude
        changed, scores, places = _by_feature(feature.cpu(), score, rows[row.cpu()])
        best, where = _ranked(scores, places, count)
        state = _nothing(width, count)
        state["score"][changed, : best.shape[1]], state["row"][changed, : best.shape[1]] = best, where
        return {"rows": torch.tensor(len(values)), **state}

    def _candidates(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Row and feature of every number that may get into the list."""
        least, top = self._least(values), values.amax(0)
        if self.settings["magnitude"]:
            top = torch.maximum(top, -values.amin(0))
        # Later on few features have a row to add, and their largest value says so (NaN hides it: those are looked at).
        chosen = (~(top < least)).nonzero().flatten()
        if len(chosen) < values.shape[1] // 2:
            values, least = values[:, chosen], least[chosen]
        else:
            chosen = torch.arange(values.shape[1], device=values.device)
        row, feature = self._reaching(values, least)
        return row, chosen[feature]

    def _reaching(self, values: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        if not values.shape[1]:
            nothing = values.new_empty(0, dtype=torch.int64)
            return nothing, nothing
        found, step = [], max(1, CELLS // values.shape[1])
        for start in range(0, len(values), step):
            reached = self._score(values[start : start + step]) >= least
            # numpy finds a few set bits among many several times as fast as torch.
            found.append(np.flatnonzero(reached.cpu().numpy()) + start * values.shape[1])
        cells = torch.from_numpy(np.concatenate(found)).to(values.device)
        return cells // values.shape[1], cells % values.shape[1]

    def _score(self, values: Tensor) -> Tensor:
        return values.abs() if self.settings["magnitude"] else values

    def _least(self, values: Tensor) -> Tensor:
        """What a value must reach to get into the list, per feature; anything below is not looked at."""
        count, kind = self.settings["count"], torch.finfo(values.dtype)
        if self.state:
            least = self.state["score"][:, -1].to(values)
        elif len(values) > count:
            score = self._score(values.T.contiguous()).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
            least = torch.topk(score, count).values[:, -1]
        else:
            least = values.new_zeros(values.shape[1])
        return least.clamp_min(kind.smallest_normal * kind.eps)  # the smallest number above zero

    def _join(self, into: State, other: State) -> None:
        changed = (other["score"][:, 0] > 0).nonzero().flatten()
        both = [torch.cat([s[key][changed] for s in (into, other)], 1) for key in ("score", "row")]
        best, where = _ranked(both[0], both[1], into["score"].shape[1])
        into["score"], into["row"] = into["score"].clone(), into["row"].clone()
        into["score"][changed], into["row"][changed] = best, where
        into["rows"] = into["rows"] + other["rows"]

    # --- what it says

    @property
    def examples(self) -> list[int]:
        """Examples that hold a top row of any feature."""
        found = self.state["row"][..., 0].unique().tolist() if self.state else []
        return [e for e in found if e != NOWHERE]

    def of(self, feature: int) -> list[tuple[float, int, int]]:
        """Value, example and position of one feature's top rows, the largest first."""
        self._require()
        if not 0 <= feature < self.width:
            raise InputError(f"{self.site} has features 0 to {self.width - 1}; found {feature}.")
        pairs = zip(self.state["score"][feature].tolist(), self.state["row"][feature].tolist(), strict=True)
        return [(score, *row) for score, row in pairs if score > 0]

    def result(self, rows: Rows | None = None) -> Ranking:
        """All lists under one another, the feature with the largest value first; with `rows`, each row in its context."""
        self._require()
        score, row = self.state["score"], self.state["row"]
        order = torch.argsort(score[:, 0], descending=True, stable=True)
        feature, rank = ((score[order] > 0).nonzero()).T
        feature = order[feature]
        values, places = score[feature, rank].numpy(), row[feature, rank].numpy()
        columns = {"rank": rank.numpy() + 1, "example": places[:, 0], "position": places[:, 1]}
        if rows is not None:
            columns["context"] = np.array([context(rows, int(e), int(p)) for e, p in places], dtype=object)
        names = tuple(self.feature_name(int(f)) for f in feature)
        title = f"Rows in which each feature of {self.site} is largest"
        return Ranking(names, values, columns, title=title, unit="model units", diagnostics={"rows": self.rows, **self.settings})

    @property
    def largest_feature(self) -> int:
        """The feature that holds the largest value of all."""
        self._require()
        return int(self.state["score"][:, 0].argmax())

    def feature_name(self, feature: int) -> str:
        """A feature in the axes of the site, `3.17` for `head d_head`."""
        return ".".join(str(int(i)) for i in np.unravel_index(feature, self.shape))


def context(rows: Rows, example: int, position: int) -> str:
    """A row in its surroundings, `… gave Tom [the] book …`."""
    span = rows.span(example)
    here = span.start + int(np.flatnonzero(rows["position"][span] == position)[0])
    low, high = max(span.start, here - CONTEXT), min(span.stop, here + CONTEXT + 1)
    if "text" not in rows:
        return ""
    words = [f"[{t}]" if i == here else str(t) for i, t in enumerate(rows["text"][low:high], low)]
    return " ".join([*["…"] * (low > span.start), *words, *["…"] * (high < span.stop)])


def _nothing(width: int, count: int) -> State:
    return {"score": torch.zeros(width, count, dtype=torch.float64), "row": torch.full((width, count, 2), NOWHERE)}


def _by_feature(feature: Tensor, score: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates side by side: the features that have any, and their scores and rows, filled up with nothing."""
    order = feature.sort(stable=True).indices
    changed, line, counts = feature[order].unique_consecutive(return_inverse=True, return_counts=True)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[line]
    made = _nothing(len(changed), int(counts.max()) if len(counts) else 0)
    made["score"][line, rank], made["row"][line, rank] = score[order], rows[order]
    return changed, made["score"], made["row"]


def _ranked(score: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of each line: largest score, then earlier example, then earlier position."""
    ordered, order = score.sort(dim=1, descending=True, stable=True)
    tied = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).any(1).nonzero().flatten()
    for column in (1, 0) if len(tied) else ():  # position, then example, then score: stable sorts keep the finer order
        place = rows[tied, :, column].gather(1, order[tied]).argsort(dim=1, stable=True)
        order[tied] = order[tied].gather(1, place)
    if len(tied):
        place = score[tied].gather(1, order[tied]).argsort(dim=1, descending=True, stable=True)
        order[tied] = order[tied].gather(1, place)
    order = order[:, :count]
    return score.gather(1, order), rows.gather(1, order[..., None].expand(*order.shape, 2))
