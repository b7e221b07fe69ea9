"""Does a row of this model depend on earlier rows alone? Tried: what follows a row is changed, and the row must keep its bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from activarium.capture._spaces import probe_tokens, uncommon_tokens

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

ROWS = 6


def looks_back(model: TorchRunner, space: str) -> bool:
    """See `TorchRunner.looks_back`."""
    spaces = model._encoder.spaces
    if space not in spaces or spaces[space].modality != "text" or spaces[space].image_token is not None or spaces[space].length is not None:
        return False  # images, texts that hold images and texts padded with tokens that take part look both ways
    avoid = uncommon_tokens(model.torch_module, model.tokenizer)
    ids = probe_tokens(spaces[space], 2, ROWS, avoid=avoid)
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    last = [n for n in model.sites if n.endswith(".resid_post") and model.sites[n].rows == space][-1]
    beside = {s.name: list(ids) for s in spaces.values() if s.modality == "text" and {"encoder", "decoder"} <= set(spaces)}
    before, after = (
        model.run(
            model.inputs(beside | {space: list(t)} if beside else list(t) if space == "" else {space: list(t)}, bos=False), read=last
        )[last].tensor
        for t in (ids, other)
    )
    rows = before.unflatten(0, (2, -1))[:, : ROWS - 1], after.unflatten(0, (2, -1))[:, : ROWS - 1]
    return torch.equal(*rows)
