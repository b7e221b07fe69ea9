"""Neuron factors: groups of neurons that rows are sums of, what each stands for, and how much they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from activarium.activations import Activations
from activarium.analyses.features.equal_codes import left_with
from activarium.analyses.features.row_words import promoted, row_words, top_tokens
from activarium.analyses.features.sentence_scores import owners
from activarium.dictionaries import Factorised, FeatureDictionary, RowSource, as_dictionary, controls, factorise, residual_directions
from activarium.dictionaries.rows import EXCLUDED
from activarium.dictionaries.semi_nmf_starts import Start
from activarium.errors import InputError
from activarium.maths import bootstrap_interval
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Ranking, Report, Series

SNMF, PCA = "SNMF", "principal components"


def neuron_factors(
    recording: Recording,
    site: str,
    model: Runner | None = None,
    *,
    features: Sequence[int] = (8, 16, 32),
    others: Mapping[str, Any] | None = None,
    share: float = 0.05,
    init: Start = "kmeans",
    restarts: int = 1,
    active: Sequence[int] = (1, 2, 4, 8),
    contexts: int = 3,
    held_out: float = 0.25,
    exclude: Sequence[str] = EXCLUDED,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Which groups of neurons are a layer's rows sums of, and what does each stand for?

    The site is factorised (semi-nonnegative, few neurons in each factor) on part of the examples; every error is taken on the others. Beside
    the factors stand principal components, fitted on the same rows, and other dictionaries of the site at the same number of active codes:
    each row keeps the codes that write most, fitted again by least squares.

    Args:
        recording: Holds the site, of texts or images.
        site: Usually the neurons, `blocks.3.mlp.post`.
        model: Says what the factors of `mlp.post` promote: the answers in whose direction W_down z points.
        features: Numbers of factors to try; the last one's are described.
        others: Name → dictionary of the same site to hold against them, trained by the caller; ideally not on the held-out examples.
        share: Entries that each factor keeps.
        init: See `act.dictionaries.factorise`.
        restarts: Starts for each number of factors.
        active: Numbers of codes that a row keeps in the comparison.
        contexts: Rows and tokens that stand for a factor.
        held_out: Share of the examples that errors are measured on.
        exclude: Row kinds that are left out.
        confidence: Of the intervals, over held-out examples.
        seed: Of the starts, the split and the intervals.
        progress: Show a bar over the numbers of factors.

    Returns:
        A report with `factors` (ranking by share of Σ‖a‖² written, with rows in which each is active, its highest contexts, the tokens
        with most of its coefficients, and with a model what it promotes), `error by size` (series over the number of factors beside as many
        principal components; all codes kept) and `error by active codes` (series). Errors are Σ‖a − â‖² / Σ‖a − μ‖² over held-out rows, μ the mean
        of the fitted rows; bands are intervals over held-out examples.

    Raises:
        InputError: Fewer than four examples, sizes that are none, or a dictionary of another width.
        UnknownSite: The recording does not hold the site.

    Source:
        Shafran et al. 2025, Decomposing MLP Activations into Interpretable Features via Semi-Nonnegative Matrix Factorization,
        arXiv:2506.10920.

    Differs:
        Errors on held-out examples, the comparison at equal codes and the intervals are ours; the paper judges descriptions by language models.

    Example:
        >>> model = act.load("scribe")
        >>> rec = model.run(["Anna gave Tom the book ."] * 8, read="blocks.1.mlp.post")
        >>> report = act.analyses.neuron_factors(rec, "blocks.1.mlp.post", model, features=(2, 3), active=(1, 2))
        >>> len(report["factors"].names), sorted(report["error by size"].curves)
        (3, ['SNMF', 'principal components'])
    """
    sizes, kept = [int(f) for f in features], [int(k) for k in active]
    if not sizes or min(sizes) < 1 or not kept or min(kept) < 1 or not 0 < held_out < 1:
        raise InputError(
            f"features={tuple(features)}, active={tuple(active)}, held_out={held_out}: give numbers from 1, and a share between 0 and 1."
        )
    source = RowSource(recording[site], exclude=exclude)
    fitted, rest = _split(source, held_out, seed)
    train = Activations(source.read(fitted)[0], "row d_model", site=site, provenance=recording.provenance)
    found: list[Factorised] = []
    with progress_bar(progress, "factorising", len(sizes), "sizes") as advance:
        for size in sizes:
            options = {"share": share, "init": init, "restarts": restarts, "seed": seed, "progress": False}
            found.append(factorise(train, features=size, exclude=(), **options))
            advance(1)
    pca = {size: controls.principal(train, min(size, source.width), exclude=()) for size in sizes}
    measure = _Measure(source, rest, train.tensor.double().mean(0), confidence, seed)
    last = found[-1]
    rivals: dict[str, FeatureDictionary] = {SNMF: last.snmf, PCA: pca[sizes[-1]]}
    for name, thing in (others or {}).items():
        rivals[name] = as_dictionary(thing)
        if (rivals[name].d_in, rivals[name].d_out) != (source.width, source.width):
            raise InputError(f"{name!r} reads {rivals[name].d_in} numbers and writes {rivals[name].d_out}; {site} has {source.width}.")
    by_size = {SNMF: [f.snmf for f in found], PCA: [pca[s] for s in sizes]}
    parts = {
        "factors": _described(last, recording[site], fitted, model, contexts),
        "error by size": measure.over_sizes(np.array(sizes), by_size),
        "error by active codes": measure.over_codes(kept, rivals),
    }
    l0 = {name: measure.active(d) for name, d in rivals.items() if name != PCA}
    notes = dict(last.report.diagnostics) | {
        "fitted rows": len(fitted),
        "held-out rows": len(rest),
        "confidence": confidence,
        "active codes": l0,
    }
    notes["error means"] = "Σ‖a − â‖² / Σ‖a − μ‖² over held-out rows, μ the mean of the fitted rows; intervals over examples"
    return Report(parts, tuple(_words(parts, sizes, l0)), title=f"Factors of {site}", diagnostics=notes)


