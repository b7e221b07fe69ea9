"""One vector per text or image: mean codes of its rows, beside its mean activations and the codes of a random twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activarium.dictionaries import SAE, Codes, Design, FeatureDictionary, RowSource, as_dictionary, rows_for
from activarium.errors import InputError
from activarium.recording import Recording

CODES, ROWS, RANDOM = "codes", "activations", "random codes"
SAMPLED = 4096  # rows that the twin's sparsity is taken from


@dataclass(frozen=True, eq=False)
class ExampleCodes:
    """Means over the rows of each example, float64.

    Attributes:
        examples: Number of each example in the recording, ascending.
        spaces: `codes` and `random codes` by `example feature`, `activations` by `example d_model`.
        diagnostics: Site, rows, rows left out, codes per row of the dictionary and of its random twin.
        kept: Which of the recording's examples these are; one whose rows are all left out is not among them.
        recorded: How many examples the recording has.
    """

    examples: np.ndarray
    spaces: Mapping[str, np.ndarray]
    diagnostics: Mapping[str, Any]
    kept: np.ndarray
    recorded: int

    def __len__(self) -> int:
        return len(self.examples)

    def column(self, values: Sequence[Any], name: str) -> np.ndarray:
        """What was said of each example of the recording, for the examples that are left.

        Raises:
            InputError: There is not one value for each example.
        """
        given = np.asarray(values)
        if given.ndim != 1 or len(given) != self.recorded:
            raise InputError(
                f"{name} has shape {given.shape} for {self.recorded} examples; give one for each example of the recording, in its order."
            )
        return given[self.kept]


def example_codes(
    dictionary: Any, recording: Recording, *, site: str | None = None, exclude: Sequence[str] | None = None, seed: int = 0
) -> ExampleCodes:
    """Mean codes and mean activations of every example, in one pass over the rows.

    Args:
        dictionary: A dictionary, or what `as_dictionary` makes one of.
        recording: Holds the site it reads.
        site: That site, where the dictionary does not say.
        exclude: Row kinds left out; None leaves out what its training left out.
        seed: Draws the random twin.

    Raises:
        InputError: Only one example is left, or see `rows_for`.
    """
    features = as_dictionary(dictionary)
    source = rows_for(features, recording, site=site, exclude=exclude)
    table = source.inputs.index
    if table is None:
        raise InputError(
            f"{source.inputs.site} has no row table, so its rows belong to no example. Use a recording of model.run or a store."
        )
    examples, owner = np.unique(np.asarray(table["example"])[source.chosen], return_inverse=True)
    if len(examples) < 2:
        raise InputError(f"{source.inputs.site} holds rows of {len(examples)} example; examples are compared here. Record several.")
    twin = random_twin(features, source, seed)
    sums = {CODES: np.zeros((len(examples), features.width)), ROWS: np.zeros((len(examples), source.width))}
    sums[RANDOM] = np.zeros_like(sums[CODES])
    done, active = 0, {CODES: 0, RANDOM: 0}
    for index, x, _ in source.pieces():
        here = owner[done : done + len(index)]
        done += len(index)
        np.add.at(sums[ROWS], here, x.double().numpy())
        for name, made in ((CODES, features.codes(x)), (RANDOM, twin.codes(x))):
            _add(sums[name], here, made)
            active[name] += len(made.values)
    rows = np.bincount(owner, minlength=len(examples))[:, None]
    notes = {"site": source.inputs.site, "rows": len(source), "rows left out": dict(source.dropped)}
    notes |= {f"{name} per row": active[name] / len(source) for name in active}
    every = np.unique(np.asarray(table["example"]))
    spaces = {name: total / rows for name, total in sums.items()}
    return ExampleCodes(examples, spaces, notes, np.searchsorted(every, examples), len(every))


def random_twin(dictionary: FeatureDictionary, source: RowSource, seed: int) -> SAE:
    """Random unit directions around the rows' mean, as many features, and as many codes per row as the dictionary has on average.

    A random encoder behind learnt thresholds fires hardly or always; with the sparsity matched, only the directions differ.
    """
    chosen = source.chosen[np.linspace(0, len(source) - 1, min(SAMPLED, len(source))).astype(int)]
    x, _ = source.read(chosen)
    active = dictionary.codes(x).active.double().mean()
    k = int(np.clip(round(float(active)), 1, dictionary.width))
    twin = SAE(Design(source.width, dictionary.width, "topk", k=k), dictionary.origin, seed=seed).requires_grad_(False)
    twin.b_dec.copy_(source.statistics(seed).inputs.mean)
    return twin


def _add(total: np.ndarray, owner: np.ndarray, codes: Codes) -> None:
    where = torch.as_tensor(owner)[codes.rows] * codes.width + codes.features.long()
    # A sparse piece has few entries; bincount over the whole table would cost examples × features each time.
    places, back = torch.unique(where, return_inverse=True)
    found = torch.zeros(len(places), dtype=torch.float64).index_add_(0, back, codes.values.double())
    total.reshape(-1)[places.numpy()] += found.numpy()
