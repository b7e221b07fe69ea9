"""Core clusters: groups of sentences that use the same neurons, and the neurons that each group keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import layer_sites
from activarium.analyses.sparsity.core_sets import SETS, as_grid, frequent
from activarium.analyses.sparsity.cores import SITES, Core, Settings, core_of, sentences, similarities
from activarium.analyses.sparsity.row_kinds import EXCLUDED
from activarium.errors import InputError, UnknownSite
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result, Series

MOST = 12  # clusters that the elbow rule looks at
DEPTH = 25 / 32  # the paper clusters at layer 25 of 32


def core_clusters(
    recording: Recording | Activations,
    *,
    labels: Sequence[Any] | None = None,
    clusters: int | str | None = None,
    gamma: float = 0.2,
    alpha: float = 0.4,
    beta: float = 0.2,
    site: str = "mlp.post",
    layer: int | None = None,
    exclude: Sequence[str] = EXCLUDED,
    seed: int = 0,
) -> Report:
    """Do alike sentences use the same neurons, and which neurons would each group keep?

    Each sentence has its core neurons, as `core_neurons` chooses them. Sentences are grouped by their labels, or by K-Means on
    their cores at one layer. A group keeps, in every layer, the ⌊gamma · N⌋ neurons that are in most of its sentences' cores; a new
    sentence belongs to the group whose sets are most similar to its core. `sparse_decode(strategy="similarity", clusters=report)`
    takes the report as it is.

    Args:
        recording: A recording with `blocks.*.mlp.post`, or such a site or stack itself, axes `row d_mlp`.
        labels: What each sentence is known to be, in the order of examples. They make the groups, unless `clusters` is given: then
            they only measure them.
        clusters: Number of groups for K-Means, or `"elbow"` to choose it: of 1 to 12, the number at which the sum of squares lies
            farthest below the straight line from first to last. By default the labels, or the elbow where there are none.
        gamma: Share of the neurons that a group keeps.
        alpha: Share of a token's positive activations that are its core.
        beta: Share of all neurons that are a sentence's core.
        site: `mlp.post`, `mlp.act` or `mlp.pre`; not heeded where a site itself is given.
        layer: Place of the layer whose cores are grouped, from 0; by default 25/32 of the depth, as in the paper.
        exclude: Row kinds left out. Pads are never rows.
        seed: Of K-Means.

    Returns:
        A report with `clusters` (ranking by size, with the similarity of its sentences to its own sets and to the nearest other
        group's, and its commonest label), `similarity` (grid: sets of each group beside those of each other), with labels `labels in
        clusters` (grid of counts), where the number was chosen `elbow`, and `core sets` (grid cluster × layer × neuron, 1 where kept). `diagnostics` has `purity` and `adjusted rand` of K-Means against the labels, and `nearest is own`: the
        share of sentences whose nearest group is their own. A model with several stacks has each part once per stack.

    Raises:
        UnknownSite: The recording holds no such site, or there is no such site.
        AxisError: The site has other axes than `row d_mlp`.
        InputError: Labels for another number of sentences, or a number of clusters or a layer that cannot be.
        NotFinite: NaN or infinite numbers, which cannot be ranked.

    Source:
        Wang et al. 2024, CoreInfer, arXiv:2410.18311, section 4 (similarity-guided). Adjusted Rand index: Hubert & Arabie 1985,
        Comparing Partitions.

    Differs:
        The elbow, the ties and how a new sentence finds its group are ours. The published code ranks `mlp.pre` here and keeps a
        share of the neurons it observed rather than of all.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> from activarium.rows import Rows
        >>> acts = Activations(torch.eye(4).repeat(2, 1), "row d_mlp", site="blocks.0.mlp.post", index=Rows({"example": np.arange(8)}))
        >>> core_clusters(acts, clusters=4, gamma=0.25, beta=0.25).diagnostics["nearest is own"]
        1.0
    """
    settings = Settings(alpha, beta)
    if not 0 <= gamma <= 1:
        raise InputError(f"gamma={gamma} is no share of neurons; give a number from 0 to 1, such as 0.2.")
    if site not in SITES:
        raise UnknownSite(f"Core neurons are chosen at {', '.join(SITES)}; there is no {site!r} among them. Pass one of these.")
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, object] = {"alpha": alpha, "beta": beta, "gamma": gamma, "seed": seed}
    for stack, sites in layer_sites(recording, (site,), "row d_mlp").items():
        cores, examples = _cores(sites, settings, exclude)
        known = _known(labels, examples)
        chosen = _place(layer, len(sites))
        points = _points(cores[list(sites)[chosen]])
        member, curve = (known, None) if clusters is None and known is not None else _grouped(points, clusters or "elbow", seed)
        table = _Table(cores, member, gamma)
        made = table.parts(known) | ({"elbow": curve} if curve is not None else {}) | {SETS: as_grid(table.groups, table.width)}
        counted: dict[str, Any] = {"clusters": len(table.groups), "sentences": len(member), "nearest is own": table.own()}
        if curve is not None or clusters is not None:
            counted |= {"layer": list(sites)[chosen]} | (_agreement(known, member) if known is not None else {})
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        notes |= {f"{stack} {name}".strip(): value for name, value in counted.items()}
        words += [f"{stack}: {line}" if stack else line for line in _words(counted)]
    return Report(parts, tuple(words), title="Clusters of sentences by their core neurons", unit="share", diagnostics=notes)


def _cores(sites: Mapping[str, Activations], settings: Settings, exclude: Sequence[str]) -> tuple[dict[str, list[Core]], list[int]]:
    """The cores of all sentences in each layer, and the numbers of the sentences, in order."""
    found = {site: {example: core_of(values, settings) for example, values in sentences(a, exclude)} for site, a in sites.items()}
    examples = sorted(next(iter(found.values())))
    return {site: [cores[e] for e in examples] for site, cores in found.items()}, examples


def _known(labels: Sequence[Any] | None, examples: Sequence[int]) -> list[str] | None:
    if labels is None:
        return None
    if len(labels) != len(examples):
        raise InputError(
            f"There are {len(labels)} labels for {len(examples)} sentences with rows that count; give one each, in their order."
        )
    return [str(label) for label in labels]


def _place(layer: int | None, layers: int) -> int:
    chosen = int(DEPTH * layers) if layer is None else layer
    if not 0 <= chosen < layers:
        raise InputError(f"layer={layer} is none of the {layers} layers; they are numbered from 0 to {layers - 1}.")
    return chosen


def _points(cores: Sequence[Core]) -> np.ndarray:
    """Cores as points: 1 where a neuron is in it, `(sentence, neuron)`."""
    points = np.zeros((len(cores), len(cores[0].counts)))
    for row, core in zip(points, cores, strict=True):
        row[core.neurons] = 1
    return points


def _grouped(points: np.ndarray, clusters: int | str, seed: int) -> tuple[list[str], Series | None]:
    """The K-Means group of each sentence, named by the order of first sentences, and the curve if the number was chosen."""
    different = len(np.unique(points, axis=0))
    if isinstance(clusters, str):
        if clusters != "elbow":
            raise InputError(f"clusters={clusters!r} is not known; give a number, or 'elbow'.")
        tried = {k: _k_means(points, k, seed) for k in range(1, min(MOST, different) + 1)}
        squares = np.array([sum_of_squares for _, sum_of_squares in tried.values()])
        count = elbow(squares)
        curve = Series(
            np.array(list(tried)), {"sum of squares": squares}, "clusters", title="Sum of squared distances to the centre of the cluster"
        )
        return _named(tried[count][0]), curve
    if not 1 <= clusters <= different:
        raise InputError(f"clusters={clusters}: there are {different} different cores, so from 1 to {different} clusters can be made.")
    return _named(_k_means(points, clusters, seed)[0]), None


def _k_means(points: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, float]:
    from sklearn.cluster import KMeans

    settings: dict[str, Any] = {"n_init": 10, "random_state": seed}
    made = KMeans(clusters, **settings).fit(points)
    return np.asarray(made.labels_), np.asarray(made.inertia_, dtype=np.float64).item()


def elbow(squares: np.ndarray) -> int:
    """The number of clusters, from 1, at which a falling curve lies farthest below the line from its first to its last point."""
    line = np.linspace(squares[0], squares[-1], len(squares))
    return int(np.argmax(line - squares)) + 1


def _named(groups: np.ndarray) -> list[str]:
    order = {g: i for i, g in enumerate(dict.fromkeys(groups.tolist()))}
    return [f"cluster {order[g]}" for g in groups.tolist()]


def _agreement(known: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score

    counts = _counts(known, found)
    return {"purity": float(counts.max(0).sum() / counts.sum()), "adjusted rand": float(adjusted_rand_score(known, found))}


def _counts(known: Sequence[str], found: Sequence[str]) -> np.ndarray:
    """How many sentences of each label (rows) are in each cluster (columns), both in order of first appearance."""
    names, groups = list(dict.fromkeys(known)), list(dict.fromkeys(found))
    counts = np.zeros((len(names), len(groups)), np.int64)
    for label, group in zip(known, found, strict=True):
        counts[names.index(label), groups.index(group)] += 1
    return counts


class _Table:
    """Groups of sentences with the neurons that each keeps."""

    def __init__(self, cores: Mapping[str, Sequence[Core]], member: Sequence[str], gamma: float) -> None:
        self.cores, self.member = cores, member
        self.width = len(next(iter(cores.values()))[0].counts)
        self.groups = {
            name: {site: frequent([c for c, m in zip(layer, member, strict=True) if m == name], gamma) for site, layer in cores.items()}
            for name in dict.fromkeys(member)
        }
        near = [
            similarities([c.neurons for c in layer], [sets[site] for sets in self.groups.values()], self.width)
            for site, layer in cores.items()
        ]
        self.near = np.nan_to_num(near).mean(0)  # sentence, group: what `nearest` takes the largest of

    def own(self) -> float:
        best = np.array(list(self.groups), dtype=object)[self.near.argmax(1)]
        return float((best == np.array(self.member, dtype=object)).mean())

    def parts(self, known: Sequence[str] | None) -> dict[str, Result]:
        names = list(self.groups)
        kept = [[sets[site] for sets in self.groups.values()] for site in self.cores]
        pairs = np.mean([similarities(sets, sets, self.width) for sets in kept], axis=0)
        labels = {"cluster": names, "other cluster": names}
        made: dict[str, Result] = {
            "clusters": self._ranking(known),
            "similarity": Grid(
                pairs, ("cluster", "other cluster"), labels, title="Neurons kept by both over neurons kept by either", unit="share"
            ),
        }
        if known is not None:
            counts, rows = _counts(known, self.member), list(dict.fromkeys(known))
            made["labels in clusters"] = Grid(
                counts, ("label", "cluster"), {"label": rows, "cluster": names}, title="Sentences", unit="sentences"
            )
        return made

    def _ranking(self, known: Sequence[str] | None) -> Ranking:
        inside = np.array([[m == name for m in self.member] for name in self.groups])  # group, sentence
        size = inside.sum(1)
        order = np.argsort(-size, kind="stable")
        other = np.array([_farther(self.near[rows], g) for g, rows in enumerate(inside)])
        columns = {
            "similarity to own sets": np.array([self.near[rows, g].mean() for g, rows in enumerate(inside)]),
            "to the nearest other": other,
            "neurons kept": np.array([np.mean([len(n) for n in sets.values()]) for sets in self.groups.values()]),
        }
        if known is not None:
            counts = _counts(known, self.member)
            names = np.array(list(dict.fromkeys(known)), dtype=object)
            columns |= {"commonest label": names[counts.argmax(0)], "its share": counts.max(0) / counts.sum(0)}
        return Ranking(
            tuple(list(self.groups)[i] for i in order),
            size[order],
            {k: v[order] for k, v in columns.items()},
            title="Clusters",
            unit="sentences",
        )


def _farther(near: np.ndarray, group: int) -> float:
    """Mean similarity of some sentences to the nearest group that is not their own; NaN where there is none."""
    rest = np.delete(near, group, axis=1)
    return float(rest.max(1).mean()) if rest.shape[1] else float("nan")


def _words(counted: Mapping[str, Any]) -> list[str]:
    made = f"{counted['sentences']:,} sentences fall into {counted['clusters']} groups"
    how = f", by K-Means on the cores at {counted['layer']}" if "layer" in counted else ", by their labels"
    said = [f"{made}{how}."]
    if "purity" in counted:
        said.append(
            f"{100 * counted['purity']:.0f} % of them are of the commonest label of their cluster (purity, which more clusters only raise; adjusted "
            f"Rand index {counted['adjusted rand']:.2f}, which is 0 by chance and 1 where both groupings agree)."
        )
    return [
        *said,
        f"{100 * counted['nearest is own']:.0f} % are most similar to their own group's neurons; these sentences chose them, so a new one does worse.",
    ]
