"""The logit lens: what the model would answer if it stopped after each layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, layer_sites, refuse_strange
from activarium.analyses.layers.answers import Spelling, identity_of
from activarium.analyses.layers.distributions import Lens, read_layers, settled
from activarium.analyses.layers.evidence import patch_parts
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Grid, Ranking, Report, Result

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # of the largest logit; 16-bit floats get 2e-2


def logit_lens(
    recording: Recording | Activations,
    model: Runner,
    *,
    example: int = 0,
    target: str | int = "final",
    top: int = 5,
    image: Any = None,
) -> Report:
    """At which layer does the answer appear, at every position or patch?

    Each layer's residual stream goes through the model's own final norm and head, row by row, as if the later blocks were
    not there. Text gives one answer per position. An image has one answer, read at its `cls` row; every patch is asked for
    the same class, which shows where in the picture the evidence lies.

    Args:
        recording: A recording with `blocks.*.resid_post` of this model (with `embed`, the layer before all blocks is added;
            with `logits`, the last layer is checked against them), or one stack of such sites.
        model: The model it was made with; only its `readout` runs.
        example: Which input.
        target: What is followed through the layers: `"final"` (the last layer's own answer), `"next"` (the token that
            really comes next), or a token, a class name or an id.
        top: How many answers are listed for each layer and position.
        image: The picture, uint8 `(height, width, 3)` or PIL, to lay the evidence over.

    Returns:
        A report with grids `layer position`: `probability` of the target (its `diagnostics["answers"]` holds the top answer
        of each cell), `rank` of the target (1 is the top; ties count in its favour), `entropy` (nats) and `kl`
        (KL(final ‖ layer), nats), and the ranking `answers`. An image adds `evidence` (the class's logit minus the mean
        over classes), `patches` (the same on the grid, `layer height width`) and, with `image`, an `overlay`.

    Raises:
        UnknownSite: The recording holds no `resid_post`.
        UnknownName: The target is no token or class of this model.
        InputError: The model's head pools several rows, the last layer is not what the model answered, there is no such
            example, or the recording has several stacks.
        NotFinite: NaN or infinite numbers in the residual stream.

    Source:
        nostalgebraist 2020, interpreting GPT: the logit lens (LessWrong); KL to the final layer as in Belrose et al. 2023,
        Eliciting Latent Predictions from Transformers with the Tuned Lens, arXiv:2303.08112. Classes at patches: Vilas et
        al. 2023, Analyzing Vision Transformers for Image Classification in Class Embedding Space, arXiv:2310.18969.

    Differs:
        Evidence is the logit minus its mean over classes, because a softmax over few classes hides how strong it is.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from activarium.activations import Activations
        >>> from activarium.rows import Rows
        >>> rows = Rows({"example": [0, 0], "position": [0, 1], "text": ["a", "b"], "kind": ["token", "token"]})
        >>> layers = [Activations(torch.eye(2) * s, "row d_model", site=f"blocks.{i}.resid_post", index=rows) for i, s in enumerate((1, 9))]
        >>> stack = Activations.stack(layers, [a.site for a in layers], "blocks.*.resid_post")
        >>> model = SimpleNamespace(name="two words", readout=lambda h: h)
        >>> logit_lens(stack, model)["rank"].values.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    if top < 1:
        raise InputError(f"top={top} lists no answers; give at least 1.")
    names, rows = _stack(recording, example)
    lens = read_layers(model, [a.tensor for a in rows], top, _answer_row(rows[0]))
    gap = _gap(recording, lens, example, rows[0])
    wanted, followed = _target(model, target, lens, rows[0])
    probability, rank = lens.follow(wanted)
    labels = {"layer": names, "position": _labels(rows[0])}
    spell = Spelling(model)
    answers = spell.table(lens.answers)
    parts: dict[str, Result] = {
        "probability": Grid(
            probability,
            ("layer", "position"),
            labels,
            title=f"Probability of {followed}",
            unit="share",
            diagnostics={"answers": answers[..., 0]},
        ),
        "rank": Grid(rank, ("layer", "position"), labels, title=f"Rank of {followed} (1 is the top)", unit="rank"),
        "entropy": Grid(lens.entropy, ("layer", "position"), labels, title="Entropy of each layer's answer", unit="nats"),
        "kl": Grid(lens.kl, ("layer", "position"), labels, title="KL(final ‖ layer)", unit="nats"),
        "answers": _ranking(labels, answers, lens),
    }
    words = _words(names, labels["position"], rank, probability, spell, wanted, _place(target, lens, probability, wanted))
    if lens.answer_row is not None:
        made, said = patch_parts(rows[0], names, lens.evidence(int(wanted[0])), spell(int(wanted[0])), image)
        parts, words = parts | made, words + said
    notes = {"example": example, "target": str(target), "model": model.name, "rows": len(labels["position"]), "layers": len(names)}
    notes |= {"largest difference from the model's logits": gap} if gap is not None else {"checked against logits": "no, none recorded"}
    return Report(parts, tuple(words), title="Logit lens", unit="share", diagnostics=notes)


