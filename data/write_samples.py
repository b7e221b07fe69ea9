"""Writes the small sample sets: 64 held-out sentences and 32 test scenes with their masks.

Run it as `python data/write_samples.py`.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

if __package__:  # imported as activarium.data.write_samples
    from . import corpus, scenes
    from .cards import write_json
else:  # run as a script
    import corpus
    import scenes
    from cards import write_json

HERE = Path(__file__).parent / "samples"
SENTENCES, SCENES, SEED = 64, 32, 880_001


def sentences() -> list[dict]:
    """Which sentences are in the sample? All families in turn, each example as a plain dictionary with its prompt."""
    rounds = -(-SENTENCES // len(corpus.FAMILIES))
    drawn = [corpus.held_out(family, SEED, rounds) for family in corpus.FAMILIES]
    mixed = [item for together in zip(*drawn, strict=True) for item in together]
    return [{**asdict(item), "prompt": item.prompt} for item in mixed[:SENTENCES]]


def pictures() -> dict[str, np.ndarray]:
    """Which arrays are in the sample? image, label, mask of the object, and one mask of all distractors together."""
    drawn = [scenes.scene(scenes.TEST_SEED, index) for index in range(SCENES)]
    return {
        "image": np.stack([one.image for one in drawn]),
        "label": np.array([one.label for one in drawn], dtype=np.int64),
        "mask": np.stack([one.mask for one in drawn]),
        "distractor_mask": np.stack([one.distractor_masks.any(0) for one in drawn]),
    }


def main() -> None:
    """Write both sample files."""
    HERE.mkdir(exist_ok=True)
    write_json(HERE / "texts.json", sentences())
    save_file(pictures(), HERE / "scenes.safetensors", metadata={"classes": ",".join(scenes.CLASSES)})
    (HERE / "scenes.safetensors").chmod(0o644)  # safetensors writes it for its owner only


if __name__ == "__main__":
    main()