def _split(source: RowSource, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit and rows of other examples to measure on."""
    owner = owners(source)[source.chosen]
    examples = np.unique(owner)
    if len(examples) < 4:
        raise InputError(f"{source.inputs.site} has rows of {len(examples)} examples; at least 4 are needed, some of them to measure on.")
    count = int(np.clip(round(share * len(examples)), 2, len(examples) - 2))
    away = np.isin(owner, np.random.default_rng(seed).permutation(examples)[:count])
    return source.chosen[~away], source.chosen[away]


class _Measure:
    """Errors on held-out rows, with intervals over their examples."""

    def __init__(self, source: RowSource, rows: np.ndarray, mean: torch.Tensor, confidence: float, seed: int) -> None:
        self.rows = source.read(rows)[0]
        self.owner = np.unique(owners(source)[np.sort(rows)], return_inverse=True)[1]
        self.around = self._summed((self.rows.double() - mean).square().sum(1).numpy())
        self.confidence, self.seed = confidence, seed

    def _summed(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.owner, values)

    def active(self, dictionary: FeatureDictionary) -> float:
        return float(dictionary.codes(self.rows).active.double().mean())

    def over_sizes(self, sizes: np.ndarray, dictionaries: Mapping[str, Sequence[FeatureDictionary]]) -> Series:
        left = {name: [self._summed(_all_left(d, self.rows)) for d in each] for name, each in dictionaries.items()}
        return self._series(sizes, {n: np.stack(v, 1) for n, v in left.items()}, "factors", "Error by number of factors, all codes kept")

    def over_codes(self, counts: list[int], dictionaries: Mapping[str, FeatureDictionary]) -> Series:
        left = {}
        for name, dictionary in dictionaries.items():
            every = np.concatenate([left_with(dictionary, rows, counts) for rows in self.rows.split(512)])
            left[name] = np.stack([self._summed(column) for column in every.T], 1)
        return self._series(np.array(counts), left, "codes kept in a row", "Error at the same number of active codes")

    def _series(self, x: np.ndarray, left: Mapping[str, np.ndarray], label: str, title: str) -> Series:
        curves, bands = {}, {}
        for name, sums in left.items():
            low, high, _ = bootstrap_interval(sums, self.around[:, None].repeat(len(x), 1), confidence=self.confidence, seed=self.seed)
            curves[name], bands[name] = sums.sum(0) / self.around.sum(), np.stack([low, high])
        return Series(x, curves, label, bands, title=title, unit="share of the variance")


def _all_left(dictionary: FeatureDictionary, rows: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([dictionary.error(part).double().square().sum(1) for part in rows.split(4096)]).numpy()


def _described(found: Factorised, site: Activations, rows: np.ndarray, model: Runner | None, count: int) -> Ranking:
    """Each factor in words, from the rows it was fitted on."""
    square = float(np.asarray(found.report["factors"].values).sum()) or 1.0  # type: ignore[attr-defined]
    words, tokens, size = [], [], np.zeros(found.snmf.width)
    for factor in range(found.snmf.width):
        here, values = (v.numpy() for v in found.codes.feature(factor))
        best = here[np.argsort(-values, kind="stable")[:count]]
        words.append(" | ".join(row_words(site, int(rows[i])) for i in best))
        tokens.append(top_tokens(site, rows[here], values, count))
        size[factor] = float(np.square(values.astype(np.float64)).sum())
    share = size / max(size.sum(), 1e-300) * square
    order = np.argsort(-share, kind="stable")
    columns: dict[str, Any] = {"active rows": found.codes.fires.numpy() / len(found.codes), "contexts": np.array(words, dtype=object)}
    if any(tokens):
        columns["tokens"] = np.array(tokens, dtype=object)
    if model is not None and found.snmf.origin.site.endswith(".mlp.post") and "W_U" in getattr(model, "weights", {}):
        columns["promotes"] = np.array(promoted(model, residual_directions(found.snmf, model, at="mlp.out"), count), dtype=object)
    return Ranking(
        tuple(f"factor {i}" for i in order), share[order], {n: c[order] for n, c in columns.items()}, title="Factors", unit="Σ g² / Σ‖a‖²"
    )


def _words(parts: Mapping[str, Any], sizes: Sequence[int], l0: Mapping[str, float]) -> list[str]:
    by_size, by_codes = parts["error by size"], parts["error by active codes"]
    said = [
        f"{sizes[-1]} factors leave {by_size.curves[SNMF][-1]:.1%} of the variance of held-out rows, as many principal components "
        f"{by_size.curves[PCA][-1]:.1%}: components are the least that any {sizes[-1]} directions can leave of the fitted rows, and use them all in every row."
    ]
    said += [f"{name}: {count:.1f} codes active in a row." for name, count in l0.items()]
    each = {name: curve[-1] for name, curve in by_codes.curves.items()}
    order = sorted(each, key=lambda n: each[n])
    said.append(
        f"with {by_codes.x[-1]} codes in a row: " + ", ".join(f"{name} {each[name]:.1%}" for name in order) + " of the variance left."
    )
    return said
