"""High-norm tokens: patches (or tokens) whose whole vector is several times longer than the others'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, describe_row, examples_of, layer_number, layer_sites
from activarium.analyses.layers.evidence import picture
from activarium.analyses.massive.norm_split import APART, EVIDENCE, FEW
from activarium.analyses.massive.token_sizes import TokenSizes, token_sizes
from activarium.analyses.sparsity.row_kinds import EXCLUDED, some_kept
from activarium.errors import InputError, unknown
from activarium.recording import Recording
from activarium.results import Grid, Overlay, Ranking, Report, Result, Series

LISTED = 200  # rows in the list of the longest ones
BINS = 40
GAUSSIAN_TAIL = 0.135  # percent of a Gaussian that lie above mean + 3 std

Sizes = Mapping[str, TokenSizes]


def token_norms(
    recording: Recording | Activations,
    images: Sequence[Any] | None = None,
    *,
    threshold: float | None = None,
    example: int | None = None,
    absolute: float = 100.0,
    ratio: float = 1000.0,
    seed: int = 0,
) -> Report:
    """Which patches or tokens have a vector several times longer than the others?

    The measure is set, layer by layer, by the plain rows alone (patches, the image's rows inside a text, else tokens); `cls`, `register`,
    `bos`, other special rows and the text around an image are then held against it. Without `threshold` each layer gets its own: where two
    groups fit the logarithms of the norms and the higher one holds few of the rows with at least twice the norm, the cut
    between them; else mean + 3 std, above which 0.135 % of a Gaussian lie anyway: the report then says that there are no high-norm tokens.

    Args:
        recording: A recording with `blocks.*.resid_post`, or such a site or stack itself, axes `row d_model`.
        images: The pictures in the order of the examples, uint8 `(height, width, 3)` or PIL; one is shown with its high-norm patches.
        threshold: A norm in model units for all layers (Darcet et al. use 150 for DINOv2); None finds one per layer.
        example: Which example is shown; by default, with images, the one with most high-norm rows.
        absolute: Sun's rule, which is shown beside: smallest |h|, exclusive.
        ratio: Sun's rule: smallest multiple of the median of the example's plain rows, inclusive.
        seed: Starts the fit of two groups.

    Returns:
        A report with `layers` (ranking by percent of plain rows that are high: threshold and its rule, mean + 3 std, the two
        groups, rows that hold a massive number by Sun's rule and rows that are both: different facts), `norms` (histogram, layer ×
        norm on a logarithmic scale), `profile` (median, mean + 3 std, threshold and largest per layer), `kinds` (percent of
        the rows of each kind that are high), `tokens` (the longest rows) and, for the example shown, `patches` (norms on the grid) and
        `overlay` (the norms of its high rows, 0 elsewhere). A model with several stacks has each part once per stack.

    Raises:
        UnknownSite: The recording holds no `resid_post`.
        AxisError: The site has other axes than `row d_model`.
        InputError: The threshold is not positive, no plain row is left, or there are not as many images as examples.
        UnknownName: There is no such example.
        NotFinite: NaN or infinite numbers.
        MissingExtra: scikit-learn is not installed.

    Source:
        Darcet et al. 2023, Vision Transformers Need Registers, arXiv:2309.16588, section 2 (norms, bimodality, cut at 150 for
        DINOv2); Sun et al. 2024, arXiv:2402.17762 (rule for single numbers). Ashman, Bird & Zepf 1994, doi:10.1086/117248 (D > 2).

    Differs:
        The published cut belongs to one model; the two-group fit, its conditions (D > 2, BIC gain > 10, twice the norm, at most a fifth of
        the rows) and the median over plain rows only in Sun's rule are ours.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> h = torch.ones(200, 4) * torch.linspace(1, 2, 200)[:, None]
        >>> h[[7, 70]] *= 50
        >>> report = token_norms(Activations(h, "row d_model", site="blocks.0.resid_post"))
        >>> sorted(report["tokens"].columns["row"][:2].tolist()), report["layers"].values.tolist()
        ([7, 70], [1.0])
    """
    if threshold is not None and not threshold > 0:
        raise InputError(f"threshold={threshold} would call every token high; give a positive norm, or None to find one per layer.")
    parts: dict[str, Result] = {}
    words: list[str] = []
    for stack, sites in layer_sites(recording, ("resid_post",), "row d_model").items():
        first = next(iter(sites.values()))
        plain = _plain(first)
        sizes = {site: token_sizes(a, plain, threshold, absolute, ratio, seed) for site, a in sites.items()}
        numbers = np.array([layer_number(site, i) for i, site in enumerate(sizes)])
        made = {
            "layers": _layers(sizes, numbers),
            "norms": _histogram(sizes),
            "profile": _profile(sizes, numbers),
            "kinds": _kinds(first, sizes),
            "tokens": _tokens(first, sizes),
            **_shown(first, sizes, images, example),
        }
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        words += _words(stack, first, sizes)
    notes = {"threshold": "per layer" if threshold is None else threshold, "left out of the measure": ", ".join(EXCLUDED), "seed": seed}
    return Report(parts, tuple(words), title="Norms of tokens", unit="model units", diagnostics=notes)


def _plain(first: Activations) -> np.ndarray:
    """Rows that set the measure. Rows of an image and words around them live on scales of their own: one of them must not judge the other."""
    inside = column(first, "kind", "token").astype(str) == "image"
    return inside if inside.any() else some_kept(first, EXCLUDED)


def _layers(sizes: Sizes, numbers: np.ndarray) -> Ranking:
    all_of = list(sizes.values())
    share = np.array([s.share(s.high) for s in all_of])
    columns: dict[str, Any] = {
        "block": numbers,
        "second group": [s.split.clear for s in all_of],
        "threshold": [s.threshold for s in all_of],
        "rule": np.array([s.rule for s in all_of], dtype=object),
        "mean + 3 std": [s.three for s in all_of],
        "percent above mean + 3 std": [s.share(s.norms > s.three) for s in all_of],
        "split": [s.split.at for s in all_of],
        "lower group": [s.split.low for s in all_of],
        "higher group": [s.split.high for s in all_of],
        "percent in higher group": [100 * s.split.share for s in all_of],
        "apart (Ashman's D)": [s.split.apart for s in all_of],
        "evidence (BIC)": [s.split.evidence for s in all_of],
        "rows massive by Sun's rule": [int(s.massive.sum()) for s in all_of],
        "rows both": [int((s.massive & s.high).sum()) for s in all_of],
        "rows high": [int(s.high.sum()) for s in all_of],
    }
    order = np.argsort(-share, kind="stable")
    chosen = {name: np.asarray(c)[order] for name, c in columns.items()}
    names = tuple(list(sizes)[i] for i in order)
    return Ranking(names, share[order], chosen, title="Layers by their high-norm tokens", unit="percent")


def _histogram(sizes: Sizes) -> Grid:
    """Share of the plain rows in each bin; the bins are the same for all layers, equally wide in log norm."""
    positive = np.concatenate([s.norms[s.plain & (s.norms > 0)] for s in sizes.values()])
    if not len(positive):
        raise InputError("All tokens are zero vectors; there are no norms to compare. Check what was recorded.")
    edges = np.geomspace(positive.min() * (1 - 1e-9), positive.max() * (1 + 1e-9), BINS + 1)
    shares = np.stack([100 * np.histogram(s.norms[s.plain], edges)[0] / s.plain.sum() for s in sizes.values()])
    labels = {"layer": list(sizes), "norm": [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]}
    return Grid(shares, ("layer", "norm"), labels, title="How many tokens have which norm", unit="percent")


def _profile(sizes: Sizes, numbers: np.ndarray) -> Series:
    each = list(sizes.values())
    curves = {
        "median": np.array([np.median(s.norms[s.plain]) for s in each]),
        "mean + 3 std": np.array([s.three for s in each]),
        "threshold": np.array([s.threshold for s in each]),
        "largest": np.array([s.norms[s.plain].max() for s in each]),
    }
    return Series(numbers, curves, "layer", title="Norms of plain rows", unit="model units")


def _kinds(first: Activations, sizes: Sizes) -> Grid:
    kind = column(first, "kind", "token").astype(str)
    kinds = sorted(set(kind))
    values = np.array([[100 * s.high[kind == k].mean() for k in kinds] for s in sizes.values()])
    labels = {"layer": list(sizes), "kind": [f"{k} ({(kind == k).sum():,} rows)" for k in kinds]}
    return Grid(values, ("layer", "kind"), labels, title="Rows of each kind with a high norm", unit="percent")


def _tokens(first: Activations, sizes: Sizes) -> Ranking:
    """The longest rows of all layers, as multiples of their layer's median."""
    medians = {site: float(np.median(s.norms[s.plain])) or np.nan for site, s in sizes.items()}
    chosen = [(site, int(r)) for site, s in sizes.items() for r in np.argsort(-s.norms, kind="stable")[:LISTED]]
    multiple = np.array([sizes[site].norms[r] / medians[site] for site, r in chosen])
    best = np.argsort(-np.nan_to_num(multiple), kind="stable")[:LISTED]
    row = np.array([chosen[i][1] for i in best])
    layer = [chosen[i][0] for i in best]
    columns = {
        "layer": np.array(layer, dtype=object),
        "norm": np.array([sizes[site].norms[r] for site, r in zip(layer, row, strict=True)]),
        "high": np.array([bool(sizes[site].high[r]) for site, r in zip(layer, row, strict=True)]),
        "massive": np.array([bool(sizes[site].massive[r]) for site, r in zip(layer, row, strict=True)]),
        "row": row,
        "example": examples_of(first)[row],
        **{name: column(first, name, default)[row] for name, default in (("position", -1), ("kind", "token"), ("y", -1), ("x", -1))},
    }
    names = [f"{site} · {describe_row(first, int(r))}" for site, r in zip(layer, row, strict=True)]
    return Ranking(tuple(names), multiple[best], columns, title="The longest tokens", unit="times the layer's median")


def _shown(first: Activations, sizes: Sizes, images: Sequence[Any] | None, example: int | None) -> dict[str, Result]:
    owner = examples_of(first)
    numbers = list(dict.fromkeys(owner.tolist()))
    if images is not None and len(images) != len(numbers):
        raise InputError(f"There are {len(images)} images for {len(numbers)} examples; give one for each, in the order of the examples.")
    if example is None and images is None:
        return {}
    if example is None:
        high = np.sum([s.high & s.plain for s in sizes.values()], axis=0)
        example = max(numbers, key=lambda e: int(high[owner == e].sum()))
    if example not in numbers:
        raise unknown("example in this recording", str(example), [str(n) for n in numbers])
    here = owner == example
    norms = np.stack([s.norms[here] for s in sizes.values()])
    high = np.stack([np.where(s.high, s.norms, 0)[here] for s in sizes.values()])
    title, names = f"Norms of the high-norm tokens of example {example}", tuple(sizes)
    y, x = (column(first, name, -1)[here].astype(int) for name in ("y", "x"))
    if not (y >= 0).any():
        tokens = tuple(str(t) for t in column(first, "text", "")[here])
        return {"overlay": Overlay(high, names, tokens=tokens, title=title, unit="model units")}
    labels = {"layer": names}
    grid = Grid(
        _placed(norms, y, x), ("layer", "height", "width"), labels, title=f"Norms of the patches of example {example}", unit="model units"
    )
    if images is None:
        return {"patches": grid}
    below = picture(images[numbers.index(example)])
    return {"patches": grid, "overlay": Overlay(_placed(high, y, x), names, image=below, title=title, unit="model units")}


def _placed(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values `(layer, row)` where the rows say that they lie in the picture."""
    inside = y >= 0
    made = np.zeros((len(values), int(y.max()) + 1, int(x.max()) + 1))
    made[:, y[inside], x[inside]] = values[:, inside]
    return made


def _words(stack: str, first: Activations, sizes: Sizes) -> list[str]:
    where = f"{stack}: " if stack else ""
    plain = next(iter(sizes.values())).plain
    found = {site: s for site, s in sizes.items() if s.rule != "mean + 3 std"}
    if not found:
        most = max(sizes, key=lambda site: sizes[site].share(sizes[site].norms > sizes[site].three))
        tail = sizes[most].share(sizes[most].norms > sizes[most].three)
        said = [
            f"{where}high-norm tokens: none. In no layer do the norms of {plain.sum():,} plain rows have a small second group with at least twice the norm; "
            f"above mean + 3 std lie at most {tail:.2f} % ({most}), where a Gaussian has {GAUSSIAN_TAIL} %."
        ]
        near = {site: s.split.high / s.split.low for site, s in sizes.items() if s.split.apart > APART and s.split.evidence > EVIDENCE}
        if near:
            best = max(near, key=lambda site: near[site])
            share = 100 * sizes[best].split.share
            held = f"the higher holds {share:.0f} % of the rows, with {near[best]:.2g} times the norm of the lower"
            reason = "two kinds of rows rather than outliers" if share >= 100 * FEW else "too near each other"
            said.append(f"{where}{best} has two groups, {reason}: {held}.")
    else:
        said = [f"{where}{_layer_words(site, s)}" for site, s in list(found.items())[:12]]
    massive = {site: int(s.massive.sum()) for site, s in sizes.items() if s.massive.any()}
    said.append(
        f"{where}Sun's rule for single numbers finds none."
        if not massive
        else f"{where}Sun's rule for single numbers finds {sum(massive.values()):,} rows over {len(massive)} layers, "
        f"{sum(int((s.massive & s.high).sum()) for s in sizes.values()):,} of them high-norm: different facts."
    )
    zeros = sum(int((s.norms[s.plain] == 0).sum()) for s in sizes.values())
    return said + ([f"{where}{zeros} plain rows are zero vectors; they are in no histogram and no fit."] if zeros else [])


def _layer_words(site: str, s: TokenSizes) -> str:
    split = f"the groups lie near {s.split.low:.3g} and {s.split.high:.3g}, D = {s.split.apart:.1f}" if s.split.clear else "no second group"
    return (
        f"{site}: {s.share(s.high):.2f} % of the plain rows have a norm above {s.threshold:.4g} ({s.rule}; {split}; "
        f"mean + 3 std would be {s.three:.4g})."
    )
