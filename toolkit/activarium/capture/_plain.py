"""A plain torch module as something to look into: it runs, and every module in it can be read by its path, uncertified."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from activarium.activations import Activations
from activarium.capture._certify import Certificate
from activarium.capture._sites import SiteTable
from activarium.capture._trace import first_tensor
from activarium.errors import InputError, SilentHook, UnknownSite, unknown
from activarium.recording import Recording
from activarium.rows import Rows


class ModuleRunner:
    """A module without a configuration: no vocabulary, no certificate, but `module:PATH` reads what any module gives.

    Attributes:
        name: How it is called in results.
        torch_module: The module itself.
        sites: An empty table; nothing of the vocabulary was recognised.
        certificate: Says that nothing was proven.
    """

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name, self.torch_module = name, model
        self.sites = SiteTable([], f"{name} (a plain module: read module:PATH, uncertified)")
        self.certificate = Certificate.none()
        self._modules = {path: m for path, m in model.named_modules() if path}

    def run(self, inputs: Any, read: str | Sequence[str] = (), *, edits: Sequence[Any] = (), **options: Any) -> Recording:
        """One forward: what the named modules gave, and `output` if the model gives a tensor.

        Args:
            inputs: A tensor for the first argument, or a dict of keyword arguments. Examples are the first axis.
            read: `module:PATH`, or several of them; `*` stands for one part of a path.
            edits: None: a plain module has no certified place to write to.
            **options: None of the options of a certified model is known here.

        Returns:
            Recording with axes by shape: `example feature`, `row feature` (rows are example by example) or `example channel height width`.

        Raises:
            UnknownSite: No module has this path; the nearest are listed.
            SilentHook: A module did not run exactly once.
            InputError: Edits or options were given, or a module gave something else than one of these shapes.
        """
        if edits or options:
            asked = "edits" if edits else next(iter(options))
            raise InputError(f"{self.name} is a plain module without certified sites, so run() takes no {asked}; read module:PATH alone.")
        paths = [p for one in ([read] if isinstance(read, str) else read) for p in self._paths(one)]
        seen: dict[str, list[Any]] = {p: [] for p in paths}
        handles = [self._modules[p].register_forward_hook(lambda m, a, out, p=p: seen[p].append(first_tensor(out))) for p in seen]
        try:
            with torch.no_grad():
                output = self.torch_module(**inputs) if isinstance(inputs, Mapping) else self.torch_module(inputs)
        finally:
            for handle in handles:
                handle.remove()
        count = len(first_tensor([*inputs.values()] if isinstance(inputs, Mapping) else inputs))  # type: ignore[arg-type]
        made = {f"module:{p}": self._activations(p, values, count) for p, values in seen.items()}
        answer = first_tensor(output)
        if answer is not None and answer.ndim in (2, 3, 4):
            made["output"] = _shaped("output", answer, count, self.name)
        rows = {a.space: a.index for a in made.values() if a.index is not None}
        return Recording(made, rows, {"model": self.identity})

    __call__ = run

    @property
    def identity(self) -> dict[str, Any]:
        """What a result is stamped with."""
        return {"name": self.name, "class": type(self.torch_module).__name__, "certificate": self.certificate.summary()}

    def _paths(self, name: str) -> list[str]:
        if not name.startswith("module:"):
            raise UnknownSite(
                f"{self.name} is a plain module, so {name!r} names no site of it. Read module:PATH, such as module:{next(iter(self._modules), '')}."
            )
        wanted = name.removeprefix("module:").split(".")
        fits = [
            p for p in self._modules if len(q := p.split(".")) == len(wanted) and all(a in ("*", b) for a, b in zip(wanted, q, strict=True))
        ]
        if not fits:
            raise unknown("module in this model", name.removeprefix("module:"), self._modules, UnknownSite)
        return fits

    def _activations(self, path: str, values: list[Any], count: int) -> Activations:
        if len(values) != 1:
            times = "did not run" if not values else f"ran {len(values)} times"
            raise SilentHook(f"module:{path} {times} in one forward; it should run once. Read a module around it.")
        if values[0] is None:
            raise InputError(f"module:{path} gave no tensor; read a module inside it.")
        return _shaped(f"module:{path}", values[0].detach(), count, self.name)

    def __repr__(self) -> str:
        inputs = ", ".join(inspect.signature(self.torch_module.forward).parameters)
        return f"ModuleRunner({self.name!r}: {len(self._modules)} modules, takes {inputs}, {self.certificate.verdict})"


def _shaped(name: str, value: Tensor, count: int, model: str) -> Activations:
    """Axes by shape; the rows of a three-dimensional value are numbered example by example."""
    if value.ndim not in (2, 3, 4) or len(value) != count:
        raise InputError(f"{name} of {model} gives shape {tuple(value.shape)}; wanted 2 to 4 axes, the first of them {count} examples.")
    if value.ndim == 4:
        return Activations(value, "example channel height width", site=name, index=_rows(count, 1), space="example")
    if value.ndim == 2:
        return Activations(value, "example feature", site=name, index=_rows(count, 1), space="example")
    rows = value.shape[1]
    # Modules may have different numbers of rows (channels here, patches there): each number is a row space of its own.
    return Activations(value.flatten(0, 1), "row feature", site=name, index=_rows(count, rows), space=f"rows_{rows}")


def _rows(count: int, rows: int) -> Rows:
    return Rows({"example": np.repeat(np.arange(count), rows), "position": np.tile(np.arange(rows), count)})
