"""TransformerLens' names without TransformerLens: strict aliases both ways."""

import pytest

from activarium.capture import lens_alias, lens_name
from activarium.lens_names import LENS


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.8.hook_resid_pre", "blocks.8.resid_pre"),
        ("blocks.0.attn.hook_z", "blocks.0.attn.z"),
        ("blocks.11.mlp.hook_post", "blocks.11.mlp.post"),
        ("hook_embed", "token_embed"),
    ],
)
def test_names_by_hand(theirs, ours):
    assert lens_alias(theirs) == ours
    assert lens_name(ours) == theirs


@pytest.mark.parametrize("hook", LENS)
def test_every_alias_comes_back_to_the_same_site(hook):
    for theirs in (hook, f"blocks.3.{hook}"):
        ours = lens_alias(theirs)
        if ours is not None:
            assert lens_alias(lens_name(ours)) == ours


@pytest.mark.parametrize(
    "name",
    ["hook_resid_pre", "blocks.3.hook_embed", "blocks.3.unembed.hook_in", "blocks.3.ln1.hook_normalized", "blocks.3.mlp.in.hook_out", "x"],
)
def test_what_is_no_alias_has_none(name):
    assert lens_alias(name) is None


@pytest.mark.parametrize("name", ["embed", "blocks.3.attn.x", "blocks.3", "final", "hook_resid_pre"])
def test_what_they_have_no_name_for(name):
    assert lens_name(name) is None
