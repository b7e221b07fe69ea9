"""A single flipped bit anywhere is found, and named by file and shard."""

import shutil

import numpy as np
import pytest

from activarium.errors import CorruptStore, StoreError
from activarium.store import open_store


def flip(path, at, bit):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_an_undamaged_store_passes(made):
    answer = made.verify()
    assert answer.files == len([p for p in made.path.rglob("*") if p.is_file()])
    assert answer.leftovers == ()
    assert "as they were written" in str(answer)


def test_one_flipped_bit_in_every_file_in_turn(made, tmp_path):
    generator = np.random.default_rng(0)
    files = sorted(p.relative_to(made.path) for p in made.path.rglob("*") if p.is_file())
    assert {p.parts[0] for p in files} == {"manifest.act.json", "journal.jsonl", "rows", "shards", "constants"}
    for name in files:
        copy = tmp_path / "copy.acts"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(made.path, copy)
        size = (copy / name).stat().st_size
        for at in {0, size - 1, int(generator.integers(size))}:
            bit = int(generator.integers(8))
            flip(copy / name, at, bit)
            with pytest.raises(StoreError) as caught:
                open_store(copy).verify()
            assert name.name in str(caught.value), (name, at, bit)
            if len(name.parts) > 1:
                shard = int(name.stem)
                assert f"shard {shard}: {name.as_posix()}: blake2b is " in str(caught.value) or str(copy / name) in str(caught.value)
            flip(copy / name, at, bit)
    open_store(copy).verify()


def test_all_damaged_files_are_named_at_once(made):
    for name in ("shards/00001.safetensors", "rows/main/00002.parquet"):
        flip(made.path / name, 500, 3)
    with pytest.raises(
        CorruptStore, match=r"(?s)2 damaged file\(s\).*shard 1: shards/00001.*shard 2: rows/main/00002.*Copy these files again"
    ):
        made.verify()


def test_a_missing_and_a_short_file(made):
    shard = made.path / "shards" / "00001.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(
        CorruptStore, match=rf"00001.safetensors has {len(data) - 1:,} bytes; the journal committed {len(data):,}. Copy this file again"
    ):
        open_store(made.path)
    shard.unlink()
    with pytest.raises(CorruptStore, match=r"00001.safetensors is missing; the journal committed it with"):
        open_store(made.path)
    with pytest.raises(CorruptStore, match=r"shard 1: shards/00001.safetensors: .* is missing"):
        open_store(made.path, check=False).verify()


def test_a_journal_that_is_gone(made):
    (made.path / "journal.jsonl").unlink()
    with pytest.raises(CorruptStore, match=r"journal.jsonl is missing or empty, although there are shards. Copy the journal again"):
        open_store(made.path)


def test_a_manifest_that_was_edited(made):
    path = made.path / "manifest.act.json"
    path.write_text(path.read_text().replace('"fake"', '"fame"'))
    with pytest.raises(
        CorruptStore, match=r"manifest.act.json was changed: its blake2b is \w{16}…, the journal says \w{16}…. Put the original back"
    ):
        open_store(made.path)


def test_two_shards_that_were_swapped(made):
    """Same sizes do not help: every file has its own hash."""
    first, second = sorted((made.path / "shards").iterdir())[:2]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(CorruptStore, match=r"00000.safetensors"):
        open_store(made.path, check=False).verify()


def test_a_damaged_row_table_says_so_when_read(made):
    path = made.path / "rows" / "main" / "00000.parquet"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(CorruptStore, match=r"00000.parquet is not a readable Parquet file"):
        open_store(made.path)


def test_leftovers_of_a_killed_writer_are_no_damage(made):
    (made.path / "shards" / "00099.safetensors.part").write_bytes(b"half")
    answer = open_store(made.path).verify()
    assert answer.leftovers == ("shards/00099.safetensors.part",)
    assert "1 uncommitted files" in str(answer)
