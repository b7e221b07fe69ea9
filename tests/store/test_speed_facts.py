"""Facts that speed rests on, counted and never timed."""

import torch

from activarium.store import _shard, open_store


def test_opening_reads_no_shard(made, monkeypatch):
    read, real = [], _shard.safe_open
    monkeypatch.setattr(_shard, "safe_open", lambda path, **options: read.append(path) or real(path, **options))
    store = open_store(made.path)
    assert store["blocks.*.mlp.post"].shape[0] == 2
    assert not [path for path in read if "shards" in path]
    store["blocks.0.mlp.post"].rows([0])
    assert len([path for path in read if "shards" in path]) == 1


def test_a_slice_is_mapped_not_copied(made):
    """Two loads of one slice would be two copies if they were read; mapped, they are views of a page cache."""
    part = made["blocks.0.mlp.post"]._parts[0]
    whole = part.load()
    assert whole.untyped_storage().nbytes() >= whole.nbytes
    assert torch.equal(whole, part.load())


def test_random_rows_visit_each_shard_once(made, monkeypatch):
    site, visits = made["blocks.0.mlp.post"], []
    take = _shard.Slice.take
    monkeypatch.setattr(_shard.Slice, "take", lambda self, index: visits.append(self.path) or take(self, index))
    site.rows(torch.randperm(len(site)))
    assert len(visits) == len(set(visits)) == len(site._parts)


def test_equal_sites_are_stored_once(made):
    assert made.manifest.aliases["blocks.1.resid_pre"] == "blocks.0.resid_post"
    assert "blocks.1.resid_pre" not in made.manifest.sites
