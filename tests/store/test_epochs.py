"""Epochs: every row exactly once, the same by seed, mixed well, and read in long stretches."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activarium.errors import InputError
from activarium.store import _epochs, _shard
from activarium.workflows.capture import capture

from .fake_model import FakeModel, texts

SITES = ["blocks.*.mlp.post", "blocks.0.resid_post", "pooled", "blocks.0.attn.pattern"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("epochs")
    store = capture(FakeModel(), texts(60), SITES, folder / "s.acts", batch_tokens=64, shard_bytes=20_000, progress=False)
    assert len(store._journal.commits) > 4
    return store


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 900), blocks=st.integers(0, 40), seed=st.integers(0, 5), block_bytes=st.integers(1, 20_000))
def test_every_row_exactly_once_with_its_number(made, monkeypatch, batch, blocks, seed, block_bytes):
    monkeypatch.setattr(_epochs, "BLOCK_BYTES", block_bytes)
    whole = made["blocks.0.mlp.post"].tensor
    read = list(made.iter_batches("blocks.0.mlp.post", batch, shuffle_blocks=blocks, seed=seed, rows=True))
    assert all(len(values) == batch for values, _ in read[:-1])
    assert 0 < len(read[-1][0]) <= batch
    numbers = torch.cat([index for _, index in read])
    assert torch.equal(numbers.sort().values, torch.arange(len(whole)))
    assert torch.equal(torch.cat([values for values, _ in read]), whole[numbers])
    if not blocks:
        assert torch.equal(numbers, torch.arange(len(whole)))


def test_the_seed_decides_the_order(made):
    def order(seed):
        return [index.tolist() for _, index in made.iter_batches("pooled", 7, shuffle_blocks=4, seed=seed, rows=True)]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_rows_are_mixed_across_the_store(made, monkeypatch):
    """A batch of a good shuffle is a fair choice of all rows, one of stored order is not."""
    monkeypatch.setattr(_epochs, "BLOCK_BYTES", 1000)
    total = len(made["blocks.0.mlp.post"])

    def spread(blocks):
        read = made.iter_batches("blocks.0.mlp.post", 50, shuffle_blocks=blocks, rows=True)
        return np.mean([float(index.double().std()) for _, index in list(read)[:-1]])

    assert spread(0) < 0.05 * total
    assert spread(1000) > 0.25 * total  # uniform rows have 0.29
    first = torch.cat([next(made.iter_batches("blocks.0.mlp.post", 100, shuffle_blocks=1000, seed=s, rows=True))[1] for s in range(60)])
    counts = torch.histc(first.double(), bins=6, min=0, max=total)
    assert ((counts - 1000).abs() < 5 * (1000 * 5 / 6) ** 0.5).all(), counts  # every sixth of the store equally often


def test_several_sites_stay_aligned(made):
    for one, other, stack in made.iter_batches(["blocks.0.mlp.post", "blocks.0.resid_post", "blocks.*.mlp.post"], 64, shuffle_blocks=3):
        assert len(one) == len(other)
        assert torch.equal(stack[0], one)
    read = list(made.iter_batches(["blocks.0.mlp.post", "blocks.0.resid_post"], 64, shuffle_blocks=3, rows=True))
    for (one, other), index in read:
        assert torch.equal(one, made["blocks.0.mlp.post"].rows(index))
        assert torch.equal(other, made["blocks.0.resid_post"].rows(index))


def test_selections_and_memory_are_read_the_same_way(made):
    kept = capture(FakeModel(), texts(60), SITES, batch_tokens=64, progress=False)
    for source in (made.select({"position": lambda p: p > 3}), kept, kept.select({"token": range(40)})):
        for blocks in (0, 5):
            read = list(source.iter_batches("blocks.0.mlp.post", 40, shuffle_blocks=blocks, rows=True))
            numbers = torch.cat([index for _, index in read])
            assert torch.equal(numbers.sort().values, torch.arange(len(source.rows[""])))
            assert torch.equal(torch.cat([v for v, _ in read]), source["blocks.0.mlp.post"].tensor[numbers])


def test_a_loader_of_torch_takes_it_as_it_is(made):
    class Epoch(torch.utils.data.IterableDataset):
        def __iter__(self):
            return made.iter_batches("pooled", 16, shuffle_blocks=2, seed=3)

    loaded = torch.cat(list(torch.utils.data.DataLoader(Epoch(), batch_size=None)))
    assert torch.equal(loaded.sum(0).float(), torch.cat(list(made.iter_batches("pooled", 16, shuffle_blocks=2, seed=3))).sum(0))


def test_what_a_batch_is_changed_to_stays_out_of_the_next(made):
    before = made["blocks.0.mlp.post"].tensor.clone()
    for batch, blocks in ((3, 0), (64, 0), (64, 6)):
        for values in made.iter_batches("blocks.0.mlp.post", batch, shuffle_blocks=blocks):
            values.zero_()
    for part in made.select({"example": made.rows[""].examples[0]})["blocks.0.mlp.post"]._parts:
        part.load().zero_()
    assert torch.equal(torch.cat(list(made.iter_batches("blocks.0.mlp.post", 64))), before)


def test_reads_are_long(made, monkeypatch):
    """Counted, not timed: one read per block, however small the batches."""
    spans, real = [], _shard.Slice.span
    monkeypatch.setattr(_shard.Slice, "span", lambda self, first, last: spans.append(last - first) or real(self, first, last))
    list(made.iter_batches("blocks.0.mlp.post", 5, shuffle_blocks=3))
    assert len(spans) == len(made._journal.commits)  # shards here are smaller than a block
    assert sum(spans) == len(made["blocks.0.mlp.post"])


def test_words_of_refusals(made):
    with pytest.raises(
        InputError, match=r"blocks.0.attn.pattern has axes 'head query key' and so no rows to go through. Read it by .example"
    ):
        made.iter_batches("blocks.0.attn.pattern")
    with pytest.raises(
        InputError, match=r"blocks.0.mlp.post, pooled lie on different rows: blocks.0.mlp.post has \d+, pooled 60. Go through one"
    ):
        made.iter_batches(["blocks.0.mlp.post", "pooled"])
    with pytest.raises(InputError, match=r"batch is 0 and shuffle_blocks 0; wanted at least 1 row, and 0 blocks or more"):
        made.iter_batches("pooled", 0)
    with pytest.raises(InputError, match=r"iter_batches needs a site"):
        made.iter_batches([])
