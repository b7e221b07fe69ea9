"""What each kind of dictionary is trained for, in the space of scaled rows."""

from __future__ import annotations

from torch import Tensor

from activarium.dictionaries.competing import competing
from activarium.dictionaries.gates import gated, jump, standard
from activarium.dictionaries.pursuit import pursue
from activarium.dictionaries.recipe import TOP, Recipe
from activarium.dictionaries.sae import SAE
from activarium.dictionaries.step import Step, squared


def objective(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor, dead: Tensor, threshold: Tensor) -> Step:
    """One batch of rows `x` and targets `y`, both scaled.

    Args:
        recipe: How.
        sae: What is trained.
        x: `row d_in`.
        y: `row d_out`.
        dead: Numbers of the dead features, int64; how many there are is known without asking the device.
        threshold: The running threshold of the kinds that keep a batch's largest codes, for finding them sooner.
    """
    if recipe.kind in TOP:
        return competing(recipe, sae, x, y, dead, threshold)
    if recipe.kind == "jumprelu":
        return jump(recipe, sae, x, y, dead)
    return {"standard": standard, "gated": gated, "pursuit": pursuing}[recipe.kind](recipe, sae, x, y)


def pursuing(recipe: Recipe, sae: SAE, x: Tensor, y: Tensor) -> Step:
    """One batch of matching pursuit: squared error alone."""
    codes = pursue(x - sae.b_dec, sae.W_dec, recipe.k or 1, 0.0, repeats=False)
    error = y - sae.b_dec - codes @ sae.W_dec
    on = codes.detach() > 0
    return Step(squared(error) / len(x), squared(error.detach()), on.any(0), on.sum())
