"""DeepLIFT over the embeddings: slopes between the input and one without words or patches, carried through every component."""

from __future__ import annotations

from typing import Any

from activarium.analyses.patching.leaves import EXACT, Leaves
from activarium.analyses.patching.paths import completeness_error, entrances
from activarium.edits import Where, Zero
from activarium.metrics import Metric
from activarium.rules import Secant


def secant_leaves(model: Any, given: Any, metric: Metric) -> tuple[Leaves, dict[str, Any]]:
    """Relevance of the embeddings by secant slopes, and how complete it is: rounding, for metrics linear in logits.

    The baseline is that of integrated gradients. Input and baseline run side by side, as one batch of two.
    """
    spaces, lower = entrances(model, given)
    both, twice = given.select([0, 0]).numbered(0), metric.select([0, 0])
    base = [Zero(n, where=Where(examples=(1,))) for n in lower]
    rec = model.run(both, read=[*spaces], edits=base, metrics={"metric": twice}, grad=True, rules=Secant())
    slopes = rec.backward("metric")
    high, low = rec.metric["metric"].detach().tolist()
    embeddings = {}
    for site, space in spaces.items():
        (first, second), (slope, _) = (t.tensor.detach().double().cpu().chunk(2) for t in (rec[site], slopes[site]))
        embeddings[space] = ((first - second) * slope).sum(-1)
    found = Leaves(high - low, embeddings, given.batch.rows, rules=rec.provenance["rules"], grain=EXACT.get(model.dtype, 3e-2))
    notes = {"metric at the input": high, "metric at the baseline": low, "completeness_error": completeness_error(found), "rule": "secant"}
    return found, notes
