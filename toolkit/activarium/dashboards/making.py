"""Building pages: two passes over sparse codes, what the weights say, and one folder."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from activarium._recorded import input_id, plain
from activarium.dashboards import columns as column_makers
from activarium.dashboards.contexts import BANDS, Contexts, Examples, choose
from activarium.dashboards.folder import Draft, named
from activarium.dashboards.from_weights import FromWeights, from_weights, spelled
from activarium.dashboards.gather import gather
from activarium.dashboards.pages import COLUMNS, HEADS, PICTURES, STRINGS, TEXT, FeaturePages
from activarium.dashboards.paper import DEFINITIONS, groups
from activarium.dashboards.rows_shown import Shown, pictures
from activarium.dashboards.scan import scan
from activarium.dashboards.sources import sources_of
from activarium.dashboards.together import correlated, fired_together
from activarium.dictionaries import FeatureDictionary, as_dictionary
from activarium.dictionaries.coded import CodedRows, LiveCodes, rows_for
from activarium.dictionaries.fingerprint import fingerprint
from activarium.dictionaries.kept import KeptCodes
from activarium.dictionaries.steady import SomeCodes, SteadyCodes, numbered
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.recording import Recording

TOGETHER = 1 << 15  # rows that co-firing is counted over


@dataclass(frozen=True, eq=False)
class Given:
    """What pages are made of.

    Attributes:
        coded: Codes of the features that get a page.
        dictionary: Where they come from, or None where only codes are given.
        features: Their numbers in it, ascending.
        width: How many features it has.
        site: Where it reads.
    """

    coded: CodedRows
    dictionary: FeatureDictionary | None
    features: tuple[int, ...]
    width: int
    site: str


def build(
    codes_or_dictionary: Any,
    recording: Recording,
    to: str | Path | None = None,
    *,
    dictionary: Any = None,
    model: Runner | None = None,
    features: Sequence[int] | None = None,
    site: str | None = None,
    exclude: Sequence[str] | None = None,
    images: Any = None,
    top: int = 20,
    per_band: int = 5,
    buffer: int = 10,
    correlations: bool = False,
    sources: Sequence[int] = (),
    seed: int = 0,
    rows: int = 4096,
    overwrite: bool = False,
    progress: bool = True,
) -> FeaturePages:
    """Make a page for every feature: its histogram, contexts, like features and tokens, from two passes over the rows.

    Codes are looked at piece by piece and never all held; memory grows with the features and their contexts. The same rows, seed
    and machine give the same bytes, however many rows are read at a time.

    Args:
        codes_or_dictionary: A dictionary of ours, of sae-lens, or its folder; or codes that were kept (`open_codes`).
        recording: The rows it is shown: a run, a capture or a store; its row table holds tokens and places.
        to: Folder to write, `NAME.features`. Without it they lie in a temporary folder until this process ends.
        dictionary: Beside codes that were kept: where they come from, for what weights say.
        model: Adds promoted tokens and neurons.
        features: Only these get pages; where codes do not compete, no others are computed.
        site: Where the dictionary reads, if its origin does not say.
        exclude: Row kinds to leave out; None leaves out what its training left out.
        images: The pictures by number of the example, arrays or Pillow images; without them those that the model read (`pixels`).
        top: Contexts with the largest codes, one of each example.
        per_band: Contexts of each of ten bands of its codes, from smallest to largest.
        buffer: Tokens shown on each side; an image is shown whole.
        correlations: Also list features whose codes are correlated.
        sources: For dictionaries of `attn.z`: of these features' largest contexts also where, and through which head, they come from.
        seed: Draws the contexts of the bands, and the rows that co-firing is counted over.
        rows: Rows read at a time.
        overwrite: Replace a folder that exists.
        progress: Show bars.

    Raises:
        InputError: No rows, no such feature, no known site, or options that cannot be.
        NotFinite: A row or a code is NaN or infinite.
        OtherModel: The dictionary was trained on another model than was recorded, or the codes were kept of another dictionary.
        StoreError: The folder exists, or its name does not end in `.features`.
    """
    if top < 1 or per_band < 0 or buffer < 0 or rows < 1:
        raise InputError(f"top={top}, per_band={per_band}, buffer={buffer}, rows={rows}: give at least 1, 0, 0 and 1.")
    given = _given(codes_or_dictionary, dictionary, recording, features, site, exclude)
    draft = Draft(_temporary() if to is None else named(to), overwrite)
    try:
        settings = {"top": top, "per_band": per_band, "buffer": buffer, "seed": seed, "together_rows": TOGETHER}
        _write(draft, given, recording, model, images, settings, correlations, tuple(sources), rows, progress)
    except BaseException:
        draft.drop()
        raise
    return FeaturePages(draft.path, temporary=to is None)


def _given(thing: Any, beside: Any, recording: Recording, features: Any, site: str | None, exclude: Any) -> Given:
    if hasattr(thing, "pieces") and hasattr(thing, "chosen"):
        dictionary = as_dictionary(beside) if beside is not None else thing.dictionary if isinstance(thing, LiveCodes) else None
        if dictionary is not None and dictionary.width != thing.width:
            raise InputError(
                f"The codes are of {thing.width:,} features, the dictionary has {dictionary.width:,}. Keep codes of this dictionary."
            )
        if dictionary is not None and isinstance(thing, KeptCodes):
            thing.check_dictionary(dictionary)
        chosen = numbered(features, thing.width)
        coded = thing if chosen is None else SomeCodes(thing, chosen)
        where = site or getattr(thing, "site", "") or (dictionary.origin.site if dictionary is not None else "")
        return Given(coded, dictionary, chosen or tuple(range(thing.width)), thing.width, where)
    if beside is not None:
        raise InputError("dictionary= says where codes come from; the first argument is a dictionary already. Give one of them.")
    dictionary = as_dictionary(thing)
    chosen = numbered(features, dictionary.width)
    # What it writes is not looked at: a transcoder's pages need the rows that it reads alone.
    source = rows_for(dictionary, recording, site=site, exclude=exclude, written=False)
    coded = SteadyCodes(source, dictionary, chosen)
    return Given(coded, dictionary, chosen or tuple(range(dictionary.width)), dictionary.width, source.inputs.site)


def _temporary() -> Path:
    folder = tempfile.mkdtemp(prefix="activarium-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder) / "pages.features"


def _write(
    draft: Draft,
    given: Given,
    recording: Recording,
    model: Runner | None,
    images: Any,
    settings: dict[str, Any],
    correlations: bool,
    sources: tuple[int, ...],
    rows: int,
    progress: bool,
) -> None:
    index = given.coded.index
    total = len(index) if index is not None else int(given.coded.chosen[-1]) + 1 if len(given.coded.chosen) else 0
    examples = Examples.of(index, total)
    options: dict[str, Any] = {"rows": rows, "progress": progress}
    found = scan(
        given.coded, top=settings["top"], groups=examples.number, seed=settings["seed"], together=settings["together_rows"], **options
    )
    edges = found.sizes.edges(BANDS, *found.size_range)
    contexts = choose(found, edges, examples, settings["per_band"], settings["buffer"])
    gathered = gather(given.coded, found, edges, contexts, **options)
    lists = from_weights(given.dictionary, given.features, model) if given.dictionary is not None else FromWeights()
    lists.lists["together"] = _numbered(fired_together(found.together, 10), given.features)
    if correlations:
        lists.lists["correlated"] = _numbered(correlated(found.together, 10), given.features)
    words = {n: spelled(lists.lists[n][0], model) for n in ("promoted", "suppressed") if n in lists.lists and model is not None}
    shown = Shown.of(contexts, index, list(words.values()))
    pages = {n: (torch.from_numpy(shown.number(w)), lists.lists[n][1]) for n, w in words.items()}
    seen, said = pictures(contexts, examples, images, recording)
    shares = sources_of(given, recording, contexts, sources)
    numbers = column_makers.of(found, given)
    draft.arrays(COLUMNS, numbers)
    draft.arrays(TEXT, shown.arrays)
    draft.words(STRINGS, shown.strings)
    if seen:
        draft.arrays(PICTURES, seen)
    heads = {"feature": np.asarray(given.features, np.int64)[contexts.feature], "first": contexts.first, "length": contexts.length}
    heads |= {"built": np.asarray(given.features, np.int64), "strongest": _strongest(contexts, len(given.features))}
    promoted = {"promoted": pages["promoted"][0].numpy()} if "promoted" in pages else {}
    draft.arrays(HEADS, heads | promoted)
    for name, arrays in groups(given, contexts, gathered, edges, lists.lists | pages, index, examples, shares):
        draft.arrays(name, arrays)
    draft.finish(
        _about(given, recording, model, found.rows, found.together.rows, contexts, lists.words, said, settings, numbers, found.fires)
    )


def _numbered(found: tuple[torch.Tensor, torch.Tensor], features: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers in the dictionary for numbers among the chosen features."""
    names = torch.tensor([*features, -1])
    return names[found[0]], found[1]


