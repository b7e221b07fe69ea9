"""One dictionary while it learns: its weights, optimiser and counters, a step at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from activarium.dictionaries.archetypes import Archetypes, centroids
from activarium.dictionaries.design import Origin
from activarium.dictionaries.objectives import objective
from activarium.dictionaries.recipe import BATCH, SIGNED, TOP, Recipe
from activarium.dictionaries.rows import Statistics
from activarium.dictionaries.sae import SAE
from activarium.dictionaries.step import Step
from activarium.errors import NotFinite

THRESHOLD_RATE = 0.01
REFRESH = 10  # steps from one look at which features are dead to the next
LOOK = 50  # steps from one look at whether the loss is finite to the next, where looking makes an accelerator wait
COUNTERS = ("silent", "dead", "average", "noted", "sums")
ADAM = ("step", "exp_avg", "exp_avg_sq")
UNIT = (*TOP, "gated", "pursuit")  # their directions keep length 1; the others' lengths stand in the penalty


class Learner:
    """Weights, optimiser and counters of one recipe.

    Attributes:
        recipe: How it is trained.
        sae: The dictionary, for scaled rows.
        scale: What rows are multiplied by: mean length √d_in.
        target_scale: The same for what is written.
        step: Steps taken.
        device: Where it learns. No step waits for the device but to count the codes of a batch, in the kinds where a batch decides.
    """

    def __init__(self, recipe: Recipe, statistics: Statistics, transcoder: bool, steps: int, device: torch.device | str = "cpu") -> None:
        inputs, targets = statistics.inputs, statistics.targets
        self.recipe, self.steps, self.step = recipe, steps, 0
        self.scale, self.target_scale = (len(s.mean) ** 0.5 / max(s.length, 1e-30) for s in (inputs, targets))
        self.sae = SAE(recipe.design(len(inputs.mean), len(targets.mean), transcoder), seed=recipe.seed)
        self.points: Archetypes | None = None
        with torch.no_grad():
            # Centred from the start: few features begin dead.
            self.sae.b_dec.copy_((self.target_scale * targets.centre(recipe.centre)).float())
            if recipe.archetypes and targets.rows is not None:
                points = centroids(self.target_scale * targets.rows, recipe.archetypes) - self.sae.b_dec
                self.points = Archetypes(points, recipe.features, recipe.slack, recipe.seed)
                self.sae.W_dec.copy_(self.points.directions())
                if not transcoder:
                    self.sae.encoder.copy_(normalize(self.sae.W_dec, dim=1))
            if recipe.kind not in UNIT:
                # Short directions and long encoders would be undone by the penalty; both begin as one tenth (Anthropic, April 2024).
                self.sae.W_dec.mul_(0.1)
                self.sae.encoder.copy_(self.sae.W_dec if not transcoder else 0.1 * self.sae.encoder)
        self.spread = self.target_scale**2 * float(targets.variance.sum())
        self.device = torch.device(device)
        self.look = 1 if self.device.type == "cpu" else LOOK
        self.sae.to(self.device)
        if self.points is not None:
            self.points.to(self.device)
        self.silent = torch.zeros(recipe.features, dtype=torch.int64, device=self.device)
        self.dead = torch.zeros(0, dtype=torch.int64, device=self.device)
        # Of the batch's smallest kept code, not yet corrected for its beginning at 0, and of how many batches.
        self.average, self.noted = (torch.zeros((), dtype=torch.float64, device=self.device) for _ in range(2))
        betas = (0.0, 0.999) if recipe.kind in ("jumprelu", "gated") else (0.9, 0.999)
        self.optimiser = torch.optim.Adam(self.learnt.values(), lr=recipe.rate, betas=betas, fused=True)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # squared error, codes, rows since the last note

    @property
    def learnt(self) -> dict[str, torch.nn.Parameter]:
        """What the optimiser moves."""
        own = dict(self.sae.named_parameters())
        if self.points is None:
            return own
        return {n: p for n, p in own.items() if n != "W_dec"} | {f"points.{n}": p for n, p in self.points.named_parameters()}

    @property
    def threshold(self) -> Tensor:
        """Running mean of the smallest code that a batch keeps."""
        return self.average / (1 - (1 - THRESHOLD_RATE) ** self.noted.clamp_min(1))

    @property
    def silenced(self) -> Tensor:
        """Features without a code for so many rows, boolean. `dead` holds their numbers as they were up to ten steps ago."""
        return self.silent >= self.recipe.dead_after

    def learn(self, x: Tensor, y: Tensor) -> None:
        """One step on rows and targets as the model has them.

        Raises:
            NotFinite: The loss is not finite any more.
        """
        sae, recipe = self.sae, self.recipe
        x, y = (side.to(self.device, non_blocking=True) for side in (x, y))
        rows, targets = self.scale * x, self.target_scale * y
        done = objective(recipe, sae, rows, targets if sae.design.transcoder else rows, self.dead, self.threshold)
        if self.step % self.look == 0 and not bool(done.loss.isfinite()):
            raise NotFinite(
                f"The loss of {recipe.kind} is {float(done.loss.detach())} at step {self.step}: it diverged. Take a smaller learning_rate= than {recipe.rate:.2g}."
            )
        self.optimiser.zero_grad(set_to_none=True)
        sae.W_dec.grad = None
        done.loss.backward()
        if self.points is not None:
            self.points.directions().backward(sae.W_dec.grad)
        with torch.no_grad():
            self._tidied()
        torch.nn.utils.clip_grad_norm_(self.learnt.values(), recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate * self._schedule()
        self.optimiser.step()
        with torch.no_grad():
            self._held()
        self._count(done, len(x))

    def _tidied(self) -> None:
        """Directions of length 1 may turn, not grow: what would change their length is taken out before the clip sees it."""
        grad = self.sae.W_dec.grad
        if self.points is None and self.recipe.kind in UNIT and grad is not None:
            grad -= (grad * self.sae.W_dec).sum(1, keepdim=True) * self.sae.W_dec

    def _held(self) -> None:
        if self.points is not None:
            self.points.held()
            self.sae.W_dec.copy_(self.points.directions())
        elif self.recipe.kind in UNIT:
            self.sae.W_dec.div_(self.sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))
        if self.recipe.kind == "jumprelu":
            self.sae.threshold.clamp_(min=0)

    def _schedule(self) -> float:
        """Up in the beginning, down to 0 at the end."""
        rising = (self.step + 1) / max(1, self.recipe.warm_up * self.steps)
        falling = (self.steps - self.step) / max(1, self.recipe.decay * self.steps)
        return min(1.0, rising, falling)

    def _count(self, done: Step, rows: int) -> None:
        self.silent.add_(rows).masked_fill_(done.fired, 0)
        if done.threshold is not None:
            told = done.threshold.isfinite()
            moved = torch.lerp(self.average, done.threshold.double(), THRESHOLD_RATE)
            self.average = torch.where(told, moved, self.average)
            self.noted = self.noted + told
        self.sums[0] += done.error
        self.sums[1] += done.active
        self.sums[2] += rows
        self.step += 1
        if self.step % REFRESH == 0:
            self.dead = self.silenced.nonzero()[:, 0]

    def note(self) -> dict[str, float]:
        """Unexplained variance, codes per row and dead features since the last note."""
        error, active, rows = self.sums.tolist()
        self.sums.zero_()
        rows = max(rows, 1)
        return {"unexplained variance": error / rows / max(self.spread, 1e-30), "active": active / rows, "dead": int(self.silenced.sum())}

    def finished(self, origin: Origin) -> SAE:
        """The dictionary for rows as the model has them; one threshold for what a batch decided, on any batch the same."""
        design, weights = self.sae.design, {n: p.detach().cpu() for n, p in self.sae.named_parameters()}
        if self.recipe.kind in BATCH:
            weights["threshold"] = torch.full((design.features,), float(self.threshold))
            design = replace(design, kind="absjump" if self.recipe.kind in SIGNED else "jumprelu")
        sae = SAE.of_weights(design, weights)
        made = sae.folded(self.scale, self.target_scale if design.transcoder else None)
        made.origin = origin
        return made

    # --- pauses

    def _weights(self) -> list[tuple[str, Tensor]]:
        return list((dict(self.sae.named_parameters()) | self.learnt).items())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on: tensors, and plain numbers."""
        tensors = {f"weight.{n}": p.detach() for n, p in self._weights()} | {name: getattr(self, name) for name in COUNTERS}
        for name, p in self.learnt.items():
            tensors |= {f"adam.{name}.{key}": value for key, value in self.optimiser.state[p].items()}
        return {n: t.cpu() for n, t in tensors.items()}, {"step": self.step}

    def resume(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from what `state` said."""
        with torch.no_grad():
            for name, p in self._weights():
                p.copy_(tensors[f"weight.{name}"])
            for name, p in self.learnt.items():
                self.optimiser.state[p] = {key: tensors[f"adam.{name}.{key}"].to(self.device, copy=True) for key in ADAM}
        for name in COUNTERS:
            setattr(self, name, tensors[name].to(self.device, copy=True))
        self.step = numbers["step"]
