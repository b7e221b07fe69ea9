"""Features as nodes: a site seen through a dictionary, with the error that it leaves as one node more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from activarium.protocols import Dictionary


@dataclass(frozen=True, eq=False)
class Features:
    """Nodes of a patching method that are features of a dictionary, in the place of a site's name.

    Attributes:
        site: Where the dictionary reads, `blocks.3.resid_post`.
        dictionary: Encodes and decodes: a sae-lens SAE, or anything that does.
        features: Which features are nodes; `"all"` for all of them. The error, `x - decode(encode(x))`, always is one more.

    Example:
        >>> import activarium as act, torch
        >>> class Halves:  # a dictionary of two features
        ...     def encode(self, x):
        ...         return x[:, :2]
        ...     def decode(self, codes):
        ...         return torch.nn.functional.pad(codes, (0, 30))
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat"], ["Tom saw the cat"], answers=["Anna"], foils=["Tom"])
        >>> grid = act.analyses.activation_patching(model, pairs, act.Features("blocks.1.resid_post", Halves()))
        >>> grid.label("feature")
        ['0', '1', 'error']
    """

    site: str
    dictionary: Dictionary
    features: str | Sequence[int] = "all"
