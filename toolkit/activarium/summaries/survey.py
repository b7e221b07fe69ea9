"""Survey: the summaries of many sites, gathered in one pass; it merges, saves and answers like each of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.errors import InputError, NotFinite, OtherModel, UnknownSite, unknown
from activarium.recording import is_pattern, matching
from activarium.results import Report, Result
from activarium.rows import Rows
from activarium.summaries._co_activation import CoActivation
from activarium.summaries._count import Count
from activarium.summaries._gram import Gram
from activarium.summaries._magnitudes import Magnitudes
from activarium.summaries._moments import Moments
from activarium.summaries._quantiles import Quantiles
from activarium.summaries._top_rows import TopRows
from activarium.summaries.base import Summary

FORMAT = 1
KINDS: dict[str, Any] = {kind.__name__: kind for kind in (CoActivation, Count, Gram, Magnitudes, Moments, Quantiles, TopRows)}
Wanted = Mapping[str, Sequence[Summary]]


class Survey(Mapping[str, Mapping[str, Summary]]):
    """Site → its summaries by name: `survey["blocks.3.mlp.post"]["Count"]`.

    Attributes:
        rows: Row space → table of the examples that a summary names, for readable context.
        provenance: Model, data, and which kinds of rows were left out.
    """

    def __init__(self, sites: Mapping[str, Sequence[Summary]], provenance: Mapping[str, Any] | None = None) -> None:
        self._sites = {site: _named(many) for site, many in sites.items()}
        self.rows: dict[str, Rows] = {}
        self.provenance: dict[str, Any] = dict(provenance or {})
        self._aliases: dict[str, str] = {}

    # --- gathering

    def fresh(self) -> Survey:
        """The same survey before any row."""
        made = Survey({site: [s.fresh() for s in many.values()] for site, many in self._sites.items()}, self.provenance)
        made._aliases = dict(self._aliases)
        return made

    def update(self, site: str, values: Activations) -> None:
        """Take in more rows of one site.

        Raises:
            NotFinite: NaN or infinity where a summary needs numbers; the message names site and example.
        """
        for summary in self[site].values():
            try:
                summary.update(values)
            except NotFinite as error:
                raise NotFinite(f"{error} First in {_first_strange(values)}. Count and Magnitudes count such numbers.") from None

    def merge(self, other: Survey) -> Survey:
        """Take in all that another survey has seen, of other rows of the same model.

        Raises:
            UnknownSite: One of the two lacks a site.
            OtherModel: The other one is of a model with other weights.
            AxisError: A site has another width there.
        """
        mine, theirs = (s.provenance.get("model") or {} for s in (self, other))
        if mine.get("weight_hash") != theirs.get("weight_hash"):
            raise OtherModel(
                f"One survey is of {mine.get('name')} (weights {mine.get('weight_hash')}), the other of {theirs.get('name')} "
                f"(weights {theirs.get('weight_hash')}). Merge surveys of one model, and compare models by their results."
            )
        for here, there in ((self, other), (other, self)):
            for site in there:
                if site not in here:
                    raise unknown("site in one of the two surveys", site, here, UnknownSite)
        for site, many in self._sites.items():
            for name, summary in many.items():
                if name not in other[site]:
                    raise unknown(f"summary of {site} in the other survey", name, other[site])
                summary.merge(other[site][name])
        for space, table in other.rows.items():
            self.rows[space] = _together(self.rows[space], table) if space in self.rows else table
        return self

    # --- asking

    def __getitem__(self, site: str) -> Mapping[str, Summary]:
        held = self._aliases.get(site, site)
        if held not in self._sites:
            hint = UnknownSite(f"{site!r} selects several sites: survey.find({site!r}, 'Count') gives each one's summary.")
            raise hint if is_pattern(site) else unknown("site in this survey", site, self._sites, UnknownSite)
        return self._sites[held]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __contains__(self, site: object) -> bool:
        return site in self._sites or site in self._aliases

    def find(self, pattern: str, name: str) -> dict[str, Summary]:
        """One summary of every site that a pattern selects, in the order of the layers."""
        found = matching(pattern, [*self._sites, *self._aliases])
        if not found:
            raise unknown("site in this survey", pattern, self._sites, UnknownSite)
        for site in found:
            if name not in self[site]:
                raise unknown(f"summary of {site}", name, self[site])
        return {site: self[site][name] for site in found}

    def result(self, site: str, name: str) -> Result:
        """What one summary found, with the rows it names in their context."""
        many = self[site]
        if name not in many:
            raise unknown(f"summary of {site}", name, many)
        made = many[name].result(self.rows_of(site))
        return made.with_(provenance={**self.provenance, "site": site, "summary": many[name].describe()})

    def report(self, sites: str | None = None) -> Report:
        """What all summaries found, site by site; `sites` is a pattern that chooses some."""
        chosen = matching(sites, list(self)) if sites else list(self)
        parts = {f"{site} {name}": self.result(site, name) for site in chosen for name in self[site]}
        return Report(parts, title=f"Survey of {len(chosen)} sites", provenance=self.provenance)

    def named_examples(self, site: str) -> list[int]:
        """Examples that the summaries of a site name."""
        return sorted({e for s in self[site].values() if isinstance(s, TopRows) for e in s.examples})

    def space(self, site: str) -> str:
        """Row space of a site."""
        return str(self.provenance.get("spaces", {}).get(self._aliases.get(site, site), ""))

    def rows_of(self, site: str) -> Rows | None:
        """Row table of the examples that the summaries of a site name."""
        return self.rows.get(self.space(site))

    # --- on disk

    def save(self, path: str | Path) -> Path:
        """Write all states into one safetensors file; `act.load_survey` brings the same survey back."""
        from safetensors.torch import save_file

        path = Path(path)
        tensors: dict[str, Tensor] = {}
        words = {site: {name: s.describe() for name, s in many.items()} for site, many in self._sites.items()}
        for place, summary in self._all():
            tensors |= {f"{place}/{key}": value.contiguous() for key, value in summary.state.items()}
        rows = {space: {c: table[c].tolist() for c in table.columns} for space, table in self.rows.items()}
        header = {"sites": words, "provenance": self.provenance, "aliases": self._aliases, "rows": rows}
        temporary = path.with_name(path.name + ".part")
        save_file(
            tensors or {"empty": torch.empty(0)}, temporary, metadata={"activarium survey": json.dumps(header), "format": str(FORMAT)}
        )
        temporary.replace(path)
        return path

    def _all(self) -> Iterator[tuple[str, Summary]]:
        for i, many in enumerate(self._sites.values()):
            for name, summary in many.items():
                yield f"{i}/{name}", summary

    def __repr__(self) -> str:
        lines = [f"  {site}  {', '.join(map(repr, many.values()))}" for site, many in list(self._sites.items())[:40]]
        more = [f"  … {len(self) - 40} more"] if len(self) > 40 else []
        return "\n".join([f"Survey({len(self)} sites)", *lines, *more])


def load_survey(path: str | Path) -> Survey:
    """Read a survey that `save` wrote.

    Raises:
        InputError: The file is not a saved survey, or of a later format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InputError(f"{path.name} is not a saved survey: {error}. Save one with survey.save(path).") from error
    if "activarium survey" not in header:
        raise InputError(f"{path.name} is a safetensors file, but not a saved survey. Save one with survey.save(path).")
    if int(header["format"]) > FORMAT:
        raise InputError(f"{path.name} has survey format {header['format']}; this version reads up to {FORMAT}. Upgrade activarium.")
    words = json.loads(header["activarium survey"])
    made = Survey({site: [_restored(w) for w in many.values()] for site, many in words["sites"].items()}, words["provenance"])
    for (place, summary), described in zip(made._all(), (w for many in words["sites"].values() for w in many.values()), strict=True):
        state = {key.removeprefix(f"{place}/"): value for key, value in tensors.items() if key.startswith(f"{place}/")}
        summary.restore(described, state)
    made._aliases = words["aliases"]
    made.rows = {space: Rows({c: _column(v) for c, v in columns.items()}) for space, columns in words["rows"].items()}
    return made


