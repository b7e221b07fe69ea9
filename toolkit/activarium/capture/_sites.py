"""The vocabulary found in a model: where each site lives, and which sites are missing and why."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from activarium.errors import MissingSite, UnknownSite, unknown
from activarium.lens_names import lens_alias
from activarium.recording import is_pattern, matching


@dataclass(frozen=True)
class Place:
    """Where a value can be read and written: one side of one execution of one module.

    Attributes:
        path: Dotted module path; `""` is the model itself.
        side: `input` or `output`.
        argument: Which input: position or keyword.
        turn: Which execution of the module in one forward (shared layers run many times).
        cut: How the last axis is cut up; see `read_cut`.
        also: Inputs that carry the same values and are written together with `argument`.
        copied: The model changes this tensor in place later on, so a read takes a copy.
    """

    path: str
    side: str
    argument: int | str = 0
    turn: int = 0
    cut: tuple[str | int | float, ...] | None = None
    also: tuple[int | str, ...] = ()
    copied: bool = False


@dataclass(frozen=True)
class Site:
    """One name of the vocabulary in one model.

    Attributes:
        name: `blocks.3.mlp.post`.
        axes: Axes of what is read.
        rows: Row space.
        shape: Sizes of the axes after the first; empty where they vary (patterns).
        place: Where it lives, or None for derived sites.
        same_as: The site that holds the same values; stored once.
        kind: `place`, `rotary` (seen in the attention kernel), `derived`, `answer` (the model's output) or `module`.
        missing: Why this model does not have it.
        note: What the certificate found, such as "equals q".
    """

    name: str
    axes: str
    rows: str = ""
    shape: tuple[int, ...] = ()
    place: Place | None = None
    same_as: str | None = None
    kind: str = "place"
    missing: str | None = None
    note: str = ""


class SiteTable(Mapping[str, Site]):
    """All sites of a model; prints itself as a table. `select` turns patterns into names."""

    def __init__(self, sites: Sequence[Site], title: str = "") -> None:
        self._sites = {s.name: s for s in sites}
        self.title = title
        self._found: dict[str, Site] = {}
        self._selected: dict[tuple[str, ...], list[str]] = {}  # patterns are matched once, not in every run

    def __getitem__(self, name: str) -> Site:
        if name not in self._sites:
            raise unknown("site in this model", name, self, UnknownSite)
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return (n for n, s in self._sites.items() if not s.missing)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._sites and not self._sites[name].missing  # type: ignore[index]

    @property
    def missing(self) -> dict[str, str]:
        """Sites of the vocabulary that this model cannot offer, with the reason."""
        return {n: s.missing for n, s in self._sites.items() if s.missing}

    def find(self, name: str) -> Site:
        """The site that holds the values of this name.

        Raises:
            UnknownSite: No such name; the nearest ones are listed.
            MissingSite: The vocabulary has it, this model does not; the reason is given.
        """
        if name not in self._found:
            site = self[lens_alias(name) or name]
            if site.missing:
                raise MissingSite(f"{self.title} has no site {name!r}: {site.missing}.")
            self._found[name] = self.find(site.same_as) if site.same_as else site
        return self._found[name]

    def select(self, wanted: str | Sequence[str]) -> list[str]:
        """Names for names and patterns, in the order asked for and in layer order.

        Raises:
            UnknownSite: A name or pattern that selects nothing.
            MissingSite: A name, or everything a pattern selects, is missing in this model.
        """
        key = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        if key not in self._selected:
            self._selected[key] = list(dict.fromkeys(name for one in key for name in self._select_one(one)))
        return list(self._selected[key])

    def _select_one(self, name: str) -> list[str]:
        if not is_pattern(name):
            if not name.startswith("module:"):
                self.find(name)
            return [lens_alias(name) or name]
        every = matching(name, list(self._sites))
        here = [n for n in every if not self._sites[n].missing]
        if every and not here:
            raise MissingSite(f"{self.title} has no site {name!r}: {self._sites[every[0]].missing}.")
        if not here:
            raise unknown("site in this model", name, self, UnknownSite)
        return here

    def _lines(self) -> list[tuple[str, str, str, str]]:
        grouped: dict[str, list[Site]] = {}
        for site in self._sites.values():
            parts = site.name.split(".")
            key = ".".join("*" if p.isdigit() else p for p in parts)
            grouped.setdefault(key, []).append(site)
        return [(key, *_describe(sites)) for key, sites in grouped.items()]

    def __repr__(self) -> str:
        lines = [("site", "axes", "shape", "remark"), *self._lines()]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        return "\n".join([self.title, *("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in self._lines())
        head = "<tr><th>site</th><th>axes</th><th>shape after rows</th><th>remark</th></tr>"
        return f"<strong>{html.escape(self.title)}</strong><table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _describe(sites: Sequence[Site]) -> tuple[str, str, str]:
    shown = next((s for s in sites if not s.missing), sites[0])
    absent = [s for s in sites if s.missing]
    remarks = (
        [f"missing: {absent[0].missing}" if len(absent) == len(sites) else f"missing in {len(absent)} of {len(sites)}: {absent[0].missing}"]
        if absent
        else []
    )
    if shown.same_as and not shown.missing:
        remarks.append(f"same as {shown.same_as}")
    if shown.note:
        remarks.append(shown.note)
    return shown.axes, "×".join(map(str, shown.shape)) or "varies", "; ".join(remarks)
