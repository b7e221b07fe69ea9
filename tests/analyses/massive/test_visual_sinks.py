"""visual_sinks: redistribution by hand and by law, sinks planted in a small LLaVA, base rates, and "none" where there are none."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.analyses.massive.visual_attention import SinkRule, phi, redistributed, redistribution
from activarium.edits import Replace
from activarium.errors import InputError, UnknownName

from .planted_llava import BLOCKS, DIM, SINKS, TEXTS, WIDTH, inputs, llava, planted

visual_sinks = act.analyses.visual_sinks
KEYS = 12
IMAGE = torch.tensor([False] * 3 + [True] * 7 + [False] * 2)
FOUND = torch.tensor([True] + [False] * 5 + [True] + [False] * 5)  # text sink 0, visual sink 6


def rule(**values) -> SinkRule:
    return SinkRule(**{"dims": (DIM,), "tau": 20.0, "rho": 0.5, "least": 0.2, "remove": 0.6} | values)


@pytest.fixture
def pattern() -> torch.Tensor:
    """Three heads of a causal text of twelve tokens; the second head hardly looks at the image."""
    scores = torch.randn(3, KEYS, KEYS, generator=torch.Generator().manual_seed(0))
    scores[1, :, IMAGE] -= 6
    return scores.masked_fill(torch.ones(KEYS, KEYS).triu(1).bool(), -torch.inf).softmax(-1)


def test_one_row_by_hand():
    row = torch.tensor([[[0.2, 0.1, 0.1, 0.3, 0.2, 0.1]]])  # a text sink, text, then a visual sink and three patches
    image, sinks = torch.tensor([False, False, True, True, True, True]), torch.tensor([True, False, True, False, False, False])
    new = redistributed(row, image, sinks, torch.tensor([True]), rule(remove=0.5))
    # 0.15 moves: 0.1 of the text sink and 0.05 of the visual one, to patches that have 0.3, 0.2 and 0.1.
    assert new[0, 0].tolist() == pytest.approx([0.1, 0.1, 0.05, 0.375, 0.25, 0.125])


def test_rows_sum_to_one_and_all_others_stay_bit_for_bit(pattern):
    asking = ~IMAGE
    new = redistributed(pattern, IMAGE, FOUND, asking, rule())
    changed = (new != pattern).any(-1)
    assert changed[0, -2:].all() and changed[2, -2:].all()
    assert not changed[:, IMAGE].any(), "rows of the image ask nothing"
    assert not changed[1].any(), "a head that looks at the image with less than a fifth is left alone"
    assert not changed[:, :3].any(), "before the image there is nothing to look at"
    assert torch.allclose(new.sum(-1), torch.ones(3, KEYS), atol=1e-6)
    assert torch.equal(new[~changed], pattern[~changed])
    assert (new.triu(1) == 0).all(), "what the mask hides stays hidden"
    assert (new[changed][:, FOUND] < pattern[changed][:, FOUND]).all()
    text = ~IMAGE & ~FOUND
    assert torch.equal(new[..., text], pattern[..., text])


def test_nothing_and_everything_removed(pattern):
    assert torch.equal(redistributed(pattern, IMAGE, FOUND, ~IMAGE, rule(remove=0.0)), pattern)
    new = redistributed(pattern, IMAGE, FOUND, ~IMAGE, rule(remove=1.0))
    changed = (new != pattern).any(-1)
    assert changed.any() and (new[changed][:, FOUND] == 0).all()


def test_image_centric_is_the_papers_own_rule():
    """A share of exactly rho on free patches is enough; the sinks' share below 1 − rho is what that means."""
    row = torch.tensor([[[0.5, 0.125, 0.375]]])  # a text, a visual sink, a patch: 0.75 of the visual attention is free
    image, sinks = torch.tensor([False, True, True]), torch.tensor([False, True, False])
    for rho, changes in ((0.75, True), (0.76, False)):
        new = redistributed(row, image, sinks, torch.tensor([True]), rule(rho=rho))
        assert bool((new != row).any()) is changes
    for least, changes in ((0.5, True), (0.51, False)):
        new = redistributed(row, image, sinks, torch.tensor([True]), rule(least=least))
        assert bool((new != row).any()) is changes


