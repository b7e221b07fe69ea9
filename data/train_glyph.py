"""Trains glyph, the bundled vision transformer, on generated scenes.

Run it as `python data/train_glyph.py`. The same seed, machine and thread count give the same weights, bit by bit; other machines give the same behaviour.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

if __package__:  # imported as activarium.data.train_glyph
    from . import scenes
    from .glyph_card import build_processor, write_card
    from .train_scribe import reproducible
else:  # run as a script
    import scenes
    from glyph_card import build_processor, write_card
    from train_scribe import reproducible

HERE = Path(__file__).parent
IGNORE = -100  # what cross_entropy leaves out
MOSTLY = 0.3  # from this covered share on, a patch is asked for the object's class
MASK_WEIGHT = 5.0  # a mean over pixels, most of them easy, is a small number


class Pool(NamedTuple):
    """The training scenes: uint8 images, their labels, and uint8 coverage (0 to 255) of each pixel by the object."""

    images: np.ndarray
    labels: np.ndarray
    covers: np.ndarray


@dataclass(frozen=True)
class Recipe:
    """With which settings is glyph trained? The defaults are the ones the bundled weights come from."""

    steps: int = 3000
    batch: int = 32
    pool: int = 24_000
    width: int = 128
    layers: int = 4
    heads: int = 4
    patch: int = 8
    spread: float = 0.07  # of the first weights: about 1 / sqrt(width); the usual 0.02 starts far slower at this width
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.05
    seed: int = 64064
    threads: int = 1


def build_model(recipe: Recipe) -> ViTForImageClassification:
    """Which untrained model does the recipe start from?"""
    torch.manual_seed(recipe.seed)
    config = ViTConfig(
        image_size=scenes.SIZE, patch_size=recipe.patch, hidden_size=recipe.width, intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, hidden_act="gelu",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=recipe.spread,
        id2label=dict(enumerate(scenes.CLASSES)), label2id={name: index for index, name in enumerate(scenes.CLASSES)},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.vit.embeddings.position_embeddings[0, 1:] = grid_waves(scenes.SIZE // recipe.patch, recipe.width)
        model.vit.embeddings.position_embeddings[0, 0] = 0.0
        for layer in model.vit.layers:  # alike attends to alike, so near to near: Trockman & Kolter 2023, arXiv:2305.09828
            layer.attention.k_proj.weight.copy_(layer.attention.q_proj.weight)
    return model


def grid_waves(side: int, width: int) -> Tensor:
    """Where do the position embeddings start? (patches, width): sines and cosines of x and of y, then trained freely.

    From random ones a model this small needs thousands of steps before it knows which patches are neighbours.
    """
    speeds = 1 / 100 ** (torch.arange(width // 4) / (width // 4))
    along = torch.arange(side)[:, None] * speeds
    waves = torch.cat([along.sin(), along.cos()], dim=1)
    down, across = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([down, across], dim=2).flatten(0, 1) / 2


def pixels(images: np.ndarray) -> Tensor:
    """What does the model read? uint8 (batch, height, width, 3) to float (batch, 3, height, width) in -1 to 1.

    The same numbers as the saved image processor gives, without its per-image work.
    """
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def draw_pool(recipe: Recipe) -> Pool:
    """Which scenes does the model train on?"""
    images = np.empty((recipe.pool, scenes.SIZE, scenes.SIZE, 3), np.uint8)
    labels, covers = np.empty(recipe.pool, np.int64), np.empty((recipe.pool, scenes.SIZE, scenes.SIZE), np.uint8)
    for index in range(recipe.pool):
        one = scenes.scene(scenes.TRAIN_SEED, index)
        images[index], labels[index], covers[index] = one.image, one.label, np.rint(one.coverage * 255)
    return Pool(images, labels, covers)


def batches(recipe: Recipe, pool: Pool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Which images, labels and coverages does the model see? Passes over the pool in random order.

    Each image is mirrored, left to right, at random: no class changes its name by that.
    """
    generator = np.random.default_rng(recipe.seed)
    while True:
        order = generator.permutation(len(pool.images))
        for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
            rows = order[start : start + recipe.batch]
            ways = 1 - 2 * generator.integers(2, size=len(rows))
            images, covers = (
                np.stack([part[row][:, ::way] for row, way in zip(rows, ways, strict=True)]) for part in (pool.images, pool.covers)
            )
            yield pixels(images), torch.from_numpy(pool.labels[rows]), torch.from_numpy(covers).float() / 255