def _strongest(contexts: Contexts, features: int) -> np.ndarray:
    """Row of the largest code of each feature, -1 where it never fires."""
    first = np.searchsorted(contexts.feature, np.arange(features))
    there = np.flatnonzero(np.diff(np.r_[first, len(contexts.feature)]))
    made = np.full(features, -1, np.int64)
    made[there] = contexts.row[first[there]]
    return made


def _about(
    given: Given,
    recording: Recording,
    model: Runner | None,
    rows: int,
    drawn: int,
    contexts: Contexts,
    words: dict[str, str],
    pictured: str,
    settings: dict[str, Any],
    columns: dict[str, np.ndarray],
    fires: np.ndarray,
) -> dict[str, Any]:
    dictionary = given.dictionary
    origin = plain(dictionary.origin.to_json()) if dictionary is not None else {}
    source = getattr(given.coded, "source", None) or getattr(getattr(given.coded, "coded", None), "source", None)
    exclude = sorted(getattr(source, "dropped", {}) or getattr(given.coded, "exclude", ()))
    name = f" in {origin['model']}" if origin.get("model") else ""
    counts = {"features": given.width, "built": len(given.features), "rows": rows, "dead": int((fires == 0).sum())}
    return {
        "title": f"{given.width:,} features of {given.site or 'a site'}{name}",
        "dictionary": {"origin": origin, "hash": fingerprint(dictionary) if dictionary is not None else getattr(given.coded, "hash", "")},
        "recording": input_id(recording) or "",
        "model": getattr(model, "name", ""),
        "site": given.site,
        "settings": settings | {"exclude": exclude},
        "counts": counts | {"contexts": len(contexts.row), "rows drawn for co-firing": drawn},
        "columns": list(columns),
        "definitions": DEFINITIONS | words | {"pictures": pictured},
    }
