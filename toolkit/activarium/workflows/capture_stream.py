"""Where batches go: a `Sink` (a store's writer, or memory), fed by one thread through a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.recording import Recording
from activarium.rows import Rows
from activarium.store import AttentionEntry, Captured, Constants, Manifest, describe, finite, piece_of


class Sink(Protocol):
    """Takes batches in the order of the plan and ends as a Recording.

    Attributes:
        done: Places of the plan's order that it holds already, as spans.
        first: Example number of the first example.
    """

    @property
    def done(self) -> list[tuple[int, int]]: ...
    @property
    def first(self) -> int: ...

    def add(self, batch: Recording, members: Sequence[int], at: int) -> None:
        """Take in one batch: examples `members`, from place `at` of the plan on."""
        ...

    def finish(self) -> Recording:
        """Everything is in: give it back as a Recording."""
        ...

    def abort(self) -> None:
        """Stop without finishing."""
        ...


class MemorySink:
    """Keeps a capture in memory, each site as one tensor that was made at its full size."""

    def __init__(self, draft: Manifest, rows: dict[str, int], *, allow_nonfinite: bool = False) -> None:
        self.done: list[tuple[int, int]] = []
        self.first = 0
        self._draft, self._total, self._finite = draft, rows, not allow_nonfinite
        self._values: dict[str, Tensor] = {}
        self._tables: dict[str, list[Rows]] = {}
        self._filled = dict.fromkeys(rows, 0)
        self._constants, self._entries = Constants(), {}
        self._entries: dict[str, AttentionEntry]

    def add(self, batch: Recording, members: Sequence[int], at: int) -> None:
        """Take in one batch."""
        piece = piece_of(batch, members, at, self._draft.sites)
        if self._finite:
            finite(piece, members)
        attention = getattr(batch, "attention", {})
        if not self._values:
            self._entries = describe(attention, self._draft.sites, self._draft.aliases)
        self._constants.see(attention, self._entries)
        for name, values in piece.tensors.items():
            self._put(name, values, piece.spaces[name])
        for space, rows in piece.rows.items():
            self._tables.setdefault(space, []).append(rows)
            self._filled[space] = self._filled.get(space, 0) + len(rows)

    def _put(self, name: str, values: Tensor, space: str) -> None:
        start = self._filled[space]
        stop = start + len(values)
        there = self._values.get(name)
        if there is None or stop > len(there):  # made at full size once; grown only where the inputs announced too few rows
            size = max(stop, self._total.get(space, 0)) if there is None else stop + stop // 2
            grown = values.new_empty((size, *values.shape[1:]))
            if there is not None:
                grown[:start] = there[:start]
            there = self._values[name] = grown
        there[start:stop] = values

    def finish(self) -> Recording:
        """The capture as a Recording."""
        from activarium.attention import AttentionSpec

        rows = {space: Rows.concatenate(tables) for space, tables in self._tables.items()}
        draft, known = self._draft, self._constants.known
        provenance = {
            "id": draft.plan.hash,
            "model": draft.model,
            "data": draft.data,
            "plan": draft.plan.model_dump(mode="json"),
            "dtype": draft.dtype,
        }
        sites = draft.sites
        values = {n: v[: self._filled[sites[n].rows]] for n, v in self._values.items()}
        makers = {
            n: partial(Activations, v, sites[n].axes, site=n, index=rows[sites[n].rows], provenance=provenance) for n, v in values.items()
        }
        attention = {b: AttentionSpec.from_json(e.numbers, {k: known[f"{b}.{k}"] for k in e.tensors}) for b, e in self._entries.items()}
        return Captured(makers, rows, provenance, draft.aliases, attention, {n: s.rows for n, s in sites.items()})

    def abort(self) -> None:
        """Forget everything."""
        self._values, self._tables = {}, {}


class Stream:
    """One thread that feeds a sink. A full queue makes the model wait; what goes wrong in the thread surfaces in `put`."""

    def __init__(self, sink: Sink, waiting: int = 1) -> None:
        self._sink, self._queue = sink, queue.Queue(maxsize=waiting)
        self._queue: queue.Queue[Any]
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="activarium capture", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
            if item is None:
                return
            try:
                with torch.no_grad():
                    self._sink.add(*item)
            except BaseException as error:
                self._error = error
                return
            item = None  # or the last batch stays alive while the next one is awaited

    def put(self, *item: Any) -> None:
        """Hand over one batch, waiting for room.

        Raises:
            ActivariumError: Whatever the sink raised.
        """
        self._wait(item)

    def _wait(self, item: Any) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                return self._queue.put(item, timeout=0.05)
            except queue.Full:
                continue

    def end(self) -> None:
        """Wait until everything handed over is in the sink."""
        self._wait(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let the batch in work end, drop those that wait."""
        self._stop.set()
        self._thread.join()


class Ring:
    """Memory for the batches in flight, used again and again: fresh pages cost more than the numbers that go into them.

    One batch is being read, one waits, one is in the sink: three slots, and a slot is free again when its turn comes.
    """

    def __init__(self, dtype: torch.dtype | None, slots: int = 3) -> None:
        self._dtype, self._slots = dtype, [{} for _ in range(slots)]
        self._slots: list[dict[str, Tensor]]
        self._turn = 0

    def turn(self) -> None:
        """The next batch begins."""
        self._turn = (self._turn + 1) % len(self._slots)

    def keep(self, name: str, value: Tensor) -> Tensor:
        """A copy of the value in this batch's slot, in the type of the capture."""
        kind = self._dtype if self._dtype is not None and value.is_floating_point() else value.dtype
        slot, size = self._slots[self._turn], value.numel()
        held = slot.get(name)
        if held is None or len(held) < size or held.dtype != kind:
            held = slot[name] = torch.empty(size, dtype=kind)
        return held[:size].view(value.shape).copy_(value)


class Reader:
    """Runs batches and gives what is to be kept of them, in the type of the capture."""

    def __init__(self, model: Any, reads: Sequence[str], names: Sequence[str], dtype: torch.dtype | None, *, slots: int = 3) -> None:
        self._model, self._reads, self._names, self._dtype = model, list(reads), list(names), dtype
        self._ring = Ring(dtype, slots)
        self._options = {"keep": self._ring.keep} if getattr(model, "keeps", False) else {}

    def read(self, inputs: Any) -> Recording:
        """One forward; its memory is used again after as many more as there are slots."""
        self._ring.turn()
        return converted(self._model.run(inputs, read=self._reads, **self._options), self._names, self._dtype)


def converted(batch: Recording, names: Sequence[str], dtype: torch.dtype | None) -> Recording:
    """The batch with floating-point values in another type, on the processor's memory."""
    sites = {name: _convert(batch[name], dtype) for name in names}
    made = Recording(sites, batch.rows, batch.provenance)
    made.attention = dict(getattr(batch, "attention", {}))  # type: ignore[attr-defined]
    return made


def _convert(site: Activations, dtype: torch.dtype | None) -> Activations:
    values = site.tensor.detach()
    kind = dtype if dtype is not None and values.is_floating_point() else values.dtype
    return Activations(values.to(device="cpu", dtype=kind), site.axes, site=site.site, index=site.index)
