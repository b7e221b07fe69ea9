"""Label ontology: whether classes that belong together have like codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from activarium.analyses.features import class_trees
from activarium.analyses.features.class_trees import Ontology, Permuted
from activarium.analyses.features.example_codes import CODES, RANDOM, ROWS, ExampleCodes, example_codes
from activarium.errors import InputError
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result, Series

COSINE, CENTRED, JACCARD, TREE = "cosine", "centred cosine", "Jaccard of top features", "tree of cosines"
FEWEST = 3  # classes: two have a single distance


def label_ontology(
    dictionary: Any,
    recording: Recording,
    labels: Sequence[Any],
    ontology: Ontology | None = None,
    *,
    nested: bool = True,
    top: int = 20,
    site: str | None = None,
    exclude: Sequence[str] | None = None,
    permutations: int = 5000,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Report:
    """Do the codes of classes recover how the classes are related?

    The profile of a class is the mean over its examples of an example's mean code. Distances between profiles are compared with
    those of an ontology, and the same is done with mean activations and with the codes of a dictionary of random directions:
    related classes mostly look alike before any dictionary, so only a gain over these two speaks for the features.

    Args:
        dictionary: A dictionary, a sae-lens SAE, or the folder of one.
        recording: Holds the site that it reads.
        labels: Class of each example of the recording, in its order.
        ontology: For each class its path from the root, `{"cat": ("animal", "pet"), …}`, all of one length; or distances between the
            classes in sorted order. None makes the tree alone.
        nested: Paths are read from the root: two classes are as far apart as they have words from the first different one on. False
            counts different words wherever they stand (attributes without an order).
        top: How many of a profile's largest features the Jaccard distance compares.
        site: Where the dictionary reads, if it does not say.
        exclude: Row kinds left out of the means; None leaves out what its training left out.
        permutations: How often the classes are permuted; where they have no more permutations than that, all are looked at.
        confidence: Share of the resamples inside the intervals.
        resamples: How many times the examples of each class are drawn again.
        seed: Draws the random dictionary, permutations and resamples.

    Returns:
        A report. `tree`: average-linkage tree of the codes' cosine distances. `distances`: those distances, `class other`. With an
        ontology, `agreement`: Pearson correlation of each space's distances with the ontology's over pairs of classes, its
        interval over examples, and the chance of as large a one when classes are permuted (one-sided), for the cosine distance,
        the cosine distance of profiles minus their mean, the Jaccard distance of top features, and the cophenetic distance of
        the tree; `gain`: that of codes minus that of the other spaces, with paired intervals; `null`: distribution under permutation for the
        codes' cosine. The diagnostics hold `groups found`, the share of the ontology's groups that the tree has (None where
        the ontology is no tree), and `halves`, the correlation of the distances that two halves of the examples give.

    Raises:
        InputError: Fewer than three classes, a class of one example, or an ontology that does not fit the classes; see also
            `act.dictionaries.rows_for`.

    Source:
        The claim that codes of vision models recover a label ontology: arXiv:2508.11277. Its distance and score are not established
        here. Mantel 1967, The Detection of Disease Clustering and a Generalized Regression Approach (permutation test); Sokal &
        Rohlf 1962, The Comparison of Dendrograms by Objective Methods (cophenetic correlation).

    Differs:
        Drawing examples again adds noise to the profiles, so intervals lie a little low where classes have few examples.

    Example:
        >>> unit, rows, sizes = planted_rows(60, width=8, atoms=8)
        >>> rec = recording_of({"blocks.0.resid_post": rows}, example=list(range(60)))
        >>> identity = act.dictionaries.controls.identity(8)
        >>> paths = {"a": ("one", "a"), "b": ("one", "b"), "c": ("two", "c")}
        >>> found = act.analyses.label_ontology(identity, rec, list("abc") * 20, paths, site="blocks.0.resid_post", resamples=10)
        >>> found["distances"].axes, len(found["tree"].nodes)
        (('class', 'other'), 5)
    """
    made = example_codes(dictionary, recording, site=site, exclude=exclude, seed=seed)
    names, owner = _classes(made.column([str(v) for v in labels], "labels"))
    distances = {space: _distances(_means(values, owner), top, space) for space, values in made.spaces.items()}
    links, cophenetic = class_trees.tree(distances[CODES][COSINE])
    own = class_trees.pearson(class_trees.upper(cophenetic), class_trees.upper(distances[CODES][COSINE]))
    parts: dict[str, Result] = {
        "tree": class_trees.tree_graph(links, names),
        "distances": Grid(
            distances[CODES][COSINE],
            ("class", "other"),
            {"class": names, "other": names},
            title="How far apart the classes' codes are",
            unit="1 − cosine",
        ),
    }
    notes = {
        **made.diagnostics,
        "classes": names,
        "cophenetic correlation with its own distances": own,
        "confidence": confidence,
        "seed": seed,
    }
    notes["halves"] = _halves(made.spaces[CODES], owner, seed)
    words = [
        f"The tree keeps the distances it was made of with correlation {own:.2f}; two halves of the examples agree with {notes['halves']:.2f}."
    ]
    if ontology is not None:
        wanted = class_trees.ontology_distances(ontology, names, nested)
        tests = {
            (space, m): class_trees.mantel(apart, wanted, permutations, seed)
            for space, measures in distances.items()
            for m, apart in measures.items()
        }
        drawn = _drawn(made, owner, wanted, top, resamples, seed)
        more, said = _compared(tests, drawn, confidence)
        parts |= more
        words += said
        groups = class_trees.clades(wanted) if _is_tree(wanted) else None
        notes["groups found"] = _share(groups, cophenetic)
        notes["all permutations"] = tests[CODES, COSINE].exact
        if groups:
            words.append(f"Of the ontology's {len(groups)} groups of classes, the tree has {notes['groups found']:.0%}.")
    return Report(parts, tuple(words), title="Label ontology", diagnostics=notes)


def _classes(labels: np.ndarray) -> tuple[list[str], np.ndarray]:
    names, owner = np.unique(labels, return_inverse=True)
    counts = np.bincount(owner)
    if len(names) < FEWEST:
        raise InputError(f"There are {len(names)} classes; {FEWEST} are the least whose relations can be told. Give labels of more.")
    if counts.min() < 2:
        raise InputError(
            f"Class {str(names[counts.argmin()])!r} has one example, so its profile has no interval. Record at least two of each."
        )
    return [str(n) for n in names], owner


def _means(values: np.ndarray, owner: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """`class feature`, each example counted as often as its weight says."""
    counted = np.ones(len(owner)) if weights is None else weights
    table = np.zeros((int(owner.max()) + 1, len(owner)))
    table[owner, np.arange(len(owner))] = counted
    return table @ values / table.sum(1, keepdims=True)


def _distances(profiles: np.ndarray, top: int, space: str) -> dict[str, np.ndarray]:
    cosine = class_trees.cosine_distances(profiles)
    made = {COSINE: cosine, CENTRED: class_trees.cosine_distances(profiles - profiles.mean(0))}
    if space != ROWS:  # activations have no features that are on or off
        made[JACCARD] = class_trees.jaccard_distances(profiles, top)
    return made | {TREE: class_trees.tree(cosine)[1]}


def _halves(values: np.ndarray, owner: np.ndarray, seed: int) -> float:
    """Do two halves of each class's examples give the same distances?"""
    half = np.zeros(len(owner), bool)
    generator = np.random.default_rng([seed, 2])
    for c in range(owner.max() + 1):
        own = generator.permutation(np.flatnonzero(owner == c))
        half[own[: len(own) // 2]] = True
    found = [class_trees.upper(class_trees.cosine_distances(_means(values[h], owner[h]))) for h in (half, ~half)]
    return class_trees.pearson(*found)


def _drawn(
    made: ExampleCodes, owner: np.ndarray, wanted: np.ndarray, top: int, resamples: int, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """Correlation with the ontology of each resample of the examples, with the same draws for every space and measure."""
    found: dict[tuple[str, str], list[float]] = {}
    fixed = class_trees.upper(wanted)
    for weights in _draws(owner, resamples, seed):
        for space, values in made.spaces.items():
            for measure, apart in _distances(_means(values, owner, weights), top, space).items():
                found.setdefault((space, measure), []).append(class_trees.pearson(class_trees.upper(apart), fixed))
    return {key: np.array(values) for key, values in found.items()}


def _draws(owner: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng([seed, 3])
    own = [np.flatnonzero(owner == c) for c in range(int(owner.max()) + 1)]
    for _ in range(resamples):
        weights = np.zeros(len(owner))
        for examples in own:
            weights[examples] = generator.multinomial(len(examples), np.full(len(examples), 1 / len(examples)))
        yield weights


def _compared(
    tests: dict[tuple[str, str], Permuted], drawn: dict[tuple[str, str], np.ndarray], confidence: float
) -> tuple[dict[str, Result], list[str]]:
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    keys = list(tests)
    low, high = np.array([_ends(drawn[k], ends) for k in keys]).T
    columns = {"low": low, "high": high, "chance": np.array([tests[k].chance for k in keys])}
    values = np.array([tests[k].value for k in keys])
    agreement = Ranking(
        tuple(f"{m}, {space}" for space, m in keys),
        values,
        columns,
        title="Agreement with the ontology",
        unit="correlation over pairs of classes",
    )
    pairs = [(other, m) for other in (ROWS, RANDOM) for m in (COSINE, CENTRED, JACCARD, TREE) if (other, m) in tests]
    gains = np.array([tests[CODES, m].value - tests[other, m].value for other, m in pairs])
    apart = [_ends(drawn[CODES, m] - drawn[other, m], ends) for other, m in pairs]
    below, above = np.array(apart).T
    gain = Ranking(
        tuple(f"{m}: {CODES} − {other}" for other, m in pairs),
        gains,
        {"low": below, "high": above},
        title="What the codes add",
        unit="difference of correlation",
    )
    main = tests[CODES, COSINE]
    said = [
        f"{COSINE} of {space}: correlation {tests[space, COSINE].value:.2f}, chance {tests[space, COSINE].chance:.2g}."
        for space in (CODES, ROWS, RANDOM)
    ]
    return {"agreement": agreement, "gain": gain, "null": _null(main)}, said


def _ends(values: np.ndarray, ends: list[float]) -> np.ndarray:
    kept = values[np.isfinite(values)]
    return np.quantile(kept, ends) if len(kept) else np.full(2, np.nan)


def _null(found: Permuted) -> Series:
    counts, edges = np.histogram(found.null[np.isfinite(found.null)], bins=40, range=(-1, 1))
    share = counts / max(1, counts.sum())
    return Series(
        (edges[:-1] + edges[1:]) / 2,
        {"permuted classes": share},
        "correlation",
        title=f"Agreement of permuted classes; measured {found.value:.2f}",
        unit="share of permutations",
    )


def _is_tree(wanted: np.ndarray) -> bool:
    """Is it an ultrametric: of any three distances the two largest are equal?"""
    through = np.maximum(wanted[:, :, None], wanted[None]).min(1)
    return bool((wanted <= through * (1 + 1e-9) + 1e-12).all())


def _share(groups: set[frozenset[int]] | None, cophenetic: np.ndarray) -> float | None:
    if not groups:
        return None
    return len(groups & class_trees.clades(cophenetic)) / len(groups)
