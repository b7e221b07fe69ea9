"""block_removal: sets against models that really lack the blocks, choices against all others, caches, refusals."""

from itertools import combinations

import numpy as np
import pytest
import torch

import activarium as act
from activarium.edits import SkipBlock
from activarium.errors import InputError, UnknownName, UnknownSite

block_removal = act.analyses.block_removal
TEXTS = act.testing.texts()
ENDS = ["blocks.*.resid_pre", "blocks.*.resid_post"]


def tiny(family: str = "llama", layers: int = 4, silent: tuple[int, ...] = ()):
    network, tokenizer = act.testing.tiny(family, num_hidden_layers=layers)
    with torch.no_grad():
        for i in silent:
            network.model.layers[i].self_attn.o_proj.weight.zero_()
            network.model.layers[i].mlp.down_proj.weight.zero_()
    return act.wrap(network, tokenizer, certify=False)


@pytest.fixture(scope="module")
def llama():
    return tiny()


@pytest.fixture(scope="module")
def report(llama):
    return block_removal(llama, TEXTS, most=3, draws=6)


def costs(report) -> dict[tuple[int, ...], float]:
    names = [tuple(int(b.rpartition(".")[2]) for b in name.split(", ")) for name in report["sets"].names]
    return dict(zip(names, report["sets"].values, strict=True))


def test_a_removed_set_costs_what_a_model_without_those_blocks_does():
    network, tokenizer = act.testing.tiny("llama", num_hidden_layers=4)
    text = TEXTS[3:]
    found = block_removal(act.wrap(network, tokenizer, certify=False), text, ["blocks.1", "blocks.3"], most=1, draws=1)
    tokens = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        full = network(**tokens, labels=tokens["input_ids"], use_cache=False)
        network.model.layers = torch.nn.ModuleList([network.model.layers[i] for i in (0, 2)])
        network.config.num_hidden_layers = 2
        short = network(**tokens, labels=tokens["input_ids"], use_cache=False)
    a, b = (o.logits.double().log_softmax(-1) for o in (full, short))
    assert costs(found)[1, 3] == pytest.approx((a.exp() * (a - b)).sum(-1).mean().item(), rel=1e-4)
    at = found["sets"].names.index("blocks.1, blocks.3")
    assert found["sets"].columns["rise of loss"][at] == pytest.approx((short.loss - full.loss).item(), abs=1e-5)
    assert found["sets"].columns["chosen by"][at] == "given"


def test_with_one_block_it_is_block_influence(llama, report):
    single = act.analyses.block_influence(llama.run(TEXTS, read=ENDS), llama, TEXTS)
    kl = single["removal"].curves["KL"]
    mine = costs(report)
    assert [mine[(i,)] for i in range(4)] == pytest.approx(kl.tolist())
    least = np.argsort(single["influence"].curves["all rows"])
    for n in (1, 2, 3):
        assert report["KL"].curves["least influence"][n - 1] == pytest.approx(mine[tuple(sorted(least[:n].tolist()))])


def test_one_by_one_takes_the_cheapest_next_block(report):
    """All sets of four blocks up to three were measured, so every choice can be checked."""
    mine, gone = costs(report), ()
    assert set(mine) == {c for n in (1, 2, 3) for c in combinations(range(4), n)}
    for n in (1, 2, 3):
        gone = min((tuple(sorted((*gone, i))) for i in range(4) if i not in gone), key=lambda one: mine[one])
        assert report["KL"].curves["one by one"][n - 1] == pytest.approx(mine[gone])


def test_the_flattest_span_is_that_of_the_angles(llama, report):
    angles = act.analyses.block_influence(llama.run(TEXTS, read=ENDS))["angles"].values
    for n in (1, 2, 3):
        start = int(np.nanargmin(angles[:, n - 1]))
        assert report["KL"].curves["flattest span"][n - 1] == pytest.approx(costs(report)[tuple(range(start, start + n))])


def test_random_is_the_mean_over_sets(report):
    mine = costs(report)
    for n in (1, 2, 3):
        every = [mine[c] for c in combinations(range(4), n)]
        assert report["KL"].curves["random"][n - 1] == pytest.approx(np.mean(every))
        low, high = report["KL"].bands["random"][:, n - 1]
        assert low < np.mean(every) < high


