"""The two runs of a pair: the base that is patched, and the source that the patches come from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.edits import Replace
from activarium.errors import InputError
from activarium.pairs import Pairs

DIRECTIONS = ("denoise", "noise")


@dataclass
class Counts:
    """What a method cost.

    Attributes:
        forwards: Forwards over a batch of pairs.
        backwards: Backwards over a batch of pairs.
    """

    forwards: int = 0
    backwards: int = 0


@dataclass
class Sides:
    """Pairs seen in one direction: `denoise` patches clean values into the corrupted run, `noise` the other way round.

    Attributes:
        pairs: The pairs.
        direction: `denoise` or `noise`.
        counts: Forwards and backwards so far.
    """

    pairs: Pairs
    direction: str
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise InputError(
                f"direction={self.direction!r} is not known; 'denoise' patches clean values into the corrupted run, 'noise' the reverse."
            )

    @property
    def base(self) -> Any:
        """The inputs that are patched."""
        return self.pairs.corrupt if self.direction == "denoise" else self.pairs.clean

    @property
    def source(self) -> Any:
        """The inputs that patches come from."""
        return self.pairs.clean if self.direction == "denoise" else self.pairs.corrupt

    def chunks(self, batch: int) -> Iterator[Sides]:
        """The same over a few pairs at a time; the counts are shared."""
        for start in range(0, len(self.pairs), batch):
            chosen = np.arange(start, min(start + batch, len(self.pairs)))
            yield Sides(self.pairs.select(chosen), self.direction, self.counts)

    def run(self, model: Any, inputs: Any, read: Any = (), **options: Any) -> Any:
        """One counted forward that measures the metric."""
        self.counts.forwards += 1
        if options.get("grad"):
            options["edits"] = [*_apart(model, read), *options.get("edits", ())]
        return model.run(inputs, read=read, metrics={"metric": self.pairs.metric}, **options)

    def gradient(self, recording: Any, **options: Any) -> Any:
        """One counted backward."""
        self.counts.backwards += 1
        return recording.backward("metric", **options)


def _apart(model: Any, read: Any) -> list[Replace]:
    """Edits that change no value: what enters an attention or MLP becomes a tensor of its own.

    Without a norm before it (BERT) it is the stream's tensor, whose gradient counts the way past the module as well.
    """
    return [Replace(n, lambda values: values.view_as(values)) for n in model.sites.select(read) if n.endswith(".in")]


@dataclass
class Totals:
    """The metric of both runs, per pair.

    Attributes:
        base: Of the run that is patched.
        source: Of the run that patches come from.
    """

    base: np.ndarray
    source: np.ndarray

    @property
    def change(self) -> float:
        """Mean metric of the source run minus that of the base run."""
        return float(np.mean(self.source - self.base))

    def scale(self, direction: str) -> float:
        """M+ - M-, by which a normalised effect is divided.

        Raises:
            InputError: Clean and corrupted inputs have the same metric.
        """
        clean, corrupt = (self.source, self.base) if direction == "denoise" else (self.base, self.source)
        high, low = float(np.mean(clean)), float(np.mean(corrupt))
        if abs(high - low) < 1e-6 * max(abs(high), abs(low), 1.0):
            raise InputError(
                f"The metric is {high:.6g} on the clean and {low:.6g} on the corrupted inputs, so there is no difference to give shares of. "
                "Choose a corruption that changes the answer, or normalise=False."
            )
        return high - low


def joined(parts: list[Totals]) -> Totals:
    """Totals of several chunks."""
    return Totals(np.concatenate([p.base for p in parts]), np.concatenate([p.source for p in parts]))


def measured(recording: Any) -> np.ndarray:
    """The metric of one run as float64."""
    return recording.metric["metric"].detach().double().cpu().numpy()


def check_batch(batch: int) -> None:
    """Refuse forwards over no pairs.

    Raises:
        InputError: There is less than one pair in a forward.
    """
    if batch < 1:
        raise InputError(f"batch={batch}: a forward takes at least one pair.")


def check_gradients(model: Any) -> None:
    """Refuse what gives gradients that lie.

    Raises:
        InputError: Weights in float16, whose gradients underflow.
    """
    if model.dtype == torch.float16:
        raise InputError(f"{model.name} is in float16, where gradients underflow to zero. Load it in float32 or bfloat16.")


def check_resolution(model: Any, recording: Any, totals: Totals) -> None:
    """In bfloat16 a small difference of the metric is rounding, and so is its gradient times any difference of activations.

    Raises:
        InputError: The two runs differ by less than what the dtype can tell apart.
    """
    if model.dtype != torch.bfloat16 or np.array_equal(totals.base, totals.source):
        return
    logits = recording.logits.tensor.detach()
    grain = float(logits.abs().max()) * torch.finfo(torch.bfloat16).eps
    if abs(totals.change) < grain:
        raise InputError(
            f"{model.name} is in bfloat16: its logits, up to {float(logits.abs().max()):.3g}, are told apart by {grain:.2g}, and the metric's "
            f"difference between the two runs is {totals.change:.2g}. Attributions of it would be rounding; load the model in float32."
        )
    if abs(totals.change) < 4 * grain:
        warnings.warn(
            f"The metric's difference, {totals.change:.2g}, is near bfloat16's resolution of {grain:.2g}.", UserWarning, stacklevel=4
        )


def wide(values: Tensor) -> Tensor:
    """At least float32, in which products are summed."""
    return values if values.dtype == torch.float64 else values.float()
