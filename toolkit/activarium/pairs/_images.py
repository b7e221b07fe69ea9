"""Corrupted images made from clean ones: parts masked, blurred, shuffled or swapped, in whole patches or by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from activarium.errors import InputError, unknown
from activarium.metrics import Metric, logit_difference
from activarium.pairs._pairs import Pairs, identities, pairs
from activarium.pairs.pictures import Pictures

How = Literal["mask", "mean", "blur", "shuffle", "swap", "other"]


def images(
    model: Any,
    images: Any,
    how: How = "mask",
    *,
    patches: Any = None,
    box: Any = None,
    mask: Any = None,
    other: Any = None,
    metric: Metric | None = None,
    answers: Sequence[str | int] | None = None,
    foils: Sequence[str | int] | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Pairs:
    """What changes when a part of each image is hidden, blurred, moved or taken from another image?

    The processor first resizes and crops as it always does; the change is made on those pixels, so a patch has exact borders and
    nothing else differs in what the model is given.

    Args:
        model: A loaded vision model with its image processor.
        images: PIL images or uint8 arrays `height width channel`.
        how: `mask` (the processor's mean colour), `mean` (the image's own mean colour), `blur` (Gaussian, one patch wide), `shuffle`
            (patches change places), `swap` (the same pixels of another image), `other` (another image altogether).
        patches: Which patches: pairs `(y, x)`, or a boolean grid `height width`, for all images or with a leading axis for each.
        box: `(top, left, bottom, right)` in pixels of the given images, for all or one for each.
        mask: Boolean `height width` of the given images, for all or one for each, such as an object's own pixels.
        other: As many other images, for `swap` and `other`; if not given, the next one that the model sees as another class.
        metric: One number per example; if not given, the logit difference of `answers` and `foils`.
        answers: Classes, by name or number; if not given, what the model sees in the clean image.
        foils: If not given, what it sees in the other image where there is one of another class, else its second choice.
        seed: Of the shuffle.
        name: How they are called in results.

    Raises:
        InputError: The images change in nothing, the part lies outside of what the model sees, the processor does more than resize,
            crop, rescale and normalise, or there is no other image.
        UnknownName: There is no such corruption.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("vit"), certify=False)
        >>> made = act.pairs.images(model, act.testing.images(2), "mask", patches=[(0, 1)])
        >>> int((made.clean.data[""] != made.corrupt.data[""]).any(1).sum()) // 2  # pixels of an 8×8 patch
        64
    """
    if how not in get_args(How):
        raise unknown("corruption of images", how, get_args(How))
    clean = Pictures.of(model, images)
    if how == "other" and not (patches is None and box is None and mask is None):
        raise InputError("how='other' takes another image altogether; for a part of one use how='swap'.")
    needed = metric is None or (other is None and how in ("swap", "other"))
    seen = _seen(model, clean) if needed else None
    partners = _partners(model, clean, other, seen) if how in ("swap", "other") else None
    if how == "shuffle":
        cells = clean.cells(patches, box, mask)
        random = np.random.default_rng(seed)
        changed = [_shuffled(p, c, clean.patch, random) for p, c in zip(clean.values, cells, strict=True)]
    else:
        fills = partners if partners is not None else clean.filled(how)
        region = clean.region(patches, box, mask)
        changed = [np.where(r[..., None], f, p) for p, f, r in zip(clean.values, fills, region, strict=True)]
    made = np.stack(changed)
    still = np.flatnonzero((made == clean.values).reshape(len(made), -1).all(1))
    if len(still):
        raise InputError(
            f"Image {still[0]} is unchanged by how={how!r}: there is nothing to compare. Choose other patches or another corruption."
        )
    if metric is None:
        metric = logit_difference(*_classes(model, seen, answers, foils, None if partners is None else _seen(model, clean.with_(partners))))
    before, after = ({"pixel_values": clean.prepared(v)} for v in (clean.values, made))
    return pairs(model, before, after, metric, name=name or f"images {how}")


def _seen(model: Any, pictures: Pictures) -> np.ndarray | None:
    """Class logits of every picture, or None where the model has no classes."""
    answer = model.run({"pixel_values": pictures.prepared(pictures.values)})
    known = "logits" in answer and answer.logits.axes == ("example", "class")
    return answer.logits.tensor.double().cpu().numpy() if known else None


def _partners(model: Any, clean: Pictures, other: Any, seen: np.ndarray | None) -> np.ndarray:
    """The other picture of each."""
    count = len(clean.values)
    if other is not None:
        found = Pictures.of(model, other).values
        if len(found) != count:
            raise InputError(f"There are {count} images and {len(found)} others; give one other image for each.")
        return found
    first = np.arange(count) if seen is None else seen.argmax(1)
    order = [next((j % count for j in range(i + 1, i + count) if first[j % count] != first[i]), None) for i in range(count)]
    lonely = next((i for i, j in enumerate(order) if j is None), None)
    if lonely is not None:
        raise InputError(f"Image {lonely} has no partner of another class among the {count} images; give other=[…], one image for each.")
    return clean.values[np.array(order)]


def _classes(model: Any, seen: np.ndarray | None, answers: Any, foils: Any, others: np.ndarray | None) -> tuple[list[int], list[int]]:
    """Answer and foil of each pair."""
    if seen is None:
        raise InputError(f"{model.name} names no classes, so these pairs have no metric: give metric=….")
    best = np.asarray(seen.argmax(1))
    right = best if answers is None else np.array(identities(model, answers))
    if foils is not None:
        wrong = np.array(identities(model, foils))
    else:
        without = seen.copy()
        without[np.arange(len(seen)), right[: len(seen)]] = -np.inf
        wrong = without.argmax(1)
        if others is not None:
            wrong = np.where(others.argmax(1) == right, wrong, others.argmax(1))
    for what, given in (("answers", right), ("foils", wrong)):
        if len(given) != len(seen):
            raise InputError(f"There are {len(seen)} pairs and {len(given)} {what}; give one for each.")
    return right.tolist(), wrong.tolist()


def _shuffled(picture: np.ndarray, cells: np.ndarray, patch: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """The chosen patches in a random cycle, so that each of them moves."""
    places = np.argwhere(cells)
    if len(places) < 2:
        raise InputError(f"how='shuffle' moves patches to one another's places; {len(places)} patch was chosen. Choose at least 2.")
    order, made, (height, width) = random.permutation(len(places)), picture.copy(), patch
    for source, target in zip(order, np.roll(order, 1), strict=True):
        (y, x), (a, b) = places[source] * patch, places[target] * patch
        made[a : a + height, b : b + width] = picture[y : y + height, x : x + width]
    return made
