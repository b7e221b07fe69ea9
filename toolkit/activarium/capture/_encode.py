"""From what a person has (texts, tokens, pictures) to ragged inputs, under an explicit BOS policy."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.capture._image_tokens import expand
from activarium.capture._inputs import Inputs, Space, check_images, check_label, check_pixels, check_tokens, unpadded
from activarium.errors import InputError

TEXT_KEYS = {"text", "texts", "input_ids", "encoder", "decoder", "decoder_input_ids"}
IMAGE_KEYS = {"image", "images", "pixel_values"}
MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


class Encoder:
    """Tokenizer and image processor of one model, with its row spaces.

    Attributes:
        quiet: Arguments for every forward that keep it from building what nobody asked for (a cache of keys and values).
    """

    def __init__(self, spaces: Mapping[str, Space], tokenizer: Any, processor: Any, quiet: Mapping[str, Any]) -> None:
        self.spaces, self.tokenizer, self.processor, self.quiet = dict(spaces), tokenizer, processor, dict(quiet)
        self.special = _special_kinds(tokenizer)
        self.words = lru_cache(maxsize=200_000)(self._word)

    def __reduce__(self) -> Any:  # for another process, where the words are decoded anew
        return Encoder, (self.spaces, self.tokenizer, self.processor, self.quiet)

    @property
    def hash(self) -> str | None:
        """Hash of tokenizer and processor settings."""
        parts = []
        if self.tokenizer is not None:
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            parts.append(backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items())))
        if self.processor is not None:
            parts.append(self.processor.to_json_string())
        return hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest() if parts else None

    def encode(self, data: Any, bos: Any) -> Inputs:
        """See `TorchRunner.inputs`."""
        if bos not in ("tokenizer", True, False):
            raise InputError(
                f"bos={bos!r} is no policy; choose 'tokenizer' (what the tokenizer adds), True (a text begins with BOS) or False (none)."
            )
        encoded: dict[str, list[Tensor] | Tensor] = {}
        if isinstance(data, Mapping):
            self._from_mapping(data, bos, encoded)
        else:
            space = next((s for s in self.spaces.values() if s.modality == ("text" if _is_text(data) else "vision")), None)
            if space is None:
                raise InputError(
                    f"{_what(data)} cannot be fed to this model, which takes {' and '.join(s.modality for s in self.spaces.values())}."
                )
            encoded[space.name] = self._text(data, space, bos) if space.modality == "text" else self._images(data, space)
        text = self.spaces.get("text")
        if text is not None and text.image_token is not None and "text" in encoded:
            pictures = encoded.get("vision")
            encoded["text"] = expand(list(encoded["text"]), text, None if pictures is None else len(pictures))
        if "decoder" in self.spaces and "decoder" not in encoded:
            start = self.spaces["decoder"].start
            encoded["decoder"] = [torch.tensor([start]) for _ in encoded["encoder"]]
        made = self._inputs(encoded, bos)
        label = data.get("label") if isinstance(data, Mapping) else None
        return made if label is None else replace(made, label=check_label(label, len(made)))

    def _inputs(self, encoded: dict[str, list[Tensor] | Tensor], bos: Any) -> Inputs:
        ordered = {name: encoded[name] for name in self.spaces if name in encoded}
        counts = {name: len(d) for name, d in ordered.items()}
        pad = getattr(self.tokenizer, "pad_token_id", None)
        policy = {
            "bos": bos,
            "pad": 0 if pad is None else int(pad),
            "processor": type(self.processor).__name__ if self.processor is not None else None,
        }
        if "decoder" in counts and len(set(counts.values())) > 1:
            raise InputError(
                f"There are {counts['encoder']} encoder texts and {counts['decoder']} decoder texts; give one decoder text for each."
            )
        return Inputs(ordered, np.arange(max(counts.values())), self.spaces, policy, self.words, self.special)

    def _from_mapping(self, data: Mapping[str, Any], bos: Any, encoded: dict[str, list[Tensor] | Tensor]) -> None:
        known = TEXT_KEYS | IMAGE_KEYS | set(MASKS.values()) | {"label"}
        strange = [k for k in data if k not in known]
        if strange:
            raise InputError(f"No input called {strange[0]!r}. Known: {', '.join(sorted(known))}.")
        for key, value in data.items():
            if key in IMAGE_KEYS:
                space = self._space("vision", key)
                encoded[space.name] = check_pixels(value, space) if key == "pixel_values" else self._images(value, space)
            elif key in TEXT_KEYS:
                space = self._space("text", key)
                value = unpadded(value, data.get(MASKS[key])) if key in MASKS else value
                encoded[space.name] = self._text(value, space, bos)
        if not encoded:
            raise InputError(f"The inputs hold {', '.join(data) or 'nothing'}, but no text and no image.")

    def _space(self, modality: str, key: str) -> Space:
        wanted = "decoder" if key.startswith("decoder") else "encoder" if "encoder" in self.spaces else None
        found = self.spaces.get(wanted) if wanted else next((s for s in self.spaces.values() if s.modality == modality), None)
        if found is None:
            raise InputError(f"Input {key!r} is for {modality}; this model takes {' and '.join(s.modality for s in self.spaces.values())}.")
        return found

    # --- text

    def _text(self, data: Any, space: Space, bos: Any) -> list[Tensor]:
        if isinstance(data, str):
            data = [data]
        if isinstance(data, Tensor) or (len(data) > 0 and isinstance(data[0], (int, np.integer))):
            data = unpadded(data, None)
        if not len(data):
            raise InputError("The list of texts is empty; give at least one.")
        texts = [check_tokens(self._ids(t, i, space, bos) if isinstance(t, str) else t, space, f"Text {i}") for i, t in enumerate(data)]
        if space.start is not None:
            texts = [t if len(t) and int(t[0]) == space.start else torch.cat([torch.tensor([space.start]), t]) for t in texts]
        self._warn_of_two(texts)
        return texts

    def _warn_of_two(self, texts: Sequence[Tensor]) -> None:
        """A chat template and a tokenizer that both put BOS first: attention sinks and massive activations then move or split."""
        begin = getattr(self.tokenizer, "bos_token_id", None)
        twice = [i for i, t in enumerate(texts) if begin is not None and t[:2].tolist() == [begin, begin]]
        if twice:
            warnings.warn(
                f"{len(twice)} of {len(texts)} texts begin with two BOS tokens (text {twice[0]} first), which the model was hardly trained on. "
                "If the text holds BOS already, as chat templates write it, pass bos=False.",
                UserWarning,
                stacklevel=5,
            )

    def _ids(self, text: str, i: int, space: Space, bos: Any) -> list[int]:
        if self.tokenizer is None:
            raise InputError(
                "This model was wrapped without a tokenizer, so it takes token ids, not text. Pass one: act.wrap(model, tokenizer)."
            )
        if not text.strip():
            raise InputError(f"Text {i} is empty: a text needs at least one token. Leave it out, or give it a word.")
        ids = list(self.tokenizer(text, add_special_tokens=bos is not False and space.start is None)["input_ids"])
        begin = self.tokenizer.bos_token_id
        if bos is True and begin is None:
            raise InputError("bos=True asks for a BOS token, but this tokenizer has none; choose bos='tokenizer' or bos=False.")
        return [begin, *ids] if bos is True and ids[:1] != [begin] else ids

    def _word(self, token: int) -> str:
        if self.tokenizer is None:
            return str(token)
        raw = self.tokenizer.convert_ids_to_tokens(token)
        if raw is None:
            return f"<{token}>"
        # Byte-level tokens are bytes in disguise; decoding shows the space a reader expects.
        return self.tokenizer.decode([token]) or raw if raw[:1] in "ĠĊâÃ" else raw.replace("▁", " ") or raw

    # --- images

    def _images(self, data: Any, space: Space) -> Tensor:
        if isinstance(data, Tensor) and data.is_floating_point():
            return check_pixels(data, space)
        if self.processor is None:
            raise InputError(
                "This model was wrapped without an image processor, so it takes dict(pixel_values=…). Pass one: act.wrap(model, processor)."
            )
        images = check_images(data, space)
        resized = bool(getattr(self.processor, "do_resize", False) or getattr(self.processor, "do_center_crop", False))
        sizes = {im.shape[:2] for im in images}
        if not resized and sizes != {space.image[1:]}:
            wrong = next(s for s in sizes if s != space.image[1:])
            raise InputError(
                f"An image is {wrong[0]}×{wrong[1]} pixels; this model takes {space.image[1]}×{space.image[2]} and its processor does not resize."
            )
        return check_pixels(self.processor(images=images, return_tensors="pt")["pixel_values"], space)


def _special_kinds(tokenizer: Any) -> dict[int, str]:
    if tokenizer is None:
        return {}
    kinds = {int(i): "special" for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id}
    named = {"cls": getattr(tokenizer, "cls_token_id", None), "bos": tokenizer.bos_token_id}
    return kinds | {int(i): kind for kind, i in named.items() if i is not None}


def _is_text(data: Any) -> bool:
    if isinstance(data, Tensor):
        return not data.is_floating_point() and data.ndim <= 2
    if isinstance(data, (list, tuple)) and not len(data):
        raise InputError("The list of inputs is empty; give at least one.")
    first = data[0] if isinstance(data, (list, tuple)) else data
    if isinstance(first, Tensor):
        return not first.is_floating_point() and first.ndim <= 1
    return isinstance(first, (str, int, np.integer, list)) or (
        isinstance(first, np.ndarray) and first.ndim == 1 and first.dtype.kind == "i"
    )


def _what(data: Any) -> str:
    return "Text" if _is_text(data) else "An image"
