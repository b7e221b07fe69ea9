"""What reading one layer's pattern costs in memory, by tiles and whole: each in a process of its own, measured by the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from activarium.bench._timing import Row

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SHAPE: dict[str, Any] = {
    "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 512, "vocab_size": 1000,
}  # fmt: skip
QUERIES = 256


def patterns(tokens: int) -> list[Row]:
    """Peak memory of reading one layer's pattern by tiles / whole."""
    if not REFS.exists():
        return []  # only Linux can forget an earlier peak
    found = {way: _alone(way, tokens) for way in ("tiles", "whole")}
    assert abs(found["tiles"]["sum"] / found["whole"]["sum"] - 1) < 1e-4, "both must have read the same pattern"
    heads = SHAPE["num_attention_heads"]
    sizes = (
        f"one tile of {QUERIES} queries is {QUERIES * tokens * 4 / 2**20:,.0f} MiB, the pattern {heads * tokens**2 * 4 / 2**20:,.0f} MiB"
    )
    peaks = " and ".join(f"{f['peak'] / 2**20:,.0f} MiB {way}" for way, f in found.items())
    return [
        Row(
            f"peak memory of reading one layer's pattern by tiles / whole, Llama shape, {heads} heads, {tokens} tokens",
            found["tiles"]["peak"] / found["whole"]["peak"],
            "×",
            "≤ 0.1",
            seconds={way: f["seconds"] for way, f in found.items()},
            processor=found["tiles"]["processor"] / found["whole"]["processor"],
            note=f"above what the process held before: {peaks}; {sizes}",
        )
    ]


def _alone(way: str, tokens: int) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "activarium.bench._patterns", way, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(way: str, tokens: int) -> dict[str, float]:
    """Read the last layer's pattern, sum what each key is given, and say what that took beyond the forward before it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import activarium as act

    torch.manual_seed(0)
    hf_model = LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=tokens)).eval()
    model = act.wrap(hf_model, name="llama-shape", certify="quick")
    ids = torch.randint(0, SHAPE["vocab_size"], (1, tokens), generator=torch.Generator().manual_seed(0))
    name = "blocks.1.attn.pattern"
    pattern = model.run({"input_ids": ids}, read=name, stop_after="blocks.1.attn.k_rot")[name]
    REFS.write_text("5")  # the peak so far is forgotten
    before, started, busy = _status("VmRSS"), time.perf_counter(), time.process_time()
    if way == "tiles":
        given = sum(tile.values.sum(1) for tile in pattern.tiles(queries=QUERIES))
    else:
        given = pattern.example(0).tensor.sum(1)
    times = {"seconds": time.perf_counter() - started, "processor": time.process_time() - busy}
    weighted = torch.as_tensor(given).sum(0) * torch.arange(tokens)
    return {"peak": float(_status("VmHWM") - before), **times, "sum": float(weighted.sum())}


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
