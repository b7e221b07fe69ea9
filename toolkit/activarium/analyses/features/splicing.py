"""A dictionary in the place of a site: edits that write its reconstruction, keep its error, or ablate the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from activarium.dictionaries import FeatureDictionary
from activarium.edits import EVERYWHERE, Edit, Replace, Where, Zero
from activarium.errors import InputError, OtherModel
from activarium.rows import KINDS

# Codes `row feature` to the codes that are written in their place.
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Splice:
    """Where a dictionary stands in a model, and which rows it is given; every edit that it makes touches just these rows.

    Attributes:
        dictionary: Reads `site` and writes `target`.
        site: What it reads.
        target: What it writes: the same site, but for a transcoder.
        where: The rows.
    """

    dictionary: FeatureDictionary
    site: str
    target: str
    where: Where = EVERYWHERE

    def reconstruction(self, change: Change | None = None) -> list[Edit]:
        """The site holds what the dictionary makes of it (of the codes after `change`), and its error is gone."""
        return self.values(lambda x, _: self._made(x, change))

    def with_error(self, change: Change | None = None) -> list[Edit]:
        """The site keeps the dictionary's error as a constant: the same values, and gradients that pass through the codes alone.

        Without `change` (or where it changes nothing) the values stay bit for bit, because the error is put back as
        x + (x̂ − x̂) rather than x̂ + (x − x̂), which would round.
        """

        def kept(x: Tensor, y: Tensor) -> Tensor:
            made = self.dictionary.forward(x)
            return y.detach() + (self._made(x, change) - made.detach() if change else made - made.detach())

        return self.values(kept)

    def zero(self) -> list[Edit]:
        """The site holds zeros."""
        return [Zero(self.target, where=self.where)]

    def mean(self, vector: Tensor) -> list[Edit]:
        """The site holds the same vector in every row: the mean that was measured on other rows."""
        return [Replace(self.target, lambda values: vector.to(values).reshape(values.shape[1:]).expand_as(values), where=self.where)]

    def values(self, function: Callable[[Tensor, Tensor], Tensor]) -> list[Edit]:
        """The site holds what a function makes of the rows that are read and those that are written, `row d_in` and `row d_out`."""
        if self.site == self.target:
            return [Replace(self.site, lambda values: self._written(function, values, values), where=self.where)]
        seen: list[Tensor] = []

        def look(values: Tensor) -> Tensor:
            seen[:] = [values]
            return values

        def put(values: Tensor) -> Tensor:
            if not seen:
                raise InputError(f"{self.target} is computed before {self.site}, so a transcoder cannot write it from there.")
            return self._written(function, seen.pop(), values)

        return [Replace(self.site, look, where=self.where), Replace(self.target, put, where=self.where)]

    def _written(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        there = self.dictionary.directions.device
        made = function(x.flatten(1).to(there), y.flatten(1).to(there))
        return made.to(y.device).reshape(y.shape)

    def _made(self, x: Tensor, change: Change | None) -> Tensor:
        made = self.dictionary.forward(x)
        if change is None:
            return made
        if getattr(getattr(self.dictionary, "design", None), "scaling", "none") != "none":
            raise InputError(
                "This dictionary scales each row before it codes it, so changed codes do not say what is written. Splice without change=."
            )
        codes = self.dictionary.encode(x)
        # What forward adds to the codes' part (a skip) stays; views, so that `change` sees the gradient of its own way alone.
        return made + (self.dictionary.decode(change(codes.view_as(codes))) - self.dictionary.decode(codes))


def splice_of(
    dictionary: FeatureDictionary,
    model: Any,
    *,
    site: str | None = None,
    target: str | None = None,
    exclude: Sequence[str] | None = None,
) -> Splice:
    """Where a dictionary stands in a model, checked.

    Args:
        dictionary: The dictionary.
        model: The model it is put into.
        site: What it reads, if its origin does not say.
        target: What it writes, for a transcoder whose origin does not say.
        exclude: Row kinds that are left as they are; None leaves those that its training left out.

    Raises:
        InputError: No site is known.
        OtherModel: The model has other weights than the dictionary was trained on.
    """
    origin = dictionary.origin
    reads = site or origin.site
    writes = (target or origin.target) if dictionary.transcoder else reads
    if not reads or not writes:
        raise InputError("This dictionary does not say where it stands: its origin has no site, or no target. Give site= (and target=).")
    found = str((getattr(model, "identity", None) or {}).get("weight_hash", ""))
    if origin.weight_hash and found and origin.weight_hash != found:
        raise OtherModel(
            f"The dictionary was trained on {origin.model or 'a model'} with weights {origin.weight_hash[:12]}…; {model.name} has "
            f"{found[:12]}…. Load the model it was trained on, or train another dictionary."
        )
    return Splice(dictionary, reads, writes, where_not(origin.exclude if exclude is None else exclude))


def where_not(exclude: Sequence[str]) -> Where:
    """All rows but those of these kinds."""
    return Where(kinds=tuple(kind for kind in KINDS if kind not in exclude)) if exclude else EVERYWHERE
