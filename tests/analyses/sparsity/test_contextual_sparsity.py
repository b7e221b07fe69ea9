"""contextual_sparsity: sets planted by hand, independence where it was planted, nulls of known size, and its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium import testing
from activarium.activations import Activations
from activarium.analyses.changed_answers import changed_answers
from activarium.analyses.sparsity.firing_rates import covered, gini, share_for
from activarium.edits import Where, Zero
from activarium.errors import InputError, NotFinite
from activarium.recording import Recording
from activarium.rows import Rows

from .recorded import cut, recording, site, table

contextual_sparsity = act.analyses.contextual_sparsity
TEXTS = ["the cat sat on the mat", "Anna saw a dog", "the dog ran to the house", "a book and a cat"]


def neurons(values: torch.Tensor, examples: list[int] | np.ndarray, kinds: list[str] | None = None) -> Recording:
    return recording([values], table(examples, kinds), "mlp.post")


def rows_with(sets: list[list[int]], width: int = 6) -> torch.Tensor:
    values = torch.zeros(len(sets), width)
    for row, chosen in enumerate(sets):
        values[row, chosen] = 1.0
    return values


def independent(rates: torch.Tensor, rows: int = 4000, seed: int = 0) -> torch.Tensor:
    return (torch.rand(rows, len(rates), generator=torch.Generator().manual_seed(seed)) < rates).float()


def test_rates_on_paper():
    assert gini(np.array([0.0, 0.0, 1.0, 3.0])) == pytest.approx((1 * 1 + 3 * 3) / (4 * 4))
    assert gini(np.ones(5)) == pytest.approx(0)
    assert gini(np.array([0.0, 0.0, 0.0, 1.0])) == 0.75
    assert np.isnan(gini(np.zeros(3)))
    assert share_for(np.array([0.1, 0.5, 0.3, 0.1]), 0.8) == 0.5
    assert share_for(np.full(10, 0.3), 0.8) == 0.8
    assert covered(np.array([0.0, 3.0, 1.0, 0.0]))[[0, 25, 50, 100]].tolist() == [0, 75, 100, 100]


def test_reuse_by_hand():
    sets = [[0, 1], [1, 2], [5], [], [0], [0, 1]]
    found = contextual_sparsity(neurons(rows_with(sets), [0, 0, 0, 0, 1, 1]))["layers"]
    # followers: {1,2} shares 1 of 2, {5} 0 of 1, {} 0 of 0, and in the other example {0,1} shares 1 of 2
    assert found.columns["reuse"][0] == 2 / 5
    rates = np.array([3, 3, 1, 0, 0, 1]) / 6
    assert found.columns["reuse by chance"][0] == pytest.approx((rates**2).sum() / rates.sum())
    assert found.values[0] == 8 / 36


def test_a_row_left_out_between_two_parts_them():
    sets, kinds = [[0], [0, 1, 2, 3, 4, 5], [0], [1], [1]], ["token", "special", "token", "token", "token"]
    report = contextual_sparsity(neurons(rows_with(sets), [0, 0, 0, 1, 1], kinds))
    assert report["layers"].columns["reuse"][0] == 1.0  # of one follower alone
    assert report["layers"].values[0] == 4 / 24
    assert report.diagnostics["excluded"]["special"] == 1


def test_independent_rows_are_as_chance_says():
    rates = torch.linspace(0.02, 0.4, 80)
    report = contextual_sparsity(neurons(independent(rates), np.repeat(np.arange(100), 40)), draws=300)
    line = report["layers"].to_frame().iloc[0]
    assert line["reuse"] == pytest.approx(line["reuse by chance"], rel=0.03)
    assert line["rate correlation of halves"] > 0.97
    union = report["union"].curves
    assert union["rows of several sequences"] == pytest.approx(union["independent, with these rates"], abs=0.02)
    assert union["rows on end"][:6] == pytest.approx(union["independent, with these rates"][:6], abs=0.02)
    assert union["independent, 1 − (1 − p)^B"][3] == pytest.approx(1 - (1 - report.diagnostics["density"]) ** 8)
    assert np.isnan(union["rows on end"][6])  # no example has 64 rows


def test_the_documented_union_of_ten_percent():
    report = contextual_sparsity(neurons(independent(torch.full((200,), 0.1)), np.repeat(np.arange(100), 40)))
    union = report["union"]
    at = {int(b): float(v) for b, v in zip(union.x, union.curves["rows of several sequences"], strict=True)}
    assert at[8] == pytest.approx(0.57, abs=0.02)
    assert at[64] == pytest.approx(0.999, abs=0.002)


def test_one_set_for_all_rows_is_not_contextual():
    values = torch.zeros(40, 20)
    values[:, :4] = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    report = contextual_sparsity(neurons(values, np.repeat(np.arange(4), 10)))
    frame = report["predictors"].to_frame().set_index("name")
    assert frame["energy recall"].tolist() == [1.0] * 4
    assert frame.loc["fixed set", ["recall", "precision", "predicted sparsity"]].tolist() == [1.0, 1.0, 0.8]
    assert report["union"].curves["rows of several sequences"][:3] == pytest.approx(0.2)
    assert report["layers"].columns["reuse"][0] == 1.0


def test_own_sets_for_each_sequence_are_found_by_the_rows_so_far_alone():
    values = torch.zeros(80, 32)
    for example in range(8):
        values[10 * example : 10 * (example + 1), 4 * example : 4 * example + 4] = 1.0
    frame = contextual_sparsity(neurons(values, np.repeat(np.arange(8), 10)))["predictors"].to_frame().set_index("name")
    assert frame.loc["rows so far", "energy recall"] == 1.0
    assert frame.loc["row before", "energy recall"] == 1.0
    assert frame.loc["fixed set", "energy recall"] == 0.0  # the other half's neurons


def test_a_prediction_is_scored_on_every_second_sequence():
    sets = [[0], [0, 1], [2, 3], []]
    predictions = rows_with([[5], [0, 2], [2], [4]])
    values = rows_with(sets) * torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 1.0])
    rows = [0, 1, 1, 1]
    report = contextual_sparsity(neurons(values, rows), predicted=site(predictions, table(rows), "blocks.0.mlp.post"))
    line = report["predictors"].to_frame().set_index("name").loc["predicted"]
    assert line["recall"] == (1 / 2 + 1 / 2) / 2
    assert line["precision"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert line["energy recall"] == pytest.approx((1 / 5 + 1 / 10) / 2)  # contributions 1 and 2, then 1 and 3
    assert line["predicted sparsity"] == pytest.approx(1 - 4 / 18)
    assert report.diagnostics["rows without active neurons"] == 1


def test_columns_weigh_what_a_neuron_contributes():
    model = act.wrap(*testing.tiny("llama"), certify=False)
    recorded = model.run(TEXTS, read="blocks.*.mlp.post")
    post, norms = recorded["blocks.0.mlp.post"], model.weight("blocks.0.mlp.W_down").double().norm(dim=1)
    token = post.tensor[torch.from_numpy(np.flatnonzero(post.index["kind"] == "token"))].double()

    def density(values: torch.Tensor) -> float:
        energy = values.square().sort(1, descending=True).values
        return float((energy.cumsum(1) - energy < 0.9 * energy.sum(1, keepdim=True)).double().mean())

    for weights, given in ((norms, model), (torch.ones_like(norms), None)):
        found = contextual_sparsity(recorded, given, active=0.9)["layers"].to_frame().set_index("name")
        assert found.loc["blocks.0.mlp.post", "share a row needs"] == pytest.approx(density(token * weights))


def with_pre(pre: torch.Tensor, post: torch.Tensor, examples: np.ndarray) -> Recording:
    rows = table(examples)
    return Recording({f"blocks.0.mlp.{n}": site(v, rows, f"blocks.0.mlp.{n}") for n, v in (("pre", pre), ("post", post))}, {"": rows})


def test_a_rectified_gaussian_is_no_sparser_than_chance_and_heavy_tails_are():
    generator = torch.Generator().manual_seed(0)
    examples = np.repeat(np.arange(10), 100)
    mean = torch.linspace(-2, 1, 60)
    pre = mean + torch.randn(1000, 60, generator=generator)
    nulls = contextual_sparsity(with_pre(pre, pre.relu(), examples))["nulls"].curves
    truth = 1 - float(torch.distributions.Normal(0.0, 1.0).cdf(mean).mean())
    assert nulls["Gaussian"][0] == pytest.approx(truth, abs=0.01)
    assert abs(nulls["measured − Gaussian"][0]) < 0.01
    rare = (torch.rand(1000, 60, generator=generator) < 0.05).float() * 4 - 0.2  # zero mean, 5 % of the rows positive
    nulls = contextual_sparsity(with_pre(rare, rare.relu(), examples))["nulls"].curves
    assert nulls["Gaussian"][0] == pytest.approx(0.5, abs=0.01)
    assert nulls["measured − Gaussian"][0] == pytest.approx(0.45, abs=0.02)


@pytest.mark.parametrize(("name", "share"), [("opt", None), ("gpt2", 0.9), ("llama", 0.9)])
def test_nulls_of_real_models_by_other_means(name: str, share: float | None):
    """The activation function and the weights are taken from the model itself, and drawn with other seeds."""
    model = act.wrap(*testing.tiny(name), certify=False)
    recorded = model.run(
        TEXTS * 8, read=[f"blocks.*.mlp.{s}" for s in ("in", "pre", "act", "up", "post") if f"blocks.0.mlp.{s}" in model.sites]
    )
    nulls = contextual_sparsity(recorded, model, active=share)["nulls"].curves
    function = {"opt": torch.relu, "gpt2": torch.nn.GELU("tanh"), "llama": torch.nn.SiLU()}[name]
    kept = torch.from_numpy(np.flatnonzero(recorded["blocks.0.mlp.in"].index["kind"] == "token"))
    norms = model.weight("blocks.0.mlp.W_down").double().norm(dim=1)
    generator = torch.Generator().manual_seed(77)

    def gaussian(ending: str) -> torch.Tensor:
        values = recorded[f"blocks.0.mlp.{ending}"].tensor[kept].double()
        return values.mean(0) + values.std(0, correction=0) * torch.randn(3000, values.shape[1], generator=generator, dtype=torch.float64)

    def shuffled(weight: str, bias: str) -> torch.Tensor:
        w = model.weight(f"blocks.0.mlp.{weight}").double()
        inside = recorded["blocks.0.mlp.in"].tensor[kept].double()
        made = torch.stack([inside @ w[torch.randperm(len(w), generator=generator), j] for j in range(w.shape[1])], 1)
        return made + (model.weight(f"blocks.0.mlp.{bias}").double() if f"blocks.0.mlp.{bias}" in model.weights else 0)

    def sparsity(values: torch.Tensor) -> float:
        if share is None:
            return float((values == 0).double().mean())
        energy = (values * norms).square().sort(1, descending=True).values
        return 1 - float((energy.cumsum(1) - energy < share * energy.sum(1, keepdim=True)).double().mean())

    gated = name == "llama"
    assert nulls["Gaussian"][0] == pytest.approx(sparsity(function(gaussian("pre")) * (gaussian("up") if gated else 1)), abs=0.02)
    drawn = [
        sparsity(function(shuffled("W_gate" if gated else "W_in", "b_in")) * (shuffled("W_in", "b_in") if gated else 1)) for _ in range(6)
    ]
    assert nulls["shuffled weights"][0] == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) + 0.01)


def test_rates_are_compared_between_domains():
    sets = [[0], [0], [0, 1], [2], [2], [2, 1]]
    whole = neurons(rows_with(sets, 3), [0, 0, 1, 2, 2, 3])
    rows = Rows({**{c: whole.rows[""][c] for c in whole.rows[""].columns}, "label": np.array(["a"] * 3 + ["b"] * 3, dtype=object)})
    labelled = Recording({n: Activations(a.tensor, a.axes, site=n, index=rows) for n, a in whole.items()}, {"": rows})
    grid = contextual_sparsity(labelled, domain="label")["domains"]
    assert grid.label("domain") == ["a", "b"]
    assert grid.values == pytest.approx(np.array([[1, -1], [-1, 1]]))  # rates 3 1 0 and 0 1 3
    with pytest.raises(InputError, match="no row column 'label' to tell domains apart; it has example"):
        contextual_sparsity(whole, domain="label")


def test_every_neuron_has_its_line():
    values = torch.tensor([[3.0, 0.0, 1.0], [1.0, 0.0, 1.0]])
    found = contextual_sparsity(neurons(values, [0, 1]))["neurons"].to_frame()
    assert found["name"].tolist() == [f"blocks.0.mlp.post neuron {i}" for i in (0, 2, 1)]
    assert found["share of its layer's energy"].tolist() == [10 / 12, 2 / 12, 0]
    assert found["rate"].tolist() == [1.0, 1.0, 0.0]
    assert found["mean |activation| when active"].tolist() == [2.0, 1.0, 0.0]
    model = act.wrap(*testing.tiny("llama"), certify=False)
    line = contextual_sparsity(model.run(TEXTS, read="blocks.0.mlp.post"), model, active=0.9)["neurons"].to_frame().iloc[0]
    at = int(line["name"].rpartition(" ")[2])
    assert line["column norm"] == pytest.approx(float(model.weight("blocks.0.mlp.W_down")[at].norm()))
    assert line["mean contribution when active"] == pytest.approx(line["column norm"] * line["mean |activation| when active"])


def test_what_is_called_inactive_is_left_out_and_measured():
    model = act.wrap(*testing.tiny("opt"), certify=False)
    recorded = model.run(TEXTS, read="blocks.*.mlp.post")
    found = contextual_sparsity(recorded, model, TEXTS)["ablation"].to_frame().set_index("name")
    assert found.loc["active set", "KL, nats"] == 0.0  # zeros set to zero
    assert found.loc["active set", "agreement"] == 1.0
    post = recorded["blocks.*.mlp.post"].layers()
    edits = []
    for i, activations in enumerate(post.values()):
        kept = np.flatnonzero((activations.index["kind"] == "token") & (activations.index["example"] % 2 == 0))
        fires = (activations.tensor[torch.from_numpy(kept)] != 0).sum(0)
        size = round(float(fires.sum()) / len(kept))
        out = fires.argsort(descending=True, stable=True)[size:].tolist()
        edits.append(Zero(f"blocks.{i}.mlp.post", where=Where(kinds=("token",), features=tuple(out))))
    wanted = changed_answers(model, TEXTS[1::2], {"fixed": edits})["fixed"]
    assert found.loc["fixed set", "KL, nats"] == pytest.approx(wanted.mean("kl"), rel=1e-6)
    assert found.loc["fixed set", "rise of loss, nats"] == pytest.approx(wanted.mean("loss") - wanted.mean("full_loss"), rel=1e-5)
    assert 0 < found.loc["own strongest", "KL, nats"] < found.loc["fixed set", "KL, nats"]
    with pytest.raises(InputError, match="Pass model= too"):
        contextual_sparsity(recorded, inputs=TEXTS)


def test_no_null_where_its_sites_are_missing():
    assert "nulls" not in contextual_sparsity(neurons(rows_with([[0], [1]]), [0, 1])).parts


def test_the_same_bits_in_pieces_and_from_a_store(tmp_path: Path):
    model = act.wrap(*testing.tiny("opt"), certify=False)
    sites = ["blocks.*.mlp.post", "blocks.*.mlp.pre", "blocks.*.mlp.in"]
    here = act.capture(model, TEXTS, sites, progress=False)
    act.capture(model, TEXTS, sites, to=tmp_path / "a.acts", progress=False)
    assert act.identical(contextual_sparsity(here, model), contextual_sparsity(act.open(tmp_path / "a.acts"), model))
    values = independent(torch.full((30,), 0.2), 90)
    whole = neurons(values, np.repeat(np.arange(9), 10))
    assert act.identical(contextual_sparsity(whole), contextual_sparsity(cut(whole, [1, 4, 33, 35])))


def test_stacks_are_reported_apart():
    model = act.wrap(*testing.tiny("t5"), certify=False)
    recorded = model.run({"encoder": TEXTS, "decoder": TEXTS}, read=["encoder.blocks.*.mlp.post", "decoder.blocks.*.mlp.post"])
    assert {"encoder layers", "decoder union"} <= set(contextual_sparsity(recorded, model).parts)


def test_what_cannot_be_answered_is_refused():
    smooth = neurons(torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), [0, 0, 0, 1, 1, 1])
    with pytest.raises(InputError, match=r"100.00 % of the neurons are not zero, as after a smooth activation.*active=0\.9"):
        contextual_sparsity(smooth)
    with pytest.raises(InputError, match="between 0 and 1; found 90"):
        contextual_sparsity(smooth, active=90)
    with pytest.raises(InputError, match="holds one sequence; a fixed set is chosen on some and tried on others"):
        contextual_sparsity(neurons(rows_with([[0], [1]]), [0, 0]))
    with pytest.raises(InputError, match=r"predicted= has shape \(1, 6\).*the neurons have \(2, 6\). Predict for the same rows"):
        contextual_sparsity(
            neurons(rows_with([[0], [1]]), [0, 1]), predicted=Activations(torch.ones(1, 6), "row d_mlp", site="blocks.0.mlp.post")
        )
    with pytest.raises(NotFinite, match="holds 1 NaN.*It would count as active"):
        contextual_sparsity(neurons(torch.tensor([[float("nan"), 0.0], [1.0, 0.0]]), [0, 1]))
