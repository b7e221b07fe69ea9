"""Many variants of one forward at once: which parts of each have to be run, and in what order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from activarium.branches import Branches, run_whole
from activarium.capture._probe import Stack
from activarium.capture._sites import Place
from activarium.capture._staircase import Base, Entry, Walk, base_of
from activarium.capture._tail import answers
from activarium.metrics import Metric

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

SUMS = ("resid_mid",)
ENDS = ("mlp.out",)  # the last thing a pre-norm block adds
Advance = Callable[[int], Any]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass
class Spent:
    """What branches cost: rows that blocks were run on (without the controls), rows of whole forwards, walks, branches not run."""

    block_rows: int = 0
    whole_rows: int = 0
    walks: int = 0
    idle: int = 0


def run_branches(
    model: TorchRunner, inputs: Any, branches: Sequence[Branches], metric: Metric, memory: int, advance: Advance
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """See `TorchRunner.branches`."""
    reason = _unfit(model, branches)
    if reason:
        return run_whole(model, inputs, branches, metric, advance=advance), {"reuse": f"none: {reason}"}
    try:
        return _shared(model, inputs, branches, metric, memory, advance)
    except _Differs as error:
        warnings.warn(f"Every cell is run as a whole forward: {error}.", UserWarning, stacklevel=3)
        return run_whole(model, inputs, branches, metric, advance=advance), {"reuse": f"none: {error}"}


class _Differs(Exception):
    """An untouched example that went along did not come out as it does in a forward."""


def _shared(
    model: TorchRunner, inputs: Any, branches: Sequence[Branches], metric: Metric, memory: int, advance: Advance
) -> tuple[list[np.ndarray], dict[str, Any]]:
    stack = _stack(model, branches)
    entries = [_Way(model, stack, b) for b in branches]
    changed = [changes(b) for b in branches]
    found, spent = [np.full(len(b), np.nan) for b in branches], Spent()
    prefix = _prefix_fits(model, stack)
    lengths = np.stack([inputs.rows_of(s) for s in inputs.data], 1)  # of every row space
    for length in np.unique(lengths, axis=0):
        alike = (lengths == length).all(1)
        members = np.flatnonzero(alike)
        here = [alike[b.example] for b in branches]
        if not any(h.any() for h in here):
            continue
        base = base_of(model, stack, inputs.select(members).numbered(0), metric.select(members), prefix)
        for values, one, h, c in zip(found, branches, here, changed, strict=True):
            idle = h & ~c  # what is replaced by the same bits changes nothing
            values[idle] = base.metric[np.searchsorted(members, one.example[idle])]
            advance(int(idle.sum()))
        some = [np.flatnonzero(h & c) for h, c in zip(here, changed, strict=True)]
        group = _Group(model, stack, base, inputs, members, metric, spent)
        for start, numbers in _starts(branches, some, prefix):
            for chunk in _chunks(entries, numbers, group.room(memory, start)):
                group.run(entries, chunk, start, found)
                advance(sum(map(len, chunk)))
    spent.idle = sum(int((~c).sum()) for c in changed)
    notes = {
        "reuse": "blocks and positions" if prefix else "blocks",
        "block_rows": spent.block_rows,
        "whole_block_rows": spent.whole_rows,
        "walks": spent.walks,
        "idle": spent.idle,
    }
    return found, notes


def _unfit(model: TorchRunner, branches: Sequence[Branches]) -> str:
    """Why these branches have to be run as whole forwards; empty if they need not."""
    stacks = set(model.anatomy.stacks)
    if stacks != set(model._encoder.spaces) or (len(stacks) > 1 and stacks != {"encoder", "decoder"}):
        return "the model has several towers"
    if model._standing:
        return "the model runs with edits"
    if "logits" in model.sites.missing:
        return "the model has no head"
    stack = _stack(model, branches)
    for one in branches:
        short = one.site.removeprefix(stack.prefix)
        if model.sites.find(one.site).rows != stack.name:
            return "branches of several stacks"
        if short != "embed" and (not short.startswith("blocks.") or _place(model, one.site) is None):
            return f"{one.site} lies outside the blocks or in an attention kernel"
    return ""


def _stack(model: TorchRunner, branches: Sequence[Branches]) -> Stack:
    """The stack of the first branches; all others belong to it too, or are unfit."""
    space = model.sites.find(branches[0].site).rows
    return model.anatomy.stacks.get(space) or next(iter(model.anatomy.stacks.values()))


def _place(model: TorchRunner, name: str) -> Place | None:
    site = model.sites.find(name)
    return site.place if site.kind == "place" or site.name.endswith(SUMS) else None


def _prefix_fits(model: TorchRunner, stack: Stack) -> bool:
    """Can rows before a patch be left out? In causal models whose attention takes the model's own cache."""
    from activarium.capture._runner import TorchRunner as Plain

    heads = all(f"{stack.prefix}blocks.{i}.attn.{n}" in model.sites for i in range(len(stack.blocks)) for n in ("k_rot", "v"))
    shared = len({b.path for b in stack.blocks}) < len(stack.blocks)
    return type(model) is Plain and len(model.anatomy.stacks) == 1 and heads and not shared and model.looks_back(stack.name)


