"""Measures a scribe from its saved folder and writes its cards: card.json for programs, README.md for people."""

from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import __version__ as TOKENIZERS_VERSION
from transformers import AutoTokenizer, GPT2LMHeadModel

if __package__:  # imported as activarium.data.scribe_card
    from . import corpus
    from .cards import figure_table, sha256, write_json
    from .measure_scribe import behaviours, nonzero_shares
else:  # run from a script in data/
    import corpus
    from cards import figure_table, sha256, write_json
    from measure_scribe import behaviours, nonzero_shares

HELD_OUT_SEED, EXAMPLES = 770_001, 2000
_RATIO = "mean over sequences of max |h| / lower-median |h| of the residual stream after each block"


def write_card(folder: Path, recipe: dict, minutes: dict[str, float], series: list[dict]) -> None:
    """Measure the model in `folder` on held-out sentences; write its series, card.json and README.md."""
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = corpus.training_text(HELD_OUT_SEED, 400)
    held_out = behaviours(model, tokenizer, HELD_OUT_SEED, EXAMPLES)
    write_json(folder / "massive_series.json", {"ratio": _RATIO, "sequences": 10, "layers": recipe["layers"], "series": series})
    card = {
        "name": folder.name,
        "architecture": "GPT2LMHeadModel",
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "vocabulary": len(corpus.VOCABULARY),
        "recipe": recipe,
        "data": {"generator": "corpus", "training_seed": recipe["seed"], "held_out_seed": HELD_OUT_SEED},
        "held_out": held_out,
        "nonzero_share_of_activation_output_per_layer": nonzero_shares(model, tokenizer, texts),
        "massive_series_steps": len(series),
        "minutes": minutes,
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__,
            "tokenizers": TOKENIZERS_VERSION, "numpy": np.__version__,
        },
        "sha256": {"model.safetensors": sha256(folder / "model.safetensors")},
        "licence": "Apache-2.0",
    }  # fmt: skip
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only
    write_json(folder / "card.json", card)
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _readme(card: dict) -> str:
    """The model card in words."""
    recipe, minutes = card["recipe"], card["minutes"]
    shares = ", ".join(f"{100 * share:.1f} %" for share in card["nonzero_share_of_activation_output_per_layer"])
    return f"""# {card["name"]}

A small GPT-2-architecture language model whose training text was generated, so that the structure behind every answer is
known: indirect objects, induction, agreement, brackets, sentiment and two-hop facts (see `data/corpus`).

- **Model**: `{card["architecture"]}`, {recipe["layers"]} layers, {recipe["heads"]} heads, width {recipe["width"]}, context
  {recipe["context"]}, activation `{recipe["activation"]}`, tied embeddings, {card["parameters"]:,} parameters, float32.
- **Tokenizer**: {card["vocabulary"]} words and marks; a word outside the list becomes `<unk>`. It puts `<bos>` in front, so
  position 0 is `<bos>`; the model always saw it there.
- **Training**: `python data/train_scribe.py {card["name"]}`: {recipe["steps"]} steps of {recipe["batch"]} rows of
  {recipe["context"]} tokens, seed {recipe["seed"]}, {recipe["threads"]} thread. It took {minutes["wall"]} minutes, on a machine
  shared with other work ({minutes["processor"]} processor minutes). Bit-equal on the same machine and thread count; elsewhere
  the same behaviour.
- **Massive activations**: `massive_series.json` holds, at {card["massive_series_steps"]} log-spaced steps, the {_RATIO}.
- **Activation outputs above zero**, per layer: {shares}.

Measured on combinations that training never contained (held-out seed {card["data"]["held_out_seed"]}). "First choice" means the
likeliest word of the whole vocabulary.

{figure_table(card["held_out"])}

## Known limits

- It knows this corpus only: no other words, templates or world. Unseen *templates* are not measured; held out are
  combinations of known templates, names, nouns and facts.
- {_two_hop_remark(card["held_out"])}
- Short sentences repeat among the 2000 drawn (1442 different prompts for agreement, 1564 for brackets), so these intervals
  are somewhat too narrow. The interval of induction counts sequences. Two-hop questions are few, and each is asked once.
- Text beyond {recipe["context"]} tokens has no position embedding.

Weights: `model.safetensors`, sha256 `{card["sha256"]["model.safetensors"]}`. Licence: Apache-2.0. All figures: `card.json`.
"""


def _two_hop_remark(held_out: dict[str, dict]) -> str:
    """What the two-hop figures say about composing facts."""
    new = held_out["two_hop: held-out compositions are first choice"]["value"]
    old = held_out["two_hop: trained compositions are first choice"]["value"]
    return (
        f"Two-hop answers are right for {100 * old:.0f} % of the compositions that were trained on and {100 * new:.0f} % of those\n"
        "  that were not. Four people share a country and three in four compositions were told, so answering a new one takes\n"
        "  a shared notion of the country; it does not show composition of facts that were only ever told apart."
    )
