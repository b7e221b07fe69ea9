"""From one forward's raw tensors to a Recording: rows without pads, aliases, derived sites, metrics, gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from activarium._parts import Computed
from activarium.activations import Activations
from activarium.attention import attention_part, repeat_heads
from activarium.capture._session import Session, as_rows
from activarium.capture._sites import Site
from activarium.errors import InputError
from activarium.metrics import Metric
from activarium.recording import Lazy, Recording

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

MADE_OF = {"scores": ("q_rot", "k_rot"), "pattern": ("q_rot", "k_rot"), "head_out": ("z",)}


def needed(model: TorchRunner, names: Sequence[str], grad: bool) -> list[str]:
    """Sites that must be read so that the wanted ones, and with `grad` their gradients, can be given."""
    wanted: list[str] = []
    for name in names:
        stem, _, leaf = name.rpartition(".")
        wanted += [f"{stem}.{n}" for n in MADE_OF[leaf]] if leaf in MADE_OF and model.site(name).kind == "derived" else [name]
        if grad and leaf in ("resid_mid", "resid_cross"):
            wanted.append(model.gradient_site(name))
        if grad and leaf == "pattern":
            wanted += [f"{stem}.z", f"{stem}.v"]
    return [model.site(n).name for n in dict.fromkeys(wanted) if model.site(n).kind != "answer"]


def needs_kernel(names: Sequence[str]) -> bool:
    """Do these names need the attention kernel's description?"""
    return any(n.rpartition(".")[2] in ("scores", "pattern", "q_rot", "k_rot") for n in names)


