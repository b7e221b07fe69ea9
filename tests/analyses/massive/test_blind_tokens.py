"""blind_tokens: layers and tokens by hand, a planted token, the biased pass and the contrast against plain forwards."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.analyses.massive._blind_tokens import chosen_layers, is_blind
from activarium.edits import Add, Where
from activarium.errors import InputError, UnknownName

from .planted_llava import BLOCKS, TEXTS, inputs, llava

blind_tokens = act.analyses.blind_tokens
IMAGE_ROWS = {0: range(1, 17), 1: range(2, 18)}
PLANTED = {0: 5, 1: 12}


def planted():
    """Every head of every block looks far more at one image row."""
    return [
        Add(f"text.blocks.{i}.attn.scores", torch.tensor(4.0), where=Where(examples=(e,), keys=(p,)))
        for i in range(BLOCKS)
        for e, p in PLANTED.items()
    ]


@pytest.fixture(scope="module")
def report():
    with llava().edited(planted()):
        return blind_tokens(llava(), inputs(), image=testing.images(1)[0], example=1)


def test_the_fewest_layers_that_reach_the_share():
    attention = np.array([1.0, 4.0, 2.0, 1.0])
    assert chosen_layers(attention, 0.5).tolist() == [1]  # exactly half
    assert chosen_layers(attention, 0.51).tolist() == [1, 2]
    assert sorted(chosen_layers(attention, 1.0).tolist()) == [0, 1, 2, 3]


def test_blind_is_mean_plus_spread_of_the_unbiased_deviation():
    attention = np.array([1.0, 1.0, 1.0, 5.0])  # mean 2, unbiased deviation 2
    assert is_blind(attention, 1.0).tolist() == [False, False, False, True]
    assert is_blind(attention, 1.5).tolist() == [False, False, False, True]  # 2 + 1.5 · 2 = 5; with the biased one the cut is lower
    assert not is_blind(attention, 1.51).any()


def test_the_planted_tokens_and_no_other(report):
    tokens = report["tokens"].columns
    assert dict(zip(tokens["example"].tolist(), tokens["position"].tolist(), strict=True)) == PLANTED
    assert len(report["tokens"].names) == 2
    y, x = np.unravel_index(report["attention"].values.argmax(), (4, 4))
    assert 2 + 4 * y + x == PLANTED[1]
    assert report["overlay"].values.shape == (1, 4, 4)


def test_attention_and_contrast_against_plain_forwards(report):
    model = llava()
    with model.edited(planted()):
        found = model.run(inputs(), read=["text.blocks.*.attn.pattern", "logits"])
        biased = []
        for e, rows in IMAGE_ROWS.items():
            others = tuple(p for p in rows if p != PLANTED[e])
            edit = act.edits.Zero("text.embed", where=Where(examples=(0,), positions=others))
            one = {"text": TEXTS[e : e + 1], "pixel_values": inputs()["pixel_values"][e : e + 1]}
            moved = [Add(p.site, p.vector, where=Where(examples=(0,), keys=p.where.keys)) for p in planted() if p.where.examples == (e,)]
            with act.wrap(model.torch_module, certify=False).edited(moved) as alone:
                biased.append(alone.run(one, read="logits", edits=[edit])["logits"].tensor[-1].double())
    share = []
    for i in range(BLOCKS):
        pattern = [found[f"text.blocks.{i}.attn.pattern"].example(e).tensor[:, -1, list(rows)] for e, rows in IMAGE_ROWS.items()]
        share.append([float(p.double().mean(0).sum()) for p in pattern])
    wanted = 100 * np.array(share) / np.sum(share, axis=0)
    assert report["layers"].curves["attention on the image"] == pytest.approx(wanted.mean(1), rel=1e-4)
    table = report["answers"]
    for name, answer, kl in zip(table.names, table.columns["contrasted answer"], table.values, strict=True):
        e = int(name.split()[1])
        plain = found["logits"].example(e).tensor[-1].double()
        logits = (2 * plain - biased[e]).masked_fill(plain.softmax(0) < 0.1 * plain.softmax(0).max(), -torch.inf)
        assert str(int(logits.argmax())) == answer
        probability = logits.softmax(0)
        inside = probability > 0
        assert kl == pytest.approx(
            float((probability[inside] * (probability[inside].log() - plain.log_softmax(0)[inside])).sum()), abs=1e-3
        )


def test_each_image_has_its_own_mean_and_spread():
    """An image whose attention is a hundred times as strong takes nothing from the other's count (a pooled spread would)."""
    model = llava()
    alone = [blind_tokens(model, {"text": TEXTS[e : e + 1], "pixel_values": inputs()["pixel_values"][e : e + 1]}) for e in (0, 1)]
    together = blind_tokens(model, inputs())
    both = {(int(e), int(p)) for e, p in zip(together["tokens"].columns["example"], together["tokens"].columns["position"], strict=True)}
    assert both == {(e, int(p)) for e in (0, 1) for p in alone[e]["tokens"].columns["position"]}


def test_nothing_subtracted_changes_no_answer():
    report = blind_tokens(llava(), inputs(), alpha=0.0, beta=0.0)
    assert report["answers"].values.tolist() == [0.0, 0.0]
    assert report["sweep"].curves["changed answers"][0] == 0


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(InputError, match="gamma=0 is no share of the attention"):
        blind_tokens(llava(), inputs(), gamma=0)
    with pytest.raises(InputError, match="alpha=-1, beta=0.1"):
        blind_tokens(llava(), inputs(), alpha=-1)
    with pytest.raises(InputError, match="llava was given no image"):
        blind_tokens(llava(), {"text": [[5, 6]]})
    with pytest.raises(UnknownName, match="No example called '9'"):
        blind_tokens(llava(), inputs(), example=9)
