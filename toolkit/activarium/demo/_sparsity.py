"""scribe-relu against scribe: how few neurons work at a time."""

from __future__ import annotations

import activarium as act
from activarium.data import corpus  # pyright: ignore[reportAttributeAccessIssue]  (a path that is found at run time)
from activarium.demo._tour import SEED, SENTENCES, Tour, heard


def sparsity(tour: Tour) -> None:
    """scribe-relu against scribe: how few neurons work at a time."""
    texts = [item.text for family in corpus.FAMILIES for item in corpus.held_out(family, SEED, SENTENCES)]
    _, store = tour.captured("scribe-relu", texts)
    report = act.analyses.lazy_neurons(store, example=0)
    tour.say("scribe-relu · lazy neurons", report.words)
    layers = report["layers"].to_frame().sort_values("name")
    columns = {"percent": ".2f", "low": ".2f", "high": ".2f", "dead": "d", "always on": "d", "neurons": "d"}
    lines = [[str(line["name"]), *[format(line[name], form) for name, form in columns.items()]] for _, line in layers.iterrows()]
    tour.table("Nonzero neurons of scribe-relu", ["layer", "% nonzero", "95 % low", "high", "dead", "always on", "neurons"], lines)
    tour.keep("scribe-relu · nonzero neurons per layer", report, "nonzero")
    tour.keep("scribe-relu · nonzero neurons at each token", report, "rows")
    tour.keep("scribe-relu · firing rate of every neuron", report, "firing rate")
    smooth, said = heard(lambda: act.analyses.lazy_neurons(act.open(tour.out / "demo" / "scribe.acts")))
    lead = f"scribe (GELU) shows {smooth.diagnostics['percent']:.2f} % nonzeros, scribe-relu {report.diagnostics['percent']:.2f} %."
    tour.say("scribe · why zeros say nothing about a smooth activation", [lead, *said])
