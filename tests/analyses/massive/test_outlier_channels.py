"""outlier_channels: a planted channel, the quantiser and its errors by hand, kurtosis at its two ends, LLM.int8's rule at its edges."""

from math import ceil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import activarium as act
from activarium import results, testing
from activarium.activations import Activations
from activarium.analyses.massive import quantiser
from activarium.analyses.massive.linear_inputs import weight_at
from activarium.errors import AxisError, InputError, NotFinite, UnknownSite
from activarium.recording import Recording
from activarium.rows import Rows

outlier_channels = act.analyses.outlier_channels
SITE = "blocks.0.mlp.in"
SITES = [f"blocks.*.{ending}" for ending in ("attn.in", "attn.z", "mlp.in", "mlp.post")]


def table(*lengths: int) -> Rows:
    return Rows({"example": np.repeat(np.arange(len(lengths)), lengths), "position": np.concatenate([np.arange(n) for n in lengths])})


def inputs(values: torch.Tensor, *lengths: int, site: str = SITE) -> Activations:
    return Activations(values, "row d_model", site=site, index=table(*lengths) if lengths else None)


def layers(*values: torch.Tensor, ending: str = "mlp.in") -> Recording:
    sites = {f"blocks.{i}.{ending}": inputs(v, site=f"blocks.{i}.{ending}") for i, v in enumerate(values)}
    return Recording(sites, {})


def reads(weight: torch.Tensor) -> SimpleNamespace:
    """A model whose first MLP reads with this weight, `in out`."""
    return SimpleNamespace(name="one layer", sites={}, weights={"blocks.0.mlp.W_in": None}, weight=lambda name: weight)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_planted_channel_is_the_top_one_and_vanishes_after_smoothquant(random):
    """A channel made a hundred times as large, and its weights as much smaller: the same function, another difficulty."""
    x = torch.randn(400, 64, generator=random, dtype=torch.float64)
    weight = torch.randn(64, 48, generator=random, dtype=torch.float64)
    planted, smaller = x.clone(), weight.clone()
    planted[:, 17] *= 100
    smaller[17] /= 100
    before, after = outlier_channels(inputs(x), reads(weight)), outlier_channels(inputs(planted), reads(smaller))
    assert after["channels"].names[0] == f"{SITE} · channel 17"
    assert after["sites"].values[0] > 50 > before["sites"].values[0]
    assert after["sites"].columns["after SmoothQuant"][0] == pytest.approx(before["sites"].columns["after SmoothQuant"][0], rel=1e-9)
    errors = dict(zip(after["errors"].label("kept"), after["errors"].values[0], strict=True))
    assert errors["activation"] < 0.9 * errors["nothing"] < errors["nothing"]
    assert errors["weight"] > errors["activation"] and errors["random"] > errors["activation"]


def test_smoothquant_changes_no_output(random):
    x = torch.randn(50, 32, generator=random, dtype=torch.float64) * torch.logspace(-2, 2, 32, dtype=torch.float64)
    weight = torch.randn(32, 20, generator=random, dtype=torch.float64)
    for strength in (0.0, 0.5, 1.0):
        factor = quantiser.smooth_factor(x.abs().amax(0), weight, strength)
        assert ((x / factor) @ (weight * factor[:, None]) - x @ weight).abs().max() < 1e-5
    for strength, wanted in ((0.0, 1 / 2), (0.25, 3**0.5 / 2**0.75), (1.0, 9.0)):
        assert quantiser.smooth_factor(torch.tensor([9.0]), torch.tensor([[2.0]]), strength).item() == pytest.approx(wanted)
    assert quantiser.smooth_factor(torch.tensor([0.0]), torch.tensor([[1.0]])).item() == pytest.approx(1e-5)


