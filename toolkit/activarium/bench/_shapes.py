"""The models and tokens that are timed: a GPT-2 of some shape with random weights, bare and wrapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GPT2_SMALL: dict[str, Any] = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
SMALLER: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 500}  # for trying the bench itself


def wrapped(config: dict[str, Any]) -> tuple[Any, Any]:
    """A GPT-2 of this shape with random weights, bare and wrapped; the same modules, so the same kernels."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import activarium as act

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf_model = GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0)).eval()
    return hf_model, act.wrap(hf_model, name="gpt2-shape", certify="quick")


def tokens(config: dict[str, Any], batch: tuple[int, int], seed: int = 0) -> Any:
    """Random token ids, `example position`."""
    import torch

    return torch.randint(0, config["vocab_size"], batch, generator=torch.Generator().manual_seed(seed))


def row_wise_sites(model: Any) -> list[str]:
    """Everything with a row per token, but neither the logits nor what is only derived on demand."""
    kept = {n: s for n, s in model.sites.items() if "row" in s.axes and n != "logits"}
    return [n for n in kept if not n.endswith(("head_out", "scores", "pattern"))]


def scribe() -> dict[str, Any]:
    """The shape of the bundled model, or a small one while it is not there."""
    from activarium import data

    names = ("n_embd", "n_head", "n_layer", "n_positions", "vocab_size")
    if "scribe" not in data.models():
        return SMALLER
    found = json.loads((data.folder("scribe") / "config.json").read_text(encoding="utf-8"))
    return {name: found[name] for name in names}


def bench_disk() -> Path:
    """Beside the results rather than in /tmp, which may be memory."""
    place = Path("out")
    place.mkdir(exist_ok=True)
    return place
