"""Learned tensors that attention needs beside queries and keys: a relative position bias, sinks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activarium.errors import StoreError
from activarium.store._format import AttentionEntry
from activarium.store._journal import Journal
from activarium.store._remote import remote_tensor
from activarium.store._shard import read_tensor


def describe(attention: Mapping[str, Any], sites: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, AttentionEntry]:
    """The attention whose queries and keys are stored, as manifest entries.

    Raises:
        StoreError: A pattern does not follow from queries, keys and what a store keeps beside them.
    """
    have = {*sites, *aliases}
    kept = {b: s for b, s in attention.items() if {f"{b}.q_rot", f"{b}.k_rot"} <= have}
    for block, spec in kept.items():
        _storable(block, spec)
    return {b: AttentionEntry(numbers=s.numbers(), tensors=tuple(s.tensors())) for b, s in kept.items()}


def _storable(block: str, spec: Any) -> None:
    why = "another mask for every example" if spec.mask is not None and len(spec.mask) > 1 else "edited patterns" if spec.edited else ""
    if why:
        raise StoreError(
            f"{block} has {why}, which a store cannot keep: it computes patterns from queries and keys. Leave out q_rot, k_rot, scores and pattern."
        )


class Constants:
    """The largest version seen of every constant; batches with longer examples bring larger ones."""

    def __init__(self, known: Mapping[str, Tensor] | None = None) -> None:
        self.known = dict(known or {})
        self._new: set[str] = set()

    def see(self, attention: Mapping[str, Any], entries: Mapping[str, AttentionEntry]) -> None:
        """Take in the attention of one batch.

        Raises:
            StoreError: It contradicts what earlier batches said.
        """
        for block, entry in entries.items():
            spec = attention.get(block)
            if spec is not None:
                _storable(block, spec)
            if spec is None or spec.numbers() != entry.numbers:
                found = spec.numbers() if spec else "nothing"
                raise StoreError(
                    f"{block} attended with {entry.numbers} in the first batch and with {found} in a later one; a store keeps one."
                )
            for kind, tensor in spec.tensors().items():
                self._grow(f"{block}.{kind}", tensor.detach().cpu())

    def _grow(self, name: str, tensor: Tensor) -> None:
        old = self.known.get(name)
        if old is not None:
            shared = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, tensor.shape, strict=True))
            if not torch.equal(old[shared], tensor[shared]):
                raise StoreError(
                    f"{name} differs between batches where it should be the same. Its attention cannot be stored: leave out q_rot and k_rot."
                )
            if all(a >= b for a, b in zip(old.shape, tensor.shape, strict=True)):
                return
        self.known[name] = tensor.clone()
        self._new.add(name)

    def take(self, constants: Mapping[str, Tensor]) -> None:
        """Take in what another process has seen.

        Raises:
            StoreError: It contradicts what is known.
        """
        for name, tensor in constants.items():
            self._grow(name, tensor)

    def new(self) -> dict[str, Tensor]:
        """What has grown since the last shard."""
        return {name: self.known[name] for name in sorted(self._new)}

    def fresh(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What the next shard must bring along: tensors, equal ones once, and which name is kept under which."""
        tensors: dict[str, Tensor] = {}
        names: dict[str, str] = {}
        for name, value in self.new().items():
            names[name] = next((n for n, t in tensors.items() if t.dtype == value.dtype and torch.equal(t, value)), name)
            if names[name] == name:
                tensors[name] = value
        return tensors, names

    def kept(self) -> None:
        """The new ones are on the disk now."""
        self._new.clear()


def load_constants(folder: Path, journal: Journal) -> dict[str, Tensor]:
    """The last committed version of every constant."""
    found = {}
    for commit in sorted(journal.commits, key=lambda c: c.shard):
        for name, kept_as in commit.constants.items():
            file = constants_file(commit.shard)
            found[name] = (folder / file, commit.files[file].bytes, kept_as)
    read = read_tensor if isinstance(folder, Path) else remote_tensor
    return {name: read(*where).clone() for name, where in found.items()}


def constants_file(shard: int) -> str:
    """Name of the side file of a shard."""
    return f"constants/{shard:05d}.safetensors"
