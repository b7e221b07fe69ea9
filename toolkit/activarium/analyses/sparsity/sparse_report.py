"""What sparse decoding came to: quality and speed side by side, and words that say where it does not pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from activarium.analyses.changed_answers import Answers, joined
from activarium.analyses.layer_sites import layer_number
from activarium.analyses.sparsity.cores import SETTLED
from activarium.analyses.sparsity.sparse_runs import MEANS, RANDOM, STATIC, Trial
from activarium.maths import bootstrap_interval
from activarium.results import Ranking, Report, Result, Series

LAYOUT = "rows of the weights that lead in and columns of those that lead out, gathered once, contiguous"


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything that was measured.

    Attributes:
        strategy: What chose the neurons.
        trials: One for each prompt.
        chosen: Per prompt, site → neurons.
        widths: Site → number of neurons.
        layers: Layers of the model, skipped ones included.
        mlp_share: Weights of the sparse layers' MLPs over all weights that a step multiplies by.
        short: Core sets that are smaller than asked for.
    """

    strategy: str
    trials: Sequence[Trial]
    chosen: Sequence[Mapping[str, np.ndarray]]
    widths: Mapping[str, int]
    layers: int
    mlp_share: float
    short: int

    @property
    def share(self) -> float:
        """Neurons that run over neurons, in the sparse layers, averaged over prompts."""
        return float(np.mean([sum(map(len, c.values())) for c in self.chosen]) / sum(self.widths.values()))

    @property
    def union(self) -> float:
        """Share of neurons that any of the prompts needs: what a batch of all of them would run."""
        needed = sum(len(np.unique(np.concatenate([c[site] for c in self.chosen]))) for site in self.widths)
        return needed / sum(self.widths.values())

    @property
    def ceilings(self) -> tuple[float, float]:
        """The most that the MLPs and the whole model could gain, were time what is multiplied."""
        p = self.share
        return (1 / p if p else float("inf")), 1 / ((1 - self.mlp_share) + self.mlp_share * p)

    def answers(self, name: str) -> Answers:
        """The answers of all prompts with one set of neurons."""
        return joined([t.answers[name] for t in self.trials])

    def rates(self, clock: int = 0) -> np.ndarray:
        """Tokens per second, dense and sparse, `(prompt and round, 2)`; by the second clock per second of processor time."""
        return np.concatenate([t.steps / t.seconds[:, clock] for t in self.trials])


def report_of(outcome: Outcome, notes: Mapping[str, Any], *, default_skip: bool, prompt_lengths: Sequence[int]) -> Report:
    """The report of `sparse_decode`."""
    names = list(outcome.trials[0].answers)
    answers = {name: outcome.answers(name) for name in names}
    counted = _record(outcome) | dict(notes)
    parts: dict[str, Result] = {
        "quality": _quality(outcome, answers),
        "speed": _speed(outcome),
        "kl": _by_step(
            {n: [t.answers[n].kl for t in outcome.trials] for n in names}, "KL to the dense model at each token written", "nats"
        ),
        "energy recall": _by_step(
            {n: [t.recall[n].mean(0) for t in outcome.trials] for n in outcome.trials[0].recall},
            "Energy that the frozen neurons hold",
            "share",
        ),
        "recall by layer": _by_layer(outcome),
    }
    words = [
        *_layer_words(outcome, int(notes["skip_layers"]), default_skip),
        _speed_words(outcome),
        *_quality_words(outcome, answers),
        _recall_words(outcome),
        *_caveats(outcome, prompt_lengths),
    ]
    return Report(parts, tuple(words), title="Decoding with core neurons alone", diagnostics=counted)


def _interval(answers: Answers) -> tuple[float, float]:
    low, high, _ = bootstrap_interval(*(column[:, None] for column in answers.sums(answers.kl)))
    return float(low[0]), float(high[0])


