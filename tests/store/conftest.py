import pytest

from activarium.workflows.capture import capture

from .fake_model import FakeModel, texts

EVERYTHING = ["blocks.*.resid_pre", "blocks.*.resid_post", "blocks.*.mlp.post", "blocks.*.attn.pattern", "encoder.out", "pooled"]


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def made(tmp_path, model):
    """A finished store of several shards and row spaces."""
    return capture(model, texts(), EVERYTHING, tmp_path / "made.acts", batch_tokens=64, shard_bytes=40_000, progress=False)
