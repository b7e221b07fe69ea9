"""How much does reading cost? Ratios of interleaved medians, side by side in one process: `python -m activarium.bench`."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

GPT2_SMALL = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
SMALLER = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 500}  # for trying the bench itself
PEERS = "TransformerBridge", "HookedTransformer"

Times = dict[str, list[tuple[float, float]]]  # call → wall and processor seconds of every round


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: What was timed, with its shape.
        value: The ratio, or milliseconds.
        unit: `×` (ratio to the reference) or `ms`.
        goal: What we want it to be.
        spread: Lowest and highest value over the rounds.
        seconds: Median seconds of each call.
        processor: The same ratio in processor seconds: what is left of it when other programs keep the cores busy.
        note: What a reader should know beside the number.
    """

    what: str
    value: float
    unit: str
    goal: str = ""
    spread: tuple[float, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""
    processor: float | None = None

    def __str__(self) -> str:
        spread = f" ({self.spread[0]:.3g} to {self.spread[1]:.3g})" if self.spread else ""
        times = ", ".join(f"{name} {1000 * s:,.1f} ms" for name, s in self.seconds.items())
        times += f"; in processor time {self.processor:.3f} {self.unit}" if self.processor is not None else ""
        rest = "".join(f"\n      {line}" for line in (times, self.note) if line)
        return f"{self.value:8.3f} {self.unit}{spread}   {self.what}{'   goal ' + self.goal if self.goal else ''}{rest}"


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> Times:
    """Seconds of each call, taken in turns so that a busy machine slows all of them; every second round backwards."""
    for call in calls.values():
        call()
    times: Times = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: -1 if i % 2 else 1]:
            gc.collect()
            wall, processor = time.perf_counter(), time.process_time()
            calls[name]()
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return times


def medians(times: Times) -> dict[str, tuple[float, float]]:
    """Median wall seconds and median processor seconds of each call."""
    return {name: (statistics.median(w for w, _ in found), statistics.median(p for _, p in found)) for name, found in times.items()}


def ratio(what: str, times: Times, over: str, under: str, goal: str = "", note: str = "") -> Row:
    """Median of one call over median of another."""
    each = [a / b for (a, _), (b, _) in zip(times[over], times[under], strict=True)]
    (top, busy), (bottom, idle) = medians(times)[over], medians(times)[under]
    return Row(what, top / bottom, "×", goal, (min(each), max(each)), {over: top, under: bottom}, note, busy / idle)


def in_memory(config: dict[str, int], batch: tuple[int, int], rounds: int, name: str, goal: str = "") -> list[Row]:
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
        _beyond(f"fixed cost of a run, {words}, tiny model", found[k], found["plain"], "≤ 0.3" if k == "read" else "")
        for k, words in what.items()
    ]


def _beyond(what: str, call: tuple[float, float], plain: tuple[float, float], goal: str) -> Row:
    wall, processor = (1000 * (a - b) for a, b in zip(call, plain, strict=True))
    return Row(what, wall, "ms", goal, seconds={"run": call[0], "plain": plain[0]}, processor=processor)


def to_disk(
    config: dict[str, int], batch: tuple[int, int], batches: int, rounds: int, name: str, goals: Sequence[str] = ("", "")
) -> list[Row]:
    """All row-wise sites to disk as bfloat16 / plain forward, and against TransformerLens."""
    import torch

    import activarium as act

    hf_model, model = _wrapped(config)
    ids = torch.cat([_tokens(config, batch, seed) for seed in range(batches)])
    wanted = [s for s in model.sites if _row_wise(model.sites[s])]
    options = {"sites": wanted, "dtype": "bfloat16", "progress": False, "batch_tokens": batch[0] * batch[1]}

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
        peers = {peer: call for peer in PEERS if (call := _peer(peer, hf_model, config, ids.split(batch[0]), Path(place))) is not None}
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


def disk_speed(place: Path, size: int = 256 << 20) -> float:
    """MiB/s of one large write that reaches the disk."""
    block = os.urandom(8 << 20)
    path = place / "speed"
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return size / 2**20 / seconds


