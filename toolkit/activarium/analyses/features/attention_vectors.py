"""A classifier made of a few attention heads: class means per head, heads by their score, a majority vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.features.attention_rows import Vectors, head_sites, labels_of, read_vectors, which_rows
from activarium.errors import InputError, OtherModel, UnknownSite, unknown
from activarium.recording import Recording

Head = tuple[str, int]  # site, number of the query head
MOST = 20  # heads that vote, as in the paper; a small model has fewer to give
TIE = 1e-9  # cosines that differ by less are equal but for rounding


@dataclass(frozen=True, eq=False)
class AttentionVectors:
    """A fitted classifier: some heads, and what each reads of each class on average. Apply it with `predict`.

    Attributes:
        classes: Names of the classes, sorted.
        heads: The heads that vote, the best first: site and number.
        means: Site → class means of all its heads, `head class d_head`.
        scores: Site → share of the fitted examples whose nearest class mean is their own, each left out of its class's mean; `(head,)`.
        optimistic: The same with the example inside the mean, as the reference scores: for information only.
        rows: Which rows were read: `last`, `cls` or `patches`.
        weight_hash: Of the model that was recorded; empty if the recording does not say.
    """

    classes: tuple[str, ...]
    heads: tuple[Head, ...]
    means: Mapping[str, Tensor]
    scores: Mapping[str, np.ndarray]
    optimistic: Mapping[str, np.ndarray]
    rows: str
    weight_hash: str = ""
    ranked: tuple[Head, ...] = field(default=(), repr=False)

    def predict(self, recording: Recording | Activations) -> np.ndarray:
        """The class of each example of a recording, in words.

        Raises:
            OtherModel: It is of a model with other weights.
            UnknownSite: It lacks a site with a voting head.
        """
        found = weight_hash_of(recording)
        if self.weight_hash and found and found != self.weight_hash:
            raise OtherModel(
                f"These heads were fitted on weights {self.weight_hash[:12]}…; this recording is of a model with {found[:12]}…. "
                "Record the same model, or fit again."
            )
        sites = head_sites(recording)
        for site in dict.fromkeys(name for name, _ in self.heads):
            if site not in sites:
                raise unknown("site in this recording", site, sites, UnknownSite)
        kept = {name: site for name, site in sites.items() if name in {n for n, _ in self.heads}}
        return self.answers(read_vectors(kept, which_rows(next(iter(kept.values())), self.rows)))

    def answers(self, vectors: Vectors, heads: Sequence[Head] | None = None) -> np.ndarray:
        """The class of each example by the vote of these heads (of those that were kept, where none are named)."""
        voting = tuple(heads or self.heads)
        cosines = torch.stack([cosines_to(vectors[site][:, head], self.means[site][head]) for site, head in voting], 1)
        order = sorted(range(len(voting)), key=lambda i: (list(self.means).index(voting[i][0]), voting[i][1]))
        return np.array(self.classes, dtype=object)[vote(cosines[:, order])]


def fit_attention_vectors(
    recording: Recording | Activations,
    labels: Sequence[Any] | np.ndarray | None = None,
    *,
    heads: int | None = None,
    rows: str | None = None,
) -> AttentionVectors:
    """Choose heads and class means on all examples of a recording.

    Args:
        recording: Holds `blocks.*.attn.z`.
        labels: The class of each example, in the recording's order; None takes the row table's column `label`.
        heads: How many vote; None lets a tenth of all heads vote, from 1 to 20.
        rows: `last`, `cls` or `patches`; None chooses by the kinds of rows.

    Raises:
        InputError: A class has a single example, there is a single class, or no head is to vote.
    """
    sites = head_sites(recording)
    first = next(iter(sites.values()))
    named = labels_of(first, labels)
    chosen = which_rows(first, rows)
    return fitted(read_vectors(sites, chosen), named, heads, chosen, weight_hash_of(recording))


def fitted(vectors: Vectors, labels: np.ndarray, heads: int | None, rows: str, weight_hash: str = "") -> AttentionVectors:
    """The classifier of vectors that were read already: see `fit_attention_vectors`."""
    classes = tuple(sorted(set(labels.tolist())))
    target = torch.as_tensor([classes.index(name) for name in labels.tolist()])
    counts = torch.bincount(target, minlength=len(classes))
    if len(classes) < 2:
        raise InputError(f"There is one class, {classes[0] if classes else 'none'!r}; a classifier needs at least two.")
    if int(counts.min()) < 2:
        few = classes[int(counts.argmin())]
        raise InputError(f"Class {few!r} has one example: left out of its own mean nothing is left to score heads by. Give two or more.")
    if heads is not None and heads < 1:
        raise InputError(f"heads={heads} lets no head vote; give 1 or more.")
    means, scores, optimistic, order = {}, {}, {}, []
    for at, (site, values) in enumerate(vectors.items()):
        sums = torch.zeros(len(classes), *values.shape[1:], dtype=values.dtype).index_add_(0, target, values)
        means[site] = (sums / counts[:, None, None]).movedim(0, 1)
        inside = torch.stack([cosines_to(values[:, h], means[site][h]) for h in range(values.shape[1])], 1)
        # Without the example itself its class mean is (n mean − z) / (n − 1); the other means do not change.
        own = (sums[target] - values) / (counts[target] - 1)[:, None, None]
        outside = inside.clone()
        outside[torch.arange(len(target)), :, target] = _cosine(values, own)
        right, margin = _right(outside, target), _margin(outside, target)
        scores[site], optimistic[site] = right.double().mean(0).numpy(), _right(inside, target).double().mean(0).numpy()
        hits, margins = right.sum(0).tolist(), margin.sum(0).tolist()
        order += [(-hits[h], -round(margins[h], 9), at, h, site) for h in range(values.shape[1])]
    ranked = tuple((site, head) for *_, head, site in sorted(order))
    kept = min(MOST, -(-len(ranked) // 10)) if heads is None else heads
    return AttentionVectors(classes, ranked[:kept], means, scores, optimistic, rows, weight_hash, ranked)


def cosines_to(vectors: Tensor, means: Tensor) -> Tensor:
    """Cosine of each vector with each mean, `example class`; 0 where either is the zero vector."""
    unit, toward = (torch.nn.functional.normalize(v, dim=-1, eps=1e-300) for v in (vectors, means))
    return torch.einsum("ed,cd->ec", unit, toward)


def vote(cosines: Tensor) -> np.ndarray:
    """The class that most heads find nearest.

    Between classes with as many votes, the larger sum of margins (nearest less second cosine, over the heads that chose it) decides,
    then the choice of the first of these heads. A head that cannot tell its nearest classes apart does not vote.

    Args:
        cosines: `example head class`, heads in the order of layer and number.
    """
    best = cosines.topk(2, dim=2)
    margin, choice = best.values[..., 0] - best.values[..., 1], best.indices[..., 0]
    clear = margin > TIE
    count = torch.zeros(len(cosines), cosines.shape[2], dtype=torch.float64)
    votes = count.scatter_add(1, choice, clear.double())
    margins = count.scatter_add(1, choice, torch.where(clear, margin, 0))
    ahead = votes == votes.max(1, keepdim=True).values
    sums = torch.where(ahead, margins, -torch.inf)
    tied = ahead & (sums >= sums.max(1, keepdim=True).values - TIE)
    answers = tied.double().argmax(1)
    for row in (tied.sum(1) > 1).nonzero()[:, 0].tolist():
        spoken = [int(c) for c, ok in zip(choice[row], clear[row], strict=True) if ok and tied[row, c]]
        answers[row] = spoken[0] if spoken else answers[row]
    return answers.numpy()


def weight_hash_of(recording: Recording | Activations) -> str:
    """Hash of the weights of the model that was recorded, if the recording says."""
    return str((recording.provenance.get("model") or {}).get("weight_hash", ""))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    unit, other = (torch.nn.functional.normalize(v, dim=-1, eps=1e-300) for v in (a, b))
    return (unit * other).sum(-1)


def _margin(cosines: Tensor, target: Tensor) -> Tensor:
    """Cosine with the right class less the largest other one, `example head`."""
    right = torch.nn.functional.one_hot(target, cosines.shape[2]).bool()[:, None]
    return torch.where(right, cosines, -torch.inf).amax(2) - torch.where(right, -torch.inf, cosines).amax(2)


def _right(cosines: Tensor, target: Tensor) -> Tensor:
    """Is the right class nearest, nearer than every other (a head that is blind scores nothing)?"""
    return _margin(cosines, target) > TIE
