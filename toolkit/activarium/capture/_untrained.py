"""The same architecture before it learned anything: what an analysis finds there is no achievement of training."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from activarium.errors import InputError

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner


def untrained(model: TorchRunner, seed: int) -> TorchRunner:
    """See `TorchRunner.untrained`."""
    from activarium.capture._certify import Certificate

    trained = model.torch_module
    if not isinstance(trained, PreTrainedModel):
        raise InputError(
            f"{model.name} is a {type(trained).__name__}; only transformers' models can be made anew from their config. Load it with act.load."
        )
    if model.quantised:
        raise InputError(f"{model.name} is quantised, and its config makes no such weights. Load it unquantised.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: Any = type(trained)(copy.deepcopy(trained.config))
    shapes = [{name: tuple(p.shape) for name, p in m.named_parameters()} for m in (trained, fresh)]
    if shapes[0] != shapes[1]:
        name = next(n for n in {**shapes[1], **shapes[0]} if shapes[0].get(n) != shapes[1].get(n))
        raise InputError(
            f"The config of {model.name} makes {name} of shape {shapes[1].get(name)}; the model has {shapes[0].get(name)}. "
            "A model that was changed after loading has no untrained twin."
        )
    made = type(model)(f"{model.name}, untrained", fresh.to(model.device, model.dtype).eval(), model._encoder, model.anatomy)
    made.certificate = Certificate.none()
    return made
