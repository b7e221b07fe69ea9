"""Feature dashboards: a page for every feature of a dictionary, and which features to open first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from activarium.dashboards import build
from activarium.errors import InputError
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Ranking

RANKED = ("fires", "density", "max", "mean", "sum")


def feature_dashboards(
    dictionary: Any,
    recording: Recording,
    model: Runner | None = None,
    to: str | Path | None = None,
    *,
    features: Sequence[int] | None = None,
    images: Any = None,
    by: str = "fires",
    top: int = 20,
    buffer: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Ranking:
    """When is each feature of a dictionary active, and what does it write?

    Two passes over the rows make a page for every feature: a histogram of its codes, contexts with the largest of them and from ten
    bands of the others, tokens that its direction promotes, and features and neurons like it. The pages lie in a folder and are read
    one by one; `act.show(result)` opens them. `act.dashboards.build` has every option.

    Args:
        dictionary: A dictionary of ours, of sae-lens, or its folder; or codes that were kept beside a store.
        recording: The rows it is shown: a run, a capture or a store.
        model: Adds promoted tokens and neurons.
        to: Folder for the pages, `NAME.features`. Without it they lie in a temporary folder that goes when this process ends: then
            the ranking stays, its pages do not.
        features: Only these get a page.
        images: The pictures by number of the example, for images.
        by: What features are ranked by: `fires`, `density`, `max`, `mean` or `sum`.
        top: Contexts with the largest codes, one of each example.
        buffer: Tokens shown on each side of a context's row.
        seed: Draws the contexts of the bands, and the rows that co-firing is counted over.
        progress: Show bars.

    Returns:
        Features, the first by `by` at the top, ties by the lower number. `fires`: rows in which the code is not zero; `density`: their
        share; `max`, `mean`, `deviation`, `sum`: of the codes that are not zero, model units; `strongest`: the token or patch of the
        largest code; `promoted`: the three tokens that the direction promotes most, where the model is given. The diagnostics hold
        the folder (`pages`), and what each part of a page means (`definitions`).

    Raises:
        InputError: No rows, no such feature, no known site, or another `by`.
        NotFinite: A row or a code is NaN or infinite.
        OtherModel: The dictionary was trained on another model than was recorded.
        StoreError: The folder exists, or its name does not end in `.features`.

    Source:
        Contexts by activation and by quantile: Bricken et al. 2023, Towards Monosemanticity: Decomposing Language Models With Dictionary
        Learning, transformer-circuits.pub, appendix on feature dashboards. Attribution of attention features to positions:
        Kissane et al. 2024, Interpreting Attention Layer Outputs with Sparse Autoencoders, arXiv:2406.17759.

    Differs:
        Codes are streamed and never held; bands are of each feature's own codes and drawn evenly under a seed, one context of an example;
        histograms are exact counts. What weights say of tokens has the final norm's gain folded in and is centred over the vocabulary.

    Example:
        >>> from activarium.dictionaries import controls
        >>> model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
        >>> recording = model.run(act.testing.texts(), read="blocks.0.resid_post")
        >>> dictionary = controls.principal(recording["blocks.0.resid_post"], 3)
        >>> ranking = act.analyses.feature_dashboards(dictionary, recording, model)
        >>> len(ranking.names), ranking.diagnostics["view"]
        (6, 'FeatureBrowser')
    """
    if by not in RANKED:
        raise InputError(f"Features cannot be ranked by {by!r}. Choose one of {', '.join(RANKED)}.")
    pages = build(
        dictionary, recording, to, model=model, features=features, images=images, top=top, buffer=buffer, seed=seed, progress=progress
    )
    columns = {name: np.asarray(values) for name, values in pages.columns.items()}
    built = np.flatnonzero(np.isfinite(columns["fires"]))
    order = built[np.argsort(-np.nan_to_num(columns[by][built], nan=-np.inf), kind="stable")]
    shown = {name: values[order] for name, values in columns.items() if name not in (by, "min")}
    words = {name: np.array(found, dtype=object) for name, found in pages.headlines(order).items()}
    counts = pages.about["counts"]
    return Ranking(
        tuple(f"feature {f}" for f in order),
        columns[by][order],
        shown | words,
        title=pages.title,
        unit=by,
        diagnostics={
            "view": "FeatureBrowser",
            "pages": str(pages.path),
            "pages last": "until this process ends" if pages.temporary else "as long as their folder",
            "rows": counts["rows"],
            "never active": counts["dead"],
            "site": pages.about["site"],
            "definitions": dict(pages.about["definitions"]),
        },
    )
