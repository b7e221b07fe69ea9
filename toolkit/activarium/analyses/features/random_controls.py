"""What a dictionary is held against: random directions with its thresholds, and random directions with as many codes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import normalize

from activarium.analyses.features.spread import APART
from activarium.dictionaries import SAE, FeatureDictionary, RowSource, controls

LOOKED_AT = 4096  # rows whose codes are counted


def random_controls(name: str, dictionary: FeatureDictionary, source: RowSource, seed: int) -> dict[str, SAE]:
    """Controls by name; none for what is no `SAE`.

    Thresholds that were learnt for other directions let many codes through, or hardly any. So a dictionary with thresholds has two
    controls: one keeps them, the other takes as many of the largest products in every row as the dictionary has codes on average.
    """
    if not isinstance(dictionary, SAE):
        return {}
    same = controls.random(dictionary, seed + APART)
    made = {f"random directions, as {name}": same}
    design = dictionary.design
    if design.k is None and not design.transcoder:
        rows = source.read(source.chosen[:LOOKED_AT])[0]
        active = dictionary.codes(rows.to(dictionary.directions.device)).active.double().mean()
        k = min(max(1, round(float(active))), design.features)
        unit = normalize(same.W_dec, dim=1)
        weights = {"encoder": unit, "W_dec": unit.clone(), "b_enc": torch.zeros(len(unit)).to(unit), "b_dec": same.b_dec}
        made[f"random directions, {k} codes, as {name}"] = SAE.of_weights(replace(design, kind="topk", k=k), weights, dictionary.origin)
    return made
