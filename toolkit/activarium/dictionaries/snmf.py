"""A factorisation as a dictionary: rows as sums, never differences, of a few signed directions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from activarium.dictionaries.codes import Codes
from activarium.dictionaries.design import Origin
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.dictionaries.nonnegative import nonnegative
from activarium.errors import InputError

NEURONS = ".mlp.post"


class SNMF(FeatureDictionary):
    """Factors of a site: x ≈ Σ g_k z_k with g ≥ 0 and signed directions z_k of length 1. Nothing is added or centred.

    Codes are the exact nonnegative least squares of a row on all factors together, so features compete: without one of them, the
    codes of others change. Codes carry no gradient; what `decode` makes of them does.

    Attributes:
        origin: What it was made from.
        factors: Z, the directions as columns, `d_in feature`.

    Example:
        >>> import torch
        >>> from activarium.dictionaries import SNMF
        >>> snmf = SNMF(torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
        >>> snmf.encode(torch.tensor([[2.0, 3.0, 0.0], [0.5, -1.0, 9.0]])).tolist()
        [[2.0, 0.0], [0.5, 1.0]]
    """

    def __init__(self, directions: Tensor, origin: Origin | None = None) -> None:
        if directions.ndim != 2 or not directions.is_floating_point():
            raise InputError(f"Factors are a table 'feature d_in' of floats; got {directions.dtype} of shape {tuple(directions.shape)}.")
        if not bool(directions.isfinite().all()):
            raise InputError("A factor holds NaN or infinity: the file is damaged, or it overflowed in float16.")
        wide = directions.float() if directions.dtype in (torch.float16, torch.bfloat16) else directions
        self._directions, self.origin = wide.detach(), origin or Origin()

    @property
    def d_in(self) -> int:
        """Width of the rows it reads."""
        return self._directions.shape[1]

    @property
    def directions(self) -> Tensor:
        """The factors, `feature d_in`: of length 1, or zero where one died."""
        return self._directions

    @property
    def factors(self) -> Tensor:
        return self._directions.T

    @torch.no_grad()
    def encode(self, x: Tensor, features: Sequence[int] | None = None) -> Tensor:
        """Codes `row feature` ≥ 0 of rows `row d_in`, dense; all features are fitted also where only some are asked for."""
        self.check_rows(x)
        made = nonnegative(x.to(self.dtype) @ self.factors, self.directions @ self.factors)
        return made if features is None else made[:, list(features)]

    def decode(self, feature_acts: Tensor | Codes) -> Tensor:
        """Codes times directions, `row d_in`."""
        if isinstance(feature_acts, Codes):
            found = feature_acts
            return nn.functional.embedding_bag(
                found.features.long(),
                self.directions,
                found.starts,
                mode="sum",
                per_sample_weights=found.values.to(self.dtype),
                include_last_offset=True,
            )
        return feature_acts.to(self.dtype) @ self.directions

    def save(self, path: str | Path) -> Path:
        """Write it into one safetensors file, whole or not at all."""
        from safetensors.torch import save_file

        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        words = {"snmf": "1", "origin": json.dumps(self.origin.to_json())}
        save_file({"directions": self.directions.contiguous().cpu()}, temporary, metadata=words)
        return temporary.replace(path)

    @staticmethod
    def load(path: str | Path) -> SNMF:
        """Read what `save` wrote.

        Raises:
            InputError: The file holds no factors.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                said, directions = json.loads((file.metadata() or {}).get("origin", "{}")), file.get_tensor("directions")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{Path(path).name} holds no factors: {error}. Write them with snmf.save(path).") from error
        return SNMF(directions, Origin.of_json(said))


def residual_directions(snmf: FeatureDictionary, model: Any, *, at: str = "mlp.proj") -> Tensor:
    """What each factor of a block's neurons adds to the residual stream, `feature d_model`.

    Args:
        snmf: A dictionary that reads `blocks.i.mlp.post`.
        model: The model whose neurons they are.
        at: `mlp.proj`, where it is W_down z, exactly; or `mlp.out`, what is added to the stream: the same where nothing follows the
            projection, and post_norm(W_down z + b) where a norm does (Gemma), which is no longer linear in the code.

    Raises:
        InputError: The dictionary reads another site, or is another model's.
    """
    site = snmf.origin.site
    if not site.endswith(NEURONS):
        raise InputError(
            f"Only factors of neurons ('blocks.i.mlp.post') are written through W_down; this dictionary reads {site or 'an unknown site'}. "
            "Its directions are those of its own site: dictionary.directions."
        )
    if at not in ("mlp.proj", "mlp.out"):
        raise InputError(f"at={at!r} is not known; choose 'mlp.proj' or 'mlp.out'.")
    stem = site.removesuffix("post")
    down = model.weight(f"{stem}W_down").detach()
    if down.shape[0] != snmf.d_out:
        raise InputError(
            f"{stem}W_down of {model.name} reads {down.shape[0]} neurons; the factors have {snmf.d_out}. Is it another model's?"
        )
    written = snmf.directions.to(down) @ down
    if at == "mlp.proj" or f"{stem}post.gain" not in model.weights:
        return written
    shift = model.weight(f"{stem}b_down").detach() if f"{stem}b_down" in model.weights else 0.0
    return model.normalise(f"{stem}post", written + shift).detach()
