"""Dictionary control: whether editing what a dictionary says of a row does what another input would have done there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features.feature_edits import FOLDS, Aware, Coded
from activarium.analyses.features.node_rows import Bench, Nodes, Place, check_affine, nodes_of, sites_of
from activarium.dictionaries import SupervisedDictionary
from activarium.dictionaries.attributes import Attributes, Value, plain
from activarium.errors import InputError
from activarium.maths import bootstrap_interval
from activarium.pairs import Pairs
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.results import Report, Series

COUNTS = (1, 2, 4, 8)
NOTHING = "no edit"
DEFINITIONS = {
    "accuracy": "share of pairs whose top answer after the edit is that after full patching: the counterfactual row in the place of the clean one",
    "where it matters": "the same over the pairs in which full patching changes the top answer; no edit scores 0 there",
    "magnitude": "sum over removed features of w_i = f_i W_i·(x̂ − b)/‖x̂ − b‖², the share of x̂ − b that they make; w_i are 0 where it is 0; mean over nodes and pairs",
    "distance": "‖edited − counterfactual‖ / ‖clean − counterfactual‖ of the node's rows, mean over nodes and pairs",
    "greedy": "of all features that differ, up to n that bring the row nearest to the counterfactual row (knows it, knows no meaning)",
    "aware": "for each attribute that is edited, the n active features of highest F1 for the old value go, the n of highest F1 for the new one come "
    "with the codes that they have in the counterfactual row; F1 is taken on the other pairs (five parts)",
    "swap": "x − u_{a,v} + u_{a,v'}",
    "project": "x less all it has along u_{a,v}, plus u_{a,v'}",
}
Row = dict[str, np.ndarray]  # measure → one number per pair


def dictionary_control(
    model: Runner,
    pairs: Pairs,
    dictionaries: Mapping[str, Any],
    attributes: Attributes,
    changed: Attributes,
    place: Place = "END",
    *,
    counts: Sequence[int] = COUNTS,
    batch: int = 64,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Does editing what a dictionary says of a row do what another input would have done there?

    The corrupted input of each pair is its counterfactual: the same sentence with one attribute (or several) of another value. The
    model's own answer to that is known: put the counterfactual row in the place of the clean one (full patching). An edit is right where
    the model then says the same. Pairs in which full patching changes nothing are right without any edit, so they are also left out.

    Args:
        model: The model; left as it was.
        pairs: Clean inputs, and as corrupted ones their counterfactuals.
        dictionaries: Name → a dictionary, or a list of dictionaries of different sites, edited at once. Supervised ones are edited by
            attribute (`swap` and `project`), others by features (`greedy` and `aware`). Put a random dictionary beside them.
        attributes: Attribute → the value in each clean input.
        changed: Attribute → the value in each corrupted input; an attribute is edited where the two differ.
        place: Which row of each example the node is: a name in `pairs.places`, a position, or one position for each pair.
        counts: How many features may be changed (`aware`: removed and added for each attribute).
        batch: Pairs in one forward.
        confidence: Share of resampled pairs inside the intervals.
        resamples: How many times the pairs are drawn again.
        seed: Draws the pairs, and the parts on which F1 is taken.
        progress: Show a bar.

    Returns:
        A report of series over the number of features, with intervals: `where it matters` and `accuracy` (shares of pairs), `magnitude`
        (share of the reconstruction that was removed) and `distance`. Curves are `NAME greedy`, `NAME aware`, for supervised ones the
        constant `NAME swap` and `NAME project`, and `no edit`. `diagnostics` has the definitions and how often full patching changes the answer.

    Raises:
        InputError: A dictionary does not fit, attributes do not fit the pairs or differ nowhere, a count is below 1, or a dictionary rescales rows.
        OtherModel: A dictionary was trained on other weights.

    Source:
        Makelov, Lange & Nanda 2024, Towards Principled Evaluations of Sparse Autoencoders, arXiv:2405.08366, section 4.2.

    Differs:
        F1 is never taken on the pair that is edited; the weights are guarded where nothing is written; the distance, the intervals and the
        pairs in which it matters are ours. All features outside the edit, and the error, stay.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> pairs = act.pairs(model, ["Anna saw the cat", "Tom saw a dog"], ["Tom saw the cat", "Anna saw a dog"], answers=["Anna", "Tom"], foils=["Tom", "Anna"])
        >>> same = act.dictionaries.controls.identity(32, act.dictionaries.Origin(site="blocks.1.resid_post"))
        >>> known, wanted = {"who": ["Anna", "Tom"]}, {"who": ["Tom", "Anna"]}
        >>> act.analyses.dictionary_control(model, pairs, {"rows": same}, known, wanted, -1, counts=[64])["accuracy"].curves["rows greedy"].tolist()
        [1.0]
    """
    nodes, bench = nodes_of(model, dictionaries), Bench.of(model, pairs, place, batch)
    known, wanted = plain(attributes, len(pairs)), plain(changed, len(pairs))
    _check(nodes, known, wanted, counts)
    sites = sites_of(nodes)
    clean, other = bench.read(sites), bench.read(sites, corrupt=True)
    x = sorted(set(counts))
    fold = np.random.default_rng(seed).permutation(len(pairs)) % FOLDS
    made: dict[str, list[Row]] = {}
    with progress_bar(progress, "editing", sum(2 if one.supervised else 2 * len(x) for one in nodes), "edits") as advance:
        before = bench.answers({})[1]
        for one in nodes:
            mine = {site: clean[site] for site in one.parts}, {site: other[site] for site in one.parts}
            patched = bench.answers(mine[1])[1]
            for name, edits in _edits(one, *mine, known, wanted, x, fold).items():
                made[name] = []
                for edit in edits:
                    made[name].append(_measured(bench, edit(), patched, before, *mine))
                    advance(1)
                made[name] *= len(x) if len(edits) == 1 else 1
        # Each curve is judged against full patching of its own nodes, and so is what no edit gives.
        crossings = list(dict.fromkeys(tuple(one.parts) for one in nodes))
        for crossing in crossings:
            mine = {site: clean[site] for site in crossing}, {site: other[site] for site in crossing}
            name = NOTHING if len(crossings) == 1 else f"{NOTHING}, {' and '.join(crossing)}"
            made[name] = [_measured(bench, (mine[0], {}), bench.answers(mine[1])[1], before, *mine)] * len(x)
    draw = {"confidence": confidence, "resamples": resamples, "seed": seed}
    parts = {
        title: _series(np.array(x), made, measure, weight, title, unit, draw)
        for title, measure, weight, unit in (
            ("where it matters", "right", "matters", "share of pairs"),
            ("accuracy", "right", "", "share of pairs"),
            ("magnitude", "magnitude", "", "share of the reconstruction"),
            ("distance", "distance", "", "share of the change"),
        )
    }
    differs = {a: int(sum(v != w for v, w in zip(known[a], wanted[a], strict=True))) for a in known}
    matters = {name: int(rows[0]["matters"].sum()) for name, rows in made.items() if name.startswith(NOTHING)}
    notes = {"definitions": DEFINITIONS, "pairs": len(pairs), "pairs in which it matters": matters, "edited": differs, **draw}
    return Report(parts, _words(parts, x, matters, len(pairs)), title="Edits of attributes through dictionaries", diagnostics=notes)