class Answers:
    """What one session gave, as Activations."""

    def __init__(self, model: TorchRunner, session: Session, output: Any) -> None:
        self.model, self.session, self.output = model, session, output
        fields: dict[str, Callable[[], Any]] = {
            "model": lambda: model.identity,
            "inputs": session.batch.inputs.describe,
            "batch": lambda: {s: list(n) for s, n in session.batch.shape.items()},
            "eager_blocks": lambda: list(session.seat.eager),
        }
        if session.rules is not None:
            report = session.rules.report()
            fields["rules"] = lambda: report
        self.provenance = Provenance(fields)

    def recording(self, names: Sequence[str], metrics: Any) -> Recording:
        """Everything asked for, with logits where the forward reached them."""
        hold = {name: self.model.sites_hold(name) for name in names}
        sites = [*dict.fromkeys(hold.values())]
        if self._answered() and "logits" not in sites:
            sites.append("logits")
        aliases = {name: held for name, held in hold.items() if held != name}
        # Nothing is arranged before somebody looks: a run that reads many sites costs what the forward costs.
        made = Lazy({name: partial(self.activations, name) for name in sites})
        spaces = dict.fromkeys([*self.session.batch.inputs.data, *(self._space(n) for n in sites)])
        tables = Lazy({s: partial(self.session.table, s) for s in spaces})
        recording = Recording(made, tables, self.provenance, aliases)
        recording.attention = self.session.seat.specs
        if metrics is not None:
            recording.metric = self._measure(made.get("logits"), metrics)
            if self.session.grad:
                # The recording holds this function; holding it in turn would keep the whole graph until a garbage collection.
                made_it = weakref.ref(recording)
                recording._backward = lambda metric, closed: self._gradients(cast(Recording, made_it()), metric, closed)
        return recording

    def _space(self, name: str) -> str:
        site = self.model.site(name)
        return self._shaped(site, self.session.raw[name]).rows if site.kind == "module" else site.rows

    def _answered(self) -> bool:
        site = self.model.sites.get("logits")
        return (
            site is not None
            and site.place is not None
            and self.output is not None
            and getattr(self.output, str(site.place.argument), None) is not None
        )

    def activations(self, name: str) -> Activations:
        """One site."""
        site = self.model.site(name)
        stem, _, leaf = name.rpartition(".")
        if site.kind == "derived":
            return self._head_out(stem) if leaf == "head_out" else self._attention(stem, leaf)
        if site.kind == "answer":
            return self._rows(name, site, getattr(self.output, str(site.place.argument)))  # type: ignore[union-attr]
        if site.axes == "head query key":
            return self._tiles(name, site, self.session.raw[site.name])
        return self._rows(name, site, self.session.raw[site.name])

    def _tiles(self, name: str, site: Site, value: Tensor) -> Activations:
        """Scores or patterns that the model itself computed, `example head query key`, cut to each example's real rows."""
        value = value.masked_fill(value <= torch.finfo(value.dtype).min / 2, -torch.inf)  # some models hide keys with a large number
        counts = [int(n) for n in self.session.batch.inputs.rows_of(site.rows)]
        parts = [value[e, :, :n, :n] for e, n in enumerate(counts)]
        return Activations(parts, site.axes, site=name, index=self.session.table(site.rows), space=site.rows, provenance=self.provenance)

    def _rows(self, name: str, site: Site, value: Tensor) -> Activations:
        if site.kind == "module":
            site = self._shaped(site, value)
        value = value.transpose(1, 2) if site.kind == "rotary" else value
        place = site.place if site.kind == "place" and self.session.keep is None else None  # what is kept was cut already
        rows = as_rows(value, place, self.session.cells(site.rows), self.session.batch.index.get(site.rows), site.rows == "example")
        return Activations(rows, site.axes, site=name, index=self.session.table(site.rows), space=site.rows, provenance=self.provenance)

    def _shaped(self, site: Site, value: Tensor) -> Site:
        """Axes of any module's output, by its shape."""
        for space, (count, rows) in self.session.batch.shape.items():
            if value.ndim == 3 and tuple(value.shape[:2]) == (count, rows):
                return replace(site, axes="row feature", rows=space)
        if value.ndim in (2, 4) and value.shape[0] == len(self.session.batch.inputs):
            return replace(site, axes="example feature" if value.ndim == 2 else "example channel height width", rows="example")
        raise InputError(
            f"{site.name} gives shape {tuple(value.shape)}, which is neither rows of {self.session.batch.shape} nor one vector per example."
        )

    def _head_out(self, stem: str) -> Activations:
        z, weight = self.activations(f"{stem}.z"), self.model.weight(f"{stem}.W_O")
        part = Computed((*z.shape[:2], weight.shape[-1]), z.dtype, lambda: torch.einsum("rhd,hdm->rhm", z.tensor, weight))
        return Activations(part, "row head d_model", site=f"{stem}.head_out", index=z.index, space=z.space, provenance=self.provenance)

    def _attention(self, stem: str, leaf: str) -> Activations:
        seat = self.session.seat
        if stem in seat.partial and stem not in seat.edited:
            raise InputError(
                f"{stem} was given earlier keys from a cache, which were not read, so its {leaf} is not known. Read it without start=…."
            )
        q, k = (self.activations(f"{stem}.{n}_rot") for n in "qk")
        parts: Any = seat.edited[stem][leaf] if stem in seat.edited else self._recomputed(stem, leaf, q, k)
        return Activations(parts, "head query key", site=f"{stem}.{leaf}", index=q.index, space=q.space, provenance=self.provenance)

    def _recomputed(self, stem: str, leaf: str, q: Activations, k: Activations) -> list[Computed]:
        spec, parts = self.session.seat.specs[stem], []
        for at, example in enumerate(q.index.examples):  # type: ignore[union-attr]
            a, b = q.index.span(example), k.index.span(example)  # type: ignore[union-attr]
            sizes = (q.shape[1], a.stop - a.start, b.stop - b.start)
            parts.append(attention_part(leaf, lambda a=a: q.tensor[a], lambda b=b: k.tensor[b], sizes, spec, q.dtype, at))
        return parts

    # --- scalars and their gradients

    def _measure(self, answer: Activations | None, metrics: Any) -> dict[str, Tensor]:
        if answer is None:
            raise InputError(
                f"{self.model.name} gave no logits, so there is nothing to measure; use a class with a head and no stop_after."
            )
        named = {metrics.name: metrics} if isinstance(metrics, Metric) else dict(metrics)
        logits = answer.tensor
        if answer.axes[0] == "example":
            return {name: m.of(logits) for name, m in named.items()}
        spans = [answer.index.span(e) for e in answer.index.examples]  # type: ignore[union-attr]
        starts = np.array([s.start for s in spans])
        return {name: m.of(self._rows_read(m, logits, starts, spans)) for name, m in named.items()}

    def _rows_read(self, metric: Metric, logits: Tensor, starts: np.ndarray, spans: Sequence[slice]) -> Tensor:
        rows = starts[:, None] + metric.places([s.stop - s.start for s in spans])
        return logits[torch.as_tensor(rows if isinstance(metric.position, tuple) else rows[:, 0])]

    def _gradients(self, recording: Recording, metric: str, closed: Sequence[str] = ()) -> Recording:
        seen = list(self.session.raw)
        if not seen:
            raise InputError("Nothing was read that a gradient can reach; name sites in read=…, such as 'blocks.*.resid_post'.")
        raw = list(self.session.raw.values())
        shut = [self.model.site(n).name for n in closed]
        with self._closed(shut, closed):
            found = torch.autograd.grad(recording.metric[metric].sum(), raw, retain_graph=True, allow_unused=True)
        grads = {n: torch.zeros_like(r) if g is None else g for n, r, g in zip(seen, raw, found, strict=True)}
        names = [n for n in recording if self._has_gradient(n)]
        none = {n: torch.zeros_like(self.session.raw[n]) for n in shut}
        sites = {n: self._gradient(n, none if n in shut else grads) for n in names}
        return Recording(sites, recording.rows, {**recording.provenance, "gradient_of": metric}, recording._aliases)

    @contextmanager
    def _closed(self, sites: Sequence[str], asked: Sequence[str]) -> Iterator[None]:
        """No gradient passes these sites. The node that made a value is stopped, not the value: what arrives there is still seen."""
        missing = [name for name, site in zip(asked, sites, strict=True) if site not in self.session.raw]
        if missing:
            raise InputError(f"{missing[0]} was not read, so no backward can be closed there. Name it in read=….")
        makers = [self.session.raw[s].grad_fn for s in sites]
        handles = [m.register_prehook(lambda grads: tuple(None if g is None else torch.zeros_like(g) for g in grads)) for m in makers if m]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _has_gradient(self, name: str) -> bool:
        site = self.model.site(name)
        return name.endswith(".pattern") or (site.kind in ("place", "rotary", "module") and site.axes != "head query key")

    def _gradient(self, name: str, grads: Mapping[str, Tensor]) -> Activations:
        if name.endswith(".pattern"):
            return self._pattern_gradient(name, grads)
        site, seen = self.model.site(name), self.model.site(self.model.gradient_site(name))
        return self._rows(name, replace(site, place=seen.place), grads[seen.name])

    def _pattern_gradient(self, name: str, grads: Mapping[str, Tensor]) -> Activations:
        """No eager attention is needed: the gradient at `pattern[q, k]` is that at `z[q]` times `v[k]`."""
        stem = name.removesuffix(".pattern")
        z, v = self._gradient(f"{stem}.z", grads), self.activations(f"{stem}.v")
        parts = []
        for example in z.index.examples:  # type: ignore[union-attr]
            rows, keys = z.tensor[z.index.span(example)], v.tensor[v.index.span(example)]  # type: ignore[union-attr]
            parts.append(torch.einsum("qhd,khd->hqk", rows, repeat_heads(keys.detach(), rows.shape[1])))
        return Activations(parts, "head query key", site=name, index=z.index, space=z.space, provenance=self.provenance)


class Provenance(Mapping[str, Any]):
    """Where a recording came from; hashes are computed only when somebody asks."""

    def __init__(self, fields: Mapping[str, Callable[[], Any]]) -> None:
        self._fields = dict(fields)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)
