"""How inputs enter a model: its row spaces, read off its config and one look at its tensors."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from activarium.capture._image_tokens import image_token
from activarium.capture._inputs import Space
from activarium.errors import InputError


def find_spaces(model: nn.Module) -> dict[str, Space]:
    """Row spaces of a Hugging Face model, the first one the main one.

    Raises:
        InputError: It takes neither token ids nor pixels.
    """
    config: Any = model.config
    accepted = set(inspect.signature(model.forward).parameters)
    if "input_ids" in accepted and "pixel_values" in accepted and hasattr(config, "vision_config") and hasattr(config, "text_config"):
        return {
            "vision": _vision(model, config.vision_config, "vision"),
            "text": _text(config.text_config, "text", "input_ids", "attention_mask"),
        }
    if "decoder_input_ids" in accepted and getattr(config, "is_encoder_decoder", False):
        starts = ((config, "decoder_start_token_id"), (getattr(config, "decoder", None), "bos_token_id"), (config, "pad_token_id"))
        start = next((i for i in (getattr(*where, None) for where in starts) if i is not None), 0)
        return {
            "encoder": _text(config, "encoder", "input_ids", "attention_mask"),
            "decoder": _text(config, "decoder", "decoder_input_ids", "decoder_attention_mask", start=int(start)),
        }
    if "pixel_values" in accepted:
        return {"": _vision(model, getattr(config, "vision_config", config), "")}
    if "input_ids" in accepted:
        mask = "attention_mask" if "attention_mask" in accepted else None
        return {"": _text(getattr(config, "text_config", config), "", "input_ids", mask)}
    raise InputError(f"{type(model).__name__} takes neither input_ids nor pixel_values; wrap a text or vision transformer of Hugging Face.")


def _text(config: Any, name: str, argument: str, mask: str | None, start: int | None = None) -> Space:
    limits = (getattr(config, k, None) for k in ("n_positions", "max_position_embeddings", "n_ctx"))
    limit = next((n for n in limits if isinstance(n, int) and n > 0), None)
    if config.model_type in ("t5", "mt5", "umt5"):
        limit = None  # relative positions only: n_positions in old configs bounds nothing
    # SigLIP's text tower was trained on texts padded to full length, without a mask: its pads take part in attention.
    fixed = config.model_type.startswith("siglip")
    pad = getattr(config, "pad_token_id", None)
    length = limit if fixed else None
    if getattr(config, "vocab_size", None) is None:
        raise InputError(f"The {type(config).__name__} of this model states no vocab_size, so no probe tokens can be drawn.")
    return Space(
        name, "text", argument, None if fixed else mask, length, limit, int(config.vocab_size), start, 0 if pad is None else int(pad)
    )


def _vision(model: nn.Module, config: Any, name: str) -> Space:
    if getattr(config, "image_size", None) is None:
        raise InputError(f"The configuration of {type(model).__name__} states no image_size, so no grid of patches is known.")
    patch, size = _pair(getattr(config, "patch_size", 1)), _pair(config.image_size)
    channels = int(getattr(config, "num_channels", 3))
    return Space(name, "vision", "pixel_values", patch=patch, image=(channels, *size), prefix=())


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else (int(value), int(value))


def prefix_kinds(rows: int, space: Space, registers: int) -> tuple[str, ...]:
    """Kinds of the rows before the patches, from how many rows the model really has.

    Raises:
        InputError: Rows and patch grid do not fit together.
    """
    _, height, width = space.image
    patches = (height // space.patch[0]) * (width // space.patch[1])
    extra = rows - patches
    if extra < 0 or (extra and extra < 1 + registers and registers):
        raise InputError(
            f"The model has {rows} rows for {patches} patches of {space.patch} on {(height, width)} pixels; no such grid is known."
        )
    if extra == 0:
        return ()
    return ("cls", *["special"] * (extra - 1 - registers), *["register"] * registers)


def probe_tokens(space: Space, examples: int, rows: int, seed: int = 0, avoid: tuple[int, ...] = ()) -> Tensor:
    """Random ordinary token ids `example position` for a probe."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([i for i in range(min(space.vocabulary, 4096)) if i not in avoid] or [0])
    return allowed[torch.randint(len(allowed), (examples, rows), generator=generator)]


def probe_pixels(space: Space, examples: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random pixels for a probe."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, *space.image, generator=generator).to(dtype)


def uncommon_tokens(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """Ids that a probe leaves out: models treat pads and other special tokens in ways of their own."""
    config = getattr(model, "config", None)
    pad, image = getattr(config, "pad_token_id", None), None if config is None else image_token(config)
    return (*(getattr(tokenizer, "all_special_ids", None) or ()), *(int(i) for i in (pad, image) if i is not None))
