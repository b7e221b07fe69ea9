"""Core neurons: the few that a sentence uses in most of its tokens, and how soon they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, examples_of, layer_number, layer_sites
from activarium.analyses.layers.evidence import on_grid, picture
from activarium.analyses.sparsity.cores import (
    SETTLED,
    SITES,
    Core,
    Settings,
    prefix_cores,
    sentences,
    similarities,
    similarity,
    token_cores,
)
from activarium.analyses.sparsity.row_kinds import EXCLUDED, kept, left_out, left_out_words
from activarium.errors import InputError, UnknownSite
from activarium.recording import Recording
from activarium.results import Grid, Overlay, Ranking, Report, Result, Series

LISTED = 1000  # neurons in the ranking
PLACES = 16  # on the stability curve of the longest sentence


def core_neurons(
    recording: Recording | Activations,
    *,
    site: str = "mlp.post",
    alpha: float = 0.4,
    beta: float = 0.2,
    rule: str = "paper",
    exclude: Sequence[str] = EXCLUDED,
    every: int | None = None,
    example: int | None = None,
    image: Any = None,
) -> Report:
    """Which few neurons does a sentence use all along, and how early are they known?

    The core of a token: of its strictly positive activations A⁺ the ⌈alpha · |A⁺|⌉ largest (of equal ones the lower numbers).
    The core of a sentence: the ⌊beta · N⌋ of the N neurons that are in most of its tokens' cores; ties by higher summed
    activation, then by lower number. Where fewer are in any token's core, the set is short and counted as such. Kept are one
    whole number and one sum for each neuron and sentence, so batches and shards give the same sets. An image is a sentence of
    its patches, which have no order but that of their rows: read the stability curve of images accordingly. Only positive values
    count: in a gated MLP a neuron is as loud below zero, and its core may hold no more energy than any neurons would.

    Args:
        recording: A recording with `blocks.*.mlp.post`, or such a site or stack itself, axes `row d_mlp`.
        site: `mlp.post` (the neurons: what the down projection takes in), `mlp.act` (the activation, which in a gated MLP is the
            gate alone) or `mlp.pre` (before it); not heeded where a site itself is given.
        alpha: Share of a token's positive activations that are its core.
        beta: Share of all neurons that are a sentence's core.
        rule: `paper` as above, or `shared_k` as the published code counts: every token of a sentence gives its ⌊alpha · mean |A⁺|⌋
            largest values, positive or not.
        exclude: Row kinds left out. Pads are never rows.
        every: Tokens between two places of the stability curve; by default 16 places in the longest sentence.
        example: Also show, for each row of this example, how many neurons are its core, and how many of them are in the sentence's.
        image: The picture of that example, uint8 `(height, width, 3)`, to lay its patches over.

    Returns:
        A report with `neurons` (ranking by the number of sentences whose core they are), `layers` (size of the cores, short
        sentences, mean similarity of two sentences), `similarity` (grid sentence by sentence, averaged over layers: neurons in both
        cores over neurons in either), `stability` (the same similarity between a sentence's first m tokens and its first m + d, and
        between the first m and all, averaged over layers and over the sentences that are long enough; how many those are is in its `diagnostics`),
        and if asked for `rows` and `rows in the sentence's core`. A model with several stacks has each part once per stack.

    Raises:
        UnknownSite: The recording holds no such site, or there is no such site.
        AxisError: The site has other axes than `row d_mlp`, such as a mixture of experts with its slots.
        InputError: `alpha`, `beta`, `rule` or `every` make no sense, no row is left, or there is no such example.
        NotFinite: NaN or infinite numbers, which cannot be ranked.

    Source:
        Wang et al. 2024, CoreInfer: Accelerating Large Language Model Inference with Semantics-Inspired Adaptive Sparse
        Activation, arXiv:2410.18311, sections 3 and 4.

    Differs:
        The rounding, the ties and the short set are ours; the paper leaves them open. The published code counts differently: one
        number of neurons for all tokens, over all values (`rule="shared_k"`); alpha .2 and beta .4 from its command line, the
        other way round; it ranks `mlp.post` for LLaMA and OPT but `mlp.pre` in its clustering script; it leaves ties to an
        unstable sort. The first three layers, which the paper leaves dense, are shown here and skipped only when decoding.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> acts = Activations(torch.tensor([[0.0, 2.0, 9.0, 0.0], [0.0, 1.0, 8.0, 3.0]]), "row d_mlp", site="blocks.0.mlp.post")
        >>> core_neurons(acts, beta=0.25)["neurons"].names
        ('blocks.0.mlp.post · neuron 2',)
    """
    settings = Settings(alpha, beta, rule)
    if site not in SITES:
        raise UnknownSite(f"Core neurons are chosen at {', '.join(SITES)}; there is no {site!r} among them. Pass one of these.")
    if every is not None and every < 1:
        raise InputError(f"every={every} tokens lie between two places of the stability curve; give at least 1.")
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, object] = {"alpha": alpha, "beta": beta, "rule": rule}
    for stack, sites in layer_sites(recording, (site,), "row d_mlp").items():
        table = _Table(stack, sites, settings, exclude, every)
        made = table.parts()
        if example is not None:
            made |= _rows(sites, table, example, exclude, image)
        first = next(iter(sites.values()))
        counted = table.notes() | {"excluded": left_out(first, exclude), "dtype": str(first.dtype).removeprefix("torch.")}
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        notes |= {f"{stack} {name}".strip(): value for name, value in counted.items()}
        words += [*table.words(), *left_out_words(first, exclude)]
    return Report(parts, tuple(words), title="Core neurons of sentences", unit="share", diagnostics=notes)


class _Table:
    """The cores of all sentences in the layers of one stack: `cores[site][sentence]`, the whole one."""

    def __init__(self, stack: str, sites: Mapping[str, Activations], settings: Settings, exclude: Sequence[str], every: int | None) -> None:
        self.stack, self.settings = stack, settings
        first = next(iter(sites.values()))
        self.images = "patch" in column(first, "kind", "token").astype(str)
        longest = max(np.unique(examples_of(first), return_counts=True)[1])
        self.every = every or max(1, int(longest) // PLACES)
        self.cores: dict[str, list[Core]] = {}
        curves = []
        for site, activations in sites.items():
            found = {example: self._prefixes(values) for example, values in sentences(activations, exclude)}
            self.examples = sorted(found)
            self.cores[site] = [found[e][0] for e in self.examples]
            curves.append([found[e][1] for e in self.examples])
        self.curves = np.stack([_under(layer) for layer in curves])  # layer, sentence, (next, all), place
        self.width = len(next(iter(self.cores.values()))[0].counts)
        self.pairs = np.stack([_among([c.neurons for c in cores], self.width) for cores in self.cores.values()])

    def _prefixes(self, values: torch.Tensor) -> tuple[Core, np.ndarray]:
        """The core of a sentence, and how similar those of its beginnings are to the next one and to the whole: `(2, place)`."""
        lengths = [*range(self.every, len(values), self.every), len(values)]
        cores = prefix_cores(values, self.settings, lengths)
        even = [c for c, n in zip(cores, lengths, strict=True) if n % self.every == 0]
        step = [similarity(a.neurons, b.neurons) for a, b in pairwise(even)]
        end = [similarity(c.neurons, cores[-1].neurons) for c in even]
        return cores[-1], np.array([[*step, *[np.nan] * (len(end) - len(step))], end])

    def apart(self) -> np.ndarray:
        """Mean similarity of two different sentences, per layer; NaN for a single one."""
        rows, columns = np.triu_indices(len(self.examples), 1)
        return np.array([_mean(pairs[rows, columns]) for pairs in self.pairs])

    def parts(self) -> dict[str, Result]:
        names = [str(e) for e in self.examples]
        pairs = np.array([[_mean(cell) for cell in row] for row in np.moveaxis(self.pairs, 0, -1)])
        labels = {"sentence": names, "other sentence": names}
        places = self.every * np.arange(1, self.curves.shape[-1] + 1)
        known = ~np.isnan(self.curves[0, :, 1])
        curves = {
            name: np.array([_mean(v) for v in self.curves[:, :, k].reshape(-1, len(places)).T]) for k, name in enumerate(("next", "all"))
        }
        return {
            "neurons": self._neurons(),
            "layers": self._layers(),
            "similarity": Grid(
                pairs, ("sentence", "other sentence"), labels, title="Neurons in both cores over neurons in either", unit="share"
            ),
            "stability": Series(
                places,
                curves,
                "tokens",
                title=f"Core of the first tokens beside that of {self.every} more, and of all",
                unit="share",
                diagnostics={"sentences": known.sum(0).tolist()},
            ),
        }

    def _neurons(self) -> Ranking:
        """Neurons that are a core neuron of most sentences; ties by tokens, then in the order of layers."""
        made: dict[str, list[np.ndarray]] = {"sentences": [], "tokens": [], "layer": [], "neuron": []}
        for i, (site, cores) in enumerate(self.cores.items()):
            member = np.bincount(np.concatenate([c.neurons for c in cores]).astype(np.int64), minlength=self.width)
            here = np.flatnonzero(member)
            tokens = np.stack([c.counts for c in cores]).sum(0, dtype=np.int64)
            for name, values in zip(made, (member[here], tokens[here], np.full(len(here), layer_number(site, i)), here), strict=True):
                made[name].append(values)
        columns = {name: np.concatenate(values) for name, values in made.items()}
        order = np.lexsort((columns["neuron"], columns["layer"], -columns["tokens"], -columns["sentences"]))[:LISTED]
        columns = {name: values[order] for name, values in columns.items()}
        numbers = [layer_number(site, i) for i, site in enumerate(self.cores)]
        places = [numbers.index(layer) for layer in columns["layer"].tolist()]
        sites = list(self.cores)
        names = tuple(f"{sites[i]} · neuron {n}" for i, n in zip(places, columns["neuron"].tolist(), strict=True))
        return Ranking(names, columns.pop("sentences"), columns, title="In the core of most sentences", unit="sentences")

    def _layers(self) -> Ranking:
        apart = self.apart()
        order = np.argsort(-np.nan_to_num(apart, nan=-1), kind="stable")
        sizes = [np.array([len(c.neurons) for c in cores]) for cores in self.cores.values()]
        columns = {
            "core size": np.array([s.mean() for s in sizes]),
            "asked for": np.array([cores[0].wanted for cores in self.cores.values()]),
            "short sentences": np.array([sum(c.short for c in cores) for cores in self.cores.values()]),
            "neurons in any core": np.array([len(np.unique(np.concatenate([c.neurons for c in cores]))) for cores in self.cores.values()]),
            "neurons": np.full(len(self.cores), self.width),
        }
        names = tuple(list(self.cores)[i] for i in order)
        return Ranking(
            names,
            apart[order],
            {k: v[order] for k, v in columns.items()},
            title="Similarity of two sentences, layer by layer",
            unit="share",
        )

    def notes(self) -> dict[str, object]:
        short = sum(c.short for cores in self.cores.values() for c in cores)
        ending = next(iter(self.cores)).split("blocks.")[-1].partition(".")[2]
        longest = max(c.tokens for c in next(iter(self.cores.values())))
        return {"site": ending, "sentences": len(self.examples), "short sets": short, "similarity": _mean(self.apart()), "longest": longest}

    def words(self) -> list[str]:
        where, notes = f"{self.stack}: " if self.stack else "", self.notes()
        one = "image" if self.images else "sentence"
        asked, chance = next(iter(self.cores.values()))[0].wanted, self.settings.beta / (2 - self.settings.beta)
        said = [
            f"{where}{'an' if self.images else 'a'} {one}'s core holds {asked:,} of the {self.width:,} neurons of a layer at {notes['site'] or 'this site'}."
        ]
        similarity = _mean(self.apart())
        if np.isfinite(similarity):
            said.append(f"{where}two {one}s share {similarity:.2f} of the neurons of their cores; by chance {chance:.2f}.")
        if notes["short sets"]:
            sets = len(self.examples) * len(self.cores)
            said.append(f"{where}{notes['short sets']:,} of {sets:,} sets are short: fewer neurons than asked for are in any row's core.")
        if not self.images and int(str(notes["longest"])) < SETTLED:
            said.append(
                f"{where}the longest sentence has {notes['longest']} tokens; the paper saw sets move below 100 tokens and settle at 200 to 300, "
                "so these are not settled."
            )
        return said


def _rows(sites: Mapping[str, Activations], table: _Table, example: int, exclude: Sequence[str], image: Any) -> dict[str, Result]:
    """Core neurons of each row of one example, NaN where the row is left out."""
    chosen = {site: activations.example(example) for site, activations in sites.items()}
    first = next(iter(chosen.values()))
    keep = kept(first, exclude)
    own, shared = np.full((2, len(sites), len(first)), np.nan)
    for i, (site, activations) in enumerate(chosen.items()):
        cores = token_cores(activations.tensor[torch.from_numpy(keep)], table.settings).cpu().numpy()
        own[i, keep] = cores.sum(1)
        if example in table.examples:
            shared[i, keep] = cores[:, table.cores[site][table.examples.index(example)].neurons].sum(1)
    titles = {
        "rows": f"Core neurons of each row of example {example}",
        "rows in the sentence's core": "Those of them in the sentence's core",
    }
    return {
        name: _overlay(first, tuple(sites), values, title, image)
        for (name, title), values in zip(titles.items(), (own, shared), strict=True)
    }


def _overlay(rows: Activations, names: tuple[str, ...], values: np.ndarray, title: str, image: Any) -> Overlay:
    if image is not None:
        return Overlay(on_grid(rows, values)[0], names, image=picture(image), title=title, unit="neurons")
    return Overlay(values, names, tuple(str(t) for t in column(rows, "text", "row")), title=title, unit="neurons")


def _under(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Curves of different length under one another, `(sentence, 2, place)`, NaN beyond their end."""
    made = np.full((len(curves), 2, max(1, *(c.shape[1] for c in curves))), np.nan)
    for row, curve in zip(made, curves, strict=True):
        row[:, : curve.shape[1]] = curve
    return made


def _among(cores: Sequence[np.ndarray], width: int) -> np.ndarray:
    return similarities(cores, cores, width)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
