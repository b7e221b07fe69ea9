"""The rows of the table: what reading costs in memory, per run and to disk, and what importing costs; peers beside it."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from activarium.bench._peers import Reader, gap, readers
from activarium.bench._shapes import bench_disk, row_wise_sites, tokens, wrapped
from activarium.bench._timing import Row, absent, beyond, disk_speed, interleaved, medians, ratio

WORDS = {"resid_post": "all resid_post", "sites": "all row-wise sites"}


def in_memory(config: dict[str, Any], batch: tuple[int, int], rounds: int, name: str, goal: str = "", peers: bool = True) -> list[Row]:
    """Read every `resid_post`, then every row-wise site / plain forward; peers do the same."""
    import torch

    hf_model, model = wrapped(config)
    ids = tokens(config, batch)
    asked = {"resid_post": "blocks.*.resid_post", "sites": row_wise_sites(model)}
    others = readers(hf_model, config) if peers else {}

    def plain() -> None:
        with torch.no_grad():
            hf_model(input_ids=ids, use_cache=False)

    rows = []
    for what, read in asked.items():
        calls = {"plain": plain, "activarium": lambda read=read: model.run({"input_ids": ids}, read=read)}
        ours = calls["activarium"]()
        notes = {who: _told(gap(ours, peer(ids, what))) for who, peer in others.items() if not isinstance(peer, str)}
        calls |= {who: lambda peer=peer, what=what: peer(ids, what) for who, peer in others.items() if not isinstance(peer, str)}
        times = interleaved(calls, rounds)
        shape = f"{name}, {batch[0]}×{batch[1]} tokens"
        line = f"read {WORDS[what]} in memory / plain forward, {{}}{shape}"
        rows.append(ratio(line.format(""), times, "activarium", "plain", goal if what == "resid_post" else ""))
        for who, peer in others.items():
            heading = line.format(f"{who}, ")
            rows.append(absent(heading, peer) if isinstance(peer, str) else ratio(heading, times, who, "plain", note=notes[who]))
    return rows


def _told(gap: float) -> str:
    return f"{'the same numbers' if gap < 1e-4 else 'OTHER NUMBERS'}: largest relative difference {gap:.0e}"


def fixed_cost(rounds: int) -> list[Row]:
    """Milliseconds that one run costs beyond its forward, on a model too small to hide them."""
    import torch

    hf_model, model = wrapped({"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 100})
    ids = torch.randint(0, 100, (1, 8), generator=torch.Generator().manual_seed(0))
    encoded = model.inputs({"input_ids": ids})

    def plain() -> None:
        with torch.no_grad():
            hf_model(input_ids=ids, use_cache=False)

    calls = {
        "plain": plain,
        "run": lambda: model.run(encoded),
        "read": lambda: model.run(encoded, read="blocks.*.resid_post"),
        "from ids": lambda: model.run({"input_ids": ids}, read="blocks.*.resid_post"),
    }
    found = medians(interleaved(calls, rounds))
    what = {"run": "nothing read", "read": "all resid_post", "from ids": "all resid_post, inputs encoded each time"}
    return [
        beyond(f"fixed cost of a run, {words}, tiny model", found[k], found["plain"], "≤ 0.3" if k == "read" else "")
        for k, words in what.items()
    ]


def to_disk(
    config: dict[str, Any], batch: tuple[int, int], batches: int, rounds: int, name: str, goals: Sequence[str] = ("", "")
) -> list[Row]:
    """All row-wise sites to disk as bfloat16 / plain forward, and against peers that save what they read."""
    import torch

    import activarium as act

    hf_model, model = wrapped(config)
    ids = torch.cat([tokens(config, batch, seed) for seed in range(batches)])
    wanted = row_wise_sites(model)
    options: dict[str, Any] = {"sites": wanted, "dtype": "bfloat16", "progress": False, "batch_tokens": batch[0] * batch[1]}

    def plain() -> None:
        with torch.no_grad():
            for part in ids.split(batch[0]):
                hf_model(input_ids=part, use_cache=False)

    with tempfile.TemporaryDirectory(prefix="activarium-bench-", dir=bench_disk()) as place:
        folder = Path(place) / "bench.acts"

        def ours() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            act.capture(model, {"input_ids": ids}, to=folder, **options)

        others = readers(hf_model, config)
        saved = {who: _saving(peer, ids.split(batch[0]), Path(place) / who) for who, peer in others.items() if not isinstance(peer, str)}
        times = interleaved({"plain": plain, "capture": ours} | saved, rounds)
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20
        disk = disk_speed(Path(place))
    seconds = medians(times)["capture"][0]
    shape = f"{name}, {batches} batches of {batch[0]}×{batch[1]} tokens"
    note = (
        f"{len(wanted)} sites, {size:,.0f} MiB a capture, {ids.numel() / seconds:,.0f} rows/s, {size / seconds:,.0f} MiB/s; "
        f"this disk takes {disk:,.0f} MiB/s (written and synced)"
    )
    rows = [ratio(f"all row-wise sites to disk, bf16 / plain forward, {shape}", times, "capture", "plain", goals[0], note)]
    for who, peer in others.items():
        what = f"{who} read + save / our capture, {shape}"
        told = "the same places as bf16 safetensors; not synced to disk, while ours is"
        rows.append(absent(what, peer, goals[1]) if isinstance(peer, str) else ratio(what, times, who, "capture", goals[1], told))
    return rows


def _saving(read: Reader, parts: Sequence[Any], target: Path) -> Callable[[], None]:
    import torch
    from safetensors.torch import save_file

    target.mkdir(exist_ok=True)

    def call() -> None:
        for i, part in enumerate(parts):
            found = read(part, "sites")
            save_file({k: v.to(torch.bfloat16).contiguous() for k, v in found.items()}, target / f"{i}.safetensors")

    return call


def import_time(rounds: int = 7) -> list[Row]:
    """Seconds that `import activarium` takes in a fresh interpreter, and what it brings."""
    code = (
        "import time; t = time.perf_counter(); import activarium; s = time.perf_counter() - t; import sys; "
        "print(s, *[m for m in ('torch', 'jax', 'pandas', 'numpy') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    lines = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout.split()
        for _ in range(rounds)
    ]
    found = [float(line[0]) for line in lines]
    brought = ", ".join(lines[-1][1:]) or "neither torch, jax, pandas nor numpy"
    return [
        Row(
            "import activarium",
            1000 * statistics.median(found),
            "ms",
            "< 300",
            (1000 * min(found), 1000 * max(found)),
            note=f"brings {brought}",
        )
    ]
