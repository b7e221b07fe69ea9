"""A TransformerLens model as a Runner: the same sites and calls as a Hugging Face model, read where it really computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from activarium.attention import AttentionSpec
from activarium.capture._encode import Encoder
from activarium.capture._inputs import Space
from activarium.capture._lens_places import BRIDGE, HOOKED
from activarium.capture._lens_processing import Processing, measure
from activarium.capture._lens_sites import LensAnatomy, Probe
from activarium.capture._runner import TorchRunner
from activarium.capture._session import Session
from activarium.capture._spaces import probe_tokens, uncommon_tokens
from activarium.errors import InputError, unknown

# Our name → TransformerLens' attribute of the same sub-module, with the same axes.
WEIGHTS = {f"attn.{w}": ("attn", w) for w in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")} | {
    "mlp.W_in": ("mlp", "W_in"),
    "mlp.b_in": ("mlp", "b_in"),
    "mlp.W_gate": ("mlp", "W_gate"),
    "mlp.b_gate": ("mlp", "b_gate"),
    "mlp.W_down": ("mlp", "W_out"),
    "mlp.b_down": ("mlp", "b_out"),
}


def is_lens_model(model: object) -> bool:
    """Is this TransformerLens' own? Asked without importing it."""
    return any(c.__module__.split(".")[0] == "transformer_lens" for c in type(model).__mro__)


