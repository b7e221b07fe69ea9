"""The sinks of one stack of attention layers: counted over sequences of one length, then looked at more closely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from activarium.analyses.layer_sites import STACKS, layer_number, layer_sites
from activarium.analyses.massive.received import SHORTEST, Received, common_length, received, recordings, repetitive
from activarium.analyses.massive.seen import rows_ahead
from activarium.analyses.massive.updates import random_sets, sink_updates
from activarium.errors import InputError, UnknownSite
from activarium.maths import bootstrap_interval
from activarium.protocols import Runner
from activarium.recording import Recording, matching
from activarium.results import Grid, Result, Series
from activarium.rows import Rows


def attention_stacks(source: Runner | Recording, inputs: Any) -> Iterator[tuple[str, list[str], dict[int, int], bool]]:
    """Each stack with its patterns, the number of rows of each example, and whether its rows look ahead.

    Raises:
        UnknownSite: There is no pattern.
    """
    if isinstance(source, Recording):
        for stack, sites in layer_sites(source, ("attn.pattern",), "head query key").items():
            first = next(iter(sites.values()))
            if first.index is None:
                raise InputError(f"{first.site} has no row table, so its sequences are not known. Pass the recording, not one example.")
            rows = {e: len(range(*first.index.span(e).indices(len(first.index)))) for e in first.index.examples}
            yield stack, list(sites), rows, rows_ahead(source, next(iter(sites)))
        return
    found = {stack.rstrip("."): matching(f"{stack}blocks.*.attn.pattern", list(source.sites)) for stack in STACKS}
    if not any(found.values()):
        raise UnknownSite(f"{source.name} has no site 'blocks.*.attn.pattern' that can be read. See model.sites for what it offers.")
    encoded = source.inputs(inputs)
    for stack, sites in found.items():
        if sites:
            space = source.sites[sites[0]].rows
            rows = dict(zip((int(e) for e in encoded.numbers), (int(n) for n in encoded.rows_of(space)), strict=True))
            yield stack, sites, rows, not source.looks_back(space)


class StackOfSinks:
    """Sums over the sequences of one stack.

    Attributes:
        length: Rows that count.
        chosen: Examples that have them.
    """

    def __init__(
        self,
        source: Runner | Recording,
        inputs: Any,
        stack: tuple[list[str], Mapping[int, int], bool],
        *,
        epsilon: float,
        length: int | None,
        subtract: bool,
        skip: int,
        progress: bool,
    ) -> None:
        self.sites, self.lengths, self.ahead = stack
        self.source, self.inputs, self.epsilon, self.skip, self.progress = source, inputs, epsilon, skip, progress
        self.length = common_length(self.lengths, length, self.ahead)
        self._refuse_short(subtract)
        fits = [n == self.length if self.ahead else n >= self.length for n in self.lengths.values()]
        self.chosen = [e for e, fit in zip(self.lengths, fits, strict=True) if fit]
        self._counts: list[np.ndarray] = []
        self._sums: list[np.ndarray] = []
        self._repeats: list[int] = []
        self._names: dict[int, str] = {}
        for recording in recordings(source, inputs, self.sites, progress):
            self._add(recording, subtract)

    def _refuse_short(self, subtract: bool) -> None:
        if self.length < SHORTEST and not subtract:
            uniform = sum(1 / n for n in range(1, self.length + 1)) / self.length
            raise InputError(
                f"At {self.length} rows uniform attention alone gives the first one an importance of {1 / self.length if self.ahead else uniform:.2f}; "
                f"epsilon is {self.epsilon}. Give sequences of {SHORTEST} rows or more, or subtract=True to compare with uniform attention."
            )
        if not 0 <= self.skip < self.length:
            raise InputError(f"skip={self.skip} leaves none of the {self.length} queries; give a smaller one.")

    def _add(self, recording: Recording, subtract: bool) -> None:
        pattern = recording[self.sites[0]]
        assert pattern.index is not None
        here = [e for e in pattern.index.examples if e in set(self.chosen)]
        layers = [received(recording, site, here, self.length, self.skip) for site in self.sites]
        for example in here:
            each: list[Received] = [found[example] for found in layers]
            importance, even = np.stack([r.importance for r in each]), np.stack([r.even for r in each])
            sinking = importance - (even[:, None] if subtract else 0) > self.epsilon
            self._counts.append(sinking.sum((0, 1)))
            late, late_even = np.stack([r.late for r in each]), np.stack([r.late_even for r in each])
            queries = np.stack([r.queries for r in each])
            parts = [importance, even, late, late_even, sinking.astype(np.float64), queries]
            self._sums = [a + b for a, b in zip(self._sums, parts, strict=True)] if self._sums else parts
            self._note(pattern.index, example)

    def _note(self, rows: Rows, example: int) -> None:
        """Is the sequence repetitive, and what stands in the first one?"""
        table = rows.take(rows.span(example))
        if "token" in table and (table["token"] >= 0).all() and repetitive(table["token"]):
            self._repeats.append(example)
        if not self._names and "text" in table:
            self._names = {i: f"{table['text'][i]!r}, {table['kind'][i]}" for i in range(self.length)}

    # --- the answer

    def answer(self, sinks: Sequence[int] | None, sets: int, seed: int) -> tuple[dict[str, Result], list[str], dict[str, Any]]:
        """Parts, words and notes."""
        examples = len(self.chosen)
        importance, even, late, late_even, sinking, queries = (s / examples for s in self._sums)
        counts = np.array(self._counts)
        cells = importance.shape[0] * importance.shape[1]
        percent = 100 * counts.sum(0) / (examples * cells)
        low, high, _ = bootstrap_interval(100 * counts, np.full(counts.shape, cells), seed=seed)
        uniform = 100.0 * (even > self.epsilon).mean(0)
        at = self._checked(sinks) if sinks is not None else [int(np.where(_well_seen(queries.mean(0)), percent, -1).argmax())]
        positions, blocks = np.arange(self.length), np.array([layer_number(s, i) for i, s in enumerate(self.sites)])
        head_percent, mass = 100 * sinking[..., at].max(-1), late[..., at].sum(-1)
        even_mass = late_even[..., at].sum(-1)
        curves = {"measured": percent, "uniform attention": uniform}
        labels = {"layer": [s.removesuffix(".pattern") for s in self.sites]}
        parts: dict[str, Result] = {
            "sinks": Series(positions, curves, "position", {"measured": np.stack([low, high])}, title="Heads that sink at each position", unit="percent of heads"),
            "importance": Series(positions, {"measured": importance.mean((0, 1)), "uniform attention": even.mean(0)}, "position", title="Attention that each key receives from the queries that see it", unit="share"),
            "heads": Grid(head_percent, ("layer", "head"), labels, title=f"Heads that sink at {_and(at)}", unit="percent of sequences"),
            "mass": Grid(mass, ("layer", "head"), labels, title=f"Attention on {_and(at)} from query {self.skip} on", unit="share"),
            "layers": Series(blocks, {"mass": mass.mean(1), "uniform attention": even_mass}, "block", title=f"Attention on {_and(at)}, averaged over heads", unit="share"),
        }  # fmt: skip
        more, said = self._updates(at, sets, seed, blocks, head_percent, labels)
        notes = {
            "length": self.length, "sequences": examples, "shorter or longer, left out": len(self.lengths) - examples, "sinks": at,
            "percent of heads": float(percent[at].max()), "base rate": float(percent.mean()), "repetitive": self._repeats,
            "rows look ahead": self.ahead,
        }  # fmt: skip
        return parts | more, self._words(at, percent, uniform, float(mass.mean()), float(even_mass.mean())) + said, notes

    def _checked(self, sinks: Sequence[int]) -> list[int]:
        wrong = [k for k in sinks if not 0 <= k < self.length]
        if wrong or not len(sinks):
            raise InputError(f"sinks={list(sinks)} should name positions from 0 to {self.length - 1}, the rows that count here.")
        return sorted(set(map(int, sinks)))

    def _updates(
        self, at: list[int], sets: int, seed: int, blocks: np.ndarray, heads: np.ndarray, labels: Mapping[str, list[str]]
    ) -> tuple[dict[str, Result], list[str]]:
        """The heads' updates by the sinks, where values can be read."""
        names = [s.removesuffix(".pattern") for s in self.sites]
        others = random_sets(at, self.length, self.skip, self.ahead, sets, seed)
        sums: list[dict[str, np.ndarray]] = []
        for recording in recordings(self.source, self.inputs, [*self.sites, *(f"{n}.v" for n in names)], self.progress):
            if any(f"{n}.v" not in recording for n in names):
                return {}, ["values were not recorded (attn.v), so the heads' updates are not split."]
            index = recording[self.sites[0]].index
            assert index is not None
            for example in (e for e in index.examples if e in set(self.chosen)):
                found = [sink_updates(recording, n, example, at, others, self.length, self.skip) for n in names]
                sums.append({name: np.stack([f[name] for f in found]) for name in found[0]})
        mean = {name: np.mean([s[name] for s in sums], axis=0) for name in sums[0]}
        away = {name: _middle(np.stack([s[name] for s in sums], 1)) for name in ("sinks", "random")}
        parts: dict[str, Result] = {
            "constancy": Series(blocks, {"sinks": away["sinks"], "random positions": away["random"]}, "block", title="How far the update by these keys varies over queries (median over heads)", unit="share of its mean"),
            "update": Series(blocks, {"sinks": mean["share"].mean(1)}, "block", title="Part of the heads' update that comes from the sinks", unit="share"),
            "value norms": Series(blocks, {"sinks": mean["sink norm"].mean(1), "other positions": mean["other norm"].mean(1)}, "block", title="Length of the values", unit="model units"),
        }  # fmt: skip
        shared = heads.shape[1] // mean["sink norm"].shape[1]
        if shared > 1:
            grouped = heads.reshape(len(heads), -1, shared).mean(-1)
            parts["kv heads"] = Grid(grouped, ("layer", "head"), labels, title=f"Heads that sink, averaged over the {shared} that share keys", unit="percent of sequences")  # fmt: skip
        ratio = mean["sink norm"].mean() / mean["other norm"].mean()
        constant, null = (_middle(away[name][None])[0] for name in ("sinks", "random"))
        beside = "" if np.isnan(null) else f", that by random positions by {null:.0%}"
        return parts, [
            f"values there are {ratio:.2f} times as long as elsewhere; the update they cause varies by {constant:.0%} of its mean over queries{beside}."
        ]

    def _words(self, at: list[int], percent: np.ndarray, uniform: np.ndarray, mass: float, even: float) -> list[str]:
        kind = "as they are" if self.ahead else "cut to their first rows"
        left = len(self.lengths) - len(self.chosen)
        rest = f"; {left} of another length were left out" if left else ""
        said = [f"{len(self.chosen)} sequences of {self.length} rows, {kind}{rest}."]
        texts = f" ({'; '.join(self._names[k] for k in at)} in the first)" if self._names else ""
        if percent[at].max() > 0:
            said.append(
                f"{percent[at].max():.1f} % of the heads sink at {_and(at)}{texts}; with uniform attention {uniform[at].max():.0f} % would, "
                f"and over all positions it is {percent.mean():.2f} %."
            )
        else:
            said.append(
                f"none: no head gives {_and(at)}, or any other that many queries see, more than {self.epsilon:g} of their attention."
            )
        said.append(
            f"from query {self.skip} on, heads give {mass:.1%} of their attention to {_and(at)}; uniform attention would give {even:.1%}."
        )
        if self._repeats:
            said.append(
                f"{len(self._repeats)} sequences are repetitive (one token is half of them or more); the metric can collapse there. Measure without them."
            )
        return said


def _well_seen(queries: np.ndarray) -> np.ndarray:
    """Keys that half as many queries see as the best seen one: the last keys look important to the few that see them."""
    return queries >= queries.max() / 2


def _middle(values: np.ndarray) -> np.ndarray:
    """Median of all but the first axis over what is a number: a head that sees no sink has no update by it."""
    flat = values.reshape(len(values), -1)
    return np.array([np.median(v[np.isfinite(v)]) if np.isfinite(v).any() else np.nan for v in flat])


def _and(positions: Sequence[int]) -> str:
    return f"position{'s' if len(positions) > 1 else ''} {', '.join(map(str, positions))}"
