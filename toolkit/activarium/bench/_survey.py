"""What a survey costs beside the forward that feeds it."""

from __future__ import annotations

from typing import Any

from activarium.bench._shapes import row_wise_sites, tokens, wrapped
from activarium.bench._timing import Row, interleaved, ratio


def surveys(config: dict[str, Any], batch: tuple[int, int], batches: int, rounds: int, name: str) -> list[Row]:
    """Survey of all row-wise sites / plain forward over the same batches."""
    import torch

    import activarium as act
    from activarium.summaries import CoActivation, Count, Gram, Magnitudes, Moments, Quantiles, Summary, TopRows

    hf_model, model = wrapped(config)
    ids = torch.cat([tokens(config, batch, seed) for seed in range(batches)])
    sites = row_wise_sites(model)
    atlas: list[Summary] = [Count(), Moments(), Magnitudes(), TopRows(1, magnitude=True)]
    every: dict[str, list[Summary]] = {site: [*atlas, Quantiles(), TopRows(10)] for site in sites}
    for site in sites:
        if site.endswith("resid_post"):  # their states grow with the square of the width
            every[site] += [Gram(), CoActivation()]
    _ = model.identity  # the weights' hash is taken once per model, not once per survey

    def plain() -> None:
        with torch.no_grad():
            for part in ids.split(batch[0]):
                hf_model(input_ids=part, use_cache=False)

    def run(wanted: dict[str, list[Summary]]) -> Any:
        return act.survey(model, wanted, {"input_ids": ids}, batch_tokens=batch[0] * batch[1], progress=False)

    calls = {
        "plain": plain,
        "atlas": lambda: run(dict.fromkeys(sites, atlas)),
        "every": lambda: run(every),
        "nothing": lambda: run({site: [] for site in sites}),
    }
    times = interleaved(calls, rounds)
    shape = f"{len(sites)} sites, {name}, {batches} batches of {batch[0]}×{batch[1]} tokens"
    goals = {"nothing": "", "atlas": "≤ 2", "every": "≤ 2"}
    words = {
        "nothing": "survey of no summary (reading alone)",
        "atlas": "survey of what an atlas needs (Count, Moments, Magnitudes, TopRows)",
        "every": "survey of all summaries (Gram and CoActivation at resid_post only)",
    }
    return [ratio(f"{words[k]} / plain forward, {shape}", times, k, "plain", goals[k]) for k in words]
