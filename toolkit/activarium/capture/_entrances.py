"""Where a sub-layer takes the stream in: the smallest module that contains all its readers, and the norm before it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from activarium.capture._block import Inside, first_input, place_of_input, row_wise, same
from activarium.capture._trace import Call


def find_entrance(at: Inside, name: str, readers: Sequence[Call]) -> None:
    """What enters the sub-layer: written at the smallest module that contains all its readers."""
    value = first_input(readers[0])
    if value is None:
        return
    paths = [r.path.split(".") for r in readers]
    shared = [p for p, *rest in zip(*paths, strict=False) if all(r == p for r in rest)]
    stem = ".".join(paths[0][: len([1 for i, p in enumerate(shared) if paths[0][i] == p])])
    owner = next((c for c in at.calls if c.path == stem), None) if len({tuple(p) for p in paths}) > 1 else readers[0]
    place = place_of_input(owner, value) if owner else None
    if place:
        at.out.places[f"{name}.in"] = place
    else:
        at.lack([f"{name}.in"], "its readers share no module that takes it in")
    find_norm(at, name, value, readers[0].start, stem)


def find_norm(at: Inside, name: str, value: Tensor, start: int, stem: str) -> None:
    """The module whose output a sub-layer takes in, if it is not the stream itself."""
    outside = [c for c in at.calls if c.start < start and c.path != stem and not c.path.startswith(stem + ".")]
    norm = next((c for c in outside if same(c.output, value) and not same(first_input(c), value) and row_wise(c)), None)
    if norm is not None:
        at.out.modules[f"{name}.norm"] = norm.path
