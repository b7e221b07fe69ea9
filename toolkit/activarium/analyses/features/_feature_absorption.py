"""Feature absorption: whether features that stand for a property fall silent where a more special feature does their work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from activarium.analyses.features.absorption import Absorbed, absorbed, folds_of, probed
from activarium.analyses.features.probes import f1_score, share_with_interval
from activarium.dictionaries import SAE, FeatureDictionary, RowSource, as_dictionary, controls, rows_for
from activarium.errors import InputError
from activarium.progress import progress_bar
from activarium.recording import Recording
from activarium.results import Ranking, Report

FOLDS = 5
DEFINITIONS = {
    "probe": "logistic regression on the rows (classes weighted alike), one for each of five parts of the words, judged on the part that it has not seen; p̂ is its unit direction",
    "split features": "by mean code with the property less mean code without, taken while each raises a probe's F1 by 0.03 or more",
    "contribution": "c_i = f_i (W_i · p̂), for directions of length 1 f_i cos(W_i, p̂)",
    "full absorption": "of rows that the probe gets right: all split features below 1e-8, the top contributor has cosine 0.025 or more with p̂, x·p̂ ≥ 0, c_top / x·p̂ ≥ 0.4",
    "fraction": "a / (a + Σ split c), a = min(Σ absorbers c, x·p̂ − Σ split c), absorbers up to 3 others of cosine 0.1 or more; 0 where split features do it all or absorbers make less than 0.4, 1 where split features do nothing",
    "interval": "Wilson's over words where each has one row, else a bootstrap over words",
}


def feature_absorption(
    dictionary: Any,
    recording: Recording,
    labels: Sequence[Any] | np.ndarray,
    *,
    words: Sequence[Any] | np.ndarray | None = None,
    good: float = 0.8,
    least: int = 20,
    site: str | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Do features of a property fall silent where a more special feature does their work?

    The task that it was found on: a feature for words that begin with 'b' does not fire on one such word, whose own feature holds the
    direction of 'b'. Any property of rows will do, if the rows tell it: a probe must find it in words that it has not seen, or there
    is nothing to be absorbed. Published figures are of models from a billion weights on; of small or badly trained dictionaries a
    figure near 0 says little, and so does one where the split features hardly tell the property (`split F1`).

    Args:
        dictionary: The dictionary: one of ours, a sae-lens object, or the folder of one.
        recording: Holds its site.
        labels: One for each row of the recording: the property that it has (a letter), True or False, or None for rows that do not count.
            For words of several tokens label their last one.
        words: What each row is an instance of; rows of one word are never on both sides of a split. By default the text of the row.
        good: F1 of the held-out probe from which a property is looked at.
        least: Words with the property from which it is looked at. With fewer than 17, one word's own feature raises F1 by 0.03 and is
            taken for a split feature.
        site: Where the dictionary reads, if its origin does not say.
        confidence: Level of the intervals.
        resamples: How many times words are drawn again.
        seed: Draws the parts and the random dictionary.
        progress: Show a bar.

    Returns:
        A report. `rates`: properties ranked by the share of rows that are absorbed whole, with interval, mean `fraction`, `rows` and `words`
        that the probe gets right, `probe F1`, how many features are split (mean over the parts), `split F1`, and the rate of a `random`
        dictionary of the same design. `absorbed`: the absorbed rows, ranked by the share that the absorbing feature makes, with word,
        property, `feature` and its `cosine`. What was left out, and why, is in `words` and `diagnostics`.

    Raises:
        InputError: Labels or words do not fit the rows, no property has enough words, or no probe is good enough (the best are listed).
        OtherModel: The recording is of other weights.

    Source:
        Chanin et al. 2024, A is for Absorption, arXiv:2409.14507; the fraction as in Karvonen et al. 2025, SAEBench, arXiv:2503.09532.

    Differs:
        Contributions count the length of directions. Split features are those with higher codes on the property, ranked by the difference of
        means. Every row is judged by a probe and split features that have not seen its word, so no words are set aside.

    Example:
        >>> import torch
        >>> rows = torch.eye(41)[1:] + torch.eye(41)[0] * (torch.arange(40)[:, None] < 20)
        >>> recording = act.testing.recording_of({"x": rows}, text=[f"word {i}" for i in range(40)])
        >>> report = feature_absorption(act.dictionaries.controls.identity(41), recording, [i < 20 for i in range(40)], site="x")
        >>> report["rates"].values.tolist()
        [0.0]
    """
    one = as_dictionary(dictionary)
    source = rows_for(one, recording, site=site)
    x, known, groups = _read(source, labels, words)
    draw = {"confidence": confidence, "resamples": resamples, "seed": seed}
    other = controls.random(one, seed) if isinstance(one, SAE) else None
    usable, left_out = _usable(x, known, groups, good, least, seed)
    codes = {"mine": _codes(one, x)} | ({"random": _codes(other, x)} if other is not None else {})
    found, control = {}, {}
    with progress_bar(progress, "absorption of", len(usable), "properties") as advance:
        for name, (positive, fold) in usable.items():
            found[name] = absorbed(one, x, codes["mine"], positive, fold)
            if other is not None:
                control[name] = float(absorbed(other, x, codes["random"], positive, fold).full.mean())
            advance(1)
    parts = {"rates": _rates(found, control, usable, groups, draw), "absorbed": _rows(found, groups)}
    notes = {
        "definitions": DEFINITIONS,
        "rows": len(x),
        "left out": left_out,
        "probe from": good,
        "words from": least,
        "site": source.inputs.site,
        **draw,
    }
    return Report(parts, _words(parts["rates"], parts["absorbed"], left_out, good), title="Feature absorption", diagnostics=notes)


