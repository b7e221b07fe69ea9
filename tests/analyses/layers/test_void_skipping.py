"""void_skipping: each of the four by hand and against other ways to do the same, the random layers beside them, refusals."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.changed_answers import changed_answers
from activarium.analyses.layers.skip_plans import Static
from activarium.analyses.layers.skipping import Course, as_given, as_many_at_random, by_progress, until_all_rest
from activarium.edits import SkipBlock, Where
from activarium.errors import InputError, UnknownSite

from ..massive import planted_massive
from .stacks_by_hand import of_lengths

void_skipping = act.analyses.void_skipping
LENGTHS = (1.0, 3.0, 3.5, 6.0, 6.2, 5.0)
ENDS = ["blocks.*.resid_pre", "blocks.*.resid_post"]
TEXTS = act.testing.texts()


def tiny(family: str, layers: int = 4):
    return act.wrap(*act.testing.tiny(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": layers}), certify=False)


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def walked(course: Course, first: torch.Tensor, blocks) -> list[torch.Tensor]:
    """States after each block of a stack, as the edits leave them."""
    enter, *leave = course.edits
    states = [enter.change(first)]
    for block, edit in zip(blocks, leave, strict=True):
        states.append(edit.change(block(states[-1])))
    return states


def scalings(*lengths: float):
    return [torch.tensor(b / a).mul for a, b in pairwise(lengths)]


@pytest.mark.parametrize(("alpha", "read"), [(0.0, 6.2), (0.05, 6.2), (0.2, 6.0), (0.8, 6.0), (1.0, 6.0)])
def test_readout_by_hand(alpha, read):
    """The stack that only rescales: what is read out is the state after its last active layer, at 6.2 or at 6.0."""
    course = Course("", 5, by_progress(alpha), bypass=False)
    states = walked(course, of_lengths(1.0)[0], scalings(*LENGTHS))
    assert [float(s.norm()) for s in states[:-1]] == pytest.approx(LENGTHS[:-1])
    assert float(states[-1].norm()) == pytest.approx(read)


def test_bypass_by_hand():
    course = Course("", 5, by_progress(0.8), bypass=True)
    states = walked(course, of_lengths(1.0)[0], scalings(*LENGTHS))
    assert [bool(v) for v in course.verdicts] == [True, True, True, False, False]
    assert [float(s.norm()) for s in states] == pytest.approx([1, 3, 3.5, 6, 6, 6])


def test_nothing_active_reads_the_embedding():
    course = Course("", 3, as_given(torch.zeros(2, 3, dtype=torch.bool)), bypass=False)
    first = torch.randn(2, 4)
    assert torch.equal(walked(course, first, scalings(1, 2, 3, 4))[-1], first)


def test_readout_is_the_models_own_readout_of_the_last_active_state(llama):
    clean = llama.run(TEXTS, read=ENDS)
    states = torch.stack([clean["blocks.0.resid_pre"].tensor, *(clean[f"blocks.{i}.resid_post"].tensor for i in range(4))])
    course = Course("", 4, by_progress(0.8), bypass=False)
    after = llama.run(TEXTS, read=ENDS, edits=course.edits)
    verdict = torch.stack(course.verdicts, 1)
    last = (verdict * torch.arange(1, 5)).amax(1)  # 0 is the embedding
    assert len(set(last.tolist())) > 1
    wanted = states[last, torch.arange(len(last))]
    assert torch.equal(after["blocks.3.resid_post"].tensor, wanted)
    assert torch.allclose(after.logits.tensor, llama.readout(wanted), atol=1e-5)
    for i in range(3):  # every block ran on the unmodified stream
        assert torch.equal(after[f"blocks.{i}.resid_post"].tensor, clean[f"blocks.{i}.resid_post"].tensor)
    report = act.analyses.layer_voids(llama.run(TEXTS, read=ENDS))
    assert verdict.double().mean(0).tolist() == pytest.approx(report["rate"].curves["all rows"].tolist())


def test_bypass_judges_what_each_layer_makes_of_the_carried_state(llama):
    course = Course("", 4, by_progress(0.5), bypass=True)
    rec = llama.run(TEXTS, read=[*ENDS, "blocks.*.resid_mid", "blocks.*.mlp.out"], edits=course.edits)
    seen, skipped = [], []
    for i in range(4):
        pre, post = rec[f"blocks.{i}.resid_pre"].tensor, rec[f"blocks.{i}.resid_post"].tensor
        made = rec[f"blocks.{i}.resid_mid"].tensor + rec[f"blocks.{i}.mlp.out"].tensor
        seen.append(made.double().norm(dim=1) - pre.double().norm(dim=1))
        before = torch.stack(seen[:-1], 1) if i else torch.zeros(len(pre), 1)
        active = seen[-1] >= 0.5 * (before.amax(1) - before.amin(1))
        assert torch.equal(course.verdicts[i], active)
        assert torch.allclose(post, torch.where(active[:, None], made, pre), atol=1e-5)
        skipped.append((post == pre).all(1))
    assert 0 < torch.stack(skipped).double().mean() < 1


def test_bypass_is_skipping_those_blocks_at_those_rows(llama):
    course = Course("", 4, by_progress(0.8), bypass=True)
    ours = llama.run(TEXTS, edits=course.edits)
    rows = ours.rows[""]
    edits = [
        SkipBlock(f"blocks.{i}", where=Where(examples=int(e), positions=int(p)))
        for i, verdict in enumerate(course.verdicts)
        for e, p, active in zip(rows["example"], rows["position"], verdict.tolist(), strict=True)
        if not active
    ]
    assert torch.equal(llama.run(TEXTS, edits=edits).logits.tensor, ours.logits.tensor)


@pytest.mark.parametrize("bypass", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_writing_with_a_cache_equals_one_forward(family, bypass):
    model = tiny(family)
    edits = Course("", 4, by_progress(0.8), bypass=bypass).edits
    prompts = [[20, 21, 22, 23, 24], [30, 31], [40, 41, 42]]
    made = model.generate(prompts, max_new_tokens=6, read=[*ENDS, "logits"], edits=edits)
    again = model.run(made.inputs, read=[*ENDS, "logits"], edits=edits)
    for name in ("blocks.3.resid_post", "logits"):
        assert torch.allclose(made.recording[name].tensor, again[name].tensor, atol=1e-4), name
    plain = model.run(made.inputs, read=ENDS)
    assert not torch.allclose(plain["blocks.3.resid_post"].tensor, again["blocks.3.resid_post"].tensor, atol=1e-2)


@pytest.mark.parametrize("mode", ["readout", "bypass", "halt"])
@pytest.mark.parametrize("family", ["llama", "vit"])
def test_companions_and_padding_change_only_rounding(family, mode):
    model, data = tiny(family), TEXTS if family == "llama" else act.testing.images(3)
    together = void_skipping(model, data, mode, draws=0)
    alone = [void_skipping(model, [one], mode, draws=0) for one in data]
    rows = np.array([len(model.run([one], read="blocks.0.resid_post")["blocks.0.resid_post"]) for one in data])
    share = np.average([a["active"].curves["active"] for a in alone], axis=0, weights=rows)
    assert together["active"].curves["active"] == pytest.approx(share)
    answers = rows if family == "llama" else np.ones(len(rows))
    assert together["cost"].values[0] == pytest.approx(np.average([a["cost"].values[0] for a in alone], weights=answers), rel=1e-3)


def test_more_examples_than_one_forward_takes(llama):
    once, often = (void_skipping(llama, TEXTS * n, "bypass", draws=1) for n in (1, 9))
    assert often["cost"].values == pytest.approx(once["cost"].values, rel=0.5)
    name = "bypass at alpha 0.8"
    costs = [dict(zip(r["cost"].names, r["cost"].values, strict=True))[name] for r in (once, often)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-4)
    assert often["active"].curves["active"] == pytest.approx(once["active"].curves["active"])


def test_halt_by_hand():
    """Two rows of one example and one of another; only where all rest does the example stop, after that layer."""
    owner = torch.tensor([0, 0, 1])
    course = Course("", 4, until_all_rest(0.5, owner), bypass=True)
    lengths = torch.tensor([[1.0, 1.0, 1.0], [5.0, 2.0, 2.0], [6.0, 5.0, 2.4], [6.5, 6.0, 9.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    now = iter(lengths[1:])
    # Progress of example 0: (4, 1), (1, 3), (.5, 1), …: half its range is 2 from the second layer on, so it stops after the third.
    # Progress of example 1: 1, .4: half its range is .5, so it stops after the second.
    states = walked(course, lengths[0][:, None], [lambda _: next(now)[:, None]] * 4)
    assert torch.stack(course.verdicts, 1).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert [s[:, 0].tolist() for s in states[2:]] == [[6.0, 5.0, 2.4], [6.5, 6.0, 2.4], [6.5, 6.0, 2.4]]


def test_halt_never_stops_at_alpha_zero(llama):
    report = void_skipping(llama, TEXTS, "halt", alpha=0, draws=0)
    assert report["cost"].values.tolist() == [0.0]
    assert report["active"].curves["active"].tolist() == [1.0] * 4


def test_random_layers_are_as_many_in_each_row():
    verdicts = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    drawn = as_many_at_random(verdicts, np.random.default_rng(0))
    assert drawn.sum(1).tolist() == verdicts.sum(1).tolist()
    assert not torch.equal(drawn, verdicts)
    owner = torch.arange(50) // 10
    same = (verdicts[::10])[owner]
    drawn = as_many_at_random(same, np.random.default_rng(0), owner)
    assert drawn.sum(1).tolist() == same.sum(1).tolist()
    assert torch.equal(drawn, drawn[::10][owner])


def test_where_all_layers_are_active_random_ones_are_the_same(llama):
    report = void_skipping(llama, TEXTS, "halt", alpha=0, draws=2)
    assert report["cost"].values.tolist() == [0.0] * 5
    assert "there is no telling them apart (difference 0 to 0)" in report.words[1]


def test_the_random_layers_stand_beside_and_their_difference_has_an_interval(llama):
    report = void_skipping(llama, TEXTS, "bypass", draws=3)
    kinds = ("random layers", "random layers after the first")
    assert set(report["cost"].names) == {"bypass at alpha 0.8", *(f"{k} {i}" for k in kinds for i in (1, 2, 3))}
    assert (np.diff(report["cost"].values) >= 0).all()
    costs = dict(zip(report["cost"].names, report["cost"].values, strict=True))
    for kind in kinds:
        apart = costs["bypass at alpha 0.8"] - np.mean([costs[f"{kind} {i}"] for i in (1, 2, 3)])
        assert report.diagnostics[f"KL above {kind}"] == pytest.approx(apart)
        low, high = report.diagnostics[f"interval above {kind}"]
        assert low <= apart <= high
    assert np.unique(report["cost"].values).size == 7
    again = void_skipping(llama, TEXTS, "bypass", draws=3)
    assert again["cost"].values.tolist() == report["cost"].values.tolist()


def test_static_leaves_out_the_layers_that_are_seldom_active(llama):
    rates = act.analyses.layer_voids(llama.run(TEXTS, read=ENDS))["rate"].curves["all rows"]
    cut = float(np.sort(rates)[:2].mean())
    out = [f"blocks.{i}" for i in np.flatnonzero(rates < cut)]
    assert len(out) == 1
    report = void_skipping(llama, TEXTS, "static", cut=cut)
    assert report.diagnostics["rate on the calibration"] == pytest.approx(rates.tolist())
    assert list(report.diagnostics["left out"]) == out
    assert report["active"].curves["active"].tolist() == (rates >= cut).astype(float).tolist()
    wanted = changed_answers(llama, TEXTS, {b: [SkipBlock(b)] for b in (f"blocks.{i}" for i in range(4))})
    every = [v for n, v in zip(report["cost"].names, report["cost"].values, strict=True) if "after the first" not in n]
    assert sorted(every) == pytest.approx(sorted(a.mean("kl") for a in wanted.values()))
    costs = dict(zip(report["cost"].names, report["cost"].values, strict=True))
    assert costs[f"static without {out[0]}"] == pytest.approx(wanted[out[0]].mean("kl"))


def test_calibration_is_what_rates_are_measured_on(llama):
    other = ["the cat", "who ?"]
    report = void_skipping(llama, TEXTS, "static", calibration=other, draws=0)
    rates = act.analyses.layer_voids(llama.run(other, read=ENDS))["rate"].curves["all rows"]
    assert report.diagnostics["rate on the calibration"] == pytest.approx(rates.tolist())


def test_the_time_is_that_of_forwards_in_which_the_blocks_do_not_run():
    model = tiny("llama", 3)
    runs = [0, 0, 0]

    def counter(i):
        def counted(*_):
            runs[i] += 1

        return counted

    handles = [model.module(f"model.layers.{i}.mlp").register_forward_hook(counter(i)) for i in range(3)]
    report = void_skipping(model, TEXTS, "static", cut=0.9, draws=0)
    for handle in handles:
        handle.remove()
    out = [int(b[-1]) for b in report.diagnostics["left out"]]
    assert 0 < len(out) < 3
    # Half of the timed forwards lack them; those of rates and costs do not.
    assert {runs[i] for i in range(3) if i not in out} == {runs[out[0]] + 10}
    time = report["time"]
    assert time.names[0] == "all blocks" and (time.values > 0).all()
    assert time.columns["share of the full time"][1] == pytest.approx(time.values[1] / time.values[0])
    assert f"a forward takes {time.values[1] / time.values[0]:.0%} of the full time" in report.words[-1]


def test_random_sets_of_blocks_are_others_of_the_same_size():
    rates = np.array([[9.0, 1.0, 9.0, 1.0, 9.0, 9.0]]), np.array([[10.0]])
    sets, later = (
        [tuple(e.site for e in one) for one in Static("", 6, rates, 0.5, 8, 0).drawn[k]]
        for k in ("random layers", "random layers after the first")
    )
    assert len(set(sets)) == len(set(later)) == 8
    assert all(len(s) == 2 and s != ("blocks.1", "blocks.3") for s in sets + later)
    assert any("blocks.0" in s for s in sets) and not any("blocks.0" in s for s in later)
    for draws in (14, 99):  # all that there are
        assert [len(d) for d in Static("", 6, rates, 0.5, draws, 0).drawn.values()] == [14, 9]
    assert [len(d) for d in Static("", 6, rates, 0.0, 5, 0).drawn.values()] == [0]
    first = np.array([[1.0, 9.0, 9.0]]), np.array([[10.0]])
    assert list(Static("", 3, first, 0.5, 5, 0).drawn) == ["random layers"]  # the first layer itself is left out


def test_a_block_that_writes_nothing_costs_nothing_to_leave_out():
    network, tokenizer = act.testing.tiny("llama", num_hidden_layers=3)
    with torch.no_grad():
        network.model.layers[2].self_attn.o_proj.weight.zero_()
        network.model.layers[2].mlp.down_proj.weight.zero_()
    model = act.wrap(network, tokenizer, certify=False)
    rates = act.analyses.layer_voids(model.run(TEXTS, read=ENDS))["rate"].curves["all rows"]
    assert rates[2] == 0 < rates[:2].min()
    report = void_skipping(model, TEXTS, "static", cut=float(rates[:2].min()), draws=0)
    assert list(report.diagnostics["left out"]) == ["blocks.2"]
    assert report["cost"].values.tolist() == [0.0]


def test_a_massive_dimension_that_is_left_out_judges_no_row():
    model = planted_massive.wrapped(planted_massive.planted(), certify=False)
    seen, hidden = (void_skipping(model, [planted_massive.TEXT], "readout", draws=0, exclude_dims=d) for d in ((planted_massive.DIM,), ()))
    assert seen["active"].curves["active"].sum() > hidden["active"].curves["active"].sum()


def test_images_have_right_answers():
    model, images = tiny("vit"), act.testing.images(4)
    labels = model.run(images).logits.tensor.argmax(1)
    columns = void_skipping(model, {"images": images, "label": labels.numpy()}, "readout", draws=0)["cost"].columns
    assert columns["right answers of the full model"].tolist() == [1.0]
    edits = Course("", 4, by_progress(0.8), bypass=False).edits
    top = model.run(images, edits=edits).logits.tensor.argmax(1)
    assert columns["right answers"].tolist() == [(top == labels).double().mean().item()]


def test_the_decoder_is_what_answers():
    model = act.wrap(*act.testing.tiny("t5"), certify=False)
    data = {"encoder": TEXTS[:2], "decoder": ["the cat", "who ?"]}
    report = void_skipping(model, data, "static", cut=1.0, draws=0)
    assert all(b.startswith("decoder.") for b in report.diagnostics["left out"])
    assert report.diagnostics["left out"] and "time" not in report
    assert "no time was measured: decoder.blocks." in report.words[-1]
    assert void_skipping(model, data, "bypass", draws=1)["active"].x.tolist() == [0, 1, 2]


def test_the_words_say_what_is_saved(llama):
    said = {mode: " ".join(void_skipping(llama, TEXTS[:2], mode, draws=1).words) for mode in ("readout", "bypass", "halt")}
    assert "nothing is saved: every block ran on the unmodified stream" in said["readout"]
    assert "computed from the state that is carried past it" in said["bypass"]
    assert "no time was measured" in said["halt"]
    nothing = void_skipping(llama, TEXTS[:2], "static", cut=0.0)
    assert "so nothing is left out and nothing saved" in nothing.words[-1]
    assert nothing["cost"].values.tolist() == [0.0]


def test_refusals(llama):
    for options, message in (
        ({"mode": "skip"}, "mode='skip' is no way of skipping; choose one of 'readout', 'bypass', 'static', 'halt'"),
        ({"mode": "bypass", "cut": 0.3}, "cut= chooses the layers of mode='static'; 'bypass' judges each row"),
        ({"mode": "halt", "calibration": TEXTS}, "calibration= chooses the layers of mode='static'"),
        ({"alpha": -1}, "alpha is a share of a range, 0 or more"),
        ({"mode": "static", "cut": 1.5}, "cut is the smallest share of rows .* found 1.5"),
        ({"draws": -1}, "draws=-1: there are no fewer than 0"),
        ({"exclude_dims": (99,)}, "has features 0 to 31; exclude_dims= names 99"),
        ({"exclude_dims": (-1,), "mode": "static"}, "exclude_dims= names -1"),
    ):
        with pytest.raises(InputError, match=message):
            void_skipping(llama, TEXTS, **options)
    clip = act.wrap(*act.testing.tiny("clip"), certify=False)
    with pytest.raises(UnknownSite, match="this model has .* and .*Use a language model or a classifier"):
        void_skipping(clip, {"text": TEXTS[:1], "images": act.testing.images(1)})
