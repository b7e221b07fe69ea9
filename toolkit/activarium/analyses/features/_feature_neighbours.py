"""Feature neighbours: how near a dictionary's directions lie to one another, and whether near ones are active together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from activarium.analyses.features.feature_map import feature_map
from activarium.analyses.features.firing_together import Together, coded, together
from activarium.analyses.features.geometry import (
    check_share,
    close_groups,
    encoder_directions,
    groups,
    nearest,
    pairs_above,
    random_directions,
    unit_directions,
)
from activarium.dictionaries.adopt import as_dictionary
from activarium.errors import InputError
from activarium.recording import Recording
from activarium.results import Layout, Ranking, Report, Result, Series

BINS = np.linspace(-1, 1, 81)
DRAWS = 3  # random dictionaries that the control averages over


def feature_neighbours(
    dictionary: Any,
    recording: Recording | None = None,
    *,
    threshold: float | None = None,
    duplicate: float = 0.99,
    mapped: int = 1000,
    site: str | None = None,
    exclude: Sequence[str] | None = None,
    seed: int = 0,
) -> Report:
    """Which features of a dictionary point the same way, and are they active together?

    Directions are what features write. Beside every figure stand random directions of the same number and width: in few
    dimensions many directions cannot help being near another.

    Args:
        dictionary: The dictionary, a sae-lens object or a folder.
        recording: Holds the site that it reads; adds firings and the Pearson correlation of codes, from sums over one pass.
        threshold: Cosine from which two features count as near; None takes the largest cosine of any two random directions.
        duplicate: Cosine from which two features count as one written twice.
        mapped: Most features in the map: those with the nearest neighbours.
        site: Where the dictionary reads, if it does not say.
        exclude: Row kinds to leave out; None leaves out what its training left out.
        seed: Draws the random directions and the map.

    Returns:
        A report. `nearest`: each feature by the largest cosine with another one; columns `feature`, `neighbour`, `opposite` (its
        smallest cosine) and where the encoder is known `encoder cosine` of the same pair; with a recording `fires` (rows),
        `correlation` of the pair's codes (NaN where one never changes), `partner` (the feature whose codes correlate most, -1 if
        none does above 0) and `partner correlation`. `distribution`: shares of features by that cosine, of directions, encoder and random directions. `pairs`: pairs
        from `threshold` on. `duplicates`: groups that pairs from `duplicate` on join. `clusters`: groups by average linkage, joined
        while the mean cosine between their members is at least `threshold`. `map`: neighbours near one another on a plane (t-SNE of the cosines; the
        plane's distances mean little), sizes by the cluster; `diagnostics["cluster"]` numbers it, -1 outside all.

    Raises:
        InputError: Fewer than two features, a threshold outside 0 to 1, or a recording of another width.
        UnknownSite: The recording does not hold the site.
        OtherModel: The recording is of a model with other weights.
        NotFinite: NaN or infinity in a direction or a row.

    Source:
        Bricken et al. 2023, Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features, section on feature
        geometry and clusters. Map: van der Maaten & Hinton 2008, Visualizing Data using t-SNE.

    Differs:
        Groups are made of cosines, beyond a stated one (of random directions, where nothing is said), and not of the picture.

    Example:
        >>> import torch
        >>> from activarium.dictionaries import SAE, Design
        >>> rows = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
        >>> sae = SAE.of_weights(Design(3, 4), {"encoder": rows, "W_dec": rows, "b_enc": torch.zeros(4), "b_dec": torch.zeros(3)})
        >>> act.analyses.feature_neighbours(sae)["duplicates"].names
        ('0, 1',)
    """
    dictionary = as_dictionary(dictionary)
    if dictionary.width < 2:
        raise InputError(f"This dictionary has {dictionary.width} feature; neighbours need two.")
    check_share("duplicate", duplicate)
    directions = unit_directions(dictionary.directions)
    encoder = encoder_directions(dictionary)
    random = [nearest(random_directions(len(directions), dictionary.d_out, seed + n))[0][:, 0] for n in range(DRAWS)]
    near = float(np.max(random)) if threshold is None else threshold
    check_share("threshold", near)
    cosine, neighbour = (part[:, 0] for part in nearest(directions))
    shared = together(coded([dictionary], recording, site, exclude)[0]) if recording is not None else None
    found = pairs_above(directions, directions, min(near, duplicate))
    pairs = np.stack([found[0], found[1]], 1)[found[0] < found[1]]
    size = found[2][found[0] < found[1]]
    clusters, whole = close_groups(directions, pairs[size >= near], near)
    doubles = groups(pairs[size >= duplicate], dictionary.width)
    curves = (
        {"directions": cosine}
        | ({"encoder": nearest(encoder)[0][:, 0]} if encoder is not None else {})
        | {"random directions": np.concatenate(random)}
    )
    columns = _columns(directions, encoder, shared, neighbour)
    parts: dict[str, Result] = {
        "nearest": _nearest(cosine, columns),
        "distribution": _distribution(curves),
        "pairs": _pairs(pairs[size >= near], size[size >= near], shared),
        "duplicates": _groups(doubles, directions, f"Features written more than once (cosine {duplicate:.2f} or more)"),
        "clusters": _groups(clusters, directions, f"Groups with cosines of {near:.2f} or more on average"),
        "map": _map(directions, cosine, clusters, mapped, seed),
    }
    notes: dict[str, Any] = {
        "features": dictionary.width,
        "width of a direction": dictionary.d_out,
        "threshold": near,
        "threshold is": "given" if threshold is not None else f"the largest cosine in {DRAWS} random dictionaries of this shape",
        "zero directions": int((directions == 0).all(1).sum()),
        "components too large for average linkage, joined pair by pair": whole,
        "seed": seed,
    }
    notes |= {"rows": shared.rows, "never fire": int((shared.fires[0] == 0).sum())} if shared is not None else {}
    words = _words(curves, clusters, doubles, near, dictionary.width, columns)
    return Report(parts, tuple(words), title="Feature neighbours", diagnostics=notes)


def _columns(directions: Tensor, encoder: Tensor | None, shared: Together | None, neighbour: np.ndarray) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {
        "feature": np.arange(len(directions)),
        "neighbour": neighbour,
        "opposite": -nearest(directions, -directions)[0][:, 0],
    }
    if encoder is not None:
        columns["encoder cosine"] = (encoder * encoder[neighbour]).sum(1).double().numpy()
    if shared is not None:
        best, partner = shared.strongest()
        columns["fires"] = shared.fires[0]
        columns["correlation"] = shared.correlation(np.arange(len(directions)), neighbour)
        columns |= {"partner": partner, "partner correlation": best}
    return columns


def _nearest(cosine: np.ndarray, columns: Mapping[str, np.ndarray]) -> Ranking:
    order = np.argsort(-cosine, kind="stable")
    names = tuple(f"feature {i} → {columns['neighbour'][i]}" for i in order)
    return Ranking(
        names, cosine[order], {k: v[order] for k, v in columns.items()}, title="Features by their nearest neighbour", unit="cosine"
    )


def _distribution(curves: Mapping[str, np.ndarray]) -> Series:
    # A cosine of exactly 1 belongs into the last bin also where float32 rounds it up.
    shares = {name: np.histogram(values.clip(-1, 1), BINS)[0] / len(values) for name, values in curves.items()}
    middle = (BINS[:-1] + BINS[1:]) / 2
    return Series(middle, shares, "largest cosine with another feature", title="How near the nearest feature is", unit="share of features")


def _pairs(pairs: np.ndarray, size: np.ndarray, shared: Together | None) -> Ranking:
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -size))
    first, second = pairs[order, 0], pairs[order, 1]
    columns = {"feature": first, "other": second}
    if shared is not None:
        columns["correlation"] = shared.correlation(first, second)
    return Ranking(
        tuple(f"{a}, {b}" for a, b in zip(first, second, strict=True)),
        size[order],
        columns,
        title="Pairs beyond the threshold",
        unit="cosine",
    )


def _groups(found: Sequence[np.ndarray], directions: Tensor, title: str) -> Ranking:
    means = []
    for members in found:
        total = directions[members].double().sum(0)
        count = len(members)
        means.append((float(total @ total) - float(directions[members].double().square().sum())) / (count * (count - 1)))
    names = tuple(", ".join(map(str, m)) for m in found)
    return Ranking(names, np.array([len(m) for m in found]), {"mean cosine": np.array(means)}, title=title, unit="features")


def _map(directions: Tensor, cosine: np.ndarray, clusters: Sequence[np.ndarray], mapped: int, seed: int) -> Layout:
    chosen = np.sort(np.argsort(-cosine, kind="stable")[: max(0, mapped)])
    number = np.full(len(cosine), -1)
    size = np.ones(len(cosine))
    for at, members in enumerate(clusters):
        number[members], size[members] = at, len(members)
    points = feature_map(directions[chosen], seed)
    title = f"Map of {len(chosen)} of {len(cosine)} features: neighbours lie near one another"
    notes = {"feature": chosen, "cluster": number[chosen], "method": "t-SNE on cosine distances, begun at the principal plane"}
    return Layout(tuple(f"feature {i}" for i in chosen), points, size[chosen], title=title, diagnostics=notes)


def _words(
    curves: Mapping[str, np.ndarray],
    clusters: Sequence[np.ndarray],
    doubles: Sequence[np.ndarray],
    near: float,
    width: int,
    columns: Mapping[str, np.ndarray],
) -> list[str]:
    middle, chance = np.median(curves["directions"]), np.median(curves["random directions"])
    said = [f"The median feature has a neighbour at cosine {middle:.2f}; among random directions of this shape it would be {chance:.2f}."]
    inside, largest = sum(map(len, clusters)), len(clusters[0]) if clusters else 0
    said.append(
        f"{inside} of {width} features lie in {len(clusters)} groups (cosines of {near:.2f} or more on average; the largest holds {largest}); "
        f"{sum(map(len, doubles))} are written more than once."
    )
    if "partner" in columns:
        known = (columns["partner"] >= 0) & (columns["fires"] > 0)
        same = int((columns["partner"] == columns["neighbour"])[known].sum())
        said.append(
            f"For {same} of {int(known.sum())} features that fire, the nearest direction is also the one whose codes correlate most."
        )
    return said
