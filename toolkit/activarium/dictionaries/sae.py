"""A sparse dictionary: weights, codes, what it writes. One class; its design says which arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from activarium.dictionaries.codes import Codes
from activarium.dictionaries.design import Design, Origin
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.dictionaries.pursuit import pursue
from activarium.errors import InputError

EPS = 1e-5  # of the variance under `layer_norm`


class SAE(nn.Module, FeatureDictionary):
    """A dictionary of features of one site (or from one site to another), for language rows and image patches alike.

    Attributes:
        design: Sizes and arithmetic.
        origin: What it was trained on.
        W_enc: `d_in feature`, a view of `encoder` (`feature d_in`, rows together in memory); `pursuit` has none but its directions.
        W_dec: `feature d_out`, the directions.
        b_dec: `d_out`.
        b_enc: `feature`; `gated` has `b_gate`, `b_mag` and `r_mag` instead.
        threshold: `feature`, for `jumprelu` and `absjump`.
        W_skip: `d_out d_in`, where there is a skip.

    Example:
        >>> import torch
        >>> from activarium.dictionaries import SAE, Design
        >>> sae = SAE(Design(d_in=4, features=8, kind="topk", k=2))
        >>> codes = sae.codes(torch.eye(4))
        >>> len(codes), codes.width, int(codes.active.max()) <= 2
        (4, 8, True)
    """

    encoder: Tensor
    b_enc: Tensor
    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor
    threshold: Tensor
    W_skip: Tensor

    def __init__(self, design: Design, origin: Origin | None = None, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        self.design, self.origin = design, origin or Origin()
        width, features, out = design.d_in, design.features, design.d_out or design.d_in
        generator = torch.Generator().manual_seed(seed)
        directions = nn.functional.normalize(torch.randn(features, out, generator=generator, dtype=dtype), dim=1)
        # Encoder and decoder begin as each other's transpose where both live in one space.
        encoder = (
            directions.clone()
            if out == width
            else nn.functional.normalize(torch.randn(features, width, generator=generator, dtype=dtype), dim=1)
        )
        if design.kind != "pursuit":
            self.encoder = nn.Parameter(encoder)
        self.W_dec, self.b_dec = nn.Parameter(directions), nn.Parameter(torch.zeros(out, dtype=dtype))
        for name in {"gated": ("b_gate", "b_mag", "r_mag"), "pursuit": ()}.get(design.kind, ("b_enc",)):
            self.register_parameter(name, nn.Parameter(torch.zeros(features, dtype=dtype)))
        if design.kind in ("jumprelu", "absjump"):
            self.threshold = nn.Parameter(torch.full((features,), 1e-3, dtype=dtype))
        if design.skip:
            self.W_skip = nn.Parameter(torch.zeros(out, width, dtype=dtype))

    @staticmethod
    def of_weights(design: Design, weights: Mapping[str, Tensor], origin: Origin | None = None) -> SAE:
        """A dictionary with these weights, named and shaped as the attributes (`W_enc` or `encoder`).

        Raises:
            InputError: One is missing, one too many, of another shape, or not finite.
        """
        given = {k: v for k, v in weights.items() if k != "W_enc"}
        if "W_enc" in weights:
            given["encoder"] = weights["W_enc"].T
        floats = next((v.dtype for v in given.values() if v.is_floating_point()), torch.float32)
        with torch.device("meta"):
            made = SAE(design, origin, dtype=floats)
        wanted = {name: tuple(p.shape) for name, p in made.named_parameters()}
        found = {name: tuple(v.shape) for name, v in given.items()}
        if wanted != found:
            odd = next(n for n in [*wanted, *found] if wanted.get(n) != found.get(n))
            raise InputError(
                f"A {design.kind} dictionary of {design.features} features has {odd} of shape {wanted.get(odd, 'none')}; found {found.get(odd, 'none')}. "
                "Is it another architecture's, or another width's?"
            )
        strange = next((n for n, v in given.items() if not bool(v.isfinite().all())), None)
        if strange:
            raise InputError(f"{strange} holds numbers that are not finite: the file is damaged, or it overflowed in float16.")
        made.load_state_dict({n: v.contiguous() for n, v in given.items()}, assign=True)
        return made.requires_grad_(False)

    # --- what it is

    @property
    def W_enc(self) -> Tensor:
        return self.W_dec.T if self.design.kind == "pursuit" else self.encoder.T

    @property
    def directions(self) -> Tensor:
        """What each feature writes, `feature d_out`."""
        return self.W_dec

    @property
    def d_in(self) -> int:
        return self.design.d_in

    @property
    def transcoder(self) -> bool:
        return self.design.transcoder

    # --- what it computes

    def encode(self, x: Tensor, features: Sequence[int] | None = None) -> Tensor:
        """Codes `row feature` of rows `row d_in`, dense and differentiable.

        Args:
            x: Rows of the site it reads.
            features: Only these, in this order; no others are computed where codes do not compete.
        """
        return self._encoded(self._scaled(x)[0], features)

    def _sparse(self, rows: Tensor) -> Codes:
        if self.design.kind not in ("topk", "abstopk"):
            return super()._sparse(rows)
        seen = self._scaled(rows)[0]
        seen = seen - self.b_dec if self.design.subtracts_bias else seen
        return Codes.of_top(*self._top(linear(seen, self.encoder) + self.b_enc), self.width)

    def decode(self, feature_acts: Tensor | Codes) -> Tensor:
        """What codes write, `row d_out`: directions times codes and b_dec.

        A skip and the scaling of rows are not in the codes: `forward` has them.
        """
        directions = nn.functional.normalize(self.W_dec, dim=1) if self.design.ranks_by_norm else self.W_dec
        if isinstance(feature_acts, Codes):
            found = feature_acts
            mixed = nn.functional.embedding_bag(
                found.features.long(),
                directions,
                found.starts,
                mode="sum",
                per_sample_weights=found.values.to(self.dtype),
                include_last_offset=True,
            )
        else:
            mixed = feature_acts.to(self.dtype) @ directions
        # As sae-lens has it: a pursuit that takes no b_dec off puts none back.
        return mixed if self.design.kind == "pursuit" and not self.design.subtracts_bias else mixed + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """What it makes of rows `row d_in`: `row d_out`."""
        scaled, restore = self._scaled(x)
        made = self.decode(self._encoded(scaled))
        if self.design.skip:
            made = made + linear(scaled, self.W_skip)
        return made if restore is None else made * restore[0] + restore[1]

    def _scaled(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor | float] | None]:
        """Rows as the encoder wants them, and what undoes it: factor and shift."""
        self.check_rows(x)
        x = x.to(self.dtype)
        if self.design.scaling == "constant_norm_rescale":
            factor = x.norm(dim=1, keepdim=True) / self.design.d_in**0.5
            return x / factor.clamp_min(torch.finfo(x.dtype).tiny), (factor, 0.0)
        if self.design.scaling == "layer_norm":
            mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
            # The way out leaves EPS away, as in the library that trains such dictionaries: their weights know it so.
            return (x - mean) / (deviation + EPS), (deviation, mean)
        return x, None

    def _encoded(self, x: Tensor, features: Sequence[int] | None = None) -> Tensor:
        design = self.design
        x = x - self.b_dec if design.subtracts_bias else x
        if design.kind == "pursuit":
            codes = pursue(x, self.W_dec, design.k or design.d_in, design.residual, design.repeats)
            return codes if features is None else codes[:, list(features)]
        chosen = slice(None) if features is None or design.k is not None else list(features)
        raw = linear(x, self.encoder[chosen])
        if design.kind == "gated":
            size = (raw * self.r_mag[chosen].exp() + self.b_mag[chosen]).relu()
            return size * (raw + self.b_gate[chosen] > 0)
        pre = raw + self.b_enc[chosen]
        if design.kind == "standard":
            return pre.relu()
        if design.kind == "jumprelu":
            return pre.relu() * (pre > self.threshold[chosen])
        if design.kind == "absjump":
            return pre * (pre.abs() > self.threshold[chosen])
        places, values = self._top(pre)
        codes = torch.zeros_like(pre).scatter(1, places, values)
        return codes if features is None else codes[:, list(features)]

    def _top(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Places and codes, `row k`, of the k largest of each row; of equal ones the lower feature."""
        if self.design.ranks_by_norm:
            pre = pre * self.W_dec.norm(dim=1)
        signed = self.design.kind == "abstopk"
        places = top_places(pre.detach().abs() if signed else pre.detach(), self.design.k or 1)
        values = pre.gather(1, places)
        return places, values if signed else values.relu()

    # --- the same dictionary in other words

    @torch.no_grad()
    def folded(self, scale: float = 1.0, target_scale: float | None = None, *, unit: bool = False) -> SAE:
        """The same dictionary for rows that are not scaled first, or with directions of length 1.

        The codes stay, but for `pursuit`: its codes become smaller by `scale`.

        Args:
            scale: It was trained on `scale * x`; the new one takes x, with the same codes.
            target_scale: What it writes is to be divided by this; by `scale`, where nothing is said.
            unit: Give every direction length 1 and its codes the length that it had.

        Raises:
            InputError: The codes of a `topk` compete by size, so other lengths would choose other features.
        """
        w = {name: p.detach().clone() for name, p in self.named_parameters()}
        design = self.design
        written = scale if target_scale is None else target_scale
        if design.subtracts_bias and written != scale:
            raise InputError(f"It takes b_dec from what it reads, so both sides have one scale; got {scale} and {written}.")
        w["b_dec"] /= written
        if design.kind == "pursuit":  # directions and encoder are one: its codes are what changes
            design = replace(design, residual=design.residual / scale)
        else:
            w["encoder"] *= scale
            w["W_dec"] /= written
        if design.skip:
            w["W_skip"] *= scale / written
        if unit:
            if design.k is not None and not design.ranks_by_norm:
                raise InputError(
                    f"{design.kind} keeps the {design.k} largest codes: other lengths would keep other features. Leave unit= out."
                )
            size = w["W_dec"].norm(dim=1)
            w["W_dec"] /= size[:, None].clamp_min(torch.finfo(self.dtype).tiny)
            w["encoder"] *= size[:, None]
            for name in w.keys() & {"b_enc", "b_gate", "b_mag", "threshold"}:
                w[name] *= size
            design = replace(design, ranks_by_norm=False)
        return SAE.of_weights(design, w, self.origin)


def top_places(values: Tensor, k: int) -> Tensor:
    """`row k`: places of the k largest of each row; of equal ones the lower, on every machine."""
    found = values.topk(min(k + 1, values.shape[1]), dim=1)
    places = found.indices[:, :k].clone()
    if k < values.shape[1]:
        # Only where the first that is left out equals the last that is kept does it matter which of them is taken.
        tied = (found.values[:, k - 1] == found.values[:, k]).nonzero()[:, 0]
        if len(tied):
            places[tied] = top_mask(values[tied], k).nonzero()[:, 1].view(-1, k)
    return places


def top_mask(values: Tensor, k: int) -> Tensor:
    """Boolean `row feature`: the k largest of each row; of equal ones the lower feature, on every machine."""
    smallest = values.topk(k, dim=1).values[:, -1:]
    above = values > smallest
    equal = values == smallest
    return above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
