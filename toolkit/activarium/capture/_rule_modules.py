"""Which modules the relevance rules act on, told by what they do to a few numbers and never by their class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from activarium.capture._block import Block
from activarium.capture._gradients import TOLERANCE
from activarium.capture._weights import NORMS

if TYPE_CHECKING:
    from activarium.capture._runner import TorchRunner

OWN_CODE = {"attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern"}  # what must be seen of an attention that calls no kernel
GAINS, BIASES = ("weight", "w", "lambda1"), ("bias", "b")


@dataclass(frozen=True)
class NormForm:
    """A norm as arithmetic: centred or not, times a scale per row, times a gain, plus a bias.

    Attributes:
        centred: Is the mean taken off (LayerNorm), or not (RMSNorm)?
        plus_one: Is the gain stored as `1 + weight`?
    """

    centred: bool
    plus_one: bool = False

    def frozen(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What the norm gives, affine in `x` and in its own bias: the scale of each row is the one that was used, held constant."""
        gained, bias = self.gained(module, self.centre(x)), _own(module, BIASES)
        made = gained * self.scale(module, gained, y)
        return (made if bias is None else made + bias.to(made.dtype)).to(y.dtype)

    def centre(self, x: Tensor) -> Tensor:
        """What is scaled, in float32 at least."""
        wide = x if x.dtype == torch.float64 else x.float()
        return wide - wide.mean(-1, keepdim=True) if self.centred else wide

    def gained(self, module: nn.Module, values: Tensor) -> Tensor:
        """Values times the gain, which is no leaf."""
        gain = _own(module, GAINS)
        if gain is None:
            return values
        gain = gain.detach().to(values.dtype)
        return values * (gain + 1 if self.plus_one else gain)

    def scale(self, module: nn.Module, gained: Tensor, y: Tensor) -> Tensor:
        """The scale of each row as the module really used it, whatever its epsilon; a row without variance tells none and has 0."""
        with torch.no_grad():
            bias = _own(module, BIASES)
            target = y.to(gained.dtype) if bias is None else y.to(gained.dtype) - bias.to(gained.dtype)
            return (torch.linalg.vecdot(target, gained) / torch.linalg.vecdot(gained, gained)).nan_to_num(0.0, 0.0, 0.0)[..., None]


@dataclass
class Found:
    """What rules can act on in one model. Dictionaries are by module path.

    Attributes:
        norms: Norms of streams and sub-layers.
        qk_norms: Norms inside an attention.
        activations: Activation modules, with the slope of each at zero.
        functional: Blocks whose activation no module computes, by name (`blocks.3`).
        gated: Blocks with a gated MLP whose product can be seen.
        notes: Per rule, what exists and cannot be bound.
    """

    norms: dict[str, NormForm] = field(default_factory=dict)
    qk_norms: dict[str, NormForm] = field(default_factory=dict)
    activations: dict[str, float] = field(default_factory=dict)
    functional: dict[str, Block] = field(default_factory=dict)
    gated: dict[str, Block] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, rule: str, words: str) -> None:
        """Say what a rule could not be bound to."""
        self.notes.setdefault(rule, []).append(words)


_found: WeakKeyDictionary[Any, Found] = WeakKeyDictionary()


def rule_modules(model: TorchRunner) -> Found:
    """Everything that rules can act on; looked for once per model."""
    if model not in _found:
        with torch.no_grad():
            _found[model] = _look(model)
    return _found[model]


def blocks_of(model: TorchRunner) -> Iterator[tuple[str, Block]]:
    """Every block with its name, `encoder.blocks.2`."""
    for stack in model.anatomy.stacks.values():
        for i, block in enumerate(stack.blocks):
            yield f"{stack.prefix}blocks.{i}", block


def _look(model: TorchRunner) -> Found:
    found = Found()
    blocks = list(blocks_of(model))
    roles = {f"{n}.{r}": model.module(b.modules[r]) for n, b in blocks for r in NORMS if r in b.modules}
    inside_attention = {id(m) for _, b in blocks for path in b.attention.values() for m in model.module(path).modules()}
    inside_attention -= {id(m) for m in roles.values()}
    widths = {b.sizes["d_model"] for _, b in blocks if "d_model" in b.sizes}
    taken: set[int] = set()
    for path, module in model.torch_module.named_modules():
        if id(module) in taken or any(p.ndim > 1 for p in module.parameters()):
            continue
        form = norm_form(module, widths, model.dtype, model.device)
        slope = None if form else slope_at_zero(module, model.dtype, model.device)
        if form:
            taken |= {id(m) for m in module.modules()}  # a norm inside it is this one
            (found.qk_norms if id(module) in inside_attention else found.norms)[path] = form
        elif slope is not None:
            found.activations[path] = slope
    for name, module in roles.items():
        if id(module) not in taken and not is_linear_map(module, widths, model.dtype, model.device):
            found.note("norms", f"{name} is no norm with one scale per row")
    answer = model.sites.get("logits")
    if answer is not None and answer.place is not None and answer.place.argument == "logits_per_image":
        found.note("norms", "embeddings are brought to length one after the towers, which keeps its ordinary gradient")
    _mlps(model, blocks, found)
    _attentions(model, blocks, found)
    return found


