"""Anything that is a dictionary, as one of ours: sae-lens' objects, folders, and what already is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.dictionaries.layouts._sae_lens import of_words
from activarium.dictionaries.read import load
from activarium.dictionaries.sae import SAE
from activarium.errors import InputError


def as_dictionary(thing: Any) -> FeatureDictionary:
    """The same features behind the calls that every analysis uses.

    Args:
        thing: A dictionary of ours, a sae-lens SAE or transcoder in memory, or the folder of one on disk.

    Returns:
        A dictionary of ours; one that already is comes back as it is.

    Raises:
        InputError: It is none of these, or of an architecture that is not computed here.
    """
    if isinstance(thing, FeatureDictionary):
        return thing
    if isinstance(thing, (str, Path)):
        return load(thing)
    if hasattr(thing, "cfg") and hasattr(thing.cfg, "to_dict") and hasattr(thing, "state_dict"):
        return _of_sae_lens(thing)
    raise InputError(
        f"A {type(thing).__name__} is no dictionary known here; wanted one of act.dictionaries, a sae-lens SAE, or the folder of one. "
        "Your own: derive from act.dictionaries.FeatureDictionary and say encode, decode, directions."
    )


def _of_sae_lens(sae: Any) -> SAE:
    said = dict(sae.cfg.to_dict())
    # In memory its rows were rescaled by whoever feeds it, so the weights are already those of what it is given.
    if said.get("normalize_activations") == "expected_average_only_in":
        said["normalize_activations"] = "none"
    weights = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    found = of_words(said, weights, type(sae).__name__)
    return SAE.of_weights(found.design, found.weights, found.origin)
