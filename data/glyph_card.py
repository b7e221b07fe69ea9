"""Measures glyph from its saved folder and writes its cards: card.json for programs, README.md for people."""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoImageProcessor, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

if __package__:  # imported as activarium.data.glyph_card
    from . import scenes
    from .cards import figure_table, sha256, write_json
    from .measure_glyph import behaviours
else:  # run from a script in data/
    import scenes
    from cards import figure_table, sha256, write_json
    from measure_glyph import behaviours

EXAMPLES = 4000  # held-out scenes


def build_processor() -> ViTImageProcessorPil:
    """Which processor turns an image into glyph's input? The Pillow one, which needs no torchvision."""
    side = {"height": scenes.SIZE, "width": scenes.SIZE}
    # Scenes already have the right size; other images are resized, so that any picture can be tried.
    return ViTImageProcessorPil(do_resize=True, size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def write_card(folder: Path, recipe: dict, minutes: dict[str, float]) -> None:
    """Measure the model in `folder` on held-out scenes and write card.json and README.md beside the weights."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    card = {
        "name": "glyph",
        "architecture": "ViTForImageClassification",
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "classes": list(scenes.CLASSES),
        "recipe": recipe,
        "data": {"generator": "scenes", "training_seed": scenes.TRAIN_SEED, "test_seed": scenes.TEST_SEED},
        "held_out": behaviours(model, processor, scenes.TEST_SEED, EXAMPLES),
        "minutes": minutes,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "sha256": {"model.safetensors": sha256(folder / "model.safetensors")},
        "licence": "Apache-2.0",
    }
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only
    write_json(folder / "card.json", card)
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _readme(card: dict) -> str:
    """The model card in words."""
    recipe, minutes = card["recipe"], card["minutes"]
    return f"""# glyph

A small vision transformer that names the labelled shape in a generated 64 × 64 scene. Every scene comes with pixel
masks of the object and of each distractor, so saliency maps and interventions can be scored against ground truth.

- **Model**: `{card["architecture"]}`, {recipe["layers"]} layers, {recipe["heads"]} heads, width {recipe["width"]},
  patches of {recipe["patch"]} pixels (8 × 8 grid and a class token), GELU, {card["parameters"]:,} parameters, float32.
- **Classes**: {", ".join(card["classes"])}.
- **Data**: {recipe["pool"]:,} scenes of `scenes` with seed {card["data"]["training_seed"]}, mirrored at random;
  measured on seed {card["data"]["test_seed"]}. Our own generator; no photographs.
- **Training**: `python data/train_glyph.py`: {recipe["steps"]} steps of {recipe["batch"]} images, seed {recipe["seed"]},
  {recipe["threads"]} thread. It took {minutes["wall"]} minutes, on a machine shared with other work ({minutes["processor"]} processor
  minutes, drawing included). Bit-equal on the same machine and thread count; elsewhere the same behaviour.
- **Patch supervision**: for the first two thirds of the training a second head, thrown away since, asked each patch for its
  pixels of the object and for the class. So the patches know where the object is; remember it when judging maps.
- **Input**: `AutoImageProcessor` reads `preprocessor_config.json` and takes its Pillow version where there is no torchvision
  (checked there only): values are scaled to -1 … 1; a picture of another size is resized.

{figure_table(card["held_out"])}

## Known limits

- It knows this generator's pictures only: one shape per scene, of 13 to 22 pixels radius, tilted by less than 0.4 radians, wholly
  inside the picture.
- There is no "no object" class: a scene without its object still gets a name, with less confidence
  (mean probability of the first choice 0.50 without the object, 0.99 with it; 1000 scenes of seed 3, measured once by hand).
- Backgrounds are greyish and of middle brightness, objects are not: it has not learned to find an object of the
  background's colour.
- Scenes of training and test differ in seed only; this is no test of another kind of picture.

Weights: `model.safetensors`, sha256 `{card["sha256"]["model.safetensors"]}`. Licence: Apache-2.0. All figures: `card.json`.
"""
