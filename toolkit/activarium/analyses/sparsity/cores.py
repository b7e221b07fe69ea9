"""Core neurons: those among the largest positive activations of a token, and those of most tokens of a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, refuse_strange
from activarium.analyses.sparsity.row_kinds import some_kept
from activarium.errors import InputError

RULES = ("paper", "shared_k")
SITES = ("mlp.post", "mlp.act", "mlp.pre")
AT_ONCE = 2**22  # numbers that are sorted at a time
SETTLED = 200  # tokens after which the paper saw the sets at rest


@dataclass(frozen=True)
class Settings:
    """What makes a neuron a core neuron.

    Attributes:
        alpha: Share of a token's positive activations that are its core.
        beta: Share of all neurons that are a sentence's core.
        rule: `paper` counts for each token on its own; `shared_k` gives every token of a sentence the same number, as the published code does.
    """

    alpha: float = 0.4
    beta: float = 0.2
    rule: str = "paper"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InputError(f"rule={self.rule!r} is not known; choose {' or '.join(map(repr, RULES))}.")
        for name, low in (("alpha", "above 0"), ("beta", "at least 0")):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "alpha" and not value):
                raise InputError(
                    f"{name}={value} is no share of neurons; give a number {low} and at most 1, such as {getattr(Settings, name)}."
                )


@dataclass(frozen=True, eq=False)
class Core:
    """The core neurons of one sentence in one layer.

    Attributes:
        neurons: Their numbers, first the one in most tokens' cores; ties by higher summed activation, then by lower number.
        wanted: How many `beta` asked for.
        counts: For every neuron, in how many tokens' cores it is, int32 `(neuron,)`.
        tokens: How many tokens the sentence has.
    """

    neurons: np.ndarray
    wanted: int
    counts: np.ndarray
    tokens: int

    @property
    def short(self) -> bool:
        """Fewer neurons than asked for are in any token's core (or none was asked for)."""
        return len(self.neurons) < max(self.wanted, 1)


def token_cores(values: Tensor, settings: Settings) -> Tensor:
    """Which neurons are the core of each token? Boolean `row neuron`; of equal activations the lower numbers count first."""
    if settings.rule == "shared_k":
        # All values take part, so a token with few positive ones is given neurons that are not positive at all.
        wanted = torch.full((len(values),), whole(settings.alpha * float((values > 0).sum(1).double().mean())), device=values.device)
        return torch.cat([_largest(v, w) for v, w in _pieces(values, wanted)])
    wanted = (settings.alpha * (values > 0).sum(1).double() - 1e-9).ceil().long()
    return torch.cat([_largest(v, w) & (v > 0) for v, w in _pieces(values, wanted)])


def _pieces(values: Tensor, wanted: Tensor) -> list[tuple[Tensor, Tensor]]:
    rows = max(1, AT_ONCE // max(1, values.shape[1]))
    return list(zip(values.split(rows), wanted.split(rows), strict=True))


def _largest(values: Tensor, wanted: Tensor) -> Tensor:
    """True at the `wanted` largest values of each row."""
    order = values.argsort(dim=1, descending=True, stable=True)
    among = torch.arange(values.shape[1], device=values.device) < wanted[:, None]
    return torch.zeros_like(among).scatter(1, order, among)


def sentence_core(counts: Tensor, sums: Tensor, tokens: int, beta: float) -> Core:
    """The core of a sentence from what its tokens counted: `counts` int32 and `sums` float32, both `(neuron,)`."""
    found, size = counts.cpu().numpy(), sums.cpu().numpy()
    wanted = whole(beta * len(found))
    order = np.lexsort((np.arange(len(found)), -size.astype(np.float64), -found.astype(np.int64)))[:wanted]
    return Core(order[found[order] > 0], wanted, found, tokens)


def core_of(values: Tensor, settings: Settings) -> Core:
    """The core of one sentence, `row neuron`."""
    return prefix_cores(values, settings, [len(values)])[0]


def prefix_cores(values: Tensor, settings: Settings, lengths: Sequence[int]) -> list[Core]:
    """The cores of the first so many tokens of a sentence, for each of several growing lengths.

    The state is one count and one sum per neuron, and a length is a look at it in passing. Only `shared_k` starts again for
    each length: its number of neurons is a mean over the tokens.
    """
    if settings.rule == "shared_k" and len(lengths) > 1:
        return [core_of(values[:n], settings) for n in lengths]
    counts = torch.zeros(values.shape[1], dtype=torch.int32, device=values.device)
    sums = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    found, start = [], 0
    for stop in lengths:
        counts += token_cores(values[start:stop], settings).sum(0, dtype=torch.int32) if stop > start else 0
        sums += values[start:stop].sum(0, dtype=torch.float64)
        found.append(sentence_core(counts.clone(), sums.float(), stop, settings.beta))
        start = stop
    return found


def sentences(activations: Activations, exclude: Sequence[str]) -> Iterator[tuple[int, Tensor]]:
    """Example number and the rows of it that count, one example in memory at a time; none where no row counts.

    Raises:
        InputError: No row is left in any of them.
        NotFinite: NaN or infinite numbers.
    """
    keep = some_kept(activations, exclude)
    for example, first, values in by_example(activations):
        chosen = values[torch.from_numpy(keep[first : first + len(values)]).to(values.device)]
        if not bool(chosen.isfinite().all()):
            refuse_strange(activations, "They cannot be ranked.")
        if len(chosen):
            yield example, chosen


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Neurons that are in both of two cores, as a share of those that are in either; NaN if both are empty."""
    either = len(np.union1d(first, second))
    return len(np.intersect1d(first, second)) / either if either else float("nan")


def similarities(first: Sequence[np.ndarray], second: Sequence[np.ndarray], width: int) -> np.ndarray:
    """`similarity` of each core with each of others, `(first, second)`; NaN where both are empty."""
    one, other = (_members(cores, width) for cores in (first, second))
    both = (one @ other.T).astype(np.float64)
    either = one.sum(1, dtype=np.float64)[:, None] + other.sum(1, dtype=np.float64) - both
    return np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)


def _members(cores: Sequence[np.ndarray], width: int) -> np.ndarray:
    member = np.zeros((len(cores), width), np.float32)  # products of these are whole numbers, exact to 2^24
    for row, neurons in zip(member, cores, strict=True):
        row[neurons] = 1
    return member


def whole(number: float) -> int:
    """The whole part, where 0.29 × 100 is 29 although floats say 28.999…"""
    return math.floor(number + 1e-9)
