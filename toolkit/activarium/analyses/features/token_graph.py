"""Which token types activate which features: a bipartite graph, counted in one pass beside graphs whose types are shuffled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from activarium.dictionaries import CodedRows
from activarium.errors import InputError
from activarium.progress import progress_bar

PIECE = 4096


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """Token types and the features that they activate in any context.

    Attributes:
        names: Each type as it reads.
        occurrences: Rows of each type, int64.
        counts: Rows of a type in which a feature is active, a scipy matrix in CSR form, `type feature`, int64.
        largest: Largest size of a code in them, of the same form.
        shuffled: For each shuffle the edges, ascending numbers `type * features + feature`.
    """

    names: tuple[str, ...]
    occurrences: np.ndarray
    counts: Any
    largest: Any
    shuffled: tuple[np.ndarray, ...] = field(default=())

    @property
    def edges(self) -> Any:
        """The boolean matrix `type feature`, in CSR form."""
        return self.counts.astype(bool)

    @property
    def degrees(self) -> np.ndarray:
        """How many features each type activates."""
        return np.diff(self.counts.indptr)

    @property
    def order(self) -> np.ndarray:
        """Types from the most frequent on; of equally frequent ones the first in the table."""
        return np.argsort(-self.occurrences, kind="stable")

    def shuffled_degrees(self) -> np.ndarray:
        """Degrees in each shuffle, `shuffle type`."""
        width = self.counts.shape[1]
        return np.stack([np.bincount(keys // width, minlength=len(self.names)) for keys in self.shuffled])

    def coverage(self, order: np.ndarray, shuffle: int | None = None) -> np.ndarray:
        """How many features the first 1, 2, … types of an order reach together, in the graph or in one of its shuffles."""
        width = self.counts.shape[1]
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        if shuffle is None:
            types, features = np.repeat(np.arange(len(self.names)), self.degrees), self.counts.indices
        else:
            types, features = np.divmod(self.shuffled[shuffle], width)
        first = np.full(width, len(order))
        np.minimum.at(first, features, place[types])
        return np.bincount(first, minlength=len(order) + 1)[: len(order)].cumsum()


def token_graph(coded: CodedRows, *, shuffles: int = 0, seed: int = 0, progress: bool = False) -> TokenGraph:
    """Count the graph in one pass over the codes.

    A shuffle draws anew, among the rows at each position, which of them is of which type: every type keeps its frequency and its
    positions, and loses its features. The types are known before the codes, so the shuffles ride along in the same pass.

    Args:
        coded: Codes of a recording's rows.
        shuffles: How many shuffled graphs are counted beside it.
        seed: Draws them.
        progress: Show a bar.

    Raises:
        InputError: The rows are no tokens.
    """
    from scipy.sparse import csr_matrix

    names, types, position = _types(coded)
    generator = np.random.default_rng(seed)
    drawn = [_within(position, types, generator) for _ in range(shuffles)]
    shape = (len(names), coded.width)
    counts: Any = csr_matrix(shape, dtype=np.int64)
    largest: Any = csr_matrix(shape, dtype=np.float64)
    keys: list[list[np.ndarray]] = [[] for _ in drawn]
    done = 0
    with progress_bar(progress, "counting", len(types), "rows") as advance:
        for index, codes in coded.pieces(PIECE):
            row, feature = codes.rows.numpy(), codes.features.numpy().astype(np.int64)
            here = slice(done, done + len(index))
            counts = counts + _counted(types[here][row], feature, shape)
            largest = largest.maximum(_largest(types[here][row], feature, codes.values.abs().double().numpy(), shape))
            for kept, shuffled in zip(keys, drawn, strict=True):
                kept.append(np.unique(shuffled[here][row] * coded.width + feature))
                if len(kept) > 16:
                    kept[:] = [np.unique(np.concatenate(kept))]
            done += len(index)
            advance(len(index))
    occurrences = np.bincount(types, minlength=len(names))
    counts.sort_indices()
    largest.sort_indices()
    return TokenGraph(names, occurrences, counts, largest, tuple(np.unique(np.concatenate(k)) for k in keys))


def _types(coded: CodedRows) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names of the types, type of each row and its position."""
    table = coded.index
    if table is None or "text" not in table or "position" not in table:
        raise InputError(
            "Token types are told by the row table's columns 'text' and 'position', which these rows do not have. Record a language model."
        )
    text = np.asarray(table["text"]).astype(str)[coded.chosen]
    kinds = np.asarray(table["kind"]).astype(str)[coded.chosen] if "kind" in table else np.full(len(text), "token")
    if (kinds == "patch").any() or not (text != "").any():
        raise InputError("These rows are patches of images, which are of no token type. Record a language model, or see label_ontology.")
    ids = np.asarray(table["token"])[coded.chosen] if "token" in table else np.full(len(text), -1)
    # Two tokens may read alike (pieces of a character), so the id decides where there is one.
    _, first, types = np.unique(ids if (ids >= 0).all() else text, return_index=True, return_inverse=True)
    return tuple(text[first].tolist()), types.astype(np.int64), np.asarray(table["position"])[coded.chosen]


def _within(groups: np.ndarray, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Values in a random order within each group."""
    order, drawn = np.argsort(groups, kind="stable"), np.lexsort((generator.random(len(groups)), groups))
    made = np.empty_like(values)
    made[order] = values[drawn]
    return made


def _counted(types: np.ndarray, features: np.ndarray, shape: tuple[int, int]) -> Any:
    from scipy.sparse import coo_matrix

    return coo_matrix((np.ones(len(types), np.int64), (types, features)), shape).tocsr()  # entries of one place are added up


def _largest(types: np.ndarray, features: np.ndarray, sizes: np.ndarray, shape: tuple[int, int]) -> Any:
    from scipy.sparse import csr_matrix

    places, back = np.unique(types * shape[1] + features, return_inverse=True)
    most = np.zeros(len(places))
    np.maximum.at(most, back, sizes)
    return csr_matrix((most, np.divmod(places, shape[1])), shape)
