"""The verdicts as a committed page and as data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from activarium.capture._writes import EXPERTS
from activarium.testing.census._verdict import Verdict

OUTCOMES = {
    "certified": "every site that the architecture has is there and proven",
    "partly": "what is there is proven; the sites that are missing say why",
    "refused": "nothing of the vocabulary is offered: the certificate failed, or no stream of rows was recognised",
    "disputed": "the certificate passed, but transformers' own output says otherwise: a defect of ours",
    "not built": "no tiny model of the class could be made",
}
ALONE = "partly, experts' neurons alone"
COLUMNS = ("class", "sums", "checks", "states", "patterns", "names", "what is missing, and why")


def read(folder: Path) -> list[Verdict]:
    """The verdicts of an earlier `families.json`, if it was made with the libraries that are installed."""
    path = folder / "families.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [Verdict(**one) for one in facts["classes"]] if facts.get("versions") == versions() else []


def write(verdicts: Sequence[Verdict], folder: Path) -> list[Path]:
    """Write `families.md` and `families.json` into a folder; classes that are not among these verdicts keep their lines."""
    fresh = {v.name for v in verdicts}
    verdicts = [*verdicts, *(v for v in read(folder) if v.name not in fresh)]
    ordered = sorted(verdicts, key=lambda v: (list(OUTCOMES).index(v.outcome), v.task, v.name))
    facts = {"versions": versions(), "counts": counts(ordered), "classes": [v.to_json() for v in ordered]}
    page, data = folder / "families.md", folder / "families.json"
    data.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page.write_text(_page(ordered, facts), encoding="utf-8")
    return [page, data]


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many classes of each outcome, and how many of the partly certified lack nothing but their experts' neurons."""
    found = Counter(v.outcome for v in verdicts)
    experts = sum(v.outcome == "partly" and set(v.missing.values()) == {EXPERTS} for v in verdicts)
    return {**{o: found[o] for o in OUTCOMES}, ALONE: experts, "all": len(verdicts)}


def versions() -> dict[str, str]:
    """Of the libraries whose classes these are."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _page(verdicts: Sequence[Verdict], facts: dict[str, Any]) -> str:
    found = facts["counts"]
    lines = [
        "# Model families",
        "",
        "Written by `activarium doctor --all --to data`; the same facts as data are in [families.json](families.json).",
        f"Libraries: {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}. Every text and vision class of the library's auto",
        "tables is built tiny with random weights, wrapped and certified in a process of its own.",
        "",
        "| outcome | classes | meaning |",
        "|---|---|---|",
        *(f"| {o} | {found[o]} | {meaning} |" for o, meaning in OUTCOMES.items()),
        "",
        f"Of the {found['partly']} partly certified classes, {found[ALONE]} lack nothing but the neurons of their experts.",
        "",
        "States, patterns and names are checks that share nothing with our site finder: the hidden states and the eager attention",
        "weights that transformers returns, and whether a query is read off a module that is called one. `agree: 12` counts what was",
        "compared; `not offered` means that the class returns nothing to compare with. The pages of a class say nothing about its",
        "trained weights: those are certified again whenever a model is loaded.",
    ]
    for outcome in OUTCOMES:
        chosen = [v for v in verdicts if v.outcome == outcome]
        if chosen:
            lines += ["", f"## {outcome.capitalize()} ({len(chosen)})", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
            lines += [f"| {' | '.join(_cells(v))} |" for v in chosen]
    return "\n".join(lines) + "\n"


def _cells(verdict: Verdict) -> list[str]:
    sums = ", ".join(dict.fromkeys(verdict.algebra.values()))
    oracle = [verdict.oracle.get(k, "") for k in ("states", "patterns", "names")]
    reasons: dict[str, list[str]] = {}
    for site, reason in verdict.missing.items():
        reasons.setdefault(reason, []).append(site.replace("blocks.*.", ""))
    why = [f"{', '.join(sites)}: {reason}" for reason, sites in reasons.items()] or ([verdict.reason] if verdict.reason else [])
    cells = [f"`{verdict.name}`", sums, str(verdict.checks or ""), *oracle, "; ".join(why)]
    return [c.replace("|", "\\|").replace("<", "&lt;") for c in cells]
