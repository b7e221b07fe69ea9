"""The bundled dictionaries: how well they stand for their sites, what their features mean, and what they leave out."""

from __future__ import annotations

import activarium as act
from activarium.data import corpus, scenes  # pyright: ignore[reportAttributeAccessIssue]  (a path that is found at run time)
from activarium.demo._tour import SEED, Tour

OURS = "the dictionary"
SHOWN = 48  # images whose patches are looked at
ON_PAGE = 60  # features whose pages travel with the tour


def features(tour: Tour) -> None:
    """One code path for tokens and patches: quality, dashboards to leaf through, what is left out."""
    texts = [item.text for family in corpus.FAMILIES for item in corpus.held_out(family, SEED + 2, 40)]
    _room(tour, "scribe", "scribe-resid", texts)
    images, labels = scenes.batch(scenes.TEST_SEED, 500, SHOWN)
    _room(tour, "glyph", "glyph-resid", {"images": list(images), "label": labels.tolist()})


def _room(tour: Tour, name: str, called: str, inputs: object) -> None:
    model = tour.models[name]
    sae = act.dictionaries.load(called)
    recording = model.run(inputs, read=sae.origin.site)
    quality = act.analyses.dictionary_quality({OURS: sae}, recording, model, inputs)
    tour.say(f"{name} · {called} ({sae.width} features of {sae.origin.site})", quality.words)
    tour.keep(f"{name} · how often the features of {called} are active", quality, "density")
    images = inputs["images"] if isinstance(inputs, dict) else None
    folder = tour.out / "demo" / f"{called}.features"
    ranking = act.analyses.feature_dashboards(sae, recording, model, folder, images=images, top=8)
    browser = act.show(ranking)
    browser.hide_dead = True
    tour.parts[f"{name} · the features of {called}, to leaf through"] = browser.embedded(ON_PAGE)
    first = [f"{n} ({int(v):,} rows)" for n, v in zip(ranking.names[:4], ranking.values[:4], strict=True)]
    tour.say(
        f"{name} · pages of {called}",
        [f"{len(ranking.names)} pages in {folder}, from {ranking.diagnostics['rows']:,} rows. Most often active: {', '.join(first)}."],
    )
