"""One site on disk, and random batches of its rows: our store, sae-lens' cached activations on Arrow, a mapped array."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from activarium.bench._peers import MISSING, hooked_transformer
from activarium.bench._shapes import bench_disk, tokens, wrapped
from activarium.bench._timing import Row, absent, interleaved, medians, ratio

ROWS = 4096


@dataclass
class OneSite:
    """One model, one site, and the folders that it is written to.

    Attributes:
        hf_model: The bare model.
        model: The wrapped one.
        config: Its shape.
        ids: Token ids, `example position`.
        batch: Examples per forward.
        site: What is written, in float32: Arrow takes no bfloat16.
        place: Folder for everything.
    """

    hf_model: Any
    model: Any
    config: dict[str, Any]
    ids: Any
    batch: int
    site: str
    place: Path

    def capture(self) -> None:
        """Our capture of the site."""
        import activarium as act

        shutil.rmtree(self.place / "bench.acts", ignore_errors=True)
        size = self.batch * self.ids.shape[1]
        act.capture(self.model, {"input_ids": self.ids}, sites=[self.site], to=self.place / "bench.acts", progress=False, batch_tokens=size)

    def plain(self) -> None:
        """The same forwards, nothing kept."""
        import torch

        with torch.no_grad():
            for part in self.ids.split(self.batch):
                self.hf_model(input_ids=part, use_cache=False)

    def sae_lens(self) -> Callable[[], None]:
        """sae-lens' own cache runner on the same tokens, made ready.

        Raises:
            ImportError: sae-lens is not installed.
        """
        from unittest.mock import patch

        import datasets
        from sae_lens import CacheActivationsRunner

        datasets.disable_progress_bars()
        made = datasets.Dataset.from_dict({"tokens": self.ids.tolist()})
        lens = hooked_transformer(self.hf_model, self.config)
        cfg = self.cache_config()

        def call() -> None:
            shutil.rmtree(self.place / "arrow", ignore_errors=True)
            # It would fetch a model by name; it gets ours, and no bar to draw.
            where = "sae_lens.cache_activations_runner"
            with (
                patch(f"{where}.load_model", return_value=lens),
                patch(f"{where}.tqdm", lambda steps, **_: steps),
                warnings.catch_warnings(action="ignore", category=UserWarning),  # it compares texts with tokens
            ):
                CacheActivationsRunner(cfg, override_dataset=made).run()

        return call

    def cache_config(self) -> Any:
        """sae-lens' settings: one shard of at most 512 MB at a time, never more than there is."""
        from sae_lens import CacheActivationsRunnerConfig

        width, length = self.config["n_embd"], self.ids.shape[1]
        return CacheActivationsRunnerConfig(
            dataset_path="none",
            model_name="bench",
            model_batch_size=self.batch,
            hook_name=self.hook,
            d_in=width,
            training_tokens=self.ids.numel(),
            context_size=length,
            new_cached_activations_path=str(self.place / "arrow"),
            shuffle=False,
            prepend_bos=False,
            streaming=False,
            device="cpu",
            buffer_size_gb=min(0.5, self.ids.numel() * width * 4 / 1e9),
        )

    @property
    def rows(self) -> int:
        """Rows in a random batch."""
        return min(ROWS, max(1, self.ids.numel() // 4))

    @property
    def steps(self) -> int:
        """Batches that make one pass."""
        return max(1, self.ids.numel() // self.rows)

    @property
    def hook(self) -> str:
        """TransformerLens' name of the site."""
        from activarium.capture import lens_name

        return str(lens_name(self.site))


def one_site(config: dict[str, Any], batch: tuple[int, int], batches: int, rounds: int, name: str) -> list[Row]:
    """Write one site; then draw random batches from what was written."""
    import torch

    hf_model, model = wrapped(config)
    ids = torch.cat([tokens(config, batch, seed) for seed in range(batches)])
    with tempfile.TemporaryDirectory(prefix="activarium-bench-", dir=bench_disk()) as place:
        case = OneSite(hf_model, model, config, ids, batch[0], f"blocks.{config['n_layer'] // 2}.resid_post", Path(place))
        return [*_writing(case, rounds, name), *_drawing(case, max(rounds, 5), name)]


def _writing(case: OneSite, rounds: int, name: str) -> list[Row]:
    shape = f"{name}, {case.ids.numel():,} rows of {case.config['n_embd']} float32"
    calls: dict[str, Callable[[], Any]] = {"plain": case.plain, "capture": case.capture}
    with suppress(ImportError):
        calls["sae-lens"] = case.sae_lens()
    times = interleaved(calls, rounds)
    size, found = case.ids.numel() * case.config["n_embd"] * 4 / 2**20, medians(times)
    notes = {k: f"{case.ids.numel() / found[k][0]:,.0f} rows/s, {size / found[k][0]:,.1f} MiB/s, forward included" for k in calls}
    rows = [ratio(f"one site to disk / plain forward, {shape}", times, "capture", "plain", note=notes["capture"])]
    what = f"sae-lens CacheActivationsRunner of one site / our capture, {shape}"
    if "sae-lens" not in calls:
        return [*rows, absent(what, MISSING.format("sae-lens"))]
    return [*rows, ratio(what, times, "sae-lens", "capture", note=f"{notes['sae-lens']}; neither synced nor hashed, ours is")]


def _drawing(case: OneSite, rounds: int, name: str) -> list[Row]:
    calls = draws(case)
    # As many batches as make one pass in every call: some ways pay for many batches at once, when they fill their buffer.
    times = interleaved({k: partial(_repeat, c, case.steps) for k, c in calls.items() if not isinstance(c, str)}, rounds)
    shape = f"{name}, {case.steps} × {case.rows} of {case.ids.numel():,} rows"
    size = case.steps * case.rows * case.config["n_embd"] * 4 / 2**20
    speed = {k: f"{size / s:,.0f} MiB/s" for k, (s, _) in medians(times).items()}
    rows = [ratio(f"random batch from our store / from a mapped array, {shape}", times, "store", "mapped array", "", speed["store"])]
    # Each with its like: batches for training come mixed from blocks on both sides, single rows from anywhere.
    for peer, ours, way in (("sae-lens batches", "mixed blocks", "store.iter_batches"), ("Arrow rows", "store", "store[site].rows")):
        what = f"random batch from sae-lens' Arrow cache ({peer}) / from our store ({way}), {shape}"
        missing = calls[peer]
        note = "" if isinstance(missing, str) else f"{speed[peer]}; ours {speed[ours]}"
        rows.append(absent(what, missing, "≥ 5") if isinstance(missing, str) else ratio(what, times, peer, ours, "≥ 5", note))
    return rows


def _repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def draws(case: OneSite) -> dict[str, Callable[[], Any] | str]:
    """Ways to draw a random batch of rows from what was written, or why there is none."""
    import numpy as np
    import torch

    import activarium as act

    store = act.open(case.place / "bench.acts")
    stored = store[case.site]
    total, width = case.ids.numel(), case.config["n_embd"]
    np.lib.format.open_memmap(case.place / "rows.npy", "w+", np.float32, (total, width))[:] = stored.tensor.numpy()
    mapped = np.load(case.place / "rows.npy", mmap_mode="r")
    random = np.random.default_rng(0)

    def index() -> Any:
        return random.integers(0, total, case.rows)

    found: dict[str, Callable[[], Any] | str] = {
        "store": lambda: stored.rows(index()),
        "mixed blocks": partial(next, _epochs(store, case)),
        "mapped array": lambda: torch.from_numpy(mapped[index()]),
    }
    return found | _arrow_draws(case, index)


def _epochs(store: Any, case: OneSite) -> Iterator[Any]:
    for seed in count():
        yield from store.iter_batches(case.site, case.rows, shuffle_blocks=64, seed=seed)


def _arrow_draws(case: OneSite, index: Callable[[], Any]) -> dict[str, Callable[[], Any] | str]:
    """What sae-lens trains on (its mixing buffer), and single rows of its Arrow table, which holds one text in each."""
    try:
        from datasets import load_from_disk
        from sae_lens.training.activations_store import ActivationsStore
    except ImportError:
        return dict.fromkeys(("sae-lens batches", "Arrow rows"), MISSING.format("sae-lens"))
    import numpy as np
    import torch

    cfg, length = case.cache_config(), case.ids.shape[1]
    table: Any = load_from_disk(str(case.place / "arrow")).with_format("torch")
    store = ActivationsStore(
        model=torch.nn.Identity(),  # type: ignore[arg-type]
        dataset=None,
        streaming=False,
        hook_name=cfg.hook_name,
        hook_head_index=None,
        context_size=length,
        d_in=cfg.d_in,
        n_batches_in_buffer=max(8, -(-4 * case.rows // (case.batch * length))),  # sae-lens mixes in half of it
        total_training_tokens=cfg.training_tokens,
        store_batch_size_prompts=case.batch,
        train_batch_size_tokens=case.rows,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        cached_activations_path=str(case.place / "arrow"),
    )

    def rows() -> Any:
        wanted = index()
        texts, inverse = np.unique(wanted // length, return_inverse=True)
        return table[texts.tolist()][cfg.hook_name][torch.as_tensor(inverse), torch.as_tensor(wanted % length)]

    return {"sae-lens batches": store.next_batch, "Arrow rows": rows}
