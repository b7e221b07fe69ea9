"""The forwards of one generation: which rows each of them computed, and all of them put together as one Recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from activarium._parts import Computed
from activarium.activations import Activations
from activarium.attention import AttentionSpec, attention_part
from activarium.capture._answers import Answers, Provenance
from activarium.capture._inputs import Batch, Inputs
from activarium.capture._masks import Span
from activarium.errors import InputError
from activarium.recording import Lazy, Recording
from activarium.rows import Rows

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner
    from activarium.capture._session import Session


class Step(Batch):
    """One forward of a generation: a left-padded prompt, or the newest token of every text that goes on.

    Attributes:
        number: 0 for the prompt, then one per token.
        alive: Places in the batch of the texts that this forward adds rows to.
        rows: Row tables of what this forward computes.
    """

    def __init__(self, prompts: Inputs, space: str, number: int, alive: np.ndarray, new: list[Tensor], first: list[int]) -> None:
        before = prompts.batch
        self.number, self.alive, self._space = number, alive, space
        self.inputs = replace(prompts.select(alive), data={**prompts.select(alive).data, space: new})
        self.arguments = {}
        self._lengths = [a + len(t) for a, t in zip(first, new, strict=True)]
        width = max(map(len, new))
        cells = [e * width + i for e, t in zip(alive, new, strict=True) for i in range(width - len(t), width)]
        self.shape = {**before.shape, space: (len(prompts), width)}
        whole = len(cells) == len(prompts) * width
        self.index = {**before.index, space: None if whole else torch.tensor(cells)}
        self._first = first

    def spans(self, queries: str, keys: str, width: int) -> list[Span]:
        """Where the real rows lie: at the end of a text that grows, at the beginning of what an encoder has read."""
        cells, found = self.shape[queries][1], []
        for at, row in enumerate(self.alive):
            count = len(self.inputs.data[queries][at])
            known = self._lengths[at] if keys == self._space else len(self.inputs.data[keys][at])
            # A window's cache drops keys that no later query sees.
            seen = slice(max(0, width - known), width) if keys == self._space else slice(0, known)
            asking = slice(cells - count, cells) if queries == self._space else slice(0, count)
            found.append(Span(int(row), asking, seen))
        return found

    @cached_property
    def rows(self) -> dict[str, Rows]:
        """Row tables of what this forward computes."""
        new, inputs = self.inputs.data[self._space], self.inputs
        tokens = torch.cat(list(new)).numpy()
        counts = [len(t) for t in new]
        columns: dict[str, Any] = {
            "example": np.repeat(inputs.numbers, counts),
            "position": np.concatenate([a + np.arange(n) for a, n in zip(self._first, counts, strict=True)]),
            "token": tokens,
            "text": lambda: np.array([inputs.words(int(t)) for t in tokens], dtype=object),
            "kind": np.array([inputs.special.get(int(t), "token") for t in tokens], dtype=object),
            "phase": np.full(len(tokens), "response" if self.number else "prompt", dtype=object),
            "step": np.full(len(tokens), self.number),
        }
        others = {s: _with_phase(r, np.zeros(len(r), int)) for s, r in inputs.batch.rows.items() if s != self._space}
        return {self._space: Rows(columns), **others}


def _with_phase(rows: Rows, step: np.ndarray) -> Rows:
    """A row table with the columns of a generation."""
    known = {name: partial(rows.__getitem__, name) for name in rows.columns}
    return Rows({**known, "phase": np.where(step > 0, "response", "prompt").astype(object), "step": step})


class Steps:
    """All forwards of one generation, and what was read in them.

    Attributes:
        names: What was asked for.
        argument: Keyword of the token ids.
        written: Per example, the tokens that belong to its text.
        encoded: What the encoder gave, as an argument of further forwards.
    """

    def __init__(self, model: TorchRunner, prompts: Inputs, space: str, names: Sequence[str]) -> None:
        self.model, self.prompts, self.space, self.names = model, prompts, space, list(names)
        self.argument = prompts.spaces[space].argument
        self.written: list[list[Tensor]] = [[] for _ in range(len(prompts))]
        self.encoded: dict[str, Any] = {}
        self._number = 0
        self._pieces: dict[str, list[Tensor]] = {}
        self._tables: list[Rows] = []
        self._specs: list[dict[str, AttentionSpec]] = []
        self._edited: list[tuple[Step, dict[str, dict[str, list[Tensor]]]]] = []
        self._eager: dict[str, None] = {}
        for name in self.names:
            self._check(name)

    def _check(self, name: str) -> None:
        site = self.model.site(name)
        spaces = set(self.prompts.spaces)
        if site.kind != "module" and site.rows not in spaces:
            raise InputError(f"{name} has one value for an example, not one for each row; generate reads rows. Use run on the final text.")
        if site.kind == "module" and len(spaces) > 1:
            raise InputError(f"{name} may run in the encoder or in the decoder; generate reads modules of single-stack models only.")

    def before(self) -> Step:
        """The encoder's forward, which comes before all steps."""
        every = np.arange(len(self.prompts))
        return Step(self.prompts, self.space, 0, every, list(self.prompts.data[self.space]), [0] * len(every))

    def next(self, ids: Tensor, real: Sequence[Tensor]) -> Step | None:
        """The step of a forward that is given these ids; None where no text goes on."""
        step = self._next(ids, real)
        if step is not None:
            self._tables.append(step.rows[self.space])
        return step

    def _next(self, ids: Tensor, real: Sequence[Tensor]) -> Step | None:
        number, self._number = self._number, self._number + 1
        if number == 0:
            return self.before()
        if ids.shape[1] != 1:
            raise InputError(
                f"{self.model.name} keeps no keys and values of earlier tokens, so every step runs all rows again. Use run on the final text."
            )
        alive = np.flatnonzero(real[number - 1].numpy()) if number <= len(real) else np.empty(0, int)
        if not len(alive):
            return None
        first = [len(self.prompts.data[self.space][e]) + len(self.written[e]) for e in alive]
        new = [ids[e].cpu() for e in alive]
        for e, token in zip(alive, new, strict=True):
            self.written[e].append(token[0])
        return Step(self.prompts, self.space, number, alive, new, first)

    def take(self, session: Session, output: Any, names: Sequence[str]) -> None:
        """Keep the rows of one forward."""
        answers = Answers(self.model, session, output)
        step = session.batch
        assert isinstance(step, Step)
        for name in names:
            self._pieces.setdefault(name, []).append(answers.activations(name).tensor)
        self._specs.append(dict(session.seat.specs))
        if session.seat.edited:
            self._edited.append((step, session.seat.edited))
        self._eager |= dict.fromkeys(session.seat.eager)

    # --- put together

    def recording(self, inputs: Inputs, options: dict[str, Any]) -> Recording:
        """Every row of the final texts."""
        fields = {
            "model": lambda: self.model.identity,
            "inputs": inputs.describe,
            "generated": lambda: options,
            "eager_blocks": lambda: list(self._eager),
        }
        self._provenance = Provenance(fields)
        tables = Rows.concatenate([_plain(t) for t in self._tables])
        # Forwards come one after the other, texts side by side; a recording has one text after the other.
        places = {int(number): place for place, number in enumerate(inputs.numbers)}
        place = np.array([places[int(e)] for e in tables["example"]])
        self._order = torch.as_tensor(np.lexsort((tables["position"], place)))
        self._rows = {s: _with_phase(r, np.zeros(len(r), int)) for s, r in inputs.batch.rows.items()}
        self._rows[self.space] = _with_phase(inputs.batch.rows[self.space], tables["step"][self._order.numpy()])
        hold = {name: self.model.sites_hold(name) for name in self.names}
        made = Lazy({name: partial(self._activations, name) for name in dict.fromkeys(hold.values())})
        aliases = {name: held for name, held in hold.items() if held != name}
        recording = Recording(made, self._rows, self._provenance, aliases)
        stems = dict.fromkeys(n for specs in self._specs for n in specs)
        recording.attention = {n: spec for n in stems if isinstance(spec := self._spec(n), AttentionSpec)}
        return recording

    def _activations(self, name: str) -> Activations:
        site = self.model.site(name)
        stem, _, leaf = name.rpartition(".")
        space = self.space if site.kind == "module" else site.rows
        common = {"site": name, "index": self._rows[space], "space": space, "provenance": self._provenance}
        if leaf == "head_out" and site.kind == "derived":
            z, weight = self._activations(self.model.site(f"{stem}.z").name), self.model.weight(f"{stem}.W_O")
            part = Computed((*z.shape[:2], weight.shape[-1]), z.dtype, lambda: torch.einsum("rhd,hdm->rhm", z.tensor, weight))
            return Activations(part, site.axes, **common)
        if site.kind == "derived":
            return Activations(self._attention(stem, leaf), "head query key", **common)
        values = torch.cat(self._pieces[name])
        axes = "row feature" if site.kind == "module" else site.axes
        return Activations(values[self._order.to(values.device)] if space == self.space else values, axes, **common)

    def _attention(self, stem: str, leaf: str) -> list[Computed]:
        spec = self._spec(stem)
        if isinstance(spec, str):
            raise InputError(f"{stem}.{leaf} cannot be put together from the steps: {spec}. Read it with run(generation.inputs, …).")
        q, k = (self._activations(self.model.site(f"{stem}.{n}_rot").name) for n in "qk")
        parts = []
        for example in q.index.examples:  # type: ignore[union-attr]
            a, b = q.index.span(example), k.index.span(example)  # type: ignore[union-attr]
            sizes = (q.shape[1], a.stop - a.start, b.stop - b.start)
            part = attention_part(leaf, lambda a=a: q.tensor[a], lambda b=b: k.tensor[b], sizes, spec, q.dtype, 0)
            edits = self._edits_of(stem, leaf, example)
            parts.append(Computed(part.shape, part.dtype, partial(_overlaid, part, edits)) if edits else part)
        return parts

    def _edits_of(self, stem: str, leaf: str, example: int) -> list[tuple[int, Tensor]]:
        """Edited parts of one example: from which query on, `head query key`."""
        found = []
        for step, edited in self._edited:
            if stem in edited and example in step.inputs.numbers:
                at = list(step.inputs.numbers).index(example)
                found.append((step._first[at], edited[stem][leaf][at]))
        return found

    def _spec(self, stem: str) -> AttentionSpec | str:
        """One description for all steps, or why there is none."""
        specs = [s[stem] for s in self._specs if stem in s]
        first = specs[0]
        own = self.model.sites[f"{stem}.k_rot"].rows == self.space
        if any(s.mask is not None for s in specs):
            return "its mask is neither full, causal nor a causal window"
        if any(s.numbers() | {"causal": 0} != first.numbers() | {"causal": 0} for s in specs):
            return "its scale, window or soft-cap changes from step to step"
        if own and not stem.startswith("encoder.") and not first.causal and int(self.prompts.rows_of(self.space).max()) > 1:
            return "its prompt sees what follows"
        # A query of a later step has no later keys, whatever the kernel was told about causality.
        causal = own and not stem.startswith("encoder.")
        return replace(first, causal=causal, bias=_grown([s.bias for s in specs]), edited=any(s.edited for s in specs))


def _grown(biases: Sequence[Tensor | None]) -> Tensor | None:
    """The position bias of all steps as one `head query key`; keys that a step did not have yet are hidden anyway."""
    given = [b for b in biases if b is not None]
    if not given or len(given) != len(biases):
        return given[0] if given else None
    width = max(b.shape[2] for b in given)
    return torch.cat([torch.nn.functional.pad(b, (0, width - b.shape[2])) for b in given], 1)


def _overlaid(part: Computed, edits: Sequence[tuple[int, Tensor]]) -> Tensor:
    """A recomputed part with its edited queries in their places; a window's cache has only the last keys of a query."""
    values = part.load().clone()
    for first, edited in edits:
        last = first + edited.shape[1]
        width = min(edited.shape[2], values.shape[2])
        start = max(0, last - width) if values.shape[1] == values.shape[2] else 0
        values[:, first:last, start : start + width] = edited
    return values


def _plain(rows: Rows) -> Rows:
    return Rows({name: rows[name] for name in ("example", "position", "step")})
