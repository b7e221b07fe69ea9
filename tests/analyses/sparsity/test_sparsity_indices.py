"""sparsity_indices: numbers by hand, limits, what cannot change them, and the words of its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import activarium as act
from activarium import testing
from activarium.activations import Activations
from activarium.analyses.sparsity.indices import INDICES, indices
from activarium.errors import AxisError, InputError, NotFinite, UnknownSite
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.results import Report
from activarium.rows import Rows

sparsity_indices = act.analyses.sparsity_indices


def table(examples: list[int], kinds: list[str] | None = None) -> Rows:
    position = np.concatenate([np.arange(examples.count(e)) for e in dict.fromkeys(examples)])
    texts = np.array([f"w{p}" for p in position], dtype=object)
    kind = np.array(kinds or ["token"] * len(examples), dtype=object)
    return Rows({"example": np.array(examples), "position": position, "text": texts, "kind": kind})


def site(values: list[list[float]] | torch.Tensor, rows: Rows | None = None, name: str = "blocks.0.mlp.post") -> Activations:
    return Activations(torch.as_tensor(values), "row d_mlp", site=name, index=rows)


def stack(*layers: Activations) -> Activations:
    return Activations.stack(list(layers), [a.site for a in layers], "blocks.*.mlp.post")


def of(values: list[float] | torch.Tensor) -> dict[str, float]:
    return dict(zip(INDICES, indices(torch.as_tensor(values, dtype=torch.float64)[None])[0].tolist(), strict=True))


def test_a_row_by_hand():
    """a = (3, −1, 0, 0): L1 = 4, L2² = 10, Σa⁴ = 82, mean 1/2, deviations 5/2, −3/2, −1/2, −1/2."""
    found = of([3.0, -1.0, 0.0, 0.0])
    assert found["hoyer"] == pytest.approx(2 - 4 / 10**0.5)
    assert found["gini"] == pytest.approx((1 * 1 + 3 * 3) / (4 * 4))
    assert found["participation ratio"] == pytest.approx(100 / 82 / 4)
    assert found["entropy count"] == pytest.approx(0.9**-0.9 * 0.1**-0.1 / 4)
    assert found["energy 90"] == 0.25
    variance = (25 + 9 + 1 + 1) / 4 / 4
    assert found["kurtosis"] == pytest.approx((625 + 81 + 1 + 1) / 16 / 4 / variance**2)


@pytest.mark.parametrize("n", [2, 5, 1000])
def test_one_neuron_and_all_equal_are_the_ends_of_each_range(n: int):
    alone = of([0.0] * (n - 1) + [-7.0])
    equal = of([0.1, -0.1] * (n // 2) + [0.1] * (n % 2))
    ends = {"hoyer": (1, 0), "gini": (1 - 1 / n, 0), "participation ratio": (1 / n, 1), "entropy count": (1 / n, 1)}
    for name, (sparse, dense) in ends.items():
        assert alone[name] == pytest.approx(sparse, abs=1e-12)
        assert equal[name] == pytest.approx(dense, abs=1e-12)
    assert alone["energy 90"] == 1 / n
    assert equal["energy 90"] == pytest.approx(np.ceil(0.9 * n - 1e-9) / n)


def test_two_values_equally_often_have_the_smallest_kurtosis():
    assert of([1.0, 5.0, 1.0, 5.0])["kurtosis"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def gaussian() -> torch.Tensor:
    return torch.randn(2, 2_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


REFERENCES = {
    "gaussian": (0.202, 0.414, 1 / 3, 0.482, 0.444, 3.0),
    "relu": (0.436, 0.707, 1 / 6, 0.241, 0.222, 5.43),
    "silu gate": (0.468, 0.628, 0.045, 0.121, 0.156, 22.0),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_known_distributions(gaussian: torch.Tensor, name: str):
    gate, up = gaussian
    row = {"gaussian": gate, "relu": gate.relu(), "silu gate": torch.nn.functional.silu(gate) * up}[name]
    for (index, found), wanted in zip(of(row).items(), REFERENCES[name], strict=True):
        fourth = index == "kurtosis" or (name, index) == ("silu gate", "participation ratio")  # fourth moments of heavy tails
        tolerance = 0.05 if fourth else 0.01
        assert found == pytest.approx(wanted, rel=tolerance), index


@pytest.mark.parametrize("scale", [-1.0, 1e-30, 1e30, 1e200, 1e-200])
def test_scale_and_sign_change_nothing(scale: float):
    values = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(indices(values * scale), indices(values), rtol=1e-10, atol=0)


def test_other_ways_to_write_the_same_numbers():
    rows = torch.randn(4, 41, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    found, size = indices(rows).numpy(), rows.abs().numpy()
    apart = np.abs(size[:, :, None] - size[:, None, :]).mean((1, 2))
    np.testing.assert_allclose(found[:, 1], apart / (2 * size.mean(1)))  # Gini: mean difference of pairs
    np.testing.assert_allclose(found[:, 3], np.exp(stats.entropy(size**2, axis=1)) / 41)
    np.testing.assert_allclose(found[:, 5], stats.kurtosis(rows.numpy(), axis=1, fisher=False))


def test_what_each_index_ignores():
    row = torch.randn(1, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shuffled = row[:, torch.randperm(50, generator=torch.Generator().manual_seed(2))]
    assert torch.allclose(indices(shuffled), indices(row), rtol=1e-12)
    assert torch.allclose(indices(row.repeat(1, 3))[:, 1], indices(row)[:, 1])  # Gini: replication
    assert torch.allclose(indices(row + 5)[:, 5], indices(row)[:, 5])  # kurtosis: shift
    assert not torch.allclose(indices(row + 5)[:, 0], indices(row)[:, 0])
    assert torch.allclose(indices(row.abs())[:, :5], indices(row)[:, :5])  # sign of single neurons, not for kurtosis
    assert not torch.allclose(indices(row.abs())[:, 5], indices(row)[:, 5])


def test_half_precision_does_not_overflow():
    values = torch.tensor([[1800.0, 900.0, 0.0, 0.0]])  # 1800² is infinite in float16
    assert torch.equal(indices(values.half()), indices(values))


def test_zero_rows_are_counted_and_never_averaged():
    report = sparsity_indices(site([[0.0, 0.0, -0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], table([0, 0, 1])))
    assert report.diagnostics["hoyer"] == 0.5
    assert report.diagnostics["zero rows"] == 1
    columns = report["layers"].columns
    assert columns["zero rows"].tolist() == [1]
    assert columns["equal rows"].tolist() == [1]
    assert columns["rows"].tolist() == [3]
    assert columns["kurtosis"].tolist() == pytest.approx([of([0.0, 2.0, 0.0, 0.0])["kurtosis"]])
    assert "rows of zeros, which have no index and enter no mean: 1." in report.words


def test_equal_numbers_have_no_kurtosis_even_if_their_mean_is_rounded():
    assert np.isnan(of([0.1] * 7)["kurtosis"])
    assert of([0.1] * 7)["hoyer"] == pytest.approx(0.0, abs=1e-12)


def test_a_layer_of_zeros_has_no_number_and_leaves_the_others_alone():
    rows = table([0, 1])
    silent, loud = site(torch.zeros(2, 4), rows), site([[0.0, 2.0, 0.0, 0.0]] * 2, rows, "blocks.1.mlp.post")
    report = sparsity_indices(stack(silent, loud))
    assert report["layers"].names == ("blocks.1.mlp.post", "blocks.0.mlp.post")
    assert np.isnan(report["indices"].curves["hoyer"][0])
    assert report.diagnostics["hoyer"] == 1.0
    assert report.diagnostics["hoyer low"] == 1.0
    alone = sparsity_indices(silent)
    assert np.isnan(alone.diagnostics["hoyer"])
    assert alone.words == ("all rows are zero in every layer: no index is defined.",)


def test_quantiles_are_over_rows():
    rows = [[1.0] * k + [0.0] * (20 - k) for k in range(1, 21)]  # participation ratio k / 20
    columns = sparsity_indices(site(rows))["layers"].columns
    assert columns["participation ratio"][0] == pytest.approx(np.mean(np.arange(1, 21) / 20))
    for q in (5, 50, 95):
        assert columns[f"participation ratio {q} %"][0] == pytest.approx(np.quantile(np.arange(1, 21) / 20, q / 100))


def test_layers_count_alike_and_the_sparsest_comes_first():
    rows = table([0, 1])
    dense, sparse = site([[1.0, 1.0]] * 2, rows), site([[0.0, 1.0]] * 2, rows, "blocks.1.mlp.post")
    report = sparsity_indices(stack(dense, sparse))
    assert report["layers"].names == ("blocks.1.mlp.post", "blocks.0.mlp.post")
    assert report["indices"].curves["hoyer"].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
    assert report.diagnostics["hoyer"] == pytest.approx(0.5)


def test_excluded_rows_and_pads_move_nothing():
    values = [[1.0, 1.0, 1.0], [0.0, 4.0, 3.0], [1.0, 2.0, 0.0]]
    clean = sparsity_indices(site(values[1:], table([0, 0])))
    bos = sparsity_indices(site(values, table([0, 0, 0], ["bos", "token", "token"])))
    padded = sparsity_indices(site([[np.inf] * 3, *values[1:]], table([0, 0, 0], ["pad", "token", "token"])), exclude=("pad",))
    for name in INDICES:
        assert bos.diagnostics[name] == clean.diagnostics[name] == padded.diagnostics[name]
    assert bos.diagnostics["excluded"]["bos"] == 1
    assert "Left out before counting: 1 bos rows." in bos.words
    assert bos["first token"].curves["hoyer"].tolist() == pytest.approx([0.0], abs=1e-12)  # apart, though excluded
    everything = sparsity_indices(site(values, table([0, 0, 0], ["bos", "token", "token"])), exclude=())
    assert everything.diagnostics["hoyer"] < clean.diagnostics["hoyer"]


def test_the_interval_is_over_sequences_and_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    inside = 0
    for trial in range(60):
        neurons = generator.integers(1, 21, size=40)  # all ten rows of a sequence use so many of 20: mean share 0.525
        values = (np.arange(20) < np.repeat(neurons, 10)[:, None]).astype(np.float32)
        notes = sparsity_indices(
            site(torch.tensor(values), table(np.repeat(np.arange(40), 10).tolist())), seed=trial, resamples=300
        ).diagnostics
        inside += notes["participation ratio low"] <= 0.525 <= notes["participation ratio high"]
    assert 50 <= inside <= 60


def test_one_sequence_has_no_interval():
    report = sparsity_indices(site([[1.0, 0.0], [1.0, 2.0]], table([0, 0])))
    assert np.isnan(report.diagnostics["hoyer low"])
    assert "one sequence: no interval" in report.words[0]


def alike(a: Report, b: Report) -> None:
    for name in ("indices", "kurtosis"):
        for curve, values in a[name].curves.items():
            np.testing.assert_allclose(values, b[name].curves[curve], rtol=1e-12)
            np.testing.assert_allclose(a[name].bands[curve], b[name].bands[curve], rtol=1e-12)


@pytest.fixture(scope="module")
def tiny() -> Runner:
    model, processor = testing.tiny("llama")
    return act.wrap(model, processor, certify="quick")


@pytest.mark.parametrize("stored", [False, True])
def test_memory_store_batches_and_pads_give_the_same_numbers(tiny: Runner, tmp_path: Path, stored: bool):
    texts = [[7, 8, 9, 10, 11, 12], [13], [8, 9, 10]]
    whole = act.capture(tiny, texts, ["blocks.*.mlp.post"], batch_tokens=4096, progress=False)
    to = tmp_path / "some.acts" if stored else None
    pieces = act.capture(tiny, texts, ["blocks.*.mlp.post"], to=to, batch_tokens=6, progress=False)
    site_name = next(iter(whole))
    one_by_one = torch.cat([tiny.run([t], read=site_name)[site_name].tensor for t in texts])
    torch.testing.assert_close(indices(whole[site_name].tensor), indices(one_by_one), rtol=1e-3, atol=1e-3)  # no pad among them
    alone = sparsity_indices(whole)
    other = sparsity_indices(act.open(to) if to else pieces)
    for name in INDICES:
        assert other.diagnostics[name] == pytest.approx(alone.diagnostics[name], rel=1e-4)
    assert other.diagnostics["rows"] == 10


def test_the_same_rows_in_parts_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    values, rows = torch.randn(12, 30, generator=torch.Generator().manual_seed(4)), table([0] * 5 + [1] * 3 + [2] * 4)
    whole = sparsity_indices(site(values, rows))
    monkeypatch.setattr("activarium.analyses.sparsity._sparsity_indices.AT_ONCE", 60)  # two rows at a time
    alike(whole, sparsity_indices(site(values, rows)))
    order = [2, 0, 1]
    examples = np.repeat([0, 1, 2], [5, 3, 4])
    shuffled = torch.cat([values[examples == e] for e in order])
    again = sparsity_indices(site(shuffled, table([0] * 4 + [1] * 5 + [2] * 3)))
    for name in INDICES:
        assert again.diagnostics[name] == pytest.approx(whole.diagnostics[name], rel=1e-12)


def test_what_is_left_out_is_found_again_in_every_part():
    values, examples = torch.randn(9, 30, generator=torch.Generator().manual_seed(8)), [0, 0, 0, 1, 1, 2, 2, 2, 2]
    values[[0, 3, 5]] = 1.0
    kinds = ["bos", "token", "token", "bos", "token", "bos", "token", "special", "special"]
    parts = Activations(
        [values[:2], values[2:3], values[3:8], values[8:]], "row d_mlp", site="blocks.0.mlp.post", index=table(examples, kinds)
    )
    alike(sparsity_indices(parts), sparsity_indices(site(values, table(examples, kinds))))
    assert sparsity_indices(parts)["first token"].curves["hoyer"].tolist() == pytest.approx([0.0], abs=1e-12)


def test_it_never_asks_for_more_than_a_batch(tiny: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    act.capture(tiny, [[7, 8, 9], [10, 11], [12]], ["blocks.*.mlp.post"], to=tmp_path / "some.acts", batch_tokens=3, progress=False)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole site was asked for")

    monkeypatch.setattr(Activations, "need", refuse)
    assert sparsity_indices(act.open(tmp_path / "some.acts")).diagnostics["rows"] == 6


def test_gated_post_and_act_are_different_questions(tiny: Runner):
    recording = tiny.run([[7, 8, 9], [10, 11]], read=["blocks.*.mlp.act", "blocks.*.mlp.post"])
    post, gate = sparsity_indices(recording), sparsity_indices(recording["blocks.*.mlp.act"])
    assert post.diagnostics["site"] == "mlp.post"
    assert gate.diagnostics["site"] == "mlp.act"
    assert abs(post.diagnostics["hoyer"] - gate.diagnostics["hoyer"]) > 1e-3


def test_any_site_of_rows_and_one_example(tiny: Runner):
    recording = tiny.run([[7, 8, 9], [10, 11]], read="blocks.*.resid_post")
    report = sparsity_indices(recording["blocks.*.resid_post"], example=1)
    values = recording["blocks.0.resid_post"].example(1).tensor
    np.testing.assert_allclose(report["rows"].values[0], indices(values)[:, 0].numpy())
    assert report["rows"].values.shape[1] == 2


def test_patches_of_an_image():
    model, processor = testing.tiny("vit")
    report = sparsity_indices(act.wrap(model, processor, certify="quick").run(testing.images(), read="blocks.*.mlp.post"), example=0)
    assert report.diagnostics["excluded"]["cls"] == len(testing.images())
    assert np.isnan(report["rows"].values[0, 0])  # the class token
    assert 0 < report.diagnostics["hoyer"] < 1


def test_nan_fails_loudly_with_its_place():
    with pytest.raises(
        NotFinite, match=r"holds 1 NaN and 0 infinite numbers among 4; the first in example 4, position 0 \('w0'\). No index"
    ):
        sparsity_indices(site([[0.0, 1.0], [0.0, float("nan")]], table([3, 4])))


def test_an_unrecorded_site_says_what_to_read():
    rows = table([0])
    resid = Activations(torch.ones(1, 2), "row d_model", site="blocks.0.resid_post", index=rows)
    with pytest.raises(UnknownSite, match=r"no site 'blocks.\*.mlp.post'; it has blocks.0.resid_post. Read it: model.run"):
        sparsity_indices(Recording({"blocks.0.resid_post": resid}, {"": rows}))


def test_other_axes_are_refused():
    with pytest.raises(AxisError, match=r"needs axes 'row d_mlp'; blocks.0.mlp.post has 'row slot d_mlp'"):
        sparsity_indices(Activations(torch.ones(2, 2, 2), "row slot d_mlp", site="blocks.0.mlp.post"))
    with pytest.raises(AxisError, match=r"a single number is neither spread nor sparse. Pass a site with at least two"):
        sparsity_indices(site([[1.0]]))


def test_excluding_every_row_is_refused():
    with pytest.raises(InputError, match="No row is left to count: the rows have the kinds token, excluded are token"):
        sparsity_indices(site([[1.0, 2.0]], table([0])), exclude=("token",))


def test_inputs_are_left_untouched():
    values = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    before = values.clone()
    sparsity_indices(site(values, table([0, 1])))
    assert torch.equal(values, before)