def _restored(words: Mapping[str, Any]) -> Summary:
    if words["kind"] not in KINDS:
        raise unknown("kind of summary", str(words["kind"]), KINDS)
    return KINDS[words["kind"]](**words["settings"])


def _named(many: Iterable[Summary]) -> dict[str, Summary]:
    """By kind; where there are several of a kind, by their settings too."""
    made: dict[str, Summary] = {}
    for summary in many:
        plain, full = summary.name, f"{summary.name}({', '.join(f'{k}={v}' for k, v in summary.settings.items())})"
        name = plain if plain not in made else full
        if any(type(s) is type(summary) and s.settings == summary.settings for s in made.values()):
            raise InputError(f"{full} is asked for twice at one site. Ask for it once.")
        made[name] = summary
    return made


def _first_strange(values: Activations) -> str:
    start = 0
    for batch in values.batches():
        bad = (~batch.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(bad):
            row = start + int(bad[0])
            return f"example {int(values.index['example'][row])}" if values.index is not None else f"row {row}"
        start += len(batch)
    return "no row"


def _together(a: Rows, b: Rows) -> Rows:
    known = set(a.examples)
    fresh = [e for e in b.examples if e not in known]
    if not fresh:
        return a
    return Rows.concatenate([a, b.take(np.concatenate([np.arange(*b.span(e).indices(len(b))) for e in fresh]))])


def _column(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=object) if values and isinstance(values[0], str) else np.array(values)
