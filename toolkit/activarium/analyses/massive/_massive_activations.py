"""Massive activations: the few numbers of the residual stream that dwarf all others, where they are born and die."""

from __future__ import annotations

from typing import Any

from activarium.activations import Activations
from activarium.analyses.layer_sites import layer_sites
from activarium.analyses.massive.stacks import check_thresholds, layer_of, stack_answer
from activarium.recording import Recording
from activarium.results import Report, Result


def massive_activations(recording: Recording | Activations, *, absolute: float = 100.0, ratio: float = 1000.0, seed: int = 0) -> Report:
    """Which numbers of the residual stream are thousands of times larger than the median?

    For each layer and each sequence on its own: m is the lower median of |h| over all rows and dimensions. A number is
    massive if |h| > `absolute` and |h| >= `ratio` · m. Small models hardly ever get there: then the answer is "none", and
    the largest number of each layer is still shown with its ratio |h| / m, which needs no threshold.

    Args:
        recording: A recording with `blocks.*.resid_post`, or such a site or stack itself, axes `row d_model`.
        absolute: Smallest size, exclusive, in model units.
        ratio: Smallest multiple of the sequence's median, inclusive.
        seed: Draws the sequences for the interval of the ratio.

    Returns:
        A report with `hits` (ranking: every massive number with its layer, example, position, token, dimension, signed
        value, multiple of the median and share of its row's energy), `dimensions` (ranking: birth and death layer, sign,
        signed mean, its variation, whether it is persistent), `largest` (ranking: the largest number of each layer, massive
        or not), `sizes` (three largest and median per layer, averaged over sequences) and `ratio` (largest / median per
        layer, averaged over sequences). A model with several stacks has each part once per stack, `encoder hits`. All rows
        count, `bos`, `cls` and `register` included: that is where massive activations live.

    Raises:
        UnknownSite: The recording holds no `resid_post`.
        AxisError: The site has other axes than `row d_model`.
        InputError: A threshold is not positive.
        NotFinite: NaN or infinite numbers, against which nothing can be compared.

    Source:
        Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762, section 2 (criteria, sizes);
        Gallego-Feliciano et al. 2025, arXiv:2508.03616 (ratio without thresholds).

    Differs:
        The median of an even count is the lower middle value. Sequences are never pooled and pads never enter. "Persistent"
        (in 90 % of the sequences in at least three consecutive layers) and the interval are ours.

    Example:
        >>> import torch
        >>> from activarium.activations import Activations
        >>> h = torch.full((4, 8), 0.5)
        >>> h[1, 3] = -700.0
        >>> massive_activations(Activations(h, "row d_model", site="blocks.0.resid_post"))["hits"].values.tolist()
        [1400.0]
    """
    check_thresholds(absolute, ratio)
    stacks = layer_sites(recording, ("resid_post",), "row d_model")
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, Any] = {"absolute": absolute, "ratio": ratio, "median": "lower middle value, per sequence and layer"}
    for stack, sites in stacks.items():
        layers = [layer_of(activations, absolute, ratio) for activations in sites.values()]
        made, said, counted = stack_answer(stack, layers, absolute, ratio, seed)
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        notes |= {f"{stack} {name}".strip(): value for name, value in counted.items()}
        words += said
    return Report(parts, tuple(words), title="Massive activations", unit="model units", diagnostics=notes)