def rate(recipe: Recipe, step: int) -> float:
    """With which learning rate is this step taken? Linear warm-up, then a cosine down to nothing."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    return recipe.learning_rate * (1 + cos(pi * (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up))) / 2


def patch_weight(recipe: Recipe, step: int) -> float:
    """How much does the patch loss count? All of it at first, none in the last third of the training."""
    return max(0.0, 1 - 1.5 * step / recipe.steps)


def patch_loss(found: Tensor, covers: Tensor, labels: Tensor, patch: int) -> Tensor:
    """How well does each patch tell which of its pixels, and which class, the object has? In nats.

    Args:
        found: Per patch one logit per pixel, then one per class: (batch, patches, pixels + classes).
        covers: Coverage of the pixels by the object, (batch, height, width).
        labels: Classes, (batch).
        patch: Side of a patch in pixels.
    """
    batch, side = len(covers), covers.shape[1] // patch
    inside = covers.reshape(batch, side, patch, side, patch).transpose(2, 3).reshape(batch, side * side, patch * patch)
    outlines = nn.functional.binary_cross_entropy_with_logits(found[..., : patch * patch], inside)
    wanted = torch.where(inside.mean(-1) > MOSTLY, labels[:, None], IGNORE)
    classes = nn.functional.cross_entropy(found[..., patch * patch :].flatten(0, 1), wanted.flatten(), ignore_index=IGNORE)
    return MASK_WEIGHT * outlines + classes


def train(recipe: Recipe, watch: Callable[[int, ViTForImageClassification, float, float], None]) -> ViTForImageClassification:
    """Which model does the recipe give? `watch(step, model, loss, patch_loss)` is called after every step.

    The class token alone stayed at chance for 950 steps in a trial (on harder scenes): its loss reaches the patches only
    through attention that is still even. A second head, which asks each patch what lies in it, gets them going; it is
    thrown away.
    """
    pool = draw_pool(recipe)
    with reproducible(recipe.threads):
        model = build_model(recipe).train()
        helper = nn.Linear(recipe.width, recipe.patch**2 + len(scenes.CLASSES))
        optimisers = _optimisers(model, helper, recipe)
        stream = batches(recipe, pool)
        for step in range(recipe.steps):
            seen, labels, covers = next(stream)
            rows = model.vit(seen).last_hidden_state
            loss = nn.functional.cross_entropy(model.classifier(rows[:, 0]), labels)
            extra = patch_loss(helper(rows[:, 1:]), covers, labels, recipe.patch)
            model.zero_grad()
            helper.zero_grad()
            (loss + patch_weight(recipe, step) * extra).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = rate(recipe, step)
                optimiser.step()
            watch(step + 1, model, float(loss.detach()), float(extra.detach()))
    return model.eval()


def _optimisers(model: ViTForImageClassification, helper: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all else. In trials AdamW alone took about three times the steps."""
    inner = [weight for weight in model.vit.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in inner}
    outer = [weight for weight in (*model.parameters(), *helper.parameters()) if id(weight) not in chosen]
    return [
        torch.optim.Muon(inner, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


def main() -> None:
    """Train glyph and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="fewer steps, for a trial")
    parser.add_argument("--pool", type=int, default=Recipe.pool, help="fewer training scenes, for a trial")
    parser.add_argument("--to", type=Path, default=HERE, help="the folder that gets the model's folder")
    chosen = parser.parse_args()
    recipe = Recipe(steps=chosen.steps, pool=chosen.pool)
    start, processor_start = time.monotonic(), time.process_time()

    def watch(step: int, _model: ViTForImageClassification, loss: float, patches: float) -> None:
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss:.4f}  patch loss {patches:.4f}  {(time.monotonic() - start) / 60:.1f} min", flush=True)

    model = train(recipe, watch)
    minutes = {
        "wall": round((time.monotonic() - start) / 60, 1),
        "processor": round((time.process_time() - processor_start) / 60, 1),
    }
    folder = chosen.to / "glyph"
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    write_card(folder, asdict(recipe), minutes)


if __name__ == "__main__":
    main()
