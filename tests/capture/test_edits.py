"""Every edit by hand, at the rows, heads and features it names and nowhere else; strength 0 changes no bit."""

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.edits import Add, Affine, Detach, Keep, Mean, ProjectOut, Scale, Set, SkipBlock, Threshold, Where, Zero
from activarium.errors import InputError, UnknownName
from activarium.metrics import logit_difference

IDS = torch.arange(20, 30).reshape(2, 5)  # plain words in the tiny tokenizers
SITE = "blocks.0.resid_post"


@pytest.fixture(scope="module")
def model():
    return act.wrap(*testing.tiny("llama"), name="llama", certify=False)


@pytest.fixture(scope="module")
def base(model):
    return model.run(IDS, read=[SITE, "blocks.1.attn.z", "blocks.1.mlp.post"])


VECTOR = torch.linspace(-1, 1, 32)
UNIT = VECTOR / VECTOR.norm()


@pytest.mark.parametrize(
    ("edit", "wanted"),
    [
        (Add(SITE, VECTOR, 2.0), lambda x: x + 2 * VECTOR),
        (Set(SITE, VECTOR), VECTOR.expand_as),
        (Zero(SITE), torch.zeros_like),
        (Mean(SITE, VECTOR, {"data": "by hand"}), VECTOR.expand_as),
        (Scale(SITE, 3.0), lambda x: 3 * x),
        (ProjectOut(SITE, VECTOR), lambda x: x - (x @ UNIT)[:, None] * UNIT),
        (Affine(SITE, VECTOR, 1.0, 0.5), lambda x: 0.5 * x + 0.5 * (VECTOR * x + 1)),
        (Affine(SITE, torch.eye(32) * 2, 0.0), lambda x: 2 * x),
        (Keep(SITE, 3), lambda x: torch.where(x.abs() >= x.abs().topk(3).values[:, -1:], x, 0)),
        (Threshold(SITE, 0.3), lambda x: torch.where(x.abs() > 0.3, x, 0)),
        (Threshold(SITE, 0.1, signed=True), lambda x: torch.where(x > 0.1, x, 0)),
        (Threshold(SITE, VECTOR.abs()), lambda x: torch.where(x.abs() > VECTOR.abs(), x, 0)),
        (Detach(SITE), lambda x: x),
    ],
)
def test_edit_by_hand(model, base, edit, wanted):
    after = model.run(IDS, read=[SITE], edits=[edit])
    assert torch.allclose(after[SITE].tensor, wanted(base[SITE].tensor), atol=1e-6)
    if not isinstance(edit, Detach):
        assert not torch.equal(after.logits.tensor, base.logits.tensor)


@pytest.mark.parametrize(
    "edit",
    [
        Add(SITE, VECTOR, 0.0),
        Scale(SITE, 1.0),
        ProjectOut(SITE, VECTOR, 0.0),
        Affine(SITE, VECTOR, 0.0, 0.0),
        Add("blocks.1.attn.q_rot", torch.ones(8), 0.0),
    ],
)
def test_strength_zero_is_bit_identical(model, base, edit):
    assert torch.equal(model.run(IDS, edits=[edit]).logits.tensor, base.logits.tensor)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        (Where(examples=1), [5, 6, 7, 8, 9]),
        (Where(positions=(0, -1)), [0, 4, 5, 9]),
        (Where(examples=(0,), positions=(2,)), [2]),
        (Where(kinds="token"), range(10)),
        (Where(kinds="bos"), []),
    ],
)
def test_where_touches_only_its_rows(model, base, where, rows):
    after = model.run(IDS, read=[SITE], edits=[Add(SITE, torch.ones(32), where=where)])
    changed = (after[SITE].tensor != base[SITE].tensor).any(-1).nonzero().flatten().tolist()
    assert changed == list(rows)


def test_last_position_is_the_last_real_row_of_a_ragged_batch(model):
    ragged = [[5, 6, 7, 8], [9, 10]]
    before, after = model.run(ragged, read=[SITE]), model.run(ragged, read=[SITE], edits=[Zero(SITE, where=Where(positions=-1))])
    assert (before[SITE].tensor != after[SITE].tensor).any(-1).nonzero().flatten().tolist() == [3, 5]


def test_last_position_of_patches_is_the_last_patch():
    """Their rows begin after CLS and keep the positions of the picture's rows."""
    vit = act.wrap(*testing.tiny("vit"), certify=False)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, after = (
        vit.run(pixels, read=["token_embed"], edits=e)["token_embed"] for e in ([], [Zero("token_embed", where=Where(positions=-1))])
    )
    assert before.space == "patch"
    assert (before.tensor != after.tensor).any(-1).nonzero().flatten().tolist() == [15, 31]