class _Way:
    """How the branches of one site enter the forward: at a block's boundary with another stream, or inside a block."""

    def __init__(self, model: TorchRunner, stack: Stack, branches: Branches) -> None:
        self.branches, self.place = branches, None
        self.at_boundary = True
        short = branches.site.removeprefix(stack.prefix)
        if short == "embed":
            self.block, self.adds = 0, False
            return
        number, short = int(short.split(".")[1]), short.split(".", 2)[2]
        algebra = stack.blocks[number].algebra
        if short in ("resid_pre", "resid_post"):
            self.block, self.adds = number + (short == "resid_post"), False
        elif (short == "mlp.out" and algebra == "pre-norm") or (short in ("mlp.out", "attn.out") and algebra == "parallel"):
            # Nothing of the block comes after it: the stream that leaves changes by the difference.
            self.block, self.adds = number + 1, True
        else:
            self.block, self.at_boundary, self.adds = number, False, False
            self.place = model.sites.find(branches.site).place
            if short in SUMS and algebra != "post-norm":
                self.place = self._through_write(model)

    def _through_write(self, model: TorchRunner) -> Place | None:
        """The sum of stream and write is no module: with the stream as it was, another sum is another write."""
        stem = self.branches.site.rpartition(".")[0]
        return model.sites.find(f"{stem}.attn.out").place


