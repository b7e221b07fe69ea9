"""layer_voids: the rule by hand, companions that change nothing, phases, massive dimensions, refusals."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.errors import InputError, NotFinite, UnknownSite
from activarium.recording import Recording
from activarium.results import identical

from ..massive import planted_massive
from .stacks_by_hand import chain, of_lengths, table

layer_voids = act.analyses.layer_voids
READ = ["embed", "blocks.*.resid_post"]
LENGTHS = (1.0, 3.0, 3.5, 6.0, 6.2, 5.0)


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(7, 9, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def plain(lengths: list[float], alpha: float) -> list[float]:
    """The published rule for one row, word by word; the first layer is held against 0."""
    previous, high, low, verdicts = lengths[0], -np.inf, np.inf, []
    for now in lengths[1:]:
        progress = now - previous
        verdicts.append(float(progress >= (alpha * (high - low) if verdicts else 0.0)))
        high, low, previous = max(high, progress), min(low, progress), now
    return verdicts


@pytest.mark.parametrize(("alpha", "wanted"), [(0, "11110"), (0.05, "11110"), (0.2, "11100"), (0.8, "11100"), (1.0, "11100")])
def test_a_stack_that_only_rescales(alpha, wanted):
    report = layer_voids(chain(*of_lengths(*LENGTHS)), alpha=alpha)
    assert report["progress"].values == pytest.approx(np.array([[2, 0.5, 2.5, 0.2, -1.2]]))
    assert report["thresholds"].values == pytest.approx(alpha * np.array([[0, 0, 1.5, 2, 2.3]]))
    assert "".join(f"{v:.0f}" for v in report["voids"].values[0]) == wanted
    assert report["usage"].values == pytest.approx(np.array([[wanted.count("1") / 5]]))
    assert report["rate"].curves["all rows"].tolist() == [float(v) for v in wanted]
    assert report["used"].curves["all rows"].tolist() == [float(wanted.count("1") == k) for k in range(6)]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_the_rule_is_the_plain_loop_row_by_row(states, alpha):
    lengths = states.norm(dim=2).T.tolist()
    report = layer_voids(chain(*states), alpha=alpha)
    assert report["voids"].values.tolist() == [plain(row, alpha) for row in lengths]


def test_usage_never_rises_with_alpha_and_the_sweep_is_what_each_alpha_gives(states):
    rows = table((4, 5))
    swept = layer_voids(chain(*states, rows=rows), alphas=(0.0, 0.25, 0.5, 1.0))["alphas"].curves
    for name, curve in swept.items():
        assert (np.diff(curve) <= 0).all() and curve[0] > curve[-1], name
    for at, alpha in enumerate((0.0, 0.25, 0.5, 1.0)):
        alone = layer_voids(chain(*states, rows=rows), alpha=alpha)["rate"].curves
        assert {n: c.mean() for n, c in alone.items()} == pytest.approx({n: c[at] for n, c in swept.items()})


def test_a_layer_that_does_nothing_is_a_void_once_there_is_a_range(states):
    states = states.clone()
    states[4] = states[3]
    for alpha, wanted in ((0.8, 0.0), (0.0, 1.0)):
        report = layer_voids(chain(*states), alpha=alpha)
        assert (report["progress"].values[:, 3] == 0).all()
        assert (report["voids"].values[:, 3] == wanted).all()


def test_a_turn_is_a_void_and_a_rescaling_is_none():
    """What this rule sees and what block influence sees are two things."""
    x = torch.tensor([[3.0, 4.0]])
    recording = chain(x, 2 * x, 5 * x, torch.tensor([[-20.0, 15.0]]))
    assert layer_voids(recording)["voids"].values.tolist() == [[1.0, 1.0, 0.0]]
    influence = act.analyses.block_influence(recording)["influence"].curves["all rows"]
    assert influence == pytest.approx([0, 0, 1], abs=1e-12)


def test_other_rows_have_no_say(states):
    """The published code judges the first layer by the range over the batch; here a row alone gives the same verdict."""
    together = layer_voids(chain(*states))["voids"].values
    for row in range(states.shape[1]):
        alone = layer_voids(chain(*states[:, row : row + 1]))["voids"].values
        assert alone.tolist() == together[row : row + 1].tolist()


def test_pieces_change_no_bit(states):
    rows = table((3, 4, 2))
    assert identical(layer_voids(chain(*states, rows=rows)), layer_voids(chain(*states, rows=rows, cut=(1, 4, 6))))


@pytest.mark.parametrize(("family", "data"), [("llama", act.testing.texts()), ("gpt2", act.testing.texts()), ("vit", act.testing.images())])
def test_batches_and_padding_change_no_verdict(family, data):
    model = act.wrap(*act.testing.tiny(family, num_hidden_layers=3) if family != "gpt2" else act.testing.tiny("gpt2"), certify=False)
    together = model.run(data, read=READ)
    for example, one in enumerate(data):
        shown = layer_voids(together, example=example)
        alone = layer_voids(model.run([one], read=READ))
        assert shown["progress"].values == pytest.approx(alone["progress"].values, abs=1e-4)
        assert shown["voids"].values.tolist() == alone["voids"].values.tolist()


def test_a_capture_gives_what_a_run_gives(tmp_path):
    model, texts = act.wrap(*act.testing.tiny("llama"), certify=False), act.testing.texts()
    live = layer_voids(model.run(texts, read=READ))
    stored = layer_voids(act.capture(model, texts, READ, to=tmp_path / "kept.acts", progress=False))
    for part in ("rate", "alphas", "used"):
        assert {n: c.tolist() for n, c in stored[part].curves.items()} == {n: c.tolist() for n, c in live[part].curves.items()}
    assert stored["progress"].values == pytest.approx(live["progress"].values, abs=1e-4)


@pytest.fixture(scope="module")
def written():
    model = act.wrap(*act.testing.tiny("llama", num_hidden_layers=4), certify=False)
    return model, model.generate([[20, 21, 22, 23], [30, 31], [40, 41, 42]], max_new_tokens=5, read=READ)


def test_what_is_written_with_a_cache_is_judged_as_in_one_forward(written):
    model, made = written
    clean = model.run(made.inputs, read=READ)
    for example in range(3):
        ours, theirs = (layer_voids(r, example=example) for r in (made.recording, clean))
        assert ours["voids"].values.tolist() == theirs["voids"].values.tolist()
    assert "phases" not in theirs
    assert ours["rate"].curves["all rows"].tolist() == theirs["rate"].curves["all rows"].tolist()


def test_a_prompt_in_two_chunks_is_judged_as_in_one(written):
    """The second chunk runs alone, on the keys and values of the first."""
    model, _ = written
    ids, start = torch.arange(20, 29)[None], 4
    whole = model.run(ids, read=[*READ, "blocks.0.resid_pre", "blocks.*.attn.k_rot", "blocks.*.attn.v"])
    entered = whole["blocks.0.resid_pre"].tensor[start:]
    sites = ["blocks.0.resid_pre", "blocks.*.resid_post"]
    rest = model.resume(ids, "blocks.0.resid_pre", entered, sites, start=start, cached_kv=whole)
    one, two = layer_voids(whole), layer_voids(rest)
    assert two["voids"].values.tolist() == one["voids"].values[start:].tolist()
    assert two["progress"].values == pytest.approx(one["progress"].values[start:], abs=1e-4)


def test_prompt_and_response_are_counted_apart(written):
    _, made = written
    report, phase = layer_voids(made.recording), made.recording.rows[""]["phase"]
    verdicts = np.concatenate([layer_voids(made.recording, example=e)["voids"].values for e in range(3)])
    for name in ("prompt", "response"):
        assert report["rate"].curves[f"{name} rows"] == pytest.approx(verdicts[phase == name].mean(0))
    assert report.diagnostics["rows"]["prompt rows"] == 9
    assert report.diagnostics["rows"]["response rows"] == sum(map(len, made.ids))
    wanted = verdicts[phase == "prompt"].mean(0) - verdicts[phase == "response"].mean(0)
    assert report["phases"].curves["prompt − response"] == pytest.approx(wanted)
    low, high = report["phases"].bands["prompt − response"]
    assert (low <= wanted + 1e-12).all() and (wanted - 1e-12 <= high).all()


def test_the_difference_of_phases_by_hand():
    """Two sequences that differ by 1 and by 0: drawn again, the difference lies between."""
    grows, shrinks = (1.0, 2.0), (2.0, 1.0)
    before = torch.tensor([[grows[0]], [shrinks[0]], [grows[0]], [grows[0]]])
    after = torch.tensor([[grows[1]], [shrinks[1]], [grows[1]], [grows[1]]])
    rows = table((2, 2), phase=["prompt", "response"] * 2)
    phases = layer_voids(chain(before, after, rows=rows))["phases"]
    assert phases.curves["prompt − response"].tolist() == [0.5]
    assert phases.bands["prompt − response"][:, 0].tolist() == [0.0, 1.0]


def test_a_row_can_be_called_by_the_token_it_made():
    states = [torch.tensor([[1.0], [2.0], [3.0], [1.0], [1.0]]), torch.tensor([[2.0], [1.0], [9.0], [0.0], [0.0]])]
    rows = table((3, 2), text=list("abcde"), phase=["prompt", "response", "response", "prompt", "response"])
    made, given = (layer_voids(chain(*states, rows=rows), align=a) for a in ("produced", "input"))
    assert given["usage"].tokens == ("a", "b", "c") and given["voids"].values.ravel().tolist() == [1, 0, 1]
    assert made["usage"].tokens == ("b", "c") and made["voids"].values.ravel().tolist() == [1, 0]
    # The last row of each text made no token of it; phases stay those of the pass.
    assert made.diagnostics["rows"] == {
        "all rows": 3,
        "without first and special rows": 1,
        "first rows": 2,
        "prompt rows": 2,
        "response rows": 1,
    }
    assert made["rate"].curves["prompt rows"].tolist() == [0.5]
    assert given["rate"].curves["response rows"].tolist() == pytest.approx([1 / 3])


def test_one_massive_dimension_switches_later_layers_off_until_it_is_left_out(states):
    twin = states.clone()
    twin[:, :, 2] = 0
    massive = twin.clone()
    massive[2:6, 4, 2] = 2400.0
    hidden, shown, wanted = layer_voids(chain(*massive)), layer_voids(chain(*massive), exclude_dims=(2,)), layer_voids(chain(*twin))
    assert hidden["voids"].values[4].tolist() == [*wanted["voids"].values[4, :1], 1, 0, 0, 0, 0]
    assert shown["voids"].values.tolist() == wanted["voids"].values.tolist()
    assert shown["progress"].values.tolist() == wanted["progress"].values.tolist()
    others = np.arange(9) != 4
    assert hidden["voids"].values[others].tolist() == wanted["voids"].values[others].tolist()


def test_a_model_with_a_massive_activation_is_switched_off_at_its_token():
    model = planted_massive.wrapped(planted_massive.planted(), certify=False)
    recording = model.run([planted_massive.TEXT], read=READ)
    at, layer = planted_massive.TEXT.index(planted_massive.TOKEN), planted_massive.LAYER
    hidden, shown = layer_voids(recording), layer_voids(recording, exclude_dims=(planted_massive.DIM,))
    assert hidden["voids"].values[at, layer] == 1
    assert (hidden["voids"].values[at, layer + 1 :] == 0).all()
    assert hidden["thresholds"].values[at, layer + 1] > 1000 > 100 * shown["thresholds"].values[at].max()


def test_the_rows_that_cannot_be_compared_stand_apart():
    kinds = ["bos", "token", "token", "token", "special"]
    before = torch.ones(5, 1)
    after = torch.tensor([[0.0], [2.0], [2.0], [0.0], [0.0]])
    report = layer_voids(chain(before, after, rows=table((3, 2), kinds)))
    rates = {n: c[0] for n, c in report["rate"].curves.items()}
    assert rates == pytest.approx(
        {"all rows": 0.4, "without first and special rows": 1.0, "bos rows": 0, "special rows": 0, "token rows": 2 / 3, "first rows": 0}
    )
    assert report["voids"].masks["first or special"].ravel().tolist() == [True, False, False]


def test_the_interval_is_over_sequences():
    before, after = torch.ones(4, 1), torch.tensor([[2.0], [2.0], [0.0], [0.0]])
    report = layer_voids(chain(before, after, rows=table((2, 2))))
    assert report["rate"].bands["all rows"][:, 0].tolist() == [0.0, 1.0]
    assert np.isnan(layer_voids(chain(before, after))["rate"].bands["all rows"]).all()


def test_patches_are_laid_over_the_image():
    model, images = act.wrap(*act.testing.tiny("vit"), certify=False), act.testing.images()
    recording = model.run(images, read=READ)
    grid, over = layer_voids(recording, example=1)["usage"], layer_voids(recording, example=1, image=images[1])["usage"]
    verdicts = layer_voids(recording, example=1)["voids"].values
    assert grid.axes == ("height", "width") and over.image.shape == images[1].shape
    patches = recording.rows[""].take(recording.rows[""].span(1))["kind"] == "patch"
    assert grid.values.ravel().tolist() == over.values[0].ravel().tolist() == verdicts[patches].mean(1).tolist()
    assert {"cls rows", "patch rows"} <= set(layer_voids(recording)["rate"].curves)
    with pytest.raises(InputError, match="patches make none"):
        layer_voids(recording, align="produced")


def test_stacks_stand_apart():
    model = act.wrap(*act.testing.tiny("t5"), certify=False)
    data = {"encoder": act.testing.texts()[:2], "decoder": ["the cat", "who"]}
    report = layer_voids(
        model.run(data, read=[f"{s}.{r}" for s in ("encoder", "decoder") for r in ("blocks.*.resid_pre", "blocks.*.resid_post")])
    )
    assert {"encoder voids", "decoder voids", "encoder rate", "decoder rate"} <= set(report)
    assert report.words[0].startswith("encoder: at alpha 0.8")


def test_the_words_say_what_was_found():
    report = layer_voids(chain(*of_lengths(*LENGTHS, rows=2)))
    assert "at alpha 0.8 a row has 60% of its layers active" in report.words[0]
    assert "blocks.3 is active for the fewest rows (0%), blocks.0 for the most (100%)." in report.words
    assert "first rows have 60% active, rows without first and special rows 60%." in report.words
    assert "Active layers (1) and voids (0) of example 0" in report._repr_html_()


def test_refusals(states):
    recording = chain(*states, rows=table((4, 5)))
    with pytest.raises(UnknownSite, match="has no site 'blocks.*.resid_post'"):
        layer_voids(Recording({"embed": recording["embed"]}, recording.rows))
    with pytest.raises(InputError, match="this recording has blocks 0, 2, 3, 4, 5"):
        layer_voids(Recording({n: recording[n] for n in recording if "blocks.1" not in n}, recording.rows))
    with pytest.raises(InputError, match="neither blocks.0.resid_pre nor embed"):
        layer_voids(Recording({n: recording[n] for n in recording if n != "embed"}, recording.rows))
    with pytest.raises(InputError, match="has features 0 to 5; exclude_dims= names 6"):
        layer_voids(recording, exclude_dims=(6,))
    with pytest.raises(InputError, match="alpha is a share of a range, 0 or more .*; found -0.1"):
        layer_voids(recording, alpha=-0.1)
    with pytest.raises(InputError, match="found nan"):
        layer_voids(recording, alphas=(float("nan"),))
    with pytest.raises(InputError, match="alphas is empty"):
        layer_voids(recording, alphas=())
    with pytest.raises(InputError, match="align='output' is no alignment; choose one of 'input', 'produced'"):
        layer_voids(recording, align="output")
    with pytest.raises(InputError, match="There is no example 7 in this recording; choose among 0, 1"):
        layer_voids(recording, example=7)
    with pytest.raises(InputError, match="every text here has one token"):
        layer_voids(chain(*states, rows=table((1,) * 9)), align="produced")
    with pytest.raises(InputError, match="image= lies under patches; these rows are tokens"):
        layer_voids(recording, image=act.testing.images()[0])
    states[1, 2, 0] = torch.nan
    with pytest.raises(NotFinite, match="Its length is not known"):
        layer_voids(chain(*states))
