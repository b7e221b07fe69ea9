"""In the seat of the attention kernels: queries and keys are edited and read; edited patterns are calculated here."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from activarium.attention import AttentionSpec, pattern_of, repeat_heads, scores_of, visible
from activarium.capture._interface import Kernel
from activarium.capture._masks import Span, describe
from activarium.edits import Edit, row_mask
from activarium.errors import InputError

if TYPE_CHECKING:
    from activarium.capture._session import Session


class Seat:
    """What one forward wants from its attention kernels, and does to them.

    Attributes:
        specs: `blocks.3.attn` → how its pattern follows from its queries and keys.
        edited: `blocks.3.attn` → `scores` and `pattern` after edits, one tensor `head query key` per example.
        partial: Attention whose earlier keys came from a cache, so that its pattern does not follow from what was read.
        eager: Attention that was calculated here, because its scores or pattern are edited; all others kept their kernel.
        keys: Edited keys of earlier steps, where keys come from a cache that holds them unedited.
    """

    def __init__(self, session: Session, watch: bool, keys: dict[str, Tensor] | None) -> None:
        # The session holds its seat; held in turn, it would keep what it read until a garbage collection.
        self._session, self.model, self._watch = weakref.ref(session), session.model, watch
        self.specs: dict[str, AttentionSpec] = {}
        self.edited: dict[str, dict[str, list[Tensor]]] = {}
        self.partial: set[str] = set()
        self.eager: list[str] = []
        self.keys = {} if keys is None else keys
        self.reads: set[str] = set()
        self._edits: dict[str, list[Edit]] = {}
        self._turns: dict[str, int] = {}

    @property
    def session(self) -> Session:
        """The forward this seat belongs to."""
        session = self._session()
        assert session is not None, "a seat outlives its session only in a bug"
        return session

    def edit(self, name: str, edit: Edit) -> None:
        """Plan an edit of queries, keys, scores or a pattern."""
        self.check(name, edit)
        self._edits.setdefault(name, []).append(edit)

    def check(self, name: str, edit: Edit) -> None:
        """Patterns have keys where other sites have features."""
        if name.rpartition(".")[2] in ("scores", "pattern") and edit.where.features is not None:
            raise InputError(f"{name} has no features; choose keys of {name} by their position: Where(keys=…).")

    @property
    def taken(self) -> bool:
        """Does anybody want anything here?"""
        rules = self.session.rules
        return bool(self._watch or self.reads or self._edits or (rules and rules.seated))

    @property
    def wanted(self) -> tuple[list[str], list[str]]:
        """Sites that must be read, and those that must be edited, once each."""
        return list(self.reads), list(self._edits)

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kernel: Kernel, options: dict[str, Any]
    ) -> Any:
        """Called in the place of every attention kernel: edits and reads q and k, then calls the kernel itself."""
        path = self.model.path_of(module)
        turn = self._turns[path] = self._turns.get(path, -1) + 1
        name = self.model.attention_name(path, turn)
        if name is None:
            return kernel(module, q, k, v, mask, **options)
        q, k, v = self._rotated(f"{name}.q_rot", q), self._rotated(f"{name}.k_rot", k), self._rotated(f"{name}.v", v)
        changing, spans, rules = self._changing(name), [], self.session.rules
        explicit = rules is not None and rules.explicit
        if changing or explicit or self._watch or {f"{name}.q_rot", f"{name}.k_rot"} & self.reads:
            spans = self._spans(name, k.shape[2])
            if k.shape[2] != self.session.cells(self.model.sites[f"{name}.k_rot"].rows)[1]:
                self.partial.add(name)
            spec = describe(module, q, k, mask, options, self.model.eager, spans)
            self.specs[name] = replace(spec, edited=bool(changing))
        self.session.stop_at(f"{name}.q_rot", f"{name}.k_rot", f"{name}.v")
        if rules is not None:
            q, k, v = rules.attended(path, q, k, v)
        z, weights = (self._eagerly(name, q, k, v, spans, changing), None) if changing else kernel(module, q, k, v, mask, **options)
        if rules is not None and explicit:
            z = rules.mixed(path, z, q, k, v, self.specs[name], spans)
        z = self._rotated(f"{name}.z", z.transpose(1, 2)).transpose(1, 2)
        self.session.stop_at(f"{name}.z")
        return z, weights

    def _spans(self, name: str, keys: int) -> list[Span]:
        queries, stored = (self.model.sites[f"{name}.{n}_rot"].rows for n in "qk")
        return self.session.batch.spans(queries, stored, keys)

    # --- queries and keys

    def _rotated(self, name: str, value: Tensor) -> Tensor:
        """Edit and read the rows of this forward; keys from a cache stand before them."""
        edits = [e for e in self._edits.get(name, ()) if not e.idle]
        if name in self._edits or name in self.reads:
            self.session.fired[name] += 1
        if not edits and name not in self.reads:
            return value
        space = self.model.sites[name].rows
        past = value.shape[2] - self.session.cells(space)[1]
        new = value[:, :, past:] if past else value
        for edit in edits:
            new = self.session.change(new.transpose(1, 2), edit, space).transpose(1, 2)
        if past and edits:
            # The cache holds keys as they were before the edits, so those of earlier steps are remembered here.
            before = self.keys.get(name, value[:, :, :past])
            value = torch.cat([before[:, :, -past:], new], 2)
        elif edits:
            value = new
        if edits and name.endswith(("k_rot", ".v")):
            self.keys[name] = value
        if name in self.reads:
            # A part of a longer tensor would keep all of it alive.
            value = self.session.read(name, value) if not past else value
            if past:
                self.session.read(name, new.clone())
        return value

    # --- scores and patterns

    def _changing(self, name: str) -> list[Edit]:
        """Edits of this attention that change something in this forward."""
        found = []
        for leaf in ("scores", "pattern"):
            edits = self._edits.get(f"{name}.{leaf}", [])
            if edits:
                self.session.fired[f"{name}.{leaf}"] += 1
            space = self.model.sites[f"{name}.q_rot"].rows
            found += [e for e in edits if not e.idle and self.session.touches(e, space)]
        return found

    def _eagerly(self, name: str, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], edits: Sequence[Edit]) -> Tensor:
        """What the kernel would give, `example row head d_head`, with scores and pattern edited on the way."""
        self.eager.append(name)
        spec, space = self.specs[name], self.model.sites[f"{name}.q_rot"].rows
        table, own = self.session.table(space), self.model.sites[f"{name}.k_rot"].rows == space
        mixed = v.new_zeros((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))
        kept: dict[str, list[Tensor]] = {"scores": [], "pattern": []}
        for span, example in zip(spans, table.examples, strict=True):
            asking = table.take(table.span(example))
            last = max(int(asking["position"][-1]) + 1 if own else 0, span.sizes[1])
            change = _Change(asking, np.arange(last - span.sizes[1], last), last)
            local = _cut(spec, span)
            scores = scores_of(q[span.row, :, span.queries].transpose(0, 1), k[span.row, :, span.keys].transpose(0, 1), local)
            hidden = scores == -torch.inf
            for edit in (e for e in edits if _leaf(e) == "scores"):
                # Hidden keys stay hidden, or an edit could let a text see its future.
                scores = change(scores.masked_fill(hidden, 0), edit).masked_fill(hidden, -torch.inf)
            pattern = pattern_of(scores, local)
            for edit in (e for e in edits if _leaf(e) == "pattern"):
                pattern = change(pattern, edit).masked_fill(hidden, 0)
            values = repeat_heads(v[span.row, :, span.keys].transpose(0, 1), q.shape[1])
            z = torch.einsum("hqk,khd->qhd", pattern.to(v.dtype), values)
            mixed = mixed.index_put((torch.tensor(span.row), torch.arange(span.queries.start, span.queries.stop)), z)
            kept["scores"].append(scores)
            kept["pattern"].append(pattern)
        if self._watch:
            self.edited[name] = kept
        return mixed

    def tiles(self, raw: Tensor, edit: Edit, space: str) -> Tensor:
        """Scores or patterns that the model computed itself, `example head query key`, with one edit; hidden keys stay hidden."""
        block, _, leaf = edit.site.rpartition(".")  # type: ignore[attr-defined]
        spec, new, table = getattr(self.model.anatomy, "attention", {}).get(block), raw.clone(), self.session.table(space)
        for row, example in enumerate(table.examples):
            asking = table.take(table.span(example))
            own = (row, slice(None), slice(0, len(asking)), slice(0, len(asking)))
            part, keys = raw[own], range(len(asking))
            # A key that no head looks at is hidden, by a window that the model does not tell of.
            seen = (part != 0).any(0) if spec is None else visible(keys, keys, spec, raw.device)
            hidden = part <= torch.finfo(part.dtype).min / 2 if leaf == "scores" else ~seen.expand_as(part)
            changed = _Change(asking, np.arange(len(asking)), len(asking))(part.masked_fill(hidden, 0), edit)
            new[own] = torch.where(hidden, part, changed)
        if block in self.specs:
            self.specs[block] = replace(self.specs[block], edited=True)
        return new


class _Change:
    """Applies edits to one example's `head query key`, at the queries, keys and heads they name."""

    def __init__(self, asking: Any, keys: np.ndarray, last: int) -> None:
        self._asking, self._keys, self._last = asking, keys, last

    def __call__(self, values: Tensor, edit: Edit) -> Tensor:
        where, rows = edit.where, self._asking
        lengths = np.full(len(rows), int(rows["position"][-1]) + 1)
        queries = torch.as_tensor(np.flatnonzero(row_mask(where, rows, lengths)), device=values.device)
        keys = np.arange(len(self._keys))
        if where.keys is not None:
            keys = np.flatnonzero(np.isin(self._keys, where.keys) | np.isin(self._keys - self._last, where.keys))
        if not len(queries) or not len(keys):
            return values
        cells = (slice(None), queries[:, None], torch.as_tensor(keys, device=values.device)[None])
        old = values[cells]
        new = edit.change(old)
        if where.heads is not None:
            heads = torch.zeros(len(values), dtype=torch.bool, device=values.device)
            heads[list(where.heads)] = True
            new = torch.where(heads[:, None, None], new, old)
        changed = values.clone()
        changed[cells] = new
        return changed


def _leaf(edit: Edit) -> str:
    return edit.site.rpartition(".")[2]  # type: ignore[attr-defined]


def _cut(spec: AttentionSpec, span: Span) -> AttentionSpec:
    """The description of one example, its bias and mask cut to its real rows."""
    mask = None
    if spec.mask is not None:
        mask = spec.mask[min(span.row, len(spec.mask) - 1)][None, :, span.queries, span.keys]
    bias = None if spec.bias is None else spec.bias[:, span.queries, span.keys]
    return replace(spec, bias=bias, mask=mask)
