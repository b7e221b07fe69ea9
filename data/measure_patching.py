"""How near does each approximation of activation patching come on the bundled models? Prints the table of the README.

python data/measure_patching.py             scribe and glyph
python data/measure_patching.py --pairs 8   fewer pairs, to try it
"""

import argparse
import warnings

import torch

import activarium as act
from activarium.data import scenes  # pyright: ignore[reportAttributeAccessIssue]

KINDS = ("resid_pre", "attn.out", "mlp.out")


def cases(count: int):
    """Models with their pairs: indirect objects whose giver is swapped; scenes beside a scene of another class."""
    scribe, glyph = act.load("scribe"), act.load("glyph")
    yield scribe, act.pairs.ioi(scribe, count)
    images = [scenes.scene(scenes.TEST_SEED, i).image for i in range(count)]
    yield glyph, act.pairs.images(glyph, images, "other")


def main() -> None:
    """One table: a line per method, per model and kind of node Pearson (without known zeros) and slope."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=32)
    count = options.parse_args().pairs
    torch.set_num_threads(1)  # small models: threads wait for one another
    head, lines = ["method"], {}
    for model, pairs in cases(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some rules find nothing to act on in a model; the report says which
            report = act.analyses.methods_against_exact(model, pairs)
        correlation, slope = report["pearson_without_zeros"], report["slope"]
        head += [f"{model.name} {kind}" for kind in KINDS]
        for name, r, s in zip(correlation.label("method"), correlation.values, slope.values, strict=True):
            lines.setdefault(name, []).extend(f"{a:.3f} ({b:.2f})" for a, b in zip(r, s, strict=True))
        print(f"{model.name}: {len(pairs)} pairs", *report.words, sep="\n  ")
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name, cells in lines.items():
        print("| " + " | ".join([name, *cells]) + " |")


if __name__ == "__main__":
    main()
