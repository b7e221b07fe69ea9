"""What one clean pass over texts with images tells of sinks: phi of every token, image-centric heads, attention on sinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activarium.activations import Activations
from activarium.analyses.massive.batches import batches, blocks_of
from activarium.analyses.massive.stacks import dimensions_of, layers_of_run
from activarium.analyses.massive.visual_attention import SinkRule, image_centric, image_rows, phi
from activarium.protocols import Runner
from activarium.rows import Rows

ABSOLUTE, RATIO = 100.0, 1000.0  # Sun et al.


@dataclass(frozen=True, eq=False)
class Survey:
    """All texts.

    Attributes:
        rows: Row table of all texts.
        image: Which rows are those of an image.
        phi: phi of each row at each block's input, `(block, row)`.
        centric: Share of the text queries that see an image at which a head is image-centric, `(block, head)`.
        on_sinks: Share of the text queries' visual attention that lies on visual sinks, `(block, head)`.
    """

    rows: Rows
    image: np.ndarray
    phi: np.ndarray
    centric: np.ndarray
    on_sinks: np.ndarray


def find_dims(model: Runner, inputs: Any, prefix: str, progress: bool) -> tuple[int, ...]:
    """Dimensions with a massive activation in 90 % of the texts at three or more consecutive layers; often none in a small model.

    Raises:
        NotFinite: NaN or infinite numbers.
    """
    sites = [f"{prefix}blocks.{i}.resid_post" for i in range(blocks_of(model, prefix))]
    (layers,) = layers_of_run(model, inputs, ABSOLUTE, RATIO, read=sites, progress=progress).values()
    verdict = dimensions_of(layers).columns
    return tuple(int(d) for d, stays in zip(verdict["dim"], verdict["persistent"], strict=True) if stays)


def survey(model: Runner, inputs: Any, prefix: str, rule: SinkRule, progress: bool) -> Survey:
    """Run the texts as they are.

    Raises:
        InputError: No text has an image.
    """
    count = blocks_of(model, prefix)
    read = [f"{prefix}blocks.{i}.{leaf}" for i in range(count) for leaf in ("resid_pre", "attn.pattern")]
    tables, sizes, parts = [], [], []
    for here in batches(model, inputs, "looking at", progress):
        with torch.no_grad():
            rec = model.run(here, read=read)
        rows = rec.rows[prefix.rstrip(".")]
        tables.append(rows)
        image_rows(rows, model.name)
        phis = [phi(rec[f"{prefix}blocks.{i}.resid_pre"].tensor, rule.dims).cpu() for i in range(count)]
        sizes.append(torch.stack(phis).numpy())
        for example in rows.examples:
            parts.append([_heads(rec[f"{prefix}blocks.{i}.attn.pattern"], rows, example, phis[i], rule) for i in range(count)])
    rows = Rows.concatenate(tables)
    # (example, block, quantity, head): image-centric queries, text queries, attention on sinks, attention on the image.
    sums = np.array(parts).sum(0)
    with np.errstate(invalid="ignore"):
        centric, on_sinks = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
    return Survey(rows, image_rows(rows, model.name), np.concatenate(sizes, 1), centric, on_sinks)


def _heads(patterns: Activations, rows: Rows, example: int, sizes: torch.Tensor, rule: SinkRule) -> np.ndarray:
    span = rows.span(example)
    pattern = patterns.example(example).tensor.double().cpu()
    image = torch.from_numpy(rows["kind"][span].astype(str) == "image")
    sinks = sizes[span] >= rule.tau
    asking = ~image & (pattern[..., image].sum(-1).amax(0) > 0)  # a text before its image cannot look at it
    centric = image_centric(pattern, image, sinks, rule.rho, rule.least)[:, asking].sum(1)
    on_sinks, visual = (pattern[:, asking][..., keys].sum((1, 2)) for keys in (image & sinks, image))
    return torch.stack([centric.double(), torch.full_like(visual, int(asking.sum())), on_sinks, visual]).numpy()
