"""Visual attention sinks: patches that every text looks at although they say nothing, and giving their attention to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from activarium.analyses.changed_answers import Answers, changed_answers
from activarium.analyses.layers.evidence import picture
from activarium.analyses.massive.sink_survey import Survey, find_dims, survey
from activarium.analyses.massive.visual_attention import SinkRule, image_rows, language_prefix, redistribution
from activarium.errors import InputError, unknown
from activarium.protocols import Runner
from activarium.results import Grid, Overlay, Ranking, Report, Result, Series

LISTED = 200


def visual_sinks(
    model: Runner,
    inputs: Any,
    *,
    dims: Sequence[int] | None = None,
    tau: float = 20.0,
    share: float | None = None,
    rho: float = 0.8,
    least: float = 0.2,
    remove: float = 0.6,
    first: int = 2,
    masks: Sequence[np.ndarray] | None = None,
    image: Any = None,
    example: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Which patches draw attention like a first token does, and what if others had it?

    A token is a sink of a block if, at the block's input, one of the language model's sink dimensions is `tau` times the
    token's root mean square (phi). Visual sinks are those inside the image. Then, in every head and text query that is image-centric, `remove`
    of the attention on all sinks goes to the patches that are none, in proportion to what they have: rows still sum to 1. The
    last block stays as it is.

    Args:
        model: A vision–language model whose image lies inside the text.
        inputs: `dict(text=…, images=…)`, or what the model takes.
        dims: Sink dimensions, a property of the language model; None takes the persistent massive dimensions found on these inputs.
        tau: Smallest phi. phi is at most √d_model, so 20 needs 400 dimensions or more.
        share: The same cut as a share of the token's energy in one dimension (20 at d_model 4096 is 0.098); replaces `tau`.
        rho: Smallest share of a query's visual attention on patches that are no sinks (0.8; for hallucination 0.5, vision-centric tasks 0.9).
        least: Smallest attention of a query on the image.
        remove: Share of the sinks' attention that is moved: 0 changes nothing, 1 leaves them nothing.
        first: First block that is changed.
        masks: For each text, where the object in its image is, boolean `(height, width)`: adds base rates.
        image: A picture to lay phi over, uint8 `(height, width, 3)` or PIL.
        example: The text whose phi is shown.
        seed: Draws the tokens of the control.
        progress: Show bars.

    Returns:
        A report with `sinks` (percent of image rows and of text rows that are sinks, per block), `tokens` (ranking by phi), `heads` (percent
        of the text queries that see an image at which a head is image-centric), `attention` (percent of visual attention on visual sinks, to be held
        against their percent of the image rows), `effects` (ranking of changes by KL at text rows: `redistributed`, `all heads`, and `random
        tokens` in the place of the sinks), where rows have a grid `phi`, with `image` an `overlay`, and with `masks` `background`
        (percent of sinks, and of all image rows, that lie in the background).

    Raises:
        InputError: There is no image, `tau` can never be reached, or an argument makes no sense.
        UnknownName: There is no such example.
        NotFinite: NaN or infinite numbers.

    Source:
        Kang et al. 2025, See What You Are Told: Visual Attention Sink in Large Multimodal Models, arXiv:2503.03321.

    Differs:
        A head is image-centric as the paper says, `>= rho` of its visual attention on patches that are no sinks (its code asks for
        `<= rho` on sinks). `remove` is the share taken away (its code's `p` is the share kept). Sinks are each text's own, and the last
        block is really left alone. The controls and the base rates are ours.

    Example:
        >>> import activarium as act
        >>> visual_sinks(act.wrap(*act.testing.tiny("llama"), certify=False), ["the cat"], share=0.1)
        Traceback (most recent call last):
        activarium.errors.InputError: LlamaForCausalLM was given no image: ...
    """
    encoded, prefix = model.inputs(inputs), language_prefix(model)
    image_rows(encoded.batch.rows[prefix.rstrip(".")], model.name)
    rule = _rule(model, prefix, tau, share, rho, least, remove, dims)
    if dims is None:
        rule = replace(rule, dims=find_dims(model, encoded, prefix, progress))
    found = survey(model, encoded, prefix, rule, progress)
    last = len(found.phi) - 1
    blocks = tuple(range(first, last))
    changes = {"redistributed": rule, "all heads": replace(rule, rho=0.0, least=0.0)}
    made = {name: redistribution(prefix, blocks, each) for name, each in changes.items()}
    made["random tokens"] = redistribution(prefix, blocks, rule, np.random.default_rng(seed))
    answers = changed_answers(model, encoded, made, progress=progress, doing="redistributing")
    parts: dict[str, Result] = {
        "sinks": _sinks(found, rule),
        "tokens": _tokens(found, rule),
        "heads": _grid(100 * found.centric, "Image-centric heads", "percent of text queries that see an image"),
        "attention": _grid(100 * found.on_sinks, "Visual attention on visual sinks", "percent of visual attention"),
        "effects": _effects(found, answers),
        **_shown(found, image, example),
        **({} if masks is None else {"background": _background(found, rule, masks)}),
    }
    notes: dict[str, Any] = {
        "dims": list(rule.dims),
        "tau": rule.tau,
        "rho": rho,
        "least": least,
        "remove": remove,
        "blocks changed": list(blocks),
    }
    return Report(parts, tuple(_words(parts, found, rule, blocks)), title="Visual attention sinks", diagnostics=notes)


