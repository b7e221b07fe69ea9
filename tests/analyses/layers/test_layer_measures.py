"""layer_measures: the same numbers as the single analyses, correlations by hand, what the nulls really are."""

import numpy as np
import pandas
import pytest
import torch

import activarium as act
from activarium.analyses.layers.intervals import Intervals
from activarium.analyses.layers.measures import correlation_interval, rank_correlations
from activarium.analyses.layers.nulls import in_disorder, recorded
from activarium.errors import InputError, NotFinite, UnknownSite
from activarium.recording import Recording
from activarium.results import identical

from .stacks_by_hand import chain, of_lengths, table

layer_measures = act.analyses.layer_measures
READ = ["blocks.*.resid_pre", "blocks.*.resid_post"]
TEXTS = act.testing.texts()
MEASURES = ["layer usage", "influence", "relative update", "along", "across", "angle", "CKA distance"]


@pytest.fixture(scope="module")
def llama():
    return act.wrap(*act.testing.tiny("llama", num_hidden_layers=4), certify=False)


@pytest.fixture(scope="module")
def report(llama):
    return layer_measures(llama.run(TEXTS, read=READ), llama, TEXTS)


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(5, 9, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def by_block(report) -> pandas.DataFrame:
    return report["table"].to_frame().set_index("name").sort_index()


def test_the_table_holds_what_the_single_analyses_say(llama, report):
    recording = llama.run(TEXTS, read=READ)
    voids, influence = act.analyses.layer_voids(recording), act.analyses.block_influence(recording, llama, TEXTS)
    wanted = {
        "layer usage": voids["rate"].curves["all rows"],
        "influence": influence["influence"].curves["all rows"],
        **influence["updates"].curves,
        "angle": influence["angles"].values[:, 0],
        "CKA distance": 1 - influence["similarity"].curves["linear CKA"],
        "nats": influence["removal"].curves["KL"],
        "rise of loss": influence["removal"].curves["rise of loss"],
    }
    found = by_block(report)
    assert set(found.columns) == set(wanted)
    for name, values in wanted.items():
        assert found[name].to_numpy() == pytest.approx(values), name
    assert (np.diff(report["table"].values) <= 0).all()


def test_a_rescaling_block_is_active_and_has_no_influence():
    """The measures must disagree here, and their correlation says so."""
    x = of_lengths(1.0, rows=3)[0] + torch.eye(3, 2, dtype=torch.float64)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    report = layer_measures(chain(x, 4 * x, 16 * x, 16 * x @ turn))
    found = by_block(report)
    assert found["layer usage"].tolist() == [1, 1, 0]
    assert found["1 − cosine"].tolist() == pytest.approx([0, 0, 1], abs=1e-12)
    assert found["along"].tolist() == pytest.approx([3, 3, -1])
    assert found["CKA distance"].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    names = report["correlations"].label("measure")
    rho = report["correlations"].values
    assert rho[names.index("influence"), names.index("layer usage")] == pytest.approx(-1)


def test_rank_correlations_by_hand():
    rho = rank_correlations({"a": np.array([1.0, 2.0, 30.0]), "b": np.array([-1.0, -2.0, -3.0]), "c": np.array([2.0, 2.0, 2.0])})
    assert rho[0, 1] == pytest.approx(-1) and rho[0, 0] == pytest.approx(1)
    assert np.isnan(rho[0, 2])


def test_the_interval_of_a_correlation_is_over_sequences():
    """One sequence orders the blocks one way and the other the other way: drawn again, either may stand alone."""
    ones = np.ones((2, 3))
    same = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    mixed = np.array([[1.0, 2.0, 3.0], [6.0, 4.0, 2.0]])
    options = Intervals(0.95, 200, 0).options
    assert correlation_interval((same, ones), (mixed, ones), options) == (-1.0, 1.0)
    assert correlation_interval((same, ones), (same, ones), options) == pytest.approx((1.0, 1.0))
    assert np.isnan(correlation_interval((same[:1], ones[:1]), (same[:1], ones[:1]), options)).all()


def test_correlations_are_those_of_the_table(report):
    found = by_block(report).rename(columns={"nats": "removal KL"})
    names = report["correlations"].label("measure")
    assert names == [*MEASURES, "removal KL", "rise of loss"]
    assert report["correlations"].values == pytest.approx(found[names].corr("spearman").to_numpy(), nan_ok=True)
    against = report["against removal"]
    assert set(against.names) == set(MEASURES)
    for name, value in zip(against.names, against.values, strict=True):
        assert value == pytest.approx(found[name].corr(found["removal KL"], method="spearman"), nan_ok=True)


def test_the_untrained_twin_is_measured_like_the_model(llama, report):
    twin = llama.untrained(0)
    alone = layer_measures(twin.run(TEXTS, read=READ))
    for name in MEASURES:
        assert report[name].curves["untrained twin"] == pytest.approx(alone[name].curves["the model"]), name
        assert list(report[name].curves) == ["the model", "untrained twin", "shuffled rows"]
    assert report["influence"].curves["untrained twin"] != pytest.approx(report["influence"].curves["the model"], rel=0.1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit", "bert"])
def test_shuffled_rows_are_the_same_embeddings_in_another_order(family):
    model = act.wrap(*act.testing.tiny(family), certify=False)
    data = act.testing.images(3) if family == "vit" else [TEXTS[3], TEXTS[0], TEXTS[1]]
    given = model.run(data, read="token_embed")["token_embed"]
    moved = recorded(model, data, ["token_embed"], in_disorder("", np.random.default_rng(0)))["token_embed"]
    kinds = given.index["kind"]
    for example in range(3):
        before, after = given.example(example).tensor, moved.example(example).tensor
        assert not torch.equal(before, after)
        assert sorted(before.tolist()) == sorted(after.tolist())
    fixed = torch.as_tensor(~np.isin(kinds, ("token", "patch")))
    assert torch.equal(given.tensor[fixed], moved.tensor[fixed])
    again = recorded(model, data, ["token_embed"], in_disorder("", np.random.default_rng(0)))["token_embed"]
    assert torch.equal(again.tensor, moved.tensor)


def test_texts_of_one_word_have_no_disorder(llama):
    words = ["the", "cat", "river"]
    report = layer_measures(llama.run(words, read=READ), llama, words)
    for name in ("layer usage", "influence", "angle"):
        assert report[name].curves["shuffled rows"] == pytest.approx(report[name].curves["the model"], rel=1e-5), name


def test_nulls_go_over_all_batches(llama):
    once, often = (layer_measures(llama.run(t, read=READ), llama, t) for t in (TEXTS, TEXTS * 5))
    assert often["influence"].curves["untrained twin"] == pytest.approx(once["influence"].curves["untrained twin"], rel=1e-4)


def test_a_model_without_a_twin_says_so():
    network, tokenizer = act.testing.tiny("llama", num_hidden_layers=3)
    network.model.layers = network.model.layers[:2]
    model = act.wrap(network, tokenizer, certify=False)
    report = layer_measures(model.run(TEXTS, read=READ), model, TEXTS)
    assert "there is no untrained twin: The config of" in report.words[-1]
    assert list(report["influence"].curves) == ["the model", "shuffled rows"]


def test_a_massive_dimension_is_left_out_of_every_measure(states):
    massive = states.clone()
    massive[:, :, 2] = 1e6
    rest = states.clone()
    rest[:, :, 2] = 0
    shown, wanted = by_block(layer_measures(chain(*massive), exclude_dims=(2,))), by_block(layer_measures(chain(*rest)))
    for name in wanted:
        assert shown[name].to_numpy() == pytest.approx(wanted[name].to_numpy()), name


def test_pieces_change_no_bit_and_a_capture_is_a_recording(states, llama, tmp_path):
    rows = table((4, 5))
    assert identical(layer_measures(chain(*states, rows=rows)), layer_measures(chain(*states, rows=rows, cut=(2, 5))))
    live = by_block(layer_measures(llama.run(TEXTS, read=READ)))
    stored = by_block(layer_measures(act.capture(llama, TEXTS, READ, to=tmp_path / "kept.acts", progress=False)))
    assert stored.to_numpy() == pytest.approx(live.to_numpy(), rel=1e-3)


def test_images_and_two_stacks():
    model, images = act.wrap(*act.testing.tiny("vit"), certify=False), act.testing.images(3)
    report = layer_measures(model.run(images, read=READ), model, images)
    assert {"untrained twin", "shuffled rows"} <= set(report["layer usage"].curves)
    assert "rise of loss" not in report["table"].columns  # nothing says what these images show
    model = act.wrap(*act.testing.tiny("t5"), certify=False)
    data = {"encoder": TEXTS[:2], "decoder": ["the cat", "who"]}
    report = layer_measures(model.run(data, read=[f"{s}.{r}" for s in ("encoder", "decoder") for r in READ]), model, data)
    assert {"encoder table", "decoder table", "encoder influence", "decoder against removal"} <= set(report)
    assert any(w.startswith("decoder: over 3 blocks") for w in report.words)


def test_the_words(report, llama):
    assert report.words[0].startswith("over 4 blocks the cost of removal goes best with ")
    assert "a rank correlation over 4 blocks is hardly evidence." in report.words
    quiet = layer_measures(llama.run(TEXTS, read=READ))
    assert quiet.words == ("4 blocks; without a model no removal says which of the measures is right.",)
    assert "against removal" not in quiet and list(quiet["influence"].curves) == ["the model"]


def test_refusals(states):
    recording = chain(*states)
    with pytest.raises(InputError, match="need both model= and inputs="):
        layer_measures(recording, inputs=["a"])
    with pytest.raises(UnknownSite, match="has no site 'blocks.*.resid_post'"):
        layer_measures(Recording({"embed": recording["embed"]}, recording.rows))
    with pytest.raises(InputError, match="this recording has blocks 0, 2, 3"):
        layer_measures(Recording({n: recording[n] for n in recording if "blocks.1" not in n}, recording.rows))
    with pytest.raises(InputError, match="exclude_dims= names 6"):
        layer_measures(recording, exclude_dims=(6,))
    states[1, 2, 0] = torch.nan
    with pytest.raises(NotFinite, match="Its length is not known"):
        layer_measures(chain(*states))