def _quality(outcome: Outcome, answers: Mapping[str, Answers]) -> Ranking:
    kl = np.array([a.mean("kl") for a in answers.values()])
    order, names = np.argsort(kl, kind="stable"), list(answers)
    low, high = np.array([_interval(a) for a in answers.values()]).T
    full = float(np.exp(next(iter(answers.values())).mean("full_loss")))
    recall = {n: float(np.nanmean([np.nanmean(t.recall[n]) for t in outcome.trials])) for n in outcome.trials[0].recall}
    columns = {
        "low": low,
        "high": high,
        "perplexity": np.array([np.exp(answers[n].mean("loss")) for n in names]),
        "dense perplexity": np.full(len(names), full),
        "same top token": np.array([answers[n].mean("agrees") for n in names]),
        "energy recall": np.array([recall[n.removesuffix(f" {MEANS}")] for n in names]),
        "neurons": np.full(len(names), outcome.share),
        "tokens": np.array([len(answers[n]) for n in names]),
    }
    title = "Nearest to the dense model first, on its own continuation"
    return Ranking(
        tuple(names[i] for i in order), kl[order], {k: v[order] for k, v in columns.items()}, title=title, unit="KL, nats per token"
    )


def _speed(outcome: Outcome) -> Ranking:
    rates = outcome.rates()
    median = np.median(rates, axis=0)
    order, names = np.argsort(-median, kind="stable"), ("dense", outcome.strategy)
    busy = np.median(outcome.rates(1), axis=0)
    columns = {"low": rates.min(0), "high": rates.max(0), "times dense": median / median[0]}
    columns |= {"times dense in processor time": busy / busy[0], "timings": np.full(2, len(rates))}
    title = "Tokens per second after the prompt, batch 1"
    return Ranking(
        tuple(names[i] for i in order), median[order], {k: v[order] for k, v in columns.items()}, title=title, unit="tokens per second"
    )


def _by_step(curves: Mapping[str, Sequence[np.ndarray]], title: str, unit: str) -> Series:
    means = {name: np.mean(each, axis=0) for name, each in curves.items()}
    return Series(np.arange(1, 1 + len(next(iter(means.values())))), means, "tokens written", title=title, unit=unit)


def _by_layer(outcome: Outcome) -> Series:
    curves = {n: np.mean([np.nanmean(t.recall[n], 1) for t in outcome.trials], axis=0) for n in outcome.trials[0].recall}
    x = np.array([layer_number(site, i) for i, site in enumerate(outcome.widths)])
    return Series(x, curves, "layer", title="Energy that the frozen neurons hold, by layer", unit="share")


def _record(outcome: Outcome) -> dict[str, Any]:
    """What a benchmark must say beside its number."""
    rates, (mlp, whole) = np.median(outcome.rates(), axis=0), outcome.ceilings
    return {
        "batch": 1,
        "phase": "decode, after a dense prompt",
        "layout": LAYOUT,
        "indices known before": True,
        "share of neurons": outcome.share,
        "union density": outcome.union,
        "union if independent": 1 - (1 - outcome.share) ** len(outcome.trials),
        "prompts": len(outcome.trials),
        "largest gap to masked dense": outcome.trials[0].gap,
        "dense tokens per second": float(rates[0]),
        "sparse tokens per second": float(rates[1]),
        "mlp ceiling": mlp,
        "model ceiling": whole,
        "weights in sparse MLPs": outcome.mlp_share,
        "seconds to choose and gather": float(np.median([t.prepare for t in outcome.trials])),
        "seconds of the prompt": float(np.median([t.prefill for t in outcome.trials])),
        "empty rows": int(sum(np.isnan(next(iter(t.recall.values()))).sum() for t in outcome.trials)),
        "short sets": outcome.short,
    }


def _layer_words(outcome: Outcome, skipped: int, default: bool) -> list[str]:
    why = " (the paper leaves 3 of 32; a quarter of a small model)" if default and skipped < 3 else ""
    dense = f"the first {skipped} of {outcome.layers} layers stay dense{why}" if skipped else f"all {outcome.layers} layers are sparse{why}"
    return [f"{100 * outcome.share:.1f} % of the neurons of {len(outcome.widths)} layers run, chosen by {outcome.strategy}; {dense}."]


