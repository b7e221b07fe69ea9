"""Codes kept beside a capture: `NAME.acts/codes/NAME/`, written part by part, so that no later pass has to encode again."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from activarium.dictionaries.adopt import as_dictionary
from activarium.dictionaries.coded import rows_for
from activarium.dictionaries.codes import Codes
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.dictionaries.fingerprint import fingerprint
from activarium.dictionaries.rows import RowSource
from activarium.dictionaries.steady import SteadyCodes
from activarium.errors import CorruptStore, InputError, NotFinite, OtherModel, StoreError
from activarium.progress import progress_bar
from activarium.recording import Recording
from activarium.rows import Rows

FORMAT, VERSION = "activarium codes", 1
MANIFEST = "codes.json"
PART = 1 << 16  # rows of a part; whole blocks of those that are encoded together
DTYPES = {"float32": torch.float32, "float16": torch.float16}
LARGEST_MANIFEST = 64 << 20


def keep_codes(
    store: Recording,
    dictionary: Any,
    name: str = "codes",
    *,
    site: str | None = None,
    exclude: Sequence[str] | None = None,
    dtype: str = "float32",
    rows: int = 4096,
    overwrite: bool = False,
    progress: bool = True,
) -> KeptCodes:
    """Encode a store's rows once and keep the codes in its folder; what is there already is not encoded again.

    The store's own files stay as they are. A killed call goes on where it ended. After data were appended to the store, the same
    call encodes the new rows alone.

    Args:
        store: An open store.
        dictionary: A dictionary of ours, of sae-lens, or its folder.
        name: The codes' own name, for several dictionaries of one store.
        site: Where the dictionary reads, if its origin does not say.
        exclude: Row kinds to leave out; None leaves out what its training left out.
        dtype: `float32` keeps codes as they are computed, `float16` in half the room, to three digits and at most 65 504; then a code that
            is nearer to zero than 6e-8 is not kept.
        rows: Rows read at a time.
        overwrite: Make codes of this name anew.
        progress: Show a bar.

    Returns:
        The codes, ready to be read.

    Raises:
        InputError: No store, a name that is no plain word, or another dtype.
        OtherModel: There are codes of this name of another dictionary, site or store.
        NotFinite: A row is NaN or infinite, or a code is beyond float16.
    """
    folder = _folder(store, name)
    if dtype not in DTYPES:
        raise InputError(f"Codes cannot be kept as {dtype!r}. Choose {' or '.join(DTYPES)}.")
    known = as_dictionary(dictionary)
    source = rows_for(known, store, site=site, exclude=exclude, written=False)
    wanted = _about(store, known, source, dtype, known.origin.exclude if exclude is None else exclude)
    about = None if overwrite or not (folder / MANIFEST).exists() else _read(folder)
    if about is not None:
        _same(about, wanted, folder)
        _continues(about["store"], wanted["store"], folder)
    parts = [] if about is None else list(about["parts"])
    coded = SteadyCodes(source, known)
    step = max(1, PART // coded.block) * coded.block
    done = sum(p["rows"] for p in parts)
    if done < len(source) and done % step:  # the last part of a shorter store is made again, in whole blocks
        done -= parts.pop()["rows"]
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar(progress, "Encoding", len(source), "rows") as advance:
        advance(done)
        while done < len(source):
            made = _part(coded, done, min(step, len(source) - done), rows, DTYPES[dtype])
            parts.append(_written(folder, len(parts), made, coded.chosen[done : done + len(made)]))
            done += len(made)
            _seal(folder, wanted | {"parts": parts})
            advance(len(made))
    if about is None or about != wanted | {"parts": parts}:
        _seal(folder, wanted | {"parts": parts})
    return open_codes(store, name)


def open_codes(store: Recording, name: str = "codes") -> KeptCodes:
    """The codes that were kept in a store's folder under this name.

    Raises:
        InputError: No store.
        StoreError: There are none of this name, or they end before the store does.
        OtherModel: They are of other rows.
        CorruptStore: A file is missing or changed.
    """
    folder = _folder(store, name)
    if not (folder / MANIFEST).exists():
        beside = sorted(p.parent.name for p in folder.parent.glob(f"*/{MANIFEST}"))
        raise StoreError(
            f"No codes {name!r} are kept in {folder.parent.parent}. Kept: {', '.join(beside) or 'none'}. Make them with keep_codes(…)."
        )
    about = _read(folder)
    site = about["site"]
    if site not in store:
        raise OtherModel(f"{folder} holds codes of {site}, which this store does not have. Was the folder copied from another store?")
    source = RowSource(store[site], exclude=about["exclude"])
    _continues(about["store"], _identity(store, len(store[site])), folder)
    held = sum(p["rows"] for p in about["parts"])
    if held != len(source) or about["store"]["rows"] != len(store[site]):
        raise StoreError(
            f"{folder} has codes of {held:,} rows, the store has {len(source):,} to encode: data were appended, or encoding was cut short. "
            f"keep_codes(store, dictionary, {name!r}) goes on where it ended."
        )
    for part in about["parts"]:
        _sized(folder, part)
    return KeptCodes(folder, about, source)


@dataclass(frozen=True, eq=False)
class KeptCodes:
    """Codes that were computed before and lie in a store's folder.

    Attributes:
        path: Their folder.
        about: What their manifest says.
        source: The rows that they are of.
    """

    path: Path
    about: Mapping[str, Any]
    source: RowSource

    @property
    def chosen(self) -> np.ndarray:
        return self.source.chosen

    @property
    def width(self) -> int:
        return int(self.about["width"])

    @property
    def index(self) -> Rows | None:
        return self.source.inputs.index

    @property
    def site(self) -> str:
        """Where the dictionary reads."""
        return str(self.about["site"])

    @property
    def hash(self) -> str:
        """Of the dictionary."""
        return str(self.about["dictionary"])

    @property
    def exclude(self) -> tuple[str, ...]:
        """Row kinds that were left out and occur."""
        return tuple(self.source.dropped)

    def check_dictionary(self, dictionary: FeatureDictionary) -> None:
        """Are the codes of this dictionary?

        Raises:
            OtherModel: They are of another.
        """
        found = fingerprint(dictionary)
        if found != self.hash:
            raise OtherModel(
                f"{self.path} holds codes of dictionary {self.hash[:12]}…; this one is {found[:12]}…. Keep codes of this dictionary."
            )

    def pieces(self, rows: int = 4096) -> Iterator[tuple[np.ndarray, Codes]]:
        """Every row once, in order: numbers of the rows, and their codes; each part is checked when it is first read."""
        first = 0
        for part in self.about["parts"]:
            codes = self._part(part)
            for start in range(0, len(codes), rows):
                stop = min(start + rows, len(codes))
                low, high = int(codes.starts[start]), int(codes.starts[stop])
                here = Codes(codes.starts[start : stop + 1] - low, codes.features[low:high], codes.values[low:high].float(), self.width)
                yield self.chosen[first + start : first + stop], here
            first += len(codes)

    @cached_property
    def _sound(self) -> set[str]:
        return set()

    def _part(self, part: Mapping[str, Any]) -> Codes:
        place = _sized(self.path, part)
        if part["file"] not in self._sound:
            with place.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
            if found != part["blake2b"]:
                raise CorruptStore(
                    f"{place} was changed: its blake2b is {found[:16]}…, its manifest lists {part['blake2b'][:16]}…. "
                    "Make the codes again: keep_codes(…, overwrite=True)."
                )
            self._sound.add(part["file"])
        codes = Codes.load(place)
        if len(codes) != part["rows"] or codes.width != self.width:
            raise CorruptStore(f"{place} holds codes of {len(codes):,} rows; its manifest lists {part['rows']:,}. Make the codes again.")
        return codes


def _folder(store: Recording, name: str) -> Path:
    path = getattr(store, "path", None)
    if not isinstance(path, Path):
        raise InputError(
            f"Codes are kept in the folder of a store; this {type(store).__name__} has none here. Open one with act.open('….acts'), "
            "or capture(…, to='….acts')."
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name.endswith(".part"):
        raise InputError(f"Codes cannot be called {name!r}: wanted letters, digits, '-', '_' and '.', beginning with a letter or digit.")
    return path / "codes" / name


def _identity(store: Recording, rows: int) -> dict[str, Any]:
    """Which store, and how much of it: the hash of what never changes, and what was appended."""
    manifest = getattr(store, "manifest", None)
    base = hashlib.blake2b(manifest.dump(), digest_size=32).hexdigest() if manifest is not None else str(store.provenance.get("id", ""))
    appended = [a["data"].get("hash", "") for a in store.provenance.get("appended", ())]
    return {"base": base, "appended": appended, "rows": rows, "complete": bool(getattr(store, "complete", True))}


def _about(store: Recording, dictionary: FeatureDictionary, source: RowSource, dtype: str, exclude: Sequence[str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "dictionary": fingerprint(dictionary),
        "site": source.inputs.site,
        "width": dictionary.width,
        "exclude": sorted(exclude),
        "dtype": dtype,
        "store": _identity(store, len(source.inputs)),
    }


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    for key in ("dictionary", "site", "width", "exclude", "dtype"):
        if found[key] != wanted[key]:
            raise OtherModel(
                f"{folder} holds codes with {key} {found[key]!r}; these would have {wanted[key]!r}. Choose another name, or pass overwrite=True."
            )


def _continues(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    """Are the old rows still the first ones of the store?"""
    grown = new["appended"][: len(old["appended"])] == old["appended"] and new["rows"] >= old["rows"]
    # An incomplete store may be filled up in any order.
    if old["base"] != new["base"] or not grown or (not old["complete"] and new["rows"] != old["rows"]):
        raise OtherModel(
            f"{folder} holds codes of other rows: they were made when the store had {old['rows']:,} rows"
            f"{'' if old['complete'] else ' and was incomplete'}, it has {new['rows']:,} now. Make them again: keep_codes(…, overwrite=True)."
        )


def _part(coded: SteadyCodes, first: int, count: int, rows: int, dtype: torch.dtype) -> Codes:
    """Codes of some successive rows, from the first row of a block on."""
    found, pieces = 0, []
    for index, codes in coded.pieces_from(first, min(rows, count)):
        pieces.append(_as(_cut(codes, min(len(index), count - found)), dtype, index))
        found += len(pieces[-1])
        if found >= count:
            break
    return Codes.concatenate(pieces)


def _cut(codes: Codes, rows: int) -> Codes:
    end = int(codes.starts[rows])
    return Codes(codes.starts[: rows + 1], codes.features[:end], codes.values[:end], codes.width)


def _as(codes: Codes, dtype: torch.dtype, index: np.ndarray) -> Codes:
    values = codes.values.to(dtype)
    if not bool(values.isfinite().all()):
        row = int(index[int(codes.rows[int((~values.isfinite()).nonzero()[0])])])
        raise NotFinite(f"A code of row {row:,} is not finite in {str(dtype).removeprefix('torch.')}. Keep them with dtype='float32'.")
    kept = values != 0
    if bool(kept.all()):
        return Codes(codes.starts, codes.features, values, codes.width)
    counts = torch.bincount(codes.rows[kept], minlength=len(codes))
    return Codes(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), codes.features[kept], values[kept], codes.width)


def _written(folder: Path, number: int, codes: Codes, rows: np.ndarray) -> dict[str, Any]:
    place = codes.save(folder / f"{number:05d}.safetensors")
    with place.open("rb") as file:
        os.fsync(file.fileno())
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
    span = [int(rows[0]), int(rows[-1])]
    return {"file": place.name, "rows": len(codes), "span": span, "bytes": place.stat().st_size, "blake2b": digest}


def _seal(folder: Path, body: Mapping[str, Any]) -> None:
    """Write the manifest, whole or not at all; what it does not list does not count."""
    temporary = folder / f"{MANIFEST}.part"
    with temporary.open("wb") as file:
        file.write(_dump(dict(body) | {"seal": hashlib.blake2b(_dump(body), digest_size=32).hexdigest()}))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def _read(folder: Path) -> dict[str, Any]:
    place = folder / MANIFEST
    size = place.stat().st_size
    try:
        body = json.loads(place.read_bytes()) if size <= LARGEST_MANIFEST else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise CorruptStore(f"{place} is no manifest of codes. Make the codes again: keep_codes(…, overwrite=True).")
    if body.get("version") != VERSION:
        raise StoreError(f"{place} has version {body.get('version')!r}; this activarium reads version {VERSION}. Update activarium.")
    seal = body.pop("seal", None)
    if seal != hashlib.blake2b(_dump(body), digest_size=32).hexdigest():
        raise CorruptStore(f"{place} was changed after it was written. Make the codes again: keep_codes(…, overwrite=True).")
    strange = next((p["file"] for p in body["parts"] if not re.fullmatch(r"\d{5,}\.safetensors", str(p["file"]))), None)
    if strange is not None:
        raise CorruptStore(f"{place} names the file {strange!r}, which is no part of codes. Do not trust these codes; make them again.")
    return body


def _sized(folder: Path, part: Mapping[str, Any]) -> Path:
    place = folder / part["file"]
    found = place.stat().st_size if place.is_file() else -1
    if found != part["bytes"]:
        have = f"has {found:,} bytes" if found >= 0 else "is missing"
        raise CorruptStore(f"{place} {have}; its manifest lists {part['bytes']:,}. Make the codes again: keep_codes(…, overwrite=True).")
    return place


def _dump(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()
