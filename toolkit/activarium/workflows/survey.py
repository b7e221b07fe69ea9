"""Summaries of many sites in one pass, over a model and data, a capture or a store, here or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium import _recorded
from activarium.activations import Activations
from activarium.errors import AxisError, CapacityError, InputError, UnknownSite, unknown
from activarium.progress import progress_bar, say
from activarium.recording import Recording, matching
from activarium.rows import Rows
from activarium.store import Store
from activarium.summaries import Summary, Survey
from activarium.workflows.batch_plan import BATCH_TOKENS
from activarium.workflows.capture_plan import CapturePlan, free_memory, make_plan
from activarium.workflows.cluster import Cluster, cluster_of
from activarium.workflows.survey_parts import part_count, survey_batches, survey_model_on, survey_parts, survey_store_on


def survey(
    source: Any,
    summaries: Mapping[str, Sequence[Summary]],
    data: Any = None,
    *,
    exclude: Sequence[str] = (),
    batch_tokens: int = BATCH_TOKENS,
    on: str | Cluster | None = None,
    progress: bool = True,
) -> Survey:
    """What do these sites hold, in one pass and without keeping them?

    A live model runs over the data once, and each site is summed up as it is read. A capture or a store is read once, shard
    by shard. Whatever the source, whole numbers are the same bits; sums agree to rounding (the same batch plan, type and
    threads give the same bits).

    Args:
        source: A loaded model, or a Recording (what `act.capture` returned, or `act.open` opened).
        summaries: Site or pattern → summaries of `act.summaries`, such as `{"blocks.*.mlp.post": [Count(), Moments()]}`.
        data: For a model: texts, tokens, images, or what `model.inputs` made of them.
        exclude: Row kinds that are left out (`bos special cls register …`). Pads are never rows.
        batch_tokens: For a model: most rows that run together, padding included.
        on: `"ray"` to spread the work over processes of this machine, the address of a Ray cluster, or an `act.Cluster`. A
            store must lie on a disk that every worker sees.
        progress: Show a progress bar.

    Returns:
        A Survey: site → summaries by name.

    Raises:
        UnknownSite: A site that the model or recording does not have.
        AxisError: A site without rows, such as an attention pattern.
        NotFinite: NaN or infinity where a summary needs numbers.
        CapacityError: The states would not fit in memory.
        ClusterError: No cluster answers at the address given, or a worker was lost too often.
        InputError: A model without data, or data without a model.

    Example:
        >>> import activarium as act
        >>> from activarium.summaries import Count
        >>> model = act.wrap(*act.testing.tiny("gpt2"))
        >>> found = act.survey(model, {"blocks.*.mlp.post": [Count()]}, ["ba ce di"], progress=False)
        >>> sorted(found)
        ['blocks.0.mlp.post', 'blocks.1.mlp.post', 'blocks.2.mlp.post']
    """
    if isinstance(source, Recording):
        if data is not None:
            raise InputError("A recording is surveyed as it is; found data beside it. Pass a model to run over data.")
        return _survey_recording(source, summaries, exclude, None if on is None else cluster_of(on), progress)
    if data is None:
        raise InputError("A model needs data to run over: act.survey(model, {…}, data).")
    inputs = data if hasattr(data, "lengths") and hasattr(data, "select") else source.inputs(data)
    wanted = _expanded(summaries, source.sites.select)
    _check_axes({name: source.sites[name].axes for name in wanted})
    made = make_plan(source, inputs, list(wanted), None, "", batch_tokens)
    started = _started(source, inputs, made, wanted, exclude)
    _check_room(started, made)
    say(progress, f"survey: {made.examples:,} examples in {len(made.batches):,} batches, {len(made.entries)} sites, nothing is kept")
    batches = [b.members for b in made.batches]
    with progress_bar(progress, "surveying", made.examples) as advance:
        if on is None:
            survey_batches(source, inputs, started, batches, advance)
        else:
            survey_model_on(cluster_of(on), source, inputs, started, batches, advance)
    return _finished(started, lambda space, examples: _live_rows(inputs, space, examples))


# --- a model


def _started(model: Any, inputs: Any, plan: CapturePlan, wanted: Mapping[str, Sequence[Summary]], exclude: Sequence[str]) -> Survey:
    held = {name: _held(model.sites, name) for name in wanted}
    origin = {"model": _recorded.plain(model.identity), "data": _recorded.plain({**inputs.describe(), "hash": inputs.hash})}
    spaces = {site: model.sites[site].rows for site in held.values()}
    made = Survey(_merged(wanted, held), {**origin, "plan": plan.hash, "exclude": list(exclude), "spaces": spaces})
    made._aliases = {name: site for name, site in held.items() if name != site}
    return made


def _held(sites: Any, name: str) -> str:
    while sites[name].same_as:
        name = sites[name].same_as
    return name


def _live_rows(inputs: Any, space: str, examples: Sequence[int]) -> Rows | None:
    numbers = getattr(inputs, "numbers", None)
    places = list(examples) if numbers is None else np.flatnonzero(np.isin(numbers, list(examples))).tolist()
    batch = getattr(inputs.select(places), "batch", None)
    return None if batch is None else batch.rows.get(space)


# --- a recording


def _survey_recording(
    source: Recording, summaries: Mapping[str, Sequence[Summary]], exclude: Sequence[str], cluster: Cluster | None, progress: bool
) -> Survey:
    if cluster is not None and not isinstance(source, Store):
        raise InputError("This recording is in the memory of this process. on= needs a model with data, or a store on a shared disk.")
    wanted = _expanded(summaries, lambda name: _selected(source, name))
    sites = {name: source[name] for name in wanted}
    _check_axes({name: " ".join(a.axes) for name, a in sites.items()})
    held = {name: a.site or name for name, a in sites.items()}
    origin = {key: _recorded.plain(source.provenance[key]) for key in ("id", "model", "data") if key in source.provenance}
    spaces = {held[name]: a.space or _space_of(source, a) for name, a in sites.items()}
    made = Survey(_merged(wanted, held), {**origin, "exclude": list(exclude), "spaces": spaces})
    made._aliases = {name: site for name, site in held.items() if name != site}
    with progress_bar(progress, "surveying", sum(part_count(source[site]) for site in made), "shards of sites") as advance:
        if isinstance(source, Store) and cluster is not None:
            survey_store_on(cluster, source, made, advance)
        else:
            survey_parts(source, made, None, advance)
    return _finished(made, lambda space, examples: _examples_of(source.rows[space], examples))


def _selected(source: Recording, name: str) -> list[str]:
    found = matching(name, [*source, *source._aliases]) if any(c in name for c in "*{") else [name]
    if not found or any(n not in source for n in found):
        raise unknown("site in this recording", name, source, UnknownSite)
    return found


def _space_of(source: Recording, values: Activations) -> str:
    return next((space for space, table in source.rows.items() if table is values.index), "")


def _examples_of(table: Rows, examples: Sequence[int]) -> Rows:
    return table.take(np.flatnonzero(np.isin(table["example"], list(examples))))


# --- both


def _expanded(summaries: Mapping[str, Sequence[Summary]], select: Any) -> dict[str, list[Summary]]:
    """Every site with summaries of its own."""
    made: dict[str, list[Summary]] = {}
    for pattern, many in summaries.items():
        for name in select(pattern):
            made.setdefault(name, []).extend(s.fresh() for s in ([many] if isinstance(many, Summary) else many))
    if not made:
        raise InputError("There is nothing to survey: pass {site: [summaries]}, such as {'blocks.*.mlp.post': [Count()]}.")
    return made


def _merged(wanted: Mapping[str, Sequence[Summary]], held: Mapping[str, str]) -> dict[str, list[Summary]]:
    """Sites that are one and the same share their summaries."""
    made: dict[str, list[Summary]] = {}
    for name, many in wanted.items():
        there = made.setdefault(held[name], [])
        there += [s for s in many if not any(type(s) is type(t) and s.settings == t.settings for t in there)]
    return made


def _check_axes(axes: Mapping[str, str]) -> None:
    for name, words in axes.items():
        if words.split()[0] not in ("row", "example"):
            raise AxisError(
                f"{name} has axes {words!r}; a survey goes over rows. Choose a site whose first axis is `row` or `example`, or survey q_rot and k_rot."
            )


def _check_room(made: Survey, plan: CapturePlan) -> None:
    size = sum(s._bytes(int(np.prod(plan.entries[site].shape))) for site, many in made._sites.items() for s in many.values())
    if size > free_memory():
        raise CapacityError(
            f"These states take {size:,} bytes; {free_memory():,} are free. Survey fewer sites, or leave out Gram and CoActivation on wide ones."
        )


def _finished(made: Survey, rows_of: Any) -> Survey:
    """With the rows of the examples that a summary names."""
    named: dict[str, set[int]] = {}
    for site in made:
        named.setdefault(made.space(site), set()).update(made.named_examples(site))
    for space, examples in named.items():
        table = rows_of(space, sorted(examples)) if examples else None
        if table is not None:
            made.rows[space] = table
    return made
