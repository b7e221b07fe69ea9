"""The rows of the table: what reading costs in memory, per run and to disk, and what importing costs."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from activarium.bench._peers import PEERS, peer
from activarium.bench._timing import Row, beyond, disk_speed, interleaved, medians, ratio

GPT2_SMALL: dict[str, Any] = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
SMALLER: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 500}  # for trying the bench itself


def in_memory(config: dict[str, Any], batch: tuple[int, int], rounds: int, name: str, goal: str = "") -> list[Row]:
    """Read every `resid_post` / plain forward."""
    import torch

    hf_model, model = _wrapped(config)
    ids = _tokens(config, batch)
    request = {"input_ids": ids}

    def plain() -> None:
        with torch.no_grad():
            hf_model(input_ids=ids, use_cache=False)

    times = interleaved({"plain": plain, "read": lambda: model.run(request, read="blocks.*.resid_post")}, rounds)
    what = f"read all resid_post in memory / plain forward, {name}, {batch[0]}×{batch[1]} tokens"
    return [ratio(what, times, "read", "plain", goal)]


def fixed_cost(rounds: int) -> list[Row]:
    """Milliseconds that one run costs beyond its forward, on a model too small to hide them."""
    import torch

    hf_model, model = _wrapped({"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 100})
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
    """All row-wise sites to disk as bfloat16 / plain forward, and against TransformerLens."""
    import torch

    import activarium as act

    hf_model, model = _wrapped(config)
    ids = torch.cat([_tokens(config, batch, seed) for seed in range(batches)])
    wanted = [s for s in model.sites if _row_wise(model.sites[s])]
    options: dict[str, Any] = {"sites": wanted, "dtype": "bfloat16", "progress": False, "batch_tokens": batch[0] * batch[1]}

    def plain() -> None:
        with torch.no_grad():
            for part in ids.split(batch[0]):
                hf_model(input_ids=part, use_cache=False)

    with tempfile.TemporaryDirectory(prefix="activarium-bench-", dir=_disk()) as place:
        folder = Path(place) / "bench.acts"

        def ours() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            act.capture(model, {"input_ids": ids}, to=folder, **options)

        calls = {"plain": plain, "capture": ours}
        peers = {k: c for k in PEERS if (c := peer(k, hf_model, config, ids.split(batch[0]), Path(place))) is not None}
        times = interleaved(calls | peers, rounds)
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20
        disk = disk_speed(Path(place))
    shape = f"{name}, {batches} batches of {batch[0]}×{batch[1]} tokens"
    note = f"{len(wanted)} sites, {size:,.0f} MiB a capture; this disk takes {disk:,.0f} MiB/s (written and synced)"
    rows = [ratio(f"all row-wise sites to disk, bf16 / plain forward, {shape}", times, "capture", "plain", goals[0], note)]
    saved = "the same places as bf16 safetensors; not synced to disk, while ours is"
    rows += [
        ratio(f"TransformerLens {peer} run_with_cache + save / our capture, {shape}", times, peer, "capture", goals[1], saved)
        for peer in peers
    ]
    return rows


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


def _wrapped(config: dict[str, Any]) -> tuple[Any, Any]:
    """A GPT-2 of this shape with random weights, bare and wrapped; the same modules, so the same kernels."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import activarium as act

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf_model = GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0)).eval()
    return hf_model, act.wrap(hf_model, name="gpt2-shape", certify="quick")


def _tokens(config: dict[str, Any], batch: tuple[int, int], seed: int = 0) -> Any:
    import torch

    return torch.randint(0, config["vocab_size"], batch, generator=torch.Generator().manual_seed(seed))


def _row_wise(site: Any) -> bool:
    """Everything with a row per token, but neither the logits nor what is only derived on demand."""
    return "row" in site.axes and site.name != "logits" and not site.name.endswith(("head_out", "scores", "pattern"))


def scribe() -> dict[str, Any]:
    """The shape of the bundled model, or a small one while it is not there."""
    from activarium import data

    names = ("n_embd", "n_head", "n_layer", "n_positions", "vocab_size")
    if "scribe" not in data.models():
        return SMALLER
    found = json.loads((data.folder("scribe") / "config.json").read_text(encoding="utf-8"))
    return {name: found[name] for name in names}


def _disk() -> Path:
    """Beside the results rather than in /tmp, which may be memory."""
    place = Path("out")
    place.mkdir(exist_ok=True)
    return place
