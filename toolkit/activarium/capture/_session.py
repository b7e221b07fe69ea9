"""One run: hooks on just the modules that are needed, edits before reads, everything removed however it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from activarium.attention import DERIVED
from activarium.capture._cuts import read_cut, replace_first, write_cut
from activarium.capture._inputs import Batch, example_rows
from activarium.capture._kernel import Seat
from activarium.capture._rules import BoundRules
from activarium.capture._sites import Place, Site
from activarium.capture._trace import first_tensor
from activarium.edits import Edit, SkipBlock, row_mask
from activarium.errors import InputError, SilentHook
from activarium.rows import Rows

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

Keep = Callable[[str, Tensor], Tensor]  # site and value as it is read → what is kept in its stead


class Stop(Exception):  # not an error: it ends a forward that has given all that was asked
    """Raised inside the forward once `stop_after` was read."""


class Session:
    """Everything one forward needs and everything it gave.

    Attributes:
        raw: Site name → the tensor as the module made it (after edits), in the autograd graph if there is one.
        fired: How often each tap fired.
        turns: How often each side of each module was passed.
        rules: Relevance rules of this forward, if any.
        seat: What happens in the place of the attention kernels.
    """

    def __init__(
        self,
        model: TorchRunner,
        batch: Batch,
        reads: Sequence[str],
        edits: Sequence[Edit],
        *,
        grad: bool,
        stop_after: str | None,
        watch: bool,
        keep: Keep | None = None,
        edited_keys: dict[str, Tensor] | None = None,
        rules: BoundRules | None = None,
    ) -> None:
        self.model, self.batch, self.grad, self.rules = model, batch, grad, rules
        self.stop_after = stop_after
        # Edits and gradients need the tensors themselves, not what somebody keeps of them.
        self.keep = None if edits or grad else keep
        self.raw: dict[str, Tensor] = {}
        self.fired: Counter[str] = Counter()
        self.seat = Seat(self, watch, edited_keys)
        self.turns: Counter[tuple[str, str]] = Counter()
        self._taps: dict[tuple[str, str], list[_Tap]] = {}
        for edit in edits:
            self._plan_edit(edit)
        for name in reads:
            self._plan_read(name)
        if stop_after is not None:
            self._plan_read(stop_after)

    # --- what is needed

    def _plan_read(self, name: str) -> None:
        site = self.model.site(name)
        if site.kind == "rotary":
            self.seat.reads.add(site.name)
        elif site.kind in ("place", "module"):
            self._tap(site.place, site.name).reads = True

    def _plan_edit(self, edit: Edit) -> None:
        if isinstance(edit, SkipBlock):
            return self._plan_skip(edit)
        site = self.model.site(edit.site)  # type: ignore[attr-defined]
        short = site.name.rpartition(".")[2]
        if short == "head_out" or site.kind == "answer":
            raise InputError(f"{site.name} is derived and can only be read. Edit what it is made of: pattern, v or z.")
        self._check_heads(site, edit)
        if site.kind == "rotary" or short in DERIVED:
            if site.kind == "place":  # a model that computes its patterns where they can be changed
                self._tap(site.place, site.name).edits.append((edit, None))
                return self.seat.check(site.name, edit)
            return self.seat.edit(site.name, edit)
        if edit.where.keys is not None:
            raise InputError(f"{site.name} has no keys; Where(keys=…) chooses in scores and patterns. Choose rows with positions=….")
        if short in ("resid_mid", "resid_cross") and not self.model.post_norm(site.name):
            return self._plan_sum_edit(site, edit)
        self._tap(site.place, site.name).edits.append((edit, None))
        return None

    def _check_heads(self, site: Site, edit: Edit) -> None:
        if edit.where.heads is None or "head" not in site.axes.split():
            return
        stem, _, leaf = site.name.rpartition(".")
        queries = next((n for n in (f"{stem}.q_rot", f"{stem}.q") if n in self.model.sites), site.name)
        count = self.model.sites[queries].shape[0] if leaf in DERIVED else site.shape[0]
        wrong = [h for h in edit.where.heads if not -count <= h < count]
        if wrong:
            raise InputError(f"{site.name} has {count} heads, numbered from 0; Where(heads=…) names {wrong[0]}.")

    def _plan_sum_edit(self, site: Site, edit: Edit) -> None:
        """The sum of stream and write is no module: it is changed through the write, so that the stream goes on with it."""
        stem, _, short = site.name.rpartition(".")
        base = f"{stem}.resid_mid" if short == "resid_cross" else f"{stem}.resid_pre"
        write = self.model.sites.find(f"{stem}.{'cross' if short == 'resid_cross' else 'attn'}.out")
        self._plan_read(base)
        self._tap(write.place, write.name).edits.append((edit, self.model.sites.find(base).name))

    def _plan_skip(self, edit: SkipBlock) -> None:
        where = edit.where
        for chosen in ("heads", "features", "keys"):
            if getattr(where, chosen) is not None:
                raise InputError(
                    f"A row passes {edit.site} whole or not at all; Where({chosen}=…) cannot choose parts of it. "
                    "Choose rows with examples=, positions=, kinds= or phases=."
                )
        entry = self._tap(self.model.block_entry(edit.site), f"skip:{edit.site}")
        entry.reads = True
        post = self.model.sites.find(f"{edit.site}.resid_post")
        self._tap(post.place, post.name).edits.append((edit, entry.name))

    def _tap(self, place: Place | None, name: str) -> _Tap:
        assert place is not None  # only sites that are computed elsewhere, not at a module, have none
        taps = self._taps.setdefault((place.path, place.side), [])
        tap = next((t for t in taps if t.name == name), None)
        if tap is None:
            tap = _Tap(name, place)
            taps.append(tap)
        return tap

    # --- the forward

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks in place; gone afterwards, also on errors and interrupts."""
        handles = []
        with ExitStack() as stack:
            try:
                for (path, side), taps in self._taps.items():
                    module = self.model.module(path)
                    # A sum that enters the MLP without a norm is read where the MLP's input is edited: before that edit.
                    taps.sort(key=lambda t: (not t.name.endswith(("resid_mid", "resid_cross")), not t.edits))
                    if side == "input":
                        handles.append(module.register_forward_pre_hook(self._before(path, taps), with_kwargs=True))
                    else:
                        handles.append(module.register_forward_hook(self._after(path, taps)))
                for handle in self.rules.hooks() if self.rules else ():
                    handles.append(handle)  # one by one: those in place are removed if the next one fails
                if self.seat.taken:
                    stack.enter_context(self.model.kernel(self))
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def _before(self, path: str, taps: list[_Tap]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            turn = self._count(path, "input")
            changed = False
            for tap in taps:
                key = tap.place.argument
                if tap.place.turn != turn:
                    continue
                value = args[key] if isinstance(key, int) else kwargs[key]
                new = self._handle(tap, value)
                if new is not value or (self.grad and tap.place.also):
                    changed = True
                    if tap.name.endswith(".in"):  # a module may take its input in several times, as query, key and value
                        args = tuple(new if a is value else a for a in args)
                        kwargs = {k: new if a is value else a for k, a in kwargs.items()}
                    for k in (key, *tap.place.also):
                        if isinstance(k, int):
                            args = (*args[:k], new, *args[k + 1 :])
                        else:
                            kwargs = {**kwargs, k: new}
            return (args, kwargs) if changed else None

        return hook

    def _after(self, path: str, taps: list[_Tap]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            turn = self._count(path, "output")
            value = first_tensor(output)
            assert value is not None
            new = value
            for tap in taps:
                if tap.place.turn == turn:
                    new = self._handle(tap, new)
            return None if new is value else replace_first(output, new)

        return hook

    def _count(self, path: str, side: str) -> int:
        turn = self.turns[path, side]
        self.turns[path, side] += 1
        return turn

    def _handle(self, tap: _Tap, value: Tensor) -> Tensor:
        """Edit, then read; the value that goes on is returned, the same object if nothing changed."""
        self.fired[tap.name] += 1
        for edit, base in tap.edits:
            if not edit.idle:
                value = self._edited(value, edit, tap, base)
        if self.grad and not value.requires_grad and value.is_floating_point():
            value = value.detach().requires_grad_()
        elif self.grad and tap.reads and tap.name.endswith(".in"):
            # Without a norm before it (BERT) this is the stream's own tensor, whose gradient counts the way past the module as well.
            value = value.view_as(value)
        if tap.reads:
            seen = value.clone() if tap.place.copied else value
            self.raw[tap.name] = seen if self.keep is None else self.keep(tap.name, read_cut(seen, tap.place.cut))
            if tap.name == self.stop_after:
                raise Stop
        return value

    def _edited(self, raw: Tensor, edit: Edit, tap: _Tap, base: str | None) -> Tensor:
        space = self.model.row_space(tap.name, edit)
        if tap.name.rpartition(".")[2] in DERIVED:
            return self.seat.tiles(raw, edit, space)
        view = read_cut(raw, tap.place.cut)
        if isinstance(edit, SkipBlock):
            assert base is not None
            return write_cut(raw, self._skipped(view, self.raw[base].reshape(view.shape), edit, space), tap.place.cut)
        shifted = view if base is None else view + self.raw[base].reshape(view.shape)
        changed = self.change(shifted, edit, space)
        if changed is shifted:
            return raw
        new = changed if base is None else torch.where(changed == shifted, view, changed - self.raw[base].reshape(view.shape))
        return write_cut(raw, new, tap.place.cut)

    def change(self, view: Tensor, edit: Edit, space: str) -> Tensor:
        """Values with one edit applied to the rows it touches; the same object if it touches none."""
        cells = self.touched(edit, space)
        flat = self._flat(view, space)
        if cells is not None and not len(cells):
            return view
        picked = flat if cells is None else flat[cells]
        new = edit.change(picked)
        new = _only(picked, new, edit)
        if cells is None:
            return new.reshape(view.shape)
        return flat.index_put((cells,), new).reshape(view.shape)

    def _skipped(self, left: Tensor, entered: Tensor, edit: SkipBlock, space: str) -> Tensor:
        """What leaves a block, with what entered it at the rows that skip it."""
        if not edit.where.rows_chosen:
            return entered
        cells = self.touched(edit, space)
        assert cells is not None
        if not len(cells):
            return left
        flat = self._flat(left, space)
        return flat.index_put((cells,), self._flat(entered, space)[cells]).reshape(left.shape)

    def _flat(self, view: Tensor, space: str) -> Tensor:
        """Rows lie in two axes `example position`, or in one where a model flattens or pools them."""
        return view.flatten(0, 1) if view.ndim > 2 and tuple(view.shape[:2]) == self.cells(space) else view

    def cells(self, space: str) -> tuple[int, int]:
        """Padded shape `(example, position)` of a row space."""
        if space.endswith("patch"):
            main = space.removesuffix("patch").removesuffix(".")
            count, rows = self.batch.shape[main]
            return count, rows - len(self.batch.inputs.spaces[main].prefix)
        if space == "example":
            return len(self.batch.inputs), 1
        return self.batch.shape[space]

    def table(self, space: str) -> Rows:
        """Row table of a space."""
        if space == "example":
            return example_rows(self.batch.inputs)
        if space.endswith("patch"):
            main = self.batch.rows[space.removesuffix("patch").removesuffix(".")]
            return main.take(np.flatnonzero(main["kind"] == "patch"))
        return self.batch.rows[space]

    def touched(self, edit: Edit, space: str) -> Tensor | None:
        """Padded cells that an edit touches, or None for all of them (without padding)."""
        index = self.batch.index.get(space)
        where = edit.where
        if not where.rows_chosen:
            return index
        rows = self.table(space)
        ends = {e: int(rows["position"][rows.span(e).stop - 1]) + 1 for e in rows.examples}
        last = np.array([ends[int(e)] for e in rows["example"]])
        chosen = torch.as_tensor(np.flatnonzero(row_mask(where, rows, last)))
        return chosen if index is None else index[chosen]

    def touches(self, edit: Edit, space: str) -> bool:
        """Is any row of this forward touched by an edit?"""
        cells = self.touched(edit, space)
        return cells is None or bool(len(cells))

    # --- the attention kernel

    def read(self, name: str, value: Tensor) -> Tensor:
        """Keep what an attention kernel is given; the value that goes on is returned."""
        if self.grad and not value.requires_grad:
            value = value.detach().requires_grad_()
        self.raw[name] = value if self.keep is None else self.keep(name, value)
        return value

    def stop_at(self, *names: str) -> None:
        """End the forward if one of these was the last site wanted."""
        if self.stop_after in names:
            raise Stop

    def check_fired(self) -> None:
        """Every tap fired exactly once.

        Raises:
            SilentHook: One fired another number of times; the message names it.
        """
        taps = [t for taps in self._taps.values() for t in taps]
        reads, edits = self.seat.wanted
        wanted = [t.name for t in taps if t.reads] + reads
        if self.stop_after is None:
            wanted += [t.name for t in taps if t.edits] + edits
        for name in dict.fromkeys(wanted):
            if self.fired[name] != 1:
                times = "did not fire" if not self.fired[name] else f"fired {self.fired[name]} times"
                raise SilentHook(
                    f"{name} {times} in one forward; it should fire once. Nothing that was read is used. See model.certificate."
                )


class _Tap:
    """What happens at one place: edits in order (with the site to add first or to take instead, if any), then perhaps a read."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self.place = name, place
        self.reads = False
        self.edits: list[tuple[Edit, str | None]] = []


def _only(old: Tensor, new: Tensor, edit: Edit) -> Tensor:
    """Restrict a change to the chosen heads and features."""
    where = edit.where
    if where.features is not None:
        keep = torch.zeros(old.shape[-1], dtype=torch.bool, device=old.device)
        keep[list(where.features)] = True
        new = torch.where(keep, new, old)
    if where.heads is not None:
        if old.ndim < 3:
            raise InputError(f"{edit.site} has no head axis, so heads {where.heads} cannot be chosen.")  # type: ignore[attr-defined]
        heads = torch.zeros(old.shape[1], dtype=torch.bool, device=old.device)
        heads[list(where.heads)] = True
        new = torch.where(heads[:, None], new, old)
    return new


def as_rows(raw: Tensor, place: Place | None, cells: tuple[int, int], index: Tensor | None, pooled: bool) -> Tensor:
    """The real rows of a raw tensor, `row …`; a view where there is no padding."""
    view = read_cut(raw, place.cut if place else None)
    if pooled:
        return view
    count, rows = cells
    flat = view.reshape(count * rows, *view.shape[2 if view.shape[:2] == (count, rows) else 1 :])
    return flat if index is None else flat.index_select(0, index.to(flat.device))