def test_kurtosis_lies_between_one_and_the_number_of_channels():
    signs = torch.ones(6, 8)
    signs[::2, ::3] = -1
    flat = outlier_channels(inputs(3.0 * signs))["sites"].columns
    assert flat["kurtosis of a row"][0] == flat["kurtosis of channel RMS"][0] == pytest.approx(1)
    assert flat["largest over median of a row"][0] == 1
    one = torch.zeros(6, 8)
    one[:, 5] = 1e30  # fourth powers overflow nowhere
    alone = outlier_channels(inputs(one))["sites"].columns
    assert alone["kurtosis of a row"][0] == alone["kurtosis of channel RMS"][0] == pytest.approx(8)
    assert alone["largest over median of a row"][0] == np.inf


def test_salience_is_the_mean_size_and_not_the_largest():
    x = torch.full((100, 10), 0.1)
    x[0, 3] = 9.0  # once
    x[:, 6] = -0.5  # always
    report = outlier_channels(inputs(x))
    assert report["channels"].names == (f"{SITE} · channel 6",)
    assert report["channels"].values[0] == pytest.approx(5)
    assert report["salience mlp.in"].values[0, [3, 6]] == pytest.approx([0.1 + 8.9 / 100, 0.5])
    assert report["sites"].values[0] == pytest.approx(90)


@pytest.mark.parametrize(("width", "count"), [(64, 1), (100, 1), (101, 2), (512, 6)])
def test_one_percent_is_rounded_up(width: int, count: int):
    report = outlier_channels(inputs(torch.rand(4, width, generator=torch.Generator().manual_seed(1))))
    assert len(report["channels"].names) == count == ceil(0.01 * width)


def test_halves_of_the_examples():
    x = torch.ones(8, 10)
    x[0:2, 1] = x[4:6, 1] = 5  # examples 0 and 2
    x[2:4, 2] = x[6:8, 2] = 4
    assert outlier_channels(inputs(x, 2, 2, 2, 2))["sites"].columns["overlap of halves"][0] == 0
    x[:, 7] = 9
    assert outlier_channels(inputs(x, 2, 2, 2, 2))["sites"].columns["overlap of halves"][0] == 1
    only = {"example": np.full(8, 3), "position": np.arange(8)}  # one example, of an odd number
    for one in (inputs(x, 8), Activations(x, "row d_model", site=SITE, index=Rows(only))):
        assert np.isnan(outlier_channels(one)["sites"].columns["overlap of halves"][0])


def test_int8_zeros_by_hand():
    x = torch.full((1, 8), 127.0, dtype=torch.bfloat16)
    x[0, :3] = torch.tensor([0.49, 0.0, -0.25])  # below half a step of one; 0.5 itself is kept
    x[0, 3] = 0.5
    columns = outlier_channels(inputs(x))["sites"].columns
    assert columns["INT8 zeros, percent, at least"][0] == columns["INT8 zeros, percent, at most"][0] == 37.5


def test_llm_int8_needs_both_shares():
    def rows(*columns: tuple[int, int, float]) -> torch.Tensor:
        made = torch.ones(100, 4)
        for dim, count, size in columns:
            made[:count, dim] = -size
        return made

    # dim 0: in one layer of four, in 6 rows of 100. dim 1: in 5 rows. dim 2: everywhere, and just below six.
    report = outlier_channels(layers(rows((0, 6, 6.0), (1, 5, 9.0), (2, 100, 5.99)), rows(), rows(), rows()))
    assert report["int8 features"].names == ("dim 0",)
    assert report["int8 features"].values.tolist() == [6.0]
    assert report["int8 features"].columns["percent of layers"].tolist() == [25.0]
    five = outlier_channels(layers(rows((0, 100, 60.0)), rows(), rows(), rows(), rows()))  # one layer of five is not enough
    assert five["int8 features"].names == ()
    assert "6 % of the rows): none" in five.words[1]


def test_few_massive_numbers_are_no_outlier_feature():
    x = torch.ones(200, 4)
    x[0, 1] = 2000.0
    report = outlier_channels(layers(x, x))
    assert report["int8 features"].names == ()
    assert report["sites"].values[0] == 2000


