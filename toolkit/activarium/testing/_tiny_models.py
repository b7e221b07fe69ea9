"""Tiny models with random weights: every family in milliseconds, with nothing left at a value that hides a mistake."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from activarium.errors import unknown
from activarium.testing._families import FAMILIES, IMAGE, Family
from activarium.testing._tokenizer import SPECIAL, word_tokenizer

if TYPE_CHECKING:
    from torch import nn


def tiny(family: str, *, seed: int = 0, **values: Any) -> tuple[nn.Module, Any]:
    """A model of one family, small enough for a test, and its tokenizer or processor.

    Random float32 weights from `seed`, in evaluation mode; width 32, 4 heads (2 key/value heads where they are grouped),
    2 or 3 layers, about 100 words. Norm gains, biases, LayerScale and class tokens are random too: an identity that only
    holds for gains of one and biases of zero fails.

    Args:
        family: `gpt2`, `llama`, `t5_gated`, `dinov2_registers`, …; `FAMILIES` lists them.
        seed: Another seed gives other weights. The state of torch's own generator is left alone.
        **values: Configuration values to change, `num_hidden_layers=4`.

    Returns:
        The Hugging Face model and its tokenizer, image processor, or (two towers) processor.

    Raises:
        UnknownName: There is no such family here.

    Example:
        >>> model, tokenizer = tiny("gpt2")
        >>> tuple(model(**tokenizer("the cat sat", return_tensors="pt")).logits.shape)
        (1, 3, 100)
    """
    if family not in FAMILIES:
        raise unknown("tiny family", family, FAMILIES)
    import torch
    import transformers

    made = FAMILIES[family]
    tokenizer = word_tokenizer(made.around)
    config = _config(made, len(tokenizer), values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, made.model)(config)
    _randomise(model, zlib.crc32(family.encode()) + seed)
    return model.eval(), _processor(made, tokenizer)


def _config(family: Family, words: int, values: dict[str, Any]) -> Any:
    import transformers

    ids = {f"{name}_token_id": place for place, name in enumerate(SPECIAL) if name in ("pad", "bos", "eos")}
    text = {"vocab_size": words, **ids}
    kind = getattr(transformers, family.config)
    if family.towers:
        towers = {tower: dict(inside) for tower, inside in family.towers.items()}
        towers["text_config"] |= text
        return kind(**towers, **{k: v for k, v in towers["text_config"].items() if k == "projection_dim"}, **values)
    return kind(**(family.values | ({} if family.images else text) | values))


def _randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter afresh, in the order of its name.

    Library defaults are no test: with standard deviation 0.02 at width 32 attention is uniform and a block adds next to
    nothing; gains are exactly one and biases exactly zero.
    """
    import torch

    random = torch.Generator().manual_seed(seed)
    for _, weights in sorted(model.named_parameters()):
        noise = torch.randn(weights.shape, generator=random)
        with torch.no_grad():
            if weights.ndim == 1:
                # Around the default: one for most gains, zero for biases and for gains that are stored as `1 + weight`.
                weights.add_(0.3 * noise)
            elif weights.ndim == 4:  # patch embedding
                weights.copy_(noise * weights[0].numel() ** -0.5)
            else:
                weights.copy_(noise * 0.25)


def _processor(family: Family, tokenizer: Any) -> Any:
    import transformers

    if not family.images:
        return tokenizer
    # Pillow processors: torchvision exists for fewer machines than torch does.
    kind = getattr(transformers, family.images)
    crop = {"crop_size": {"height": IMAGE, "width": IMAGE}} if hasattr(kind, "crop_size") and kind.crop_size else {}
    size = {"shortest_edge": IMAGE} if crop else {"height": IMAGE, "width": IMAGE}
    images = kind(size=size, **crop)
    if not family.towers:
        return images
    return getattr(transformers, family.model.replace("Model", "Processor"))(image_processor=images, tokenizer=tokenizer)