def test_phi_has_a_ceiling():
    values = torch.zeros(3, 64, dtype=torch.float64)
    values[0, 5] = 1800.0
    values[1] = 1.0
    assert phi(values, (5,)).tolist() == pytest.approx([8.0, 1.0, 0.0], abs=1e-6)
    assert phi(values, (4,)).tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
    assert phi(values, ()).tolist() == [0, 0, 0]
    assert phi(torch.full((1, 4), 300.0, dtype=torch.float16), (0,)).item() == pytest.approx(1)


def test_planted_sinks_are_found_and_no_other():
    model = llava()
    with model.edited(planted()):
        report = visual_sinks(model, inputs())
    assert report.diagnostics["dims"] == (DIM,)
    tokens = report["tokens"].columns
    found = set(zip(tokens["block"].tolist(), tokens["example"].tolist(), tokens["position"].tolist(), strict=True))
    assert found == {(b, e, p) for b in range(1, BLOCKS) for e, positions in SINKS.items() for p in positions}
    assert report["sinks"].curves["image rows"].tolist() == pytest.approx([0.0] + [100 / 16] * 4)
    effects = dict(zip(report["effects"].names, report["effects"].values, strict=True))
    assert effects["redistributed"] > 1e-5
    assert report.diagnostics["blocks changed"] == (2, 3)


def test_without_sinks_it_says_none_and_changes_nothing():
    report = visual_sinks(llava(), inputs())
    assert report.words[0].startswith("Sink dimensions: none.")
    assert report["tokens"].names == ()
    assert report["effects"].values == pytest.approx([0, 0, 0], abs=1e-9)


def test_heads_and_attention_by_hand():
    model = llava()
    with model.edited(planted()):
        report = visual_sinks(model, inputs(), rho=0.9)
        rec = model.run(inputs(), read="text.blocks.*.attn.pattern")
    rows = rec.rows["text"].frame()
    centric, queries, on_sinks, visual = 0, 0, 0.0, 0.0
    for e, positions in SINKS.items():
        kinds = rows[rows["example"] == e]["kind"].tolist()
        image = [i for i, k in enumerate(kinds) if k == "image"]
        pattern = rec["text.blocks.3.attn.pattern"].example(e).tensor[2].double()
        for query in range(max(image) + 1, len(kinds)):
            looked = float(pattern[query, image].sum())
            sunk = float(sum(pattern[query, p] for p in positions if p in image))
            queries += 1
            centric += looked >= 0.2 and (looked - sunk) >= 0.9 * looked
            on_sinks, visual = on_sinks + sunk, visual + looked
    assert report["heads"].values[3, 2] == pytest.approx(100 * centric / queries)
    assert report["attention"].values[3, 2] == pytest.approx(100 * on_sinks / visual)


def test_in_the_model_a_block_has_the_redistributed_pattern_and_no_example_mixes_with_another():
    model, name = llava(), "text.blocks.2.attn.pattern"
    change = redistribution("text.", [2], rule(rho=0.2))
    encoded = model.inputs(inputs())
    with model.edited(planted()):
        plain = model.run(encoded, read=name, edits=[Replace(name, torch.clone)])  # the same kernel
        edited = model.run(encoded, read=[name, "logits"], edits=change(encoded))
        for e, positions in SINKS.items():
            was, now = plain[name].example(e).tensor, edited[name].example(e).tensor
            rows = plain.rows["text"].take(plain.rows["text"].span(e))
            image = torch.from_numpy(rows["kind"].astype(str) == "image")
            sinks = torch.zeros(len(image), dtype=torch.bool)
            sinks[list(positions)] = True
            assert torch.equal(now, redistributed(was, image, sinks, ~image, rule(rho=0.2)))
            assert not torch.equal(now, was)
            alone = encoded.select([e])
            one = model.run(alone, read="logits", edits=change(alone))["logits"].tensor
            assert torch.allclose(one, edited["logits"].example(e).tensor, atol=1e-4)


