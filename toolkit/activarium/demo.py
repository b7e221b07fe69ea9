"""The tour: capture the bundled models, analyse what was stored, say what was found and write one page of it.

Run it as `python -m activarium.demo`, `activarium demo` or `make demo`.
"""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import activarium as act
from activarium.data import corpus, scenes  # pyright: ignore[reportAttributeAccessIssue]  (a path that is found at run time)
from activarium.results import Overlay, Report

SENTENCES, PICTURES, SEED = 40, 64, 31  # sentences per family, scenes; the seed draws held-out sentences
SITES = ("embed", "blocks.*.resid_post", "blocks.*.mlp.act", "logits")


@dataclass
class Tour:
    """What the tour has collected so far.

    Attributes:
        out: Folder that stores and page are written to.
        console: Where the findings are printed.
        parts: Section title → Result, widget or text, for the page.
    """

    out: Path
    console: Console
    parts: dict[str, Any] = field(default_factory=dict)

    def say(self, title: str, words: Sequence[str]) -> None:
        """Print findings and put them on the page."""
        self.console.print(f"\n[bold]{title}[/bold]")
        for line in words:
            self.console.print(f"  • {line}", markup=False, highlight=False)
        self.parts[title] = "\n\n".join(words)

    def keep(self, title: str, report: Report, name: str) -> None:
        """Put one part of a report on the page, with where it came from."""
        self.parts[title] = report[name].with_(provenance=report.provenance)

    def table(self, title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
        """Print a table."""
        made = Table(title=title, title_justify="left")
        for i, name in enumerate(head):
            made.add_column(name, justify="left" if i == 0 else "right")
        for line in lines:
            made.add_row(*line)
        self.console.print(made)


def main(out: str | Path = "out") -> Path:
    """What do the three bundled models hold, in two minutes?

    Args:
        out: Folder for `demo/*.acts` and `tour.html`; earlier ones of the same name are replaced.

    Returns:
        The page.
    """
    from activarium.workflows.export import export_page

    started = time.perf_counter()
    tour = Tour(Path(out), Console())
    shutil.rmtree(tour.out / "demo", ignore_errors=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are small: on a busy machine, threads waiting for one another took five times longer
    try:
        for room in (language, sparsity, vision):
            room(tour)
    finally:
        torch.set_num_threads(threads)
    page = tour.out / "tour.html"
    export_page(tour.parts, page, title="activarium: a tour of scribe, scribe-relu and glyph")
    tour.console.print(
        f"\nWrote {page} and {tour.out / 'demo'}/*.acts in {time.perf_counter() - started:.0f} s. Open the page in a browser; it needs no network."
    )
    return page


def language(tour: Tour) -> None:
    """scribe: what it predicts, at which layer answers appear, how large its activations get."""
    examples = [item for family in corpus.FAMILIES for item in corpus.held_out(family, SEED, SENTENCES)]
    model, store = _captured(tour, "scribe", [item.text for item in examples])
    indirect = [i for i, item in enumerate(examples) if item.family == "ioi"]
    shown, item = indirect[0], examples[indirect[0]]
    loss = token_loss(store, shown)
    lens = act.analyses.logit_lens(store, model, example=shown, target=item.answer)
    tour.say("scribe · how surprised it is", [_surprise(loss)])
    tour.parts["scribe · loss of each token, given those before it"] = loss
    tour.say("scribe · when the receiver's name appears", [*lens.words, *_appearance(tour, model, store, examples, indirect)])
    tour.keep(f"scribe · probability of {item.answer!r} by layer and position", lens, "probability")
    tour.keep("scribe · entropy of each layer's answer", lens, "entropy")
    massive = act.analyses.massive_activations(store)
    tour.say("scribe · massive activations", massive.words)
    tour.keep("scribe · largest activations by layer", massive, "sizes")
    tour.keep("scribe · the largest number of each layer", massive, "largest")


def sparsity(tour: Tour) -> None:
    """scribe-relu against scribe: how few neurons work at a time."""
    texts = [item.text for family in corpus.FAMILIES for item in corpus.held_out(family, SEED, SENTENCES)]
    _, store = _captured(tour, "scribe-relu", texts)
    report = act.analyses.lazy_neurons(store, example=0)
    tour.say("scribe-relu · lazy neurons", report.words)
    layers = report["layers"].to_frame().sort_values("name")
    columns = {"percent": ".2f", "low": ".2f", "high": ".2f", "dead": "d", "always on": "d", "neurons": "d"}
    lines = [[str(line["name"]), *[format(line[name], form) for name, form in columns.items()]] for _, line in layers.iterrows()]
    tour.table("Nonzero neurons of scribe-relu", ["layer", "% nonzero", "95 % low", "high", "dead", "always on", "neurons"], lines)
    tour.keep("scribe-relu · nonzero neurons per layer", report, "nonzero")
    tour.keep("scribe-relu · nonzero neurons at each token", report, "rows")
    tour.keep("scribe-relu · firing rate of every neuron", report, "firing rate")
    smooth, said = _with_warnings(act.open(tour.out / "demo" / "scribe.acts"))
    lead = f"scribe (GELU) shows {smooth.diagnostics['percent']:.2f} % nonzeros, scribe-relu {report.diagnostics['percent']:.2f} %."
    tour.say("scribe · why zeros say nothing about a smooth activation", [lead, *said])


def vision(tour: Tour) -> None:
    """glyph: which patches hold the evidence for the shape, checked against the shape's own pixels."""
    drawn = [scenes.scene(scenes.TEST_SEED, i) for i in range(PICTURES)]
    model, store = _captured(tour, "glyph", [scene.image for scene in drawn])
    classes = list(model.class_names or scenes.CLASSES)
    guesses = [classes[int(store.logits.example(i).tensor.argmax())] for i in range(PICTURES)]
    right = [i for i in range(PICTURES) if guesses[i] == drawn[i].name]
    lenses = {i: act.analyses.logit_lens(store, model, example=i, image=drawn[i].image) for i in right}
    hits = np.mean([_pointed(lenses[i], drawn[i].mask) for i in right], axis=0)
    # The control: a shape is conspicuous, so even the evidence for a class that is not there may point to it.
    other = {i: (drawn[i].label + 1) % len(classes) for i in right}
    control = np.mean([_pointed(act.analyses.logit_lens(store, model, example=i, target=other[i]), drawn[i].mask) for i in right], axis=0)
    chance = float(np.mean([_by_patch(drawn[i].mask, lenses[i]["patches"].values.shape[1:]).mean() for i in right]))
    names = lenses[right[0]]["patches"].label("layer")
    tour.table(
        f"Does the patch with most evidence lie on the shape? ({len(right)} scenes)",
        ["layer", "its class", "a wrong class", "any patch"],
        [[name, f"{share:.0%}", f"{wrong:.0%}", f"{chance:.0%}"] for name, share, wrong in zip(names, hits, control, strict=True)],
    )
    best, shown = int((hits - control).argmax()), right[0]
    found = [
        f"glyph names {len(right)} of {PICTURES} unseen scenes rightly.",
        f"At {names[best]}, where the two differ most, the patch with most evidence for the right class lies on the shape in {hits[best]:.0%} of them; "
        f"for a wrong class in {control[best]:.0%}, and a patch at random in {chance:.0%}.",
        *lenses[shown].words,
    ]
    tour.say("glyph · where the evidence lies", found)
    overlay = lenses[shown]["overlay"].with_(mask=drawn[shown].mask, provenance=lenses[shown].provenance)  # type: ignore[call-arg]
    picture = act.widgets.ImageOverlay.of(overlay)
    picture.shown = [best]
    tour.parts[f"glyph · evidence for {guesses[shown]!r} by patch, with the shape's true outline"] = picture
    tour.keep("glyph · evidence by layer and row", lenses[shown], "evidence")
    massive = act.analyses.massive_activations(store)
    tour.say("glyph · massive activations", massive.words)
    tour.keep("glyph · largest activations by layer", massive, "sizes")
    report, said = _with_warnings(store)
    tour.say("glyph · lazy neurons", [f"{report.diagnostics['percent']:.2f} % of the neurons are not exactly zero.", *said])


def token_loss(recording: Any, example: int) -> Overlay:
    """How surprising is each token, given those before it? Nats; the first one has nothing before it."""
    logits = recording.logits.example(example)
    ids = np.asarray(logits.index["token"], dtype=np.int64)
    known = logits.tensor.float().log_softmax(1).cpu().numpy()
    loss = -known[np.arange(len(ids) - 1), ids[1:]]
    tokens = tuple(str(t) for t in logits.index["text"])
    return Overlay(np.r_[np.nan, loss][None], ("loss",), tokens, title="Loss of each token, given those before it", unit="nats")


def _captured(tour: Tour, name: str, data: Sequence[Any]) -> tuple[Any, Any]:
    """Load, prove, capture to a store, open it again and check every byte."""
    model = act.load(name)
    path = tour.out / "demo" / f"{name}.acts"
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    act.capture(model, list(data), SITES, to=path, progress=False)
    seconds = time.perf_counter() - started
    store = act.open(path)
    store.verify()
    rows = sum(len(table) for table in store.rows.values())
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6
    tour.console.rule(f"[bold]{name}")
    line = (
        f"{len(data)} inputs, {rows:,} rows of {len(list(store))} sites in {seconds:.1f} s; {size:.1f} MB in {path}; every checksum holds."
    )
    proof = model.certificate.summary()
    tour.say(f"{name} · captured", [line, f"The sites are {proof['verdict']}; the largest gap of any check is {proof['worst_gap']:.1g}."])
    return model, store


def _surprise(loss: Overlay) -> str:
    values = loss.values[0, 1:]
    worst = int(values.argmax()) + 1
    return (
        f"The shown sentence costs {values.mean():.2f} nats a token on average; the most surprising one is {loss.tokens[worst]!r} "  # type: ignore[index]
        f"with {values.max():.2f}, the least {loss.tokens[int(values.argmin()) + 1]!r} with {values.min():.3f}."  # type: ignore[index]
    )


def _appearance(tour: Tour, model: Any, store: Any, examples: Sequence[Any], chosen: Sequence[int]) -> list[str]:
    """How probable the receiver is after each layer, at the place where it is said, over many sentences."""
    probability, rank = [], []
    for i in chosen:
        lens = act.analyses.logit_lens(store, model, example=i, target=examples[i].answer)
        probability.append(lens["probability"].values[:, examples[i].positions["end"]])
        rank.append(lens["rank"].values[:, examples[i].positions["end"]])
    names, shares, first = lens["rank"].label("layer"), np.mean(probability, axis=0), np.mean(np.array(rank) == 1, axis=0)
    lines = [[name, f"{p:.3f}", f"{f:.0%}"] for name, p, f in zip(names, shares, first, strict=True)]
    tour.table(f"The receiver's name in {len(chosen)} unseen sentences", ["read after", "mean probability", "top answer"], lines)
    jump = int(np.diff(shares).argmax()) + 1
    return [
        f"Over {len(chosen)} unseen sentences its mean probability rises most at {names[jump]}, from {shares[jump - 1]:.2f} to {shares[jump]:.2f}; "
        f"at the end it is the top answer in {first[-1]:.0%}."
    ]


def _with_warnings(store: Any) -> tuple[Report, list[str]]:
    """The report on nonzeros with the warnings it gave, as words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = act.analyses.lazy_neurons(store)
    return report, [f"Warning given: {w.message}" for w in caught]


def _pointed(lens: Report, mask: np.ndarray) -> np.ndarray:
    """For each layer: does the patch with most evidence touch the object?"""
    grid = lens["patches"].values  # type: ignore[attr-defined]
    touched = _by_patch(mask, grid.shape[1:])
    return touched.ravel()[grid.reshape(len(grid), -1).argmax(1)]


def _by_patch(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which patches a pixel mask touches."""
    height, width = shape
    return np.asarray(mask.reshape(height, mask.shape[0] // height, width, mask.shape[1] // width).any((1, 3)))


if __name__ == "__main__":
    main(*sys.argv[1:2])
