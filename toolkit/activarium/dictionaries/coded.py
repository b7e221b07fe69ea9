"""A recording's rows seen through a dictionary, a piece at a time: what every measure and dashboard scans."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from activarium.activations import Activations
from activarium.dictionaries.codes import Codes
from activarium.dictionaries.design import Origin
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.dictionaries.rows import RowSource
from activarium.errors import InputError, OtherModel, UnknownSite, unknown
from activarium.recording import Recording
from activarium.rows import Rows


class CodedRows(Protocol):
    """Codes of a recording's rows, whether they are computed now or were kept."""

    @property
    def chosen(self) -> np.ndarray:
        """Numbers of the rows in the recording, ascending; those of the excluded kinds are not among them."""
        ...

    @property
    def width(self) -> int:
        """How many features there are."""
        ...

    @property
    def index(self) -> Rows | None:
        """Row table of the recording's row space (`example`, `position`, `text`, `kind`, `y`, `x`)."""
        ...

    def pieces(self, rows: int = 4096) -> Iterator[tuple[np.ndarray, Codes]]:
        """Every row once, in order: numbers of the rows, and their codes."""
        ...


@dataclass(frozen=True, eq=False)
class LiveCodes:
    """Codes that are computed while they are asked for.

    Attributes:
        source: The rows.
        dictionary: What codes them.
    """

    source: RowSource
    dictionary: FeatureDictionary

    @property
    def chosen(self) -> np.ndarray:
        return self.source.chosen

    @property
    def width(self) -> int:
        return self.dictionary.width

    @property
    def index(self) -> Rows | None:
        return self.source.inputs.index

    def pieces(self, rows: int = 4096) -> Iterator[tuple[np.ndarray, Codes]]:
        """Every row once, in order: numbers of the rows, and their codes."""
        for index, x, _ in self.source.pieces(rows):
            yield index, self.dictionary.codes(x)


def rows_for(
    dictionary: FeatureDictionary,
    recording: Recording,
    *,
    site: str | None = None,
    target: str | None = None,
    exclude: Sequence[str] | None = None,
    written: bool = True,
) -> RowSource:
    """The rows of a recording that a dictionary reads (and those it should write), checked.

    Args:
        dictionary: The dictionary.
        recording: A run, a capture or a store.
        site: Where it reads, if its origin does not say.
        target: Where it writes, for a transcoder whose origin does not say.
        exclude: Row kinds to leave out; None leaves out what its training left out.
        written: Also the rows that a transcoder should write; for its codes alone they need not be recorded.

    Raises:
        InputError: No site is known, the widths differ, or no row is left.
        OtherModel: The recording is of a model with other weights than it was trained on.
        UnknownSite: The recording does not hold the site.
    """
    name = site or dictionary.origin.site
    if not name:
        raise InputError("This dictionary does not say where it reads: its origin.site is empty. Give site='blocks.3.resid_post'.")
    writes = (target or dictionary.origin.target) if dictionary.transcoder and written else None
    if dictionary.transcoder and written and not writes:
        raise InputError(f"This transcoder reads {name} and does not say where it writes: its origin.target is empty. Give target=….")
    _same_model(dictionary, recording)
    kinds = dictionary.origin.exclude if exclude is None else exclude
    source = RowSource(_one(recording, name), None if writes is None else _one(recording, writes), kinds)
    widths = (source.width, source.target_width if written else dictionary.d_out)
    if widths != (dictionary.d_in, dictionary.d_out):
        raise InputError(
            f"The dictionary reads {dictionary.d_in} numbers and writes {dictionary.d_out}; {name} has {widths[0]}"
            + (f" and {writes} {widths[1]}" if writes else "")
            + ". Is it another site's, or another model's?"
        )
    if not len(source):
        raise InputError(f"{name} has no rows left after {', '.join(source.dropped)} were left out. Capture more, or give exclude=().")
    return source


def origin_of(recording: Recording | Activations, site: str, source: RowSource, exclude: Sequence[str], target: str = "") -> Origin:
    """What a recording says of where rows came from: the model, how its weights were processed, and the data."""
    said = recording.provenance
    model = said.get("model") or {}
    processing = model.get("processing") or {}
    index = source.inputs.index
    return Origin(
        site=site,
        target=target,
        model=str(model.get("name", "")),
        weight_hash=str(model.get("weight_hash", "")),
        centred=bool(processing.get("centred_writing", False)),
        folded=bool(processing.get("folded_norms", False)),
        bos=None if index is None or "kind" not in index else bool((np.asarray(index["kind"]).astype(str) == "bos").any()),
        exclude=tuple(exclude),
        data=str(said.get("id", "")),
    )


def _one(recording: Recording, name: str) -> Activations:
    if name not in recording:
        raise unknown("site in this recording", name, list(recording), UnknownSite)
    return recording[name]


def _same_model(dictionary: FeatureDictionary, recording: Recording) -> None:
    trained, said = dictionary.origin.weight_hash, recording.provenance.get("model") or {}
    found = str(said.get("weight_hash", ""))
    if trained and found and trained != found:
        raise OtherModel(
            f"The dictionary was trained on {dictionary.origin.model or 'a model'} with weights {trained[:12]}…; this recording is of "
            f"{said.get('name', 'a model')} with {found[:12]}…. Record the model it was trained on, or train another dictionary."
        )
