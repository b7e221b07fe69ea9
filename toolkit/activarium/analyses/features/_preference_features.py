"""Preference features: what differs between the two of a pair, and which of these differences go with being preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activarium.analyses.features import preference_fits as fits
from activarium.analyses.features.pair_dictionary import PairDictionary, normalised_error, pair_dictionary
from activarium.analyses.features.pair_splits import PARTS, components, split
from activarium.errors import InputError, NotFinite
from activarium.maths import bootstrap_interval
from activarium.results import Ranking, Report, Result, Series

LEVEL = 0.05
SHOWN_SHARE = 0.05  # of the pairs, those of largest code, that a feature is read from
SHOWN = 10  # of these, so many are listed
FEWEST_VERDICTS = 3
FEWEST_CODES = 10  # training pairs with a code that an effect is told from
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Checked pairs: differences `pair d_model`, answers 0 or 1, controls `pair control`, components and parts."""

    differences: Tensor
    answers: np.ndarray
    controls: np.ndarray
    names: tuple[str, ...]
    component: np.ndarray
    part: np.ndarray


def preference_features(
    embeddings_a: Tensor | np.ndarray,
    embeddings_b: Tensor | np.ndarray,
    labels: Sequence[int],
    groups: Sequence[Any],
    *,
    controls: Mapping[str, Sequence[float]] | None = None,
    texts: Sequence[tuple[str, str]] | None = None,
    verdicts: np.ndarray | None = None,
    features: int = 32,
    k: int = 4,
    prefixes: Sequence[int] = (8, 32),
    joint: int = 8,
    steps: Sequence[int] = (150, 300, 600),
    shares: Sequence[float] = (0.7, 0.1, 0.2),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """Which differences between two answers go with one being preferred?

    A tiny signed dictionary is trained on differences of embeddings, A minus B, and on their negatives: a code above 0 says that A has
    more of the feature, below 0 that B has. It never sees which one was preferred. Then the preference is regressed on the codes. Pairs that
    share a prompt or a conversation resemble one another, so whole connected components go into one part, and intervals keep them together.
    Swapping A and B turns every code around and leaves every effect as it is.

    Args:
        embeddings_a: `pair d_model`, of the first of each pair.
        embeddings_b: The same of the second.
        labels: 1 where the first was preferred, 0 (or −1) where the second was.
        groups: For each pair its prompt's id; or several such lists (prompts, conversations), any of which joins pairs.
        controls: Name → difference A − B of what is to be held fixed, `{"length": …}`. Longer answers are often preferred for their length.
        texts: The two texts of each pair, for reading features.
        verdicts: `pair feature`: what an annotator who knows only a feature's description says of a pair: 1 A has more, −1 B, 0 neither;
            NaN where not asked. Features depend on the arguments and `seed` alone, so read them in a first call, annotate, and call again.
        features: How many.
        k: Codes of a pair on average.
        prefixes: Sizes of the nested prefixes, the last one all features.
        joint: How many features the joint model keeps.
        steps: Numbers of training steps that are tried; that of least error on the validation pairs is kept.
        shares: Of the pairs, for training, validation and test.
        confidence: Of the intervals.
        resamples: How many times test components are drawn again for the intervals of accuracy.
        seed: Draws split, first weights, batches and resamples.

    Returns:
        A report. `features`: by size of effect: log-odds of being preferred per standard deviation of the code, controls held fixed, on
        training pairs, with a cluster-robust interval, its p and that of the likelihood-ratio test (which takes pairs for independent),
        whether p ≤ 0.05 / features (no figure where fewer than ten training pairs have a code), the share of pairs with a code, and the fidelity: Pearson correlation of verdicts and codes on
        test pairs, `faithful` where it is positive with p ≤ 0.05 / features. `pairs`: of the 5 % of pairs with the largest codes the
        first ten of each feature, with the texts of more and of less of it (exchanged where the code is below 0). `joint`: coefficients of an L1-penalised regression
        whose penalty, found by bisection, leaves `joint` features and does not touch controls. `accuracy`: share of the
        test pairs that each model gets right, with intervals over components: controls alone, the joint features, as many codes of random
        directions, all numbers of the difference (ridge), and the joint features after labels were shuffled. `training`: error over steps.

    Raises:
        InputError: Shapes that do not fit, labels other than 0 and 1, one answer only, or components that cannot be split.
        NotFinite: NaN or infinity in an embedding or control.

    Source:
        arXiv:2510.26202, What's In My Human Feedback? (differences, signed batch top-k with 32 features and 4 codes, nested prefixes,
        fidelity, regressions, split by components).

    Differs:
        Biases are 0, which the symmetry of the training set asks for and which makes codes exactly odd; training stops early by choice among
        numbers of steps. The random directions, the ridge and the shuffled labels beside it are ours, and so is the cluster-robust error.

    Example:
        >>> random = np.random.default_rng(0)
        >>> a, b = random.normal(size=(2, 300, 8)).astype("float32")
        >>> report = act.analyses.preference_features(a, b, a[:, 0] > b[:, 0], range(300), features=8, k=2, prefixes=(8,), joint=2, steps=(20,))
        >>> len(report["features"].names), len(report["accuracy"].names)
        (8, 5)
    """
    pairs = _checked(embeddings_a, embeddings_b, labels, groups, controls or {}, shares, seed)
    if not 0 < joint <= features:
        raise InputError(f"joint={joint} features are kept of {features}; give a number from 1 to {features}.")
    _check_words(pairs, texts, verdicts, features)
    train, validation, test = (torch.as_tensor(np.flatnonzero(pairs.part == i)) for i in range(3))
    made = pair_dictionary(
        pairs.differences[train], pairs.differences[validation], features=features, k=k, groups=prefixes, steps=steps, seed=seed
    )
    codes = made.sae.encode(pairs.differences).double().numpy()
    effects = _effects(codes, pairs, pairs.answers)
    parts: dict[str, Result] = {"features": _features(effects, codes, pairs, verdicts, confidence)}
    parts["pairs"] = _examples(codes, texts)
    chosen, penalty = _joint(codes, pairs, pairs.answers, joint)
    parts["joint"] = _joint_table(chosen, pairs)
    parts["accuracy"] = _accuracy(codes, pairs, made, joint, confidence, resamples, seed)
    counts = sorted(made.errors)
    parts["training"] = Series(
        np.array(counts),
        {"validation pairs": np.array([made.errors[c] for c in counts])},
        "step",
        title="Error by steps of training",
        unit="share of squared length",
    )
    notes: dict[str, Any] = {name: int((pairs.part == i).sum()) for i, name in enumerate(PARTS)}
    notes |= {"components": int(pairs.component.max()) + 1, "controls": pairs.names, "steps": made.steps, "penalty": penalty}
    notes |= {"error on test pairs": normalised_error(made.sae, pairs.differences[test]), "biases set to 0, share of a length": made.bias}
    notes |= {"codes per pair": float((codes != 0).sum(1).mean()), "features without a code": int((codes == 0).all(0).sum())}
    notes["kept after shuffling labels"] = _false_alarms(codes, pairs, seed)
    notes |= {"confidence": confidence, "seed": seed}
    return Report(parts, tuple(_words(effects, parts, notes, features)), title="Preference features", diagnostics=notes)


def _checked(
    a: Any,
    b: Any,
    labels: Sequence[int],
    groups: Sequence[Any],
    controls: Mapping[str, Sequence[float]],
    shares: Sequence[float],
    seed: int,
) -> _Pairs:
    one, other = (torch.as_tensor(np.asarray(e) if not isinstance(e, Tensor) else e).detach().float() for e in (a, b))
    if one.shape != other.shape or one.ndim != 2:
        raise InputError(f"Embeddings of pairs have one shape, pair by number; got {tuple(one.shape)} and {tuple(other.shape)}.")
    answers = np.asarray(labels).astype(float)
    if answers.shape != (len(one),) or not (np.isin(answers, (0, 1)).all() or np.isin(answers, (-1, 1)).all()):
        raise InputError(
            f"labels say for each of the {len(one)} pairs 1 (first preferred) or 0; got shape {answers.shape} with values "
            f"{', '.join(f'{v:g}' for v in np.unique(answers)[:5])}. Leave ties out."
        )
    answers = (answers > 0).astype(float)
    table = np.stack([np.asarray(v, dtype=float) for v in controls.values()], 1) if controls else np.zeros((len(one), 0))
    if len(table) != len(one):
        raise InputError(f"controls hold {len(table)} values for {len(one)} pairs; give the difference A − B of each pair.")
    differences = one - other
    if not bool(differences.isfinite().all()) or not np.isfinite(table).all():
        raise NotFinite("An embedding or a control holds NaN or infinity, from which nothing can be learnt. Leave those pairs out.")
    component = components(list(groups), len(one))
    part = split(component, shares, seed)
    lone = next((name for i, name in enumerate(PARTS) if len(np.unique(answers[part == i])) < 2 and name != "validation"), None)
    if lone:
        raise InputError(
            f"All {lone} pairs have the same answer, so nothing can be told from it. Give pairs in which A and in which B is preferred."
        )
    return _Pairs(differences, answers, table, tuple(controls), component, part)


def _check_words(pairs: _Pairs, texts: Sequence[Any] | None, verdicts: np.ndarray | None, features: int) -> None:
    count = len(pairs.answers)
    if texts is not None and len(texts) != count:
        raise InputError(f"{len(texts)} pairs of texts for {count} pairs of embeddings; give one for each.")
    if verdicts is None:
        return
    found = np.asarray(verdicts, dtype=float)
    if found.shape != (count, features) or not np.isin(found[np.isfinite(found)], (-1, 0, 1)).all():
        raise InputError(f"verdicts are −1, 0, 1 or NaN, of shape ({count}, {features}), pair by feature; got shape {found.shape}.")


def _design(codes: np.ndarray, pairs: _Pairs) -> tuple[np.ndarray, int]:
    """Intercept, controls, codes, all but the first standardised on training pairs; and how many come before the codes."""
    train = pairs.part == 0
    table = np.concatenate([pairs.controls, codes], 1)
    deviation = table[train].std(0)
    table = (table - table[train].mean(0)) / np.where(deviation > 0, deviation, 1.0)
    return np.concatenate([np.ones((len(table), 1)), table], 1), 1 + pairs.controls.shape[1]


def _effects(codes: np.ndarray, pairs: _Pairs, answers: np.ndarray) -> list[fits.Effect]:
    design, free = _design(codes, pairs)
    train = pairs.part == 0
    _, clusters = np.unique(pairs.component[train], return_inverse=True)
    nothing = fits.Effect(*(float("nan"),) * 4)
    return [
        fits.effect(design[train][:, [*range(free), free + j]], answers[train], free, clusters)
        if (codes[train, j] != 0).sum() >= FEWEST_CODES
        else nothing
        for j in range(codes.shape[1])
    ]


def _features(effects: list[fits.Effect], codes: np.ndarray, pairs: _Pairs, verdicts: np.ndarray | None, confidence: float) -> Ranking:
    from scipy.stats import norm

    values, errors, chances, ratios = (np.array([getattr(e, n) for e in effects]) for n in ("value", "error", "chance", "ratio_chance"))
    order = np.argsort(-np.nan_to_num(np.abs(values), nan=-1), kind="stable")
    wide = norm.ppf((1 + confidence) / 2) * errors
    columns = {
        "low": values - wide,
        "high": values + wide,
        "p": chances,
        "p of likelihood ratio": ratios,
        "kept": chances <= LEVEL / len(effects),
    }
    columns["share of pairs"] = (codes != 0).mean(0)
    if verdicts is not None:
        columns |= _fidelity(codes, pairs, np.asarray(verdicts, dtype=float))
    made = {name: column[order] for name, column in columns.items()}
    return Ranking(
        tuple(f"feature {j}" for j in order),
        values[order],
        made,
        title="Effect of each difference on the preference",
        unit="log-odds per deviation",
    )


def _fidelity(codes: np.ndarray, pairs: _Pairs, verdicts: np.ndarray) -> dict[str, np.ndarray]:
    """Pearson correlation of verdicts and codes on test pairs."""
    from scipy.stats import pearsonr

    found = np.full((3, codes.shape[1]), np.nan)
    for j in range(codes.shape[1]):
        asked = (pairs.part == 2) & np.isfinite(verdicts[:, j])
        found[2, j] = asked.sum()
        one, other = verdicts[asked, j], codes[asked, j]
        if asked.sum() >= FEWEST_VERDICTS and np.ptp(one) and np.ptp(other):
            found[:2, j] = pearsonr(one, other)
    faithful = (found[0] > 0) & (found[1] <= LEVEL / codes.shape[1])
    return {"fidelity": found[0], "p of fidelity": found[1], "verdicts": found[2], "faithful": faithful}


def _examples(codes: np.ndarray, texts: Sequence[tuple[str, str]] | None) -> Ranking:
    most = max(1, int(np.ceil(SHOWN_SHARE * len(codes))))
    lines = []
    for j in range(codes.shape[1]):
        order = np.argsort(-np.abs(codes[:, j]), kind="stable")[:most]
        lines += [(j, int(i)) for i in order[:SHOWN] if codes[i, j]]
    columns: dict[str, np.ndarray] = {
        "feature": np.array([j for j, _ in lines], dtype=int),
        "pair": np.array([i for _, i in lines], dtype=int),
        "exchanged": np.array([codes[i, j] < 0 for j, i in lines], dtype=bool),
    }
    if texts is not None:
        told = [texts[i] if codes[i, j] > 0 else texts[i][::-1] for j, i in lines]
        columns |= {name: np.array([t[n] for t in told], dtype=object) for n, name in enumerate(("more", "less"))}
    values = np.array([abs(codes[i, j]) for j, i in lines])
    return Ranking(
        tuple(f"feature {j}, pair {i}" for j, i in lines),
        values,
        columns,
        title="Pairs that differ most in each feature",
        unit="size of code",
    )


def _joint(codes: np.ndarray, pairs: _Pairs, answers: np.ndarray, wanted: int) -> tuple[np.ndarray, float]:
    design, free = _design(codes, pairs)
    train = pairs.part == 0
    return fits.sparse_fit(design[train], answers[train], free, wanted)


def _joint_table(weights: np.ndarray, pairs: _Pairs) -> Ranking:
    free = 1 + len(pairs.names)
    found = weights[free:]
    order = [int(j) for j in np.argsort(-np.abs(found), kind="stable") if found[j]]
    names = (*(f"feature {j}" for j in order), *(f"control {n}" for n in pairs.names), "intercept")
    values = np.r_[found[order], weights[1:free], weights[:1]]
    free_of = np.r_[np.ones(len(order), bool), np.zeros(free, bool)]
    return Ranking(
        names, values, {"penalised": free_of}, title="All at once, with a penalty on features alone", unit="log-odds per deviation"
    )


def _accuracy(codes: np.ndarray, pairs: _Pairs, made: PairDictionary, joint: int, confidence: float, resamples: int, seed: int) -> Ranking:
    test = pairs.part == 2
    generator = np.random.default_rng([seed, 4])
    draw = torch.nn.functional.normalize(torch.randn(made.sae.directions.shape, generator=torch.Generator().manual_seed(seed)), dim=1)
    pre = (pairs.differences @ draw.T).double().numpy()
    line = np.quantile(np.abs(pre), 1 - np.count_nonzero(codes) / codes.size)  # as many codes as the dictionary makes
    random = np.where(np.abs(pre) > line, pre, 0)
    lot = pairs.answers[generator.permutation(len(pairs.answers))]
    logits = {
        "controls alone": _logits(codes[:, :0], pairs, pairs.answers, 0),
        f"{joint} features": _logits(codes, pairs, pairs.answers, joint),
        f"{joint} random directions": _logits(random, pairs, pairs.answers, joint),
        "whole difference": _ridge(pairs),
        f"{joint} features, labels shuffled": _logits(codes, pairs, lot, joint),
    }
    right = np.stack([(v[test] > 0) == (pairs.answers[test] > 0) for v in logits.values()], 1).astype(float)
    _, number = np.unique(pairs.component[test], return_inverse=True)
    above = np.zeros((number.max() + 1, right.shape[1]))
    np.add.at(above, number, right)
    below = np.broadcast_to(np.bincount(number)[:, None], above.shape)
    low, high, _ = bootstrap_interval(above, below, confidence=confidence, resamples=resamples, seed=seed)
    return Ranking(tuple(logits), right.mean(0), {"low": low, "high": high}, title="Test pairs told rightly", unit="share")


def _logits(codes: np.ndarray, pairs: _Pairs, answers: np.ndarray, wanted: int) -> np.ndarray:
    design, free = _design(codes, pairs)
    train = pairs.part == 0
    if wanted:
        weights, _ = fits.sparse_fit(design[train], answers[train], free, wanted)
    else:
        alone = fits.fitted(design[train], answers[train])
        weights = fits.penalised(design[train], answers[train], 0.0, free) if alone is None else alone
    return design @ weights


def _ridge(pairs: _Pairs) -> np.ndarray:
    """All numbers of the difference with controls, the penalty chosen on validation pairs."""
    from sklearn.linear_model import LogisticRegression

    design, _ = _design(pairs.differences.double().numpy(), pairs)
    train, validation = pairs.part == 0, pairs.part == 1
    tried = [LogisticRegression(C=c, max_iter=2000).fit(design[train, 1:], pairs.answers[train]) for c in RIDGES]
    best = max(range(len(tried)), key=lambda i: (tried[i].score(design[validation, 1:], pairs.answers[validation]), -i))
    return np.asarray(tried[best].decision_function(design[:, 1:]))


def _false_alarms(codes: np.ndarray, pairs: _Pairs, seed: int, rounds: int = 10) -> float:
    """Features that are kept on average after labels were shuffled."""
    generator = np.random.default_rng([seed, 5])
    kept = [
        sum(e.chance <= LEVEL / codes.shape[1] for e in _effects(codes, pairs, pairs.answers[generator.permutation(len(pairs.answers))]))
        for _ in range(rounds)
    ]
    return float(np.mean(kept))


def _words(effects: list[fits.Effect], parts: Mapping[str, Result], notes: Mapping[str, Any], features: int) -> list[str]:
    accuracy = parts["accuracy"]
    assert isinstance(accuracy, Ranking)
    kept = sum(e.chance <= LEVEL / features for e in effects)
    held = ", ".join(notes["controls"]) or "nothing"
    said = [
        f"{kept} of {features} features go with the preference, {held} held fixed (p ≤ {LEVEL}/{features}); with shuffled labels {notes['kept after shuffling labels']:.1f}."
    ]
    low, high = accuracy.columns["low"], accuracy.columns["high"]
    said += [
        f"{name}: {accuracy.values[i]:.1%} of the test pairs ({low[i]:.1%} to {high[i]:.1%})." for i, name in enumerate(accuracy.names)
    ]
    if not notes["controls"]:
        said.append("Nothing was held fixed: an effect may be that of length. Give controls={'length': …}.")
    return said
