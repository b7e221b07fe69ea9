"""A residual stream as the sum of what is written to it, and each write's share of a metric that reads the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.patching.frozen import FITS, Frozen, freeze
from activarium.analyses.patching.readers import Reader, reader
from activarium.errors import InputError, MissingSite
from activarium.metrics import Metric


@dataclass(frozen=True)
class Stream:
    """One stack's stream.

    Attributes:
        prefix: `""`, or the stack's name with a dot.
        depth: Blocks.
        rooms: Sub-layers that write, in order: `attn`, `cross`, `mlp`.
    """

    prefix: str
    depth: int
    rooms: tuple[str, ...]

    def stem(self, layer: int) -> str:
        """`blocks.3.`"""
        return f"{self.prefix}blocks.{layer}."

    def sites(self, room: str, leaf: str) -> list[str]:
        """`blocks.*.attn.out`, bottom to top."""
        return [f"{self.stem(i)}{room}.{leaf}" for i in range(self.depth)]

    @property
    def first(self) -> str:
        """What enters block 0."""
        return f"{self.stem(0)}resid_pre"

    @property
    def last(self) -> str:
        """What leaves the last block."""
        return f"{self.stem(self.depth - 1)}resid_post"

    @property
    def norm(self) -> str:
        """The final norm's output."""
        return f"{self.prefix}final_norm"


@dataclass(frozen=True)
class Terms:
    """Shares of one batch.

    Attributes:
        names: Of all terms, bottom to top.
        values: `example term`.
        metric: `example`; before a soft-cap, if there is one.
        heads: Room → `example layer head`.
        sources: Room → `example layer head position`.
        cap: The soft-cap.
    """

    names: tuple[str, ...]
    values: np.ndarray
    metric: np.ndarray
    heads: Mapping[str, np.ndarray]
    sources: Mapping[str, np.ndarray]
    cap: float | None


def stream_of(model: Any) -> Stream:
    """The stream that the logits are read from.

    Raises:
        InputError: There are no logits of one stream, or the norms follow the sums (post-norm).
    """
    answer = model.sites.find("logits")
    stacks = model.anatomy.stacks
    name = answer.rows if answer.rows in stacks else next(iter(stacks)) if len(stacks) == 1 else None
    if name is None:
        raise InputError(f"The logits of {model.name} compare {' and '.join(stacks)}: they are read from no single stream.")
    stack = stacks[name]
    if stack.blocks[0].algebra == "post-norm":
        raise InputError(
            f"{model.name} is post-norm: each norm follows the sum of stream and write, so its stream is no sum of what was written, and no part "
            "has a share of its own. Use activation_patching."
        )
    rooms = tuple(r for r in ("attn", "cross", "mlp") if f"{stack.prefix}blocks.0.{r}.out" in model.sites)
    if not model.sites.find(f"{stack.prefix}final_norm").axes.startswith("row"):
        raise InputError(
            f"The final norm of {model.name} acts on pooled rows, so rows have no share of their own. Use activation_patching."
        )
    return Stream(stack.prefix, len(stack.blocks), rooms)


def check_heads(model: Any, stream: Stream) -> None:
    """Can every head be followed?

    Raises:
        MissingSite: The mix of an attention's heads, or its projection's weights, cannot be read.
    """
    for room in (r for r in stream.rooms if r != "mlp"):
        for site, weight in zip(stream.sites(room, "z"), stream.sites(room, "W_O"), strict=True):
            if site not in model.sites or weight not in model.weights:
                reason = model.sites.missing.get(site, f"there is no weight {weight}")
                raise MissingSite(f"The heads of {site} cannot be followed: {reason}. With heads=False each attention is one term.")


def terms(model: Any, inputs: Any, metric: Metric, stream: Stream, *, heads: bool, sources: bool) -> Terms:
    """Every write's share of the metric, for one batch.

    Raises:
        InputError: The stream is not the sum of its writes, or the metric or head is not linear.
    """
    recording = model.run(inputs, read=_reads(stream, heads, sources), metrics={"metric": metric})
    how = reader(model, inputs, metric, recording, stream.last, stream.norm)
    _check_sum(model, recording, stream)
    shares: dict[str, Tensor] = {"embed": _share(how, recording[stream.first])}
    by_head: dict[str, list[np.ndarray]] = {}
    by_source: dict[str, list[np.ndarray]] = {}
    for layer in range(stream.depth):
        for room in stream.rooms:
            site = f"{stream.stem(layer)}{room}"
            if room == "mlp" or not heads:
                shares[f"{site}.out"] = _share(how, recording[f"{site}.out"])
                continue
            parts = _Heads(model, recording, how, site, layer)
            shares |= {f"{site}.{h}": column for h, column in enumerate(parts.shares.T)}
            shares[f"{site}.bias"] = parts.bias
            by_head.setdefault(room, []).append(parts.shares.numpy())
            if sources:
                by_source.setdefault(room, []).append(parts.sources(recording))
    shares |= {"final norm shift": how.shift, "unembedding bias": how.bias}
    return Terms(
        tuple(shares),
        torch.stack([*shares.values()], 1).numpy(),
        how.value.numpy(),
        {room: np.stack(found, 1) for room, found in by_head.items()},
        {room: np.stack(found, 1) for room, found in by_source.items()},
        how.cap,
    )


