"""A store of format 1 that was written once must read the same for ever."""

import json
from pathlib import Path

import pytest
import torch

from activarium.store import open_store

GOLDEN = Path(__file__).parent / "golden"
WANTED = json.loads((GOLDEN / "v1.json").read_text())


@pytest.fixture(scope="module")
def store():
    return open_store(GOLDEN / "v1.acts")


def test_it_is_undamaged_and_whole(store):
    assert store.verify().leftovers == ()
    assert store.complete
    assert len(store._journal.sessions) == 2
    assert len(store._journal.commits) > 1


@pytest.mark.parametrize("name", list(WANTED["sites"]))
def test_every_site_to_the_bit(store, name):
    site, wanted = store[name], WANTED["sites"][name]
    assert " ".join(site.axes) == wanted["axes"]
    assert str(site.dtype) == wanted["dtype"]
    assert list(site.shape) == wanted["shape"]
    assert site.tensor.contiguous().view(torch.uint8).numpy().tobytes().hex() == wanted["hex"]


def test_every_row(store):
    assert {s: {c: r[c].tolist() for c in r.columns} for s, r in store.rows.items()} == WANTED["rows"]


def test_patterns(store):
    for found, wanted in zip(store["blocks.0.attn.pattern"].batches(), WANTED["pattern"], strict=True):
        assert torch.allclose(found.flatten(), torch.tensor(wanted), atol=1e-4)