class LensRunner(TorchRunner):
    """A `HookedTransformer` or `TransformerBridge` whose activations can be read and edited by name. Made by `act.wrap`.

    What is read is what this model computes. Where its weights were processed (folded norms, centred writing weights), its
    values differ from the original's: `processing` and the certificate say so.

    Attributes:
        name: How it is called in results.
        torch_module: The TransformerLens model itself.
        tokenizer: Its tokenizer, if any.
        sites: All sites, as a table that prints itself.
        certificate: What was proven about them.
        processing: What was done to its weights.
    """

    anatomy: LensAnatomy
    watches = False

    def __init__(self, name: str, model: Any, encoder: Encoder, anatomy: LensAnatomy) -> None:
        super().__init__(name, model, encoder, anatomy)
        # A bridge hangs the same modules in its own tree and in the Hugging Face model's; both paths must lead there.
        self._modules = dict(model.named_modules(remove_duplicate=False))

    # --- what it is

    @property
    def class_names(self) -> None:
        """None: these models end in a vocabulary."""
        return None

    @property
    def eager(self) -> bool:
        """Always: every pattern is computed."""
        return True

    @cached_property
    def processing(self) -> Processing:
        """How its weights differ from those of the model they came from, as measured on them."""
        block = self.anatomy.stacks[""].blocks[0]
        paths = [block.modules[r] for r in ("attn.norm", "mlp.norm") if r in block.modules]
        return measure(self.weights, self.weight, {p: self.module(p) for p in paths})

    @property
    def identity(self) -> dict[str, Any]:
        """Name, weight hash, dtype, processing and versions: what a store or Result is stamped with."""
        from importlib.metadata import version

        return {
            "name": self.name,
            "class": type(self.torch_module).__name__,
            "weight_hash": self._weight_hash(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "kernel": "transformer_lens",
            "processor_hash": self._encoder.hash,
            "processing": asdict(self.processing),
            "certificate": self.certificate.summary(),
            "versions": {"torch": torch.__version__, "transformer_lens": version("transformer_lens")},
        }

    def notes(self) -> tuple[str, ...]:
        """What a reader of its numbers should know."""
        found = list(self.processing.words())
        default = getattr(self.torch_module.cfg, "default_prepend_bos", None)
        if self.tokenizer is not None and default is not None:
            found.append(
                f"given text itself, TransformerLens would {'' if default else 'not '}prepend BOS; here bos= decides, by default as the tokenizer does"
            )
        theirs = sum(len(getattr(m, "fwd_hooks", ())) for m in self.torch_module.modules())
        if theirs:
            found.append(f"{theirs} hook functions were on the model when it was wrapped; they act in every run")
        return tuple(found)

    # --- running

    def call(self, **arguments: Any) -> Any:
        """TransformerLens' own forward."""
        from transformers.modeling_outputs import CausalLMOutput

        return CausalLMOutput(logits=self.torch_module(**arguments))

    @contextmanager
    def kernel(self, session: Session) -> Iterator[None]:
        """Nothing needs to be watched: queries, keys and patterns pass hook points."""
        session.seat.specs.update(self.anatomy.attention)
        yield

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """Refused, as `decode` and `sparse` are: see `TorchRunner.generate`.

        Raises:
            InputError: Always; the Hugging Face model can be read while it writes.
        """
        raise InputError(
            f"{self.name} is a TransformerLens model, which is not read while it writes. Wrap the Hugging Face model: act.wrap(hf_model, tokenizer).generate(…)."
        )

    decode = sparse = generate

    def resume(self, inputs: Any, at: str, values: Any, read: Any = (), *, start: int = 0, cached_kv: Any = None, **options: Any) -> Any:
        """Run only the rest of a forward: see `TorchRunner.resume`; every position is run.

        Raises:
            InputError: `start` or `cached_kv` was given.
        """
        if start or cached_kv is not None:
            raise InputError(
                f"{self.name} is a TransformerLens model, which resumes from position 0 only; drop start= and cached_kv=, or wrap the Hugging Face model."
            )
        return super().resume(inputs, at, values, read, **options)

    # --- weights

    @cached_property
    def weights(self) -> dict[str, tuple[str, str, Any]]:
        """Every named weight, with the module and the attribute that hold it."""
        found: dict[str, tuple[str, str, Any]] = {}
        for i, block in enumerate(self.anatomy.stacks[""].blocks):
            gated = "mlp.up" in block.places
            for short, (path, attribute) in WEIGHTS.items():
                # In a gated MLP of TransformerLens b_in is added after the product: it is no bias of the linear branch.
                if not (gated and short == "mlp.b_in"):
                    found[f"blocks.{i}.{short}"] = (f"blocks.{i}.{path}", attribute, None)
        found |= {"W_E": ("embed", "W_E", None), "W_U": ("unembed", "W_U", None), "b_U": ("unembed", "b_U", None)}
        return {n: p for n, p in found.items() if self._weight(*p[:2]) is not None}

    def weight(self, name: str) -> Tensor:
        """A named weight with named axes: see `TorchRunner.weight`."""
        if name not in self.weights:
            raise unknown("weight", name, self.weights)
        found = self._weight(*self.weights[name][:2])
        assert found is not None
        return found.detach()

    def _weight(self, path: str, attribute: str) -> Tensor | None:
        module: Any = self._modules.get(path)
        # Grouped keys and values: the plain name repeats them for every query head.
        found = next((v for v in (getattr(module, n, None) for n in (f"_{attribute}", attribute)) if isinstance(v, Tensor)), None)
        return found if found is not None else getattr(self.torch_module, attribute, None) if attribute in ("W_E", "W_U", "b_U") else None

    def __repr__(self) -> str:
        depth = len(self.anatomy.stacks[""].blocks)
        return f"LensRunner({self.name!r}: {type(self.torch_module).__name__}, {depth} blocks, {self.certificate.verdict})"


def look(model: Any, tokenizer: Any, title: str) -> tuple[Encoder, LensAnatomy]:
    """Row space and sites of a TransformerLens model, from one probe.

    Raises:
        InputError: It is no text model with a single chain of blocks.
    """
    cfg, bridge = model.cfg, hasattr(model, "original_model")
    if not isinstance(getattr(model, "blocks", None), (nn.ModuleList, list)) or not hasattr(model, "unembed"):
        raise InputError(
            f"{type(model).__name__} has no single chain of text blocks that ends in a vocabulary; act.wrap reads HookedTransformer and "
            "TransformerBridge language models. Wrap the Hugging Face model itself: act.wrap(hf_model, tokenizer)."
        )
    quiet: dict[str, Any] = {"return_type": "logits"} | ({} if bridge else {"padding_side": "right"})
    pad = getattr(tokenizer, "pad_token_id", None)
    space = Space("", "text", "input", None, limit=int(cfg.n_ctx), vocabulary=int(cfg.d_vocab), pad=0 if pad is None else int(pad))
    rows = next(n for n in range(6, 16) if n not in (cfg.n_heads, getattr(cfg, "n_key_value_heads", None), cfg.d_head))
    avoid = uncommon_tokens(getattr(model, "original_model", model), tokenizer)
    ids = probe_tokens(space, 2, min(rows, int(cfg.n_ctx)), avoid=avoid).to(next(model.parameters()).device)
    probe = Probe(model, BRIDGE if bridge else HOOKED, lambda given: model(given, **quiet), ids)
    anatomy = probe.anatomy(cfg, _bridge_attention if bridge else _hooked_attention, title)
    if not _causal(model, quiet, ids):
        raise InputError(
            f"{type(model).__name__} attends both ways; act.wrap reads causal TransformerLens models. Wrap the Hugging Face model itself."
        )
    anatomy.causal.add("")
    return Encoder({"": space}, tokenizer, None, quiet), anatomy


def _causal(model: Any, quiet: dict[str, Any], ids: Tensor) -> bool:
    """Does another last token leave every earlier row's logits alone? Then pads, which come last, need no mask."""
    other = ids.clone()
    other[:, -1] = other[:, 0]
    with torch.no_grad():
        return torch.equal(model(ids, **quiet)[:, :-1], model(other, **quiet)[:, :-1])


def _hooked_attention(block: Any) -> AttentionSpec | None:
    """What a HookedTransformer's configuration says of one attention; the probe decides whether it is true."""
    cfg, attn = block.attn.cfg, block.attn
    softcap = getattr(cfg, "attn_scores_soft_cap", -1.0)
    window = cfg.window_size if getattr(attn, "attn_type", "global") == "local" else None
    sinks = getattr(attn, "sinks", None)
    return AttentionSpec(
        1 / float(attn.attn_scale),
        True,
        window,
        softcap if softcap and softcap > 0 else None,
        None,
        None if sinks is None else sinks.detach(),
    )


def _bridge_attention(block: Any) -> AttentionSpec | None:
    """What a bridged attention says of itself; none where a window may act on texts longer than the probe."""
    attn = block.attn
    theirs, cfg = attn.original_component, attn.config
    config = getattr(theirs, "config", None)
    if getattr(theirs, "sliding_window", None) is not None or getattr(config, "sliding_window", None) is not None:
        return None
    scaling = getattr(theirs, "scaling", None)
    softcap = getattr(cfg, "attn_scores_soft_cap", -1.0)
    return AttentionSpec(
        float(scaling) if isinstance(scaling, float) else float(cfg.d_head) ** -0.5,
        True,
        None,
        softcap if softcap and softcap > 0 else None,
    )
