"""A vision transformer in which saturated patches, and no others, are given a high norm by three known neurons of one block."""

import numpy as np
import torch
from torch import nn

from activarium import testing

READ, BORN, NEURONS = 7, 1, (5, 11, 30)
NORM = 600.0  # of a planted patch, where the others have about ten


def pictures(count: int, seed: int = 0) -> tuple[list[np.ndarray], set[tuple[int, int, int]]]:
    """Dark noise with two white patches of 8 × 8 in every second picture, and where they are: (example, y, x)."""
    random = np.random.default_rng(seed)
    images = [random.integers(0, 90, (32, 32, 3), dtype=np.uint8) for _ in range(count)]
    cells = set()
    for example in range(0, count, 2):
        for cell in random.choice(16, 2, replace=False).tolist():
            y, x = divmod(cell, 4)
            images[example][8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 255
            cells.add((example, y, x))
    return images, cells


def planted_vit(family: str = "vit", **values) -> tuple[nn.Module, object]:
    """The model and its processor; `family` is `vit`, or `dinov2_registers` for one with registers."""
    model, processor = testing.tiny(family, num_hidden_layers=3, **values)
    parts = dict(model.named_modules())
    fc1s, fc2s, outs = ([m for n, m in parts.items() if n.endswith(end)] for end in ("mlp.fc1", "mlp.fc2", "attention.o_proj"))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("cls_token", "position_embeddings", "register_tokens")):
                weights[..., READ] = 0
        projection = next(m for n, m in parts.items() if n.endswith("patch_embeddings.projection"))
        projection.weight[READ] = 12 / projection.weight[READ].numel()
        projection.bias[READ] = 0
        for linear in (*fc2s, *outs):  # nothing else writes what the neurons read
            linear.weight[READ], linear.bias[READ] = 0, 0
        gates = fc1s[BORN]
        for neuron in NEURONS:
            gates.weight[neuron], gates.bias[neuron] = 0, -8
            gates.weight[neuron, READ] = 5
        written = torch.randn(len(NEURONS), fc2s[BORN].weight.shape[0], generator=torch.Generator().manual_seed(1))
        written[:, READ] = 0
        for neuron, direction in zip(NEURONS, written, strict=True):
            fc2s[BORN].weight[:, neuron] = direction
        _scale(model, processor, fc2s[BORN], list(NEURONS))
    return model.eval(), processor


def _scale(model: nn.Module, processor, down: nn.Linear, neurons: list[int]) -> None:
    """Make the planted write as long as asked for, as measured on one picture."""
    images, _ = pictures(1)
    seen = {}
    with down.register_forward_hook(lambda module, args, out: seen.update(inside=args[0], out=out)):
        model(**processor(images, return_tensors="pt"))
    strong = seen["inside"][0, :, neurons].sum(1)
    share = seen["inside"][0, strong.argmax(), neurons] @ down.weight[:, neurons].T
    down.weight[:, neurons] *= NORM / share.norm()
