"""The scenes: masks that are true, parts that change alone, and a seed that decides everything."""

import numpy as np
import pytest
from activarium.data.scenes import _paint, _shapes

from activarium.data import scenes

SEED = 11


def differs(one, other):
    return (one.image != other.image).any(-1)


def test_a_square_by_hand():
    # A square of 8 × 8 pixels on pixel borders covers exactly these pixels, wholly.
    cover = _paint.coverage([[(8, 16), (15.8, 16), (15.8, 23.8), (8, 23.8)]])
    wanted = np.zeros((64, 64))
    wanted[16:24, 8:16] = 1
    assert np.array_equal(cover, wanted)


def test_a_ring_has_its_hole():
    placed = [_shapes.place(line, (32, 32), 20, 0.3) for line in _shapes.outline("ring")]
    cover = _paint.coverage(placed)
    assert cover[32, 32] == 0
    assert cover[32, 32 + 14] == 1  # between 0.52 and 0.95 of the radius
    assert cover.sum() == pytest.approx(np.pi * 400 * (0.95**2 - 0.52**2), rel=0.03)


@pytest.mark.parametrize("name", scenes.CLASSES)
def test_every_shape_stays_in_its_circle_and_fills_some_of_it(name):
    corners = np.array([point for line in _shapes.outline(name) for point in line])
    assert np.hypot(*corners.T).max() < 1.01
    one = scenes.scene(SEED, 0, shape=name)
    assert one.label == scenes.CLASSES.index(name)
    assert 0.25 < one.coverage.sum() / (np.pi * one.attributes["radius"] ** 2) < 1


def test_what_a_scene_holds():
    one = scenes.scene(SEED, 1)
    assert (one.image.shape, one.image.dtype) == ((64, 64, 3), np.uint8)
    assert (one.mask.shape, one.mask.dtype) == ((64, 64), bool)
    assert one.distractor_masks.shape == (len(one.distractors), 64, 64)
    assert scenes.CLASSES[one.label] == one.name
    assert set(one.attributes) == {"colour", "texture", "centre", "radius", "angle", "backdrop"}


def test_another_colour_changes_mask_pixels_only():
    for index in range(40):
        one = scenes.scene(SEED, index, colour="red")
        other = scenes.scene(SEED, index, colour="cyan")
        changed = differs(one, other)
        assert not changed[~one.mask].any()
        assert changed[one.coverage > 0.2].all()


def test_leaving_the_object_out_changes_mask_pixels_only():
    for index in range(40):
        one, empty = scenes.scene(SEED, index), scenes.scene(SEED, index, omit_object=True)
        assert not differs(one, empty)[~one.mask].any()
        assert (empty.label, empty.name, empty.mask.any()) == (-1, "none", False)


def test_another_shape_changes_only_where_either_shape_is():
    for index in range(20):
        one, other = scenes.scene(SEED, index, shape="star"), scenes.scene(SEED, index, shape="ring")
        assert not differs(one, other)[~(one.mask | other.mask)].any()
        assert one.attributes == other.attributes


def test_leaving_the_distractors_out_changes_their_pixels_only():
    for index in range(40):
        one, bare = scenes.scene(SEED, index), scenes.scene(SEED, index, distractors=())
        anywhere = one.distractor_masks.any(0) if one.distractors else np.zeros((64, 64), bool)
        assert not differs(one, bare)[~anywhere].any()
        assert bare.distractors == ()


def test_a_planted_distractor_keeps_the_others_in_place():
    one = scenes.scene(SEED, 2, distractors=("blob", "stroke"))
    more = scenes.scene(SEED, 2, distractors=("blob", "stroke", "patch"))
    assert not differs(one, more)[~more.distractor_masks[2]].any()


def test_the_mask_lies_wholly_inside_the_picture():
    edge = np.ones((64, 64), bool)
    edge[1:-1, 1:-1] = False
    assert not any((scenes.scene(SEED, index).mask & edge).any() for index in range(100))


def test_classes_are_about_equally_frequent():
    labels = [scenes._object(SEED, index)["shape"] for index in range(3000)]
    counts = [labels.count(name) for name in scenes.CLASSES]
    assert min(counts) > 240
    assert max(counts) < 360


def test_seed_and_index_decide_everything():
    first, labels = scenes.batch(SEED, 5, 3)
    assert np.array_equal(first[1], scenes.scene(SEED, 6).image)
    assert labels[1] == scenes.scene(SEED, 6).label
    assert not np.array_equal(first, scenes.batch(SEED + 1, 5, 3)[0])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"shape": "blob"}, "No shape called 'blob'. Known: circle"),
        ({"colour": "beige"}, "No colour called 'beige'. Known: red"),
        ({"texture": "fur"}, "No texture called 'fur'. Known: plain"),
        ({"distractors": ("cat",)}, "No distractor called 'cat'. Known: blob"),
    ],
)
def test_an_unknown_choice_lists_the_known_ones(asked, words):
    with pytest.raises(ValueError, match=words):
        scenes.scene(SEED, 0, **asked)