def test_the_quantiser_by_hand():
    weight = torch.tensor([[-1.0], [0.0], [0.4], [2.0], [7.0], [10.0]], dtype=torch.float64)
    # Two bits: the first four share steps of 1 from -1 to 2, the last two steps of 10/3 from 0 to 10.
    assert quantiser.quantised(weight, 2, 4).flatten().tolist() == pytest.approx([-1, 0, 0, 2, 20 / 3, 10])
    grid = torch.arange(16, dtype=torch.float64)[:, None] - 5
    assert torch.equal(quantiser.quantised(grid, 4, 128), grid)
    assert torch.equal(quantiser.quantised(torch.zeros(4, 2, dtype=torch.float64), 4, 2), torch.zeros(4, 2, dtype=torch.float64))


def test_errors_are_those_of_the_outputs(random):
    x = torch.randn(70, 40, generator=random, dtype=torch.float64) + 0.5  # not centred: XᵀX is no covariance
    weight = torch.randn(40, 16, generator=random, dtype=torch.float64)
    report = outlier_channels(inputs(x), reads(weight), bits=3, group=16)
    rounded = quantiser.quantised(weight, 3, 16)
    nothing, activation = report["errors"].values[0, :2]
    assert nothing == pytest.approx(float(((x @ rounded - x @ weight) ** 2).sum() / ((x @ weight) ** 2).sum()))
    kept, best = rounded.clone(), int(x.abs().mean(0).argmax())
    kept[best] = weight[best]
    assert activation == pytest.approx(float(((x @ kept - x @ weight) ** 2).sum() / ((x @ weight) ** 2).sum()))
    search = report["scale search"].curves[SITE]
    assert search[0] == pytest.approx(nothing)  # an exponent of 0 scales nothing
    scale = x.abs().mean(0) ** 0.5
    scale = (scale / (scale.max() * scale.min()).sqrt())[:, None]
    wanted = x @ (quantiser.quantised(weight * scale, 3, 16) / scale)
    assert search[10] == pytest.approx(float(((wanted - x @ weight) ** 2).sum() / ((x @ weight) ** 2).sum()))


def test_all_channels_kept_cost_nothing(random):
    x, weight = torch.randn(20, 12, generator=random), torch.randn(12, 6, generator=random)
    report = outlier_channels(inputs(x), reads(weight), share=1.0)
    assert report["errors"].values[0, 1:].tolist() == [0, 0, 0]
    assert report["errors"].values[0, 0] > 0


