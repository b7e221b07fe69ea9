"""Hidden-dimension sparsity: which dimensions of the stream a token uses, and which stay in use from token to token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from activarium.activations import Activations
from activarium.analyses.layer_sites import by_example, column, layer_sites, refuse_strange
from activarium.analyses.sparsity.dimension_sets import Occupancy, active_set, follows
from activarium.analyses.sparsity.dimension_table import Counted, DimensionTable
from activarium.analyses.sparsity.row_kinds import EXCLUDED, left_out, left_out_words, some_kept
from activarium.errors import InputError, UnknownSite
from activarium.recording import Recording
from activarium.results import Report, Result

SITES = ("resid_post", "attn.in", "mlp.in")


def hidden_dimensions(
    recording: Recording | Activations,
    *,
    energy: float = 0.9,
    theta: float | None = None,
    shared: float = 0.9,
    specialised: float = 0.1,
    exclude: Sequence[str] = EXCLUDED,
    confidence: float = 0.95,
    seed: int = 0,
) -> Report:
    """Which hidden dimensions does each row use, and do they stay in use in the next row?

    A row's active set is the smallest set of dimensions with the share `energy` of its Σh² (or those with |h| > theta · rms).
    Occupancy of a dimension is the share of rows in whose set it is. Persistence is how often it is active in the next row,
    given that it is active now; by chance alone that is its occupancy. Three numbers stand beside one another: measured, rows
    shuffled within their sequence (what belongs to the text as a whole) and rows shuffled everywhere (base rate). Both are
    exact expectations, nothing is drawn. Sequences never touch. In an image the order is raster order, left to right, and a
    run ends with its line of patches.

    Args:
        recording: A recording with `blocks.*.resid_post`, and for the normalised stream `attn.in` or `mlp.in`; or one site or
            stack, axes `row d_model`. The raw stream is ruled by a few large dimensions: read the normalised one too.
        energy: Share of a row's energy, above 0 and at most 1.
        theta: Use the threshold |h| > theta · rms(h) instead of the energy.
        shared: Dimensions of at least this occupancy are called shared.
        specialised: Dimensions of at most this occupancy, but not zero, are called specialised.
        exclude: Row kinds left out; a run does not pass over them.
        confidence: Of the bands, from resampled sequences.
        seed: Draws the sequences.

    Returns:
        For each site (`resid_post`, `attn.in`, `mlp.in`) a report's parts `resid_post sets` (series: share of dimensions that is
        active, shared, specialised, never active, and active at position 0), `… persistence` (series: measured and both chances),
        `… flow` (series: Jaccard overlap of a row's sets with the next layer's, what occupancies alone would give, and the
        share of the next layer's energy in dimensions not active before), `… occupancy` (grid `layer d_model`), `… run lengths`
        (grid, share of runs; the last column holds 64 and longer), `… shared by cut` and `… specialised by cut` (grids: how
        the counts move with the cut) and `… dimensions` (ranking by persistence above base rate).

    Raises:
        UnknownSite: The recording holds none of the sites.
        AxisError: A site has other axes than `row d_model`.
        InputError: A share out of range, or no row is left.
        NotFinite: NaN or infinite numbers, of which no set can be made.

    Source:
        Chen et al. 2024, Mixture of Hidden-Dimensions Transformer, arXiv:2412.05644 (the observation: few dimensions per token,
        some active over consecutive tokens).

    Differs:
        The paper gives no thresholds for its observations; energy set, cuts, both chances and flow are ours.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> h = torch.tensor([[3.0, 0.1, 0.0], [3.0, 0.0, 0.1], [-3.0, 0.1, 0.1]])
        >>> report = hidden_dimensions(Activations(h, "row d_model", site="blocks.0.resid_post"))
        >>> report["resid_post occupancy"].values.tolist()
        [[1.0, 0.0, 0.0]]
    """
    _check(energy, theta, shared, specialised)
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, object] = {"energy": energy, "confidence": confidence, "seed": seed}
    notes |= {"shared": shared, "specialised": specialised} | ({"theta": theta} if theta is not None else {})
    for name, sites in _sites(recording).items():
        found = _counted(sites, energy, theta, exclude)
        table = DimensionTable(name, found, shared, specialised, confidence, seed, gaussian=energy == 0.9 and theta is None)
        parts |= {f"{name} {part}": result for part, result in table.parts().items()}
        words += table.words()
        notes |= table.notes()
        first = next(iter(sites.values()))
    words += left_out_words(first, exclude)
    return Report(
        parts, tuple(words), title="Hidden dimensions in use", unit="share", diagnostics=notes | {"excluded": left_out(first, exclude)}
    )


def _check(energy: float, theta: float | None, shared: float, specialised: float) -> None:
    if not 0 < energy <= 1:
        raise InputError(f"energy={energy} is no share of a row's energy; give one above 0 and at most 1, such as 0.9.")
    if theta is not None and not theta > 0:
        raise InputError(f"theta={theta} would call every dimension active; give a positive multiple of the rms.")
    if not 0 < specialised < shared <= 1:
        raise InputError(
            f"specialised={specialised} and shared={shared} must be shares with specialised below shared, such as 0.1 and 0.9."
        )


def _sites(source: Recording | Activations) -> dict[str, dict[str, Activations]]:
    """Name → sites of one stack: `resid_post`, `encoder mlp.in`."""
    if isinstance(source, Activations):
        sites = layer_sites(source, SITES, "row d_model")[""]
        return {next(iter(sites)).rpartition("blocks.")[2].partition(".")[2] or source.site or "values": sites}
    found: dict[str, dict[str, Activations]] = {}
    for ending in SITES:
        try:
            stacks = layer_sites(source, (ending,), "row d_model")
        except UnknownSite:
            continue
        found |= {f"{stack} {ending}".strip(): sites for stack, sites in stacks.items()}
    return found or {"": layer_sites(source, SITES, "row d_model")[""]}  # raises, with the words what to read


def _counted(sites: Mapping[str, Activations], energy: float, theta: float | None, exclude: Sequence[str]) -> Counted:
    """One pass over the sequences, all layers of a stack beside one another."""
    first = next(iter(sites.values()))
    keep = some_kept(first, exclude)
    patches = bool((column(first, "kind", "token").astype(str) == "patch").any())
    found = Counted([Occupancy(a.shape[1]) for a in sites.values()], list(sites), patches)
    position = column(first, "position", 0) if first.index is not None else np.arange(len(first))
    line = column(first, "y", 0)
    for sequence in zip(*(by_example(a) for a in sites.values()), strict=True):
        _, start, values = sequence[0]
        here = slice(start, start + len(values))
        at = keep[here].nonzero()[0]
        linked = follows(position[here][at], line[here][at])
        layers = [v for _, _, v in sequence]
        for activations, v in zip(sites.values(), layers, strict=True):
            if not bool(v.isfinite().all()):
                refuse_strange(activations, "No set of dimensions can be made of such a row.")
        _add(found, layers, [active_set(v, energy, theta) for v in layers], at, linked, position[here] == 0)
    return found


def _add(found: Counted, layers: list[Tensor], active: list[np.ndarray], at: np.ndarray, linked: np.ndarray, first: np.ndarray) -> None:
    """One sequence, of which the rows `at` count."""
    found.starts += int(first.sum())
    for i, (state, values, sets) in enumerate(zip(found.layers, layers, active, strict=True)):
        found.at_start[i] += sets[first].sum()
        if len(at):
            state.update(values[at], sets[at], linked)
        if i:
            found.flow(i - 1, active[i - 1][at], sets[at], values[at])
