"""Dictionary quality: what a dictionary gives back of its rows, how its features fire, and what the model loses with it in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from activarium.analyses.features.bare_rows import BareRows
from activarium.analyses.features.fidelity import DEFINITIONS, Fidelity
from activarium.analyses.features.firing import codes_histogram, density_histogram
from activarium.analyses.features.recovered import MEAN, SAME, Draw, Spliced, recovered
from activarium.analyses.features.splicing import splice_of
from activarium.analyses.features.spread import groups_of
from activarium.dictionaries import SAE, FeatureDictionary, RowSource, as_dictionary, controls, rows_for
from activarium.dictionaries.dictionary import AT_ONCE
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Ranking, Report, Result


def dictionary_quality(
    dictionary: Any,
    recording: Recording,
    model: Runner | None = None,
    inputs: Any = None,
    *,
    site: str | None = None,
    target: str | None = None,
    exclude: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """How well does a dictionary give its rows back, and what does the model lose with it in place?

    One pass over the rows, in float64, for all dictionaries and controls together. A transcoder is held against the site it
    writes. Every figure stands beside that of random directions of the same kind and size, of the mean of the rows, and of the
    rows themselves; each has its definition in `diagnostics["definitions"]`. One dictionary at one sparsity says little: give
    several.

    Args:
        dictionary: A dictionary, or name → dictionary for several: ours, a sae-lens one, or a folder.
        recording: Rows of the sites, from a run or a store; others than it was trained on.
        model: Runs with the dictionary in place of the site.
        inputs: What it runs on; with labels, for a classifier: {"images": …, "label": …}.
        site: What is read, where the dictionary does not say.
        target: What is written, for a transcoder that does not say.
        exclude: Row kinds that are neither measured nor spliced; None takes those that training left out.
        confidence: Share of the draws inside an interval.
        resamples: How many times whole examples are drawn again.
        seed: Of the draws and of the random directions.
        progress: Show a bar.

    Returns:
        A report with `quality` (ranking by FVU; the controls are lines of it), `codes` (share of rows by their number of
        codes), `density` (features by the share of rows they fire in, log10; those that never fire have a bar of their own) and,
        with a model, `recovered` (ranking by KL to the full model; loss and KL recovered against zero and mean ablation of the
        same rows, agreement of top answers). Ends of intervals stand in columns `low` and `high`. The loss is known where a next
        token follows, in a model that sees no later rows, or where inputs have a label.

    Raises:
        InputError: Only one of `model` and `inputs` is given, no site is known, widths differ, or all rows are the same.
        OtherModel: Recording or model have other weights than the dictionary was trained on.
        UnknownSite: The recording does not hold the site.
        NotFinite: NaN or infinity in a row.

    Source:
        Variance and loss recovered: Gao et al. 2024, Scaling and evaluating sparse autoencoders, arXiv:2406.04093, section 3;
        bias: Rajamanoharan et al. 2024, Improving Dictionary Learning with Gated Sparse Autoencoders, arXiv:2404.16014, equation 10.

    Differs:
        FVU is one ratio over all rows, not a mean of ratios by row or batch, and not the variance of the residual, which a
        constant error leaves as it is. Ablations touch just the rows that the dictionary is put in: zeroing others as well would
        make any dictionary look better.

    Example:
        >>> model = act.load("scribe")
        >>> rec = model.run(["Anna gave Tom the book ."] * 8, read="blocks.1.resid_post")
        >>> recipe = act.dictionaries.Recipe(features=64, k=4)
        >>> made = act.dictionaries.train(rec, "blocks.1.resid_post", recipe, batch=16, steps=3, progress=False)
        >>> report = act.analyses.dictionary_quality(made.sae, rec)
        >>> report["quality"].names[0], report["quality"].values[0]
        ('the rows themselves', 0.0)
    """
    if (model is None) != (inputs is None):
        raise InputError("What a model loses needs both model= and inputs=. Give both, or neither.")
    named = _named(dictionary)
    where = {"site": site, "target": target, "exclude": exclude}
    draw = Draw(confidence, resamples, seed)
    passes = _passes(named, recording, where, seed)
    with progress_bar(progress, "measuring", sum(len(p.source) for p in passes), "rows") as advance:
        for one in passes:
            one.go(advance)
    lines = {name: figures for one in passes for name, figures in one.lines(draw, several=len(passes) > 1).items()}
    measured = {name: one.measured[name] for one in passes for name in one.measured}
    rows = {name: int(one.bare.spread.rows.sum()) for one in passes for name in one.measured}
    parts: dict[str, Result] = {
        "quality": _quality(lines, passes),
        "codes": codes_histogram({name: m.counts for name, m in measured.items()}),
        "density": density_histogram({name: (m.fires, rows[name]) for name, m in measured.items()}),
    }
    words = [_sentence(name, lines, rows[name]) for name in named]
    if model is not None:
        things: dict[str, Spliced] = {}
        for one in passes:
            for name, m in one.measured.items():
                splice = splice_of(m.dictionary, model, **where)
                things[name] = Spliced(splice, splice.reconstruction(), one.bare.spread.mean)
        table, doubts = recovered(model, inputs, things, draw, progress=progress)
        parts["recovered"] = table
        words += [*_losses(list(named), table), *doubts]
    notes = {"rows": rows, "rows left out": {n: dict(p.source.dropped) for p in passes for n in p.measured}, "seed": seed}
    return Report(parts, tuple(words), title="Quality of dictionaries", diagnostics=notes | {"confidence": confidence})


@dataclass(frozen=True, eq=False)
class _Pass:
    """Dictionaries that are measured on the same rows."""

    source: RowSource
    groups: np.ndarray
    bare: BareRows
    measured: dict[str, Fidelity]

    def go(self, advance: Any) -> None:
        widest = max(m.dictionary.width for m in self.measured.values())
        for index, x, y in self.source.pieces(int(np.clip(AT_ONCE // widest, 64, 4096))):
            owner = self.groups[index]
            self.bare.add(y, owner)
            for one in self.measured.values():
                one.add(x, y, owner)
            advance(len(index))
        self.bare.check((self.source.targets or self.source.inputs).site)

    def lines(self, draw: Draw, several: bool) -> dict[str, dict[str, float]]:
        at = f" ({(self.source.targets or self.source.inputs).site}, {len(self.source):,} rows)" if several else ""
        own = {f"{SAME}{at}": self.bare.own_figures(), f"the mean of the rows{at}": self.bare.mean_figures()}
        made = {n: m.figures(self.bare.spread, draw.confidence, draw.resamples, draw.seed) for n, m in self.measured.items()}
        return made | own


def _named(dictionary: Any) -> dict[str, FeatureDictionary]:
    given = dictionary if isinstance(dictionary, Mapping) else {"dictionary": dictionary}
    if not given:
        raise InputError("No dictionary was given. Give one, or a mapping from names to dictionaries.")
    return {str(name): as_dictionary(one) for name, one in given.items()}


def _passes(named: Mapping[str, FeatureDictionary], recording: Recording, where: Mapping[str, Any], seed: int) -> list[_Pass]:
    """Each dictionary with its random control; those that read the same rows go together."""
    found: dict[Any, _Pass] = {}
    for name, one in named.items():
        source = rows_for(one, recording, **where)
        key = (source.inputs.site, source.targets and source.targets.site, source.chosen.tobytes())
        if key not in found:
            groups = groups_of(source)
            found[key] = _Pass(source, groups, BareRows(one.d_out, int(groups.max()) + 1), {})
        count = len(found[key].bare.spread.rows)
        found[key].measured[name] = Fidelity(one, count)
        if isinstance(one, SAE):
            found[key].measured[f"random directions, as {name}"] = Fidelity(controls.random(one, seed), count)
    return list(found.values())


def _quality(lines: Mapping[str, Mapping[str, float]], passes: Sequence[_Pass]) -> Ranking:
    order = sorted(lines, key=lambda name: lines[name]["FVU"])
    names = next(list(figures) for figures in lines.values())
    columns = {c: np.array([lines[n].get(c, np.nan) for n in order]) for c in names if c != "FVU"}
    sites = sorted({(p.source.targets or p.source.inputs).site for p in passes})
    notes = {"definitions": dict(DEFINITIONS), "rows": sum(len(p.source) for p in passes) if len(passes) > 1 else len(passes[0].source)}
    title = f"What dictionaries leave unexplained of {', '.join(sites)}"
    return Ranking(tuple(order), np.array([lines[n]["FVU"] for n in order]), columns, title=title, unit="FVU", diagnostics=notes)


def _sentence(name: str, lines: Mapping[str, Mapping[str, float]], rows: int) -> str:
    here, random = lines[name], lines.get(f"random directions, as {name}")
    beside = f" (random directions {random['FVU']:.3g})" if random else ""
    dead = f"{here['dead']:,.0f} of {here['features']:,.0f} features never fire in {rows:,} rows"
    return (
        f"{name}: FVU {here['FVU']:.3g}{beside} with {here['codes per row']:.3g} codes per row; {dead}, "
        f"{here['dense > 0.1']:,.0f} fire in more than a tenth of them, {here['duplicates']:,.0f} write along an earlier one."
    )


def _losses(names: Sequence[str], table: Ranking) -> list[str]:
    at = {name: i for i, name in enumerate(table.names)}
    said = []
    for name in names:
        i = at[name]
        shares = [
            (word, table.columns.get(f"{word} recovered (zero)"), table.columns.get(f"{word} recovered (mean)")) for word in ("CE", "KL")
        ]
        words = [
            f"{100 * zero[i]:.3g} % of {word} against zero, {100 * mean[i]:.3g} % against {MEAN}"
            for word, zero, mean in shares
            if zero is not None and mean is not None
        ]
        said.append(f"{name} in its place recovers {'; '.join(words) or 'nothing that can be measured'} (KL {table.values[i]:.3g} nats).")
    return said