def test_a_scale_of_unequal_channels_helps(random):
    """What AWQ is made for: a few inputs count most, and rounding cares about weights alone."""
    x = torch.randn(300, 128, generator=random, dtype=torch.float64)
    x[:, ::40] *= 30
    weight = torch.randn(128, 32, generator=random, dtype=torch.float64)
    search = outlier_channels(inputs(x), reads(weight))["scale search"].curves[SITE]
    assert search.argmin() > 3
    assert search.min() < 0.5 * search[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_the_weights_are_those_that_read_the_site(family: str):
    model = act.wrap(*testing.tiny(family), certify=False)
    data = testing.images(1) if family == "vit" else ["the cat sat on the house"]
    outs = {"attn.in": ("attn.q", "attn.k", "attn.v"), "attn.z": ("attn.proj",), "mlp.in": ("mlp.pre", "mlp.up"), "mlp.post": ("mlp.proj",)}
    rec = model.run(
        data, read=[f"blocks.0.{name}" for names in outs.items() for name in (names[0], *names[1]) if name != "mlp.up" or family == "llama"]
    )
    bias = {
        "attn.q": "attn.b_Q",
        "attn.k": "attn.b_K",
        "attn.v": "attn.b_V",
        "attn.proj": "attn.b_O",
        "mlp.pre": "mlp.b_in",
        "mlp.proj": "mlp.b_down",
    }
    for ending, names in outs.items():
        x = rec[f"blocks.0.{ending}"].tensor.flatten(1).double()
        written = []
        for name in names:
            if f"blocks.0.{name}" in rec:
                value = rec[f"blocks.0.{name}"].tensor.flatten(1).double()
                known = f"blocks.0.{bias.get(name)}"
                written.append(value - (model.weight(known).flatten().double() if known in model.weights else 0))
        weight = weight_at(model, f"blocks.0.{ending}")
        assert weight is not None
        assert torch.allclose(x @ weight, torch.cat(written, 1), atol=1e-4)


def test_shared_value_heads_have_no_scale_to_search():
    texts = testing.texts(4)
    grouped, own = (act.wrap(*testing.tiny(family), certify=False) for family in ("llama", "gpt2"))
    report = outlier_channels(grouped.run(texts, read=SITES), grouped)
    assert report.diagnostics["no scale can be folded"] == ("blocks.0.attn.z", "blocks.1.attn.z")
    assert "blocks.0.attn.z" not in report["scale search"].curves and "blocks.0.attn.z" in report["errors"].label("site")
    assert "blocks.0.attn.z" in outlier_channels(own.run(texts, read=SITES), own)["scale search"].curves


def test_pictures_and_two_towers():
    vit = act.wrap(*testing.tiny("vit"), certify=False)
    assert len(outlier_channels(vit.run(testing.images(3), read=SITES), vit)["sites"].names) == 8
    clip = act.wrap(*testing.tiny("clip"), certify=False)
    data = {"text": testing.texts(2), "images": testing.images(2)}
    report = outlier_channels(clip.run(data, read=["vision.blocks.*.mlp.in", "text.blocks.*.mlp.in"]), clip)
    assert {"salience vision.mlp.in", "salience text.mlp.in"} <= set(report)


def test_same_bits_in_pieces_and_from_a_store(tmp_path):
    model = act.wrap(*testing.tiny("gpt2"), certify=False)
    texts = testing.texts(4)
    whole = model.run(texts, read=SITES)
    report = outlier_channels(whole, model)
    cut = {
        n: Activations(torch.tensor_split(whole[n].tensor, [1, 9, 20]), whole[n].axes, site=n, index=whole.rows[""])
        for n in whole
        if n != "logits"
    }
    assert results.identical(outlier_channels(Recording(cut, whole.rows), model), report)
    act.capture(model, texts, SITES, to=tmp_path / "channels.acts", progress=False)
    stored = outlier_channels(act.open(tmp_path / "channels.acts"), model)
    assert stored["sites"].columns["overlap of halves"].tolist() == report["sites"].columns["overlap of halves"].tolist()
    for name in ("sites", "channels"):
        assert stored[name].names == report[name].names
        assert stored[name].values == pytest.approx(report[name].values, rel=1e-5)


def test_what_cannot_be_answered_is_refused():
    x = inputs(torch.ones(3, 4))
    with pytest.raises(InputError, match="share=0 of the channels cannot be kept"):
        outlier_channels(x, share=0)
    with pytest.raises(InputError, match="bits=0, group=128, draws=5: give 1 to 16 bits"):
        outlier_channels(x, bits=0)
    with pytest.raises(InputError, match="strength=2 is no exponent of SmoothQuant"):
        outlier_channels(x, strength=2)
    with pytest.raises(
        InputError, match="blocks.0.mlp.in has 4 channels, but the weights that read it 5. Pass the model of this recording"
    ):
        outlier_channels(x, reads(torch.ones(5, 2)))
    with pytest.raises(UnknownSite, match='no input of a linear layer; it has no sites. Read some: .*"blocks.\\*.attn.in"'):
        outlier_channels(Recording({}, {}))
    with pytest.raises(AxisError, match="has axes 'row slot d_mlp'; channels are those of"):
        outlier_channels(Activations(torch.ones(2, 2, 2), "row slot d_mlp", site="blocks.0.mlp.post"))
    bad = torch.ones(3, 4)
    bad[2, 1] = float("inf")
    with pytest.raises(NotFinite, match="0 NaN and 1 infinite numbers among 12.*No channel's mean"):
        outlier_channels(inputs(bad))
    with pytest.raises(InputError, match="blocks.0.mlp.in has no rows"):
        outlier_channels(inputs(torch.ones(0, 4)))
