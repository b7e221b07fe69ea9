"""What an analysis may ask of a live model; a ten-line fake can play it in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from activarium.edits import Edit
from activarium.recording import Recording


@runtime_checkable
class Runner(Protocol):
    """A loaded model with named sites."""

    name: str
    sites: Mapping[str, Any]

    def inputs(self, data: Any, **options: Any) -> Any:
        """Encode examples without padding."""
        ...

    def looks_back(self, space: str = "") -> bool:
        """Does a row depend on earlier rows alone?"""
        ...

    def run(self, inputs: Any, read: str | Sequence[str] = (), *, edits: Sequence[Edit] = (), **options: Any) -> Recording:
        """One forward: what was read, after the edits."""
        ...

    def readout(self, resid: Tensor) -> Tensor:
        """Final norm and head on each row of `row d_model` alone: `row vocab` or `row class`."""
        ...

    def weight(self, name: str) -> Tensor:
        """A named weight with named axes."""
        ...

    def removed(self, blocks: Sequence[str]) -> AbstractContextManager[Any]:
        """While it is open, these blocks do not run and hand their input on."""
        ...

    def untrained(self, seed: int = 0) -> Runner:
        """The same architecture with fresh random weights."""
        ...


@runtime_checkable
class Writer(Runner, Protocol):
    """A loaded model that writes text token by token, with all of its neurons or with some."""

    weights: Mapping[str, Any]

    def decode(self, inputs: Any, max_new_tokens: int = 20, *, tokens: Any = None) -> Any:
        """Write on in a bare loop: `ids` and `logits` by `example step`, `seconds` and `processor` time of each step, `inputs` with what was written."""
        ...

    def sparse(self, cores: Mapping[str, Any], *, means: Mapping[str, Any] | None = None) -> AbstractContextManager[Any]:
        """Inside the block, MLPs run with their core neurons alone after the prompt."""
        ...


@runtime_checkable
class Rerun(Protocol):
    """What knows the exact value of one cell of a grid of approximations: `cell` holds the index along each axis."""

    def __call__(self, cell: Mapping[str, int]) -> float:
        """The exact value, in the unit of the grid."""
        ...


@runtime_checkable
class Dictionary(Protocol):
    """The least that patching asks of features: sae-lens' SAEs do it, and so does anything that encodes and decodes.

    Measures and dashboards ask for more, see `activarium.dictionaries.FeatureDictionary`.
    """

    def encode(self, x: Tensor) -> Tensor:
        """Codes `row feature` of values `row …`."""
        ...

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Values `row …` of codes, affine in them."""
        ...


@runtime_checkable
class Pages(Protocol):
    """Features to leaf through: numbers to sort and filter by, and a page for each, read when it is opened."""

    @property
    def title(self) -> str:
        """What they are features of."""
        ...

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """Name → one number per feature, `(feature,)`: `fires`, `density`, `max`, …; the first orders them at the start."""
        ...

    def page(self, feature: int) -> Mapping[str, Any]:
        """All that is known of one feature, as words, numbers and arrays; what is not known is not there.

        `histogram` {`edges`, `counts`}; `promoted` and `suppressed` [(token, logit), …]; `contexts`, a list of {`band`, `example`,
        `position`, `value`} with `tokens` and `values` (one per token) for text, or `image` (uint8 `height width 3`), `grid` (rows,
        columns) and `values` (one per patch) for images; `neighbours`, `together` and `neurons` [(number, figure), …].
        """
        ...

    def find(self, text: str) -> np.ndarray:
        """Features in whose contexts or promoted tokens a text occurs, ascending."""
        ...
