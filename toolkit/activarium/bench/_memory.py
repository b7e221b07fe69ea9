"""The most memory that a call takes beyond what the process holds, as the system counts it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from activarium.bench._peers import readers
from activarium.bench._shapes import row_wise_sites, tokens, wrapped
from activarium.bench._timing import Row, absent

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(call: Callable[[], Any]) -> float | None:
    """MiB that a call takes at most, what it returns included; None where the system does not tell."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide what is taken again
    try:
        RESET.write_text("5", encoding="ascii")  # starts the high-water mark anew
        before = _status("VmRSS")
    except OSError:
        return None
    kept = call()
    most = _status("VmHWM")
    del kept
    return (most - before) / 1024


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])  # kB


def peaks(config: dict[str, Any], batch: tuple[int, int], name: str) -> list[Row]:
    """Peak memory of one forward that reads every row-wise site, with peers."""
    import torch

    hf_model, model = wrapped(config)
    ids, wanted = tokens(config, batch), row_wise_sites(model)

    def plain() -> Any:
        with torch.no_grad():
            return hf_model(input_ids=ids, use_cache=False)

    calls: dict[str, Any] = {"plain forward": plain, "activarium": lambda: model.run({"input_ids": ids}, read=wanted)}
    for who, read in readers(hf_model, config).items():
        calls[who] = read if isinstance(read, str) else lambda read=read: read(ids, "sites")
    rows = []
    for who, call in calls.items():
        what = f"peak memory, {'nothing read' if who == 'plain forward' else 'all row-wise sites in memory'}, {who}, {name}, {batch[0]}×{batch[1]} tokens"
        if isinstance(call, str):
            rows.append(absent(what, call))
            continue
        call()
        found = [peak(call) for _ in range(3)]
        told = [f for f in found if f is not None]
        rows.append(Row(what, sorted(told)[1], "MiB", spread=(min(told), max(told))) if told else absent(what, "this system does not tell"))
    return rows
