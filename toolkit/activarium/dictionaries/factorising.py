"""Semi-nonnegative factorisation of a site: what its rows are sums of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.activations import Activations
from activarium.dictionaries.coded import origin_of
from activarium.dictionaries.codes import Codes
from activarium.dictionaries.design import Origin
from activarium.dictionaries.rows import EXCLUDED, RowSource
from activarium.dictionaries.semi_nmf import Fit, Pieces, fit, winners_of
from activarium.dictionaries.semi_nmf_starts import Start, check_start, start
from activarium.dictionaries.snmf import SNMF
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.recording import Recording
from activarium.results import Ranking, Report, Series

RESTARTS = {"kmeans": 3, "random": 5, "svd": 1}
ALIKE = 0.99  # cosine from which two factors count as the same


@dataclass(frozen=True, eq=False)
class Factorised:
    """Factors of a site, how much of them is in each row, and how the fit went.

    Attributes:
        snmf: The factors, those that write most first.
        codes: Coefficients of the rows that were fitted, in their order: `snmf.encode` of them.
        report: Error over the steps, and the factors.
        rows: Number of each of these rows in the recording.
    """

    snmf: SNMF
    codes: Codes
    report: Report
    rows: np.ndarray


def factorise(
    recording: Recording | Activations,
    site: str | None = None,
    *,
    features: int,
    share: float | None = 0.01,
    init: Start = "kmeans",
    restarts: int | None = None,
    steps: int = 300,
    tolerance: float = 1e-3,
    patience: int = 10,
    exclude: Sequence[str] = EXCLUDED,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    progress: bool = True,
) -> Factorised:
    """Factorise a site's rows: A ≈ Z Y, with few neurons in each column of Z and no negative coefficient in Y.

    A holds rows as its columns, as they are: nothing is centred. Each step solves for Z, keeps the largest entries of each column
    (winner takes all), and moves Y by a multiplicative step. Rows are read from the store a piece at a time, once in a step (they stay in
    memory where they take less than 1 GiB); coefficients, rows × features, are held in memory, and so are sums of d_in × features.
    Keeping few entries can raise the error of a step, so the best one is what comes back. The coefficients of the result are then the exact
    nonnegative least squares on its Z. It runs in torch: five matrix products a step, and nothing to differentiate.

    Args:
        recording: A store, a recording, or one site of it.
        site: Which site, one layer, usually the neurons, `blocks.3.mlp.post`; not needed where `recording` is a site itself.
        features: How many factors.
        share: Each factor keeps ⌈share · d_in⌉ entries. The published runs take 0.01 of several thousand neurons; small models want more, 0.05.
            None keeps all.
        init: `kmeans`, `random` or `svd`; see `semi_nmf_starts.start`.
        restarts: How many starts are tried, the best is kept; None tries 3 of k-means, 5 random ones, 1 of svd (which has no chance in it).
        steps: Most steps of a start.
        tolerance: A start ends when its best error fell by less than this share of itself within `patience` steps.
        patience: See `tolerance`.
        exclude: Row kinds that are left out.
        dtype: Type that is computed in; sums and the solve are always float64. Rows in 16 bits are promoted.
        seed: Of k-means and of random starts.
        progress: Show a bar with the error.

    Returns:
        A `Factorised`.

    Raises:
        InputError: Fewer rows than factors, other axes, an unknown start or arguments out of range, or rows that are all zero.
        CapacityError: Coefficients take more than 8 GiB.
        NotFinite: NaN or infinity in a row.
        UnknownSite: The recording does not hold the site.

    Source:
        Shafran et al. 2025, Decomposing MLP Activations into Interpretable Features via Semi-Nonnegative Matrix Factorization,
        arXiv:2506.10920. Ding, Li & Jordan 2010, Convex and Semi-Nonnegative Matrix Factorizations (the multiplicative step).

    Differs:
        Stops on a relative tolerance (the published one is absolute); Cholesky with a jitter in place of an inverse; k-means starts give
        every other cluster 0.02 and are restarted (from 1e-6 rows hardly leave their cluster: 2 of 8 planted sets were not found, 0 of 8
        so). Directions have length 1 and coefficients the unit of the rows, where the published code gives Y rows of length 1.
        Coefficients are exact at the end, with exact zeros.

    Example:
        >>> import activarium as act
        >>> model = act.load("scribe")
        >>> rec = model.run(["Anna gave Tom the book ."] * 4, read="blocks.1.mlp.post")
        >>> made = act.dictionaries.factorise(rec, "blocks.1.mlp.post", features=3, share=0.05, progress=False)
        >>> made.snmf.width, int((made.snmf.directions != 0).sum(1).max()), len(made.codes)
        (3, 26, 28)
    """
    source = source_of(recording, site, exclude)
    _check(source, features, share, init, restarts, steps, dtype)
    winners = None if share is None or share >= 1 else winners_of(share, source.width)
    origin = origin_of(recording, source.inputs.site, source, exclude)
    settings: dict[str, Any] = {"init": init, "restarts": restarts or RESTARTS[init], "steps": steps, "share": share, "seed": seed}
    return factorised(source, features, winners, origin, settings, tolerance=tolerance, patience=patience, dtype=dtype, progress=progress)


def factorised(
    source: RowSource,
    features: int,
    winners: int | None,
    origin: Origin,
    settings: dict[str, Any],
    *,
    tolerance: float,
    patience: int,
    dtype: torch.dtype,
    progress: bool,
) -> Factorised:
    """The same of rows that were chosen and checked before."""
    pieces = Pieces(source, dtype)
    pieces.check_codes(features)
    if not pieces.square:
        raise InputError(f"All {pieces.count:,} rows of {origin.site or 'this site'} are zero: there is nothing to factorise.")
    best: Fit | None = None
    ends = []
    steps, restarts, init, seed = settings["steps"], settings["restarts"], settings["init"], settings["seed"]
    with progress_bar(progress, "factorising", restarts * steps, "steps") as advance:
        for number in range(restarts):
            begin = start(pieces, features, init, seed + number)
            found = fit(pieces, begin, winners, steps=steps, tolerance=tolerance, patience=patience, advance=advance)
            ends.append(found.loss / pieces.square)
            best = found if best is None or found.loss < best.loss else best
            advance(steps - len(found.losses))
    assert best is not None
    snmf, codes, sizes = _finished(pieces, best.factors.to(dtype), origin)
    return Factorised(snmf, codes, _report(pieces, best, snmf, codes, sizes, ends, settings, winners), source.chosen)


def source_of(recording: Recording | Activations, site: str | None, exclude: Sequence[str]) -> RowSource:
    """The rows of one site of one layer.

    Raises:
        InputError: No site is named, or a pattern names several.
    """
    if isinstance(recording, Activations):
        return RowSource(recording, exclude=exclude)
    if not site:
        raise InputError(f"Which site? Give one, site='blocks.1.mlp.post'. The recording holds {', '.join(list(recording)[:6])}.")
    found = recording[site]
    if found.axes[0] == "layer":
        raise InputError(f"{site!r} names several layers; factorise one site: {', '.join(list(found.layers())[:3])}.")
    return RowSource(found, exclude=exclude)


def _check(source: RowSource, features: int, share: float | None, init: str, restarts: int | None, steps: int, dtype: torch.dtype) -> None:
    site = source.inputs.site or "This site"
    if not 0 < features <= len(source):
        left = f" after {', '.join(f'{n:,} {kind}' for kind, n in source.dropped.items())} rows were left out" if source.dropped else ""
        raise InputError(f"{site} has {len(source):,} rows{left}; asked for {features} factors. Take 1 to as many factors as rows.")
    if share is not None and not 0 < share <= 1:
        raise InputError(f"share={share}: each factor keeps a share of its entries, above 0 and up to 1. None keeps all.")
    if steps < 1 or (restarts is not None and restarts < 1):
        raise InputError(f"steps={steps} and restarts={restarts}: at least one of each.")
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype={dtype}: factorise computes in torch.float32 or torch.float64, whatever type the rows are stored in.")
    check_start(init, features, source.width)


def _finished(pieces: Pieces, z: Tensor, origin: Origin) -> tuple[SNMF, Codes, dict[str, Any]]:
    """Directions of length 1, those that write most first; exact codes, and the error they leave."""
    norms = z.norm(dim=0)  # coefficients had columns of length 1 there, so this is what each factor wrote
    order = norms.argsort(descending=True, stable=True)
    unit = torch.where(norms > 0, z / norms.clamp_min(torch.finfo(z.dtype).tiny), 0)
    snmf = SNMF(unit[:, order].T.contiguous(), origin)
    left, written, parts = 0.0, torch.zeros(snmf.width, dtype=torch.float64), []
    for _, rows in pieces:
        codes = snmf.encode(rows)
        left += float((rows - snmf.decode(codes)).double().square().sum())
        written += codes.double().square().sum(0)
        parts.append(Codes.of_dense(codes))
    around = pieces.square - pieces.count * float(pieces.mean.square().sum())
    return snmf, Codes.concatenate(parts), {"left": left, "around": around, "written": written}


def _report(
    pieces: Pieces,
    best: Fit,
    snmf: SNMF,
    codes: Codes,
    sizes: dict[str, Any],
    ends: list[float],
    settings: dict[str, Any],
    winners: int | None,
) -> Report:
    losses = np.array(best.losses) / pieces.square
    steps = np.arange(1, len(losses) + 1)
    error, around = sizes["left"] / pieces.square, sizes["left"] / sizes["around"] if sizes["around"] > 0 else float("nan")
    written = sizes["written"].numpy()
    twice = twins(snmf.directions)
    dead = int((written == 0).sum())
    notes = settings | {
        "error": error,
        "error means": "Σ‖a − ZY‖² / Σ‖a‖² over the fitted rows, not centred",
        "unexplained variance": around,
        "errors of the starts": ends,
        "entries kept": winners,
        "best step": best.best + 1,
        "stopped": best.stopped,
        "rows": pieces.count,
        "zero rows": int(pieces.empty.sum()),
        "silent columns": int(pieces.silent.sum()),
        "dead factors": dead,
        "pairs alike": twice,
        "rows in memory": pieces.held,
    }
    order = np.argsort(-written, kind="stable")
    columns = {"active rows": codes.fires.numpy() / max(1, len(codes)), "entries": (snmf.directions != 0).sum(1).numpy()}
    parts = {
        "error": Series(
            steps, {"this step": losses, "best so far": np.minimum.accumulate(losses)}, "step", title="Error", unit="share of Σ‖a‖²"
        ),
        "factors": Ranking(
            tuple(str(i) for i in order),
            written[order] / pieces.square,
            {name: column[order] for name, column in columns.items()},
            title="Factors by what they write",
            unit="Σ g² / Σ‖a‖²",
        ),
    }
    words = [
        f"{snmf.width} factors leave {error:.2%} of Σ‖a‖² over {pieces.count:,} rows ({around:.2%} of the variance around the mean), "
        f"with {float(codes.active.double().mean()):.1f} active in a row.",
        f"best of {len(ends)} starts ({settings['init']}), whose errors were {min(ends):.2%} to {max(ends):.2%}; {best.stopped}.",
    ]
    if dead:
        words.append(f"{dead} factors are used by no row.")
    if twice or snmf.width > min(pieces.count, pieces.width):
        words.append(
            f"{twice} pairs of factors point the same way (cosine above {ALIKE}), and rows of {pieces.width} numbers hold at most "
            f"{min(pieces.count, pieces.width)} independent ones: how a row is shared between such factors is not identified."
        )
    return Report(parts, tuple(words), title=f"Factors of {snmf.origin.site}", diagnostics=notes)


def twins(directions: Tensor) -> int:
    """Pairs of directions that are all but the same."""
    unit = torch.nn.functional.normalize(directions, dim=1)
    return int((torch.triu(unit @ unit.T, diagonal=1) > ALIKE).sum())
