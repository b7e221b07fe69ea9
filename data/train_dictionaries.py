"""Trains the bundled dictionaries, on rows of scribe and patches of glyph captured to a store.

Run it as `python data/train_dictionaries.py`, or with some of their names. The same seed, machine and thread count give the same
weights, bit by bit; other machines give the same behaviour.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import activarium as act
from activarium.dictionaries import Recipe, Trained, save, train

if __package__:  # imported as activarium.data.train_dictionaries
    from . import corpus, scenes
    from .dictionary_card import write_card
    from .train_scribe import reproducible
else:  # run as a script
    import corpus
    import scenes
    from dictionary_card import write_card
    from train_scribe import reproducible

HERE = Path(__file__).parent
WHAT = {"scribe": "sentences", "glyph": "scenes"}


@dataclass(frozen=True)
class Plan:
    """On what is a dictionary trained, and how?"""

    model: str
    site: str
    recipe: Recipe
    examples: int  # sentences or scenes
    seed: int  # of the examples; the model's own training had another
    steps: int = 2000
    batch: int = 1024
    threads: int = 1


PLANS = {
    "scribe-resid": Plan("scribe", "blocks.2.resid_post", Recipe(512, "batchtopk", k=8, learning_rate=3e-3), 12_000, 51_001),
    "scribe-mlp": Plan("scribe", "blocks.1.mlp.out", Recipe(512, "batchtopk", k=8, learning_rate=3e-3), 12_000, 51_001),
    "glyph-resid": Plan("glyph", "blocks.2.resid_post", Recipe(512, "batchtopk", k=8, learning_rate=3e-3), 3_000, 51_002),
}


def examples(plan: Plan) -> list:
    """Which texts or images are captured for it?"""
    if plan.model == "glyph":
        return list(scenes.batch(plan.seed, 0, plan.examples)[0])
    return corpus.training_text(plan.seed, plan.examples)


def made(plan: Plan, *, progress: bool = False) -> Trained:
    """Which dictionary does the plan give, from a capture to a store that is removed afterwards?"""
    model = act.load(plan.model)
    with reproducible(plan.threads), tempfile.TemporaryDirectory() as place:
        store = act.capture(model, examples(plan), [plan.site], to=Path(place) / "rows.acts", progress=progress)
        found = train(store, plan.site, plan.recipe, batch=plan.batch, steps=plan.steps, seed=plan.recipe.seed, progress=progress)
    # The store is gone: what its rows came from is what can be made again.
    found.sae.origin = found.sae.origin.with_(data=f"{plan.examples} {WHAT[plan.model]}, seed {plan.seed}")
    return found


def trained(name: str, plan: Plan, out: Path) -> None:
    """Train, save and measure one dictionary."""
    started, spent = time.perf_counter(), time.process_time()
    found = made(plan, progress=True)
    shutil.rmtree(out / name, ignore_errors=True)
    save(found.sae, out / name)
    minutes = {"wall": round((time.perf_counter() - started) / 60, 1), "processor": round((time.process_time() - spent) / 60, 1)}
    write_card(out / name, asdict(plan), found.report.words, minutes)


def main(names: Iterable[str] = (), out: Path = HERE / "dictionaries") -> None:
    """Train those that are named, or all."""
    for name in names or PLANS:
        trained(name, PLANS[name], out)
        print(f"{name}: {out / name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*PLANS, []], help="which; all where nothing is said")
    main(parser.parse_args().names)
