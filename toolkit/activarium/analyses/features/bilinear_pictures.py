"""What eigenvectors are made of: tokens that excite them, pixels they look at, pairs of dictionary features that meet in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from activarium.analyses.features.bilinear_layers import Form, Spectrum
from activarium.analyses.features.bilinear_models import Read
from activarium.analyses.layers.answers import Spelling
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.errors import AxisError
from activarium.results import Grid, Ranking

SHOWN = 8  # tokens of each eigenvector
PAIRS = 30  # pairs of features of each output


def tokens(model: Any, block: int, read: Read, spectra: Sequence[Spectrum], count: int) -> Ranking | None:
    """Tokens that excite each of the first eigenvectors most, were they alone in the stream: λ (q·x)² with x their normalised embedding."""
    if "W_E" not in model.weights:
        return None
    table = model.weight("W_E")
    if table.shape[1] != read.layer.d_in:
        return None
    with torch.no_grad():
        rows = read.layer.rows(model.normalise(f"blocks.{block}.mlp.norm", table).double().cpu())
    spell = Spelling(model)
    names, values, columns = [], [], {"output": [], "eigenvector": [], "token": []}
    for output, spectrum in zip(read.names, spectra, strict=True):
        for r in range(min(count, len(spectrum.values))):
            size = spectrum(rows, np.array([r])).numpy()
            for token in np.argsort(-np.abs(size), kind="stable")[:SHOWN]:
                word = spell(int(token))
                names.append(f"{output} · eigenvector {r} · {word.strip() or word!r}")
                values.append(size[token])
                for key, entry in zip(columns, (output, r, word), strict=True):
                    columns[key].append(entry)
    made = {k: np.array(v, dtype=int if k == "eigenvector" else object) for k, v in columns.items()}
    return Ranking(
        tuple(names), np.array(values), made, title="Tokens that excite each eigenvector, alone in the stream", unit="model units"
    )


def patch_embedding(model: Any, block: int, width: int) -> Tensor | None:
    """What each pixel of a patch writes into the rows that the block's MLP reads, `d_model channel height width`, but for the norm's scale."""
    found = next((m for m in model.torch_module.modules() if isinstance(m, nn.Conv2d) and m.out_channels == width), None)
    if found is None or found.kernel_size != found.stride:
        return None
    gain = f"blocks.{block}.mlp.norm.gain"
    scale = model.weight(gain).double().cpu() if gain in model.weights else torch.ones(width, dtype=torch.float64)
    return found.weight.detach().double().cpu() * scale[:, None, None, None]


def pixels(embedding: Tensor, read: Read, spectra: Sequence[Spectrum], count: int) -> Grid:
    """Each of the first eigenvectors as a picture: how much a pixel moves q·x.

    Raises:
        AxisError: The embedding writes rows of another width.
    """
    if embedding.shape[0] != read.layer.d_in or embedding.ndim not in (3, 4):
        raise AxisError(
            f"embedding has shape {tuple(embedding.shape)}; wanted ({read.layer.d_in}, height, width) or ({read.layer.d_in}, channel, height, width)."
        )
    count = min(count, *(len(s.values) for s in spectra))
    vectors = torch.stack([torch.as_tensor(s.vectors[:count, : read.layer.d_in].copy()) for s in spectra])
    made = torch.tensordot(vectors, embedding.double().cpu(), dims=1).numpy()
    axes = ("output", "eigenvector", *(("channel",) if embedding.ndim == 4 else ()), "height", "width")
    return Grid(made, axes, {"output": read.names}, title="Eigenvectors as pictures", unit="model units")


def interactions(dictionary: FeatureDictionary, scale: Tensor | None, forms: Sequence[Form], read: Read) -> Ranking:
    """Pairs of features whose directions interact most in each output: d_aᵀ Q d_b, and for a pair of one feature d_aᵀ Q d_a.

    Raises:
        AxisError: The features have directions of another width.
    """
    directions = dictionary.directions.detach().double().cpu()
    if directions.shape[1] != read.layer.d_in:
        raise AxisError(f"The dictionary's directions have {directions.shape[1]} numbers; the layer reads {read.layer.d_in}.")
    directions = directions if scale is None else directions * scale
    wide = torch.cat([directions, torch.zeros_like(directions[:, :1])], 1) if read.layer.constant else directions
    names, values, columns = [], [], {"output": [], "feature": [], "other": []}
    for output, form in zip(read.names, forms, strict=True):
        best: list[tuple[float, int, int, float]] = []
        for first in range(0, len(wide), 1024):
            table = form.times(wide[first : first + 1024].T).T @ wide.T
            keep = torch.arange(len(wide))[None] >= torch.arange(first, first + len(table))[:, None]  # each pair once
            size = torch.where(keep, table.abs(), -1).flatten()
            top = size.topk(min(PAIRS, len(size))).indices
            a, b = (top // len(wide) + first).tolist(), (top % len(wide)).tolist()
            best += [(-abs(v), i, j, v) for i, j, v in zip(a, b, table.flatten()[top].tolist(), strict=True) if j >= i]
        for _, a, b, value in sorted(best)[:PAIRS]:
            names.append(f"{output} · {a}, {b}")
            values.append(value)
            for key, entry in zip(columns, (output, a, b), strict=True):
                columns[key].append(entry)
    made = {k: np.array(v, dtype=object if k == "output" else int) for k, v in columns.items()}
    return Ranking(tuple(names), np.array(values), made, title="Pairs of features that interact most", unit="model units")
