"""The bundled models, samples and generators: inside the package in a wheel, in the repository's `data/` in a clone."""

import sys
from pathlib import Path

from activarium.errors import InputError, unknown

_HERE = Path(__file__).parent
_CLONE = _HERE.parents[2] / "data"  # toolkit/activarium/data → repository root

# In a clone the files lie at the root; a wheel has them beside this file (pyproject.toml, force-include).
# pyproject.toml next to them tells our clone from a stranger's folder called `data`.
if _CLONE.is_dir() and (_CLONE.parent / "pyproject.toml").is_file():
    __path__.append(str(_CLONE))


def roots() -> list[Path]:
    """The folders that are searched, first the package's own."""
    return [Path(p) for p in sys.modules[__name__].__path__]


def folder(name: str) -> Path:
    """The folder of one bundled model or data set.

    Raises:
        UnknownName: There is no folder of this name; the message lists those that exist.
    """
    if name not in _folders():  # names are compared, never joined: `../x` finds nothing
        raise unknown("bundled folder", name, sorted(_folders()))
    return _folders()[name]


def models() -> list[str]:
    """Names of the bundled models, ready for `act.load`."""
    return sorted(n for n, place in _folders().items() if (place / "config.json").is_file())


def dictionaries() -> dict[str, Path]:
    """Name → folder of the bundled dictionaries, ready for `act.dictionaries.load`."""
    place = _folders().get("dictionaries")
    return {} if place is None else {p.name: p for p in sorted(place.iterdir()) if (p / "cfg.json").is_file()}


def samples(name: str = "") -> Path:
    """The folder of small texts and images for tests and tours, or one file in it.

    Raises:
        InputError: There is no such sample; the message lists those that exist.
    """
    place = folder("samples")
    found = place / name
    if name and (name not in {p.name for p in place.iterdir()} or not found.exists()):
        raise InputError(f"No sample called {name!r}. Known: {', '.join(sorted(p.name for p in place.iterdir())) or 'none'}.")
    return found


def _folders() -> dict[str, Path]:
    inside = [p for root in roots() if root.is_dir() for p in root.iterdir() if p.is_dir()]
    return {p.name: p for p in inside if not p.name.startswith(("_", "."))}