def _rule(
    model: Runner, prefix: str, tau: float, share: float | None, rho: float, least: float, remove: float, dims: Sequence[int] | None
) -> SinkRule:
    for name, value in {"rho": rho, "least": least, "remove": remove, **({} if share is None else {"share": share})}.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name}={value} is no share; give a number from 0 to 1.")
    width = int(model.sites[f"{prefix}blocks.0.resid_pre"].shape[-1])
    outside = [d for d in dims or () if not 0 <= d < width]
    if outside:
        raise InputError(
            f"dims={outside} lie outside the {width} dimensions of {model.name}. Sink dimensions belong to one language model."
        )
    cut = tau if share is None else (share * width) ** 0.5
    if cut > width**0.5:
        raise InputError(
            f"tau={cut:g} can never be reached: phi is at most √{width} = {width**0.5:.3g}. Pass share=…, the share of a token's energy in one "
            "dimension; tau=20 at d_model 4096 is share=0.098."
        )
    return SinkRule(tuple(int(d) for d in dims or ()), cut, rho, least, remove)


def _is_sink(found: Survey, rule: SinkRule) -> np.ndarray:
    return found.phi >= rule.tau


def _sinks(found: Survey, rule: SinkRule) -> Series:
    sinks = _is_sink(found, rule)
    curves = {"image rows": 100 * sinks[:, found.image].mean(1), "text rows": 100 * sinks[:, ~found.image].mean(1)}
    return Series(np.arange(len(sinks)), curves, "block", title="Sinks at each block's input", unit="percent of rows")


def _tokens(found: Survey, rule: SinkRule) -> Ranking:
    block, row = np.nonzero(_is_sink(found, rule))
    sizes = found.phi[block, row]
    order = np.argsort(-sizes, kind="stable")[:LISTED]
    block, row = block[order], row[order]
    columns = {"block": block, "row": row}
    columns |= {name: found.rows[name][row] for name in ("example", "position", "kind", "y", "x") if name in found.rows}
    names = tuple(
        f"block {b} · example {found.rows['example'][r]}, position {found.rows['position'][r]}" for b, r in zip(block, row, strict=True)
    )
    return Ranking(names, sizes[order], columns, title="Sink tokens", unit="phi")


def _grid(values: np.ndarray, title: str, unit: str) -> Grid:
    return Grid(values, ("layer", "head"), {"layer": [f"blocks.{i}" for i in range(len(values))]}, title=title, unit=unit)


def _effects(found: Survey, answers: Mapping[str, Answers]) -> Ranking:
    names, text = list(answers), ~found.image
    kl = np.array([a.mean("kl", text) for a in answers.values()])
    columns = {
        "largest KL": np.array([a.kl[text].max() for a in answers.values()]),
        "same top answer": np.array([a.mean("agrees", text) for a in answers.values()]),
    }
    order = np.argsort(-kl, kind="stable")
    chosen = {name: c[order] for name, c in columns.items()}
    return Ranking(
        tuple(names[i] for i in order), kl[order], chosen, title="What redistribution does to the answers at text rows", unit="nats (KL)"
    )


