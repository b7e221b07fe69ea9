"""What a dictionary is, as plain data: its sizes, how it makes codes, and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from activarium.errors import InputError

Kind = Literal["standard", "gated", "jumprelu", "absjump", "topk", "abstopk", "pursuit"]
KINDS: tuple[Kind, ...] = ("standard", "gated", "jumprelu", "absjump", "topk", "abstopk", "pursuit")
SCALINGS = ("none", "constant_norm_rescale", "layer_norm")


@dataclass(frozen=True)
class Design:
    """Sizes and arithmetic of a dictionary. With x̄ = x − b_dec (or x itself) and π = x̄ W_enc + b_enc, its codes are

    `standard` [π]₊; `gated` 1[π_gate > 0] · [π_mag]₊; `jumprelu` π · 1[π > threshold] · 1[π > 0]; `absjump` π · 1[|π| > threshold]; `topk` the k largest of π, then [·]₊;
    `abstopk` the k largest of |π| with their signs; `pursuit` has no encoder: its codes are chosen one after another, each the direction
    most like what is left. It writes codes · W_dec + b_dec (+ W_skip x).

    Attributes:
        d_in: Width of what it reads.
        features: How many features it has.
        kind: How it makes codes.
        k: Codes that are kept in a row, for `topk` and `abstopk`; the most that are chosen, for `pursuit`.
        d_out: Width of what it writes; that of what it reads, where nothing is said.
        transcoder: It writes another site than it reads, so nothing is subtracted from its input.
        skip: It also adds a linear map of what it reads.
        subtracts_bias: x̄ = x − b_dec.
        ranks_by_norm: `topk` ranks π · ‖W_dec‖ and writes unit directions: one feature's size in code and direction does not matter.
        residual: `pursuit` ends where the rest of a row is shorter than this; 0 for never.
        repeats: `pursuit` may choose a feature more than once.
        scaling: What is done to each row first and undone at the end: nothing, length √d, or mean 0 and variance 1.
    """

    d_in: int
    features: int
    kind: Kind = "standard"
    k: int | None = None
    d_out: int | None = None
    transcoder: bool = False
    skip: bool = False
    subtracts_bias: bool = True
    ranks_by_norm: bool = False
    residual: float = 0.0
    repeats: bool = False
    scaling: str = "none"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"No kind of dictionary called {self.kind!r}. Known: {', '.join(KINDS)}.")
        if self.d_in < 1 or self.features < 1:
            raise InputError(f"A dictionary of {self.features} features over {self.d_in} numbers: give at least one of each.")
        object.__setattr__(self, "d_out", self.d_out or self.d_in)
        top = self.kind in ("topk", "abstopk")
        if self.kind == "pursuit":
            object.__setattr__(self, "k", self.k or self.d_in)
            if self.transcoder or (self.k or 0) < 1 or self.residual < 0:
                raise InputError(
                    f"pursuit explains the rows that it reads, with at least one code, down to a rest of at least 0; got transcoder="
                    f"{self.transcoder}, k={self.k}, residual={self.residual:g}."
                )
        elif self.residual or self.repeats:
            raise InputError(f"residual= and repeats= say when a pursuit ends; this is {self.kind}. Leave them out.")
        if top and not (self.k and 0 < self.k <= self.features):
            raise InputError(f"{self.kind} keeps k={self.k} of {self.features} features; give k from 1 to {self.features}.")
        if not top and self.kind != "pursuit" and self.k is not None:
            raise InputError(f"{self.kind} keeps what is above its threshold; k={self.k} is for topk and abstopk. Leave it out.")
        if self.scaling not in SCALINGS:
            raise InputError(f"No scaling called {self.scaling!r}. Known: {', '.join(SCALINGS)}.")
        if self.transcoder and self.subtracts_bias:
            raise InputError(
                "A transcoder writes another site than it reads, so its b_dec cannot be taken from its input: subtracts_bias=False."
            )
        if self.transcoder and self.scaling != "none":
            raise InputError(
                f"A transcoder writes another site than it reads, so scaling={self.scaling!r} could not be undone. Use 'none'."
            )
        if not self.transcoder and (self.skip or self.d_out != self.d_in):
            raise InputError(
                f"Reading {self.d_in} numbers and writing {self.d_out}{' with a skip' if self.skip else ''}: say transcoder=True."
            )
        if self.ranks_by_norm and not top:
            raise InputError(f"ranks_by_norm is for topk and abstopk; this is {self.kind}.")


@dataclass(frozen=True)
class Origin:
    """What a dictionary was trained on. What is empty or None is not known.

    Attributes:
        site: Our name of the site it reads, `blocks.3.resid_post`.
        target: The site it writes, where that is another one.
        model: Name of the model.
        weight_hash: Hash of its weights, as `model.identity` has it.
        centred: The model's writing weights were centred.
        folded: Norm gains were folded into the model's weights.
        bos: Texts began with BOS.
        exclude: Row kinds that were left out.
        data: Id of the data or store.
        more: What else its file says (context length, versions, figures).
    """

    site: str = ""
    target: str = ""
    model: str = ""
    weight_hash: str = ""
    centred: bool = False
    folded: bool = False
    bos: bool | None = None
    exclude: tuple[str, ...] = ()
    data: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Origin:
        """The same with some fields replaced."""
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def of_json(found: Mapping[str, Any]) -> Origin:
        """From plain data; unknown words are kept in `more`."""
        known = {f.name for f in fields(Origin)}
        made = {k: v for k, v in found.items() if k in known}
        strange = {k: v for k, v in found.items() if k not in known}
        return Origin(**made | {"exclude": tuple(made.get("exclude", ())), "more": dict(made.get("more", {})) | strange})
