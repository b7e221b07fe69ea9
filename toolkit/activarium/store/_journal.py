"""The journal: one line per committed shard, each with its own checksum; what has no line does not exist."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict

from activarium.errors import CorruptStore
from activarium.store._format import Manifest, PlanEntry, digest, read_text


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Appended(_Line):
    """Data that joined the store after its manifest was written.

    Attributes:
        number: Example number of the first of them.
        data: Hash, policy and size of the inputs.
        plan: Which examples ran together; their places follow those of all earlier plans.
    """

    number: int
    data: dict[str, Any]
    plan: PlanEntry


class Session(_Line):
    """A writer began: which one, with which versions, on which manifest, and what it appends."""

    kind: Literal["session"] = "session"
    session: int
    manifest: str
    versions: dict[str, Any] = {}
    started: str = ""
    appended: Appended | None = None


class File(_Line):
    """One file of a commit."""

    bytes: int
    blake2b: str


class Commit(_Line):
    """A shard and its row tables are on the disk.

    Attributes:
        shard: Number of the shard, the name of its files.
        session: The writer that made it.
        span: Places `[first, last)` of its examples in the order of the batch plan.
        rows: Rows per row space.
        files: File name → size and hash.
        constants: Learned attention tensors kept with this shard: name → name in the side file.
    """

    kind: Literal["commit"] = "commit"
    shard: int
    session: int
    span: tuple[int, int]
    rows: dict[str, int]
    files: dict[str, File]
    constants: dict[str, str] = {}


def line_of(entry: Session | Commit) -> bytes:
    """An entry as its journal line, checksum and newline included."""
    body = entry.model_dump(mode="json")
    if body.get("appended", "") is None:  # a session that appends nothing reads as it always did
        del body["appended"]
    return _json(body | {"line": digest(_json(body))}) + b"\n"


class Journal:
    """The lines of a store's journal.

    Attributes:
        sessions: Writers, first to last.
        commits: Shards in the order of the batch plan.
        whole: Bytes of the file up to the end of its last whole line; what follows is torn and ignored.
    """

    def __init__(self, path: Path) -> None:
        data = read_text(path) if path.exists() else b""
        lines = data.split(b"\n")
        torn = lines.pop()
        # A killed writer leaves a part of a line. A whole line with one byte more is a damaged newline.
        if torn and _parses(torn[:-1]):
            raise CorruptStore(
                f"{path} is damaged at the end of line {len(lines) + 1}: its newline is another byte. Take an undamaged copy of the journal."
            )
        entries = [_entry(line, i, path) for i, line in enumerate(lines, 1)]
        self.whole, self.torn = len(data) - len(torn), len(torn)
        self.sessions = [e for e in entries if isinstance(e, Session)]
        self.commits = sorted((e for e in entries if isinstance(e, Commit)), key=lambda c: c.span)
        self._check(path)

    @property
    def appended(self) -> list[Appended]:
        """What joined after the first data, in order."""
        return [s.appended for s in self.sessions if s.appended is not None]

    def planned(self, manifest: Manifest) -> int:
        """How many examples the store will hold once everything is committed."""
        return manifest.plan.examples + sum(a.plan.examples for a in self.appended)

    def _check(self, path: Path) -> None:
        for before, after in zip(self.commits, self.commits[1:], strict=False):
            if after.span[0] < before.span[1]:
                raise CorruptStore(
                    f"{path} commits examples twice: shard {before.shard} holds {before.span}, shard {after.shard} holds {after.span}."
                )
        if self.commits and not self.sessions:
            raise CorruptStore(f"{path} has shards but no session line. Take an undamaged copy of the journal.")

    @property
    def done(self) -> list[tuple[int, int]]:
        """Committed places of the batch plan's order, joined where they touch."""
        return joined([c.span for c in self.commits])


def joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch as one."""
    made: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if made and made[-1][1] == start:
            made[-1] = (made[-1][0], stop)
        else:
            made.append((start, stop))
    return made


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def _checked(line: bytes) -> dict[str, Any]:
    body = json.loads(line)
    if not isinstance(body, dict):
        raise ValueError("it is not an object")
    mark = body.pop("line", None)
    # The text must be ours to the letter: other spellings of the same value are damage, too.
    if mark != digest(_json(body)) or _json(body | {"line": mark}) != line:
        raise ValueError("its checksum does not fit")
    return body


def _parses(line: bytes) -> bool:
    try:
        return bool(_checked(line))
    except ValueError:
        return False


def _entry(line: bytes, number: int, path: Path) -> Session | Commit:
    try:
        body = _checked(line)
        return (Commit if body.get("kind") == "commit" else Session).model_validate(body)
    except pydantic.ValidationError as reason:
        why = f"{reason.errors()[0]['loc']}: {reason.errors()[0]['msg']}"
    except (ValueError, RecursionError) as reason:
        why = str(reason)
    raise CorruptStore(f"{path} is damaged in line {number}: {why}. Take an undamaged copy of the journal.")
