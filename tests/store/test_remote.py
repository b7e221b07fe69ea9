"""Stores at an address: the same values, and only the bytes of the rows that were asked for travel."""

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from activarium.errors import CorruptStore, InputError, MissingExtra, StoreError, UnknownSite
from activarium.store import open_store
from activarium.workflows.capture import capture

from .fake_model import FakeModel, texts
from .test_read import same


class Counted(MemoryFileSystem):
    """Memory that counts what leaves it, file by file."""

    protocol = "counted"
    store, pseudo_dirs, fetched = {}, [""], []

    def cat_file(self, path, start=None, end=None, **options):
        data = super().cat_file(path, start=start, end=end, **options)
        self.fetched.append((path, len(data)))
        return data


fsspec.register_implementation("counted", Counted, clobber=True)


def upload(made, url):
    system, path = fsspec.core.url_to_fs(url)
    for file in made.path.rglob("*"):
        if file.is_file():
            system.pipe_file(f"{path}/{file.relative_to(made.path).as_posix()}", file.read_bytes())
    return url


@pytest.fixture(params=["memory://folder/made.acts", "counted://folder/made.acts"])
def url(request, made):
    yield upload(made, request.param)
    system, path = fsspec.core.url_to_fs(request.param)
    system.rm(path, recursive=True)


def test_the_same_recording(made, url):
    remote = open_store(url)
    same(made, remote)
    for block in ("blocks.0.attn", "blocks.1.attn"):
        for ours, theirs in zip(remote[f"{block}.pattern"].batches(), made[f"{block}.pattern"].batches(), strict=True):
            assert torch.equal(ours, theirs)
    assert remote.provenance["id"] == made.provenance["id"]
    assert remote.complete and str(remote.path) == url
    assert "made.acts: fake" in repr(remote)
    index = np.random.default_rng(0).integers(0, len(made.rows[""]), 60)
    assert torch.equal(remote["blocks.*.mlp.post"].rows(index), made["blocks.*.mlp.post"].rows(index))
    chosen = remote.select({"position": lambda p: p % 3 == 0})
    assert torch.equal(chosen["blocks.0.mlp.post"].tensor, made.select({"position": lambda p: p % 3 == 0})["blocks.0.mlp.post"].tensor)
    ours = torch.cat(list(remote.iter_batches("blocks.0.mlp.post", 50, shuffle_blocks=3, seed=1)))
    assert torch.equal(ours, torch.cat(list(made.iter_batches("blocks.0.mlp.post", 50, shuffle_blocks=3, seed=1))))
    assert remote.verify().files == made.verify().files


def test_a_file_address_is_a_folder(made):
    same(made, open_store(f"file://{made.path}"))


def test_a_few_rows_are_a_few_bytes(tmp_path):
    store = capture(FakeModel(), [[1] * 1000] * 40, ["blocks.0.mlp.post", "blocks.1.mlp.post"], tmp_path / "s.acts", progress=False)
    (shard,) = (store.path / "shards").iterdir()
    assert shard.stat().st_size > 5_000_000
    remote = open_store(upload(store, "counted://s.acts"))
    Counted.fetched.clear()
    remote["blocks.0.mlp.post"]
    assert not [path for path, _ in Counted.fetched if "shards" in path]
    assert torch.equal(remote["blocks.1.mlp.post"].rows([7, 30_000, 8]), store["blocks.1.mlp.post"].rows([7, 30_000, 8]))
    sizes = [size for path, size in Counted.fetched if "shards" in path]
    assert len(sizes) == 4  # length of the header, header, two stretches
    assert sum(sizes) < 2000
    Counted.fetched.clear()
    remote["blocks.1.mlp.post"].example(3)
    assert [size for path, size in Counted.fetched if "shards" in path] == [1000 * 64]


def test_damage_is_named(made):
    url = upload(made, "memory://broken.acts")
    system, path = fsspec.core.url_to_fs(url)
    shard = f"{path}/shards/00001.safetensors"
    whole = system.cat_file(shard)
    system.pipe_file(shard, whole[:-1])
    with pytest.raises(CorruptStore, match=r"memory://broken.acts/shards/00001.safetensors has [\d,]+ bytes; the journal committed"):
        open_store(url)
    system.pipe_file(shard, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptStore, match=r"1 damaged file.*\n  shard 1: shards/00001.safetensors: blake2b is"):
        open_store(url).verify()
    system.pipe_file(shard, whole.replace(b'"F32"', b'"I32"'))
    from activarium.store import _remote

    _remote._header.cache_clear()
    with pytest.raises(
        CorruptStore, match=r"00001.safetensors does not hold blocks.0.mlp.post as .* manifest and journal say so. Run store.verify"
    ):
        _ = open_store(url)["blocks.0.mlp.post"].tensor
    system.pipe_file(shard, (2**40).to_bytes(8, "little") + whole[8:])
    _remote._header.cache_clear()
    with pytest.raises(CorruptStore, match=r"00001.safetensors announces a header of 1,099,511,627,776 bytes in a file of"):
        _ = open_store(url)["blocks.0.mlp.post"].tensor


def test_words_of_refusals(tmp_path, made):
    with pytest.raises(
        StoreError, match=r"There is no store at memory://nothing.acts: no manifest.act.json answers there. Check the address"
    ):
        open_store("memory://nothing.acts")
    with pytest.raises(StoreError, match=r"'memory://folder/made' is no name for a store: wanted one that ends in '.acts'"):
        open_store("memory://folder/made")
    with pytest.raises(InputError, match=r"'gopher://x.acts' cannot be opened: .*gopher.* Use a path, or an address that fsspec knows"):
        open_store("gopher://x.acts")
    with pytest.raises(
        StoreError, match=r"'memory://x.acts' is an address; a store is written into a folder. Write it here, copy it there"
    ):
        capture(FakeModel(), texts(3), "pooled", "memory://x.acts", progress=False)
    with pytest.raises(InputError, match=r"anon: options are for addresses such as s3://…; .*made.acts is a folder. Leave them out"):
        open_store(made.path, anon=True)
    url = upload(made, "memory://named.acts")
    with pytest.raises(UnknownSite, match=r"Did you mean 'blocks.0.mlp.post'"):
        open_store(url)["blocks.0.mlp.pst"]


def test_a_protocol_that_is_not_installed(monkeypatch):
    def absent(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(
        MissingExtra, match=r"Addresses like s3://bucket/x.acts need a package that is not installed: Install s3fs to access S3"
    ):
        open_store("s3://bucket/x.acts")
