"""One class: build it tiny, certify it, ask an oracle that knows nothing of our site finder."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from activarium.testing.census._classes import ModelClass

# What an architecture does not have is no gap in what was found.
ABSENT = (
    "its MLP has no gate",
    "its attention and MLP run in parallel",
    "this class has no head",
    "this block has one sub-layer",
)


@dataclass(frozen=True)
class Verdict:
    """What became of one class.

    Attributes:
        name: The class.
        task: Its table.
        outcome: `certified`, `partly`, `refused`, `disputed` or `not built`.
        reason: Why not certified.
        missing: Site without layer numbers → why it is missing, for sites that the architecture has.
        algebra: Stack → how its blocks add up.
        checks: How many sites the certificate tried, over all checks.
        oracle: What the independent reference said.
    """

    name: str
    task: str
    outcome: str
    reason: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    algebra: dict[str, str] = field(default_factory=dict)
    checks: int = 0
    oracle: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def examine(one: ModelClass) -> Verdict:
    """Build, certify and compare one class. Whatever it raises becomes its reason."""
    import activarium as act
    from activarium.errors import ActivariumError
    from activarium.testing.census._oracle import ask
    from activarium.testing.census._shrink import tiny_model

    try:
        model = tiny_model(one.name, one.model_type)
        fresh(model, one.name)
    except Exception as error:
        return Verdict(one.name, one.task, "not built", first_line(error))
    try:
        runner: Any = act.wrap(model, name=one.name)
    except Exception as error:
        kind = "" if isinstance(error, ActivariumError) else "the examination fails: "
        return Verdict(one.name, one.task, "refused", kind + first_line(error))
    missing = {}
    for name, reason in runner.sites.missing.items():
        if not reason.startswith(ABSENT):
            missing.setdefault(re.sub(r"\.\d+\.", ".*.", name), reason)
    shared = {"algebra": runner.certificate.algebra, "checks": sum(c.count for c in runner.certificate.checks), "missing": missing}
    if not runner.anatomy.stacks:
        return Verdict(one.name, one.task, "refused", next(iter(missing.values())))
    oracle = ask(runner)
    outcome = "disputed" if any(v.startswith("differ") for v in oracle.values()) else "partly" if missing else "certified"
    return Verdict(one.name, one.task, outcome, oracle=oracle, **shared)


def fresh(model: Any, name: str) -> None:
    """Random weights of a size that shows mistakes, the same on every machine."""
    import zlib

    from activarium.testing._tiny_models import _randomise

    _randomise(model, zlib.crc32(name.encode()))
    model.eval()


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}".removesuffix(" Pass certify=False to read it uncertified, at your own risk.")[:300]
