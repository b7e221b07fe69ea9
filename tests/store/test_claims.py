"""Stores that lie about their size: refused before anybody makes room, and nothing outside of the folder is touched."""

import json
import tracemalloc

import pytest

from activarium.errors import CorruptStore, StoreError
from activarium.store import open_store
from activarium.store._format import digest
from activarium.store._journal import Journal, line_of

HUGE = 10**15


def forge(path, manifest=lambda m: None, commit=lambda c: None):
    """Change a store as somebody would who knows the format: hashes and checksums fit."""
    raw = json.loads((path / "manifest.act.json").read_bytes())
    manifest(raw)
    (path / "manifest.act.json").write_bytes((json.dumps(raw, indent=1, ensure_ascii=False) + "\n").encode())
    journal = Journal(path / "journal.jsonl")
    sessions = [s.model_copy(update={"manifest": digest((path / "manifest.act.json").read_bytes())}) for s in journal.sessions]
    commits = []
    for number, one in enumerate(journal.commits):
        line = one.model_dump(mode="json")
        if number == 1:
            commit(line)
        commits.append(type(one).model_validate(line))
    (path / "journal.jsonl").write_bytes(b"".join(map(line_of, [*sessions, *commits])))


def refused(path, words):
    tracemalloc.start()
    try:
        with pytest.raises(CorruptStore, match=words):
            open_store(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_forging_alone_changes_nothing(made):
    forge(made.path)
    assert open_store(made.path).verify().leftovers == ()


def test_a_journal_that_claims_many_rows(made):
    forge(made.path, commit=lambda c: c["rows"].update({"": HUGE}))
    refused(
        made.path,
        r"made.acts claims \{.*1000000000000000.*\} rows in shard 1, which take [\d,]+ bytes; the shard has [\d,]+ bytes. Do not trust",
    )


def test_rows_below_zero(made):
    forge(made.path, commit=lambda c: c["rows"].update({"": -5}))
    refused(made.path, r"claims \{.*-5.*\} rows in shard 1")


def test_a_manifest_that_claims_wide_rows(made):
    forge(made.path, manifest=lambda m: m["sites"]["pooled"].update(shape=[HUGE]))
    refused(made.path, r"claims .* rows in shard \d+, which take [\d,]+ bytes; the shard has [\d,]+ bytes. Do not trust this store")


def test_a_site_whose_shape_is_not_what_the_shard_holds(made):
    """Small enough to be believed; found when it is read."""
    forge(made.path, manifest=lambda m: m["sites"]["pooled"].update(shape=[4]))
    with pytest.raises(CorruptStore, match=r"holds pooled with shape \(\d+, 8\) and torch.float32; manifest and journal say \(\d+, 4\)"):
        _ = open_store(made.path)["pooled"].tensor


def test_a_manifest_that_claims_many_examples(made):
    """A plan is only a promise: nothing is allocated for it, the store counts as unfinished."""
    forge(made.path, manifest=lambda m: m["plan"].update(examples=HUGE))
    store = open_store(made.path)
    assert not store.complete
    assert "incomplete: 40 of 1,000,000,000,000,000 examples" in repr(store)
    assert len(store["pooled"].tensor) == 40


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/etc/passwd", "shards/../../x", "C:\\x", "rows/../../y"])
def test_files_that_lead_out_of_the_folder(made, name):
    forge(made.path, commit=lambda c: c["files"].update({name: next(iter(c["files"].values()))}))
    refused(made.path, r"names the file .*, which lies outside of the store. Do not trust this store; take it from its source again")


def test_a_row_space_that_leads_out_of_the_folder(made):
    forge(made.path, commit=lambda c: c["rows"].update({"../../x": 3}))
    with pytest.raises(StoreError, match=r"A row space called '../../x' cannot be stored"):
        open_store(made.path)


def test_a_manifest_nested_without_end(made):
    (made.path / "manifest.act.json").write_text("[" * 200_000)
    with pytest.raises(StoreError, match=r"manifest.act.json is not readable JSON"):
        open_store(made.path)
