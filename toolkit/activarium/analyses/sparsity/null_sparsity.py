"""How sparse a layer would be by chance: Gaussian pre-activations with each neuron's own mean and variance, and shuffled weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example
from activarium.analyses.sparsity.active_sets import ActiveSets
from activarium.errors import UnknownName, UnknownSite
from activarium.protocols import Runner
from activarium.recording import Recording

ROWS = 1000  # rows drawn, or taken, for a null


def null_densities(sets: ActiveSets, recording: Recording, model: Runner | None, seed: int) -> dict[str, float]:
    """Null → share of neurons that is active under it; only the nulls whose sites were recorded.

    `Gaussian` needs `mlp.pre` (and `mlp.up` where the MLP is gated), `shuffled weights` also `mlp.in` and the model.
    """
    block = sets.neurons.site.rpartition("mlp.")[0]
    pre, up, inside = (_recorded(recording, f"{block}mlp.{name}") for name in ("pre", "up", "in"))
    if pre is None or pre.axes != ("row", "d_mlp"):
        return {}
    act = _recorded(recording, f"{block}mlp.act") or sets.neurons
    if up is None and not _is_act(sets, act):
        return {}  # the neurons are more than the activation, and what multiplies it is not there
    rows = _some(sets.rows())
    function = _activation(pre.rows(rows).double(), act.rows(rows).double())
    generator = torch.Generator().manual_seed(seed)
    found = {"Gaussian": _density(sets, function(_gaussian(sets, pre, generator)) * (1 if up is None else _gaussian(sets, up, generator)))}
    if model is not None and inside is not None:
        seen = inside.rows(rows).double()
        names = ("W_in", None) if up is None else ("W_gate", "W_in")
        gate, linear = (None if name is None else _shuffled(model, block, name, seen, generator) for name in names)
        assert gate is not None
        found["shuffled weights"] = _density(sets, function(gate) * (1 if linear is None else linear))
    return found


def _recorded(recording: Recording, site: str) -> Activations | None:
    try:
        return recording[site]
    except UnknownSite:
        return None


def _is_act(sets: ActiveSets, act: Activations) -> bool:
    rows = _some(sets.rows())
    return torch.equal(act.rows(rows), sets.neurons.rows(rows))


def _some(rows: np.ndarray) -> np.ndarray:
    """At most `ROWS` of them, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).round().astype(int)]


def _density(sets: ActiveSets, values: Tensor) -> float:
    return float(sets.of(values)[0].double().mean())


def _activation(before: Tensor, after: Tensor) -> Callable[[Tensor], Tensor]:
    """The activation function: a ReLU if that is what it is, else read off the recorded pairs."""
    if torch.equal(before.clamp_min(0), after):
        return torch.relu
    x, order = before.flatten().sort()
    y = after.flatten()[order].numpy()

    def read_off(values: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(values.numpy(), x.numpy(), y))

    return read_off


def _gaussian(sets: ActiveSets, values: Activations, generator: torch.Generator) -> Tensor:
    """Rows in which each feature is Gaussian with the mean and variance it has."""
    total, squares, count = (torch.zeros(values.shape[1], dtype=torch.float64) for _ in range(3))
    for some in _kept(sets, values):
        total, squares, count = total + some.sum(0), squares + some.square().sum(0), count + len(some)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    return mean + deviation * torch.randn(ROWS, len(mean), generator=generator, dtype=torch.float64)


def _kept(sets: ActiveSets, values: Activations) -> Iterator[Tensor]:
    keep = np.zeros(len(values), bool)
    keep[sets.rows()] = True
    for _, first, some in by_example(values):
        yield some[torch.from_numpy(keep[first : first + len(some)].nonzero()[0])].double()


def _shuffled(model: Runner, block: str, name: str, seen: Tensor, generator: torch.Generator) -> Tensor:
    """Pre-activations `row d_mlp` with each neuron's incoming weights in another order; biases stay."""
    weight = model.weight(f"{block}mlp.{name}").double()
    order = torch.rand(weight.shape, generator=generator).argsort(0)
    made = seen @ weight.gather(0, order)
    try:
        return made + model.weight(f"{block}mlp.{name.replace('W_', 'b_')}").double()
    except UnknownName:
        return made
