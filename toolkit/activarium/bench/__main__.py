"""Time every row, print it as soon as it is known, write `out/bench.json`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from activarium.bench._patterns import patterns
from activarium.bench._rows import GPT2_SMALL, SMALLER, fixed_cost, import_time, in_memory, scribe, to_disk
from activarium.bench._timing import Row


def main(words: Sequence[str] | None = None) -> None:
    """What does reading cost here?"""
    options = argparse.ArgumentParser(prog="python -m activarium.bench", description=__doc__)
    options.add_argument("--rounds", type=int, default=5, help="how often the large calls are timed")
    options.add_argument(
        "--batches", type=int, default=16, help="batches per capture to disk; the first three pay for the memory that all use"
    )
    options.add_argument("--small", action="store_true", help="small shapes, to try the bench itself")
    options.add_argument("--threads", type=int, default=0, help="torch threads; by default torch decides")
    options.add_argument("--out", type=Path, default=Path("out/bench.json"))
    asked = options.parse_args(words)
    large, batch, name = (SMALLER, (2, 32), "a small shape") if asked.small else (GPT2_SMALL, (8, 128), "GPT-2-small shape")
    bundled = scribe()
    rounds, many = asked.rounds, 20 if asked.small else 300
    half = (batch[0] // 2, batch[1])
    parts: list[Callable[[], list[Row]]] = [
        import_time,
        lambda: fixed_cost(many),
        lambda: in_memory(bundled, (8, 32), max(rounds, many // 10), "scribe's shape"),
        lambda: in_memory(large, batch, rounds, name, "≤ 1.03"),
        lambda: to_disk(bundled, (32, 32), 8, rounds, "scribe's shape"),
        lambda: to_disk(large, half, asked.batches, min(rounds, 2), name, ("≤ 1.30 where the disk allows", "≥ 2")),
        lambda: patterns(1024 if asked.small else 8192),
    ]
    if asked.threads:
        _threads(asked.threads)
    machine = _machine()
    print(" · ".join(f"{k} {v}" for k, v in machine.items()), flush=True)
    rows: list[Row] = []
    for part in parts:
        for row in part():
            rows.append(row)
            print(row, flush=True)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(
            json.dumps({"machine": machine, "rows": [asdict(r) for r in rows]}, indent=1, ensure_ascii=False), encoding="utf-8"
        )
    print(f"written: {asked.out}")


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), **versions}


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


if __name__ == "__main__":
    main()
