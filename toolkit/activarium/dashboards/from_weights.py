"""What weights alone say of features: like directions, neurons that write alike, tokens that are promoted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from activarium.dashboards.ranks import best
from activarium.dictionaries.dictionary import FeatureDictionary
from activarium.protocols import Runner

GROUP = 256  # features at a time
WRITES = ("resid_pre", "resid_mid", "resid_post", "attn.out", "mlp.out", "embed")  # sites in the space of the residual stream


@dataclass(frozen=True, eq=False)
class FromWeights:
    """Name → numbers and figures, `feature rank` each (-1: none), and words that say what they are.

    Attributes:
        lists: `neighbours`, `neurons`, `promoted`, `suppressed`, as far as the site and the model allow.
        words: What each list is, or why it is not there.
    """

    lists: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def from_weights(dictionary: FeatureDictionary, features: Sequence[int], model: Runner | None, count: int = 10) -> FromWeights:
    """Lists of the chosen features.

    Args:
        dictionary: Its directions.
        features: Whose lists are made; neighbours are looked for among all features.
        model: For neurons and tokens.
        count: Length of each list.
    """
    made = FromWeights()
    directions = dictionary.directions.detach().float()
    unit = normalize(directions, dim=1)
    made.lists["neighbours"] = _over(unit[list(features)], unit.T, count, without=features)
    made.words["neighbours"] = "features whose directions have the largest cosine with this one's"
    site = dictionary.origin.target or dictionary.origin.site
    if model is None:
        made.words["promoted"] = made.words["neurons"] = "not known: pages were built without the model"
        return made
    chosen = directions[list(features)]
    neurons = _neurons(site, model)
    if neurons is None:
        made.words["neurons"] = f"not known: no MLP of this model writes {site}"
    else:
        wanted = normalize(chosen, dim=1)
        made.lists["neurons"] = _over(wanted, normalize(neurons.float().to(wanted.device), dim=1).T, count)
        made.words["neurons"] = f"neurons of {_mlp_of(site)} whose output weights have the largest cosine with the feature's direction"
    stream = _to_stream(site, chosen, model)
    if stream is None or "W_U" not in getattr(model, "weights", {}):
        made.words["promoted"] = f"not known: {site} does not write the residual stream, or the model has no W_U"
        return made
    made.lists.update(_tokens(stream, model, count))
    gain = "with the final norm's gain folded in" if _gain(model) else "the model has no final norm's gain"
    made.words["promoted"] = (
        f"direct effect of the direction on the logits, direction · W_U, {gain}, centred over the vocabulary; "
        "the norm's division and everything between this site and the end are left out"
    )
    return made


def _over(rows: Tensor, columns: Tensor, count: int, without: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """The largest of rows · columns, some rows at a time; `without` names one column of each row that does not count."""
    found = []
    for first in range(0, len(rows), GROUP):
        scores = rows[first : first + GROUP] @ columns
        if without is not None:
            here = torch.as_tensor(list(without[first : first + GROUP]))
            scores[torch.arange(len(scores)), here] = -torch.inf
        found.append(best(scores, count))
    return torch.cat([n for n, _ in found]).cpu(), torch.cat([f for _, f in found]).cpu()


def _tokens(stream: Tensor, model: Runner, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    unembedding = model.weight("W_U").float()
    gain = _gain(model)
    if gain:
        unembedding = model.weight(gain).float()[:, None] * unembedding
    unembedding = unembedding - unembedding.mean(1, keepdim=True)
    up, down = _over(stream.to(unembedding), unembedding, count), _over(-stream.to(unembedding), unembedding, count)
    return {"promoted": up, "suppressed": (down[0], -down[1])}


def _gain(model: Runner) -> str:
    names = [n for n in ("final_norm.gain", "decoder.final_norm.gain") if n in getattr(model, "weights", {})]
    return names[0] if names else ""


def _block_of(site: str) -> tuple[str, str]:
    """`blocks.3.` and `resid_post`."""
    at = site.rfind("blocks.")
    if at < 0:
        return "", site
    number, _, short = site[at + len("blocks.") :].partition(".")
    return f"{site[:at]}blocks.{number}.", short


def _mlp_of(site: str) -> str:
    """The MLP that writes a site."""
    prefix, short = _block_of(site)
    if short in ("resid_post", "mlp.out", "mlp.proj", "mlp.post"):
        return f"{prefix}mlp"
    if short == "resid_pre" and prefix:
        head, _, number = prefix[:-1].rpartition(".")
        return f"{head}.{int(number) - 1}.mlp" if int(number) else ""
    return ""


def _neurons(site: str, model: Runner) -> Tensor | None:
    """Output weights `d_mlp d_model` of the MLP that writes a site; the neurons themselves for `mlp.post`."""
    name = f"{_mlp_of(site)}.W_down"
    if name not in getattr(model, "weights", {}):
        return None
    weights = model.weight(name)
    return torch.eye(len(weights)) if _block_of(site)[1] == "mlp.post" else weights


def _to_stream(site: str, directions: Tensor, model: Runner) -> Tensor | None:
    """What the directions write into the residual stream, `feature d_model`."""
    prefix, short = _block_of(site)
    known: Any = getattr(model, "weights", {})
    if short in WRITES:
        return directions
    if short == "mlp.post" and f"{prefix}mlp.W_down" in known:
        return directions @ model.weight(f"{prefix}mlp.W_down").float().to(directions.device)
    if short == "attn.z" and f"{prefix}attn.W_O" in known:
        return directions @ model.weight(f"{prefix}attn.W_O").float().flatten(0, 1).to(directions.device)
    return None


def spelled(numbers: Tensor, model: Runner) -> np.ndarray:
    """Token ids as words."""
    tokenizer = getattr(model, "tokenizer", None)
    known = {int(i): str(tokenizer.decode([int(i)])) if tokenizer is not None else str(int(i)) for i in numbers.unique() if int(i) >= 0}
    flat = [known.get(int(i), "") for i in numbers.flatten()]
    return np.array(flat, dtype=object).reshape(tuple(numbers.shape))
