"""Time every row, print it as soon as it is known, write `out/bench.json`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from activarium.bench._arrow import one_site
from activarium.bench._dashboards import dashboards
from activarium.bench._memory import peaks
from activarium.bench._patching import against_depth, grids, relevance
from activarium.bench._patterns import patterns
from activarium.bench._rows import fixed_cost, import_time, in_memory, to_disk
from activarium.bench._shapes import GPT2_SMALL, SMALLER, scribe
from activarium.bench._sparse import LARGE, SMALL, sparse_decoding
from activarium.bench._survey import surveys
from activarium.bench._timing import Row, markdown
from activarium.bench._training import training

Parts = dict[str, Callable[[], list[Row]]]
PARTS = (
    "import",
    "run",
    "scribe",
    "memory",
    "peak",
    "patterns",
    "survey",
    "scribe-disk",
    "disk",
    "arrow",
    "patching",
    "depth",
    "relevance",
    "sparse",
    "training",
    "dashboards",
)


def main(words: Sequence[str] | None = None) -> None:
    """What does reading cost here?"""
    options = argparse.ArgumentParser(prog="python -m activarium.bench", description=__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="NAME", help=f"these parts only: {', '.join(PARTS)}")
    options.add_argument("--rounds", type=int, default=5, help="how often the large calls are timed")
    options.add_argument(
        "--batches", type=int, default=16, help="batches per capture to disk; the first three pay for the memory that all use"
    )
    options.add_argument("--small", action="store_true", help="small shapes, to try the bench itself")
    options.add_argument("--threads", type=int, default=0, help="torch threads; by default torch decides")
    options.add_argument("--out", type=Path, default=Path("out/bench.json"))
    options.add_argument("--readme", action="store_true", help="time nothing; print the table of --out in Markdown")
    asked = options.parse_args(words)
    if asked.readme:
        machine, rows = _read(asked.out)
        return print(markdown(rows, machine))
    if asked.threads:
        _threads(asked.threads)
    machine = _machine()
    print(" · ".join(f"{k} {v}" for k, v in machine.items()), flush=True)
    # Figures that other calls took on this machine with these versions stay in the table.
    before, kept = _read(asked.out) if asked.out.exists() else ({}, [])
    done = [r for r in kept if r.part not in asked.only] if before == machine else []
    every = parts(asked.small, asked.rounds, asked.batches)
    for name in asked.only:
        for row in every[name]():
            row.part = name
            done.append(row)
            print(row, flush=True)
        _write(asked.out, machine, done)
    print(f"written: {asked.out}")


def parts(small: bool, rounds: int, batches: int) -> Parts:
    """Every part of the bench by name, in the order of the table."""
    large, batch, name = (SMALLER, (2, 32), "a small shape") if small else (GPT2_SMALL, (8, 128), "GPT-2-small shape")
    bundled, half = scribe(), (batch[0] // 2, batch[1])
    many = 20 if small else 300
    goals = ("≤ 1.30 where the disk allows", "≥ 2")
    return {
        "import": import_time,
        "run": lambda: fixed_cost(many),
        "scribe": lambda: in_memory(bundled, (8, 32), max(rounds, many // 10), "scribe's shape", peers=False),
        "memory": lambda: in_memory(large, batch, rounds, name, "≤ 1.03"),
        "peak": lambda: peaks(large, batch, name),
        "patterns": lambda: patterns(1024 if small else 8192),
        "survey": lambda: surveys(large, batch, 2 if small else 6, min(rounds, 3), name),
        "scribe-disk": lambda: to_disk(bundled, (32, 32), 8, rounds, "scribe's shape"),
        "disk": lambda: to_disk(large, half, batches, min(rounds, 2), name, goals),
        "arrow": lambda: one_site(large, half, 2 * batches, min(rounds, 2), name),
        "patching": lambda: grids(large, min(rounds, 1), name),
        "depth": lambda: against_depth(large, min(rounds, 3)),
        "relevance": lambda: relevance(large, rounds, name),
        "sparse": lambda: sparse_decoding(SMALL if small else LARGE, 4 if small else 16, rounds),
        "training": lambda: training(small, rounds),
        "dashboards": lambda: dashboards(small),
    }


def _read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    if not path.exists():
        raise SystemExit(f"There are no figures in {path} yet; take some first: python -m activarium.bench")
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["machine"], sorted((Row(**r) for r in found["rows"]), key=lambda r: PARTS.index(r.part) if r.part in PARTS else 0)


def _write(path: Path, machine: Mapping[str, Any], rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(r) for r in rows]}, indent=1, ensure_ascii=False), encoding="utf-8")


def _machine() -> dict[str, Any]:
    import torch

    memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB" if hasattr(os, "sysconf") else "unknown"
    about = {"processor": _processor(), "cores": os.cpu_count(), "memory": memory, "threads": torch.get_num_threads()}
    return about | {"python": platform.python_version(), **_versions("torch", "transformers", "transformer-lens", "nnsight", "sae-lens")}


def _processor() -> str:
    """The processor's own name where the system tells it."""
    place = Path("/proc/cpuinfo")
    lines = place.read_text(encoding="utf-8").splitlines() if place.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


if __name__ == "__main__":
    main()
