"""The format: names that stay inside, a manifest that says what is wrong with it, a journal that survives any cut."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from activarium.errors import CorruptStore, StoreError
from activarium.store import open_store
from activarium.store._format import CODES, Manifest, PlanEntry, SiteEntry, digest, inside, space_folder, torch_dtype
from activarium.store._journal import Commit, File, Journal, Session, joined, line_of
from activarium.store._shard import LARGEST_HEADER, read_tensor, write_shard

PLAN = PlanEntry(examples=2, batch_tokens=8, sizes=(2,), padded=(3,), hash="p")


def journal_bytes() -> bytes:
    lines = [line_of(Session(session=1, manifest="m"))]
    for n in range(3):
        files = {f"shards/{n:05d}.safetensors": File(bytes=100, blake2b=digest(bytes([n])))}
        lines.append(line_of(Commit(shard=n, session=1, span=(2 * n, 2 * n + 2), rows={"": 5}, files=files)))
    return b"".join(lines)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "shards/../../evil", "C:evil", "a\\b", "", "shards/\0"])
def test_paths_that_leave_the_folder(tmp_path, name):
    with pytest.raises(CorruptStore, match=r"lies outside of the store. Do not trust this store"):
        inside(tmp_path, name)


def test_links_that_leave_the_folder(made, tmp_path):
    shard = made.path / "shards" / "00000.safetensors"
    elsewhere = tmp_path / "elsewhere.safetensors"
    shard.rename(elsewhere)
    shard.symlink_to(elsewhere)
    with pytest.raises(CorruptStore, match=r"names the file 'shards/00000.safetensors', which lies outside of the store"):
        open_store(made.path)


def test_a_linked_folder_is_fine(made, tmp_path):
    link = tmp_path / "link.acts"
    link.symlink_to(made.path, target_is_directory=True)
    assert len(open_store(link)) == len(made)


def test_a_later_version_says_so(made):
    path = made.path / "manifest.act.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(
        StoreError, match=r"manifest.act.json has format version 2; this activarium reads version 1. Update activarium: pip install"
    ):
        open_store(made.path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "is not readable JSON"),
        (b"[]", "has format 'list'; wanted 'activarium store'"),
        (b'{"format": "zarr"}', "has format 'zarr'; wanted 'activarium store'"),
        (b'{"format": "activarium store", "version": true}', "has format version True"),
        (b'{"format": "activarium store", "version": 1, "model": {}, "data": {}}', "has a bad entry at 'plan'"),
    ],
)
def test_manifests_that_are_none(text, words):
    with pytest.raises(StoreError, match=words):
        Manifest.parse(text, Path("manifest.act.json"))


@given(st.text(max_size=20), st.integers(0, 5))
def test_a_manifest_comes_back_the_same(word, size):
    site = SiteEntry(axes="row d_model", rows="", shape=(size,), dtype="bfloat16")
    manifest = Manifest(model={"name": word}, data={"hash": word}, plan=PLAN, sites={"blocks.0.mlp.post": site})
    assert Manifest.parse(manifest.dump(), Path("m")) == manifest


def test_every_cut_of_a_journal_is_a_shorter_journal(tmp_path):
    """A killed writer leaves any prefix: never an error, never a half line, never a lost whole one."""
    data = journal_bytes()
    path = tmp_path / "journal.jsonl"
    near = {i + d for i, byte in enumerate(data) if byte == 10 for d in (-1, 0, 1)}
    for end in sorted({*range(0, len(data) + 1, 3), *near}):
        path.write_bytes(data[:end])
        journal = Journal(path)
        assert len(journal.sessions) + len(journal.commits) == data[:end].count(b"\n")
        assert journal.whole + journal.torn == end


def test_every_flipped_bit_of_a_journal_is_found(tmp_path):
    """Also in newlines: a flipped last newline is no torn line."""
    data = journal_bytes()
    path = tmp_path / "journal.jsonl"
    newlines = [i for i, byte in enumerate(data) if byte == 10]
    for at in [*range(0, len(data), 5), *newlines]:
        for bit in [1 << b for b in range(8)] if at in newlines else [1 << (at // 5) % 8]:
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            with pytest.raises(CorruptStore, match=r"journal.jsonl (is damaged|has shards but)"):
                Journal(path)


def test_examples_cannot_be_committed_twice(tmp_path):
    path = tmp_path / "journal.jsonl"
    commits = [Commit(shard=n, session=1, span=span, rows={}, files={}) for n, span in enumerate([(0, 3), (2, 5)])]
    path.write_bytes(b"".join(map(line_of, [Session(session=1, manifest="m"), *commits])))
    with pytest.raises(CorruptStore, match=r"commits examples twice: shard 0 holds \(0, 3\), shard 1 holds \(2, 5\)"):
        Journal(path)


def test_spans_join():
    assert joined([(4, 6), (0, 2), (2, 4), (8, 9)]) == [(0, 6), (8, 9)]


def test_row_space_names():
    assert [space_folder(s) for s in ("", "encoder", "vision.patch")] == ["main", "encoder", "vision.patch"]
    for name in ("main", "../x", "a b", "a..b", "."):
        with pytest.raises(StoreError, match=f"A row space called {re.escape(repr(name))} cannot be stored"):
            space_folder(name)


def test_unknown_dtype():
    with pytest.raises(StoreError, match=r"A store cannot hold dtype 'complex64'. Choose one of float64"):
        torch_dtype("complex64")


@pytest.mark.parametrize("dtype", list(CODES))
def test_shards_are_plain_safetensors_in_every_dtype(tmp_path, dtype):
    kind = torch_dtype(dtype)
    raw = torch.arange(256, dtype=torch.uint8).repeat(8)
    values = (raw % 2).bool().view(64, 32) if kind == torch.bool else raw.view(kind).view(64, -1)
    file = write_shard(
        tmp_path / "x.safetensors", {"b": [values[:10], values[10:10], values[10:]], "a": [torch.zeros(3, 1, dtype=torch.int8)]}
    )
    with safe_open(str(tmp_path / "x.safetensors"), "pt") as opened:
        assert torch.equal(opened.get_tensor("b").view(torch.uint8), values.view(torch.uint8))
    assert file.bytes == (tmp_path / "x.safetensors").stat().st_size
    assert torch.equal(read_tensor(tmp_path / "x.safetensors", file.bytes, "b").view(torch.uint8), values.view(torch.uint8))


def test_no_rows_at_all_are_a_shard_too(tmp_path):
    file = write_shard(tmp_path / "x.safetensors", {"a": [torch.zeros(0, 4)], "b": [torch.ones(2, 2)]})
    assert read_tensor(tmp_path / "x.safetensors", file.bytes, "a").shape == (0, 4)


@pytest.mark.parametrize("announced", [100, LARGEST_HEADER + 1, 2**63])
def test_a_header_larger_than_its_file_is_refused(tmp_path, announced):
    path = tmp_path / "x.safetensors"
    path.write_bytes(announced.to_bytes(8, "little") + b"{}")
    with pytest.raises(CorruptStore, match=r"announces a header of [\d,]+ bytes in a file of 10. Take an undamaged copy"):
        read_tensor(path, 10, "a")


def test_a_header_that_lies_about_its_tensors_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    head = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(16))
    with pytest.raises(CorruptStore, match=r"is not a readable safetensors file"):
        read_tensor(path, path.stat().st_size, "a")
