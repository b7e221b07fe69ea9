"""All classes one after another, each in a process of its own: a class that hangs, crashes or eats memory costs itself only."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from typing import Any

from activarium.errors import unknown
from activarium.testing.census._classes import ModelClass, every_class
from activarium.testing.census._verdict import Verdict, examine

PRELOADED = ["torch", "transformers", "transformers.modeling_utils", "transformers.generation", "activarium.capture", __name__]


def walk(only: Sequence[str] = (), *, workers: int = 1, limit: float = 120.0) -> Iterator[Verdict]:
    """Which model classes of the installed transformers can be read, and how far?

    Args:
        only: Names of classes; by default all.
        workers: How many classes are examined at the same time.
        limit: Seconds for one class.

    Yields:
        A verdict for every class, as it is reached.

    Raises:
        UnknownName: A class that the tables do not hold.
    """
    known = {c.name: c for c in every_class()}
    for name in only:
        if name not in known:
            raise unknown("text or vision class of transformers", name, known)
    # A fork server has imported the libraries once and holds no threads: its children start in milliseconds.
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ThreadPoolExecutor(workers) as pool:
        chosen = [known[n] for n in only] or list(known.values())
        for done in as_completed([pool.submit(_guarded, one, context, limit) for one in chosen]):
            yield done.result()


def count(only: Sequence[str] = ()) -> int:
    """How many classes `walk` will examine."""
    return len(only) or len(every_class())


def _guarded(one: ModelClass, context: Any, limit: float) -> Verdict:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(one, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            return Verdict(one.name, one.task, "refused", f"not done after {limit:.0f} s")
        return ours.recv()
    except EOFError:
        process.join()
        return Verdict(one.name, one.task, "refused", f"its process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _work(one: ModelClass, answer: Connection) -> None:
    import logging
    import warnings

    import torch

    warnings.simplefilter("ignore")  # what a class has to say to its users is not said to ours
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    answer.send(examine(one))
