"""Measures a bundled dictionary on rows that neither it nor its model was trained on, and writes its cards."""

import json
from pathlib import Path

import numpy as np
import torch

import activarium as act
from activarium.results import Ranking

if __package__:  # imported as activarium.data.dictionary_card
    from . import corpus, scenes
    from .cards import sha256, write_json
else:  # run from a script in data/
    import corpus
    import scenes
    from cards import sha256, write_json

HELD_OUT_SEED, SENTENCES, SCENES = 770_002, 60, 400  # sentences of each family; scenes of the test seed
OURS = "this dictionary"


def held_out(model: str) -> object:
    """What the figures are measured on: sentences of every family, or scenes with their labels."""
    if model == "glyph":
        images, labels = scenes.batch(scenes.TEST_SEED, 0, SCENES)
        return {"images": list(images), "label": labels.tolist()}
    return [item.text for family in corpus.FAMILIES for item in corpus.held_out(family, HELD_OUT_SEED, SENTENCES)]


def measure(folder: Path) -> dict:
    """The figures of a dictionary, beside random directions, the mean and the rows themselves."""
    sae = act.dictionaries.load(folder)
    model = act.load(sae.origin.model)
    inputs = held_out(sae.origin.model)
    report = act.analyses.dictionary_quality({OURS: sae}, model.run(inputs, read=sae.origin.site), model, inputs)
    return {
        "reconstruction": _lines(report["quality"], "FVU"),
        "in the model": _lines(report["recovered"], "KL"),
        "rows": report.diagnostics["rows"][OURS],
    }


def _lines(table: Ranking, name: str) -> dict[str, dict[str, float]]:
    columns = {name: table.values} | dict(table.columns)
    return {line: {c: _short(v[i]) for c, v in columns.items() if np.isfinite(v[i])} for i, line in enumerate(table.names)}


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")


def write_card(folder: Path, plan: dict, words: tuple[str, ...], minutes: dict[str, float]) -> None:
    """Measure the dictionary in `folder`; write card.json and README.md beside its weights."""
    card = {
        "name": folder.name,
        "plan": plan,
        "training": list(words),
        "held_out": measure(folder),
        "minutes": minutes,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "sha256": {"sae_weights.safetensors": sha256(folder / "sae_weights.safetensors")},
        "licence": "Apache-2.0",
    }
    (folder / "sae_weights.safetensors").chmod(0o644)  # safetensors writes it for its owner only
    write_json(folder / "card.json", json.loads(json.dumps(card, default=str)))
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _readme(card: dict) -> str:
    plan, recipe, minutes, found = card["plan"], card["plan"]["recipe"], card["minutes"], card["held_out"]
    what = "scenes" if plan["model"] == "glyph" else "sentences"
    kept = "patches" if plan["model"] == "glyph" else "tokens"
    return f"""# {card["name"]}

A sparse autoencoder of `{plan["site"]}` of the bundled model `{plan["model"]}`: `act.dictionaries.load("{card["name"]}")`, or
`SAE.load_from_disk` of sae-lens.

- **Dictionary**: {recipe["features"]} features, trained as `{recipe["kind"]}` with {recipe["k"]} codes per row on average; codes above
  one threshold at inference, so a row's codes depend on no other row.
- **Training**: `python data/train_dictionaries.py {card["name"]}`: {plan["examples"]:,} {what} (seed {plan["seed"]}), first
  tokens and class tokens left out, {plan["steps"]} steps of {plan["batch"]} rows, {plan["threads"]} thread. It took {minutes["wall"]} minutes on a machine
  shared with other work ({minutes["processor"]} processor minutes). {card["training"][0]}

Measured on {found["rows"]:,} {kept} of {what} that neither was trained on. FVU is the share of variance that is left unexplained, one ratio over all
rows. In the model, the site's {kept} are replaced and first tokens and class tokens stay; "recovered" is the share of the loss (or KL)
of an ablation of just these rows that does not occur.

{_table(found["reconstruction"], ("FVU", "codes per row", "dead", "dense > 0.1", "cosine", "norm ratio"))}

{_table(found["in the model"], ("KL", "CE recovered (zero)", "CE recovered (mean)", "KL recovered (zero)", "KL recovered (mean)", "same top answer"))}

Figures with their intervals: `card.json`. Weights: `sae_weights.safetensors`, sha256 `{card["sha256"]["sae_weights.safetensors"]}`.
Licence: Apache-2.0.
"""


def _table(lines: dict[str, dict[str, float]], wanted: tuple[str, ...]) -> str:
    columns = [c for c in wanted if any(c in line for line in lines.values())]
    rows = [f"| {name} | " + " | ".join(f"{line[c]:.4g}" if c in line else "" for c in columns) + " |" for name, line in lines.items()]
    return "\n".join(["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns), *rows])
