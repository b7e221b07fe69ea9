"""hidden_dimensions: planted sets recovered exactly, shuffled rows, ends of sequences and lines, and the words of its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium.activations import Activations
from activarium.analyses.sparsity.dimension_sets import LONGEST, active_set
from activarium.data import corpus
from activarium.errors import AxisError, InputError, NotFinite, UnknownSite
from activarium.recording import Recording
from activarium.results import Report, identical
from activarium.rows import Rows

hidden_dimensions = act.analyses.hidden_dimensions


def rows_of(*lengths: int, kinds: list[str] | None = None, **columns: np.ndarray) -> Rows:
    position = np.concatenate([np.arange(n) for n in lengths])
    kind = np.array(kinds or ["token"] * len(position), dtype=object)
    return Rows({"example": np.repeat(np.arange(len(lengths)), lengths), "position": position, "kind": kind, **columns})


def site(values, rows: Rows | None = None, name: str = "blocks.0.resid_post", cut: tuple[int, ...] = ()) -> Activations:
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return Activations(list(torch.tensor_split(tensor, cut)), "row d_model", site=name, index=rows)


def counts(report: Report, rows: int, name: str = "resid_post") -> np.ndarray:
    return np.rint(report[f"{name} occupancy"].values * rows).astype(int)


def column(report: Report, name: str, layer: int = 0) -> dict[int, float]:
    found = report["resid_post dimensions"].columns
    return dict(zip(found["dim"].tolist(), found[name].tolist(), strict=True))


# --- sets


def test_active_sets_by_hand():
    rows = torch.tensor([[3.0, -1.0, 0.0, 0.0], [1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, -2.0, 0.0]])
    # Energies 9 1: 0.9 reached with one. Equal ones: the first in number. 1 4 4: 8/9 is not enough for 0.9.
    assert active_set(rows, 0.9, None).tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert active_set(rows, 0.5, None).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert active_set(rows, 1.0, None).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
    # rms √2.5, 1, 0, 1.5
    assert active_set(rows, 0.9, 1.0).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]


def test_a_set_is_the_smallest_with_its_energy():
    values = torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    energy = (values.double() ** 2).numpy()
    for row, active in zip(energy, active_set(values, 0.9, None), strict=True):
        assert row[active].sum() >= 0.9 * row.sum() > row[active].sum() - row[active].min()
        assert row[active].min() >= row[~active].max()


def test_half_precision_does_not_overflow():
    values = torch.tensor([[1800.0, 100.0, 0.5]])
    assert np.array_equal(active_set(values.half(), 0.9, None), active_set(values, 0.9, None))


# --- what was planted comes back


def planted(seed: int = 0, sequences: int = 10, length: int = 40, period: int = 20) -> tuple[torch.Tensor, Rows]:
    """4 dimensions always on, 8 on in runs of two in one row of twenty each (their own ones), noise elsewhere."""
    generator = np.random.default_rng(seed)
    values = 0.01 * generator.normal(size=(sequences * length, 64))
    values[:, :4] = 5 + generator.random((len(values), 4))
    for d in range(8):
        at = np.arange(len(values)) // 2 % (period) == 2 * d
        values[at, 10 + d] = 5 + generator.random(at.sum())
    return torch.tensor(values, dtype=torch.float32), rows_of(*[length] * sequences)


def test_planted_sets_are_recovered_exactly():
    values, rows = planted()
    report = hidden_dimensions(site(values, rows), energy=0.99)
    kinds = dict(zip(report["resid_post dimensions"].columns["dim"], report["resid_post dimensions"].columns["kind"], strict=True))
    assert {d for d, kind in kinds.items() if kind == "shared"} == {0, 1, 2, 3}
    assert {d for d, kind in kinds.items() if kind == "specialised"} == set(range(10, 18))
    assert len(kinds) == 12  # never active dimensions have no persistence
    assert counts(report, 400)[0].tolist() == [400] * 4 + [0] * 6 + [20] * 8 + [0] * 46
    assert report.diagnostics["resid_post never"] == 52
    assert report["resid_post shared by cut"].values.tolist() == [[4] * 5]
    assert report["resid_post specialised by cut"].values.tolist() == [[0, 0, 8, 8, 8]]


def test_shuffled_rows_keep_their_occupancy_and_lose_their_persistence():
    values, rows = planted()
    shuffled = values[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    before, after = (hidden_dimensions(site(v, rows), energy=0.99) for v in (values, shuffled))
    assert np.array_equal(counts(before, 400), counts(after, 400))
    lasting, gone = column(before, "persistence"), column(after, "persistence")
    occupancy = column(before, "occupancy")
    for d in range(10, 18):
        assert lasting[d] == 0.5  # runs of two, none at the end of a sequence
        assert column(before, "mean run")[d] == 2.0
    assert np.mean([gone[d] for d in range(10, 18)]) == pytest.approx(occupancy[10], abs=0.04)
    for d in range(4):
        assert lasting[d] == gone[d] == 1.0
    measured = before["resid_post persistence"].curves, after["resid_post persistence"].curves
    assert measured[0]["shuffled everywhere"] == pytest.approx(measured[1]["shuffled everywhere"], rel=0.01)
    assert (
        abs(measured[1]["measured"] - measured[1]["shuffled everywhere"])
        < 0.01
        < measured[0]["measured"] - measured[0]["shuffled everywhere"]
    )


def test_both_chances_are_the_average_over_shuffles():
    """Expected without drawing; here 150 shuffles are drawn and their average comes near."""
    generator = np.random.default_rng(3)
    values = (generator.random((30, 6)) < np.repeat([0.2, 0.5, 0.8], 10)[:, None]) * 1.0 + 1e-9  # the sequences differ
    rows = rows_of(10, 10, 10)
    report = hidden_dimensions(site(values, rows), theta=0.5)
    pairs, followed = np.zeros(2), np.zeros(2)
    for _ in range(150):
        within = np.concatenate([10 * s + generator.permutation(10) for s in range(3)])
        for k, order in enumerate((generator.permutation(30), within)):
            drawn = hidden_dimensions(site(values[order], rows), theta=0.5)["resid_post persistence"].curves["measured"][0]
            pairs[k], followed[k] = pairs[k] + drawn, followed[k] + 1
    curves = report["resid_post persistence"].curves
    everywhere, within = pairs / followed
    assert curves["shuffled everywhere"][0] == pytest.approx(everywhere, abs=0.02)
    assert curves["shuffled within sequences"][0] == pytest.approx(within, abs=0.02)
    assert within > everywhere + 0.05


# --- what follows what


def test_runs_end_with_their_sequence():
    values = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]], dtype=float)
    one = hidden_dimensions(site(values, rows_of(5)))["resid_post run lengths"].values[0]
    two = hidden_dimensions(site(values, rows_of(2, 3)))["resid_post run lengths"].values[0]
    assert one[:3].tolist() == [0, 0.5, 0.5]  # runs of 3 and 2
    assert two[:3].tolist() == pytest.approx([1 / 3, 2 / 3, 0])  # 2, 1 and 2


def test_excluded_rows_are_not_passed_over():
    values = np.array([[1, 0], [1, 0], [1, 0], [1, 0]], dtype=float)
    rows = rows_of(4, kinds=["bos", "token", "special", "token"])
    report = hidden_dimensions(site(values, rows))
    assert report["resid_post run lengths"].values[0, 0] == 1.0  # two runs of one
    assert report.diagnostics["resid_post rows"] == 2
    assert np.isnan(report["resid_post persistence"].curves["measured"][0])  # nothing follows anything
    assert report["resid_post sets"].curves["active at position 0"].tolist() == [0.5]  # the excluded first row, apart
    assert "Left out before counting: 1 bos rows, 1 special rows." in report.words


def test_a_line_of_patches_ends_a_run():
    values = np.array([[1, 0]] * 6, dtype=float)
    rows = rows_of(6, kinds=["patch"] * 6, y=np.array([0, 0, 0, 1, 1, 1]), x=np.array([0, 1, 2, 0, 1, 2]))
    report = hidden_dimensions(site(values, rows))
    assert report["resid_post run lengths"].values[0, 2] == 1.0  # two runs of three
    assert "raster order, line by line" in report.words[1]


def test_long_runs_are_in_the_last_bin_and_in_the_mean():
    report = hidden_dimensions(site(np.array([[1.0, 0.0]] * 200), rows_of(200)))
    assert report["resid_post run lengths"].values[0, LONGEST - 1] == 1.0
    assert column(report, "mean run")[0] == 200.0


def test_flow_by_hand():
    rows = rows_of(2)
    below = site([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]], rows)
    above = site([[1.0, 0.0, 1.0], [0.0, 0.0, 2.0]], rows, "blocks.1.resid_post")
    report = hidden_dimensions(Activations.stack([below, above], [below.site, above.site], "blocks.*.resid_post"))
    curves = report["resid_post flow"].curves
    assert curves["overlap"].tolist() == pytest.approx([(1 / 3 + 1) / 2])
    assert curves["energy in new dimensions"].tolist() == pytest.approx([(1 / 2 + 0) / 2])
    # occupancies ½ ½ ½ and ½ 0 1: together ¼ + 0 + ½, either ¾ + ½ + 1
    assert curves["overlap by occupancy"].tolist() == pytest.approx([0.75 / 2.25])


# --- sources


def test_pieces_give_the_same_bits():
    values, rows = planted()
    whole = hidden_dimensions(site(values, rows), energy=0.99)
    for cut in ((200,), (1, 2, 37, 399)):
        assert identical(whole, hidden_dimensions(site(values, rows, cut=cut), energy=0.99))


@pytest.mark.parametrize(("family", "kind"), [("llama", "text"), ("vit", "image"), ("t5", "text")])
def test_memory_and_store_and_every_site(family: str, kind: str, tmp_path: Path):
    model = act.wrap(*act.testing.tiny(family), certify=False)
    data = act.testing.images() if kind == "image" else act.testing.texts()
    stacks = ("encoder.", "decoder.") if family == "t5" else ("",)
    sites = [f"{s}blocks.*.{e}" for s in stacks for e in ("resid_post", "attn.in", "mlp.in")]
    live = act.capture(model, data, sites, progress=False)
    act.capture(model, data, sites, to=tmp_path / "some.acts", progress=False)
    everything = () if family == "t5" else ("bos", "cls")  # its decoder starts with one special row
    report, stored = (hidden_dimensions(r, exclude=everything) for r in (live, act.open(tmp_path / "some.acts")))
    assert list(report) == list(stored) and all(identical(report[name], stored[name]) for name in report)
    names = [f"{s.rstrip('.')} {e}".strip() for e in ("resid_post", "attn.in", "mlp.in") for s in stacks]
    assert {n.rsplit(" ", 1)[0] for n in report if n.endswith(" sets")} == set(names)
    alone = hidden_dimensions(live[sites[-1]], exclude=everything)  # a stack gives the same as the recording
    assert identical(alone["mlp.in occupancy"], report[f"{names[-1]} occupancy"].with_(title="mlp.in: rows in which a dimension is active"))


def test_trained_models_keep_dimensions_on_beyond_chance():
    """scribe: an active dimension stays on somewhat more often than in shuffled rows; nothing here is tuned to it."""
    model = act.load("scribe", certify=False)
    texts = list(corpus.training_text(424_242, 40))
    report = hidden_dimensions(model.run(texts, read="blocks.*.resid_post"))
    curves = report["resid_post persistence"].curves
    assert (curves["measured"] > curves["shuffled within sequences"]).all()
    assert (curves["shuffled within sequences"] > curves["shuffled everywhere"]).all()
    assert "Gaussian numbers 44 %" in report.words[0]
    assert "raster" not in " ".join(report.words)
    assert len(report._repr_html_()) > 1000


def test_gaussian_numbers_use_44_percent_and_nothing_lasts():
    values = torch.randn(400, 512, generator=torch.Generator().manual_seed(0))
    report = hidden_dimensions(site(values, rows_of(*[40] * 10)))
    assert report.diagnostics["resid_post active"] == pytest.approx(0.444, abs=0.005)
    curves = report["resid_post persistence"].curves
    assert curves["measured"][0] == pytest.approx(curves["shuffled everywhere"][0], abs=0.005)


def test_rows_of_zeros_are_counted():
    report = hidden_dimensions(site([[0.0, 0.0], [1.0, 0.0]], rows_of(2)))
    assert report["resid_post occupancy"].values.tolist() == [[0.5, 0.0]]
    assert "resid_post: 1 rows of zeros have an empty set." in report.words


def test_a_loud_dimension_is_named():
    values = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    values[:, 7] = 30.0
    assert any("dim 7 alone holds 9" in w for w in hidden_dimensions(site(values, rows_of(50))).words)


# --- refusals


def test_what_it_refuses():
    good = site([[1.0, 2.0]])
    with pytest.raises(InputError, match=r"energy=1\.5 is no share"):
        hidden_dimensions(good, energy=1.5)
    with pytest.raises(InputError, match=r"theta=0 would call every dimension active"):
        hidden_dimensions(good, theta=0)
    with pytest.raises(InputError, match=r"specialised below shared"):
        hidden_dimensions(good, shared=0.1, specialised=0.5)
    with pytest.raises(NotFinite, match=r"blocks\.0\.resid_post holds 1 NaN.*No set of dimensions"):
        hidden_dimensions(site([[float("nan"), 2.0]]))
    with pytest.raises(InputError, match=r"No row is left to count: the rows have the kinds bos"):
        hidden_dimensions(site([[1.0, 2.0]], rows_of(1, kinds=["bos"])))
    with pytest.raises(UnknownSite, match=r"no site 'blocks\.\*\.resid_post'"):
        hidden_dimensions(Recording({}, {}))
    with pytest.raises(AxisError, match="needs axes 'row d_model'"):
        hidden_dimensions(Activations(torch.ones(2, 3), "row d_mlp", site="blocks.0.mlp.post"))