def main(words: Sequence[str] | None = None) -> None:
    """Time every row, print it as soon as it is known, write `out/bench.json`."""
    options = argparse.ArgumentParser(prog="python -m activarium.bench", description=__doc__)
    options.add_argument("--rounds", type=int, default=5, help="how often the large calls are timed")
    options.add_argument("--batches", type=int, default=2, help="batches per capture to disk")
    options.add_argument("--small", action="store_true", help="small shapes, to try the bench itself")
    options.add_argument("--threads", type=int, default=0, help="torch threads; by default torch decides")
    options.add_argument("--out", type=Path, default=Path("out/bench.json"))
    asked = options.parse_args(words)
    large, batch, name = (SMALLER, (2, 32), "a small shape") if asked.small else (GPT2_SMALL, (8, 128), "GPT-2-small shape")
    scribe = _scribe()
    rounds, many = asked.rounds, 20 if asked.small else 300
    parts: list[Callable[[], list[Row]]] = [
        import_time,
        lambda: fixed_cost(many),
        lambda: in_memory(scribe, (8, 32), max(rounds, many // 10), "scribe's shape"),
        lambda: in_memory(large, batch, rounds, name, "≤ 1.03"),
        lambda: to_disk(scribe, (32, 32), 8, rounds, "scribe's shape"),
        lambda: to_disk(large, batch, asked.batches, rounds, name, ("≤ 1.30 where the disk allows", "≥ 2")),
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


def _wrapped(config: dict[str, int]) -> tuple[Any, Any]:
    """A GPT-2 of this shape with random weights, bare and wrapped; the same modules, so the same kernels."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import activarium as act

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf_model = GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0)).eval()
    return hf_model, act.wrap(hf_model, name="gpt2-shape", certify="quick")


def _tokens(config: dict[str, int], batch: tuple[int, int], seed: int = 0) -> Any:
    import torch

    return torch.randint(0, config["vocab_size"], batch, generator=torch.Generator().manual_seed(seed))


def _row_wise(site: Any) -> bool:
    """Everything with a row per token, but neither the logits nor what is only derived on demand."""
    return "row" in site.axes and site.name != "logits" and not site.name.endswith(("head_out", "scores", "pattern"))


def _peer(kind: str, hf_model: Any, config: dict[str, int], parts: Sequence[Any], place: Path) -> Callable[[], None] | None:
    """TransformerLens on the same shape: cache the same places, save them as bfloat16."""
    try:
        import transformer_lens
    except ImportError:
        return None
    import torch
    from safetensors.torch import save_file

    if kind == "TransformerBridge":
        from transformer_lens.model_bridge import TransformerBridge
        from transformers.utils import logging

        logging.disable_progress_bar()
        hf_model.config.architectures = ["GPT2LMHeadModel"]
        hf_model.save_pretrained(place / "hf")
        lens = TransformerBridge.boot_transformers(str(place / "hf"), hf_model=_copy(hf_model), device="cpu")
    else:
        shape = {"n_layers": config["n_layer"], "d_model": config["n_embd"], "n_ctx": config["n_positions"], "n_heads": config["n_head"]}
        sizes = {"d_head": config["n_embd"] // config["n_head"], "d_mlp": 4 * config["n_embd"], "d_vocab": config["vocab_size"]}
        made = transformer_lens.HookedTransformerConfig(**shape, **sizes, act_fn="gelu_new", normalization_type="LN", device="cpu", seed=0)
        lens = transformer_lens.HookedTransformer(made)
    # The counterparts of our row-wise sites; resid_pre is resid_post of the layer below and out is proj in a GPT-2.
    leaves = ("resid_mid", "resid_post", "normalized", "q", "k", "v", "z", "attn_out", "mlp_out", "pre", "post")
    known = {f"hook_{leaf}" for leaf in leaves} | {"hook_embed", "hook_pos_embed"}
    target = place / kind
    target.mkdir(exist_ok=True)

    def call() -> None:
        with torch.no_grad():
            for i, part in enumerate(parts):
                _, cache = lens.run_with_cache(part, names_filter=lambda name: name.rpartition(".")[2] in known)
                save_file({k: cache[k].to(torch.bfloat16).contiguous() for k in cache}, target / f"{i}.safetensors")

    return call


def _copy(model: Any) -> Any:
    from copy import deepcopy

    return deepcopy(model)  # the bridge rewires the modules it is given


def _scribe() -> dict[str, int]:
    from activarium import data

    names = ("n_embd", "n_head", "n_layer", "n_positions", "vocab_size")
    if "scribe" not in data.models():
        return SMALLER
    found = json.loads((data.folder("scribe") / "config.json").read_text(encoding="utf-8"))
    return {name: found[name] for name in names}


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _disk() -> Path:
    """Beside the results rather than in /tmp, which may be memory."""
    place = Path("out")
    place.mkdir(exist_ok=True)
    return place


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), **versions}


if __name__ == "__main__":
    main()