def test_blocks_that_write_nothing_go_first_and_cost_nothing():
    found = block_removal(tiny(silent=(1, 2)), TEXTS, most=3, draws=3)
    for way in ("least influence", "flattest span", "one by one"):
        assert found["KL"].curves[way][:2].tolist() == [0.0, 0.0], way
        assert found["KL"].curves[way][2] > 1e-3
    assert found["agreement"].curves["one by one"][:2].tolist() == [1.0, 1.0]
    assert found["KL"].curves["random"][1] > 1e-3
    assert {found["sets"].names[0], found["sets"].names[1], found["sets"].names[2]} >= {"blocks.1, blocks.2"}


@pytest.mark.parametrize("gone", [["blocks.0"], ["blocks.1", "blocks.2"], ["blocks.0", "blocks.3"]])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_model_without_blocks_writes_with_a_cache_what_it_says_in_one_forward(family, gone):
    values = {"n_layer" if family == "gpt2" else "num_hidden_layers": 4}
    model = act.wrap(*act.testing.tiny(family, **values), certify=False)
    edits = [SkipBlock(b) for b in gone]
    made = model.generate([[20, 21, 22, 23, 24], [30, 31]], max_new_tokens=6, read="logits", edits=edits)
    without = model.run(made.inputs, edits=edits).logits.tensor
    assert torch.allclose(made.recording.logits.tensor, without, atol=1e-4)
    assert not torch.allclose(model.run(made.inputs).logits.tensor, without, atol=1e-2)


def test_choices_are_made_on_the_calibration(llama):
    """What is chosen does not depend on what it is measured on."""
    other = ["who ?", "the old king of France likes the red ball"]
    found = block_removal(llama, TEXTS, most=2, calibration=other, draws=6)
    elsewhere = block_removal(llama, other, most=2, draws=6)
    for way in ("least influence", "flattest span", "one by one"):
        chosen = {
            r: {n for n, ways in zip(r["sets"].names, r["sets"].columns["chosen by"], strict=True) if way in ways}
            for r in (found, elsewhere)
        }
        assert chosen[found] == chosen[elsewhere]
    assert found.diagnostics["chosen on"] == "calibration"
    assert elsewhere.diagnostics["chosen on"] == "the inputs themselves"


def test_images_have_right_answers():
    model, images = act.wrap(*act.testing.tiny("vit"), certify=False), act.testing.images(4)
    full = model.run(images).logits.tensor.argmax(1)
    labels = full.clone()
    labels[3] = (full[3] + 1) % 2  # one that the full model does not know
    found = block_removal(model, {"images": images, "label": labels.numpy()}, most=1, draws=2)
    columns = found["sets"].columns
    assert set(columns["right answers of the full model"]) == {0.75}
    for name, right in zip(found["sets"].names, columns["right answers"], strict=True):
        top = model.run(images, edits=[SkipBlock(name)]).logits.tensor.argmax(1)
        assert right == pytest.approx((top == labels).double().mean().item())
    assert found["right"].curves["one by one"][0] in columns["right answers"]


def test_masked_models_and_decoders():
    bert = act.wrap(*act.testing.tiny("bert"), certify=False)
    assert "loss" not in block_removal(bert, TEXTS[:2], most=1, draws=1)
    t5 = act.wrap(*act.testing.tiny("t5"), certify=False)
    found = block_removal(t5, {"encoder": TEXTS[:2], "decoder": ["the cat", "who ?"]}, most=1, draws=1)
    assert all(name.startswith("decoder.blocks.") for name in found["sets"].names)
    assert "no time was measured: decoder.blocks." in found.words[-1] and "time" not in found


def test_the_words_and_the_time(llama):
    found = block_removal(llama, TEXTS[:2], ["blocks.2"], most=1, draws=1)
    best = min((float(c[0]), w) for w, c in found["KL"].curves.items() if w != "random")[0]
    assert f"(KL {best:.3g} nats; random sets" in found.words[0]
    assert found.words[1] == f"the blocks given cost {costs(found)[(2,)]:.3g} nats."
    assert found.words[2].startswith("without blocks.2 a forward takes ")
    assert found["time"].names == ("all blocks", "without blocks.2")


def test_refusals(llama):
    with pytest.raises(UnknownName, match=r"No block called 'blocks.9'.*blocks.0"):
        block_removal(llama, TEXTS, ["blocks.9"])
    with pytest.raises(InputError, match="most=5: the stack that answers has 4 blocks. Remove from 1 to 4"):
        block_removal(llama, TEXTS, most=5)
    with pytest.raises(InputError, match="draws=0: no choice says anything without random sets"):
        block_removal(llama, TEXTS, draws=0)
    with pytest.raises(UnknownSite, match="Layers are skipped in the stack that answers"):
        block_removal(act.wrap(*act.testing.tiny("clip"), certify=False), {"text": TEXTS[:1], "images": act.testing.images(1)})
