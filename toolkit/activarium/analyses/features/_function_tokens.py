"""Function tokens: which token types reach how many features, beside what their frequency alone would reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from activarium.analyses.features.token_graph import TokenGraph, token_graph
from activarium.dictionaries import LiveCodes, as_dictionary, rows_for
from activarium.errors import InputError, unknown
from activarium.recording import Recording
from activarium.results import Graph, Grid, Ranking, Report, Result, Series

DRAWN = 2000  # edges of the graph that is drawn; the whole one is token_graph's
FEWEST = 2  # shuffles that an interval can be taken of


def function_tokens(
    dictionary: Any,
    recording: Recording,
    function: float | Sequence[str] = 0.01,
    *,
    shuffles: int = 40,
    site: str | None = None,
    exclude: Sequence[str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Do a few token types activate most features, and more than their frequency explains?

    A type and a feature are joined if the type activates the feature in any context. A frequent type has more contexts, so it reaches
    more features whatever it is. The null therefore draws anew which row is of which type, among the rows at each position: types keep
    frequency and positions and lose their features. A type that reaches about as many features as in the null has no features of its
    own, its codes are those of its surroundings; one far below has few and its own.

    Args:
        dictionary: A dictionary, a sae-lens SAE, or the folder of one.
        recording: Holds the site that it reads, of a language model: a run, a capture or a store, read once.
        function: What counts as a function token: types of at least this share of the rows, or a list of words.
        shuffles: How many times the types are drawn anew.
        site: Where the dictionary reads, if it does not say.
        exclude: Row kinds left out; None leaves out what its training left out.
        confidence: Share of the shuffles inside the intervals.
        seed: Draws the shuffles.
        progress: Show a bar.

    Returns:
        A report. `degrees`: log10 of the number of features of each type over log10 of its frequency rank, with the null's mean
        and interval. `coverage`: share of the seen features that the m most frequent types reach together, the same in the null, and that
        of the m types of most features. `tokens`: types by number of features, with frequency, the null's interval, and `of null`, features
        over the null's mean. `groups`: function and content tokens: types, share of rows, features reached, those that only they
        reach, the null's mean and interval, and `of null` of a row's type on average. `features`: by entropy in bits of the types they are active on,
        with the type that activates them most often. `graph`: the edges of most rows. The whole matrix, with
        counts and largest codes, is `activarium.analyses.features.token_graph.token_graph`.

    Raises:
        InputError: Rows that are no tokens, a share that is not between 0 and 1, fewer than two shuffles, no active feature, or
            a split with an empty side; see also `act.dictionaries.rows_for`.
        UnknownName: A word of the list does not occur.

    Source:
        arXiv:2510.08203 (the bipartite graph, degrees and coverage), there with Gemma-2 9B and 10 000 documents.

    Differs:
        The null and everything beside it are ours. The cutoff of frequency that splits function from content tokens is not
        established there; it is an argument here, or a list of words. No power law is fitted: the slope in the diagnostics is that of a line.

    Example:
        >>> model = act.load("scribe")
        >>> rec = model.run(["Anna gave Tom the book .", "Tom gave Anna the cup ."], read="blocks.2.resid_post")
        >>> identity = act.dictionaries.controls.identity(128)
        >>> found = act.analyses.function_tokens(identity, rec, ["the", "."], site="blocks.2.resid_post")
        >>> found["groups"].labels["group"]
        ('function', 'content')
    """
    if shuffles < FEWEST:
        raise InputError(f"shuffles={shuffles} give no interval; give {FEWEST} or more, 40 for one of 95 %.")
    features = as_dictionary(dictionary)
    source = rows_for(features, recording, site=site, exclude=exclude)
    made = token_graph(LiveCodes(source, features), shuffles=shuffles, seed=seed, progress=progress)
    if not made.counts.nnz:
        raise InputError(f"No feature is active in the {len(source):,} rows of {source.inputs.site}. Is the dictionary of another site?")
    chosen = _function(made, function)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    null = made.shuffled_degrees()
    parts: dict[str, Result] = {
        "degrees": _degrees(made, null, ends),
        "coverage": _coverage(made, ends),
        "tokens": _tokens(made, null, chosen, ends),
        "groups": _groups(made, null, chosen, ends),
        "features": _entropies(made),
        "graph": _graph(made, chosen),
    }
    notes: dict[str, Any] = {
        "site": source.inputs.site,
        "rows": len(source),
        "rows left out": dict(source.dropped),
        "types": len(made.names),
    }
    notes |= {"features": features.width, "features seen": int((_features(made) > 0).sum()), "edges": int(made.counts.nnz)}
    notes |= {"slope of log degree over log rank": _slope(made), "shuffles": shuffles, "confidence": confidence, "seed": seed}
    return Report(parts, tuple(_words(made, parts, notes)), title="Function tokens", diagnostics=notes)


