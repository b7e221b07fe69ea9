"""What was read: `Activations` (one site, named axes, a row index) and `Recording` (site → Activations)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from activarium._parts import Part, Tile, blocks, cut, device, load, stacked, tile
from activarium.errors import AxisError, CapacityError, InputError, unknown
from activarium.rows import Rows

if TYPE_CHECKING:
    import jax


AXES = frozenset(
    "batch layer head position row example query key d_model d_head d_mlp vocab feature class "
    "height width channel expert slot pair step".split()
)
BUDGET = 4 << 30  # bytes that `need` may bring into memory at once


class Activations:
    """The values of one site, or of a layer-wise stack of sites, with named axes.

    In memory it is one tensor; from a store it holds shard slices that are read when asked for. Sites that belong to
    an example rather than to a row (attention patterns) hold one part per example.

    Attributes:
        site: Where it was read, `blocks.3.mlp.post`; for a stack the pattern that was asked for.
        axes: Axis names of `need()`.
        labels: Names along an axis, where there are any.
        index: The row table of its row space: example, position, token, kind, … per row.
        space: Name of that row space.
        provenance: Model, data and settings it came from.
    """

    def __init__(
        self,
        values: Tensor | Part | Sequence[Tensor | Part],
        axes: str | Sequence[str],
        *,
        site: str = "",
        labels: Mapping[str, Sequence[str]] | None = None,
        index: Rows | None = None,
        space: str = "",
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.axes = tuple(axes.split()) if isinstance(axes, str) else tuple(axes)
        self._parts: list[Tensor | Part] = list(values) if isinstance(values, (list, tuple)) else [values]  # type: ignore[list-item]
        self.site, self.labels, self.index, self.space = site, dict(labels or {}), index, space
        self.provenance = provenance if provenance is not None else {}
        self._members: tuple[Activations, ...] = ()
        self._check()

    def _check(self) -> None:
        strange = [a for a in self.axes if a not in AXES]
        if strange:
            raise unknown("axis", strange[0], sorted(AXES))
        for part in self._parts:
            if len(part.shape) != len(self.axes):
                shape = tuple(part.shape)
                raise AxisError(
                    f"{self.site or 'Values'} of shape {shape} have {len(shape)} axes; {' '.join(self.axes)!r} name {len(self.axes)}."
                )

    @classmethod
    def stack(cls, members: Sequence[Activations], names: Sequence[str], site: str) -> Activations:
        """Sites of the same shape as one, with a leading `layer` axis; nothing is copied before it is asked for."""
        first = members[0]
        for member in members[1:]:
            if member.axes != first.axes or member.shape != first.shape:
                raise AxisError(
                    f"{first.site} has shape {first.shape}, {member.site} has {member.shape}: they cannot be stacked. Ask for one row space at a time."
                )
        parts = [stacked([m._parts[i] for m in members]) for i in range(len(first._parts))]
        made = cls(
            parts,
            ("layer", *first.axes),
            site=site,
            labels=first.labels | {"layer": list(names)},
            index=first.index,
            space=first.space,
            provenance=first.provenance,
        )
        made._members = tuple(members)
        return made

    @property
    def ragged(self) -> bool:
        """True where every example has its own size (patterns): use `.example(e)` or `.padded()`."""
        return "row" not in self.axes and "query" in self.axes and len(self._parts) > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis; rows of all parts together. For ragged sites the first axis of the answer is the number of examples."""
        if self.ragged:
            return (len(self._parts), *(int(max(p.shape[i] for p in self._parts)) for i in range(len(self.axes))))
        sizes = list(self._parts[0].shape)
        along = self._along
        sizes[along] = sum(int(p.shape[along]) for p in self._parts)
        return tuple(int(n) for n in sizes)

    @property
    def _along(self) -> int:
        return next((self.axes.index(a) for a in ("row", "example") if a in self.axes), 0)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers as they were captured."""
        return self._parts[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes that all of it takes in memory."""
        return sum(int(np.prod(p.shape)) for p in self._parts) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._parts) if self.ragged else self.shape[self._along]

    def layers(self) -> dict[str, Activations]:
        """The members of a stack by layer name; a single site is its own only layer."""
        if not self._members:
            return {self.site: self}
        return dict(zip(self.labels["layer"], self._members, strict=True))

    def batches(self) -> Iterator[Tensor]:
        """The parts one after the other, each brought into memory on its own. Analyses that scale use this."""
        for part in self._parts:
            yield load(part)

    def need(self, axes: str, *, budget: int = BUDGET) -> Tensor:
        """All of it as one tensor with exactly these axes; no copy if it is one tensor already.

        Raises:
            AxisError: The axes are others; the message shows both.
            CapacityError: It would take more than `budget` bytes.
        """
        if tuple(axes.split()) != self.axes or self.ragged:
            have = " ".join(self.axes)
            hint = "Ask for one example with .example(e), or for .padded()." if self.ragged else _axis_hint(axes.split(), self.axes)
            raise AxisError(f"This needs axes {axes!r}; {self.site or 'it'} has {have!r} with shape {self.shape}.\n           {hint}")
        if self.nbytes > budget and not isinstance(self._parts[0], Tensor):
            raise CapacityError(
                f"{self.site} takes {self.nbytes:,} bytes, more than the budget of {budget:,}. Go through .batches(), or pass budget={self.nbytes}."
            )
        return load(self._parts[0]) if len(self._parts) == 1 else torch.cat(list(self.batches()), dim=self._along)

    @property
    def tensor(self) -> Tensor:
        """All of it as one tensor, axes as in `.axes`."""
        return self.need(" ".join(self.axes))

    def numpy(self) -> np.ndarray:
        """All of it for numpy; bfloat16 becomes float32, exactly."""
        values = self.tensor.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()

    def jax(self) -> jax.Array:
        """All of it for JAX."""
        import jax.numpy

        return jax.numpy.asarray(self.numpy())

    def rows(self, index: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The chosen rows, in the order asked for; only the parts that hold them are read."""
        if self._members:
            return torch.stack([m.rows(index) for m in self._members])
        wanted = torch.as_tensor(np.asarray(index), dtype=torch.long)
        total = len(self)
        if wanted.numel() and (int(wanted.min()) < 0 or int(wanted.max()) >= total):
            raise InputError(f"{self.site} has rows 0 to {total - 1}; asked for {int(wanted.min())} to {int(wanted.max())}.")
        along, start, pieces, places = self._along, 0, [], []
        for part in self._parts:
            size = int(part.shape[along])
            here = ((wanted >= start) & (wanted < start + size)).nonzero().flatten()
            if len(here):
                pieces.append(load(part).index_select(along, (wanted[here] - start).to(device(part))))
                places.append(here)
            start += size
        if not pieces:
            return load(self._parts[0]).narrow(along, 0, 0)
        order = torch.cat(places).argsort()
        return torch.cat(pieces, dim=along).index_select(along, order.to(pieces[0].device))

    def example(self, example: int, *, heads: int | slice | None = None, queries: int | slice | None = None) -> Activations:
        """The rows (or the pattern) of one example.

        Args:
            example: Its number.
            heads: Only these heads of a pattern or of scores.
            queries: Only these query positions of them. Neither is calculated before `.tensor` is asked for, and then alone.

        Raises:
            AxisError: `heads` or `queries` of a site that has no pattern.
            InputError: There is no such example, head or query.
        """
        if self.index is None:
            raise InputError(f"{self.site or 'These activations'} have no row index, so there is no example {example}.")
        span = self.index.span(example)
        if (heads is not None or queries is not None) and self.axes[-3:] != ("head", "query", "key"):
            raise AxisError(f"{self.site} has axes {' '.join(self.axes)!r}: heads= and queries= choose from 'head query key' only.")
        if "query" in self.axes:
            return self._pattern(example, heads, queries)
        values = self.rows(np.arange(span.start, span.stop))
        index = self.index.take(span)
        return Activations(values, self.axes, site=self.site, labels=self.labels, index=index, space=self.space, provenance=self.provenance)

    def _pattern(self, example: int, heads: int | slice | None, queries: int | slice | None) -> Activations:
        assert self.index is not None
        names = [str(t) for t in self.index["text"][self.index.span(example)]]
        part = self._parts[self.index.examples.index(example)]
        *_, query, key = part.shape
        asking = _as_slice(queries, query, "queries")
        labels = self.labels | ({"query": names[asking]} if query == len(names) else {}) | ({"key": names} if key == len(names) else {})
        if heads is not None or queries is not None:
            part = cut(part, _as_slice(heads, part.shape[-3], "heads"), asking)
        return Activations(part, self.axes, site=self.site, labels=labels, provenance=self.provenance)

    def tiles(self, queries: int = 256, *, heads: int = 1) -> Iterator[Tile]:
        """Patterns or scores of every example, a few heads and queries at a time, so that none is ever held whole.

        A tile takes `heads × queries × keys` numbers; of a stack, as many for each layer.

        Args:
            queries: Most query positions in a tile.
            heads: Most heads in a tile.

        Raises:
            AxisError: The site is no pattern and no scores.
            InputError: The tile is empty, or an example was chosen already.

        Example:
            >>> import activarium as act
            >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
            >>> pattern = model.run(["the cat sat on the book"], read="blocks.0.attn.pattern")["blocks.0.attn.pattern"]
            >>> sum(float(tile.values[..., 0].sum()) for tile in pattern.tiles(queries=4)) > 1  # what the first token is given
            True
        """
        if "query" not in self.axes or self.axes[-3:] != ("head", "query", "key"):
            raise AxisError(f"{self.site} has axes {' '.join(self.axes)!r}: only 'head query key' comes in tiles. Use .batches().")
        if self.index is None:
            raise InputError(f"{self.site or 'These activations'} have no row index; ask for tiles before choosing an example.")
        if queries < 1 or heads < 1:
            raise InputError(f"A tile of {queries} queries and {heads} heads holds nothing; ask for at least one of each.")
        for example, part in zip(self.index.examples, self._parts, strict=True):
            for chosen in blocks(part.shape[-3], heads):
                for asking in blocks(part.shape[-2], queries):
                    yield Tile(example, chosen, asking, tile(part, chosen, asking))

    def padded(self) -> tuple[Tensor, Tensor]:
        """Ragged examples as one dense tensor `example … query key` and its boolean mask of real cells; zero elsewhere."""
        if "query" not in self.axes:
            raise AxisError(f"{self.site} has axes {' '.join(self.axes)!r}: only per-example sites (patterns, scores) are padded.")
        parts = [load(p) for p in self._parts]
        sizes = [max(p.shape[i] for p in parts) for i in range(len(self.axes))]
        values = parts[0].new_zeros((len(parts), *sizes))
        mask = torch.zeros((len(parts), *sizes), dtype=torch.bool, device=values.device)
        for i, part in enumerate(parts):
            corner = (i, *(slice(0, n) for n in part.shape))
            values[corner], mask[corner] = part, True
        return values, mask

    def mean(self, axis: str) -> Activations:
        """Average over one axis (in float64 for row counts that grow)."""
        if axis not in self.axes:
            raise AxisError(f"There is no axis {axis!r} to average; {self.site} has {' '.join(self.axes)!r}.")
        at = self.axes.index(axis)
        rest = tuple(a for a in self.axes if a != axis)
        labels = {a: v for a, v in self.labels.items() if a != axis}
        whole = at == self._along and axis == "row"
        values: Any = self.tensor.double().mean(at) if whole else [load(p).mean(at) for p in self._parts]
        return Activations(
            values, rest, site=self.site, labels=labels, index=None if whole else self.index, space=self.space, provenance=self.provenance
        )

    def __repr__(self) -> str:
        kind = "ragged " if self.ragged else ""
        return f"Activations({self.site!r}, {' '.join(self.axes)!r}, {kind}shape {self.shape}, {str(self.dtype).removeprefix('torch.')})"


def _as_slice(chosen: int | slice | None, size: int, what: str) -> slice:
    if isinstance(chosen, slice):
        if (chosen.step or 1) < 1:
            raise InputError(f"{what}={chosen} goes backwards; choose with a step of 1 or more.")
        return chosen
    if chosen is not None and not -size <= chosen < size:
        raise InputError(f"{what}={chosen} is none of the {size} {what}; they count from 0.")
    return slice(None) if chosen is None else slice(chosen, chosen + 1 or None)


def _axis_hint(wanted: Sequence[str], have: Sequence[str]) -> str:
    extra = [a for a in have if a not in wanted]
    if extra and [a for a in have if a in wanted] == list(wanted):
        return f"Average the extra axis first: .mean({extra[0]!r})."
    if "layer" in wanted and "layer" not in have:
        return "Ask the recording for a stack of sites: rec['blocks.*.…']."
    return "Choose another site, or arrange the tensor with einops."
