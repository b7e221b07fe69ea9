"""Models from a name, a folder or an object; refused with words where weights are missing or nothing can be fetched."""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from activarium.capture._certify import Certificate
from activarium.capture._certify import certify as prove
from activarium.capture._encode import Encoder
from activarium.capture._image_tokens import measure, probe_text
from activarium.capture._interface import own_configs
from activarium.capture._lens import LensRunner, is_lens_model, look
from activarium.capture._plain import ModuleRunner
from activarium.capture._probe import Anatomy, find_sites, trace_model
from activarium.capture._runner import TorchRunner
from activarium.capture._spaces import find_spaces, prefix_kinds, probe_pixels, probe_tokens, uncommon_tokens
from activarium.data import folder as bundled_folder
from activarium.data import models as bundled_models
from activarium.errors import InputError, nearest

Certify = Literal["full", "quick"] | bool


def load(name: str | Path, *, dtype: str | torch.dtype | None = None, device: str = "cpu", certify: Certify = "full") -> TorchRunner:
    """Which model do you want to look into? A bundled name, a local folder or a Hugging Face id.

    Args:
        name: `"scribe"`, `"path/to/folder"`, `"gpt2"`, `"google/vit-base-patch16-224"`.
        dtype: Type of the weights; by default the one they are stored in.
        device: Where the model lives.
        certify: `"full"`, `"quick"` (no write tests) or False; recorded in the certificate.

    Returns:
        The model with its sites and its certificate.

    Raises:
        InputError: Nothing of that name, weights missing, or the hub is out of reach.
        CertificateError: What would be read is not what the model computes.
    """
    place = _place(str(name))
    model = _from_pretrained(place, dtype).to(device)
    return _wrapped(model.eval(), _tokenizer(place), _processor(place), str(name), certify)


def wrap(
    model: nn.Module, tokenizer: Any = None, processor: Any = None, *, name: str | None = None, certify: Certify = "full"
) -> TorchRunner | ModuleRunner:
    """A model that is already in memory, with named sites. Its weights are not touched.

    Args:
        model: A Hugging Face transformer, a `HookedTransformer` or `TransformerBridge` of TransformerLens, or any torch module, of
            which only `module:PATH` can be read. It is put into evaluation mode.
        tokenizer: Its tokenizer, image processor, or a processor that holds both.
        processor: Its image processor, if the tokenizer was given first.
        name: How it is called in results; by default its class.
        certify: See `load`.

    Returns:
        The model with its sites and its certificate.

    Raises:
        CertificateError: What would be read is not what the model computes.
    """
    tokenizer, processor = _sort_out(tokenizer, processor)
    model.eval()
    title = name or type(model).__name__
    if is_lens_model(model):
        return _proven(lambda: _lens_runner(model, tokenizer, title), certify)
    if not hasattr(model, "config"):
        return ModuleRunner(title, model)
    return _wrapped(model, tokenizer, processor, title, certify)


def _lens_runner(model: Any, tokenizer: Any, title: str) -> TorchRunner:
    tokenizer = tokenizer if tokenizer is not None else model.tokenizer
    return LensRunner(title, model, *look(model, tokenizer, title))


def _wrapped(model: nn.Module, tokenizer: Any, processor: Any, title: str, certify: Certify) -> TorchRunner:
    return _proven(lambda: _torch_runner(model, tokenizer, processor, title), certify)


def _proven(find: Callable[[], TorchRunner], certify: Certify) -> TorchRunner:
    with _few_threads():
        runner = find()
        runner.certificate = Certificate.none() if certify is False else prove(runner, full=certify != "quick")
    runner.certificate.require()
    return runner


def _torch_runner(model: nn.Module, tokenizer: Any, processor: Any, title: str) -> TorchRunner:
    own_configs(model)
    spaces = find_spaces(model)
    # Nobody asked for a cache of keys and values, and building one costs time in every forward.
    quiet = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    anatomy, spaces = _look(model, spaces, tokenizer, quiet, title)
    return TorchRunner(title, model, Encoder(spaces, tokenizer, processor, quiet), anatomy)