def test_the_first_blocks_and_the_last_one_are_left_alone():
    edits = redistribution("text.", range(2, BLOCKS - 1), rule())(llava().inputs(inputs()))
    assert {e.site.split(".")[2] for e in edits} == {"2", "3"}
    with llava().edited(planted()):
        assert visual_sinks(llava(), inputs(), first=BLOCKS - 1)["effects"].values == pytest.approx([0, 0, 0], abs=1e-12)


def test_base_rates_of_the_background():
    model = llava()
    mask = np.zeros((32, 32), bool)
    mask[8:16, 16:24] = True  # the patch (1, 2): the sink of text 0
    with model.edited(planted()):
        report = visual_sinks(model, inputs(), masks=[mask, mask], example=1, image=testing.images(1)[0])
    background = report["background"].curves
    assert background["visual sinks"][2] == 50
    assert background["all image rows (base rate)"][2] == pytest.approx(100 * 15 / 16)
    assert np.isnan(background["visual sinks"][0])
    assert any("0.53 times the base rate" in w for w in report.words)
    y, x = np.unravel_index(report["phi"].values[2].argmax(), (4, 4))
    assert (int(y), int(x)) == (2, 1)
    assert report["overlay"].image.shape == (32, 32, 3)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch):
    model, data = llava(), inputs(TEXTS * 2)
    with model.edited(planted({0: (0, 7), 3: (0, 11)})):
        whole = visual_sinks(model, data, dims=(DIM,))
        monkeypatch.setattr("activarium.analyses.massive.batches.AT_ONCE", 3)
        monkeypatch.setattr("activarium.analyses.changed_answers.AT_ONCE", 3)
        pieces = visual_sinks(model, data, dims=(DIM,))
    assert (
        whole["tokens"].to_frame()[["block", "example", "position"]].equals(pieces["tokens"].to_frame()[["block", "example", "position"]])
    )
    assert pieces["attention"].values == pytest.approx(whole["attention"].values, rel=1e-3)


def test_what_cannot_be_asked_is_refused():
    model = llava()
    with pytest.raises(InputError, match=f"tau=23 can never be reached: phi is at most √{WIDTH} = 22.6. Pass share="):
        visual_sinks(model, inputs(), tau=23)
    assert visual_sinks(model, inputs(), dims=(1,), share=0.5).diagnostics["tau"] == pytest.approx(16)
    with pytest.raises(InputError, match="remove=1.5 is no share"):
        visual_sinks(model, inputs(), remove=1.5)
    with pytest.raises(InputError, match="dims=\\[600\\] lie outside the 512 dimensions of llava"):
        visual_sinks(model, inputs(), dims=(600,))
    with pytest.raises(InputError, match="llava was given no image: no row has the kind 'image'"):
        visual_sinks(model, {"text": [[5, 6]]})
    with pytest.raises(InputError, match="There are 1 masks for 2 texts"):
        visual_sinks(model, inputs(), masks=[np.zeros((32, 32))])
    with pytest.raises(InputError, match="The mask of example 0 has shape \\(30, 32\\); wanted"):
        visual_sinks(model, inputs(), masks=[np.zeros((30, 32))] * 2)
    with pytest.raises(UnknownName, match="No example called '7'"):
        visual_sinks(model, inputs(), example=7)
    with pytest.raises(InputError, match="has no attention patterns to read"):
        visual_sinks(act.wrap(*testing.tiny("bloom"), certify=False), ["the cat"])
