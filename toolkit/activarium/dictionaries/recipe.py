"""How a dictionary is trained, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from activarium.dictionaries.design import Design, Kind
from activarium.errors import InputError

Training = Literal["standard", "gated", "jumprelu", "topk", "abstopk", "batchtopk", "absbatchtopk", "matryoshka", "pursuit"]
TRAININGS: tuple[Training, ...] = ("standard", "gated", "jumprelu", "topk", "abstopk", "batchtopk", "absbatchtopk", "matryoshka", "pursuit")
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
            `absbatchtopk` makes `absjump`. `pursuit` chooses codes one after another and has no encoder.
        k: Codes of a row (on average, where a batch decides; at most, for `pursuit`); for the top-k kinds and `pursuit`.
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
        target: Codes of a row that `jumprelu` is held to, in place of having as few as possible.
        penalty: What `jumprelu` pays for a code: `step`, the same for each, or `tanh`, less for small ones.
        both: Through that window encoders learn as well as thresholds (`jumprelu`).
        lift: Weight of what dead features lack to their thresholds (`jumprelu`); 3e-6 is usual beside `tanh`.
        archetypes: Directions are made of so many centroids of the rows' clusters (top-k kinds), which makes them more alike from seed to seed.
        slack: How far directions may leave those, as a share of the centroids' mean length.
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
    target: float | None = None
    penalty: Literal["step", "tanh"] = "step"
    both: bool = False
    lift: float = 0.0
    archetypes: int | None = None
    slack: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in TRAININGS:
            raise InputError(f"No way of training called {self.kind!r}. Known: {', '.join(TRAININGS)}.")
        if self.kind in (*TOP, "pursuit") and not (self.k and 0 < self.k <= self.features):
            raise InputError(f"{self.kind} keeps k={self.k} of {self.features} features; give k from 1 to {self.features}.")
        if self.kind not in (*TOP, "pursuit") and self.k is not None:
            raise InputError(f"{self.kind} is made sparse by sparsity=, not by k={self.k}. Leave k out.")
        if self.kind in (*TOP, "pursuit") and self.sparsity is not None:
            raise InputError(f"{self.kind} keeps k codes; sparsity={self.sparsity} is for standard, gated and jumprelu. Leave it out.")
        self._check_jumps()
        if self.archetypes is not None and (self.kind not in TOP or self.archetypes < 2 or self.slack < 0):
            raise InputError(
                f"archetypes={self.archetypes} with slack={self.slack:g}: at least two points, and slack of at least 0, for {', '.join(TOP)}; "
                f"this is {self.kind}."
            )
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

    def _check_jumps(self) -> None:
        asked = [
            n for n, on in (("target", self.target), ("penalty", self.penalty != "step"), ("both", self.both), ("lift", self.lift)) if on
        ]
        if asked and self.kind != "jumprelu":
            raise InputError(f"{asked[0]}= is for jumprelu; this is {self.kind}. Leave it out.")
        if self.penalty not in ("step", "tanh"):
            raise InputError(f"A jumprelu pays a 'step' or a 'tanh' for a code; no penalty is called {self.penalty!r}.")
        if self.target is not None and not (0 < self.target <= self.features and self.penalty == "step"):
            raise InputError(
                f"target={self.target:g} codes of {self.features} features with penalty={self.penalty!r}: give a target above 0 and up to "
                f"{self.features}, and no other penalty."
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
        if self.kind == "pursuit" and transcoder:
            raise InputError("A pursuit explains the rows that it reads, so it cannot write another site. Leave target= out.")
        return Design(d_in, self.features, kind, k=k, d_out=d_out, transcoder=transcoder, skip=self.skip, subtracts_bias=not transcoder)
