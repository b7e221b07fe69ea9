"""What each block of a recording was given and what it gave."""

from __future__ import annotations

from collections.abc import Mapping

from activarium.activations import Activations
from activarium.analyses.layer_sites import layer_number
from activarium.errors import InputError
from activarium.recording import Recording

Blocks = dict[str, tuple[Activations, Activations]]  # `blocks.3` → input, output


def block_ends(recording: Recording, stack: str, outputs: Mapping[str, Activations]) -> Blocks:
    """Input and output of each block of a stack, as they really were."""
    found: Blocks = {}
    before = f"{stack}.embed".strip(".")
    for i, (site, output) in enumerate(outputs.items()):
        block = site.removesuffix(".resid_post")
        number = layer_number(site, i)
        previous = before if number == 0 else site.replace(f"blocks.{number}.", f"blocks.{number - 1}.")
        name = next((n for n in (f"{block}.resid_pre", previous) if n in recording), None)
        if name is None:
            raise InputError(
                f"What {block} was given is not in this recording: neither {block}.resid_pre nor {previous}. "
                'Read both ends: model.run(inputs, read=["blocks.*.resid_pre", "blocks.*.resid_post"]).'
            )
        found[block] = recording[name], output
    return found