def _read(source: RowSource, labels: Any, words: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that count, their labels and words, as objects."""
    table, rows = source.inputs.index, len(source.inputs)
    given = np.empty(len(labels), object)
    given[:] = list(labels)
    if len(given) != rows:
        raise InputError(
            f"There are {len(given)} labels; the recording has {rows} rows. Give one for each row, None for rows that do not count."
        )
    if words is None:
        if table is None or "text" not in table:
            raise InputError("The rows have no text, so it is not known which are of one word. Give words=[…], one for each row.")
        words = table["text"]
    if len(words) != rows:
        raise InputError(f"There are {len(words)} words; the recording has {rows} rows. Give one for each row.")
    chosen = source.chosen[np.array([given[i] is not None for i in source.chosen], bool)]
    if not len(chosen):
        raise InputError("All labels are None, or of rows that the dictionary leaves out. Label some rows.")
    parts = [source.read(part)[0] for part in np.array_split(chosen, -(-len(chosen) // 4096))]
    return torch.cat(parts).double().numpy(), given[chosen], np.array([str(words[i]) for i in chosen], dtype=object)


def _codes(one: FeatureDictionary, x: np.ndarray) -> np.ndarray:
    return one.codes(torch.from_numpy(x).to(one.dtype)).dense().double().numpy()


def _usable(
    x: np.ndarray, known: np.ndarray, words: np.ndarray, good: float, least: int, seed: int
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, str]]:
    """Property → which rows have it and the part of each row; and why others are left out."""
    values = [True] if {type(v) for v in known} <= {bool, np.bool_} else sorted(set(known.tolist()), key=str)
    usable, left_out = {}, {}
    for number, value in enumerate(values):
        positive = np.array([v == value for v in known])
        having, lacking = len(np.unique(words[positive])), len(np.unique(words[~positive]))
        if min(having, lacking) < least:
            left_out[str(value)] = f"{having} words with it and {lacking} without, wanted {least}"
            continue
        fold = folds_of(words, positive, FOLDS, np.random.default_rng([seed, number]))
        score = f1_score(probed(x, positive, fold)[0], positive)
        if score < good:
            left_out[str(value)] = f"its probe has F1 {score:.2f}, wanted {good:g}"
        else:
            usable[str(value)] = positive, fold
    if not usable:
        shown = "; ".join(f"{name!r}: {why}" for name, why in list(left_out.items())[:6])
        raise InputError(
            f"No property can be looked at: {shown}{'; …' if len(left_out) > 6 else ''}. What the rows do not tell of unseen words cannot be absorbed "
            "by features: choose a property that the model knows, more words, or another site."
        )
    return usable, left_out


def _rates(
    found: Mapping[str, Absorbed], control: Mapping[str, float], usable: Mapping[str, Any], words: np.ndarray, draw: dict[str, Any]
) -> Ranking:
    table: dict[str, list[float]] = {
        c: [] for c in ("value", "low", "high", "fraction", "rows", "words", "probe F1", "split features", "split F1", "random")
    }
    for name, one in found.items():
        mine = np.unique(words[one.rows].astype(str), return_inverse=True)[1]
        rate, low, high = share_with_interval(np.bincount(mine, one.full), np.bincount(mine).astype(float), draw)
        split = float(np.mean([len(s) for s in one.split]))
        row = (
            rate,
            low,
            high,
            float(one.fraction.mean()),
            len(one.rows),
            int(mine.max()) + 1,
            f1_score(one.said, usable[name][0]),
            split,
            one.split_f1,
            control.get(name, np.nan),
        )
        for column, value in zip(table, row, strict=True):
            table[column].append(value)
    values = np.array(table.pop("value"))
    order = np.argsort(-values, kind="stable")
    columns = {c: np.array(v)[order] for c, v in table.items()}
    return Ranking(tuple(np.array(list(found), dtype=object)[order]), values[order], columns, title="Full absorption", unit="share of rows")


def _rows(found: Mapping[str, Absorbed], words: np.ndarray) -> Ranking:
    lines = [
        (one.share[i], words[one.rows[i]], name, one.feature[i], one.cosine[i])
        for name, one in found.items()
        for i in np.flatnonzero(one.full)
    ]
    lines.sort(key=lambda line: -line[0])
    share, names, of, feature, cosine = zip(*lines, strict=True) if lines else ((), (), (), (), ())
    columns = {"property": np.array(of, dtype=object), "feature": np.array(feature, dtype=int), "cosine": np.array(cosine, dtype=float)}
    return Ranking(tuple(names), np.array(share, dtype=float), columns, title="Absorbed rows", unit="share made by one other feature")


def _words(rates: Ranking, rows: Ranking, left_out: Mapping[str, str], good: float) -> tuple[str, ...]:
    said = []
    for i, (name, value) in enumerate(zip(rates.names, rates.values, strict=True)):
        tells = float(rates.columns["split F1"][i])
        weak = "" if tells >= good else f", but its split features hardly tell it (F1 {tells:.2f}): their silence is no absorption"
        said.append(f"{name}: {value:.1%} of {int(rates.columns['rows'][i])} rows meet the rule{weak}.")
    strong = {name for name, tells in zip(rates.names, rates.columns["split F1"], strict=True) if tells >= good}
    first = next((i for i, name in enumerate(rows.columns["property"]) if name in strong), None)
    said += [] if first is None else [f"{rows.names[first]!r} is absorbed by feature {rows.columns['feature'][first]}."]
    return (*said, *([f"Left out: {', '.join(f'{n!r} ({why})' for n, why in left_out.items())}."] if left_out else []))
