"""A model that runs otherwise for a while: edits that stand, blocks taken out, sparse MLPs; and its untrained twin."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, cast

from activarium.capture._removed import standing_out
from activarium.capture._sparse_mlp import SparseMLPs, sparse_mlps
from activarium.edits import Edit

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


class Meanwhile:
    """What lasts as long as a `with` block, and leaves the model as it was however that ends."""

    _lock: threading.RLock
    _standing: list[Edit]
    _gone: list[str]
    running_sparse: list[SparseMLPs]

    @property
    def _runner(self) -> TorchRunner:
        return cast("TorchRunner", self)

    @contextmanager
    def edited(self, edits: Edit | Sequence[Edit]) -> Iterator[Self]:
        """Every run inside the block is made with these edits; blocks nest, outer edits first."""
        added = [edits] if isinstance(edits, Edit) else list(edits)
        with self._lock:
            before, self._standing = self._standing, [*self._standing, *added]
        try:
            yield self
        finally:
            with self._lock:
                self._standing = before

    @contextmanager
    def removed(self, blocks: Sequence[str]) -> Iterator[Self]:
        """Inside the block these blocks do not run: each hands its input on, which saves its time.

        Answers are those of `SkipBlock`, which runs the block and throws its output away. Nothing inside a removed block can
        be read, and `generate`, whose cache counts on every block, is refused.

        Args:
            blocks: Block names, `blocks.3`.

        Raises:
            UnknownName: No such block; the message lists them.
            InputError: A block returns more than the stream (T5, BLOOM), which later blocks need.
        """
        with self._lock:
            before, self._gone = self._gone, [*self._gone, *blocks]
            try:
                with standing_out(self._runner, blocks):
                    yield self
            finally:
                self._gone = before

    def untrained(self, seed: int = 0) -> TorchRunner:
        """The same architecture with fresh random weights, as its library makes them; this model is left alone.

        It has the same sites, in the same places, but is not certified: blocks that add next to nothing cannot be told apart.

        Args:
            seed: Draws the weights; torch's own generator is left alone.

        Raises:
            InputError: The model is quantised, none of transformers' own, or not what its config says.
        """
        from activarium.capture._untrained import untrained

        return untrained(self._runner, seed)

    @contextmanager
    def sparse(self, cores: Mapping[str, Any], *, means: Mapping[str, Any] | None = None) -> Iterator[SparseMLPs]:
        """Inside the block, the MLPs of these layers run with their core neurons alone whenever the model writes on.

        Rows of the weights are gathered once, on entry. A forward with earlier keys and values is sparse (`generate` and `decode`
        after the prompt), whatever its number of tokens; a prompt, and every `run`, is dense. One set serves all texts of a
        batch. The weights are never touched, and the model is as before however the block ends.

        Args:
            cores: `blocks.3.mlp.post` → numbers of its core neurons.
            means: `blocks.3.mlp.post` → mean of each neuron, `(d_mlp,)`: the others then give their mean instead of nothing, as an
                offset of the output.

        Yields:
            The neurons by site, the share of neurons that run, and how many forwards ran sparsely.

        Raises:
            MissingSite: The layer is a mixture of experts, or the roles of its modules are not known; the message says why.
            InputError: No such neuron, a layer of an encoder, weights that blocks share, or a model without a cache.

        Example:
            >>> import activarium as act
            >>> model = act.wrap(*act.testing.tiny("opt"), certify=False)
            >>> with model.sparse({"blocks.1.mlp.post": range(12)}) as running:
            ...     written = model.generate("the cat", max_new_tokens=3)
            >>> running.share, running.forwards
            (0.25, 3)
        """
        with sparse_mlps(self._runner, cores, means) as state:
            self.running_sparse.append(state)
            try:
                yield state
            finally:
                self.running_sparse.remove(state)
