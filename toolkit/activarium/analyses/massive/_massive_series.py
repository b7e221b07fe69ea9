"""The massive-activation series of a training run: one ratio per layer and checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from activarium.analyses.layer_sites import by_example, layer_number, layer_sites, refuse_strange
from activarium.errors import InputError
from activarium.maths import bootstrap_interval, lower_median
from activarium.progress import progress_bar
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Series

Load = Callable[[Any], Runner]


def massive_series(
    checkpoints: str | Path | Mapping[int, Any],
    texts: Any,
    *,
    load: Load | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> Series:
    """How far does the largest activation of each layer stand out, checkpoint by checkpoint?

    For each checkpoint, layer and sequence: the largest |h| of `resid_post` over the lower median of |h|, over all rows and
    dimensions. The curve is the mean of these ratios over sequences. Every checkpoint reads the same sequences, one model is
    in memory at a time, and one sequence is run at a time.

    Args:
        checkpoints: A folder whose sub-folders are checkpoints and end in their step (`step128`, `checkpoint-500`), or a
            mapping step → model, or step → what `load` makes a model of.
        texts: The sequences, as a list of what the models take: texts, token ids or images. The paper uses ten.
        load: Makes a model of a folder or value: `act.load`, or `partial(act.load, certify="quick")`.
        confidence: Of the bands.
        seed: Draws the sequences again for the bands.
        progress: Show a bar.

    Returns:
        One curve per layer, `block 0`, over the steps, in multiples of the median, with bands from resampled sequences
        (NaN for a single sequence). `massive_dynamics` takes it as it is. A model of several stacks has `encoder block 0`.

    Raises:
        InputError: No checkpoints, no sequences, two of the same step, a folder without `load`, or other layers than before.
        NotFinite: A checkpoint's residual stream holds NaN or infinity.

    Source:
        Gallego-Feliciano et al. 2025, Hidden Dynamics of Massive Activations in Transformer Training, arXiv:2508.03616.

    Differs:
        The mean of the ratios of single sequences, where the paper also speaks of a ratio of means; the lower median; no
        batches, so no padding.

    Example:
        >>> import activarium as act
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> series = massive_series({0: model, 10: model}, ["the cat sat", "on the mat"], progress=False)
        >>> series.x.tolist(), bool(series.curves["block 0"][0] == series.curves["block 0"][1])
        ([0, 10], True)
    """
    found: dict[int, Any] = dict(sorted(checkpoints.items())) if isinstance(checkpoints, Mapping) else _folders(Path(checkpoints))
    sequences = [texts] if isinstance(texts, str) else list(texts)
    _check(found, sequences, load)
    ratios: list[dict[str, np.ndarray]] = []
    with progress_bar(progress, "measuring", len(found), "checkpoints") as advance:
        for step, place in found.items():
            model = load(place) if load is not None else place
            ratios.append(_measured(model, sequences))
            if list(ratios[-1]) != list(ratios[0]):
                raise InputError(
                    f"Step {step} has {len(ratios[-1])} layers, the first checkpoint has {len(ratios[0])}. Give one model's run."
                )
            advance(1)
    table = {name: np.stack([r[name] for r in ratios]) for name in ratios[0]}  # step, sequence
    return Series(
        np.array(list(found)),
        {name: values.mean(1) for name, values in table.items()},
        "training step",
        {name: _band(values, confidence, seed) for name, values in table.items()},
        title="Largest size over median, mean over sequences",
        unit="times the median",
        diagnostics={"sequences": len(sequences), "ratio": "mean over sequences of max |h| / lower-median |h|", "site": "resid_post"},
    )


def _folders(place: Path) -> dict[int, Any]:
    """Step → folder, in the order of steps."""
    if not place.is_dir():
        raise InputError(f"There is no folder {str(place)!r}. Give the folder that holds the checkpoints, or a mapping step → model.")
    inside = sorted(p for p in place.iterdir() if (p / "config.json").is_file())
    found: dict[int, Any] = {}
    for path in inside:
        ending = re.search(r"(\d+)$", path.name)
        if ending is None:
            continue
        if int(ending[1]) in found:
            raise InputError(
                f"{found[int(ending[1])].name} and {path.name} both end in step {int(ending[1])}. Give a mapping step → folder."
            )
        found[int(ending[1])] = path
    if not found:
        names = ", ".join(p.name for p in inside[:6]) or "none"
        raise InputError(f"{place.name} has no checkpoint whose name ends in its step, as step128 does; models in it: {names}.")
    return dict(sorted(found.items()))


def _check(found: Mapping[int, Any], sequences: list[Any], load: Load | None) -> None:
    if not found:
        raise InputError("No checkpoints: give at least one model with its step.")
    if not sequences:
        raise InputError("No sequences to look at: give a list of texts, token ids or images.")
    strange = next((v for v in found.values() if load is None and not hasattr(v, "run")), None)
    if strange is not None:
        raise InputError(f"{type(strange).__name__} {str(strange)!r} is no loaded model. Say how to load it: load=act.load.")


def _measured(model: Runner, sequences: list[Any]) -> dict[str, np.ndarray]:
    """Layer → one ratio per sequence."""
    sites = [site for site in model.sites if site.endswith("resid_post")]
    one_by_one = [_ratios(model.run([sequence], read=sites)) for sequence in sequences]
    return {name: np.array([r[name] for r in one_by_one]) for name in one_by_one[0]}


def _ratios(recording: Recording) -> dict[str, float]:
    found = {}
    for stack, sites in layer_sites(recording, ("resid_post",), "row d_model").items():
        for i, (site, activations) in enumerate(sites.items()):
            refuse_strange(activations, "No median and no ratio can be taken.")
            ((_, _, values),) = by_example(activations)
            size = values.detach().abs()
            median = float(lower_median(size))
            found[f"{stack} block {layer_number(site, i)}".strip()] = float(size.max()) / median if median else float("inf")
    return found


def _band(values: np.ndarray, confidence: float, seed: int) -> np.ndarray:
    low, high, _ = bootstrap_interval(values.T, np.ones_like(values.T), confidence=confidence, seed=seed)
    return np.stack([low, high])
