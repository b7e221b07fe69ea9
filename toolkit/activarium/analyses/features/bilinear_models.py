"""The bilinear layer of a model's block, exact where its gate is the identity, or its quadratic approximation; and its outputs' directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features.bilinear_layers import TOLERANCE, BilinearLayer
from activarium.analyses.layers.answers import Spelling, identity_of
from activarium.edits import Set
from activarium.errors import InputError, MissingSite
from activarium.recording import Recording

STEP = 0.1  # between the places at which an activation function is looked at
FAR = 1e3  # length of the vectors a head is tried with: eps of its norm does not show


@dataclass(frozen=True, eq=False)
class Read:
    """A layer with rows it really reads.

    Attributes:
        layer: The layer.
        x: Rows, `row d_model`.
        y: What the layer really makes of them, `row output`.
        directions: One per output, `output d_model`, in the space that the layer writes.
        names: What each output is.
        linear: For an approximation: its linear part alone, which it has to beat.
    """

    layer: BilinearLayer
    x: Tensor
    y: Tensor
    directions: Tensor
    names: tuple[str, ...]
    linear: BilinearLayer | None = None


def read_block(model: Any, inputs: Any, block: int, outputs: Any, approximation: str | None) -> Read:
    """The MLP of a block, on the rows of these inputs.

    Raises:
        InputError: It is not bilinear and no approximation was allowed, or a norm follows it.
    """
    place = f"blocks.{block}.mlp"
    gated = f"{place}.W_gate" in model.weights
    if f"{place}.W_down" not in model.weights:
        raise MissingSite(f"{model.name} has no weights of {place} to read: is there such a block, and is it not quantised?")
    branches = [f"{place}.pre", f"{place}.post", *([f"{place}.up"] if gated else [])]
    with torch.no_grad():
        recording = model.run(inputs, read=[f"{place}.in", f"{place}.proj", f"{place}.out", *branches])
    x, y = recording[f"{place}.in"].tensor, recording[f"{place}.proj"].tensor
    exact = gated and _is_product(recording, place)
    if not exact and approximation is None:
        kind = (
            "multiplies a gate that went through an activation function" if gated else "has no gate: one branch and an activation function"
        )
        raise InputError(
            f"{place} of {model.name} is not bilinear: it {kind}. Pass approximation='taylor' for its second-order Taylor polynomial at the "
            "mean row; the report then says how much of the layer that explains."
        )
    linear = None
    if exact:
        left, right, down = (_weight(model, f"{place}.{w}") for w in ("W_gate", "W_in", "W_down"))
        biases = [_bias(model, f"{place}.{b}") for b in ("b_gate", "b_in", "b_down")]
        layer = BilinearLayer.of(left.T, right.T, down.T, *biases)
    else:
        layer, linear = _taylor(model, inputs, place, gated, x.double().mean(0))
    names, directions = outputs_of(model, outputs, y.shape[1])
    return Read(layer, x, y, directions * _behind(model, recording, place), names, linear)


def outputs_of(model: Any, outputs: Any, width: int) -> tuple[tuple[str, ...], Tensor]:
    """Names and directions in the residual stream: vectors as given, tokens and classes by what the head reads them with."""
    if isinstance(outputs, Mapping):
        return vectors_of(outputs, width)
    chosen = [outputs] if isinstance(outputs, (str, int)) else list(outputs)
    if not chosen:
        raise InputError("No output was named: give tokens, classes or ids, or a dict of vectors.")
    head = _head(model, width)
    ids = [identity_of(model, int(t) if isinstance(t, np.integer) else t, head.shape[1]) for t in chosen]
    spell = Spelling(model)
    return tuple(spell(i).strip() or repr(spell(i)) for i in ids), head[:, ids].T.double()


def vectors_of(outputs: Mapping[str, Any], width: int) -> tuple[tuple[str, ...], Tensor]:
    """Named vectors as rows.

    Raises:
        InputError: There is none, one has another length, or is zero or not finite.
    """
    rows = {str(n): torch.as_tensor(np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v)).double() for n, v in outputs.items()}
    for name, row in rows.items():
        if tuple(row.shape) != (width,) or not bool(row.isfinite().all()) or not bool(row.any()):
            raise InputError(f"Output {name!r} has shape {tuple(row.shape)}; wanted {width} finite numbers, not all zero.")
    if not rows:
        raise InputError("No output was named: give at least one vector.")
    return tuple(rows), torch.stack(list(rows.values()))


def _head(model: Any, width: int) -> Tensor:
    """What each answer is read with, `d_model answer`, the final norm's gain folded in and its centring done.

    The head is tried with vectors of the model's own final norm: with e_i it answers gain_i W_i over the size that the norm divides by.
    """
    with torch.no_grad():
        tried = FAR * torch.eye(width, dtype=model.dtype, device=model.device)
        flat = torch.ones_like(tried[:1]) * FAR
        slope = ((model.readout(tried) - model.readout(-tried)) / 2).double().cpu()
        along = ((model.readout(flat) - model.readout(-flat)) / 2).double().cpu()
    centres = float(along.abs().max()) < 1e-3 * float(slope.abs().max())
    size = ((1 - 1 / width) / width) ** 0.5 if centres else width**-0.5
    if "W_U" in model.weights and "final_norm.gain" in model.weights:  # exact, and a soft-cap does not bend it
        folded = model.weight("final_norm.gain").double()[:, None] * model.weight("W_U").double()
        return (folded - folded.mean(0) if centres else folded).cpu()
    return slope * size


def _is_product(recording: Recording, place: str) -> bool:
    pre, up, post = (recording[f"{place}.{s}"].tensor for s in ("pre", "up", "post"))
    gap = float((pre.double() * up.double() - post.double()).abs().max())
    return gap <= TOLERANCE.get(post.dtype, 2e-2) * float(post.abs().max())


def _behind(model: Any, recording: Recording, place: str) -> Tensor:
    """Factor per number between what the layer writes and what is added to the stream."""
    wrote, added = recording[f"{place}.proj"].tensor.double(), recording[f"{place}.out"].tensor.double()
    if torch.equal(wrote, added):
        return torch.ones(wrote.shape[1], dtype=torch.float64)
    gain = model.weight(f"{place}.post.gain").double().cpu() if f"{place}.post.gain" in model.weights else None
    if gain is None or not torch.allclose(wrote * gain, added, rtol=1e-4, atol=1e-4 * float(added.abs().max())):
        raise InputError(f"A norm follows {place} in {model.name}: what reaches the stream is not quadratic in what the layer reads.")
    return gain


def _taylor(model: Any, inputs: Any, place: str, gated: bool, centre: Tensor) -> tuple[BilinearLayer, BilinearLayer]:
    """Second-order Taylor polynomial at a row, and its first-order part.

    With δ = x − centre, a neuron act(g) u is a₀u₀ + a₀δu + a₁u₀δg + a₁δgδu + ½a₂u₀δg², where a_n is the n-th derivative at g₀.
    """
    gate = _weight(model, f"{place}.{'W_gate' if gated else 'W_in'}").T
    up = _weight(model, f"{place}.W_in").T if gated else torch.zeros_like(gate)
    down = _weight(model, f"{place}.W_down").T
    none = torch.zeros(len(gate), dtype=torch.float64)
    gate_bias = _bias(model, f"{place}.{'b_gate' if gated else 'b_in'}")
    up_bias = _bias(model, f"{place}.b_in") if gated else none + 1
    down_bias = _bias(model, f"{place}.b_down")
    g = gate @ centre + (none if gate_bias is None else gate_bias)
    u = up @ centre + (none if up_bias is None else up_bias)
    value, slope, bend = _derivatives(model, inputs, place, gated, g)
    other = slope[:, None] * up + (bend * u / 2)[:, None] * gate
    first = down @ (value[:, None] * up + (slope * u)[:, None] * gate)  # all linear terms, `output d_model`
    start = down @ (value * u) + (0 if down_bias is None else down_bias) - first @ centre
    one = torch.zeros(len(first), gate.shape[1] + 1, dtype=torch.float64)
    one[:, -1] = 1
    lines = torch.cat([first, start[:, None]], 1)
    bent = [torch.cat([w, -(w @ centre)[:, None]], 1) for w in (gate, other)]
    whole = torch.eye(len(first), dtype=torch.float64)
    layer = BilinearLayer(torch.cat([bent[0], lines]), torch.cat([bent[1], one]), torch.cat([down, whole], 1), constant=True)
    return layer, BilinearLayer(lines, one, whole, constant=True)


def _derivatives(model: Any, inputs: Any, place: str, gated: bool, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, slope and curvature of the model's own activation function at one place per neuron, from five places around it."""
    one = model.inputs(inputs).select([0])
    seen = []
    for k in (-2, -1, 0, 1, 2):
        edits = [Set(f"{place}.pre", at + k * STEP), *([Set(f"{place}.up", 1.0)] if gated else [])]
        with torch.no_grad():
            seen.append(model.run(one, read=f"{place}.post", edits=edits)[f"{place}.post"].tensor[0].double().cpu())
    a, b, c, d, e = seen
    return c, (a - 8 * b + 8 * d - e) / (12 * STEP), (-a + 16 * b - 30 * c + 16 * d - e) / (12 * STEP**2)


def _weight(model: Any, name: str) -> Tensor:
    return model.weight(name).double().cpu()


def _bias(model: Any, name: str) -> Tensor | None:
    return model.weight(name).double().cpu() if name in model.weights else None


Outputs = Sequence[str | int] | Mapping[str, Any] | str | int  # what a reader may name as outputs
