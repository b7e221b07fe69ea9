"""A tiny signed dictionary of differences between two embeddings, for which A over B is minus B over A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.dictionaries import SAE, Recipe, Trained, train
from activarium.recording import Recording
from activarium.rows import Rows

SITE = "difference"
BATCH = 256
DEAD_AFTER = 10  # batches without a code: training is short, and a few dead features are many of so few


@dataclass(frozen=True, eq=False)
class PairDictionary:
    """What was trained on differences.

    Attributes:
        sae: Its codes of −x are minus those of x, bit for bit.
        steps: Steps of training, those of least error on the validation pairs.
        errors: Normalised squared error on the validation pairs for each number of steps.
        bias: Length of the biases that were set to 0, as a share of a difference's mean length.
    """

    sae: SAE
    steps: int
    errors: dict[int, float]
    bias: float


def pair_dictionary(
    differences: Tensor,
    checked: Tensor,
    *,
    features: int = 32,
    k: int = 4,
    groups: Sequence[int] = (8, 32),
    steps: Sequence[int] = (150, 300, 600),
    seed: int = 0,
) -> PairDictionary:
    """Train it on differences and their negatives.

    Every difference is first turned so that its first number is not negative: which of the two is called A then changes nothing, and the
    dictionary of swapped pairs is the same one. On a set that holds −x with each x the best biases are 0; they are set to it,
    which makes the codes odd.

    Args:
        differences: `pair d_model`, to train on.
        checked: `pair d_model`, to choose the number of steps by.
        features: How many.
        k: Codes of a pair on average.
        groups: Sizes of the nested prefixes, the last one all features.
        steps: Numbers of steps that are tried; the one of least error on `checked` is kept.
        seed: Draws first weights and batches.
    """
    turned = _turned(differences)
    rows = torch.cat([turned, -turned])
    table = Rows(
        {"example": np.arange(len(rows)), "position": np.zeros(len(rows), int), "kind": np.full(len(rows), "example", dtype=object)}
    )
    recording = Recording({SITE: Activations(rows, "row d_model", site=SITE, index=table)}, {"": table})
    size = min(BATCH, len(rows))
    recipe = Recipe(
        features,
        kind="absbatchtopk",
        k=k,
        groups=tuple(groups),
        centre="median",
        normalised=True,
        auxiliary=1 / 32,
        dead_after=DEAD_AFTER * size,
        seed=seed,
    )
    size = min(BATCH, len(rows))
    tried = {count: _trained(recording, recipe, size, count, seed) for count in sorted(set(steps))}
    odd = {count: _odd(sae) for count, sae in tried.items()}
    errors = {count: normalised_error(sae, checked) for count, sae in odd.items()}
    best = min(errors, key=lambda count: (errors[count], count))
    length = float(rows.norm(dim=1).mean().clamp_min(1e-30))
    bias = float(torch.cat([tried[best].b_enc, tried[best].b_dec]).norm()) / length
    return PairDictionary(odd[best], best, errors, bias)


def normalised_error(sae: SAE, differences: Tensor) -> float:
    """Squared error over squared length, both summed over pairs."""
    with torch.no_grad():
        left = (differences.float() - sae.forward(differences.float())).double().square().sum()
    return float(left / differences.double().square().sum().clamp_min(1e-300))


def _trained(recording: Recording, recipe: Recipe, batch: int, steps: int, seed: int) -> SAE:
    made = train(recording, SITE, recipe, batch=batch, steps=steps, seed=seed, progress=False)
    assert isinstance(made, Trained)
    return made.sae


def _turned(differences: Tensor) -> Tensor:
    first = (differences != 0).int().argmax(1, keepdim=True)
    sign = differences.gather(1, first).sign()
    return (differences * torch.where(sign == 0, 1.0, sign)).float()


def _odd(sae: SAE) -> SAE:
    weights = {name: value.detach().clone() for name, value in sae.named_parameters()}
    for name in ("b_enc", "b_dec"):
        weights[name].zero_()
    return SAE.of_weights(sae.design, weights, sae.origin)