def test_heads_and_features(model, base):
    after = model.run(IDS, read=["blocks.1.attn.z"], edits=[Zero("blocks.1.attn.z", where=Where(heads=(1, 3)))])
    z, was = after["blocks.1.attn.z"].tensor, base["blocks.1.attn.z"].tensor
    assert (z[:, [1, 3]] == 0).all() and torch.equal(z[:, [0, 2]], was[:, [0, 2]])
    post = model.run(IDS, read=["blocks.1.mlp.post"], edits=[Set("blocks.1.mlp.post", 7.0, where=Where(features=5, positions=1))])[
        "blocks.1.mlp.post"
    ].tensor
    assert (post[[1, 6], 5] == 7).all() and (post != base["blocks.1.mlp.post"].tensor).sum() == 2
    with pytest.raises(InputError, match="has no head axis"):
        model.run(IDS, edits=[Zero(SITE, where=Where(heads=0))])


def test_order_counts_and_reads_come_after_edits(model):
    ones = torch.ones(32)
    one = model.run(IDS, read=[SITE], edits=[Set(SITE, ones), Scale(SITE, 2.0)])[SITE].tensor
    other = model.run(IDS, read=[SITE], edits=[Scale(SITE, 2.0), Set(SITE, ones)])[SITE].tensor
    assert (one == 2).all() and (other == 1).all()


def test_contexts_stack_and_end(model, base):
    with model.edited(Set(SITE, torch.ones(32))), model.edited([Scale(SITE, 2.0)]):
        assert (model.run(IDS, read=[SITE])[SITE].tensor == 2).all()
    assert torch.equal(model.run(IDS, read=[SITE])[SITE].tensor, base[SITE].tensor)


def test_fused_projection_is_edited_in_its_part_only():
    gpt2 = act.wrap(*testing.tiny("gpt2"), certify=False)
    read = ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v"]
    before, after = gpt2.run(IDS, read=read), gpt2.run(IDS, read=read, edits=[Zero("blocks.0.attn.k")])
    assert (after["blocks.0.attn.k"].tensor == 0).all()
    assert all(torch.equal(before[n].tensor, after[n].tensor) for n in (read[0], read[2]))
    neox = act.wrap(*testing.tiny("gpt_neox"), certify=False)
    before, after = neox.run(IDS, read=read), neox.run(IDS, read=read, edits=[Zero("blocks.0.attn.v")])
    assert (after["blocks.0.attn.v"].tensor == 0).all()
    assert all(torch.equal(before[n].tensor, after[n].tensor) for n in read[:2])


