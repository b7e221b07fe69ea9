"""Rows chosen by what they are: the same rows a hand-written filter of the table gives, and only their shards are opened."""

import numpy as np
import pytest
import torch

from activarium.errors import InputError, UnknownName
from activarium.store import Store, open_store
from activarium.workflows.capture import capture

from .conftest import EVERYTHING
from .fake_model import FakeModel, texts


def check(made, chosen, space, mask):
    """Every site of a row space holds exactly the rows of the mask, in order."""
    index = np.flatnonzero(mask)
    frame, wanted = chosen.rows[space].frame(), made.table(space).iloc[index].reset_index(drop=True)
    assert frame.equals(wanted)
    names = [n for n in made if made._space(n) == space]
    assert names
    for name in names:
        assert torch.equal(chosen[name].tensor, made[name].tensor[index]), name
        assert chosen[name].index is chosen.rows[space]


@pytest.fixture(params=["store", "memory"])
def made(request, tmp_path):
    to = tmp_path / "s.acts" if request.param == "store" else None
    return capture(FakeModel(), texts(), EVERYTHING, to, batch_tokens=64, shard_bytes=40_000, progress=False)


def test_by_value_collection_and_function(made):
    table = made.table("")
    common = int(table["token"].mode()[0])
    check(made, made.select({"token": common}), "", table["token"] == common)
    check(made, made.select({"text": ["<3>", "<7>"]}), "", table["text"].isin(["<3>", "<7>"]))
    check(made, made.select({"position": lambda p: p % 5 == 2}), "", table["position"] % 5 == 2)
    check(made, made.select({"token": range(50), "position": {0, 1}}), "", (table["token"] < 50) & (table["position"] < 2))


def test_every_row_space_that_has_the_columns_is_filtered(made):
    chosen = made.select({"example": {3, 17, 30}})
    for space in made.rows:
        check(made, chosen, space, made.table(space)["example"].isin([3, 17, 30]))
    assert set(made.select({"token": int(made.rows[""]["token"][0])}).rows) == {""}
    assert "pooled" not in made.select({"text": made.rows[""]["text"][0]})


def test_whole_examples_keep_their_patterns_and_parts_of_them_do_not(made):
    chosen = made.select({"example": [5, 11]})
    for example in (5, 11):
        ours, theirs = (r["blocks.1.attn.pattern"].example(example).tensor for r in (chosen, made))
        assert torch.equal(ours, theirs)
    assert "blocks.1.attn.pattern" not in made.select({"position": 0})


def test_a_selection_is_selected_from_like_anything_else(made):
    table = made.table("")
    chosen = made.select({"position": lambda p: p > 2}).select({"token": range(30)})
    check(made, chosen, "", (table["position"] > 2) & (table["token"] < 30))
    assert chosen["blocks.1.resid_pre"] is chosen["blocks.0.resid_post"]
    assert chosen["blocks.*.mlp.post"].axes == ("layer", "row", "d_mlp")
    index = np.random.default_rng(0).integers(0, len(chosen.rows[""]), 20)
    assert torch.equal(chosen["blocks.*.mlp.post"].rows(index), chosen["blocks.*.mlp.post"].tensor[:, index])


def test_selections_have_ids_of_their_own(made):
    ids = [made.select({"position": p}).provenance["id"] for p in (0, 1, lambda p: p == 2, lambda p: p == 3)]
    assert len({*ids, made.provenance["id"]}) == 5
    assert made.select({"position": 0}).provenance["selected"] == {"position": 0}
    assert ids[0] == made.select({"position": lambda p: p == 0}).provenance["id"]  # the same rows, however they were asked for


def test_only_the_shards_with_these_rows_are_read(tmp_path):
    made = capture(FakeModel(), texts(), "blocks.0.mlp.post", tmp_path / "s.acts", shard_bytes=4000, progress=False)
    shards = sorted((made.path / "shards").iterdir())
    assert len(shards) > 4
    example = made.rows[""].examples[0]
    wanted = made["blocks.0.mlp.post"].example(example).tensor.clone()
    lonely = open_store(made.path)
    for shard in shards[1:]:
        shard.unlink()
    assert torch.equal(lonely.select({"example": example})["blocks.0.mlp.post"].tensor, wanted)


def test_labels_of_the_data_become_a_column(tmp_path):
    import activarium as act
    from activarium import testing

    for family, data in (
        ("llama", {"text": ["the cat sat", "a dog", "the dog ran"], "label": ["cat", "dog", "dog"]}),
        ("vit", {"pixel_values": torch.zeros(3, 3, 32, 32), "label": [7, 8, 8]}),
    ):
        model = act.wrap(*testing.tiny(family), certify=False)
        if family == "vit":
            data["pixel_values"] = torch.zeros(3, *model._encoder.spaces[""].image)
        store = act.capture(model, data, ["blocks.0.mlp.post", "logits"], to=tmp_path / f"{family}.acts", batch_tokens=4, progress=False)
        assert isinstance(store, Store)
        for space in store.rows:
            labels = np.asarray(data["label"], dtype=object)[store.rows[space]["example"]]
            assert (store.rows[space]["label"] == labels).all()
        twice = store.select({"label": data["label"][1]})
        assert set(twice.rows[""]["example"].tolist()) == {1, 2}
        same = act.wrap(*testing.tiny(family), certify=False)
        other = {**data, "label": data["label"][::-1]}
        assert same.inputs(data).hash != same.inputs(other).hash
    with pytest.raises(InputError, match=r"label has shape \(2,\) of int64; wanted one number or word for each of the 3 examples"):
        model.inputs({**data, "label": [1, 2]})


def test_words_of_refusals(made):
    with pytest.raises(UnknownName, match=r"No row column called 'tokn'. Did you mean 'token'.* Known: example, position, text, token"):
        made.select({"tokn": 3})
    with pytest.raises(InputError, match=r"No row has \{'token': 1000\}. 'token' holds \d+, \d+, \d+, \d+, \d+, \d+, …\."):
        made.select({"token": 1000})
    with pytest.raises(
        InputError, match=r"The function for 'position' gave int64 of shape \(\d+,\); wanted one true or false for each of \d+ rows"
    ):
        made.select({"position": lambda p: p})
    with pytest.raises(InputError, match=r"select needs at least one column: where=\{'kind': 'token'\}"):
        made.select({})


def test_a_row_space_may_come_out_empty(made):
    """No text of the encoder is as long as these rows say: its sites are there, with no rows."""
    chosen = made.select({"position": 20})
    assert len(chosen.rows[""]) > 0 and len(chosen.rows["encoder"]) == 0
    assert chosen["encoder.out"].tensor.shape == (0, 8)
    assert list(chosen.iter_batches("encoder.out", 4)) == list(chosen.iter_batches("encoder.out", 4, shuffle_blocks=2)) == []
