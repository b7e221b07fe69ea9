"""Recordings made by hand for the tests of sparsity."""

import numpy as np
import torch

from activarium.activations import Activations
from activarium.recording import Recording
from activarium.rows import Rows


def table(examples: list[int] | np.ndarray, kinds: list[str] | None = None) -> Rows:
    """Rows of these examples, one after the other."""
    examples = np.asarray(examples)
    position = np.concatenate([np.arange((examples == e).sum()) for e in dict.fromkeys(examples.tolist())])
    kinds = kinds or ["token"] * len(examples)
    texts = np.array([f"w{p}" for p in position], dtype=object)
    return Rows({"example": examples, "position": position, "text": texts, "kind": np.array(kinds, dtype=object)})


def site(values: list[list[float]] | torch.Tensor, rows: Rows | None = None, name: str = "blocks.0.mlp.act") -> Activations:
    """One site with axes `row d_mlp`, or `row d_model` by its name."""
    values = torch.as_tensor(values)
    width = "d_mlp" if name.endswith(("act", "post", "pre")) and "resid" not in name else "d_model"
    return Activations(values, f"row {'head d_head' if values.ndim == 3 else width}", site=name, index=rows)


def recording(layers: list[torch.Tensor], rows: Rows, ending: str = "mlp.act") -> Recording:
    """One site per block."""
    return Recording({f"blocks.{i}.{ending}": site(v, rows, f"blocks.{i}.{ending}") for i, v in enumerate(layers)}, {"": rows})


def cut(whole: Recording, at: list[int]) -> Recording:
    """The same recording in several parts, as a store holds it."""
    sites = {n: Activations(list(torch.tensor_split(a.tensor, at)), a.axes, site=n, index=a.index) for n, a in whole.items()}
    return Recording(sites, whole.rows)
