"""Which patches of a live vision model have a high norm, where that begins, and which neurons act there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, examples_of, refuse_strange
from activarium.analyses.massive.batches import batches, blocks_of
from activarium.analyses.massive.norm_split import split
from activarium.analyses.massive.token_sizes import TokenSizes
from activarium.edits import Edit
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.recording import Recording


@dataclass(frozen=True, eq=False)
class Patches:
    """The rows of all pictures at every block.

    Attributes:
        prefix: `vision.` for a model with several stacks, else empty.
        sizes: Norms and threshold of each block.
        example: Example of each row.
        kind: Kind of each row.
    """

    prefix: str
    sizes: tuple[TokenSizes, ...]
    example: np.ndarray
    kind: np.ndarray

    def high(self, block: int) -> np.ndarray:
        """Rows that are patches of a high norm."""
        return self.sizes[block].high & (self.kind == "patch")

    @property
    def first(self) -> int | None:
        """The first block after which patches of a high norm are a group of their own (or pass the threshold given)."""
        found = (i for i, s in enumerate(self.sizes) if s.rule != "mean + 3 std" and self.high(i).any())
        return next(found, None)


def prefix_of(model: Runner) -> str:
    """Where the blocks that see patches are.

    Raises:
        InputError: The model has no such blocks.
    """
    for prefix in ("vision.", ""):
        if f"{prefix}blocks.0.mlp.post" in model.sites:
            return prefix
    raise InputError(f"{model.name} has no blocks with neurons (blocks.0.mlp.post). Give a vision transformer.")


def find_patches(model: Runner, inputs: Any, threshold: float | None, seed: int, progress: bool) -> Patches:
    """Run the pictures once and keep their rows' norms alone.

    Raises:
        InputError: No row is a patch.
        NotFinite: NaN or infinite numbers.
    """
    prefix = prefix_of(model)
    sites = [f"{prefix}blocks.{i}.resid_post" for i in range(blocks_of(model, prefix))]
    norms: list[list[np.ndarray]] = [[] for _ in sites]
    example, kind = [], []
    for here in batches(model, inputs, "measuring", progress):
        rec = read(model, here, sites)
        for site, kept in zip(sites, norms, strict=True):
            kept.append(norms_of(rec[site]))
        example.append(examples_of(rec[sites[0]]))
        kind.append(column(rec[sites[0]], "kind", "token").astype(str))
    kinds = np.concatenate(kind)
    plain = kinds == "patch"
    if not plain.any():
        raise InputError(f"{model.name} has no rows of kind patch here, only {', '.join(sorted(set(kinds)))}. Give it pictures.")
    each = tuple(_sized(np.concatenate(kept), plain, threshold, seed) for kept in norms)
    return Patches(prefix, each, np.concatenate(example), kinds)


def _sized(norms: np.ndarray, plain: np.ndarray, threshold: float | None, seed: int) -> TokenSizes:
    chosen = norms[plain]
    massive = np.zeros(len(norms), bool)  # a question of its own: token_norms answers it
    return TokenSizes(norms, plain, massive, float(chosen.mean()), float(chosen.std()), split(chosen, seed), threshold)


def read(model: Runner, inputs: Any, sites: Sequence[str], edits: Sequence[Edit] = ()) -> Recording:
    """One forward without gradients."""
    with torch.no_grad():
        return model.run(inputs, read=list(sites), edits=edits)


def norms_of(activations: Activations) -> np.ndarray:
    """L2 norm of each row, float64."""
    refuse_strange(activations, "Such a row has no norm.")
    return activations.tensor.detach().double().norm(dim=1).cpu().numpy()


def score_neurons(model: Runner, inputs: Any, patches: Patches, at: int, last: int, progress: bool) -> tuple[np.ndarray, ...]:
    """Mean |activation| at high-norm patches, over pictures that have any; the same elsewhere; and the signed mean, `(block, neuron)`.

    Args:
        model: The model.
        inputs: The pictures.
        patches: Their rows.
        at: The block after which high-norm patches are looked up.
        last: The last block whose neurons are scored.
        progress: Show a bar.
    """
    sites = [f"{patches.prefix}blocks.{i}.mlp.post" for i in range(last + 1)]
    high, start = patches.high(at), 0
    sums: list[np.ndarray] = []
    for here in batches(model, inputs, "scoring neurons", progress):
        rec = read(model, here, sites)
        owner = examples_of(rec[sites[0]])
        marked = high[start : start + len(owner)]
        plain = patches.kind[start : start + len(owner)] == "patch"
        for example in np.unique(owner[marked]):
            inside = torch.from_numpy(marked & (owner == example))
            outside = torch.from_numpy(plain & ~marked & (owner == example))
            sums.append(np.stack([_means(rec[site].tensor, inside, outside) for site in sites], 1))
        start += len(owner)
    score, elsewhere, signed = (_mean_of_pictures(each) for each in np.stack(sums, 1))
    return score, elsewhere, signed


def _mean_of_pictures(values: np.ndarray) -> np.ndarray:
    """Mean over the pictures, `picture …`, that have such patches at all; NaN where none has."""
    any_ = ~np.isnan(values).any(axis=tuple(range(1, values.ndim)))
    return values[any_].mean(0) if any_.any() else np.full(values.shape[1:], np.nan)


def _means(values: torch.Tensor, inside: torch.Tensor, outside: torch.Tensor) -> np.ndarray:
    wide = values.detach().cpu().double()
    return torch.stack([wide[inside].abs().mean(0), wide[outside].abs().mean(0), wide[inside].mean(0)]).numpy()
