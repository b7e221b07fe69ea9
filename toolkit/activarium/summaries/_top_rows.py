"""TopRows: the rows in which each feature is largest, with their context."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from activarium.errors import InputError
from activarium.results import Ranking
from activarium.rows import Rows
from activarium.summaries.base import State, Summary

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
        score = values.abs() if self.settings["magnitude"] else values
        row, feature = (score >= self._least(score)).nonzero(as_tuple=True)
        found = score[row, feature].double().cpu()
        top, where = _best(feature.cpu(), found, rows[row.cpu()], values.shape[1], self.settings["count"])
        return {"rows": torch.tensor(len(values)), "score": top, "row": where}

    def _least(self, score: Tensor) -> Tensor:
        """What a value must reach to get into the list, per feature; anything below is not looked at."""
        smallest = torch.finfo(score.dtype).smallest_normal * torch.finfo(score.dtype).eps  # the smallest number above zero
        if self.state:
            least = self.state["score"][:, -1].to(score)
        elif len(score) > self.settings["count"]:
            least = (
                score.T.contiguous()
                .nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
                .topk(self.settings["count"])
                .values[:, -1]
            )
        else:
            least = score.new_zeros(score.shape[1])
        return least.clamp_min(smallest)

    def _join(self, into: State, other: State) -> None:
        count = into["score"].shape[1]
        changed = (other["score"][:, 0] > 0).nonzero().flatten()
        both = [torch.cat([s[key][changed] for s in (into, other)], 1) for key in ("score", "row")]
        feature = torch.arange(len(changed))[:, None].expand(-1, both[0].shape[1]).flatten()
        top, where = _best(feature, both[0].flatten(), both[1].reshape(-1, 2), len(changed), count)
        into["score"], into["row"] = into["score"].clone(), into["row"].clone()
        into["score"][changed], into["row"][changed] = top, where
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


def _best(feature: Tensor, score: Tensor, rows: Tensor, width: int, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of each feature: largest score, then earlier example, then earlier position."""
    order = np.lexsort((rows[:, 1].numpy(), rows[:, 0].numpy(), -score.numpy(), feature.numpy()))
    owner, ordered, places = feature.numpy()[order], score.numpy()[order], rows.numpy()[order]
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    keep = np.flatnonzero((rank < count) & (ordered > 0))
    top, where = np.zeros((width, count)), np.full((width, count, 2), NOWHERE, np.int64)
    top[owner[keep], rank[keep]], where[owner[keep], rank[keep]] = ordered[keep], places[keep]
    return torch.from_numpy(top), torch.from_numpy(where)