def _stack(recording: Recording | Activations, example: int) -> tuple[list[str], list[Activations]]:
    """Layer names and the example's rows at each layer."""
    stacks = layer_sites(recording, ("resid_post",), "row d_model")
    stack = next((s for s in ("", "decoder") if s in stacks), None)
    if stack is None:
        found = " and ".join(repr(s) for s in stacks)
        raise InputError(
            f"This recording has the stacks {found}; the lens reads one. Pass it: rec['{next(iter(stacks))}.blocks.*.resid_post']."
        )
    sites = dict(stacks[stack])
    before = f"{stack}.embed".strip(".")
    if isinstance(recording, Recording) and before in recording:
        sites = {before: recording[before]} | sites
    for activations in sites.values():
        if activations.index is None:
            raise InputError(
                f"{activations.site or 'This site'} has no row table, so there is no example {example}. Take it from a recording."
            )
    rows = [a.example(example) for a in sites.values()]
    for row in rows:
        if not bool(row.tensor.isfinite().all()):
            refuse_strange(row, "No distribution can be read from it.")
    return [name.removesuffix(".resid_post") for name in sites], rows


def _answer_row(rows: Activations) -> int | None:
    """The row an image classifier's head reads, or None for text."""
    kinds = column(rows, "kind", "token").astype(str)
    if "patch" not in kinds:
        return None
    if "cls" not in kinds:
        raise InputError("These patches have no cls row, so no single row holds the model's answer. Use a method for pooled heads instead.")
    return int(np.flatnonzero(kinds == "cls")[0])


def _gap(recording: Recording | Activations, lens: Lens, example: int, rows: Activations) -> float | None:
    """Largest difference between the last layer's readout and the recorded logits, which must be rounding only."""
    if not isinstance(recording, Recording) or "logits" not in recording:
        return None
    logits = recording.logits.example(example).tensor.to(lens.final.dtype)
    mine = lens.final if lens.answer_row is None else lens.final[[lens.answer_row]]
    if logits.shape != mine.shape:
        return None
    gap, size = float((logits - mine).abs().max()), float(logits.abs().max())
    allowed = TOLERANCE.get(rows.dtype, 2e-2) * max(size, 1.0)
    if gap > allowed:
        raise InputError(
            f"The last layer's readout differs from the recorded logits by {gap:.3g}; rounding explains at most {allowed:.1g}. "
            "Read all of blocks.*.resid_post with this very model, without edits after the last block."
        )
    return gap


def _target(model: Runner, target: str | int, lens: Lens, rows: Activations) -> tuple[np.ndarray, str]:
    """The id that is followed at each row (-1: none), and how a reader calls it."""
    count = len(lens.final)
    if target == "final" and lens.answer_row is None:
        return lens.final.argmax(1).cpu().numpy(), "the final answer"
    if target == "final":
        answer = int(lens.final[lens.answer_row].argmax())  # type: ignore[index]
        return np.full(count, answer), repr(Spelling(model)(answer))
    if target == "next":
        if lens.answer_row is not None:
            raise InputError("target='next' asks for the next token; these rows are patches. Use 'final', a class name or an id.")
        return np.append(column(rows, "token", -1)[1:].astype(np.int64), -1), "the next token"
    chosen = identity_of(model, target, lens.final.shape[1])
    return np.full(count, chosen), repr(Spelling(model)(chosen))


def _labels(rows: Activations) -> list[str]:
    return [str(t) for t in column(rows, "text", "")]


def _ranking(labels: dict[str, list[str]], answers: np.ndarray, lens: Lens) -> Ranking:
    """The top answers of every layer and position, the most certain first."""
    layer, position = np.indices(answers.shape[:2]).reshape(2, -1)
    shares = lens.shares.reshape(len(layer), -1)
    order = np.argsort(-shares[:, 0], kind="stable")
    flat = answers.reshape(len(layer), -1)
    columns = {
        "layer": np.array(labels["layer"], dtype=object)[layer],
        "position": position,
        "text": np.array(labels["position"], dtype=object)[position],
    }
    for k in range(flat.shape[1]):
        columns |= {f"answer {k + 1}": flat[:, k], f"probability {k + 1}": shares[:, k]}
    names = tuple(
        f"{labels['layer'][a]} · {b} {labels['position'][b]!r} → {flat[i, 0]!r}"
        for i, (a, b) in enumerate(zip(layer, position, strict=True))
    )
    chosen = {k: v[order] for k, v in columns.items()}
    return Ranking(tuple(names[i] for i in order), shares[order, 0], chosen, title="Answers of each layer and position", unit="share")


def _words(
    names: list[str], texts: list[str], rank: np.ndarray, probability: np.ndarray, spell: Spelling, wanted: np.ndarray, at: int
) -> list[str]:
    if wanted[at] < 0:
        return ["There is no next token to follow: the example has one row."]
    first = settled(rank[:, at])
    when = f"is the top answer from {names[first]} on" if first is not None else "is not the top answer of the last layer"
    where = f"At position {at} ({texts[at]!r})"
    return [f"{where}, {spell(int(wanted[at]))!r} {when}; its probability goes from {probability[0, at]:.3f} to {probability[-1, at]:.3f}."]


def _place(target: str | int, lens: Lens, probability: np.ndarray, wanted: np.ndarray) -> int:
    """The row to talk about: the image's answer, the last answer, or where a chosen token is most probable in the end."""
    if lens.answer_row is not None:
        return lens.answer_row
    if target not in ("final", "next"):
        return int(probability[-1].argmax())
    return int(np.flatnonzero(wanted >= 0)[-1]) if (wanted >= 0).any() else 0
