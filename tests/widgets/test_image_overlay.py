"""ImageOverlay: what travels, and the static picture."""

import numpy as np
import pytest

from activarium.results import Overlay
from activarium.widgets import ImageOverlay, payload, show

random = np.random.default_rng(3)


def overlay(image=None, mask=None):
    picture = random.integers(0, 256, (32, 48, 3), dtype=np.uint8) if image is None else image
    return Overlay(random.normal(size=(2, 4, 6)).astype("f4"), ("rollout", "<b>x</b>"), image=picture, mask=mask, title="disc")


def sent(widget):
    return payload.unpack(widget.spec["arrays"], widget.data)


def test_values_image_and_mask_travel_unchanged():
    made = overlay(mask=random.random((32, 48)) > 0.5)
    widget = show(made)
    assert isinstance(widget, ImageOverlay)
    found = sent(widget)
    assert found["values"].tobytes() == made.values.tobytes()
    assert (found["image"] == made.image).all()
    assert (found["mask"] == made.mask).all()


@pytest.mark.parametrize(
    ("image", "first"),
    [(np.full((8, 8), 7, np.uint8), [7, 7, 7]), (np.full((8, 8, 3), 0.5), [128, 128, 128]), (np.full((8, 8, 4), 9, np.uint8), [9, 9, 9])],
)
def test_grey_float_and_transparent_images_become_rgb(image, first):
    assert sent(show(overlay(image)))["image"][0, 0].tolist() == first


def test_a_huge_photograph_is_thinned():
    widget = show(overlay(np.zeros((3000, 4000, 3), np.uint8)))
    assert max(sent(widget)["image"].shape) <= 1024
    assert widget.spec["size"] == [3000, 4000]


def test_pointed_names_a_value():
    made = overlay()
    assert show(made).value({"map": 1, "y": 3, "x": 5}) == made.values[1, 3, 5]


def test_names_travel_as_text():
    assert show(overlay()).spec["names"] == ["rollout", "<b>x</b>"]


def test_static_picture_follows_the_slider():
    widget = show(overlay())
    covered = widget.png()
    widget.opacity = 0
    assert widget.png() != covered
