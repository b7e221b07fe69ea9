"""Feature splitting: what becomes of a small dictionary's features in larger ones, and what is new there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from activarium.analyses.features.firing_together import coded, together
from activarium.analyses.features.geometry import check_share, random_directions, unit_directions
from activarium.analyses.features.splits import Rule, Step, compare, without_alignment
from activarium.dictionaries.adopt import as_dictionary
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.errors import InputError
from activarium.recording import Recording
from activarium.results import Graph, Grid, Ranking, Report, Result

CONTROLS = ("random directions", "shuffled rows")


def feature_splitting(
    dictionaries: Sequence[Any],
    recording: Recording | None = None,
    *,
    cosine: float = 0.7,
    contained: float = 0.5,
    least: int = 10,
    site: str | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
) -> Report:
    """Into which features of a larger dictionary does each feature of a smaller one split?

    A large feature is a part of a small one when it points the same way (`cosine`) and fires inside it: in at least `contained`
    of the rows where the large one is active, the small one is too. Without a recording the directions alone decide, and the
    report says so.

    Args:
        dictionaries: Two or more of one site, from the smallest to the largest; each is held against the next.
        recording: Holds the site that they read.
        cosine: Least cosine of a small and a large direction.
        contained: Least share of a large feature's rows in which the small one is active, P(small | large).
        least: Rows in which a large feature must be active before that share is believed.
        site: Where they read, if they do not say.
        exclude: Row kinds to leave out; None leaves out what any of their trainings left out.
        seed: Draws the random directions and the shuffled rows.

    Returns:
        A report. `graph`: features that are linked, small below large, weights are cosines. `counts`: a table of what became of
        the features, `comparison outcome`: `links`; of the small ones `split` (two parts or more), `kept` (one), `lost` (none);
        of the large ones `parts`, `near but apart` (the direction of a small one, but active elsewhere), `near but silent` (too
        few rows to say) and `novel` (near no small direction); beside it the same with random directions in place of the large
        ones, and with a recording the same with its rows dealt out anew (what containment is by chance). For each step:
        `splits`, small features by their parts, with the share of their firing rows that the parts cover; `links`, with
        containment and its chance level; `novel`, large features by 1 − their largest cosine with a small one.

    Raises:
        InputError: Fewer than two dictionaries, not in the order of their sizes, of different sites or widths; thresholds outside
            0 to 1; a negative `least`.
        UnknownSite: The recording does not hold the site.
        OtherModel: The recording is of a model with other weights.
        NotFinite: NaN or infinity in a direction or a row.

    Source:
        Bricken et al. 2023, Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features, feature splitting. Novel
        features by the largest cosine, and 0.7 for it: Leask et al. 2025, Sparse Autoencoders Do Not Find Canonical Units of
        Analysis, arXiv:2502.04878.

    Differs:
        Both sources link by directions; here a part must also fire inside the whole. The share 0.5 is ours.

    Example:
        >>> import torch
        >>> from activarium.dictionaries import SAE, Design
        >>> def of(rows): return SAE.of_weights(Design(2, len(rows)), {"encoder": rows, "W_dec": rows, "b_enc": 0 * rows[:, 0], "b_dec": 0 * rows[0]})
        >>> small, large = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.3], [1.0, -0.3], [-1.0, 0.0]])
        >>> act.analyses.feature_splitting([of(small), of(large)])["splits"].columns["into"].tolist()
        ['0, 1']
    """
    made = [as_dictionary(d) for d in dictionaries]
    _check(made, site)
    check_share("cosine", cosine)
    check_share("contained", contained)
    if least < 0:
        raise InputError(f"least={least} rows; give 0 or more.")
    rule = Rule(cosine, contained, least)
    codes = coded(made, recording, site, exclude) if recording is not None else []
    names = _names(made)
    steps: dict[str, Step] = {}
    table: dict[str, dict[str, int]] = {}
    for at in range(len(made) - 1):
        small, large = (unit_directions(d.directions) for d in made[at : at + 2])
        here = codes[at : at + 2]
        shared = together(*here) if here else None
        name = f"{names[at]} → {names[at + 1]}"
        steps[name] = compare(small, large, rule, shared, here)
        table[name] = steps[name].counts(least)
        random = random_directions(len(large), made[0].d_out, seed + at)
        table[f"{name}, {CONTROLS[0]}"] = compare(small, random, rule, shared).counts(least)
        if here:
            table[f"{name}, {CONTROLS[1]}"] = compare(small, large, rule, without_alignment(here, seed)).counts(least)
    parts: dict[str, Result] = {"graph": _graph(made, names, list(steps.values())), "counts": _table(table)}
    for name, step in steps.items():
        behind = f" {name}" if len(steps) > 1 else ""
        parts |= {
            f"splits{behind}": _splits(step, name),
            f"links{behind}": _links(step, name),
            f"novel{behind}": _novel(step, name, cosine),
        }
    notes = {
        "cosine": cosine,
        "contained": contained if codes else "not asked: no recording",
        "least rows": least,
        "rows": len(codes[0].chosen) if codes else 0,
        "seed": seed,
    }
    return Report(parts, tuple(_words(steps, table, bool(codes))), title="Feature splitting", diagnostics=notes)


def _check(made: Sequence[FeatureDictionary], site: str | None) -> None:
    if len(made) < 2:
        raise InputError(f"Splitting compares dictionaries; got {len(made)}. Give a list of two or more, the smallest first.")
    sizes = [d.width for d in made]
    if any(a > b for a, b in pairwise(sizes)):
        raise InputError(f"Dictionaries of {', '.join(map(str, sizes))} features: give the smallest first.")
    widths = sorted({d.d_out for d in made})
    if len(widths) > 1:
        raise InputError(
            f"These dictionaries write directions of {widths[0]} and {widths[-1]} numbers; only those of one site can be compared."
        )
    sites = sorted({d.origin.target or d.origin.site for d in made if d.origin.site})
    if site is None and len(sites) > 1:
        raise InputError(f"These dictionaries are of {' and '.join(sites)}. Compare those of one site, or give site=… if you know better.")


def _names(made: Sequence[FeatureDictionary]) -> list[str]:
    """The sizes; with a letter behind, where two are the same."""
    sizes = [str(d.width) for d in made]
    return [s + ("abcdefghijklmnopqrstuvwxyz"[sizes[:i].count(s) % 26] if sizes.count(s) > 1 else "") for i, s in enumerate(sizes)]


def _graph(made: Sequence[FeatureDictionary], names: Sequence[str], steps: Sequence[Step]) -> Graph:
    starts = np.cumsum([0, *(d.width for d in made)])
    edges = np.concatenate([np.stack([s.first + starts[i], s.second + starts[i + 1]], 1) for i, s in enumerate(steps)])
    used = np.unique(edges)
    layer = np.searchsorted(starts, used, side="right") - 1
    nodes = tuple(f"{names[at]}: {number - starts[at]}" for at, number in zip(layer, used, strict=True))
    columns = {"layer": layer.astype(int), "kind": np.array(["feature"] * len(used), dtype=object)}
    values = np.concatenate([s.cosine for s in steps])
    return Graph(nodes, np.searchsorted(used, edges), values, columns=columns, title="Features and their parts", unit="cosine")


def _table(table: dict[str, dict[str, int]]) -> Grid:
    outcomes = list(next(iter(table.values())))
    values = np.array([[row[o] for o in outcomes] for row in table.values()])
    labels = {"comparison": list(table), "outcome": outcomes}
    return Grid(values, ("comparison", "outcome"), labels, title="What became of the features, and by chance", unit="features")


def _splits(step: Step, name: str) -> Ranking:
    parts = step.parts
    order = np.argsort(-parts, kind="stable")
    into = [", ".join(map(str, step.second[step.first == i])) for i in order]
    total = np.bincount(step.first, step.cosine, minlength=step.small)
    mean = np.divide(total, parts, out=np.full(step.small, np.nan), where=parts > 0)
    columns: dict[str, np.ndarray] = {"feature": order, "into": np.array(into, dtype=object), "mean cosine": mean[order]}
    if step.fires is not None:
        columns |= {"fires": step.fires[0][order], "covered": step.covered[order]}
    return Ranking(
        tuple(f"feature {i}" for i in order), parts[order], columns, title=f"Small features by their parts, {name}", unit="parts"
    )


def _links(step: Step, name: str) -> Ranking:
    order = np.lexsort((step.second, step.first, -step.cosine))
    columns = {"small": step.first[order], "large": step.second[order]}
    if step.fires is not None:
        columns |= {"contained": step.contained[order], "by chance": step.chance[order], "large fires": step.fires[1][step.second[order]]}
    names = tuple(f"{a} → {b}" for a, b in zip(columns["small"], columns["large"], strict=True))
    return Ranking(names, step.cosine[order], columns, title=f"Links, {name}", unit="cosine")


def _novel(step: Step, name: str, cosine: float) -> Ranking:
    found = np.flatnonzero(~step.near)
    order = found[np.argsort(step.largest[found], kind="stable")]
    columns = {"feature": order, "nearest": step.nearest[order], "cosine": step.largest[order]}
    if step.fires is not None:
        columns["fires"] = step.fires[1][order]
    title = f"Large features near no small one (cosine below {cosine:g}), {name}"
    return Ranking(tuple(f"feature {i}" for i in order), 1 - step.largest[order], columns, title=title, unit="1 − largest cosine")


def _words(steps: dict[str, Step], table: dict[str, dict[str, int]], fired: bool) -> list[str]:
    said = [] if fired else ["No recording was given: links are near directions alone, whatever fires."]
    for name, step in steps.items():
        count = table[name]
        said.append(
            f"{name}: of {step.small} features {count['split']} split, {count['kept']} are kept and {count['lost']} have no part; "
            f"of {step.large} larger ones {count['parts']} are parts and {count['novel']} are near no small direction."
        )
        chance = [f"{table[f'{name}, {c}']['links']} with {c}" for c in CONTROLS if f"{name}, {c}" in table]
        said.append(f"{name}: {count['links']} links, and by chance {' and '.join(chance)}.")
    return said
