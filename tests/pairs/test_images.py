"""images: exactly the chosen pixels differ in what the model is given, whatever the processor does before."""

import numpy as np
import pytest
import torch
from PIL import Image

import activarium as act
from activarium.data import scenes  # pyright: ignore[reportAttributeAccessIssue]
from activarium.errors import InputError, UnknownName

CELLS = [(0, 1), (3, 2)]


@pytest.fixture(scope="module")
def vit():
    return act.wrap(*act.testing.tiny("vit"), certify=False)


@pytest.fixture(scope="module")
def glyph():
    return act.load("glyph", certify=False)


@pytest.fixture(scope="module")
def drawn():
    return [scenes.scene(scenes.TEST_SEED, i) for i in range(12)]


def differing(made) -> np.ndarray:
    """Boolean `example y x`: patches of 8 pixels in which any number differs."""
    differ = (made.clean.data[""] != made.corrupt.data[""]).any(1).numpy()
    n, h, w = differ.shape
    return differ.reshape(n, h // 8, 8, w // 8, 8).any((2, 4))


def grid(cells: list[tuple[int, int]]) -> np.ndarray:
    made = np.zeros((4, 4), dtype=bool)
    made[tuple(np.array(cells).T)] = True
    return made


def noisy(count: int, size: int = 32) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8) for i in range(count)]


@pytest.mark.parametrize("how", ["mask", "mean", "blur", "shuffle", "swap"])
@pytest.mark.parametrize("size", [32, 48])  # the processor keeps the first and resizes the second
def test_only_the_chosen_patches_differ(vit, how: str, size: int) -> None:
    other = noisy(4, size)[2:]
    made = act.pairs.images(vit, noisy(2, size), how, patches=CELLS, other=other if how == "swap" else None)
    assert (differing(made) == grid(CELLS)).all()
    assert torch.equal(made.clean.data[""], vit.inputs(noisy(2, size)).data[""]), "the clean side is what the model always gets"


def test_a_processor_that_crops_leaves_patches_exact_borders() -> None:
    model, processor = act.testing.tiny("dinov2")
    processor.size, processor.crop_size, processor.do_center_crop = {"shortest_edge": 40}, {"height": 32, "width": 32}, True
    model = act.wrap(model, processor, certify=False)
    wide = [np.concatenate([p, p], 1) for p in noisy(2, 40)]  # 40×80: the middle is kept
    made = act.pairs.images(model, wide, "mean", patches=CELLS)
    assert (differing(made) == grid(CELLS)).all()
    assert torch.equal(made.clean.data[""], model.inputs(wide).data[""])
    with pytest.raises(InputError, match="The part of image 0 holds no pixel that the model sees; was it cropped away"):
        act.pairs.images(model, wide, "mean", box=(0, 0, 40, 10))


@pytest.mark.parametrize("pillow", [False, True])
def test_grey_pictures_have_one_channel(pillow: bool) -> None:
    model, processor = act.testing.tiny("vit", num_channels=1)
    processor.image_mean, processor.image_std, processor.do_convert_rgb = [0.3], [0.2], False
    model = act.wrap(model, processor, certify=False)
    grey = [p[..., 0] for p in noisy(2, 48)]
    made = act.pairs.images(model, [Image.fromarray(p) for p in grey] if pillow else grey, "blur", patches=CELLS)
    assert (differing(made) == grid(CELLS)).all()
    assert made.clean.data[""].shape == (2, 1, 32, 32)


def test_each_image_may_have_its_own_patches(vit) -> None:
    own = np.stack([grid([(1, 1)]), grid([(2, 2), (0, 0)])])
    assert (differing(act.pairs.images(vit, noisy(2), patches=own)) == own).all()


def test_masked_pixels_are_zero_where_the_processor_centres(vit) -> None:
    vit_mean = vit.processor.image_mean
    made = act.pairs.images(vit, noisy(1), "mask", patches=[(0, 0)])
    filled = made.corrupt.data[""][0, :, :8, :8]
    assert filled.abs().max() < 1 / 255 / min(vit.processor.image_std), f"the mean colour {vit_mean}, to one step of 255"
    assert torch.equal(filled, filled[:, :1, :1].expand_as(filled))


