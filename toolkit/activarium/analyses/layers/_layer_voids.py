"""Layer voids: the layers that bring a token or a patch no further, by the length of its state alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from activarium.activations import Activations
from activarium.analyses.layer_sites import column, examples_of, layer_sites
from activarium.analyses.layers.evidence import on_grid, picture
from activarium.analyses.layers.intervals import Intervals
from activarium.analyses.layers.norm_progress import Tally, active, states_of, tally, thresholds
from activarium.analyses.layers.redundancy import CALM, SPECIAL, groups_of
from activarium.errors import InputError
from activarium.recording import Recording
from activarium.results import Grid, Overlay, Report, Result, Series

ALPHAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ALIGNMENTS = ("input", "produced")
CONFIDENCE = 0.95
FIRST, PROMPT, RESPONSE = "first rows", "prompt rows", "response rows"


def layer_voids(
    recording: Recording,
    *,
    alpha: float = 0.8,
    exclude_dims: Sequence[int] = (),
    align: str = "input",
    alphas: Sequence[float] = ALPHAS,
    example: int | None = None,
    image: Any = None,
    seed: int = 0,
) -> Report:
    """Which layers bring a token or a patch no further, judged by the length of its state?

    The progress of a layer is how much longer it makes a row's state (L2 norm, signed, float64). A layer is active for the
    row if its progress reaches `alpha` times the range of the progress of the layers before it, and a void otherwise; the
    first two, which have no range before them, are held against 0. Nothing is trained, and no other row has a say.

    A void says nothing about need. A block that turns the state, or shortens it, is a void however much it computes. The
    threshold never falls with depth: one jump early on, such as a massive activation, makes every later layer a void for
    that row. Look at the first rows apart, and leave massive dimensions out with `exclude_dims`.

    Args:
        recording: Holds `blocks.*.resid_post` of every block, and `blocks.0.resid_pre` or `embed`. Rows that carry a `phase`
            (of `model.generate`) are also counted by phase.
        alpha: Share of the range that a layer must reach.
        exclude_dims: Dimensions left out of every length, such as massive ones.
        align: What a row of the grids is called by. `"input"`: the token that was processed. `"produced"`: the token that
            came next in the text; a text's last row, which made none of it, is then left out of everything. Phases are
            always those of the pass: the first token of a response is made by the last row of the prompt.
        alphas: Shares at which the usage is measured as well.
        example: Whose rows are shown; the first one if not given.
        image: The picture of that example, uint8 `(height, width, 3)` or PIL, to lay the usage over.
        seed: Draws the sequences for the intervals.

    Returns:
        A report with, for the example shown, the grids `voids` (`row layer`: 1 active, 0 void), `progress` and `thresholds`
        (model units) and the overlay `usage` (share of active layers of each token; for patches with `image`, else a
        grid). Over all rows: the series `rate` (share of rows each layer is active for), `alphas` (share of active layers
        at each alpha) and `used` (share of rows by their number of active layers), with intervals over sequences; each for
        all rows, without first and special rows, first rows, kinds and phases. Rows of both phases add `phases`: rate in
        the prompt minus rate in the response. Models with several stacks have each part per stack.

    Raises:
        UnknownSite: The recording holds no `resid_post`.
        InputError: Blocks are missing, a dimension, example, alpha or alignment is not there, or `"produced"` is asked of
            patches or of texts of one token.
        NotFinite: NaN or infinite numbers in the residual stream.

    Source:
        Void in Language Models, 2025, arXiv:2505.14467; L2 Norm Guided Adaptive Computation, ICLR 2023 Tiny Papers.

    Differs:
        The published code judges the first layer by the range over the batch, so that a verdict depends on its companions.
        Excluded dimensions, rows apart, intervals and the sweep are ours.

    Example:
        >>> model = act.wrap(*act.testing.tiny("llama"), certify=False)
        >>> recording = model.run(["the cat sat"], read=["embed", "blocks.*.resid_post"])
        >>> act.analyses.layer_voids(recording)["voids"].axes
        ('row', 'layer')
    """
    _check(alpha, alphas, align)
    stacks = layer_sites(recording, ("resid_post",), "row d_model")
    parts: dict[str, Result] = {}
    words: list[str] = []
    notes: dict[str, Any] = {"alpha": alpha, "align": align, "exclude_dims": list(exclude_dims), "confidence": CONFIDENCE, "seed": seed}
    for stack, sites in stacks.items():
        trace = _Trace(stack, states_of(recording, stack, sites, exclude_dims), align, example)
        counted = tally(trace.states, trace.groups, alpha, alphas, exclude_dims, trace.example)
        made = trace.shown(counted, alpha, image) | trace.over_all(counted, alphas, Intervals(CONFIDENCE, 1000, seed))
        parts |= {f"{stack} {name}".strip(): part for name, part in made.items()}
        words += [f"{stack}: {line}" if stack else line for line in trace.words(made, alpha)]
        rows = dict(zip(trace.groups, counted.rows.sum(0).tolist(), strict=True))
        notes |= {f"{stack} rows".strip(): rows, f"{stack} sequences".strip(): len(counted.rows)}
    return Report(parts, tuple(words), title="Layer voids", diagnostics=notes)


def _check(alpha: float, alphas: Sequence[float], align: str) -> None:
    if align not in ALIGNMENTS:
        raise InputError(f"align={align!r} is no alignment; choose one of {', '.join(map(repr, ALIGNMENTS))}.")
    strange = [a for a in (alpha, *alphas) if not a >= 0]
    if strange or not len(alphas):
        found = f"found {strange[0]}" if strange else "alphas is empty"
        raise InputError(f"alpha is a share of a range, 0 or more (the paper takes 0.8); {found}.")


class _Trace:
    """One stack: its states, which rows are counted together, and which example is shown."""

    def __init__(self, stack: str, states: dict[str, Activations], align: str, example: int | None) -> None:
        self.names, self.states = [n for n in states if n], list(states.values())
        self.index, self.align = self.states[0], align
        examples = examples_of(self.index)
        if not len(examples):
            raise InputError(f"{self.index.site} has no rows. Run at least one example.")
        if example is not None and example not in examples:
            raise InputError(f"There is no example {example} in {stack or 'this recording'}; choose among {_some(examples)}.")
        self.example = int(examples.min()) if example is None else example
        self.kinds = column(self.index, "kind", "token").astype(str)
        self.first = np.diff(examples, prepend=-1) != 0
        self.last = np.diff(examples, append=-1) != 0
        self.groups = self._groups()

    def _groups(self) -> dict[str, np.ndarray]:
        groups, phase = groups_of(self.index), column(self.index, "phase", "").astype(str)
        if "patch" not in self.kinds:
            groups[FIRST] = self.first
        groups |= {PROMPT: phase == "prompt", RESPONSE: phase == "response"}
        if self.align == "produced":
            if "patch" in self.kinds:
                raise InputError("align='produced' names a row by the token it makes; patches make none. Use align='input'.")
            groups = {name: rows & ~self.last for name, rows in groups.items()}
            if not groups["all rows"].any():
                raise InputError("align='produced' leaves out each text's last row, and every text here has one token. Use align='input'.")
        return {name: rows for name, rows in groups.items() if rows.any()}

    def shown(self, counted: Tally, alpha: float, image: Any) -> dict[str, Result]:
        """The rows of one example."""
        rows = np.flatnonzero(examples_of(self.index) == self.example)
        texts = [str(t) for t in column(self.index, "text", "")[rows]]
        if self.align == "produced":
            rows, texts = rows[:-1], texts[1:]
        progress = counted.progress[: len(rows)]
        verdict = active(progress, alpha).numpy()
        labels = {"row": [t or str(i) for i, t in enumerate(texts)], "layer": self.names}
        apart = (self.first & ("patch" not in self.kinds)) | np.isin(self.kinds, SPECIAL)
        masks = {"first or special": np.repeat(apart[rows, None], len(self.names), 1)}
        who = f"of example {self.example}, rows called by the token {'processed' if self.align == 'input' else 'produced'}"
        grids = {
            "voids": (verdict.astype(np.float64), f"Active layers (1) and voids (0) {who}", "active"),
            "progress": (progress.numpy(), f"How much longer each layer makes the state, {who}", "model units"),
            "thresholds": (thresholds(progress, alpha).numpy(), f"What each layer's progress is held against, {who}", "model units"),
        }
        parts: dict[str, Result] = {
            name: Grid(values, ("row", "layer"), labels, masks if name == "voids" else {}, title=title, unit=unit)
            for name, (values, title, unit) in grids.items()
        }
        return parts | {"usage": self._usage(verdict.mean(1), rows, labels["row"], image)}

    def _usage(self, usage: np.ndarray, rows: np.ndarray, texts: list[str], image: Any) -> Result:
        title = f"Share of active layers in example {self.example}"
        if "patch" not in self.kinds[rows]:
            if image is not None:
                raise InputError("image= lies under patches; these rows are tokens. Leave it out.")
            return Overlay(usage[None], ("active layers",), tokens=tuple(texts), title=title, unit="share")
        places, _ = on_grid(self.index.example(self.example), usage[None])
        if image is None:
            return Grid(places[0], ("height", "width"), title=title, unit="share")
        return Overlay(places, ("active layers",), image=picture(image), title=title, unit="share")

    def over_all(self, counted: Tally, alphas: Sequence[float], draw: Intervals) -> dict[str, Result]:
        """Shares over all sequences, group by group."""
        depth, numbers = len(self.names), np.arange(len(self.names))
        each = list(enumerate(self.groups))
        below = {name: counted.rows[:, [g]] for g, name in each}
        rates = {name: (counted.active[:, g], below[name]) for g, name in each}
        sweep = draw.series(
            np.asarray(alphas), {n: (counted.sweep[:, g], depth * below[n]) for g, n in each}, "Active layers against alpha", "share"
        )
        used = draw.series(
            np.arange(depth + 1), {n: (counted.used[:, g], below[n]) for g, n in each}, "Rows by their number of active layers", "share"
        )
        parts: dict[str, Result] = {
            "rate": draw.series(numbers, rates, "Share of rows each layer is active for", "share"),
            "alphas": sweep.with_(x_label="alpha"),
            "used": used.with_(x_label="active layers"),
        }
        if PROMPT in rates and RESPONSE in rates:
            apart, ends = draw.difference(rates[PROMPT], rates[RESPONSE])
            title = "Rate in the prompt minus rate in the response"
            parts["phases"] = Series(numbers, {"prompt − response": apart}, "block", {"prompt − response": ends}, title=title, unit="share")
        return parts

    def words(self, parts: dict[str, Result], alpha: float) -> list[str]:
        """What was found, in sentences."""
        rate = parts["rate"]
        assert isinstance(rate, Series)
        usage = {name: float(curve.mean()) for name, curve in rate.curves.items()}
        curve = rate.curves["all rows"]
        low, high = int(curve.argmin()), int(curve.argmax())
        said = [
            f"at alpha {alpha:g} a row has {usage['all rows']:.0%} of its layers active; the others are voids by this rule.",
            f"{self.names[low]} is active for the fewest rows ({curve[low]:.0%}), {self.names[high]} for the most ({curve[high]:.0%}).",
        ]
        if FIRST in usage and CALM in usage:
            said.append(f"{FIRST} have {usage[FIRST]:.0%} active, rows {CALM} {usage[CALM]:.0%}.")
        if PROMPT in usage and RESPONSE in usage:
            said.append(f"{PROMPT} have {usage[PROMPT]:.0%} active, {RESPONSE} {usage[RESPONSE]:.0%}.")
        return said


def _some(examples: np.ndarray) -> str:
    known = np.unique(examples)
    return ", ".join(map(str, known)) if len(known) <= 8 else f"{len(known)} from {known[0]} to {known[-1]}"