def _reads(stream: Stream, heads: bool, sources: bool) -> list[str]:
    wanted = [stream.first, stream.last, stream.norm]
    for room in stream.rooms:
        leaves = [
            "out",
            *(["z", "proj"] if heads and room != "mlp" else []),
            *(["pattern", "v"] if heads and sources and room != "mlp" else []),
        ]
        wanted += [site for leaf in leaves for site in stream.sites(room, leaf)]
    return wanted


def _wide(values: Any) -> Tensor:
    return values.tensor.detach().cpu().double()


def _share(how: Reader, site: Any) -> Tensor:
    return how.per_example((_wide(site)[how.rows] * how.direction).sum(-1))


def _check_sum(model: Any, recording: Any, stream: Stream) -> None:
    total = _wide(recording[stream.first])
    for room in stream.rooms:
        for site in stream.sites(room, "out"):
            total = total + _wide(recording[site])
    last = _wide(recording[stream.last])
    gap, size = float((total - last).abs().max()), float(last.abs().max())
    if gap > FITS.get(model.dtype, 5e-2) * size:
        raise InputError(
            f"The stream of {model.name} is not the sum of {', '.join(stream.rooms)} writes (off by {gap:.2g} of {size:.3g}), so no part has a share "
            "of its own. Use activation_patching."
        )


class _Heads:
    """Shares of one attention's heads.

    Attributes:
        shares: `example head`.
        bias: `example`: of the output projection's bias and of a post-norm's.
    """

    def __init__(self, model: Any, recording: Any, how: Reader, site: str, layer: int) -> None:
        self.how, self.site = how, site
        weight = model.weight(f"{site}.W_O").cpu().double()
        after = self._after(model, recording, layer)
        direction = after.back(how.direction)
        added = (
            model.weight(f"{site}.b_O").cpu().double()
            if f"{site}.b_O" in model.weights
            else torch.zeros(weight.shape[-1], dtype=torch.float64)
        )
        self.bias = how.per_example((direction * added).sum(-1) + (how.direction * after.bias).sum(-1))
        self.reading = torch.einsum("hdm,rm->rhd", weight, direction)  # what each head's mix is read with
        self.shares = how.per_example((_wide(recording[f"{site}.z"])[how.rows] * self.reading).sum(-1))

    def _after(self, model: Any, recording: Any, layer: int) -> Frozen:
        """What stands between the projection and the stream: nothing, a norm or a LayerScale."""
        stack = model.anatomy.stacks[recording[f"{self.site}.out"].space]
        room = self.site.rpartition(".")[2]
        path = stack.blocks[layer].modules.get(f"{room}.post")
        before, out = (_wide(recording[f"{self.site}.{leaf}"])[self.how.rows] for leaf in ("proj", "out"))
        return freeze(model, path, before, out, f"{self.site}.out")

    def sources(self, recording: Any) -> np.ndarray:
        """`example head position`: `sum over rows read of A[row, j] <v_j, reading>`; zero where an example has no such row."""
        pattern, values = recording[f"{self.site}.pattern"], recording[f"{self.site}.v"]
        position = np.asarray(recording[f"{self.site}.z"].index["position"])[self.how.rows.numpy()]
        widths = [len(values.example(e).index) for e in values.index.examples]
        made = np.zeros((len(widths), self.shares.shape[1], max(widths)))
        for e, width in enumerate(widths):
            mine = self.how.example == e
            if not mine.any():  # the metric does not depend on this example's logits
                continue
            first, last = position[mine].min(), position[mine].max()
            asked = pattern.example(e, queries=slice(int(first), int(last) + 1)).tensor  # only what is read is calculated
            attention = asked.detach().cpu().double()[:, position[mine] - first]
            v = _wide(values.example(e))
            v = v.repeat_interleave(attention.shape[0] // v.shape[1], 1)  # grouped values serve several heads
            scores = torch.einsum("khd,rhd->hrk", v, self.reading[torch.as_tensor(mine)])
            made[e, :, :width] = (attention * scores).sum(1).numpy()
        return made