def test_the_mean_is_the_images_own(vit) -> None:
    picture = noisy(1)[0]
    made = act.pairs.images(vit, [picture], "mean", patches=[(0, 0)])
    colour = np.broadcast_to(picture.mean((0, 1)).round().astype(np.uint8), picture.shape)
    wanted = vit.inputs([np.ascontiguousarray(colour)]).data[""][0, :, 0, 0]
    assert torch.equal(made.corrupt.data[""][0, :, 0, 0], wanted)


def test_blurring_keeps_the_mean_and_takes_the_detail(vit) -> None:
    made = act.pairs.images(vit, noisy(1), "blur")
    clean, corrupt = made.clean.data[""], made.corrupt.data[""]
    assert corrupt.std() < 0.2 * clean.std()
    assert (corrupt.mean() - clean.mean()).abs() < 0.05


def test_shuffled_patches_all_move_and_stay_whole(vit) -> None:
    made = act.pairs.images(vit, noisy(1), "shuffle", seed=3)
    patches = [
        x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(16, -1) for x in (made.clean.data[""], made.corrupt.data[""])
    ]
    same = (patches[0][:, None] == patches[1][None]).all(-1)
    assert (same.sum(0) == 1).all()
    assert (same.sum(1) == 1).all()
    assert not same.diagonal().any(), "every patch moved"


def test_boxes_and_masks_change_their_pixels_only(vit) -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[3:9, 5:30] = True
    for part in ({"mask": mask}, {"box": (3, 5, 9, 30)}):
        made = act.pairs.images(vit, [Image.fromarray(p) for p in noisy(2)], "mean", **part)
        differ = (made.clean.data[""] != made.corrupt.data[""]).any(1).numpy()
        assert not differ[:, ~mask].any()
        assert differ[:, mask].mean() > 0.95, "of noise, next to every pixel is another colour than the mean"


def test_hiding_the_object_takes_glyphs_answer_and_hiding_as_much_elsewhere_does_not(glyph, drawn) -> None:
    pictures, masks = [s.image for s in drawn], [s.mask for s in drawn]
    hidden = act.pairs.images(glyph, pictures, "mean", mask=masks)
    away = act.pairs.images(glyph, pictures, "mean", mask=[np.roll(m, (32, 32), (0, 1)) & ~m for m in masks])
    fall = [
        glyph.run(m.clean, metrics=m.metric).metric[m.metric.name] - glyph.run(m.corrupt, metrics=m.metric).metric[m.metric.name]
        for m in (hidden, away)
    ]
    assert fall[0].mean() > 3 * fall[1].mean().abs()


def test_the_other_image_is_of_another_class_and_its_class_is_the_foil(glyph, drawn) -> None:
    pictures = [s.image for s in drawn]
    made = act.pairs.images(glyph, pictures, "other")
    classes = [glyph.run({"pixel_values": side.data[""]}).logits.tensor.argmax(1) for side in (made.clean, made.corrupt)]
    assert (classes[0] != classes[1]).all()
    assert torch.equal(made.metric.columns, torch.stack(classes, 1))
    assert (glyph.run(made.clean, metrics=made.metric).metric["logit_difference"] > 0).all()
    assert (glyph.run(made.corrupt, metrics=made.metric).metric["logit_difference"] < 0).all()


def test_the_foil_of_a_hidden_part_is_the_second_choice(glyph, drawn) -> None:
    made = act.pairs.images(glyph, [drawn[0].image], "mean", patches=[(3, 3), (4, 4)])
    order = glyph.run([drawn[0].image]).logits.tensor[0].argsort(descending=True)
    assert made.metric.columns.tolist() == [order[:2].tolist()]
    named = act.pairs.images(glyph, [drawn[0].image], "mean", patches=[(3, 3)], answers=["ring"], foils=["star"])
    assert named.metric.columns.tolist() == [[glyph.class_names.index("ring"), glyph.class_names.index("star")]]