class _Group:
    """Examples of one length and what is run for them."""

    def __init__(
        self, model: TorchRunner, stack: Stack, base: Base, inputs: Any, members: np.ndarray, metric: Metric, spent: Spent
    ) -> None:
        self.model, self.stack, self.base, self.inputs, self.members = model, stack, base, inputs, members
        self.metric, self.spent, self.length = metric, spent, base.streams[0].shape[1]
        self.place = {int(e): i for i, e in enumerate(members)}

    def room(self, memory: int, start: int) -> int:
        """Branches that fit into the memory at once."""
        sizes = self.stack.blocks[0].sizes
        numbers = 8 * sizes["d_model"] + 3 * sizes.get("d_mlp", 4 * sizes["d_model"])
        item = self.base.streams[0].element_size()
        return max(1, int(memory // (numbers * item * (self.length - start))))

    def run(self, ways: Sequence[_Way], chunk: Sequence[np.ndarray], start: int, found: list[np.ndarray]) -> None:
        """One walk; the metric of its branches is put where it belongs."""
        walk, entries, owners, count = Walk(self.model, self.stack, self.base, start), {}, [], 0
        for i, (way, numbers) in enumerate(zip(ways, chunk, strict=True)):
            if len(numbers):
                owners.append((i, numbers))
                entries.setdefault(way.block, []).append(self._entry(way, numbers, count, start))
                count += len(numbers)
        lowest = min(entries)
        # The control: an example that goes along untouched, and not the one that the model is called with.
        entries[lowest].append(Entry(np.array([count]), np.array([len(self.members) - 1]), self.base.streams[lowest][-1:, start:]))
        try:
            walk.run(entries)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # some code tells its blocks of every example (BLOOM's biases)
            raise _Differs(f"the blocks do not take other numbers of examples than the model was called with ({error})") from error
        assert walk.stream is not None
        self._spend(walk, lowest)
        measured = np.empty(count + 1)
        example = self.members[walk.example]
        measured[walk.number] = answers(self.model, self.stack, walk, self.inputs, example, self.metric)
        self._compare(measured[count], start)
        at = 0
        for i, numbers in owners:
            found[i][numbers] = measured[at : at + len(numbers)]
            at += len(numbers)

    def _spend(self, walk: Walk, lowest: int) -> None:
        depth, rows = len(self.stack.blocks), self.length - walk.start
        self.spent.walks += 1
        self.spent.block_rows += walk.block_rows - (depth - lowest) * rows
        self.spent.whole_rows += (len(walk.number) - 1) * self.length * depth

    def _compare(self, control: float, start: int) -> None:
        wanted, allowed = float(self.base.metric[-1]), TOLERANCE[self.model.dtype]
        if not abs(control - wanted) <= allowed * max(1.0, abs(wanted)):
            raise _Differs(f"an untouched example gives {control:.6g} in parts (from position {start}) and {wanted:.6g} in one forward")

    def _entry(self, way: _Way, numbers: np.ndarray, first: int, start: int) -> Entry:
        some = way.branches.take(numbers)
        example = np.array([self.place[int(e)] for e in some.example])
        owner, position, values = some.changes()
        keep = position >= start  # rows before the first that differs are replaced by themselves
        owner, position, values = owner[keep], position[keep], values[torch.as_tensor(keep, device=values.device)]
        stream = self.base.streams[way.block][torch.as_tensor(example, device=self.model.device), start:]
        entry = Entry(first + np.arange(len(some)), example, stream)
        lines, places = torch.as_tensor(owner, device=stream.device), torch.as_tensor(position - start, device=stream.device)
        values = values.to(stream.device, stream.dtype)
        if way.adds:
            rows = torch.as_tensor(some.starts[some.example[owner]] + position, device=stream.device)
            stream[lines, places] += values - some.base[rows].to(stream.dtype)
        elif way.at_boundary:
            stream[lines, places] = values
        else:
            if some.site.endswith(SUMS) and self.stack.blocks[way.block].algebra != "post-norm":
                values = values - stream[lines, places]
            assert way.place is not None
            entry.writes.append((way.place, owner, position, values))
        return entry


def _starts(branches: Sequence[Branches], some: Sequence[np.ndarray], prefix: bool) -> Iterator[tuple[int, list[np.ndarray]]]:
    """First position that has to be run → the branches of each site that start there."""
    firsts = [first_rows(b.take(s)) if prefix and len(s) else np.zeros(len(s), int) for b, s in zip(branches, some, strict=True)]
    for start in np.unique(np.concatenate(firsts)):
        yield int(start), [s[f == start] for s, f in zip(some, firsts, strict=True)]


def changes(branches: Branches) -> np.ndarray:
    """Boolean per branch: does it change a bit?"""
    differs = branches.differing()
    cells = (
        np.where((branches.part < 0)[:, None], True, np.arange(differs.shape[1]) == branches.part[:, None])
        if (branches.part >= 0).any()
        else None
    )
    some: Any = differs.any(1)
    first = branches.starts[branches.example]
    rows = first + np.maximum(branches.position, 0)
    one = differs[rows] if cells is None else differs[rows] & cells
    found = np.asarray(one.any(1)).copy()
    for i in np.flatnonzero(branches.position < 0):
        span = slice(first[i], first[i] + branches.lengths[branches.example[i]])
        found[i] = (some[span] if branches.part[i] < 0 else differs[span, branches.part[i]]).any()
    return found


def first_rows(branches: Branches) -> np.ndarray:
    """The first row that each branch changes: rows that it replaces by the same bits are not changed."""
    firsts, differs = branches.position.copy(), branches.differing()
    for i in np.flatnonzero(branches.position < 0):
        at = branches.starts[branches.example[i]]
        rows = differs[at : at + branches.lengths[branches.example[i]]]
        firsts[i] = int((rows.any(1) if branches.part[i] < 0 else rows[:, branches.part[i]]).argmax())
    return firsts


def _chunks(ways: Sequence[_Way], numbers: Sequence[np.ndarray], room: int) -> Iterator[list[np.ndarray]]:
    """As many branches as fit at a time, those that enter at neighbouring blocks together."""
    order = sorted(range(len(ways)), key=lambda i: ways[i].block)
    chunk, left = [np.empty(0, int) for _ in ways], room
    for i in order:
        rest = numbers[i]
        while len(rest):
            chunk[i], rest = rest[:left], rest[left:]
            left -= len(chunk[i])
            if not left:
                yield chunk
                chunk, left = [np.empty(0, int) for _ in ways], room
    if left < room:
        yield chunk