def _function(made: TokenGraph, function: float | Sequence[str]) -> np.ndarray:
    """Which types are function tokens."""
    if isinstance(function, (int, float)):
        if not 0 < function < 1:
            raise InputError(
                f"function={function} is the share of the rows from which on a type counts; give one between 0 and 1, or a list of words."
            )
        chosen = made.occurrences >= function * made.occurrences.sum()
    else:
        words = [function] if isinstance(function, str) else [str(w) for w in function]
        known = {name.strip() for name in made.names}
        missing = next((w for w in words if w.strip() not in known), None)
        if missing is not None:
            raise unknown("token in these rows", missing, [made.names[i] for i in made.order])
        chosen = np.array([name.strip() in {w.strip() for w in words} for name in made.names])
    if chosen.all() or not chosen.any():
        raise InputError(
            f"{chosen.sum()} of {len(chosen)} types are function tokens, so there is nothing to compare. Choose another function=."
        )
    return chosen


def _features(made: TokenGraph) -> np.ndarray:
    """Rows in which each feature is active."""
    return np.asarray(made.counts.sum(0)).ravel()


def _degrees(made: TokenGraph, null: np.ndarray, ends: list[float]) -> Series:
    order = made.order
    with np.errstate(divide="ignore"):
        low, high = np.log10(np.quantile(null[:, order], ends, axis=0))
        curves = {"features": np.log10(made.degrees[order].astype(float)), "shuffled": np.log10(null[:, order].mean(0))}
    x = np.log10(np.arange(1, len(order) + 1))
    band = {"shuffled": np.stack([low, high])}
    return Series(x, curves, "log10 of frequency rank", band, title="Features that each token type activates", unit="log10 of features")


def _coverage(made: TokenGraph, ends: list[float]) -> Series:
    seen = max(1, int((_features(made) > 0).sum()))
    order, by_degree = made.order, np.argsort(-made.degrees, kind="stable")
    drawn = np.stack([made.coverage(order, s) for s in range(len(made.shuffled))]) / seen
    curves = {
        "most frequent types": made.coverage(order) / seen,
        "shuffled": drawn.mean(0),
        "types of most features": made.coverage(by_degree) / seen,
    }
    x = np.arange(1, len(order) + 1)
    band = {"shuffled": np.quantile(drawn, ends, axis=0)}
    return Series(x, curves, "token types", band, title="Features that the first types reach together", unit="share of features seen")


def _tokens(made: TokenGraph, null: np.ndarray, chosen: np.ndarray, ends: list[float]) -> Ranking:
    order = np.lexsort((np.arange(len(made.names)), -made.occurrences, -made.degrees))
    low, high = np.quantile(null, ends, axis=0)
    columns = {
        "rows": made.occurrences[order],
        "share of rows": made.occurrences[order] / made.occurrences.sum(),
        "null low": low[order],
        "null high": high[order],
        "of null": _of_null(made, null)[order],
        "function": chosen[order],
    }
    return Ranking(
        tuple(made.names[i] for i in order),
        made.degrees[order],
        columns,
        title="Token types by the features they activate",
        unit="features",
    )


def _of_null(made: TokenGraph, null: np.ndarray) -> np.ndarray:
    mean = null.mean(0)
    return np.divide(made.degrees, mean, out=np.full(len(mean), np.nan), where=mean > 0)


