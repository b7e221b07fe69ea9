"""glyph: which patches hold the evidence for the shape, checked against the shape's own pixels."""

from __future__ import annotations

import numpy as np

import activarium as act
from activarium.data import scenes  # pyright: ignore[reportAttributeAccessIssue]  (a path that is found at run time)
from activarium.demo._tour import Tour, heard
from activarium.results import Report

PICTURES = 64  # scenes


def vision(tour: Tour) -> None:
    """glyph: which patches hold the evidence for the shape, checked against the shape's own pixels."""
    drawn = [scenes.scene(scenes.TEST_SEED, i) for i in range(PICTURES)]
    model, store = tour.captured("glyph", [scene.image for scene in drawn])
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
    report, said = heard(lambda: act.analyses.lazy_neurons(store))
    tour.say("glyph · lazy neurons", [f"{report.diagnostics['percent']:.2f} % of the neurons are not exactly zero.", *said])


def _pointed(lens: Report, mask: np.ndarray) -> np.ndarray:
    """For each layer: does the patch with most evidence touch the object?"""
    grid = lens["patches"].values  # type: ignore[attr-defined]
    touched = _by_patch(mask, grid.shape[1:])
    return touched.ravel()[grid.reshape(len(grid), -1).argmax(1)]


def _by_patch(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which patches a pixel mask touches."""
    height, width = shape
    return np.asarray(mask.reshape(height, mask.shape[0] // height, width, mask.shape[1] // width).any((1, 3)))
