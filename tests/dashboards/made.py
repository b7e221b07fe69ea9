"""A dictionary and rows to build pages from, small enough for brute force."""

import os
import sys
from pathlib import Path

import numpy as np
import torch

import activarium as act
from activarium.dictionaries import SAE, Design, Origin

SITE = "blocks.0.resid_post"
HOSTILE = "<script>alert(1)</script>"


def sae(kind="topk", features=48, width=16, site=SITE, seed=3, **more):
    made = SAE(Design(width, features, kind=kind, k=6 if "top" in kind else None), Origin(site=site, **more), seed=seed)
    with torch.no_grad():
        if kind == "standard":
            made.b_enc -= 0.4
    return made.requires_grad_(False)


KINDS = ["bos" if i % 50 == 0 else "token" for i in range(3000)]


def recording(rows=3000, width=16, seed=5, kinds=None, **columns):
    generator = torch.Generator().manual_seed(seed)
    lengths = np.random.default_rng(seed).integers(3, 40, rows)
    example = np.repeat(np.arange(rows), lengths)[:rows]
    words = np.array([f" w{i % 97}" for i in range(rows)], dtype=object)
    words[7], words[11], words[13] = HOSTILE, "\x00", "\ud800 half"
    return act.testing.recording_of(
        {SITE: torch.randn(rows, width, generator=generator)}, kinds=kinds, example=example, **({"text": words} | columns)
    )


def dense(dictionary, rec, chosen=None):
    """Codes `row feature`, zero where the row was left out."""
    x = rec[SITE].tensor
    codes = dictionary.encode(x).numpy()
    if chosen is not None:
        codes[~chosen] = 0
    return codes


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def child(script, *words):
    """Command and environment of another process that runs a script with the same names, threads and toolkit."""
    tests = Path(__file__).parents[1]
    head = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\nfrom dashboards.made import *\nfrom activarium.dashboards import build, making\n"
    )
    places = {"PYTHONPATH": str(tests.parent / "toolkit"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return {"args": [sys.executable, "-c", head + script, str(tests), *map(str, words)], "env": os.environ | places}
