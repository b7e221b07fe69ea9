"""A folder read as a registry: every `_name.py` in it is an entry, listed and described without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from activarium.errors import ActivariumError, unknown

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source", "Differs", "Example")


@dataclass(frozen=True)
class Entry:
    """One thing a folder offers, as its file describes it.

    Attributes:
        name: Public name: `lazy_neurons`, `TokenStrip`.
        path: The file.
        module: Dotted name of the file's module.
        room: The folder it is filed under, `sparsity`; empty at the top.
        docstring: Docstring of the function or class, its indentation removed.
        settings: Plain class attributes as they are written, `{"shows": "Grid"}`.
        parameters: Names of the arguments.
    """

    name: str
    path: Path
    module: str
    room: str
    docstring: str
    settings: dict[str, str] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()

    @property
    def first_line(self) -> str:
        """The question it answers: its line in every gallery."""
        return self.docstring.partition("\n")[0].strip()

    @property
    def sections(self) -> dict[str, str]:
        """Docstring by section (`Args`, `Returns`, `Source`, …); what stands before the first one has the key ``""``."""
        parts = re.split(rf"^({'|'.join(SECTIONS)}):[ \t]*$", self.docstring, flags=re.MULTILINE)
        return {"": parts[0].strip()} | {name: _dedented(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}

    def load(self) -> Any:
        """Import the file and give what it defines."""
        return getattr(import_module(self.module), self.name)


class Registry:
    """The entries of one package folder.

    Attributes:
        kind: What an entry is called in messages: `analysis`, `widget`.
    """

    def __init__(self, package: str, folder: Path, kind: str, public: Callable[[str], str] = str) -> None:
        self.package, self.folder, self.kind, self._public = package, folder, kind, public

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Public name → entry, sorted by room and name."""
        found: dict[str, Entry] = {}
        for path in sorted(self.folder.rglob("_*.py")):
            if path.name.startswith("__"):
                continue
            entry = self._read(path)
            if entry.name in found:
                raise ActivariumError(f"Two files define the {self.kind} {entry.name!r}: {found[entry.name].path} and {path}. Rename one.")
            found[entry.name] = entry
        return found

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def entry(self, name: str) -> Entry:
        """One entry by its public name.

        Raises:
            UnknownName: Nothing here has this name; the message offers the nearest ones.
        """
        if name not in self.entries:
            raise unknown(self.kind, name, self.entries)
        return self.entries[name]

    def _read(self, path: Path) -> Entry:
        parts = path.relative_to(self.folder).with_suffix("").parts
        name = self._public(parts[-1].removeprefix("_"))
        kinds = (ast.FunctionDef, ast.ClassDef)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        body = next((n for n in tree.body if isinstance(n, kinds) and n.name == name), None)
        if body is None:
            raise ActivariumError(
                f"{path.name} should define {name!r}, the {self.kind} it is named after. Define it, or drop the leading underscore."
            )
        return Entry(
            name=name,
            path=path,
            module=".".join([self.package, *parts]),
            room=".".join(parts[:-1]),
            docstring=ast.get_docstring(body) or "",
            settings=_settings(body),
            parameters=_parameters(body),
        )


def class_name(stem: str) -> str:
    """`token_strip` → `TokenStrip`: the class that a widget's file defines."""
    return "".join(word.capitalize() for word in stem.split("_"))


def _settings(body: ast.FunctionDef | ast.ClassDef) -> dict[str, str]:
    lines = body.body if isinstance(body, ast.ClassDef) else []
    plain = {t.id: n.value for n in lines if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    typed = {n.target.id: n.value for n in lines if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.value}
    return {name: ast.unparse(value) for name, value in (plain | typed).items()}


def _parameters(body: ast.FunctionDef | ast.ClassDef) -> tuple[str, ...]:
    if isinstance(body, ast.ClassDef):
        return ()
    given = body.args
    return tuple(a.arg for a in [*given.posonlyargs, *given.args, *given.kwonlyargs])


def _dedented(body: str) -> str:
    lines = body.strip("\n").splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[indent:] for line in lines).rstrip()