def test_resid_mid_is_written_for_the_stream_and_the_mlp(model):
    """Writing it at the second norm's input would change the MLP branch only."""
    read = ["blocks.0.resid_mid", "blocks.0.mlp.out", SITE]
    after = model.run(IDS, read=read, edits=[Add("blocks.0.resid_mid", VECTOR)])
    before = model.run(IDS, read=read)
    assert torch.allclose(after["blocks.0.resid_mid"].tensor, before["blocks.0.resid_mid"].tensor + VECTOR, atol=1e-6)
    assert torch.allclose(after[SITE].tensor, after["blocks.0.resid_mid"].tensor + after["blocks.0.mlp.out"].tensor, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_skipped_block_passes_its_input_on(family):
    model = act.wrap(*testing.tiny(family), certify=False)
    prefix = "decoder." if family == "t5" else ""
    data = {"encoder": IDS, "decoder_input_ids": IDS} if family == "t5" else IDS
    rec = model.run(data, read=[f"{prefix}blocks.1.resid_pre", f"{prefix}blocks.1.resid_post"], edits=[SkipBlock(site=f"{prefix}blocks.1")])
    assert torch.equal(rec[f"{prefix}blocks.1.resid_post"].tensor, rec[f"{prefix}blocks.1.resid_pre"].tensor)
    with pytest.raises(UnknownName, match="blocks.11"):
        model.run(data, edits=[SkipBlock(site="blocks.11")])


ENDS = ["blocks.1.resid_pre", "blocks.1.resid_mid", "blocks.1.mlp.out", "blocks.1.resid_post", "blocks.1.attn.k", "blocks.1.attn.v"]
RAGGED = [[20, 21, 22, 23], [24, 25], [26, 27, 28]]


@pytest.mark.parametrize(
    ("where", "skips"),
    [
        (Where(examples=1), [0, 0, 0, 0, 1, 1, 0, 0, 0]),
        (Where(positions=(0, -1)), [1, 0, 0, 1, 1, 1, 1, 0, 1]),
        (Where(examples=(0, 2), positions=2), [0, 0, 1, 0, 0, 0, 0, 0, 1]),
        (Where(kinds="bos"), [0] * 9),
        (Where(kinds="token"), [1] * 9),
    ],
)
def test_a_block_is_skipped_at_just_the_rows_named(model, where, skips):
    skips = torch.tensor(skips, dtype=torch.bool)
    free = model.run(RAGGED, read=ENDS)
    rec = model.run(RAGGED, read=ENDS, edits=[SkipBlock("blocks.1", where=where)])
    post, pre = rec["blocks.1.resid_post"].tensor, rec["blocks.1.resid_pre"].tensor
    assert torch.equal(post[skips], pre[skips])
    assert torch.equal(post[~skips], free["blocks.1.resid_post"].tensor[~skips])
    assert (post[~skips] != pre[~skips]).any(1).all()
    # The block ran for every row: keys and values are those of the state that is carried past it.
    for name in ("attn.k", "attn.v"):
        assert torch.equal(rec[f"blocks.1.{name}"].tensor, free[f"blocks.1.{name}"].tensor)
    assert torch.equal(rec.logits.tensor, free.logits.tensor) == (not skips.any())


def test_later_blocks_see_the_carried_state(model):
    """Skipping the first block at one row equals putting that row's embedding in the place of its output."""
    where = Where(examples=0, positions=2)
    rec = model.run(RAGGED, read=["embed", "blocks.0.resid_post"], edits=[SkipBlock("blocks.0", where=where)])
    other = model.run(RAGGED, read=["blocks.0.resid_post"], edits=[Set("blocks.0.resid_post", rec["embed"].tensor[2], where=where)])
    assert torch.equal(rec.logits.tensor, other.logits.tensor)


def test_patches_skip_and_the_class_token_does_not():
    vit = act.wrap(*testing.tiny("vit"), certify=False)
    rec = vit.run(testing.images(), read=ENDS[:2] + ENDS[3:4], edits=[SkipBlock("blocks.1", where=Where(kinds="patch"))])
    same = (rec["blocks.1.resid_post"].tensor == rec["blocks.1.resid_pre"].tensor).all(1)
    assert same.tolist() == (rec.rows[""]["kind"] == "patch").tolist()


def test_skips_and_other_edits_apply_in_list_order(model):
    skip, add = SkipBlock("blocks.1", where=Where(examples=0)), Add("blocks.1.resid_post", VECTOR)
    pre = model.run(RAGGED, read=ENDS[:1])["blocks.1.resid_pre"].tensor[:4]
    for edits, wanted in (([skip, add], pre + VECTOR), ([add, skip], pre), ([skip, SkipBlock("blocks.1", where=Where(examples=1))], pre)):
        assert torch.equal(model.run(RAGGED, read=ENDS[3:4], edits=edits)["blocks.1.resid_post"].tensor[:4], wanted)


def test_a_gradient_passes_a_skipped_block_unchanged(model):
    where = Where(positions=(0, 1, 2, 3, 4))
    rec = model.run(
        IDS, read=ENDS[:1] + ENDS[3:4], metrics=logit_difference([1, 1], [2, 2]), grad=True, edits=[SkipBlock("blocks.1", where=where)]
    )
    gradient = rec.backward()
    assert torch.equal(gradient["blocks.1.resid_pre"].tensor, gradient["blocks.1.resid_post"].tensor)


@pytest.mark.parametrize("chosen", ["heads", "features", "keys"])
def test_parts_of_a_row_cannot_skip(model, chosen):
    with pytest.raises(InputError, match=rf"passes blocks.1 whole or not at all; Where\({chosen}=…\) cannot choose parts"):
        model.run(IDS, edits=[SkipBlock("blocks.1", where=Where(**{chosen: 0}))])


def test_phases_are_refused_where_rows_have_none(model):
    with pytest.raises(InputError, match="chooses rows of generate"):
        model.run(IDS, edits=[SkipBlock("blocks.1", where=Where(phases="response"))])


def test_detach_blocks_the_gradient(model):
    metric = logit_difference([1, 1], [2, 2])
    free = model.run(IDS, read="embed", metrics=metric, grad=True).backward()["embed"].tensor
    cut = model.run(IDS, read="embed", metrics=metric, grad=True, edits=[Detach("blocks.1.resid_post")]).backward()["embed"].tensor
    assert free.abs().sum() > 0 and (cut == 0).all()


def test_gradient_flows_through_an_edit(model):
    vector = torch.zeros(32, requires_grad=True)
    rec = model.run(IDS, metrics=logit_difference([1, 1], [2, 2]), grad=True, edits=[Add(SITE, vector)])
    rec.metric["logit_difference"].sum().backward()
    assert vector.grad is not None and vector.grad.abs().sum() > 0
    model.torch_module.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["blocks.0.attn.head_out", "logits"])
def test_derived_sites_are_read_only(model, name):
    with pytest.raises(InputError, match="is derived and can only be read"):
        model.run(IDS, edits=[Zero(name)])


def test_edits_are_data():
    edit = Add(SITE, VECTOR, 2.0, where=Where(positions=-1))
    assert edit.to_json()["edit"] == "Add" and edit.to_json()["where"]["positions"] == (-1,)
    assert edit.hash == Add(SITE, VECTOR.clone(), 2.0, where=Where(positions=-1)).hash != Add(SITE, VECTOR, 3.0).hash
    with pytest.raises(InputError, match="No row kind called 'word'"):
        Where(kinds="word")


def test_wrong_width_is_refused(model):
    with pytest.raises(InputError, match="The edit's values have 5 features in their last axis; the site has 32"):
        model.run(IDS, edits=[Add(SITE, torch.ones(5))])
