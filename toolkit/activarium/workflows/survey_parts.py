"""What a survey does piece by piece: batches of a model, shards of a store, here or in the workers of a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from activarium.activations import Activations
from activarium.errors import InputError
from activarium.recording import Recording
from activarium.store import Store, open_store
from activarium.summaries import Survey
from activarium.workflows.cluster import Cluster

TOGETHER = 8  # batches or shards that a worker sums up before they travel: a fixed number, so that any workers give the same sums


# --- a model


def survey_batches(model: Any, inputs: Any, into: Survey, batches: Sequence[Sequence[int]], advance: Any = lambda *_: None) -> Survey:
    """Run these batches, one after the other, and take in what they hold."""
    for members in batches:
        advance(len(members), *_survey_batch(model, inputs.select(list(members)), into))
    return into


def _survey_batch(model: Any, chosen: Any, into: Survey) -> tuple[int, int]:
    """One forward; rows and bytes that were seen."""
    exclude, rows, size = into.provenance["exclude"], 0, 0
    taken: set[str] = set()
    # What is computed from other sites needs their values after the forward.
    stub = not any(getattr(model.sites[site], "kind", "") == "derived" for site in into)

    def take(site: str, values: Activations) -> None:
        nonlocal rows, size
        wanted, found = tuple(model.sites[site].shape), tuple(values.shape[1:])
        if found != wanted:
            raise InputError(
                f"{site} came with rows of shape {found}; wanted {wanted}. Leave this site out: what depends on the batch cannot be surveyed."
            )
        rows, size = max(rows, len(values)), size + values.nbytes
        taken.add(site)
        into.update(site, without(values, exclude))

    def keep(name: str, value: Tensor) -> Tensor:
        # Summed up the moment it is read: no more than one site of one batch is in memory beside the forward.
        if name in into and name not in taken:
            take(name, model.kept(chosen, name, value.detach()))
        return value[:0] if stub else value

    recorded = model.run(chosen, read=list(into), **({"keep": keep} if hasattr(model, "kept") else {}))
    for site in into:
        if site not in taken:  # computed after the forward, or a run with edits, which gives no early look
            take(site, recorded[site])
    return rows, size


# --- a recording


def survey_parts(source: Recording, into: Survey, only: Sequence[int] | None = None, advance: Any = lambda *_: None) -> Survey:
    """Take in every site shard by shard, or only some of the shards."""
    for site in into:
        for piece in _pieces(source[site], only):
            into.update(site, without(piece, into.provenance["exclude"]))
            advance(1, len(piece), piece.nbytes)
    return into


def part_count(values: Activations) -> int:
    """Shards that hold this site; one in memory."""
    return len(values._parts)


def _pieces(values: Activations, only: Sequence[int] | None) -> Iterator[Activations]:
    """Each shard with its rows; the others stay where they are."""
    start = 0
    for number, part in enumerate(values._parts):
        rows = slice(start, start + int(part.shape[0]))
        start = rows.stop
        if only is None or number in only:
            index = None if values.index is None else values.index.take(rows)
            yield Activations(part, values.axes, site=values.site, index=index, space=values.space)


def without(values: Activations, exclude: Sequence[str]) -> Activations:
    """The rows that are not of these kinds."""
    if not exclude or values.index is None or "kind" not in values.index:
        return values
    keep = np.flatnonzero(~np.isin(values.index["kind"].astype(str), list(exclude)))
    if len(keep) == len(values):
        return values
    return Activations(values.rows(keep), values.axes, site=values.site, index=values.index.take(keep), space=values.space)


# --- in workers


@dataclass(frozen=True)
class Job:
    """Some batches, as they travel to a worker.

    Attributes:
        inputs: The examples of all batches, one batch after the other.
        sizes: Examples of each batch.
        like: The survey, before any row.
    """

    inputs: Any
    sizes: tuple[int, ...]
    like: Survey


def run_job(model: Any, job: Job) -> Survey:
    """The survey of these batches alone; runs in a worker."""
    ends = np.cumsum((0, *job.sizes))
    return survey_batches(model, job.inputs, job.like, [range(a, b) for a, b in pairwise(ends)])


def survey_model_on(
    cluster: Cluster, model: Any, inputs: Any, into: Survey, batches: Sequence[Sequence[int]], advance: Any = lambda *_: None
) -> None:
    """Run all batches on a cluster; what comes back is merged in the order of the plan."""
    chunks = [batches[i : i + TOGETHER] for i in range(0, len(batches), TOGETHER)]

    def job(chunk: Sequence[Sequence[int]]) -> Job:
        return Job(inputs.select([m for members in chunk for m in members]), tuple(map(len, chunk)), into.fresh())

    with cluster.pool(model, most=len(chunks)) as pool:
        for chunk, made in zip(chunks, pool.map(run_job, map(job, chunks)), strict=True):
            into.merge(made)
            advance(sum(map(len, chunk)))


def run_shards(place: str, job: tuple[Sequence[int], Survey]) -> Survey:
    """The survey of some shards alone; runs in a worker."""
    only, like = job
    return survey_parts(open_store(place), like, only)


def survey_store_on(cluster: Cluster, store: Store, into: Survey, advance: Any = lambda *_: None) -> None:
    """Read all shards on a cluster; what comes back is merged in their order."""
    count = max(part_count(store[site]) for site in into)
    chunks = [range(i, min(i + TOGETHER, count)) for i in range(0, count, TOGETHER)]
    with cluster.pool(str(store.path), most=len(chunks)) as pool:
        for chunk, made in zip(chunks, pool.map(run_shards, ((chunk, into.fresh()) for chunk in chunks)), strict=True):
            into.merge(made)
            counts = [part_count(store[site]) for site in into]
            advance(sum(min(chunk.stop, n) - min(chunk.start, n) for n in counts))
