"""A dictionary with a direction for every value of what is known about rows: the yardstick for dictionaries that were learnt without it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from activarium.dictionaries.attributes import Attributes, Value, dependence, one_hot, plain, values_of
from activarium.dictionaries.codes import Codes
from activarium.dictionaries.design import Origin
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.errors import InputError, NotFinite, unknown

Method = Literal["mean", "mse"]
SWEEPS = 3  # times each attribute is read off a row
DEPENDENT = 0.3  # Cramér's V from which means of one attribute hold much of another


@dataclass(frozen=True, eq=False)
class SupervisedDictionary(FeatureDictionary):
    """One feature for each value of each attribute; x̂ = mean + Σ over attributes of the direction of the row's value.

    Attributes:
        mean: `(d_in,)`, the mean row.
        written: `feature d_in`: attribute by attribute, in the order of `table`.
        table: Attribute → its values.
        method: `mean` (mean of the rows with the value, less the mean row) or `mse` (least squares of all attributes at once).
        counts: Rows that each feature was made of.
        dependence: "a and b" → how much the two attributes tell about one another in those rows, from 0 to 1.
        origin: What it was made from.
    """

    mean: Tensor
    written: Tensor
    table: Mapping[str, tuple[Value, ...]]
    method: Method = "mean"
    counts: tuple[int, ...] = ()
    dependence: Mapping[str, float] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)

    @staticmethod
    def of_rows(
        rows: Tensor, attributes: Attributes, method: Method = "mean", *, allow_dependent: bool = False, origin: Origin | None = None
    ) -> SupervisedDictionary:
        """Directions from rows `row d_in` and what is known of each.

        Args:
            rows: Rows of one site, of one role: the last token of each prompt, say.
            attributes: Attribute → a value for each row.
            method: `mean`: u_{a,v} = E[x | a = v] − E[x], exact where attributes are independent. `mse`: least squares of the one-hot
                design, centred within each attribute so that the mean row stays the mean.
            allow_dependent: Take means though attributes tell about one another.
            origin: The site and the model, for analyses that splice.

        Raises:
            InputError: Attributes do not fit the rows, tell too much about one another for means (Cramér's V of 0.3 or more), or cannot be
                told apart by least squares; or another method.
            NotFinite: NaN or infinity in a row.

        Source:
            Makelov, Lange & Nanda 2024, Towards Principled Evaluations of Sparse Autoencoders, arXiv:2405.08366, section 3.

        Differs:
            The paper's attributes are independent by its choice of prompts; here that is measured, and means of dependent ones are refused.
        """
        if method not in ("mean", "mse"):
            raise unknown("way to make supervised features", method, ("mean", "mse"))
        if rows.ndim != 2 or not len(rows):
            raise InputError(f"Supervised features need rows 'row d_model', at least one; got shape {tuple(rows.shape)}.")
        if not bool(rows.isfinite().all()):
            raise NotFinite("The rows hold NaN or infinity, of which no mean can be taken. Record in float32 or bfloat16.")
        known = plain(attributes, len(rows))
        table = {name: values_of(column) for name, column in known.items()}
        told = dependence(known)
        strongest = max(told, key=lambda pair: told[pair], default="")
        if method == "mean" and not allow_dependent and told.get(strongest, 0) >= DEPENDENT:
            raise InputError(
                f"{strongest} tell about one another (Cramér's V {told[strongest]:.2f}), so the mean rows of one hold part of the other and "
                "their sum counts it twice. Use method='mse', or choose rows in which they are independent; allow_dependent=True takes them so."
            )
        design = np.concatenate([one_hot(known[name], values) for name, values in table.items()], 1)
        exact = rows.detach().double().cpu().numpy()
        counts = design.sum(0)
        mean = exact.mean(0)
        shifts = design.T @ (exact - mean) / counts[:, None] if method == "mean" else _least_squares(design, exact - mean, table)
        made = torch.from_numpy(shifts).to(rows.dtype), torch.from_numpy(mean).to(rows.dtype)
        return SupervisedDictionary(made[1], made[0], table, method, tuple(int(c) for c in counts), told, origin or Origin())

    @property
    def d_in(self) -> int:
        return self.written.shape[1]

    @property
    def directions(self) -> Tensor:
        return self.written

    @property
    def names(self) -> tuple[str, ...]:
        """What each feature stands for, `io=Anna`."""
        return tuple(f"{name}={value}" for name, values in self.table.items() for value in values)

    def span(self, attribute: str) -> slice:
        """Where the features of an attribute stand.

        Raises:
            UnknownName: It has no such attribute.
        """
        if attribute not in self.table:
            raise unknown("attribute of this dictionary", attribute, self.table)
        before = 0
        for name, values in self.table.items():
            if name == attribute:
                return slice(before, before + len(values))
            before += len(values)
        raise AssertionError

    def encode(self, x: Tensor, features: Sequence[int] | None = None) -> Tensor:
        """Codes `row feature`, 1 for one value of each attribute, else 0: the one whose mean row is nearest; of equal ones the first.

        The attribute that writes most is read off first, and what was read off is taken away before the next; then each is read again
        with all others taken away, so that what others write is less in its way. Where values are known, `of_values` is exact.
        """
        self.check_rows(x)
        left = x.to(self.dtype) - self.mean
        codes = left.new_zeros(len(x), self.width)
        for _ in range(SWEEPS):
            for here in self._by_size:
                written = self.written[here]
                left = left + codes[:, here] @ written
                # ‖left − u‖² less ‖left‖², which is the same for all values.
                nearest = (written.square().sum(1) - 2 * left @ written.T).argmin(1)
                codes[:, here] = torch.nn.functional.one_hot(nearest, len(written)).to(codes.dtype)
                left = left - written[nearest]
        return codes if features is None else codes[:, list(features)]

    @property
    def _by_size(self) -> list[slice]:
        """Where the features of each attribute stand, that which writes most first."""
        spans = [self.span(name) for name in self.table]
        weight = self.written.new_tensor(self.counts) if self.counts else self.written.new_ones(self.width)
        size = [float((weight[s] * self.written[s].square().sum(1)).sum() / weight[s].sum()) for s in spans]
        return [spans[i] for i in sorted(range(len(spans)), key=lambda i: -size[i])]

    def decode(self, feature_acts: Tensor | Codes) -> Tensor:
        """Mean row plus directions times codes, `row d_in`."""
        codes = feature_acts.dense() if isinstance(feature_acts, Codes) else feature_acts
        return codes.to(self.dtype) @ self.written + self.mean

    def of_values(self, attributes: Attributes) -> Tensor:
        """Codes `row feature` of rows whose values are known.

        Raises:
            InputError: An attribute is missing, or a value was not among the rows it was made from; the message lists those that were.
        """
        known = plain(attributes, len(next(iter(attributes.values()), ())))
        parts = []
        for name, values in self.table.items():
            if name not in known:
                raise InputError(
                    f"Attribute {name!r} is not given; this dictionary has {', '.join(self.table)}. Give a value for each row."
                )
            strange = next((v for v in known[name] if v not in values), None)
            if strange is not None:
                shown = ", ".join(map(str, values[:12])) + (", …" if len(values) > 12 else "")
                raise InputError(
                    f"{name} = {strange!r} was not among the rows of this dictionary; it knows {shown}. Make it from more rows."
                )
            parts.append(one_hot(known[name], values))
        return torch.from_numpy(np.concatenate(parts, 1)).to(self.dtype)

    def edit(self, x: Tensor, before: Attributes, after: Attributes, *, project: bool = False) -> Tensor:
        """Rows with other values: x − u_{a,v} + u_{a,v'} for each attribute that differs.

        Args:
            x: Rows `row d_in`.
            before: Attribute → the value of each row.
            after: Attribute → the value wanted.
            project: Take away all that (x − mean) has along u_{a,v}, rather than u_{a,v} itself, before u_{a,v'} is added.
        """
        self.check_rows(x)
        known, wanted = plain(before, len(x)), plain(after, len(x))
        old, new = self.of_values(known), self.of_values(wanted)
        x = x.to(self.dtype)
        if not project:
            return x + (new - old) @ self.written
        for name in self.table:
            here = self.span(name)
            differs = torch.tensor([a != b for a, b in zip(known[name], wanted[name], strict=True)], device=x.device)[:, None]
            gone = torch.nn.functional.normalize(old[:, here] @ self.written[here], dim=1)
            left = x - ((x - self.mean) * gone).sum(1, keepdim=True) * gone
            x = torch.where(differs, left + new[:, here] @ self.written[here], x)
        return x

    def save(self, path: str | Path) -> Path:
        """Write it into one safetensors file, whole or not at all; words and origin stand in its head."""
        from safetensors.torch import save_file

        path = Path(path)
        words = {
            "table": {name: list(values) for name, values in self.table.items()},
            "method": self.method,
            "counts": list(self.counts),
            "dependence": dict(self.dependence),
            "origin": self.origin.to_json(),
        }
        temporary = path.with_name(path.name + ".part")
        tensors = {"mean": self.mean.contiguous().cpu(), "written": self.written.contiguous().cpu()}
        save_file(tensors, temporary, metadata={"supervised": json.dumps(words)})
        temporary.replace(path)
        return path

    @staticmethod
    def load(path: str | Path) -> SupervisedDictionary:
        """Read what `save` wrote.

        Raises:
            InputError: The file holds no supervised dictionary, or its parts do not fit together.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                words = json.loads((file.metadata() or {})["supervised"])
                mean, written = file.get_tensor("mean"), file.get_tensor("written")
        except (SafetensorError, KeyError, OSError) as error:
            raise InputError(f"{Path(path).name} holds no supervised dictionary: {error}. Write one with dictionary.save(path).") from error
        table = {name: tuple(values) for name, values in words["table"].items()}
        if written.shape != (sum(map(len, table.values())), len(mean)):
            raise InputError(f"{Path(path).name}: its values and directions do not fit together. Make the dictionary again.")
        origin = Origin.of_json(words["origin"])
        return SupervisedDictionary(mean, written, table, words["method"], tuple(words["counts"]), words["dependence"], origin)


def _least_squares(design: np.ndarray, centred: np.ndarray, table: Mapping[str, tuple[Value, ...]]) -> np.ndarray:
    """Directions of all attributes at once, with mean zero over the rows within each attribute."""
    wanted = 1 + sum(len(values) - 1 for values in table.values())
    found, _, rank, _ = np.linalg.lstsq(np.concatenate([np.ones((len(design), 1)), design], 1), centred, rcond=None)
    if rank < wanted:
        raise InputError(
            f"These attributes cannot be told apart: {wanted} numbers are asked for and the rows hold {rank} independent ones (one attribute may "
            "follow from others, or there are too few rows). Leave one out, or give more rows."
        )
    shifts, counts, first = found[1:], design.sum(0), 0
    for values in table.values():
        here = slice(first, first + len(values))
        shifts[here] -= counts[here] @ shifts[here] / counts[here].sum()
        first = here.stop
    return shifts
