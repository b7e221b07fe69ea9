"""What does a trained glyph do on scenes of a seed it was not trained on?"""

import numpy as np
import torch

if __package__:  # imported as activarium.data.measure_glyph
    from . import scenes
    from .cards import figure
else:  # run from a script in data/
    import scenes
    from cards import figure

BATCH = 250


@torch.no_grad()
def guesses(model, processor, images: np.ndarray) -> np.ndarray:
    """Which class does the model see in each image, uint8 (batch, height, width, 3)?"""
    found = []
    for start in range(0, len(images), BATCH):
        inputs = processor(list(images[start : start + BATCH]), return_tensors="pt")
        found.append(model(**inputs).logits.argmax(-1).numpy())
    return np.concatenate(found)


def behaviours(model, processor, seed: int, n: int) -> dict[str, dict]:
    """How often is glyph right on `n` scenes of this seed, over all and per class?

    Returns:
        "accuracy" and one entry per class, each with value, n and 95 % interval.
    """
    if seed == scenes.TRAIN_SEED:
        raise ValueError(
            f"Scenes of seed {seed} were trained on, so they cannot measure the model.\n    Use scenes.TEST_SEED or any other seed."
        )
    images, labels = scenes.batch(seed, 0, n)
    right = guesses(model, processor, images) == labels
    result = {"accuracy": figure(float(right.mean()), n)}
    for label, name in enumerate(scenes.CLASSES):
        chosen = right[labels == label]
        if len(chosen):
            result[name] = figure(float(chosen.mean()), len(chosen))
    return result