def _check(nodes: Sequence[Nodes], known: Mapping[str, list[Value]], wanted: Mapping[str, list[Value]], counts: Sequence[int]) -> None:
    if known.keys() != wanted.keys():
        raise InputError(
            f"attributes= names {', '.join(known)} and changed= {', '.join(wanted)}; give the same attributes for both inputs."
        )
    if all(known[a] == wanted[a] for a in known):
        raise InputError("No attribute differs between clean and corrupted inputs, so there is nothing to edit. Give counterfactuals.")
    if not counts or min(counts) < 1:
        raise InputError(f"counts={list(counts)}: give how many features may be changed, each at least 1.")
    for one in nodes:
        kinds = {isinstance(d, SupervisedDictionary) for d in one.parts.values()}
        if len(kinds) > 1:
            raise InputError(f"{one.name!r} mixes supervised and other dictionaries, which are edited in different ways. Give one kind.")
        lacking = [a for d in one.parts.values() if isinstance(d, SupervisedDictionary) for a in d.table if a not in known]
        if lacking:
            raise InputError(f"{one.name!r} needs attribute {lacking[0]!r}; given are {', '.join(known)}. Give a value for each pair.")


Edited = tuple[Mapping[str, Tensor], Mapping[str, np.ndarray]]  # site → rows, and site → magnitude of each pair
Edits = list[Callable[[], Edited]]


