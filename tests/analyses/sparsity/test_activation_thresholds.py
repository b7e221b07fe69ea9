"""activation_thresholds: every definition by hand, exact quantiles, held-out rows, real drops, and the words of its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.analyses.changed_answers import changed_answers
from activarium.analyses.sparsity.definitions import energy_below
from activarium.analyses.sparsity.equal_cost import at_equal_cost
from activarium.analyses.sparsity.exact_quantiles import ExactQuantiles
from activarium.data import scenes  # pyright: ignore[reportAttributeAccessIssue]
from activarium.edits import Threshold, Where
from activarium.errors import InputError, NotFinite, UnknownSite

from .recorded import cut, recording, site, table

activation_thresholds = act.analyses.activation_thresholds
EVERY = ["blocks.*.mlp.act", "blocks.*.mlp.post", "blocks.*.mlp.in", "blocks.*.attn.in", "blocks.*.attn.z"]
TEXTS = ["the cat sat on the mat", "Anna saw a dog", "the dog ran to the house", "a book and a cat", "Anna sat", "the mat"]


@pytest.fixture(scope="module")
def llama():
    return act.wrap(*testing.tiny("llama"), name="llama", certify=False)


def random_recording(seed: int = 0, rows: int = 60, width: int = 40):
    generator = torch.Generator().manual_seed(seed)
    return recording([torch.randn(rows, width, generator=generator) ** 3 for _ in range(2)], table(np.repeat(np.arange(6), rows // 6)))


def test_lines_without_calibration_by_hand():
    values = [[3.0, -0.03, 0.0, 0.001], [1.0, 1.0, 1.0, -1.0]]
    fixed = activation_thresholds(recording([torch.tensor(values)], table([0, 1])), absolute=0.01, relative=0.01)["fixed"]
    assert {name: curve[0] for name, curve in fixed.curves.items()} == {
        "below zero": 0.25,
        "exactly zero": 0.125,
        "|a| < 0.01": 0.25,
        "|a| < 0.01 of the largest": 0.25,  # 0.03 is 0.01 of 3, not below it
        "outside 90 % of energy": 0.375,  # all four of the equal ones are needed, one of the others
        "outside 99 % of energy": 0.375,
        "outside 99.9 % of energy": 0.375,
    }


def test_energy_of_equal_numbers_is_counted_without_rounding():
    scores = energy_below(torch.tensor([[1.0] * 10, [0.0] * 10]))
    assert int((scores[0] <= 1 - 0.9 + 1e-12).sum()) == 1  # nine of ten hold 90 %
    assert scores[1].tolist() == [0.0] * 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_quantiles_are_those_of_all_numbers_sorted(dtype: torch.dtype):
    numbers = (torch.randn(5000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3).abs().to(dtype)
    numbers[:1000] = 0
    shares = (0.1, 0.25, 0.5, 0.9, 0.999, 1.0)
    search = ExactQuantiles(shares)
    for step in (search.count, search.refine):
        for piece in numbers.split(77):
            step(piece)
    assert search.answers() == [float(numbers.sort().values[int(np.ceil(5000 * s)) - 1]) for s in shares]


def test_thresholds_reach_their_targets_on_a_skewed_site_where_symmetry_would_not():
    generator = torch.Generator().manual_seed(2)
    values = torch.empty(400, 50).exponential_(generator=generator) - 0.2  # far from symmetric about zero
    report = activation_thresholds(recording([values], table(np.repeat(np.arange(40), 10))), targets=[0.25, 0.5])
    grid = report["achieved"]
    achieved = dict(zip(grid.label("definition"), grid.values[:, :, 0].tolist(), strict=True))
    assert achieved["CATS"] == pytest.approx([0.25, 0.5], abs=0.01)
    symmetric = float((values.abs() <= values.quantile(0.75)).float().mean())  # inverse distribution at 0.5 + 0.5 / 2
    assert abs(symmetric - 0.5) > 0.15


def test_shared_lines_are_pooled_over_layers_and_own_ones_are_not():
    small, large = torch.arange(1.0, 9.0).reshape(4, 2), 100 * torch.arange(1.0, 9.0).reshape(4, 2)
    report = activation_thresholds(recording([small, large], table([0, 1, 2, 3])), targets=[0.5])
    lines = dict(zip(report["thresholds"].label("definition"), report["thresholds"].values[:, 0].tolist(), strict=True))
    assert lines["absolute"] == [6.0, 6.0]  # calibrated on rows 0 and 2: 1 2 5 6 and 100 200 500 600
    assert lines["CATS"] == [2.0, 200.0]
    achieved = dict(zip(report["achieved"].label("definition"), report["achieved"].values[:, 0].tolist(), strict=True))
    assert achieved["absolute"] == [0.5, 0.0]  # rows 1 and 3: 3 4 7 8
    assert achieved["CATS"] == [0.0, 0.0]


def test_what_is_achieved_is_counted_on_sequences_that_were_not_calibrated_on():
    values = torch.randn(400, 50, generator=torch.Generator().manual_seed(3))
    examples = np.repeat(np.arange(40), 10)
    values[examples % 2 == 1] *= 2  # every held-out sequence is twice as large
    report = activation_thresholds(recording([values], table(examples)), targets=[0.5])
    median = values[examples % 2 == 0].abs().flatten().kthvalue(5000).values
    wanted = float((values[examples % 2 == 1].abs() <= median).double().mean())
    transfer = report["transfer"].curves
    assert transfer["CATS"][0] == wanted == pytest.approx(0.264, abs=0.02)
    assert transfer["relative"][0] == pytest.approx(0.5, abs=0.02)  # what is relative does not mind


def test_fatrelu_never_keeps_what_is_below_zero():
    values = torch.tensor([[-5.0, -1.0, 1.0, 2.0]] * 4)
    report = activation_thresholds(recording([values], table([0, 1, 2, 3])), targets=[0.25, 0.75])
    at = report["thresholds"].label("definition").index("FATReLU")
    assert report["thresholds"].values[at, :, 0].tolist() == [0.0, 1.0]
    assert report["achieved"].values[at, :, 0].tolist() == [0.5, 0.75]


def test_the_same_bits_in_pieces_and_from_a_store(llama, tmp_path: Path):
    whole = random_recording()
    assert act.identical(activation_thresholds(whole), activation_thresholds(cut(whole, [7, 8, 33])))
    here = act.capture(llama, TEXTS, EVERY, progress=False)
    act.capture(llama, TEXTS, EVERY, to=tmp_path / "a.acts", progress=False)
    assert act.identical(activation_thresholds(here), activation_thresholds(act.open(tmp_path / "a.acts")))


def test_calibrating_twice_is_calibrating_once():
    whole = random_recording()
    before = [a.tensor.clone() for a in whole.values()]
    assert act.identical(activation_thresholds(whole), activation_thresholds(whole))
    assert all(torch.equal(b, a.tensor) for b, a in zip(before, whole.values(), strict=True))


def test_excluded_rows_move_nothing():
    whole = random_recording()
    kinds = ["bos" if p == 0 else "token" for p in whole.rows[""]["position"]]
    rows = table(whole.rows[""]["example"], kinds)
    loud = [torch.where(torch.tensor([k == "bos" for k in kinds])[:, None], 1e6, a.tensor) for a in whole.values()]
    one = activation_thresholds(recording(loud, rows))
    keep = [k != "bos" for k in kinds]
    other = activation_thresholds(recording([a.tensor[keep] for a in whole.values()], rows.take(np.flatnonzero(keep))))
    assert all(act.identical(one[name], other[name]) for name in one)


def test_the_model_really_drops_what_was_counted(llama):
    whole = llama.run(TEXTS, read=EVERY)
    report = activation_thresholds(whole, targets=[0.6])
    lines = report["thresholds"]
    for name, ending in (
        ("absolute", "act"),
        ("relative", "act"),
        ("FATReLU", "act"),
        ("CATS", "act"),
        ("energy", "act"),
        ("TEAL mlp.post", "post"),
    ):
        definition = next(d for d in _definitions(whole) if d.name == name)
        at = lines.label("definition").index(name)
        sites = f"blocks.0.mlp.{ending}"
        edit = definition.edit(sites, float(lines.values[at, 0, 0]), Where(kinds=("token",)))
        read = llama.run(TEXTS, read=sites, edits=[edit])[sites]
        rows = (read.index["kind"] == "token") & (read.index["example"] % 2 == 1)
        dropped = float((read.tensor[torch.from_numpy(rows)] == 0).double().mean())
        assert dropped == report["achieved"].values[at, 0, 0], name
        assert 0.4 < dropped < 0.8


def _definitions(whole):
    from activarium.analyses.sparsity._activation_thresholds import _plans

    return list(_plans(whole)[""])


def test_the_cost_is_that_of_the_edits_on_every_second_text(llama):
    report = activation_thresholds(llama.run(TEXTS, read=EVERY), llama, TEXTS, targets=[0.5, 0.8])
    at = report["thresholds"].label("definition").index("CATS")
    edits = [
        Threshold(f"blocks.{i}.mlp.act", float(report["thresholds"].values[at, 1, i]), where=Where(kinds=("token",))) for i in range(2)
    ]
    wanted = changed_answers(llama, TEXTS[1::2], {"cats": edits})["cats"]
    assert report["KL"].curves["CATS"][1] == pytest.approx(wanted.mean("kl"), rel=1e-6)
    rise = (wanted.loss - wanted.full_loss)[wanted.known].mean()
    assert report["rise of loss"].curves["CATS"][1] == pytest.approx(rise, rel=1e-5)
    assert set(report["KL"].curves) == {"absolute", "relative", "FATReLU", "CATS", "energy", "TEAL"}
    assert (report["KL"].curves["TEAL"] > report["KL"].curves["CATS"]).all()  # it drops at four sites


def test_equal_cost_lies_on_the_straight_line(llama):
    whole = llama.run(TEXTS, read=EVERY)
    free = activation_thresholds(whole, llama, TEXTS, targets=[0.5, 0.8])
    low, high = free["KL"].curves["CATS"]
    ranked = activation_thresholds(whole, llama, TEXTS, targets=[0.5, 0.8], equal_cost=float(low + high) / 2)["at equal cost"]
    shares = free["transfer"].curves["CATS"]
    assert dict(zip(ranked.names, ranked.values, strict=True))["CATS"] == pytest.approx(shares.mean())
    assert list(ranked.values) == sorted(ranked.values, reverse=True)


def test_a_method_that_must_drop_much_drops_nothing_where_that_is_too_dear():
    shares, costs = (
        {"FATReLU": np.array([0.8, 0.9]), "CATS": np.array([0.4, 0.8])},
        {"FATReLU": np.array([0.6, 0.7]), "CATS": np.array([0.1, 0.2])},
    )
    ranked = at_equal_cost(shares, costs, 0.05, ["FATReLU"])
    assert dict(zip(ranked.names, ranked.values.tolist(), strict=True)) == {"CATS": pytest.approx(0.2), "FATReLU": 0.0}
    ranked = at_equal_cost(shares, costs, 0.65, ["FATReLU"])
    assert dict(zip(ranked.names, ranked.values.tolist(), strict=True)) == {"FATReLU": pytest.approx(0.85), "CATS": 0.8}
    assert ranked.columns["within budget at every target"].tolist() == [False, True]


def test_images_with_labels_have_a_loss():
    glyph = act.load("glyph")
    images, labels = scenes.batch(scenes.TEST_SEED, 0, 6)
    data = {"images": list(images), "label": labels}
    report = activation_thresholds(glyph.run(data, read="blocks.*.mlp.act"), glyph, data, targets=[0.3, 0.95])
    assert report.diagnostics["excluded"]["cls"] == 6
    assert report["rise of loss"].curves["CATS"][1] > report["rise of loss"].curves["CATS"][0]


def test_stacks_are_reported_apart():
    model = act.wrap(*testing.tiny("t5_gated"), certify=False)
    both = {"encoder": TEXTS[:3], "decoder": TEXTS[3:]}
    whole = model.run(both, read=["encoder.blocks.*.mlp.act", "decoder.blocks.*.mlp.act"])
    report = activation_thresholds(whole, model, both, targets=[0.5])
    assert {"encoder achieved", "decoder achieved", "KL"} <= set(report.parts)
    assert (report["KL"].curves["CATS"] > 0).all()


def test_earlier_thresholds_are_used_as_they_are():
    first, second = random_recording(0), random_recording(5)
    earlier = activation_thresholds(first, targets=[0.5])
    report = activation_thresholds(second, thresholds=earlier)
    assert act.identical(report["thresholds"], earlier["thresholds"])
    line = earlier["thresholds"].values[3, 0, 0]
    assert report["achieved"].values[3, 0, 0] == float((second["blocks.0.mlp.act"].tensor.abs() <= line).double().mean())


def test_thresholds_of_another_dtype_or_other_layers_are_refused():
    first = random_recording()
    earlier = activation_thresholds(first, targets=[0.5])
    halves = recording([a.tensor.bfloat16() for a in first.values()], first.rows[""])
    with pytest.raises(InputError, match=r"calibrated in float32; blocks.0.mlp.act is bfloat16.*Calibrate again"):
        activation_thresholds(halves, thresholds=earlier)
    one = recording([first["blocks.0.mlp.act"].tensor], first.rows[""])
    with pytest.raises(InputError, match=r"in layers 0, 1; this recording gives .* in layers 0\. Record the same sites"):
        activation_thresholds(one, thresholds=earlier)
    with pytest.raises(InputError, match="is a report of nonzero.*Pass a report of activation_thresholds"):
        activation_thresholds(one, thresholds=act.analyses.lazy_neurons(recording([torch.eye(2)], table([0, 1]))))


def test_what_cannot_be_answered_is_refused(llama):
    whole = random_recording()
    with pytest.raises(InputError, match=r"between 0 and 1; found 50\. For percent divide by 100"):
        activation_thresholds(whole, targets=[50])
    with pytest.raises(InputError, match="needs both model= and inputs="):
        activation_thresholds(whole, llama)
    with pytest.raises(InputError, match="holds one sequence; thresholds are calibrated on some and counted on others"):
        activation_thresholds(recording([torch.ones(2, 3)], table([0, 0])))
    with pytest.raises(UnknownSite, match=r"no site 'blocks.\*.mlp.act'"):
        activation_thresholds(recording([torch.ones(2, 3)], table([0, 1]), "resid_post"))
    with pytest.raises(NotFinite, match="holds 1 NaN.*It has no place in a ranking by size"):
        activation_thresholds(recording([torch.tensor([[1.0, float("nan")], [1.0, 2.0]])], table([0, 1])))


def test_one_site_of_any_kind_will_do():
    values = torch.randn(8, 6, generator=torch.Generator().manual_seed(4))
    report = activation_thresholds(site(values, table([0, 0, 1, 1, 2, 2, 3, 3]), "blocks.2.resid_post"), targets=[0.5])
    assert report["achieved"].labels["layer"] == ("2",)
    assert not [w for w in report.words if "TEAL" in w]