def _groups(made: TokenGraph, null: np.ndarray, chosen: np.ndarray, ends: list[float]) -> Grid:
    reached = [np.asarray(made.edges[group].sum(0)).ravel() for group in (chosen, ~chosen)]
    seen = max(1, int((_features(made) > 0).sum()))
    ratio, width = _of_null(made, null), made.counts.shape[1]
    lines = []
    for i, group in enumerate((chosen, ~chosen)):
        drawn = np.array([len(np.unique(keys[group[keys // width]] % width)) for keys in made.shuffled]) / seen
        rows = made.occurrences[group]
        known = np.isfinite(ratio[group])
        mean = float(np.average(ratio[group][known], weights=rows[known])) if known.any() else float("nan")
        alone = ((reached[i] > 0) & (reached[1 - i] == 0)).sum() / seen
        lines.append(
            [
                group.sum(),
                rows.sum() / made.occurrences.sum(),
                (reached[i] > 0).sum() / seen,
                alone,
                drawn.mean(),
                *np.quantile(drawn, ends),
                mean,
            ]
        )
    figures = ("types", "share of rows", "features reached", "reached by no other", "null", "null low", "null high", "of null")
    labels = {"group": ("function", "content"), "figure": figures}
    return Grid(np.array(lines, dtype=float), ("group", "figure"), labels, title="Function and content tokens", unit="types, or share")


def _entropies(made: TokenGraph) -> Ranking:
    """Over which types the rows of a feature are spread."""
    table = made.counts.tocsc()
    fires = _features(made)
    entropy, most = np.full(len(fires), np.nan), np.full(len(fires), -1)
    for f in np.flatnonzero(fires):
        here = slice(table.indptr[f], table.indptr[f + 1])
        share = table.data[here] / fires[f]
        entropy[f] = -(share * np.log2(share)).sum()
        most[f] = table.indices[here][share.argmax()]
    order = [int(f) for f in np.argsort(-np.nan_to_num(entropy, nan=-1), kind="stable") if fires[f]]
    columns = {
        "rows": fires[order],
        "types": np.diff(table.indptr)[order],
        "most often on": np.array([made.names[most[f]] for f in order], dtype=object),
        "share of its rows": np.array([table[most[f], f] / fires[f] for f in order]),
    }
    return Ranking(
        tuple(f"feature {f}" for f in order), entropy[order] + 0.0, columns, title="How many types activate a feature", unit="bits"
    )


def _graph(made: TokenGraph, chosen: np.ndarray) -> Graph:
    table = made.counts.tocoo()
    order = np.lexsort((table.col, table.row, -table.data))[:DRAWN]
    types, features = np.unique(table.row[order]), np.unique(table.col[order])
    edges = np.stack([np.searchsorted(types, table.row[order]), len(types) + np.searchsorted(features, table.col[order])], 1)
    kind = np.array([*("function" if chosen[t] else "content" for t in types), *["feature"] * len(features)], dtype=object)
    layer = np.r_[np.zeros(len(types), int), np.ones(len(features), int)]
    names = (*(made.names[t] for t in types), *(f"feature {f}" for f in features))
    largest = np.asarray(made.largest[table.row[order], table.col[order]]).ravel()
    title = f"Token types and features, the {len(order):,} of {made.counts.nnz:,} edges of most rows"
    return Graph(
        names,
        edges,
        table.data[order],
        None,
        {"layer": layer, "kind": kind},
        title=title,
        unit="rows",
        diagnostics={"largest code": largest},
    )


def _slope(made: TokenGraph) -> float:
    some = made.degrees[made.order] > 0
    if some.sum() < FEWEST + 1:
        return float("nan")
    rank = np.log10(np.arange(1, len(some) + 1))[some]
    return float(np.polyfit(rank, np.log10(made.degrees[made.order][some]), 1)[0])


def _words(made: TokenGraph, parts: dict[str, Result], notes: dict[str, Any]) -> list[str]:
    groups, coverage = parts["groups"], parts["coverage"]
    assert isinstance(groups, Grid)
    assert isinstance(coverage, Series)
    figures = dict(zip(groups.label("figure"), np.asarray(groups.values).T, strict=True))
    first = min(10, len(made.names))
    held, null = coverage.curves["most frequent types"][first - 1], coverage.bands["shuffled"][:, first - 1]
    said = [
        f"The {first} most frequent of {len(made.names):,} types reach {held:.0%} of the {notes['features seen']:,} features seen; "
        f"with types shuffled within positions {null[0]:.0%} to {null[1]:.0%}."
    ]
    said.append(
        "So their frequency explains it."
        if null[0] <= held <= null[1]
        else "That is more than frequency explains."
        if held > null[1]
        else "That is less than so many rows of any type would: their features are partly their own."
    )
    for i, group in enumerate(("function", "content")):
        said.append(
            f"{group.capitalize()} tokens: {int(figures['types'][i]):,} types, {figures['share of rows'][i]:.0%} of the rows, {figures['features reached'][i]:.0%} of the "
            f"features (null {figures['null low'][i]:.0%} to {figures['null high'][i]:.0%}), {figures['reached by no other'][i]:.0%} by them alone; "
            f"a row's type has {figures['of null'][i]:.2f} times the features of the null."
        )
    return said