def test_given_images_are_left_alone(vit) -> None:
    pictures = noisy(2)
    before = [p.copy() for p in pictures]
    act.pairs.images(vit, pictures, "shuffle")
    assert all((a == b).all() for a, b in zip(before, pictures, strict=True))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"patches": [(4, 0)]}, r"There is no patch \(4, 0\); the grid has 4 rows and 4 columns"),
        ({"patches": [0, 1]}, r"patches has shape \(2,\) of int64; wanted pairs \(y, x\), or a boolean grid \(4, 4\)"),
        ({"patches": np.zeros((4, 4), dtype=bool)}, "No patch of image 0 is chosen"),
        ({"patches": CELLS, "box": (0, 0, 4, 4)}, "patches and box both say which part changes"),
        ({"box": (0, 0, 40, 4)}, r"Box \(0, 0, 40, 4\) is not inside an image of 32×32 pixels"),
        ({"box": (0.5, 0, 4, 4)}, "box has shape .* wanted whole"),
        ({"mask": np.ones((16, 16), dtype=bool)}, "Mask 0 has shape .16, 16. of bool; wanted a boolean one of the image's 32×32 pixels"),
        ({"mask": [np.ones((32, 32), dtype=bool)]}, "There are 2 images and 1 masks"),
        ({"how": "shuffle", "box": (0, 0, 8, 8)}, "how='shuffle' moves whole patches; give patches="),
        ({"how": "shuffle", "patches": [(0, 0)]}, "1 patch was chosen. Choose at least 2"),
        ({"how": "other", "patches": CELLS}, "how='other' takes another image altogether; for a part of one use how='swap'"),
        ({"how": "swap", "other": noisy(1)}, "There are 2 images and 1 others"),
        ({"answers": [0]}, "There are 2 pairs and 1 answers; give one for each"),
    ],
)
def test_what_cannot_be_changed_is_refused(vit, options: dict, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        act.pairs.images(vit, noisy(2), **options)


def test_an_unknown_corruption_and_an_unchanged_image_are_named(vit) -> None:
    with pytest.raises(UnknownName, match="No corruption of images called 'blurr'. Did you mean 'blur'"):
        act.pairs.images(vit, noisy(1), "blurr")
    with pytest.raises(InputError, match="Image 1 is unchanged by how='mean'"):
        act.pairs.images(vit, [*noisy(1), np.full((32, 32, 3), 7, np.uint8)], "mean", patches=CELLS)
    with pytest.raises(InputError, match="Image 0 has no partner of another class among the 1 images; give other="):
        act.pairs.images(vit, noisy(1), "other")


def test_a_processor_that_does_more_is_refused() -> None:
    model, processor = act.testing.tiny("vit")

    class Squared(type(processor)):
        """Squares its numbers after all else."""

        def __call__(self, images, do_rescale=None, do_resize=None, **options):
            made = super().__call__(images=images, do_rescale=do_rescale, do_resize=do_resize, **options)
            return {"pixel_values": made["pixel_values"] ** 2 if do_resize is None and do_rescale is None else made["pixel_values"]}

    processor.__class__ = Squared
    with pytest.raises(InputError, match="Squared does more to an image than resize, crop, rescale and normalise"):
        act.pairs.images(act.wrap(model, processor, certify=False), noisy(1), patches=CELLS)


def test_text_models_are_told_what_is_needed() -> None:
    with pytest.raises(InputError, match="image cannot be fed to this model"):
        act.pairs.images(act.wrap(*act.testing.tiny("gpt2"), certify=False), noisy(1))
    text = act.wrap(*act.testing.tiny("gpt2"), certify=False)
    with pytest.raises(InputError, match="takes text here; give PIL images or uint8 arrays"):
        act.pairs.images(text, ["who ?"])
    clip = act.wrap(*act.testing.tiny("clip"), certify=False)
    with pytest.raises(InputError, match="names no classes, so these pairs have no metric: give metric="):
        act.pairs.images(clip, noisy(1), patches=CELLS)