def _mlps(model: TorchRunner, blocks: list[tuple[str, Block]], found: Found) -> None:
    active = {id(model.module(path)) for path in found.activations}
    for name, block in blocks:
        held = any(id(m) in active for m in model.module(block.path).modules())
        if not held and {"mlp.pre", "mlp.post"} <= block.places.keys():
            found.functional[name] = block
        elif not held and "mlp" in block.writers:
            found.note("activations", f"{name} shows no activation")
        if {"mlp.up", "mlp.post"} <= block.places.keys():
            found.gated[name] = block
        elif "mlp.post" not in block.places and "mlp" in block.writers:
            found.note("gates", f"{name} shows no neurons (mixture of experts?), so a product inside keeps its ordinary gradient")


def _attentions(model: TorchRunner, blocks: list[tuple[str, Block]], found: Found) -> None:
    for name, block in blocks:
        lacking = not block.attention if model.watches else not block.places.keys() >= OWN_CODE
        if lacking and block.algebra != "single":
            found.note("attention", f"{name} has an attention that is not seen")
    for path, module in model.torch_module.named_modules():
        if isinstance(module, nn.MultiheadAttention):  # torch's own, which passes no interface
            found.note("attention", f"{path} is torch's own attention, which is not seen")


def norm_form(module: nn.Module, widths: set[int], dtype: torch.dtype, device: torch.device) -> NormForm | None:
    """How a module norms its rows, or None: tried on a few rows and on three times those rows."""
    gain = _own(module, GAINS)
    tolerance = TOLERANCE.get(dtype, 3e-2)
    for width in {gain.shape[-1]} if gain is not None and gain.ndim == 1 else widths:
        x = torch.randn(1, 4, width, generator=torch.Generator().manual_seed(0)).add(0.5).to(device, dtype)
        y, again = _tried(module, x), _tried(module, 3 * x)
        if y is None or again is None or float((y - again).abs().max()) > 10 * tolerance * float(y.abs().max()):
            continue
        forms = [NormForm(centred, plus) for centred in (True, False) for plus in (False, True)[: 1 if gain is None else 2]]
        gaps = {form: float((form.frozen(module, x, y) - y).abs().max()) for form in forms}
        best = min(forms, key=lambda form: gaps[form])
        if gaps[best] <= tolerance * float(y.abs().max()):
            return best
    return None


def is_linear_map(module: nn.Module, widths: set[int], dtype: torch.dtype, device: torch.device) -> bool:
    """Does it only scale, as LayerScale does? Then its gradient is its own already."""
    for width in widths:
        a, b = torch.randn(2, 1, 4, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        each, both = (_tried(module, a), _tried(module, b)), _tried(module, a + b)
        if each[0] is not None and each[1] is not None and both is not None:
            return torch.allclose(each[0] + each[1], both, rtol=TOLERANCE.get(dtype, 3e-2), atol=1e-5)
    return False


def slope_at_zero(module: nn.Module, dtype: torch.dtype, device: torch.device) -> float | None:
    """The slope at zero of a module that treats every number for itself, is bent, and leaves zero alone; None for any other."""
    if any(p.ndim for p in module.parameters()):
        return None
    x = torch.linspace(-3, 3, 9, device=device, dtype=dtype).reshape(1, 3, 3)  # zero stands in the middle
    y, alone = _tried(module, x), _tried(module, x[..., 1:2])
    if y is None or alone is None or not torch.equal(y[..., 1:2], alone) or y[0, 1, 1] != 0:
        return None
    ratios = (y / x)[x != 0]
    if not ratios.isfinite().all() or float(ratios.max() - ratios.min()) < 1e-3:
        return None
    with torch.enable_grad():
        zero = torch.zeros(1, 1, 1, device=device, dtype=dtype, requires_grad=True)
        value = _tried(module, zero)
        return None if value is None or not value.requires_grad else float(torch.autograd.grad(value.sum(), zero)[0])


def _own(module: nn.Module, names: tuple[str, ...]) -> Tensor | None:
    return next((v for v in (getattr(module, n, None) for n in names) if isinstance(v, Tensor)), None)


def _tried(module: nn.Module, x: Tensor) -> Tensor | None:
    """What a module's own code makes of a value, past all hooks; None if it takes something else or gives another shape."""
    try:
        y = type(module).forward(module, x.clone())
    except Exception:
        return None
    return y if isinstance(y, Tensor) and y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all() else None