def _shown(found: Survey, image: Any, example: int) -> dict[str, Result]:
    if example not in found.rows.examples:
        raise unknown("example", str(example), [str(e) for e in found.rows.examples])
    span = found.rows.span(example)
    y, x = (found.rows[name][span].astype(int) for name in ("y", "x")) if "y" in found.rows else (np.array([-1]),) * 2
    inside = y >= 0
    if not inside.any():
        return {}
    values = np.zeros((len(found.phi), y.max() + 1, x.max() + 1))
    values[:, y[inside], x[inside]] = found.phi[:, span][:, inside]
    layers, title = [f"blocks.{i}" for i in range(len(values))], f"phi of the image in example {example}"
    parts: dict[str, Result] = {
        "phi": Grid(values, ("layer", "height", "width"), {"layer": layers}, title=title, unit="times the token's RMS")
    }
    if image is not None:
        parts["overlay"] = Overlay(values, tuple(layers), image=picture(image), title=title, unit="times the token's RMS")
    return parts


def _background(found: Survey, rule: SinkRule, masks: Sequence[np.ndarray]) -> Series:
    """Where sinks lie against where all image rows lie; a row belongs to the object if its patch touches it."""
    examples = found.rows.examples
    if len(masks) != len(examples):
        raise InputError(f"There are {len(masks)} masks for {len(examples)} texts; give one for each, in their order.")
    outside: np.ndarray = np.zeros(len(found.rows), bool)
    placed: np.ndarray = found.image & (found.rows["y"] >= 0)
    for mask, example in zip(masks, examples, strict=True):
        span = found.rows.span(example)
        y, x = (found.rows[name][span].astype(int) for name in ("y", "x"))
        height, width = y.max() + 1, x.max() + 1
        mask = np.asarray(mask, bool)
        if mask.ndim != 2 or mask.shape[0] % height or mask.shape[1] % width:
            raise InputError(
                f"The mask of example {example} has shape {mask.shape}; wanted (height, width) in multiples of its grid {height} × {width}."
            )
        object_ = np.asarray(mask.reshape(height, mask.shape[0] // height, width, mask.shape[1] // width).any((1, 3)))
        outside[span] = ~object_[y, x]
    sinks: np.ndarray = _is_sink(found, rule) & placed
    with np.errstate(invalid="ignore"):
        share = 100 * (sinks & outside).sum(1) / sinks.sum(1)
    curves = {"visual sinks": share, "all image rows (base rate)": np.full(len(sinks), 100 * outside[placed].mean())}
    return Series(np.arange(len(sinks)), curves, "block", title="Rows in the background", unit="percent")


def _words(parts: Mapping[str, Result], found: Survey, rule: SinkRule, blocks: Sequence[int]) -> list[str]:
    sinks = _is_sink(found, rule)
    if not rule.dims:
        return [
            "Sink dimensions: none. No dimension is massive in 90 % of these texts at three layers in a row, so there are no sinks; pass dims=…."
        ]
    visual = 100 * sinks[:, found.image].mean(1)
    block = int(visual.argmax())
    named = ", ".join(map(str, rule.dims))
    if not sinks.any():
        said = [f"Sinks in dimensions {named} with phi >= {rule.tau:.3g}: none; the largest phi is {found.phi.max():.3g}."]
    else:
        said = [
            f"Sinks in dimensions {named}, phi >= {rule.tau:.3g}: at block {block}, {visual[block]:.2f} % of the image rows, which get "
            f"{np.nanmean(100 * found.on_sinks[block]):.2f} % of the visual attention (mean over heads); {100 * sinks[block, ~found.image].mean():.2f} % of the text rows."
        ]
    said.append(
        f"Image-centric by rho = {rule.rho:g}: {100 * np.nanmean(found.centric):.1f} % of the text queries that see an image, over all heads."
    )
    background = parts.get("background")
    if isinstance(background, Series) and sinks.any():
        here, base = (float(background.curves[name][block]) for name in ("visual sinks", "all image rows (base rate)"))
        said.append(
            f"In the background lie {here:.1f} % of the visual sinks of block {block} and {base:.1f} % of all image rows: {here / base if base else float('nan'):.2f} times the base rate."
        )
    effects = parts["effects"]
    if isinstance(effects, Ranking):
        costs = ", ".join(f"{n} {v:.3g}" for n, v in zip(effects.names, effects.values, strict=True))
        changed = f"blocks {blocks[0]} to {blocks[-1]}" if blocks else "no block"
        said.append(f"KL at text rows, {changed} changed: {costs} nats.")
    return said