@contextmanager
def _few_threads() -> Iterator[None]:
    """A probe is tiny: on more threads its forwards wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _look(model: nn.Module, spaces: dict[str, Any], tokenizer: Any, quiet: dict[str, Any], title: str) -> tuple[Anatomy, dict[str, Any]]:
    """One traced forward on a small probe."""
    special = uncommon_tokens(model, tokenizer)
    device = next(model.parameters()).device
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    arguments: dict[str, Any] = {}
    try:
        for space in [s for s in spaces.values() if s.modality == "vision"]:
            arguments[space.argument] = probe_pixels(space, 2, dtype).to(device)
            spaces = measure(model, spaces, arguments[space.argument])
        for i, space in enumerate(spaces.values()):
            if space.modality == "text":
                rows = space.length or min(5 + i, space.limit or 8)
                tokens = probe_tokens(space, 2, rows, seed=i, avoid=special)
                arguments[space.argument] = probe_text(space, tokens).to(device)
        trace = trace_model(model, {**arguments, **quiet})
    except Exception as error:  # the model's own code, in its own words
        given = " and ".join(s.argument for s in spaces.values())
        raise InputError(f"{title} does not run on {given} alone: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    anatomy = find_sites(model, trace, arguments, spaces, title)
    for name, space in spaces.items():
        if name in anatomy.causal and space.mask:
            # Pads come last, so no causal row sees them; a mask would only blind the pads, whose NaN then reach real rows.
            spaces[name] = replace(space, mask=None)
        if space.modality == "vision" and name in anatomy.rows:
            config = getattr(model.config, "vision_config", model.config)
            kinds = prefix_kinds(anatomy.rows[name], space, int(getattr(config, "num_register_tokens", 0) or 0))
            spaces[name] = replace(space, prefix=kinds)
    return anatomy, spaces


def _sort_out(tokenizer: Any, processor: Any) -> tuple[Any, Any]:
    """Users pass whatever from_pretrained gave them: find the tokenizer and the image processor in it."""
    if tokenizer is not None and processor is None and hasattr(tokenizer, "image_processor"):
        return getattr(tokenizer, "tokenizer", None), tokenizer.image_processor
    if tokenizer is not None and not hasattr(tokenizer, "convert_ids_to_tokens"):
        return None, tokenizer
    return tokenizer, processor


def _place(name: str) -> str:
    """Where to load from, decided without waiting for a network."""
    if name in bundled_models():
        return str(bundled_folder(name))
    if Path(name).exists():
        if not (Path(name) / "config.json").is_file():
            raise InputError(f"The folder {name} has no config.json, so it holds no model; save one there with save_pretrained.")
        return name
    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise InputError(
            f"There is no folder {name}. Give an existing folder, a bundled model ({', '.join(bundled_models())}) or a hub id."
        )
    _require_hub(name)
    return name


def _require_hub(name: str) -> None:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    close = nearest(name, bundled_models())
    hint = f" Did you mean the bundled {close[0]!r}?" if close else f" Bundled models work offline: {', '.join(bundled_models())}."
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise InputError(f"{name!r} is not in the local cache and HF_HUB_OFFLINE is set.{hint}")
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT", "ALL_PROXY")):
        return  # reachable by a way that a plain connection cannot test
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError as error:
        raise InputError(
            f"{name!r} is neither a bundled model nor a folder, and the model hub cannot be reached ({error}).{hint}"
        ) from error


def _from_pretrained(place: str, dtype: str | torch.dtype | None) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.from_pretrained(place)
    architectures = config.architectures or []
    kind = next((getattr(transformers, a) for a in architectures if hasattr(transformers, a)), None)
    if kind is None:
        raise InputError(
            f"{place} names the classes {architectures or 'none'} in its config; none of them is in transformers {transformers.__version__}."
        )
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    with _no_bar():
        model, found = kind.from_pretrained(place, dtype=wanted if wanted is not None else "auto", output_loading_info=True)
    lacking = sorted(found["missing_keys"])
    if lacking:
        shown = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        raise InputError(
            f"{place} lacks weights of {kind.__name__}: {shown}. They would be random; load the class that was saved, or the complete checkpoint."
        )
    return model


@contextmanager
def _no_bar() -> Iterator[None]:
    """The library transformers draws a bar even for models that load in no time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokenizer(place: str) -> Any:
    import transformers

    return _optional(
        lambda: transformers.AutoTokenizer.from_pretrained(place), place, ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    )


def _processor(place: str) -> Any:
    import transformers

    return _optional(
        lambda: transformers.AutoImageProcessor.from_pretrained(place), place, ("preprocessor_config.json", "processor_config.json")
    )


def _optional(make: Any, place: str, files: tuple[str, ...]) -> Any:
    """A tokenizer or processor, or None where the folder has no file of its kind."""
    if Path(place).is_dir() and not any((Path(place) / f).is_file() for f in files):
        return None
    try:
        return make()
    except (OSError, ValueError, KeyError):
        if Path(place).is_dir():
            raise
        return None  # a hub model of the other modality
