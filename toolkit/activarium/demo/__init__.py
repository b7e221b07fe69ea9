"""The tour: capture the bundled models, analyse what was stored, say what was found and write one page of it.

Run it as `python -m activarium.demo`, `activarium demo` or `make demo`.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch
from rich.console import Console

from activarium.demo._activity import activity
from activarium.demo._causes import causes
from activarium.demo._features import features
from activarium.demo._language import language
from activarium.demo._language import token_loss as token_loss
from activarium.demo._sparsity import sparsity
from activarium.demo._tour import Tour
from activarium.demo._vision import vision


def main(out: str | Path = "out") -> Path:
    """What do the three bundled models hold, in two minutes?

    Args:
        out: Folder for `demo/*.acts` and `tour.html`; earlier ones of the same name are replaced.

    Returns:
        The page.
    """
    from activarium.workflows.export import export_page

    started = time.perf_counter()
    tour = Tour(Path(out), Console())
    shutil.rmtree(tour.out / "demo", ignore_errors=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small: on a busy machine, threads waiting for one another took five times longer
    try:
        for room in (language, sparsity, vision, activity, causes, features):
            room(tour)
    finally:
        torch.set_num_threads(threads)
    page = tour.out / "tour.html"
    export_page(tour.parts, page, title="activarium: a tour of scribe, scribe-relu and glyph")
    tour.console.print(
        f"\nWrote {page} and {tour.out / 'demo'}/*.acts in {time.perf_counter() - started:.0f} s. Open the page in a browser; it needs no network."
    )
    return page
