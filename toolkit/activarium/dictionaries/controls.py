"""Dictionaries that nothing was learnt for: what every figure of a trained one is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.dictionaries.design import Design, Origin
from activarium.dictionaries.rows import EXCLUDED, RowSource
from activarium.dictionaries.sae import SAE
from activarium.errors import InputError


def identity(width: int, origin: Origin | None = None) -> SAE:
    """One feature for each direction of each number, `2 * width`: it gives rows back as they are, bit for bit."""
    return _signed(torch.eye(width), torch.zeros(width), origin)


def principal(rows: Activations, count: int | None = None, *, exclude: tuple[str, ...] = EXCLUDED) -> SAE:
    """Principal components of a site's rows, each as two features, one for each sign.

    Args:
        rows: One site of one layer, axes `row …`.
        count: How many components, the widest first; None for all.
        exclude: Row kinds that are left out.

    Returns:
        A dictionary that projects rows onto the components around their mean.

    Raises:
        InputError: More components than the site is wide.
        NotFinite: NaN or infinity in a row.
    """
    source = RowSource(rows, exclude=exclude)
    width = source.width
    if not 0 < (count or width) <= width:
        raise InputError(f"{rows.site} is {width} wide, so it has {width} principal components; asked for {count}.")
    total, square = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for _, rows_here, _ in source.pieces():
        values = rows_here.double()
        total += values.sum(0)
        square += values.T @ values
    mean = total / max(1, len(source))
    vectors = torch.linalg.eigh(square / max(1, len(source)) - mean.outer(mean)).eigenvectors
    components = vectors.flip(1)[:, : count or width].T
    return _signed(components.float(), mean.float(), Origin(site=rows.site, exclude=exclude))


def random(like: SAE, seed: int = 0) -> SAE:
    """The same kind and size with random directions, and an encoder that reads along them; biases and thresholds stay.

    Args:
        like: The dictionary it is a control of.
        seed: Draws the directions.
    """
    made = SAE(like.design, like.origin, dtype=like.dtype, seed=seed)
    weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in like.named_parameters()}
    for name in weights.keys() & {"encoder", "W_dec"}:
        drawn = dict(made.named_parameters())[name].detach()
        weights[name] = drawn * weights[name].norm(dim=1, keepdim=True)
    return SAE.of_weights(like.design, weights, like.origin)


def _signed(components: Tensor, mean: Tensor, origin: Origin | None) -> SAE:
    both = torch.cat([components, -components])
    design = Design(components.shape[1], len(both), subtracts_bias=True)
    return SAE.of_weights(design, {"encoder": both, "W_dec": both.clone(), "b_enc": torch.zeros(len(both)), "b_dec": mean}, origin)
