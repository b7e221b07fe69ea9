"""A model in forty lines: its numbers depend on the batch they ran in, as rounding does, so that another batch plan shows."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

import numpy as np
import torch

from activarium.activations import Activations
from activarium.attention import AttentionSpec
from activarium.errors import UnknownSite, unknown
from activarium.recording import Recording, matching
from activarium.rows import Rows

WIDTH, HEADS, KEY_HEADS, HEAD = 8, 4, 2, 4


class Inputs:
    """Ragged lists of token ids."""

    def __init__(self, texts, numbers=None):
        self.texts = [np.asarray(t, np.int64) for t in texts]
        self.numbers = np.arange(len(texts)) if numbers is None else np.asarray(numbers)

    def __len__(self):
        return len(self.texts)

    @property
    def lengths(self):
        return np.array([len(t) for t in self.texts], np.int64)

    def rows_of(self, space):
        return self.lengths % 5 + 1 if space == "encoder" else self.lengths

    def select(self, indices):
        return Inputs([self.texts[i] for i in indices], self.numbers[list(indices)])

    def numbered(self, first):
        return Inputs(self.texts, first + np.arange(len(self)))

    @property
    def hash(self):
        return hashlib.blake2b(b"".join(t.tobytes() + b"|" for t in self.texts), digest_size=8).hexdigest()

    def describe(self):
        return {"bos": "none", "examples": len(self)}


@dataclass(frozen=True)
class Site:
    name: str
    axes: str = "row d_model"
    rows: str = ""
    shape: tuple = (WIDTH,)
    same_as: str | None = None


class Sites(dict):
    def select(self, wanted):
        found = []
        for one in [wanted] if isinstance(wanted, str) else wanted:
            names = matching(one, list(self))
            if not names:
                raise unknown("site in this model", one, self, UnknownSite)
            found += names
        return list(dict.fromkeys(found))


def table():
    sites = [Site("encoder.out", rows="encoder"), Site("pooled", "example d_model", "example")]
    for i in range(2):
        before = f"blocks.{i - 1}.resid_post" if i else None
        sites += [Site(f"blocks.{i}.resid_pre", same_as=before), Site(f"blocks.{i}.resid_post")]
        sites += [Site(f"blocks.{i}.mlp.post", "row d_mlp", shape=(16,))]
        sites += [Site(f"blocks.{i}.attn.q_rot", "row head d_head", shape=(HEADS, HEAD))]
        sites += [Site(f"blocks.{i}.attn.k_rot", "row head d_head", shape=(KEY_HEADS, HEAD))]
        sites += [Site(f"blocks.{i}.attn.{w}", "head query key", shape=()) for w in ("pattern", "scores")]
    return Sites({s.name: s for s in sites})


class FakeModel:
    def __init__(self, *, name="fake", weights="w0", dtype=torch.float32, slow=0.0, spoil=None, bias=True):
        self.sites, self.dtype, self.slow, self.spoil, self.bias = table(), dtype, slow, spoil, bias
        self.identity = {"name": name, "weight_hash": weights, "dtype": str(dtype), "certificate": {"passed": True}}
        self.ran = []

    def inputs(self, data):
        return Inputs(data)

    def run(self, inputs, read):
        self.ran.append(tuple(inputs.numbers.tolist()))
        time.sleep(self.slow)
        counts = {"": inputs.lengths, "encoder": inputs.rows_of("encoder"), "example": np.ones(len(inputs), np.int64)}
        rows = {space: self._rows(inputs, space, n) for space, n in counts.items()}
        shape = len(inputs) * 1000 + int(inputs.lengths.max())
        values = {n: self._values(n, rows[self.sites[n].rows], shape) for n in read}
        if self.spoil and self.spoil[1] in inputs.numbers:
            name, example, value = self.spoil
            where = np.flatnonzero(rows[self.sites[name].rows]["example"] == example)[-1]
            values[name][where, ..., 0] = value
        rec = Recording({n: Activations(v, self.sites[n].axes, site=n, index=rows[self.sites[n].rows]) for n, v in values.items()}, rows)
        rec.attention = {f"blocks.{i}.attn": self._spec(int(inputs.lengths.max())) for i in range(2) if f"blocks.{i}.attn.q_rot" in read}
        return rec

    def _rows(self, inputs, space, counts):
        columns = {"example": np.repeat(inputs.numbers, counts), "position": np.concatenate([np.arange(n) for n in counts])}
        if space == "":
            columns |= {"token": np.concatenate(inputs.texts), "text": np.array([f"<{t}>" for text in inputs.texts for t in text])}
        return Rows(columns)

    def _values(self, name, rows, shape):
        site = self.sites[name]
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=3).digest(), "big")
        cell = np.arange(int(np.prod(site.shape)))[None]
        mixed = rows["example"][:, None] * 131.0 + rows["position"][:, None] * 17.0 + cell * 3.0 + seed % 997 + shape * 1e-3
        return torch.from_numpy(np.sin(mixed)).to(self.dtype).reshape(len(rows), *site.shape)

    def _spec(self, longest):
        distance = torch.arange(longest)[:, None] - torch.arange(longest)[None]
        bias = -0.1 * distance.abs()[None] * torch.arange(1, HEADS + 1)[:, None, None] if self.bias else None
        return AttentionSpec(scaling=0.5, causal=True, bias=bias)


def texts(count=40, seed=0, longest=30):
    """Texts of many lengths."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 100, generator.integers(1, longest)).tolist() for _ in range(count)]
