"""A capture spread over workers: each runs portions of the batches and writes their shards; the driver keeps the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from activarium.store import Portion, PortionWriter, StoreWriter
from activarium.workflows.batch_plan import Batch
from activarium.workflows.capture_stream import Reader
from activarium.workflows.cluster import Cluster


@dataclass(frozen=True)
class Job:
    """One portion of a capture, as it travels to a worker.

    Attributes:
        inputs: The examples of all batches, one batch after the other.
        batches: Place in the plan and number of examples of each batch.
        reads: What the model is asked for.
        names: What is kept of it.
        dtype: Type to keep floating-point values in.
        writer: Where the shards go.
    """

    inputs: Any
    batches: tuple[tuple[int, int], ...]
    reads: tuple[str, ...]
    names: tuple[str, ...]
    dtype: torch.dtype | None
    writer: PortionWriter


def run_job(model: Any, job: Job) -> Portion:
    """Run the batches of one portion and write their shards; runs in a worker."""
    reader, first = Reader(model, job.reads, job.names, job.dtype, slots=1), 0
    try:
        for at, count in job.batches:
            chosen = job.inputs.select(range(first, first + count))
            job.writer.add(reader.read(chosen), [int(n) for n in chosen.numbers], at)
            first += count
        return job.writer.finish()
    except BaseException:
        job.writer.abort()
        raise


def capture_on(
    cluster: Cluster,
    model: Any,
    inputs: Any,
    portions: Sequence[Sequence[tuple[int, Batch]]],
    reader: tuple[tuple[str, ...], tuple[str, ...], torch.dtype | None],
    sink: StoreWriter,
    advance: Callable[[int, int, int], Any],
) -> None:
    """Run all portions on a cluster; what comes back is committed in the order of the plan."""

    def job(portion: Sequence[tuple[int, Batch]]) -> Job:
        members = [m for _, batch in portion for m in batch.members]
        return Job(inputs.select(members), tuple((at, len(b.members)) for at, b in portion), *reader, sink.worker())

    with cluster.pool(model, most=len(portions)) as pool:
        for portion, made in zip(portions, pool.map(run_job, map(job, portions)), strict=True):
            sink.take_in(made)
            rows = sum(max(shard.rows.values()) for shard in made.shards)
            advance(sum(len(b.members) for _, b in portion), rows, sum(shard.bytes for shard in made.shards))
