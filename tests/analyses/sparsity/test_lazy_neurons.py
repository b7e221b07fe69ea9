"""lazy_neurons: planted percentages, whole-number state, what is left out, and the words of its refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import activarium as act
from activarium.activations import Activations
from activarium.errors import AxisError, InputError, NotFinite, UnknownSite
from activarium.protocols import Runner
from activarium.recording import Recording
from activarium.rows import Rows
from activarium.summaries import Count, Moments

lazy_neurons = act.analyses.lazy_neurons
DEFAULT = ("bos", "cls", "register", "special")
WORDS, WIDTH, FIRING = 40, 1000, 30


def table(examples: list[int], kinds: list[str] | None = None) -> Rows:
    position = np.concatenate([np.arange(examples.count(e)) for e in dict.fromkeys(examples)])
    kinds = kinds or ["token"] * len(examples)
    texts = [f"w{p}" for p in position]
    return Rows(
        {"example": np.array(examples), "position": position, "text": np.array(texts, dtype=object), "kind": np.array(kinds, dtype=object)}
    )


def site(values: list[list[float]] | torch.Tensor, rows: Rows | None = None, name: str = "blocks.0.mlp.act") -> Activations:
    return Activations(torch.as_tensor(values), "row d_mlp", site=name, index=rows)


def test_two_rows_by_hand():
    report = lazy_neurons(site([[0.0, 2.0, 0.0, 0.0], [0.0, 1.0, 3.0, 0.0]]))
    assert report.diagnostics["percent"] == 37.5
    assert report["fires"].values.tolist() == [[0, 2, 1, 0]]
    assert report["firing rate"].values.tolist() == [[0.0, 1.0, 0.5, 0.0]]
    assert report["nonzeros per row"].values.tolist() == [[0, 1, 1, 0, 0]]
    assert report["layers"].columns["dead"].tolist() == [2]
    assert report["layers"].columns["always on"].tolist() == [1]


def test_rates_by_hand_with_dead_and_always_on_apart():
    values = torch.zeros(20, 5)
    values[:, 1], values[:1, 2], values[:2, 3], values[:19, 4] = 1, 1, 1, 1  # never, always, 5 %, 10 %, 95 %
    rates = lazy_neurons(site(values))["rates"]
    share = dict(zip(rates.x.tolist(), rates.curves["blocks.0.mlp.act"].tolist(), strict=True))
    assert {at: s for at, s in share.items() if s} == {0.0: 0.2, 2.5: 0.2, 7.5: 0.2, 92.5: 0.2, 100.0: 0.2}
    assert sum(share.values()) == pytest.approx(1)


def test_the_model_value_is_the_plain_mean_over_layers_and_the_ranking_starts_with_the_laziest():
    layers = [site([[1.0, 1.0, 0.0, 0.0]]), site([[1.0, 0.0, 0.0, 0.0]], name="blocks.1.mlp.act")]
    report = lazy_neurons(Activations.stack(layers, [a.site for a in layers], "blocks.*.mlp.act"))
    assert report["nonzero"].curves["nonzero"].tolist() == [50.0, 25.0]
    assert report.diagnostics["percent"] == 37.5
    assert report["layers"].names == ("blocks.1.mlp.act", "blocks.0.mlp.act")


def test_negative_zero_is_zero():
    assert lazy_neurons(site([[-0.0, 0.0, 1.0, -0.0]])).diagnostics["percent"] == 25.0


def test_excluded_kinds_change_nothing_but_their_count():
    values = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 0.0]])
    report = lazy_neurons(site(values, table([0, 0, 0], ["bos", "token", "token"])))
    assert report.diagnostics["percent"] == 25.0
    assert report.diagnostics["excluded"] == {"bos": 1, "cls": 0, "register": 0, "special": 0}
    assert "Left out before counting: 1 bos rows." in report.words
    assert lazy_neurons(site(values, table([0, 0, 0], ["bos", "token", "token"])), exclude=()).diagnostics["percent"] == 50.0


def test_stacks_are_reported_apart():
    rows = table([0, 0])
    sites = {
        f"{stack}.blocks.0.mlp.act": site(values, rows, f"{stack}.blocks.0.mlp.act")
        for stack, values in {"encoder": [[1.0, 0.0], [1.0, 0.0]], "decoder": [[1.0, 1.0], [1.0, 0.0]]}.items()
    }
    report = lazy_neurons(Recording(sites, {"encoder": rows, "decoder": rows}))
    assert report.diagnostics["encoder percent"] == 50.0
    assert report.diagnostics["decoder percent"] == 75.0
    assert "encoder nonzero" in report.parts
    assert "decoder nonzero" in report.parts


def test_post_is_read_where_act_was_not_recorded_and_the_result_says_so():
    rows = table([0])
    report = lazy_neurons(Recording({"blocks.0.mlp.post": site([[1.0, 0.0]], rows, "blocks.0.mlp.post")}, {"": rows}))
    assert report.diagnostics["site"] == "mlp.post"


def test_one_example_row_by_row():
    values = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    shown = lazy_neurons(site(values, table([0, 0, 1], ["bos", "token", "token"])), example=0)["rows"]
    assert shown.tokens == ("w0", "w1")
    assert np.isnan(shown.values[0, 0])
    assert shown.values[0, 1] == 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(7)
    inside = 0
    for trial in range(60):
        shares = generator.beta(2, 8, size=40)  # sequences differ, tokens of one resemble one another
        values = torch.tensor(generator.random((400, 25)) < np.repeat(shares, 10)[:, None]).float()
        notes = lazy_neurons(site(values, table(np.repeat(np.arange(40), 10).tolist())), seed=trial, resamples=300).diagnostics
        inside += notes["low"] <= 20.0 <= notes["high"]
    assert 50 <= inside <= 60


def test_one_sequence_has_no_interval():
    report = lazy_neurons(site([[1.0, 0.0]], table([0])))
    assert np.isnan(report.diagnostics["low"])
    assert "one sequence: no interval" in report.words[0]


def test_bfloat16_counts_beyond_256():
    values = torch.zeros(1000, 3, dtype=torch.bfloat16)
    values[:, 1] = 1.0
    report = lazy_neurons(site(values))
    assert report["fires"].values.tolist() == [[0, 1000, 0]]
    assert report.diagnostics["dtype"] == "bfloat16"


def test_inputs_are_left_untouched():
    values = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    before = values.clone()
    lazy_neurons(site(values, table([0, 1])))
    assert torch.equal(values, before)


# A model in which token v fires exactly the neurons 30v … 30v+29 (mod 1000), and token 40 fires every neuron.


@pytest.fixture(scope="module")
def planted() -> GPT2LMHeadModel:
    wide = WORDS + 1
    config = GPT2Config(
        vocab_size=wide, n_positions=16, n_embd=wide, n_layer=2, n_head=1, n_inner=WIDTH, activation_function="relu",
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.eye(wide))
        model.transformer.wpe.weight.zero_()
        for block in model.transformer.h:
            block.attn.c_proj.weight.mul_(0.1)  # little is written, so both layers see the embedding, far from any threshold
            block.mlp.c_proj.weight.mul_(0.01)
            block.mlp.c_fc.weight.zero_()
            block.mlp.c_fc.bias.fill_(-0.5)
            for word in range(WORDS):
                block.mlp.c_fc.weight[word, [(FIRING * word + i) % WIDTH for i in range(FIRING)]] = 1.0
            block.mlp.c_fc.weight[WORDS] = 1.0
    return model


TEXTS = [[0, 5, 9, 39], [7], [33, 34, 35, 36, 37, 38, 0], [5, 5, 5], [12, 1]]


SAID = [word for text in TEXTS for word in text]


def expected_fires() -> np.ndarray:
    fires = np.zeros(WIDTH, np.int64)
    for word in SAID:
        fires[[(FIRING * word + i) % WIDTH for i in range(FIRING)]] += 1
    return fires


def padded(side: str) -> torch.Tensor:
    longest = max(map(len, TEXTS))
    return torch.tensor([[WORDS] * (longest - len(t)) + t if side == "left" else t + [WORDS] * (longest - len(t)) for t in TEXTS])


def quick(model: torch.nn.Module) -> Runner:
    return act.wrap(model, certify="quick")  # reads are proven; nothing is written here


def test_three_percent_planted_through_weights(planted: GPT2LMHeadModel):
    report = lazy_neurons(quick(planted).run(TEXTS, read="blocks.*.mlp.act"))
    words = len(SAID)
    assert report.diagnostics["percent"] == 3.0
    assert report["nonzeros per row"].values[:, FIRING].tolist() == [words, words]
    assert report["nonzeros per row"].values.sum() == 2 * words
    assert np.array_equal(report["fires"].values, np.stack([expected_fires()] * 2))


def test_pads_that_fire_every_neuron_move_nothing(planted: GPT2LMHeadModel):
    planted.config.pad_token_id = WORDS  # the loudest token pads
    model = quick(planted)
    whole = lazy_neurons(model.run(TEXTS, read="blocks.*.mlp.act"))
    alone = [lazy_neurons(model.run([text], read="blocks.*.mlp.act")) for text in TEXTS]
    reordered = lazy_neurons(model.run(TEXTS[::-1], read="blocks.*.mlp.act"))
    assert whole.diagnostics["percent"] == 3.0
    for name in ("fires", "nonzeros per row"):
        assert np.array_equal(whole[name].values, sum(report[name].values for report in alone))
        assert np.array_equal(whole[name].values, reordered[name].values)


@pytest.mark.parametrize("batch_tokens", [8, 4096])
@pytest.mark.parametrize("stored", [False, True])
def test_memory_store_and_batch_size_give_the_same_whole_numbers(planted: GPT2LMHeadModel, tmp_path: Path, batch_tokens: int, stored: bool):
    to = tmp_path / "planted.acts" if stored else None
    recording = act.capture(quick(planted), TEXTS, ["blocks.*.mlp.act"], to=to, batch_tokens=batch_tokens, progress=False)
    report = lazy_neurons(act.open(to) if stored else recording, example=2)
    assert np.array_equal(report["fires"].values, np.stack([expected_fires()] * 2))
    assert report["rows"].values.tolist() == [[float(FIRING)] * len(TEXTS[2])] * 2
    assert report.diagnostics["sequences"] == len(TEXTS)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_repacked_without_its_pads(planted: GPT2LMHeadModel, side: str):
    ids = padded(side)
    recording = quick(planted).run({"input_ids": ids, "attention_mask": (ids != WORDS).long()}, read="blocks.*.mlp.act")
    assert np.array_equal(lazy_neurons(recording)["fires"].values, np.stack([expected_fires()] * 2))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_dense_batch_padded_by_hand_gives_the_same_whole_numbers(planted: GPT2LMHeadModel, side: str):
    ids = padded(side)
    seen: list[torch.Tensor] = []
    handle = planted.transformer.h[0].mlp.act.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    planted(ids, attention_mask=(ids != WORDS).long())
    handle.remove()
    kinds = np.where(ids.flatten().numpy() == WORDS, "pad", "token")
    rows = Rows({"example": np.repeat(np.arange(len(TEXTS)), ids.shape[1]), "kind": kinds})
    dense = site(seen[0].flatten(0, 1), rows)
    assert lazy_neurons(dense).diagnostics["percent"] > 30  # what one gets who forgets the pads
    assert np.array_equal(lazy_neurons(dense, exclude=("pad",))["fires"].values[0], expected_fires())


def t5(activation: str) -> act.Recording:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4, feed_forward_proj=activation,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return quick(T5ForConditionalGeneration(config).eval()).run(
        [[5, 6, 7], [8, 9]], read=["encoder.blocks.*.mlp.act", "decoder.blocks.*.mlp.act"]
    )


def test_gated_gelu_warns_and_relu_does_not():
    with pytest.warns(UserWarning, match="sparsity of smooth activations"):
        smooth = lazy_neurons(t5("gated-gelu"))
    assert smooth.diagnostics["encoder percent"] > 99
    assert any("smooth activation" in line for line in smooth.words)
    rectified = lazy_neurons(t5("relu"))  # warnings are errors here
    assert 30 < rectified.diagnostics["encoder percent"] < 70


def test_values_below_zero_at_post_may_be_gated():
    with pytest.warns(UserWarning, match=r"Record mlp.act to tell them apart"):
        lazy_neurons(site([[0.0, -2.0, 0.0, 1.0]], name="blocks.0.mlp.post"))


def test_nan_fails_loudly_with_its_place():
    values = torch.tensor([[0.0, 1.0], [0.0, float("nan")], [float("inf"), float("nan")]])
    with pytest.raises(
        NotFinite, match=r"blocks.0.mlp.act holds 2 NaN and 1 infinite numbers among 6; the first in example 4, position 0 \('w0'\)"
    ):
        lazy_neurons(site(values, table([3, 4, 4])))


def test_nan_in_an_excluded_row_is_not_counted():
    values = torch.tensor([[float("nan"), 1.0], [0.0, 1.0]])
    assert lazy_neurons(site(values, table([0, 0], ["bos", "token"]))).diagnostics["percent"] == 50.0


def test_an_unrecorded_site_says_what_to_read():
    rows = table([0])
    recording = Recording(
        {"blocks.0.resid_post": Activations(torch.ones(1, 2), "row d_model", site="blocks.0.resid_post", index=rows)}, {"": rows}
    )
    with pytest.raises(UnknownSite, match=r"no site 'blocks.\*.mlp.act'; it has blocks.0.resid_post. Read it: model.run"):
        lazy_neurons(recording)


def test_other_axes_are_refused():
    with pytest.raises(AxisError, match=r"needs axes 'row d_mlp'; blocks.0.mlp.act has 'row slot d_mlp'"):
        lazy_neurons(Activations(torch.ones(2, 2, 2), "row slot d_mlp", site="blocks.0.mlp.act"))


def test_excluding_every_row_is_refused():
    with pytest.raises(InputError, match="No row is left to count: the rows have the kinds token, excluded are token"):
        lazy_neurons(site([[1.0]], table([0])), exclude=("token",))


def test_a_survey_gives_the_same_bits_as_the_activations(planted: GPT2LMHeadModel):
    model = quick(planted)
    ids = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    here = lazy_neurons(model.run(ids, read="blocks.*.mlp.act"))
    for batch_tokens in (2, 100):
        gathered = act.survey(model, {"blocks.*.mlp.act": [Count()]}, ids, exclude=DEFAULT, batch_tokens=batch_tokens, progress=False)
        there = lazy_neurons(gathered)
        assert list(there) == list(here) and all(act.identical(there[name], here[name]) for name in here)
        assert there.diagnostics["percent"] == here.diagnostics["percent"]


def test_a_survey_that_does_not_fit_is_refused(planted: GPT2LMHeadModel):
    model = quick(planted)
    gathered = act.survey(model, {"blocks.*.mlp.act": [Count()]}, [[1, 2, 3]], progress=False)
    with pytest.raises(InputError, match=r"left out rows of kind \[\]; exclude= says \['bos'"):
        lazy_neurons(gathered)
    assert lazy_neurons(gathered, exclude=()).diagnostics["rows"] == 3
    with pytest.raises(InputError, match="A survey keeps no rows, so example 0 cannot be shown"):
        lazy_neurons(gathered, exclude=(), example=0)
    other = act.survey(model, {"blocks.*.mlp.act": [Moments()]}, [[1, 2, 3]], progress=False)
    with pytest.raises(UnknownSite, match="no Count at blocks"):
        lazy_neurons(other, exclude=())