def _edits(
    one: Nodes, clean: Mapping[str, Tensor], other: Mapping[str, Tensor], known: Mapping[str, list[Value]],
    wanted: Mapping[str, list[Value]], counts: Sequence[int], fold: np.ndarray,
) -> dict[str, Edits]:  # fmt: skip
    if one.supervised:
        return {
            f"{one.name} {how}": [lambda how=how: _supervised(one, clean, known, wanted, how == "project")] for how in ("swap", "project")
        }
    coded = {}
    for site, dictionary in one.parts.items():
        check_affine(dictionary, clean[site], one.name)
        coded[site] = Coded.of(dictionary, clean[site], other[site])
    walks = {site: [c.greedy(i, max(counts)) for i in range(len(c.x))] for site, c in coded.items()}
    aware = {site: Aware(c, known, wanted, fold) for site, c in coded.items()}
    return {
        f"{one.name} greedy": [lambda n=n: _by_features(coded, {s: [w[:n] for w in walk] for s, walk in walks.items()}) for n in counts],
        f"{one.name} aware": [lambda n=n: _by_features(coded, {s: a.chosen(n) for s, a in aware.items()}) for n in counts],
    }


def _supervised(
    one: Nodes, clean: Mapping[str, Tensor], known: Mapping[str, list[Value]], wanted: Mapping[str, list[Value]], project: bool
) -> Edited:
    rows, sizes = {}, {}
    for site, d in one.parts.items():
        assert isinstance(d, SupervisedDictionary)
        before, after = ({a: v[a] for a in d.table} for v in (known, wanted))
        rows[site] = d.edit(clean[site], before, after, project=project)
        codes = d.of_values(before)
        gone = codes * (d.of_values(after) != codes)  # the old values of what differs
        whole = codes @ d.written
        size = whole.square().sum(1)
        sizes[site] = torch.where(size > 0, ((gone @ d.written) * whole).sum(1) / size.clamp_min(1e-30), 0).double().numpy()
    return rows, sizes


def _by_features(coded: Mapping[str, Coded], chosen: Mapping[str, list[list[int]]]) -> Edited:
    rows = {site: torch.stack([c.edited(i, chosen[site][i]) for i in range(len(c.x))]) for site, c in coded.items()}
    sizes = {site: np.array([float(c.weights(i)[chosen[site][i]].sum()) for i in range(len(c.x))]) for site, c in coded.items()}
    return rows, sizes


def _measured(
    bench: Bench, edited: Edited, patched: np.ndarray, before: np.ndarray, clean: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> Row:
    rows, sizes = edited
    top = bench.answers(rows)[1]
    gaps = []
    for site, values in rows.items():
        whole = (clean[site] - other[site]).norm(dim=1).double()
        gaps.append(torch.where(whole > 0, (values - other[site]).norm(dim=1).double() / whole.clamp_min(1e-30), 0).numpy())
    magnitude = np.mean(list(sizes.values()), 0) if sizes else np.zeros(len(top))
    return {
        "right": (top == patched).astype(float),
        "matters": (patched != before).astype(float),
        "magnitude": magnitude,
        "distance": np.mean(gaps, 0),
    }


def _series(
    x: np.ndarray, made: Mapping[str, list[Row]], measure: str, weight: str, title: str, unit: str, draw: Mapping[str, Any]
) -> Series:
    curves, bands = {}, {}
    for name, rows in made.items():
        below = np.stack([r[weight] if weight else np.ones(len(r["right"])) for r in rows], 1)
        above = np.stack([r[measure] for r in rows], 1) * below
        some = below.sum(0) > 0
        curves[name] = np.divide(above.sum(0), below.sum(0), out=np.full(len(x), np.nan), where=some)
        bands[name] = np.stack(bootstrap_interval(above, below, **draw)[:2]) if some.all() else np.full((2, len(x)), np.nan)
    return Series(x, curves, "features changed", bands, title=title, unit=unit)


def _words(parts: Mapping[str, Series], x: Sequence[int], matters: Mapping[str, int], pairs: int) -> tuple[str, ...]:
    where = {name: name.removeprefix(NOTHING).replace(",", " at", 1) for name in matters}
    said = [f"Full patching{where[name]} changes the top answer in {count} of {pairs} pairs." for name, count in matters.items()]
    if any(matters.values()):
        curves = parts["where it matters"].curves
        best = [f"{name} {curve[-1]:.2f}" for name, curve in sorted(curves.items(), key=lambda c: -np.nan_to_num(c[1][-1]))]
        said.append(f"There, with {x[-1]} features, the answer is that of full patching in these shares: {', '.join(best)}.")
    return tuple(said)
