"""How a dictionary is trained, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from activarium.dictionaries.design import Design, Kind
from activarium.errors import InputError

Training = Literal["standard", "gated", "jumprelu", "topk", "abstopk", "batchtopk", "absbatchtopk", "matryoshka"]
TRAININGS: tuple[Training, ...] = ("standard", "gated", "jumprelu", "topk", "abstopk", "batchtopk", "absbatchtopk", "matryoshka")
TOP = ("topk", "abstopk", "batchtopk", "absbatchtopk", "matryoshka")  # codes compete
BATCH = ("batchtopk", "absbatchtopk", "matryoshka")  # those of a whole batch with one another; later, a threshold decides
SIGNED = ("abstopk", "absbatchtopk")  # by size, and with their signs
NESTED = ("matryoshka", "absbatchtopk")
CENTRES = ("mean", "median", "zero")


@dataclass(frozen=True)
class Recipe:
    """One dictionary to be trained.

    Attributes:
        features: How many.
        kind: `standard gated jumprelu`; `topk batchtopk matryoshka`; `abstopk absbatchtopk`, which rank codes by size and keep their signs.
            What a batch decides becomes one threshold in the end: `batchtopk` and `matryoshka` make `jumprelu` dictionaries,
            `absbatchtopk` makes `absjump`.
        k: Codes of a row (on average, where a batch decides); for the top-k kinds.
        sparsity: Weight of the sparsity term, for the others; rows have mean length √d_in then.
        groups: Sizes of nested prefixes, each of which must do alone, the last one all features; `matryoshka` takes five halvings where
            nothing is said, `absbatchtopk` none.
        centre: Where b_dec begins, for each number of a row: its `mean`, its `median`, or `zero`.
        normalised: The loss is relative to the spread of each batch (top-k kinds).
        skip: Transcoders only: a linear map beside the features.
        learning_rate: Of Adam; None takes 2e-4 / √(features / 2^14).
        warm_up: Share of the steps in which it rises.
        decay: Share of the steps at the end in which it falls to 0.
        auxiliary: Weight of the reconstruction of the error by dead features (top-k kinds).
        dead_after: Rows without a code after which a feature counts as dead.
        bandwidth: Width of the window around a threshold in which it learns (`jumprelu`).
        clip: Largest length of the gradient.
        seed: Draws the first weights.
    """

    features: int
    kind: Training = "topk"
    k: int | None = None
    sparsity: float | None = None
    groups: tuple[int, ...] = ()
    centre: Literal["mean", "median", "zero"] = "mean"
    normalised: bool = False
    skip: bool = False
    learning_rate: float | None = None
    warm_up: float = 0.05
    decay: float = 0.2
    auxiliary: float = 1 / 32
    dead_after: int = 100_000
    bandwidth: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in TRAININGS:
            raise InputError(f"No way of training called {self.kind!r}. Known: {', '.join(TRAININGS)}.")
        if self.kind in TOP and not (self.k and 0 < self.k <= self.features):
            raise InputError(f"{self.kind} keeps k={self.k} of {self.features} features; give k from 1 to {self.features}.")
        if self.kind not in TOP and self.k is not None:
            raise InputError(f"{self.kind} is made sparse by sparsity=, not by k={self.k}. Leave k out.")
        if self.kind in TOP and self.sparsity is not None:
            raise InputError(f"{self.kind} keeps k codes; sparsity={self.sparsity} is for standard, gated and jumprelu. Leave it out.")
        rising = (
            bool(self.groups) and list(self.groups) == sorted(set(self.groups)) and self.groups[0] > 0 and self.groups[-1] == self.features
        )
        if self.groups and (self.kind not in NESTED or not rising):
            raise InputError(
                f"groups={self.groups} are rising sizes of nested prefixes for {' and '.join(NESTED)}, the last one {self.features}; "
                f"this is {self.kind}."
            )
        if self.centre not in CENTRES:
            raise InputError(f"b_dec begins at the rows' {', '.join(CENTRES)}; no centre is called {self.centre!r}.")
        if self.normalised and self.kind not in TOP:
            raise InputError(
                f"normalised=True would change what sparsity= means for {self.kind}; it is for {', '.join(TOP)}. Leave it out."
            )

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or 2e-4 / (self.features / 2**14) ** 0.5

    @property
    def strength(self) -> float:
        """Weight of the sparsity term."""
        return {"standard": 1.0, "gated": 2.0, "jumprelu": 0.5}.get(self.kind, 0.0) if self.sparsity is None else self.sparsity

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Sizes of the nested prefixes; all features where there are none."""
        halved = sorted({max(1, self.features >> n) for n in range(5)})
        return self.groups or (tuple(halved) if self.kind == "matryoshka" else (self.features,))

    def design(self, d_in: int, d_out: int, transcoder: bool) -> Design:
        """What is trained."""
        if self.skip and not transcoder:
            raise InputError("skip=True is for transcoders: give target=, the site that it writes.")
        kind: Kind = (
            "standard" if self.kind in ("batchtopk", "absbatchtopk", "matryoshka") else self.kind
        )  # their threshold comes at the end
        k = None if self.kind in BATCH else self.k
        return Design(d_in, self.features, kind, k=k, d_out=d_out, transcoder=transcoder, skip=self.skip, subtracts_bias=not transcoder)
