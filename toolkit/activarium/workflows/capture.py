"""Run a model over data and keep what was read, in memory or in a store that survives being killed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from activarium import _recorded
from activarium.activations import Recording
from activarium.errors import InputError
from activarium.store import SHARD_BYTES, Store, StoreWriter, named, open_store, torch_dtype
from activarium.workflows.batch_plan import BATCH_TOKENS, Batch
from activarium.workflows.capture_plan import CapturePlan, make_plan
from activarium.workflows.capture_stream import MemorySink, Ring, Sink, Stream, converted


def capture(
    model: Any,
    data: Any,
    sites: str | Sequence[str],
    to: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    batch_tokens: int = BATCH_TOKENS,
    shard_bytes: int = SHARD_BYTES,
    resume: bool = True,
    progress: bool = True,
    allow_nonfinite: bool = False,
) -> Recording | Store:
    """What does the model hold at these sites, for all of the data?

    The same call goes on where an earlier one was killed; the result is the same to the bit, because the batch plan is.
    Rows stand in the order of the batch plan (longest examples first); their `example` column says which example they are.

    Args:
        model: A loaded model.
        data: Texts, tokens, images, or what `model.inputs` made of them.
        sites: Names and patterns. For patterns and scores, queries and keys are kept and the rest is computed on reading.
        to: A folder ending in `.acts`, or None to keep everything in memory.
        dtype: Keep floating-point values in this type; None keeps them as computed.
        batch_tokens: Most rows that run together, padding included: 4096 rows are 63 images of 65 rows.
        shard_bytes: Bytes of tensors per file.
        resume: Go on with a folder that exists; otherwise an existing one is refused.
        progress: Print the plan and show a progress bar.
        allow_nonfinite: Keep NaN and infinity instead of refusing them.

    Returns:
        A Recording; for a folder the opened Store.

    Raises:
        CapacityError: The predicted bytes do not fit in memory or on the disk.
        NotFinite: A value is NaN or infinite; the message names site and example.
        OtherModel: The folder holds a capture of another model, other data or another plan.
        StoreError: The folder cannot be written, or somebody else writes it.
    """
    folder, kind = _target(to), _kind(dtype)
    inputs = data if hasattr(data, "lengths") and hasattr(data, "select") else model.inputs(data)
    made = make_plan(model, inputs, sites, folder, kind, batch_tokens)
    _say(progress, f"capture: {made.summary()}", made.note())
    made.check()
    draft = made.draft(_recorded.plain(model.identity), _recorded.plain({**inputs.describe(), "hash": inputs.hash}))
    sink: Sink
    if folder is None:
        sink = MemorySink(draft, dict(made.rows), allow_nonfinite=allow_nonfinite)
    else:
        options = {"shard_bytes": shard_bytes, "resume": resume, "allow_nonfinite": allow_nonfinite}
        sink = StoreWriter(folder, draft, versions=_recorded.versions(), **options)
    return _run(model, inputs, made, sink, torch_dtype(kind) if kind else None, progress)


def plan(
    model: Any,
    data: Any,
    sites: str | Sequence[str],
    to: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> CapturePlan:
    """What would this capture keep, how large is it, and does it fit?

    Args:
        model: A loaded model.
        data: Texts, tokens, images, or what `model.inputs` made of them.
        sites: Names and patterns.
        to: The folder, or None for memory.
        dtype: Type to keep floating-point values in.
        batch_tokens: Most rows that run together, padding included.

    Raises:
        InputError: There is nothing to capture, or a site cannot be kept.
    """
    inputs = data if hasattr(data, "lengths") and hasattr(data, "select") else model.inputs(data)
    return make_plan(model, inputs, sites, _target(to), _kind(dtype), batch_tokens)


def _run(model: Any, inputs: Any, made: CapturePlan, sink: Sink, dtype: torch.dtype | None, progress: bool) -> Recording:
    todo = list(_todo(made.batches, sink.done))
    try:
        if todo:
            if sink.done:
                held = sum(last - first for first, last in sink.done)
                _say(
                    progress,
                    f"resume: {held:,} of {made.examples:,} examples are there, {len(todo):,} of {len(made.batches):,} batches to run",
                )
            _stream(model, inputs, made, sink, todo, dtype, progress)
        elif isinstance(sink, StoreWriter):
            sink.abort()  # all there: nothing is written, not even a line that says so
            _say(progress, f"resume: {sink.path} is complete")
            return open_store(sink.path)
        return sink.finish()
    except BaseException:
        sink.abort()
        raise


def _stream(
    model: Any, inputs: Any, made: CapturePlan, sink: Sink, todo: Sequence[tuple[int, Batch]], dtype: torch.dtype | None, progress: bool
) -> None:
    stream, ring = Stream(sink), Ring(dtype)
    names = list(made.entries)
    options = {"keep": ring.keep} if getattr(model, "keeps", False) else {}
    try:
        with _bar(progress, sum(len(b.members) for _, b in todo)) as advance:
            for at, batch in todo:
                members = list(batch.members)
                chosen = inputs.select(members)
                ring.turn()
                recorded = converted(model.run(chosen, read=list(made.reads), **options), names, dtype)
                rows = max(len(t) for t in recorded.rows.values())
                size = sum(recorded[n].nbytes for n in names)
                stream.put(recorded, _numbers(inputs, members), at)
                advance(len(members), rows, size)
        stream.end()
    finally:
        stream.stop()


def _todo(batches: Sequence[Batch], done: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Batch]]:
    """Batches that are not all there, with their place in the plan. One that is there in part runs again as a whole: same bits."""
    at = 0
    for batch in batches:
        last = at + len(batch.members)
        if not any(a <= at and last <= b for a, b in done):
            yield at, batch
        at = last


def _numbers(inputs: Any, members: Sequence[int]) -> list[int]:
    numbers = getattr(inputs, "numbers", None)
    return list(members) if numbers is None else [int(numbers[i]) for i in members]


def _target(to: str | Path | None) -> Path | None:
    return None if to is None else named(to)


def _kind(dtype: str | torch.dtype | None) -> str:
    kind = "" if dtype is None else str(dtype).removeprefix("torch.")
    if kind and not torch_dtype(kind).is_floating_point:
        raise InputError(f"dtype={kind!r} would cut activations to whole numbers. Choose float64, float32, float16 or bfloat16.")
    return kind


def _say(loud: bool, *lines: str) -> None:
    if loud:
        from rich.console import Console

        for line in filter(None, lines):
            Console(soft_wrap=True).print(line, markup=False, highlight=False)


@contextmanager
def _bar(show: bool, examples: int) -> Iterator[Any]:
    """A progress bar in examples, with rows and bytes per second."""
    if not show:
        yield lambda *_: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("capturing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()]
    with Progress(*columns) as bar:
        task, started, sums = bar.add_task("capture", total=examples, speed=""), time.perf_counter(), [0, 0]

        def advance(count: int, rows: int, size: int) -> None:
            sums[0], sums[1] = sums[0] + rows, sums[1] + size
            seconds = max(time.perf_counter() - started, 1e-9)
            bar.update(task, advance=count, speed=f"{sums[0] / seconds:,.0f} rows/s  {sums[1] / seconds / 2**20:,.1f} MiB/s")

        yield advance
