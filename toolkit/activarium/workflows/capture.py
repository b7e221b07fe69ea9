"""Run a model over data and keep what was read, in memory or in a store that survives being killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from activarium import _recorded
from activarium.errors import InputError
from activarium.progress import progress_bar, say
from activarium.recording import Recording
from activarium.store import SHARD_BYTES, Store, StoreWriter, named, open_store, torch_dtype
from activarium.workflows.batch_plan import BATCH_TOKENS, Batch, portions
from activarium.workflows.capture_cluster import capture_on
from activarium.workflows.capture_plan import CapturePlan, make_plan
from activarium.workflows.capture_stream import MemorySink, Reader, Sink, Stream
from activarium.workflows.cluster import Cluster, cluster_of

Part = Sequence[tuple[int, Batch]]  # batches that share shards, each with its place in the plan


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
    append: bool = False,
    on: str | Cluster | None = None,
    progress: bool = True,
    allow_nonfinite: bool = False,
) -> Recording | Store:
    """What does the model hold at these sites, for all of the data?

    The same call goes on where an earlier one was killed; the result is the same to the bit, because the batch plan is.
    Rows stand in the order of the batch plan (longest examples first); their `example` column says which example they are.

    Args:
        model: A loaded model.
        data: Texts, tokens, images, or what `model.inputs` made of them; `dict(text=…, label=…)` labels each example's rows.
        sites: Names and patterns. For patterns and scores, queries and keys are kept and the rest is computed on reading.
        to: A folder ending in `.acts`, or None to keep everything in memory.
        dtype: Keep floating-point values in this type; None keeps them as computed.
        batch_tokens: Most rows that run together, padding included: 4096 rows are 63 images of 65 rows.
        shard_bytes: Bytes of tensors per file.
        resume: Go on with a folder that exists; otherwise an existing one is refused.
        append: Add the data to a folder that holds a capture of other data; example numbers go on. Data that are there already
            are not added again, so that this call can be repeated, too.
        on: `"ray"` for worker processes on this machine, the address of a Ray cluster, or an `act.Cluster` that says how many
            workers and threads. The batches of one shard are run by one worker, so a smaller `shard_bytes` spreads further.
        progress: Print the plan and show a progress bar.
        allow_nonfinite: Keep NaN and infinity instead of refusing them.

    Returns:
        A Recording; for a folder the opened Store.

    Raises:
        CapacityError: The predicted bytes do not fit in memory or on the disk.
        ClusterError: No cluster answers at the address given, or a worker was lost too often.
        NotFinite: A value is NaN or infinite; the message names site and example.
        OtherModel: The folder holds a capture of another model, other data or another plan.
        StoreError: The folder cannot be written, or somebody else writes it.
    """
    folder, kind = _target(to), _kind(dtype)
    cluster = None if on is None else cluster_of(on)
    if folder is None and (cluster or append):
        raise InputError("on= and append= need a folder: pass to='name.acts', on a disk that every worker sees.")
    inputs = data if hasattr(data, "lengths") and hasattr(data, "select") else model.inputs(data)
    made = make_plan(model, inputs, sites, folder, kind, batch_tokens, append=append)
    say(progress, f"capture: {made.summary()}", made.note())
    made.check()
    draft = made.draft(_recorded.plain(model.identity), _recorded.plain({**inputs.describe(), "hash": inputs.hash}))
    parts = portions(made.batches, made.costs, shard_bytes)
    if folder is None:
        return _run(model, inputs, made, MemorySink(draft, dict(made.rows), allow_nonfinite=allow_nonfinite), parts, cluster, progress)
    ends = [at + len(last.members) for *_, (at, last) in parts]
    options = {"shard_bytes": shard_bytes, "resume": resume, "append": append, "ends": ends, "allow_nonfinite": allow_nonfinite}
    sink = StoreWriter(folder, draft, versions=_recorded.versions(), **options)
    return _run(model, inputs, made, sink, parts, cluster, progress)


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


def _run(
    model: Any, inputs: Any, made: CapturePlan, sink: Sink, parts: Sequence[Part], cluster: Cluster | None, progress: bool
) -> Recording:
    todo = [t for part in parts if (t := _todo(part, sink.done))]
    batches = sum(map(len, todo))
    try:
        if isinstance(sink, StoreWriter) and not todo:
            sink.abort()  # all there: nothing is written, not even a line that says so
            say(progress, f"resume: {sink.path} is complete")
            return open_store(sink.path)
        if sink.done:
            held = sum(last - first for first, last in sink.done)
            say(progress, f"resume: {held:,} of {made.examples:,} examples are there, {batches:,} of {len(made.batches):,} batches to run")
        if sink.first:
            inputs = inputs.numbered(sink.first)
        with progress_bar(progress, "capturing", sum(len(b.members) for t in todo for _, b in t)) as advance:
            reader = made.reads, made.sites, torch_dtype(made.dtype) if made.dtype else None
            if cluster is not None and isinstance(sink, StoreWriter):
                capture_on(cluster, model, inputs, todo, reader, sink, advance)
            else:
                _stream(inputs, [b for t in todo for b in t], Reader(model, *reader), sink, advance)
        return sink.finish()
    except BaseException:
        sink.abort()
        raise


def _stream(inputs: Any, todo: Sequence[tuple[int, Batch]], reader: Reader, sink: Sink, advance: Any) -> None:
    stream = Stream(sink)
    try:
        for at, batch in todo:
            members = list(batch.members)
            recorded = reader.read(inputs.select(members))
            rows = max(len(t) for t in recorded.rows.values())
            size = sum(a.nbytes for a in recorded.values())
            stream.put(recorded, _numbers(inputs, members), at)
            advance(len(members), rows, size)
        stream.end()
    finally:
        stream.stop()


def _todo(part: Part, done: Sequence[tuple[int, int]]) -> Part:
    """Batches that are not all there, with their place in the plan. One that is there in part runs again as a whole: same bits."""
    return [(at, b) for at, b in part if not any(first <= at and at + len(b.members) <= last for first, last in done)]


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
