"""block_influence: planted blocks whose numbers are known, the final norm that hides an identity, removals, refusals."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import activarium as act
from activarium.activations import Activations
from activarium.edits import SkipBlock
from activarium.errors import InputError, NotFinite, UnknownSite
from activarium.recording import Recording

from .stacks_by_hand import chain, table

block_influence = act.analyses.block_influence
ENDS = ["blocks.*.resid_pre", "blocks.*.resid_post"]


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(5, 8, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def curve(report, part: str, name: str = "all rows") -> np.ndarray:
    return report[part].curves[name]


def test_a_quarter_turn_by_hand():
    report = block_influence(chain(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])))
    assert curve(report, "influence") == pytest.approx([1.0])
    assert report["angles"].values == pytest.approx(np.array([[0.5]]))
    assert curve(report, "updates", "relative update") == pytest.approx([13**0.5 / 2])
    assert curve(report, "updates", "along") == pytest.approx([-1.0])
    assert curve(report, "updates", "across") == pytest.approx([1.5])


@pytest.mark.parametrize("scale", [2.0, 3.0, 0.7])
def test_a_block_that_only_rescales_has_no_influence_but_an_update(states, scale):
    report = block_influence(chain(states[0], scale * states[0]))
    assert curve(report, "influence") == pytest.approx([0.0], abs=1e-12)
    assert report["angles"].values == pytest.approx(np.zeros((1, 1)), abs=1e-12)
    assert curve(report, "updates", "relative update") == pytest.approx([abs(scale - 1)])
    assert curve(report, "updates", "along") == pytest.approx([scale - 1])
    assert curve(report, "updates", "across") == pytest.approx([0.0], abs=1e-12)


def test_a_block_that_turns_around(states):
    report = block_influence(chain(states[0], -states[0]))
    assert curve(report, "influence") == pytest.approx([2.0])
    assert report["angles"].values == pytest.approx(np.ones((1, 1)))
    assert curve(report, "updates", "along") == pytest.approx([-2.0])


def test_influence_is_the_plain_formula_averaged_over_rows(states):
    report = block_influence(chain(*states))
    plain = [1 - torch.cosine_similarity(x, y, dim=1).mean().item() for x, y in pairwise(states)]
    assert curve(report, "influence") == pytest.approx(np.array(plain))


def test_identical_rows_give_exactly_nothing_where_arccos_would_be_nan():
    rows = torch.rand(200, 7, generator=torch.Generator().manual_seed(0))
    report = block_influence(chain(rows, rows.clone()))
    assert curve(report, "influence").tolist() == [0.0]
    assert report["angles"].values.tolist() == [[0.0]]


def test_small_changes_in_bfloat16_are_not_lost_in_its_arithmetic():
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    y = x + 0.05 * torch.randn(64, 512, generator=torch.Generator().manual_seed(2))
    true = 1 - torch.cosine_similarity(x.double(), y.double(), dim=1).mean().item()
    found = curve(block_influence(chain(x.bfloat16(), y.bfloat16())), "influence")[0]
    assert found == pytest.approx(true, rel=0.02)


def test_angles_obey_the_triangle_inequality_and_name_the_flattest_span(states):
    states = states.clone()
    states[3] = 5 * states[1]  # two blocks that undo one another
    report = block_influence(chain(*states))
    angles = report["angles"].values
    for start in range(4):
        for more in range(1, 4 - start):
            assert angles[start, more] <= angles[start, :1] + angles[start + 1, more - 1] + 1e-12
    assert angles[1, 1] == pytest.approx(0, abs=1e-12)
    assert "blocks.1 to blocks.2 turns least" in " ".join(report.words)
    assert report["angles"].masks["no_row"].tolist() == np.isnan(angles).tolist()


def test_angles_are_taken_at_the_last_row_of_each_sequence():
    x = torch.tensor([[1.0, 0.0]] * 5)
    y = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    report = block_influence(chain(x, y, rows=table((2, 3))))
    assert report["angles"].per_example.ravel() == pytest.approx([0.0, 1.0])
    assert report["angles"].values == pytest.approx(np.array([[0.5]]))


def test_batches_change_no_bit(states):
    rows = table((3, 4, 1))
    whole, cut = (block_influence(chain(*states, rows=rows, cut=c)) for c in ((), (1, 4, 6)))
    for part in ("influence", "updates"):
        for name in whole[part].curves:
            assert np.array_equal(curve(whole, part, name), curve(cut, part, name))
    assert np.array_equal(whole["angles"].values, cut["angles"].values, equal_nan=True)


def test_first_and_special_rows_are_shown_apart():
    x = torch.tensor([[1.0, 0.0]] * 4)
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    report = block_influence(chain(x, y, rows=table((4,), ["bos", "special", "token", "token"])))
    assert curve(report, "influence") == pytest.approx([0.5])
    assert curve(report, "influence", "without first and special rows") == pytest.approx([1.0])
    assert curve(report, "influence", "bos rows") == pytest.approx([0.0])


@pytest.mark.parametrize("zero", [1, 2])
def test_kinds_are_those_of_each_sequence_and_zero_rows_shift_none(zero):
    x = torch.tensor([[1.0, 0.0]] * 5)
    x[zero] = 0
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    kinds = ["token", "token", "token", "special", "bos"]
    report = block_influence(chain(x, y, rows=table((2, 3), kinds)))
    assert curve(report, "influence", "token rows") == pytest.approx([0.0])
    assert curve(report, "influence", "special rows") == pytest.approx([1.0])
    assert curve(report, "influence", "bos rows") == pytest.approx([2.0])


def test_every_one_of_many_sequences_has_its_angle():
    turns = torch.linspace(0, torch.pi, 600, dtype=torch.float64)
    y = torch.stack([turns.cos(), turns.sin()], 1)
    report = block_influence(chain(torch.tensor([[1.0, 0.0]]).repeat(600, 1), y, rows=table((1,) * 600)))
    assert report["angles"].per_example.ravel() == pytest.approx(turns.numpy() / np.pi, abs=1e-12)


def test_one_massive_dimension_hides_every_turn_until_it_is_left_out(states):
    massive = states.clone()
    massive[:, :, 2] = 1e6
    hidden = block_influence(chain(*massive))
    shown = block_influence(chain(*massive), without=(2,))
    rest = block_influence(chain(*states[:, :, [0, 1, 3, 4, 5]]))
    assert curve(hidden, "influence").max() < 1e-9
    assert curve(shown, "influence") == pytest.approx(curve(rest, "influence"))
    assert shown["angles"].values == pytest.approx(rest["angles"].values, nan_ok=True)


def test_zero_vectors_are_counted_and_left_out():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    report = block_influence(chain(x, y))
    assert curve(report, "influence") == pytest.approx([1.0])
    assert report.diagnostics["zero rows left out"] == {"blocks.0": 1}
    assert "left out as zero vectors: 1 rows at blocks.0." in report.words


def test_the_interval_is_over_sequences():
    x = torch.tensor([[1.0, 0.0]] * 4)
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    low, high = block_influence(chain(x, y, rows=table((2, 2))))["influence"].bands["all rows"][:, 0]
    assert (low, high) == (0.0, 1.0)
    assert np.isnan(block_influence(chain(x, y))["influence"].bands["all rows"]).all()


def silenced(family: str):
    """A tiny model whose last block writes nothing."""
    model, processor = act.testing.tiny(family)
    last = model.model.layers[-1]
    with torch.no_grad():
        last.self_attn.o_proj.weight.zero_()
        last.mlp.down_proj.weight.zero_()
    return model, processor


def test_a_last_block_that_writes_nothing_has_neither_influence_nor_cost_though_hidden_states_say_so():
    network, tokenizer = silenced("llama")
    model, texts = act.wrap(network, tokenizer, certify=False), act.testing.texts()
    report = block_influence(model.run(texts, read=[*ENDS, "blocks.*.resid_mid"]), model, texts)
    assert curve(report, "influence")[-1] == 0
    assert curve(report, "influence")[0] > 0.01
    assert curve(report, "updates", "relative update")[-1] == 0
    assert curve(report, "removal", "KL")[-1] == 0
    assert curve(report, "removal", "rise of loss")[-1] == 0
    assert curve(report, "agreement", "top-1 agreement")[-1] == 1
    assert curve(report, "removal", "KL")[0] > 1e-3
    assert curve(report, "sublayers", "attention")[-1] == curve(report, "sublayers", "mlp")[-1] == 0
    with torch.no_grad():
        states = network(**tokenizer(texts[:1], return_tensors="pt"), output_hidden_states=True).hidden_states
    assert 1 - torch.cosine_similarity(states[-2], states[-1], dim=-1).mean() > 1e-3  # the final norm is in the last one


def test_the_loss_is_the_one_of_transformers_and_removal_that_of_a_model_without_the_block():
    network, tokenizer = act.testing.tiny("llama")
    model, texts = act.wrap(network, tokenizer, certify=False), act.testing.texts()[:1]
    report = block_influence(model.run(texts, read=ENDS), model, texts)
    tokens = tokenizer(texts, return_tensors="pt")
    with torch.no_grad():
        full = network(**tokens, labels=tokens["input_ids"], use_cache=False)
        network.model.layers = network.model.layers[1:]
        network.config.num_hidden_layers -= 1
        short = network(**tokens, labels=tokens["input_ids"], use_cache=False)
    a, b = (o.logits.double().log_softmax(-1) for o in (full, short))
    assert report.diagnostics["loss of the full model"] == pytest.approx(full.loss.item(), rel=1e-5)
    assert curve(report, "removal", "rise of loss")[0] == pytest.approx((short.loss - full.loss).item(), abs=1e-5)
    assert curve(report, "removal", "KL")[0] == pytest.approx((a.exp() * (a - b)).sum(-1).mean().item(), rel=1e-4)
    assert curve(report, "agreement", "top-1 agreement")[0] == pytest.approx((a.argmax(-1) == b.argmax(-1)).double().mean().item())


def test_a_skipped_block_has_no_influence_on_text_or_images():
    for family, data in (("gpt2", act.testing.texts()), ("vit", act.testing.images())):
        model = act.wrap(*act.testing.tiny(family), certify=False)
        recording = model.run(data, read=ENDS, edits=[SkipBlock("blocks.1")])
        change = curve(block_influence(recording), "influence")
        assert change[1] == 0
        assert change[0] > 0


def test_a_capture_gives_what_a_run_gives(tmp_path):
    model, texts = act.wrap(*act.testing.tiny("llama"), certify=False), act.testing.texts()
    live = block_influence(model.run(texts, read=ENDS))
    stored = block_influence(act.capture(model, texts, ENDS, to=tmp_path / "kept.acts", progress=False))
    assert curve(stored, "influence") == pytest.approx(curve(live, "influence"), rel=1e-4)
    assert stored["angles"].per_example == pytest.approx(live["angles"].per_example, rel=1e-4, nan_ok=True)


def test_more_examples_than_one_forward_takes_are_all_counted():
    model, texts = act.wrap(*act.testing.tiny("llama"), certify=False), act.testing.texts()
    recording = model.run(texts, read=ENDS)
    once, often = (block_influence(recording, model, texts * n) for n in (1, 9))
    assert often.diagnostics["removal sequences"] == 36
    assert curve(often, "removal", "KL") == pytest.approx(curve(once, "removal", "KL"), rel=1e-4)
    assert curve(often, "removal", "rise of loss") == pytest.approx(curve(once, "removal", "rise of loss"), rel=1e-3)


def test_a_model_that_sees_later_rows_has_no_rise_of_loss():
    model, texts = act.wrap(*act.testing.tiny("bert"), certify=False), act.testing.texts()
    report = block_influence(model.run(texts, read=ENDS), model, texts)
    assert list(report["removal"].curves) == ["KL"]


def test_padding_beside_a_longer_text_changes_only_rounding():
    model = act.wrap(*act.testing.tiny("llama"), certify=False)
    texts = act.testing.texts()
    together = block_influence(model.run(texts, read=ENDS), model, texts)
    alone = [block_influence(model.run([t], read=ENDS), model, [t]) for t in texts]
    angles = np.concatenate([a["angles"].per_example for a in alone])
    assert together["angles"].per_example == pytest.approx(angles, abs=1e-5, nan_ok=True)
    rows = np.array([a.diagnostics["rows"] for a in alone])
    for part, name in (("influence", "all rows"), ("updates", "across"), ("removal", "KL")):
        mean = np.average([curve(a, part, name) for a in alone], axis=0, weights=rows)
        assert curve(together, part, name) == pytest.approx(mean, rel=1e-4)


def test_images_answer_at_the_cls_row():
    model = act.wrap(*act.testing.tiny("vit"), certify=False)
    recording = model.run(act.testing.images(), read=ENDS)
    report = block_influence(recording, model, act.testing.images())
    assert report.diagnostics["angles at"] == "the cls row of each image"
    assert {"cls rows", "patch rows"} <= set(report["influence"].curves)
    assert list(report["removal"].curves) == ["KL"]
    x, y = (recording[f"blocks.0.{end}"].example(1).tensor[0].double() for end in ("resid_pre", "resid_post"))
    angle = torch.arccos(torch.cosine_similarity(x, y, dim=0)).item() / np.pi
    assert report["angles"].per_example[1, 0, 0] == pytest.approx(angle)
    whole = recording.logits.tensor.double().log_softmax(1)
    rest = model.run(act.testing.images(), read="logits", edits=[SkipBlock("blocks.0")]).logits.tensor.double().log_softmax(1)
    kl = (whole.exp() * (whole - rest)).sum(1).mean().item()
    assert report["removal"].curves["KL"][0] == pytest.approx(kl, rel=1e-4)


def test_patches_without_a_cls_row_share_the_angle():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    report = block_influence(chain(x, y, rows=table((2,), ["patch", "patch"])))
    assert report["angles"].values == pytest.approx(np.array([[0.25]]))
    assert report.diagnostics["angles at"] == "the patches of each image"
    assert curve(report, "influence", "without first and special rows") == pytest.approx([0.5])


def test_blocks_side_by_side_show_both_writes_against_their_input():
    model = act.wrap(*act.testing.tiny("gpt_neox"), certify=False)
    recording = model.run(act.testing.texts(), read=[*ENDS, "blocks.*.attn.out", "blocks.*.mlp.out"])
    report = block_influence(recording)
    x, write = recording["blocks.0.resid_pre"].tensor.double(), recording["blocks.0.mlp.out"].tensor.double()
    expected = 1 - torch.cosine_similarity(x, x + write, dim=1).mean().item()
    assert curve(report, "sublayers", "mlp alone")[0] == pytest.approx(expected)


def test_stacks_stand_apart_and_cross_attention_is_a_sublayer():
    model = act.wrap(*act.testing.tiny("t5"), certify=False)
    data = {"encoder": act.testing.texts()[:2], "decoder": ["the cat", "who"]}
    read = [f"{s}.blocks.*.{e}" for s in ("encoder", "decoder") for e in ("resid_pre", "resid_mid", "resid_post")]
    report = block_influence(model.run(data, read=[*read, "decoder.blocks.*.resid_cross"]), model, data)
    assert list(report["decoder sublayers"].curves) == ["attention", "cross-attention", "mlp"]
    assert list(report["encoder sublayers"].curves) == ["attention", "mlp"]
    assert (curve(report, "encoder removal", "KL") > 0).all()


def direct_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """From the definition, by the Gram matrices over rows that one never wants to form."""
    x, y = x - x.mean(0), y - y.mean(0)
    a, b = x @ x.T, y @ y.T
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_similarity_is_linear_cka_over_rows(states):
    rows = table((3, 5))
    report = block_influence(chain(*states, rows=rows))
    assert curve(report, "similarity", "linear CKA") == pytest.approx([direct_cka(x, y) for x, y in pairwise(states)])
    assert report["similarity"].diagnostics["over"] == "all features"
    cut = block_influence(chain(*states, rows=rows, cut=(2, 5)))
    assert np.array_equal(curve(cut, "similarity", "linear CKA"), curve(report, "similarity", "linear CKA"))
    assert np.array_equal(cut["cosines"].curves["blocks.2"], report["cosines"].curves["blocks.2"])


def test_a_rotation_is_an_influence_but_no_loss_of_similarity(states):
    turn = torch.linalg.qr(states[1, :6]).Q
    report = block_influence(chain(states[0], states[0] @ turn, states[0] @ turn * 7))
    assert curve(report, "similarity", "linear CKA") == pytest.approx([1.0, 1.0])
    assert curve(report, "influence")[0] > 0.1
    assert np.isnan(curve(block_influence(chain(torch.ones(4, 2), torch.ones(4, 2))), "similarity", "linear CKA")).all()


def test_wide_sites_are_compared_along_random_directions():
    random = torch.Generator().manual_seed(4)
    x, noise = (torch.randn(60, 600, generator=random, dtype=torch.float64) for _ in range(2))
    report = block_influence(chain(x, x, x + noise))
    assert curve(report, "similarity", "linear CKA") == pytest.approx([1.0, direct_cka(x, x + noise)], abs=0.1)
    assert curve(report, "similarity", "linear CKA")[0] == pytest.approx(1.0, abs=1e-12)
    assert report["similarity"].diagnostics["over"] == "256 random directions of 600 features"


def test_the_histogram_of_cosines_by_hand():
    x = torch.tensor([[1.0, 0.0]] * 4)
    y = torch.tensor([[2.0, 0.0], [5.0, 12.0], [-1.0, 0.0], [5.0, -12.0]])
    histogram = block_influence(chain(x, y))["cosines"]
    filled = {round(float(c), 4): float(s) for c, s in zip(histogram.x, histogram.curves["blocks.0"], strict=True) if s}
    assert filled == {-0.9875: 0.25, 0.3875: 0.5, 0.9875: 0.25}


def test_refusals(states):
    recording = chain(*states)
    with pytest.raises(UnknownSite, match="has no site 'blocks.*.resid_post'"):
        block_influence(Recording({"embed": recording["embed"]}, recording.rows))
    with pytest.raises(InputError, match="What blocks.0 was given is not in this recording: neither blocks.0.resid_pre nor embed"):
        block_influence(Recording({n: recording[n] for n in recording if n != "embed"}, recording.rows))
    with pytest.raises(InputError, match="needs both model= and inputs="):
        block_influence(recording, inputs=["a"])
    with pytest.raises(InputError, match="has features 0 to 5; without= names 6"):
        block_influence(recording, without=(6,))
    states[1, 2, 0] = torch.nan
    with pytest.raises(NotFinite, match="No angle can be taken from it"):
        block_influence(chain(*states))


def test_an_answer_of_another_shape_is_refused(states):
    answer = Activations(torch.ones(2, 2), "example feature", site="logits")
    encoded = type("Encoded", (), {"__len__": lambda self: 2, "select": lambda self, index: None})()
    model = SimpleNamespace(name="scores", inputs=lambda data: encoded, run=lambda *a, **k: {"logits": answer})
    with pytest.raises(InputError, match="scores answers with axes 'example feature'"):
        block_influence(chain(*states), model, ["a", "b"])
