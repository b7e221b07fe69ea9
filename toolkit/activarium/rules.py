"""Relevance rules as plain data: which parts of a model get another backward while every value stays what it is.

In one forward (`model.run(…, grad=True, rules="relp")`) the rules replace the gradient of a component, never its value: with them
`dm/da` at a site becomes the coefficient c with relevance `a · c`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

from activarium.errors import InputError, unknown

# Factors on the gradients of queries, keys and values, per attention rule; None cuts the gradient off.
ATTENTION: Mapping[str, tuple[float | None, float | None, float]] = MappingProxyType(
    {"ordinary": (1.0, 1.0, 1.0), "frozen": (None, None, 1.0), "quarter": (0.25, 0.25, 0.5), "tempered": (0.25, 0.25, 0.5)}
)


@dataclass(frozen=True)
class Rules:
    """Which relevance rules act in one forward; each can be switched alone, and `Rules.named` knows the published sets.

    Everything that is not named keeps its ordinary gradient. With `norms`, `activations`, `gates` and frozen attention every
    node is affine in embeddings and biases, so relevance is conserved once bias leaves are counted. The other sets do not conserve
    it. LRP-type rules are patented in some places.

    Attributes:
        norms: Scale of every LayerNorm and RMSNorm held constant; centring stays differentiable (LN-rule).
        activations: `x · stop(f(x)/x)` for every activation, the final logit soft-cap included (Identity-rule).
        gates: Gradient of the product `act · up` of a gated MLP times 1/2 on both branches (Half-rule).
        attention: `frozen` holds the pattern constant (AH-rule), `quarter` scales the gradients of q, k, v by 1/4, 1/4, 1/2 (AttnLRP),
            `tempered` does so too and takes the softmax's gradient at temperature 2 (GIM).
        qk_norms: Norms of queries and keys follow `norms` as well.

    Raises:
        InputError: A field has a value it cannot have; the message lists those it can.

    Source:
        Ali et al. 2022, XAI for Transformers, arXiv:2202.07304 (norms, frozen attention); Achtibat et al. 2024, AttnLRP,
        arXiv:2402.05602 (gates, quarter); Rezaei Jafari et al. 2025, RelP, arXiv:2508.21258 (the set `relp`); Edin et al. 2025, GIM,
        arXiv:2505.17630 (tempered).

    Example:
        >>> Rules.named("relp-ah").attention
        'frozen'
    """

    norms: bool = False
    activations: bool = False
    gates: bool = False
    attention: str = "ordinary"
    qk_norms: bool = False

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise InputError(f"attention={self.attention!r} is no attention rule. Known: {', '.join(ATTENTION)}.")
        for name in (f.name for f in fields(self) if f.name != "attention"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}={getattr(self, name)!r} is neither True nor False; a rule is on or off.")

    @classmethod
    def named(cls, name: str) -> Rules:
        """A published set of rules by its name: `ln`, `ln-id`, `relp`, `relp-ah`, `attnlrp` or `gim`.

        Raises:
            UnknownName: There is no such set; the message lists those that exist.
        """
        if name not in PRESETS:
            raise unknown("set of rules", str(name), PRESETS)
        return PRESETS[name]

    @property
    def name(self) -> str:
        """Name of the set with these rules, or `custom`."""
        return next((name for name, rules in PRESETS.items() if rules == self), "custom")

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


PRESETS: Mapping[str, Rules] = MappingProxyType(
    {
        "ln": Rules(norms=True),
        "ln-id": Rules(norms=True, activations=True),
        "relp": Rules(norms=True, activations=True, gates=True),
        "relp-ah": Rules(norms=True, activations=True, gates=True, attention="frozen"),
        "attnlrp": Rules(norms=True, activations=True, gates=True, attention="quarter"),
        "gim": Rules(norms=True, gates=True, attention="tempered"),
    }
)


@dataclass(frozen=True)
class Secant:
    """Slopes between two inputs in the place of gradients: the second half of a batch is the reference of the first half.

    With them, differences at any cut through the model times the gradients there add up to the difference of the metric exactly, for
    metrics linear in logits (DeepLIFT's summation to delta). They price joint changes: no stand-in for patching single nodes.

    Source:
        Shrikumar et al. 2017, Learning Important Features Through Propagating Activation Differences, arXiv:1704.02685 (rescale rule).

    Differs:
        Norms, softmax and products follow secants of their own (variance to scale, logarithmic means of shares, mean operands), so that
        sums stay exact and slopes bounded.
    """

    name = "secant"


def as_rules(given: Rules | str) -> Rules:
    """Rules as they are, or by name.

    Raises:
        UnknownName: No set has this name.
        InputError: Neither rules nor a name.
    """
    if isinstance(given, Rules):
        return given
    if not isinstance(given, str):
        raise InputError(f"rules={given!r} is neither a Rules nor the name of a set. Known sets: {', '.join(PRESETS)}.")
    return Rules.named(given)
