"""A tiny configuration of any model class: sizes shrink by the names of their fields, sub-configurations likewise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from activarium.testing.census._exceptions import EXCEPTIONS
from activarium.testing.census._sizes import DEPTH, GROUPS, HEADS, SMALL, WORDS

LARGEST = 5_000_000  # parameters


def tiny_model(name: str, model_type: str) -> Any:
    """A model of one class with a small configuration and the class's own random weights.

    Configurations are made through their constructors, so that what follows from their sizes follows again. Where the class
    refuses one, it is tried with the sizes that default to "not given" filled in, and without grouped heads.

    Raises:
        Exception: Whatever the class says to the last of these configurations.
    """
    import torch
    import transformers

    kind = getattr(transformers, name)
    config_class = getattr(kind, "config_class", None) or transformers.CONFIG_MAPPING[model_type]
    failed: Exception | None = None
    for values in _attempts(config_class, EXCEPTIONS.get(model_type, {})):
        try:
            config = config_class(**values)
            with torch.device("meta"):
                size = sum(p.numel() for p in kind(config).parameters())
        except ImportError:
            raise
        except Exception as error:  # classes refuse in their own words
            failed = failed or error
            continue
        if size > LARGEST:
            raise ValueError(f"it still has {size:,} parameters after its known sizes were shrunk")
        return kind(config)
    assert failed is not None
    raise failed


def _attempts(kind: type, exceptions: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    default = kind()
    yield _small(default, exceptions, fill=False, groups=GROUPS)
    yield _small(default, exceptions, fill=True, groups=GROUPS)
    yield _small(default, exceptions, fill=False, groups=HEADS)
    yield _small(default, exceptions, fill=True, groups=HEADS)


def _small(config: Any, exceptions: Mapping[str, Any], fill: bool, groups: int) -> dict[str, Any]:
    fields = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    depth = _depth(fields)
    values: dict[str, Any] = {}
    for name, value in fields.items():
        made = SMALL.get(name) if fill and value is None else _field(name, value, fields, depth)
        if made is not None:
            values[name] = groups if made == GROUPS and name in GROUPED else made
    if "qk_rope_head_dim" in values and "head_dim" in fields:
        values["head_dim"] = values["qk_rope_head_dim"]  # latent attention: rotation is as wide as the rotated part
    for name in config.sub_configs:
        below = getattr(config, name, None)
        values.pop(name, None)
        if below is not None and not isinstance(below, dict):
            values[name] = {**_small(below, exceptions.get(name, {}), fill, groups), "model_type": below.model_type}
    return {**values, **{k: v for k, v in exceptions.items() if k not in config.sub_configs}}


GROUPED = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups")
DEEP = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def _depth(fields: Mapping[str, Any]) -> int:
    """Enough layers for one of every kind of layer."""
    kinds = fields.get("layer_types") or fields.get("layers_block_type") or []
    return max(DEPTH, len(dict.fromkeys(kinds)))


def _field(name: str, value: Any, fields: Mapping[str, Any], depth: int) -> Any:
    """A small value for one field, or None to leave it to the class."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        if name.endswith(("_token_id", "_token_index", "_index")) and value >= WORDS:
            return _token(name)
        return None if not value else depth if name in DEEP else SMALL.get(name)
    if isinstance(value, (list, tuple)) and value:
        return _list(name, list(value), fields, depth)
    return None


def _token(name: str) -> int:
    """Special tokens keep apart from each other and inside the small vocabulary."""
    usual = {"pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "cls": 3, "sep": 4, "mask": 5, "unk": 6}
    return usual.get(name.removesuffix("_token_id"), WORDS - 1 - sum(map(ord, name)) % 20)


STAGES = {"depths": 1, "num_heads": 2, "num_attention_heads": 2, "encoder_layers": 1}


def _list(name: str, value: list[Any], fields: Mapping[str, Any], depth: int) -> Any:
    """A list per layer gets one entry of every kind it has; a list per stage of a pyramid small sizes."""
    if name == "eos_token_id":
        return 2
    layers = next((fields[k] for k in DEEP if isinstance(fields.get(k), int)), None)
    if len(value) == layers:
        kinds = [SMALL[name]] if name in SMALL else list(dict.fromkeys(value)) if all(isinstance(v, (str, int)) for v in value) else value
        return [kinds[min(i, len(kinds) - 1)] for i in range(depth)]
    if name in ("hidden_sizes", "embed_dims", "embed_dim"):
        return [16 * 2 ** min(i, 2) for i in range(len(value))]
    if name in STAGES and all(isinstance(v, int) for v in value):
        return [STAGES[name]] * len(value)
    return [SMALL[name]] * len(value) if name in ("image_size", "patch_size") else None
