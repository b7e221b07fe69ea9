"""Activations as bits: one code per row or per sequence, packed eight to a byte; their number, and how far apart they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, column, refuse_strange
from activarium.analyses.sparsity.row_kinds import some_kept

Pooling = Literal["row", "majority", "any"]
AT_ONCE = 2**24  # bits that are unpacked, or bytes that are compared, at a time


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of one split.

    Attributes:
        packed: (item, byte) bits, eight to a byte, the first bit highest; the last byte is filled up with zeros.
        bits: How many bits a code has.
        sites: Site → number of its bits, in the order of the bits.
        examples: (item,) the example each code belongs to.
        labels: (item,) what the row table says of it; empty strings where it says nothing.
        negative: Was any activation below zero?
    """

    packed: np.ndarray
    bits: int
    sites: Mapping[str, int]
    examples: np.ndarray
    labels: np.ndarray
    negative: bool

    def __len__(self) -> int:
        return len(self.packed)

    def unpacked(self) -> Iterator[np.ndarray]:
        """(item, bit) zeros and ones, some items at a time."""
        step = max(1, AT_ONCE // max(self.bits, 1))
        for start in range(0, len(self), step):
            yield np.unpackbits(self.packed[start : start + step], axis=1, count=self.bits)

    def ones(self) -> np.ndarray:
        """(bit,) items in which each bit is on."""
        return sum((part.sum(0, dtype=np.int64) for part in self.unpacked()), np.zeros(self.bits, np.int64))

    def chosen(self, bits: np.ndarray) -> Codes:
        """Codes of some bits alone."""
        parts = [np.packbits(part[:, bits], axis=1) for part in self.unpacked()]
        packed = np.concatenate(parts) if parts else np.zeros((0, (len(bits) + 7) // 8), np.uint8)
        edges = np.cumsum([0, *self.sites.values()])
        sizes = {s: int(((bits >= a) & (bits < b)).sum()) for s, a, b in zip(self.sites, edges[:-1], edges[1:], strict=True)}
        return replace(self, packed=packed, bits=len(bits), sites=sizes)


def read_codes(sites: Mapping[str, Activations], pooling: Pooling, above: float | None, exclude: tuple[str, ...]) -> Codes:
    """One code per row or per sequence from all sites beside one another, sequence by sequence.

    Args:
        sites: Sites of one stack, `row d_mlp`.
        pooling: One code per `row`; or per sequence: a bit is on in the `majority` (more than half) or in `any` of its rows.
        above: A bit is |a| > above; if None, a > 0.
        exclude: Row kinds left out.
    """
    first = next(iter(sites.values()))
    keep, labels = some_kept(first, exclude), column(first, "label", "").astype(str)
    packed, examples, said, negative = [], [], [], False
    for sequence in zip(*(by_example(a) for a in sites.values()), strict=True):
        example, start, values = sequence[0]
        at = start + np.flatnonzero(keep[start : start + len(values)])
        if not len(at):
            continue
        chosen = [v[torch.as_tensor(at - start, device=v.device)] for _, _, v in sequence]
        for activations, v in zip(sites.values(), chosen, strict=True):
            if not bool(v.isfinite().all()):
                refuse_strange(activations, "A bit of it would mean nothing.")
        negative |= any(bool((v < 0).any()) for v in chosen)
        bits = np.concatenate([_bits(v, pooling, above) for v in chosen], 1)
        packed.append(np.packbits(bits, axis=1))
        examples += [example] * len(bits)
        said += labels[at].tolist() if pooling == "row" else [labels[at[0]]]
    sizes = {site: a.shape[1] for site, a in sites.items()}
    return Codes(np.concatenate(packed), sum(sizes.values()), sizes, np.array(examples), np.array(said, dtype=object), negative)


def _bits(values: Tensor, pooling: Pooling, above: float | None) -> np.ndarray:
    on = (values > 0) if above is None else (values.abs() > above)
    if pooling == "majority":
        on = (2 * on.sum(0, keepdim=True)) > len(on)
    elif pooling == "any":
        on = on.any(0, keepdim=True)
    return on.cpu().numpy()


def different(codes: Codes) -> int:
    """How many different codes there are, by hashes of 128 bits: 16 bytes per item, a collision once in 2^129 / items²."""
    return len(set(_hashes(codes)))


def seen(codes: Codes, before: Codes) -> int:
    """How many items have a code that one of others has."""
    known = set(_hashes(before))
    return sum(name in known for name in _hashes(codes))


def _hashes(codes: Codes) -> Iterator[bytes]:
    return (hashlib.blake2b(code.tobytes(), digest_size=16).digest() for code in codes.packed)


def redundancy(codes: Codes) -> float:
    """Share of the items whose code another one has already: (N − different codes) / N."""
    return (len(codes) - different(codes)) / len(codes)


def hamming(a: Codes, b: Codes) -> Iterator[np.ndarray]:
    """(item of a, item of b) number of bits in which two codes differ, some items of a at a time: XOR, then count the ones."""
    left, right = _words(a.packed), _words(b.packed)
    step = max(1, AT_ONCE // max(right.nbytes, 1))
    for start in range(0, len(left), step):
        yield np.bitwise_count(left[start : start + step, None] ^ right[None]).sum(-1, dtype=np.int64)


def _words(packed: np.ndarray) -> np.ndarray:
    """Bytes as 64-bit words, filled up with zeros."""
    more = -packed.shape[1] % 8
    return np.ascontiguousarray(np.pad(packed, ((0, 0), (0, more)))).view(np.uint64)
