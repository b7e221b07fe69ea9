"""A plain torch module: it runs, is read by path, and never claims more than that."""

import pytest
import torch
from torch import nn

import activarium as act
from activarium.errors import InputError, SilentHook, UnknownSite


class Block(nn.Module):
    def __init__(self, patches, channels):
        super().__init__()
        self.across, self.within = nn.Linear(patches, patches), nn.Linear(channels, channels)

    def forward(self, x):
        x = x + self.across(x.transpose(1, 2)).transpose(1, 2)
        return x + self.within(x)


class Mixer(nn.Module):
    """An MLP mixer of two blocks."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.blocks = nn.ModuleList([Block(16, 8), Block(16, 8)])
        self.spare = nn.Linear(2, 2)

    def forward(self, pixels, scale=1.0):
        x = self.stem(pixels).flatten(2).transpose(1, 2) * scale
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


@pytest.fixture
def mixer():
    torch.manual_seed(0)
    return act.wrap(Mixer(), name="mixer")


PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_modules_are_read_by_path_and_pattern(mixer):
    rec = mixer.run(PIXELS, read=["module:blocks.*", "module:stem", "module:head"])
    model = mixer.torch_module
    with torch.no_grad():
        stem = model.stem(PIXELS)
        first = model.blocks[0](stem.flatten(2).transpose(1, 2))
    assert torch.equal(rec["module:stem"].tensor, stem)
    assert rec["module:stem"].axes == ("example", "channel", "height", "width")
    assert torch.equal(rec["module:blocks.0"].tensor, first.flatten(0, 1))
    assert rec["module:blocks.1"].axes == ("row", "feature")
    assert torch.equal(rec["module:head"].tensor, rec["output"].tensor)
    assert rec["module:blocks.0"].index["example"].tolist() == [0] * 16 + [1] * 16
    assert rec["module:blocks.0"].index["position"].tolist() == [*range(16), *range(16)]


def test_modules_with_other_rows_have_a_row_space_of_their_own(mixer):
    rec = mixer.run(PIXELS, read=["module:blocks.0.across", "module:blocks.0.within"])
    assert rec["module:blocks.0.across"].shape == (2 * 8, 16)
    assert len(rec.rows["rows_8"]) == 16
    assert len(rec.rows["rows_16"]) == 32


def test_a_dict_is_passed_by_keyword(mixer):
    half = mixer.run({"pixels": PIXELS, "scale": 0.5}, read="module:head")["module:head"].tensor
    assert not torch.allclose(half, mixer.run(PIXELS, read="module:head")["module:head"].tensor)


def test_it_is_badged_uncertified(mixer):
    assert mixer.certificate.verdict == "uncertified"
    assert repr(mixer) == "ModuleRunner('mixer': 10 modules, takes pixels, scale, uncertified)"
    assert not list(mixer.sites)
    assert mixer.run(PIXELS).provenance["model"]["certificate"]["verdict"] == "uncertified"


def test_names_that_do_not_exist(mixer):
    with pytest.raises(UnknownSite, match="No module in this model called 'bloks.0'. Did you mean 'blocks.0'"):
        mixer.run(PIXELS, read="module:bloks.0")
    with pytest.raises(
        UnknownSite, match="mixer is a plain module, so 'blocks.0.resid_post' names no site of it. Read module:PATH, such as"
    ):
        mixer.run(PIXELS, read="blocks.0.resid_post")


def test_what_a_plain_module_cannot_do(mixer):
    with pytest.raises(InputError, match="mixer is a plain module without certified sites, so run\\(\\) takes no edits"):
        mixer.run(PIXELS, edits=[act.edits.Zero("module:head")])
    with pytest.raises(InputError, match="takes no grad; read module:PATH alone"):
        mixer.run(PIXELS, grad=True)
    with pytest.raises(SilentHook, match="module:spare did not run in one forward; it should run once"):
        mixer.run(PIXELS, read="module:spare")


def test_hooks_are_gone_after_an_error(mixer):
    with pytest.raises(RuntimeError):
        mixer.run(torch.randn(2, 5, 16, 16), read="module:stem")
    assert not any(m._forward_hooks for m in mixer.torch_module.modules())
