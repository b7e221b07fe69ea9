"""Concept detection: does any direction of a dictionary tell sentences with a concept from those without?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features.sentence_scores import Apart, auc_of_each, draws_of, highest_cosines, mean_rows, owners
from activarium.dictionaries import FeatureDictionary, Origin, RowSource, as_dictionary, rows_for
from activarium.dictionaries.rows import EXCLUDED
from activarium.errors import InputError, UnknownSite, unknown
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report

MEANS, RANDOM = "difference in means", "random"


def concept_detection(
    dictionaries: Mapping[str, Any],
    recording: Recording,
    labels: Sequence[Any],
    *,
    site: str | None = None,
    neutral: Any = None,
    exclude: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """Does one direction tell sentences that show a concept from those that do not?

    A sentence's score for a direction is the largest cosine of any of its rows with it (of an image: of any of its patches). For each
    concept one half of the sentences chooses the direction of each dictionary with the highest AUC, and the other half measures
    it, so that having many directions to choose from is no advantage in the measurement. Beside them stand the difference in
    means of the first half's rows, and as many random directions as the largest dictionary has, chosen in the same way.

    Args:
        dictionaries: Name → a dictionary, or a table of directions `feature d` of `site`. Each is read at its own site; where there are several
            sites, each has its own difference in means and random directions.
        recording: Holds the sites.
        labels: What each example shows, in the order of examples; each different label is a concept. True and False are one concept.
        site: Where tables of directions belong, and dictionaries that do not say.
        neutral: The label of sentences that show none, which every concept is told from; None tells each from all others.
        exclude: Row kinds that are left out; None leaves out what each dictionary's training did.
        confidence: Share of the resamples inside the intervals.
        resamples: How often sentences are drawn again.
        seed: Halves, random directions, resamples.

    Returns:
        A report with `methods` (ranking by mean AUC over concepts, with its interval and those of its distance to every method listed
        first), `AUC` (grid, method by concept), and `directions` (ranking of method and concept: AUC on the second half with its
        interval, the difference of mean scores, which direction was chosen and its AUC on the first half).

    Raises:
        InputError: Labels that do not fit, a concept with too few sentences in a half, or a site that is not told.
        UnknownSite: The recording does not hold a site.
        OtherModel: A dictionary is of a model with other weights.

    Source:
        Shafran et al. 2025, arXiv:2506.10920, section on concept detection.

    Differs:
        How the paper aggregates to its single score is not established; here it is AUC on sentences that chose nothing. The paper takes five
        sentences of each kind that a language model wrote for a factor's description; here labels say what sentences show. Random
        directions and intervals are ours.

    Example:
        >>> model = act.load("scribe")
        >>> from activarium.data import corpus
        >>> texts = [e.text for f in ("ioi", "brackets") for e in corpus.held_out(f, 0, 8)]
        >>> rec = model.run(texts, read="blocks.1.mlp.post")
        >>> snmf = act.dictionaries.factorise(rec, "blocks.1.mlp.post", features=4, share=0.05, steps=5, progress=False).snmf
        >>> act.analyses.concept_detection({"SNMF": snmf}, rec, ["ioi"] * 8 + ["brackets"] * 8)["AUC"].values.shape
        (3, 2)
    """
    methods = _methods(dictionaries, recording, site, exclude)
    examples, kinds, concepts = _labelled(next(iter(methods.values())).source, labels, neutral)
    first = _half(kinds, seed)
    _check_halves(kinds, first, concepts, neutral)
    sources = {m.where: m.source for m in methods.values()}
    several = len(sources) > 1
    rivals = {}
    for where, source in sources.items():
        count = max(len(m.directions) for m in methods.values() if m.where == where)
        drawn = torch.randn(count, source.width, generator=torch.Generator().manual_seed(seed))
        rivals[f"{RANDOM} ({where})" if several else RANDOM] = _Method(source, drawn, where)
    scores = {name: highest_cosines(m.source, m.directions, examples) for name, m in (methods | rivals).items()}
    lines = []
    for concept in concepts:
        shows = np.array([k == concept for k in kinds])
        counted = shows | (np.array([k == neutral for k in kinds]) if neutral is not None else ~shows)
        learn, test = counted & first, counted & ~first
        draws = draws_of(int((shows & test).sum()), int((~shows & test).sum()), resamples, seed)
        for name, found in scores.items():
            aucs = auc_of_each(np.nan_to_num(found[learn], nan=-2.0), shows[learn])
            best = int(np.argmax(aucs))
            lines.append(_line(name, concept, found[test, best], shows[test], draws, chosen=best, learnt=float(aucs[best])))
        for where, source in sources.items():
            means = mean_rows(source, examples[learn & shows]) - mean_rows(source, examples[learn & ~shows])
            found = highest_cosines(source, means[None], examples)[:, 0]
            learnt = float(auc_of_each(np.nan_to_num(found[learn, None], nan=-2.0), shows[learn])[0])
            lines.append(
                _line(f"{MEANS} ({where})" if several else MEANS, concept, found[test], shows[test], draws, chosen=0, learnt=learnt)
            )
    return _report(lines, concepts, confidence, {"sentences": len(kinds), "seed": seed, "neutral": str(neutral), "sites": list(sources)})


@dataclass(frozen=True, eq=False)
class _Method:
    source: RowSource
    directions: Tensor
    where: str


@dataclass(frozen=True, eq=False)
class _Line:
    method: str
    concept: str
    auc: float
    gap: float
    chosen: int
    learnt: float
    again: np.ndarray


def _line(
    name: str, concept: Any, scores: np.ndarray, shows: np.ndarray, draws: tuple[np.ndarray, np.ndarray], *, chosen: int, learnt: float
) -> _Line:
    apart = Apart.of(np.nan_to_num(scores, nan=-2.0), shows)
    return _Line(name, str(concept), apart.auc, apart.gap, chosen, learnt, apart.again(draws))


def _methods(dictionaries: Mapping[str, Any], recording: Recording, site: str | None, exclude: Sequence[str] | None) -> dict[str, _Method]:
    if not dictionaries:
        raise InputError('No dictionary to ask. Give a name and a dictionary each: {"SNMF": snmf}.')
    made = {}
    for name, thing in dictionaries.items():
        if isinstance(thing, Tensor):
            if not site:
                raise InputError(f"{name!r} is a table of directions, which does not say where it belongs: give site='blocks.3.mlp.post'.")
            if site not in recording:
                raise unknown("site in this recording", site, list(recording), UnknownSite)
            source = RowSource(recording[site], exclude=EXCLUDED if exclude is None else exclude)
            if thing.ndim != 2 or thing.shape[1] != source.width:
                raise InputError(f"{name!r} has shape {tuple(thing.shape)}; directions at {site} are 'feature {source.width}'.")
            made[name] = _Method(source, thing, site)
            continue
        dictionary: FeatureDictionary = as_dictionary(thing)
        if dictionary.transcoder:
            raise InputError(
                f"{name!r} is a transcoder: its directions belong to {dictionary.origin.target or 'another site'}. Give them as a table."
            )
        origin: Origin = dictionary.origin
        made[name] = _Method(
            rows_for(dictionary, recording, site=site if not origin.site else None, exclude=exclude),
            dictionary.directions,
            origin.site or str(site),
        )
    return made


def _labelled(source: RowSource, labels: Sequence[Any], neutral: Any) -> tuple[np.ndarray, list[Any], list[Any]]:
    """Numbers of the examples, what each shows, and the concepts."""
    examples = np.unique(owners(source))
    kinds = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if len(kinds) != len(examples):
        raise InputError(f"There are {len(kinds)} labels for {len(examples)} examples; give one each, in their order.")
    if neutral is not None and neutral not in kinds:
        raise InputError(f"No example is labelled {neutral!r}. Labels: {', '.join(map(str, dict.fromkeys(kinds)))}.")
    different = list(dict.fromkeys(kinds))
    concepts = [True] if set(different) == {True, False} else [k for k in different if k != neutral or neutral is None]
    if len(different) < 2:
        raise InputError(
            f"All examples are labelled {different[0] if different else 'nothing'}; a concept is told from sentences without it."
        )
    return examples, kinds, concepts


def _half(kinds: Sequence[Any], seed: int) -> np.ndarray:
    """Half of the sentences of each label, by chance."""
    generator, chosen = np.random.default_rng(seed), np.zeros(len(kinds), bool)
    for kind in dict.fromkeys(kinds):
        here = generator.permutation(np.flatnonzero([k == kind for k in kinds]))
        chosen[here[: len(here) // 2]] = True
    return chosen


def _check_halves(kinds: Sequence[Any], first: np.ndarray, concepts: Sequence[Any], neutral: Any) -> None:
    for concept in [*concepts, *([] if neutral is None else [neutral])]:
        count = sum(k == concept for k in kinds)
        if count < 4:
            raise InputError(
                f"{concept!r} is shown by {count} examples; at least 4 are needed, two to choose directions and two to measure them."
            )


def _report(lines: list[_Line], concepts: Sequence[Any], confidence: float, notes: dict[str, Any]) -> Report:
    ends = [50 * (1 - confidence), 100 - 50 * (1 - confidence)]
    names = list(dict.fromkeys(line.method for line in lines))
    mean = np.array([np.mean([x.auc for x in lines if x.method == name]) for name in names])
    again = np.stack([np.mean([x.again for x in lines if x.method == name], axis=0) for name in names])
    order = np.argsort(-mean, kind="stable")
    low, high = np.percentile(again, ends, axis=1)
    apart_low, apart_high = np.percentile(again - again[0], ends, axis=1)
    columns = {"low": low, "high": high, f"less {names[0]}": mean - mean[0], "less, low": apart_low, "less, high": apart_high}
    each = sorted(range(len(lines)), key=lambda i: (-lines[i].auc, i))
    bounds = np.array([np.percentile(line.again, ends) for line in lines])
    grid = np.array([[next(x.auc for x in lines if x.method == n and x.concept == str(c)) for c in concepts] for n in names])
    parts = {
        "methods": Ranking(
            tuple(names[i] for i in order),
            mean[order],
            {k: v[order] for k, v in columns.items()},
            title="Detection over all concepts",
            unit="mean AUC",
        ),
        "AUC": Grid(
            grid,
            ("method", "concept"),
            {"method": names, "concept": [str(c) for c in concepts]},
            title="AUC by method and concept",
            unit="AUC",
        ),
        "directions": Ranking(
            tuple(f"{lines[i].method}: {lines[i].concept}" for i in each),
            np.array([lines[i].auc for i in each]),
            {
                "low": bounds[each, 0],
                "high": bounds[each, 1],
                "difference of mean scores": np.array([lines[i].gap for i in each]),
                "direction": np.array([lines[i].chosen for i in each]),
                "AUC where chosen": np.array([lines[i].learnt for i in each]),
            },
            title="The chosen directions",
            unit="AUC",
        ),
    }
    best = order[0]
    notes = notes | {
        "score": "largest cosine of any row of the sentence with the direction; how the paper aggregates to its single score is not established",
        "AUC means": "share of pairs in which the sentence that shows the concept scores higher; 0.5 by chance",
        "confidence": confidence,
    }
    words = [f"{names[best]} detects best: mean AUC {mean[best]:.3f} ({low[best]:.3f} to {high[best]:.3f}) over {len(concepts)} concepts."]
    words += [
        f"{names[i]}: {mean[i]:.3f} ({low[i]:.3f} to {high[i]:.3f}), {mean[i] - mean[0]:+.3f} beside {names[0]} ({apart_low[i]:+.3f} to {apart_high[i]:+.3f})."
        for i in order
        if i != 0
    ]
    return Report(parts, tuple(words), title="Concept detection", diagnostics=notes)
