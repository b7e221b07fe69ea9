"""Every analysis: a function from a Recording, Activations or a Runner to a Result. The folder is the list."""

from pathlib import Path
from typing import Any

from activarium._recorded import recorded
from activarium._registry import Registry
from activarium.errors import unknown

registry = Registry(__name__, Path(__file__).parent, "analysis")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):  # Python and its tools probe for private names; none of them is an analysis
        raise AttributeError(name)
    if name not in registry:
        raise AttributeError(str(unknown("analysis", name, registry.entries)))
    made = recorded(registry.entry(name).load(), f"{__name__}.{name}")
    globals()[name] = made
    return made


def __dir__() -> list[str]:
    return sorted(registry.entries)
