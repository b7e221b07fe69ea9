"""scribe and glyph: massive activations, attention sinks, silent layers, high-norm patches; said also where there are none."""

from __future__ import annotations

import activarium as act
from activarium.data import corpus, scenes  # pyright: ignore[reportAttributeAccessIssue]  (a path that is found at run time)
from activarium.demo._tour import SEED, Tour

SENTENCES = 8  # of each family, for what runs the model again
SHOWN = 0


def activity(tour: Tour) -> None:
    """Where scribe and glyph put their largest numbers, and which layers move a token."""
    model, stored = tour.models["scribe"], act.open(tour.out / "demo" / "scribe.acts")
    texts = [item.text for family in corpus.FAMILIES for item in corpus.held_out(family, SEED, SENTENCES)]
    landscape = act.analyses.massive_landscape(stored, example=SHOWN)
    tour.parts["scribe · the residual stream as a landscape"] = landscape
    sinks = act.analyses.attention_sinks(model, texts, subtract=True)
    tour.say("scribe · attention sinks", sinks.words)
    tour.keep("scribe · heads that sink", sinks, "heads")
    voids = act.analyses.layer_voids(stored, example=SHOWN)
    tour.say("scribe · layers that bring a token no further", voids.words)
    tour.keep("scribe · voids by token and layer", voids, "voids")
    cores = act.analyses.core_neurons(model.run(texts, read="blocks.*.mlp.post"), example=SHOWN)
    tour.say("scribe · core neurons", cores.words)
    tour.keep("scribe · core neurons at each token", cores, "rows")
    images = [scenes.scene(scenes.TEST_SEED, i).image for i in range(16)]
    norms = act.analyses.token_norms(tour.models["glyph"].run(images, read="blocks.*.resid_post"), images, example=SHOWN)
    tour.say("glyph · high-norm patches", norms.words)
    tour.keep("glyph · norm of each patch", norms, "overlay")