def _speed_words(outcome: Outcome) -> str:
    (dense, sparse), (_, whole) = np.median(outcome.rates(), axis=0), outcome.ceilings
    said = f"{sparse:.1f} tokens per second sparse, {dense:.1f} dense: {sparse / dense:.2f} times (at most {whole:.2f} times by what is multiplied)."
    seconds = np.concatenate([t.seconds[:, 0] for t in outcome.trials])
    low, high = np.quantile(seconds[:, 0] / seconds[:, 1], [0.25, 0.75])
    if low <= 1 <= high:
        return f"{said} It does not pay here, as far as these timings tell: the middle half of them lies between {low:.2f} and {high:.2f} times."
    if sparse <= dense:
        return f"{said} It does not pay here: what surrounds the MLPs takes the time."
    prepare = float(np.median([t.prepare for t in outcome.trials]))
    return (
        f"{said} Choosing and gathering took {1000 * prepare:.0f} ms, paid back after {prepare / (1 / dense - 1 / sparse):,.0f} tokens; the whole "
        "weights stay in memory beside the gathered ones."
    )


def _quality_words(outcome: Outcome, answers: Mapping[str, Answers]) -> list[str]:
    own = answers[outcome.strategy]
    before, after = (float(np.exp(own.mean(name))) for name in ("full_loss", "loss"))
    said = [
        f"It costs {own.mean('kl'):.3f} nats of KL per token, and perplexity {after:.2f} instead of {before:.2f} on the dense continuation; "
        f"{100 * own.mean('agrees'):.0f} % of top tokens stay. With the prompt's means for the others: {answers[f'{outcome.strategy} {MEANS}'].mean('kl'):.3f} nats."
    ]
    others = {name: answers[name] for name in (STATIC, RANDOM) if name != outcome.strategy}
    beside = {name: _beside(own, other) for name, other in others.items()}
    compared = " and ".join(f"{word} the {name} one ({others[name].mean('kl'):.3f} nats)" for name, word in beside.items())
    said.append(f"By KL the chosen set is {compared}, all of one size.")
    if STATIC in beside:
        good = all(word == "better than" for word in beside.values())
        better = "choosing neurons by prompt beats choosing them once for all"
        said.append(f"{better[0].upper()}{better[1:]}." if good else f"Nothing here shows that {better}.")
    return said


def _recall_words(outcome: Outcome) -> str:
    """What a dense step now and then would have told while decoding."""
    curves = {name: _mean_recall(outcome, name) for name in (outcome.strategy, RANDOM)}
    own, few = curves[outcome.strategy], min(4, outcome.trials[0].steps)
    return (
        f"The frozen neurons hold {100 * np.nanmean(own[:few]):.0f} % of the energy in the first {few} steps and {100 * np.nanmean(own[-few:]):.0f} % in the "
        f"last {few}; random ones {100 * np.nanmean(curves[RANDOM]):.0f} %. Where this falls while decoding, choose again."
    )


def _mean_recall(outcome: Outcome, name: str) -> np.ndarray:
    return np.mean([t.recall[name].mean(0) for t in outcome.trials], axis=0)


def _beside(own: Answers, other: Answers) -> str:
    """Is the KL of one set lower than that of another, by an interval over prompts?"""
    above, below = own.sums(other.kl - own.kl)
    low, high, _ = bootstrap_interval(above[:, None], below[:, None])
    return "better than" if low[0] > 0 else "worse than" if high[0] < 0 else "not to be told from"


def _caveats(outcome: Outcome, prompt_lengths: Sequence[int]) -> list[str]:
    said, prompts = [], len(outcome.trials)
    if prompts > 1:
        said.append(
            f"A batch of all {prompts} prompts would need {100 * outcome.union:.0f} % of the neurons: sequences do not share their sets."
        )
    if outcome.strategy == "stability" and max(prompt_lengths) < SETTLED:
        said.append(
            f"The longest prompt has {max(prompt_lengths)} tokens; the paper's sets settled at 200 to 300, and its short prompts broke."
        )
    if outcome.short:
        said.append(f"{outcome.short:,} core sets are short: fewer neurons than asked for are in any token's core.")
    return said
