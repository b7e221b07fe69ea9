"""sparse_decode: planted neurons cost nothing, the baselines do, and the numbers are those of the masked model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import activarium as act
from activarium.analyses.sparsity.cores import Settings, core_of
from activarium.capture import TorchRunner
from activarium.edits import Where, Zero
from activarium.errors import InputError, MissingSite
from activarium.results import Report

sparse_decode = act.analyses.sparse_decode
SHARED = Path(__file__).parents[4] / "shared" / "models"
PROMPT = "the cat sat on the book"
WORDS, WIDTH, FIRING = 20, 600, 30
PROMPTS = [[word] * 5 for word in (3, 7, 9, 11, 15, 18)]


@pytest.fixture(scope="module")
def planted() -> TorchRunner:
    """Token v fires exactly the neurons 30 v … 30 v + 29, and the likeliest next token is the same one again."""
    config = GPT2Config(
        vocab_size=WORDS, n_positions=24, n_embd=WORDS, n_layer=2, n_head=1, n_inner=WIDTH, activation_function="relu",
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.eye(WORDS))
        model.transformer.wpe.weight.zero_()
        for block in model.transformer.h:
            block.attn.c_proj.weight.mul_(0.01)
            block.mlp.c_proj.weight.normal_(0, 0.002)
            block.mlp.c_fc.weight.zero_()
            block.mlp.c_fc.bias.fill_(-0.5)
            for word in range(WORDS):
                block.mlp.c_fc.weight[word, FIRING * word : FIRING * (word + 1)] = 1.0
    return act.wrap(model, certify="quick")


def decoded(model: TorchRunner, **options: object) -> Report:
    given: dict = {"alpha": 1.0, "beta": FIRING / WIDTH, "max_new_tokens": 5, "rounds": 1}
    return sparse_decode(model, PROMPTS, **{**given, **options})


def column(report: Report, name: str, column: str = "") -> float:
    ranking = report["quality"]
    values = ranking.columns[column] if column else ranking.values
    return float(values[ranking.names.index(name)])


def test_planted_neurons_cost_nothing_while_a_static_set_and_a_random_one_do(planted: TorchRunner):
    report = decoded(planted)
    assert column(report, "stability") < 1e-9
    assert column(report, "stability", "energy recall") == 1.0
    assert column(report, "stability", "perplexity") == pytest.approx(column(report, "stability", "dense perplexity"), rel=1e-6)
    assert column(report, "stability", "same top token") == 1.0
    # A static set of this size holds the neurons of one prompt of six.
    assert column(report, "static", "energy recall") == pytest.approx(1 / 6)
    assert column(report, "static") > 1e-5 and column(report, "random") > 1e-5
    assert any("the chosen set is better than the static one" in line and "better than the random one" in line for line in report.words)
    assert "Choosing neurons by prompt beats choosing them once for all." in report.words
    assert report.diagnostics["share of neurons"] == FIRING / WIDTH
    assert any("hold 100 % of the energy in the first 4 steps and 100 % in the last 4; random ones" in line for line in report.words)
    assert report.diagnostics["union density"] == 6 * FIRING / WIDTH
    assert report.diagnostics["union if independent"] == pytest.approx(1 - 0.95**6)
    assert report.diagnostics["mlp ceiling"] == pytest.approx(20)


def test_a_cluster_serves_the_prompts_that_are_like_it(planted: TorchRunner):
    recording = planted.run([*PROMPTS, *PROMPTS], read="blocks.*.mlp.post")
    clusters = act.analyses.core_clusters(
        recording, labels=[str(p[0]) for p in (*PROMPTS, *PROMPTS)], alpha=1.0, beta=FIRING / WIDTH, gamma=FIRING / WIDTH
    )
    report = decoded(planted, strategy="similarity", clusters=clusters)
    assert column(report, "similarity") < 1e-9
    assert column(report, "similarity", "energy recall") == 1.0
    wide = act.analyses.core_clusters(recording, labels=["all"] * 12, alpha=1.0, beta=FIRING / WIDTH, gamma=1.0)
    everything = decoded(planted, strategy="similarity", clusters=wide)
    assert (
        "Nothing here shows that choosing neurons by prompt beats choosing them once for all." in everything.words
    )  # the static set is the same one
    assert everything.diagnostics["share of neurons"] == 6 * FIRING / WIDTH  # only neurons that are in any core
    assert everything.diagnostics["union density"] == everything.diagnostics["share of neurons"]


def test_one_static_set_for_all_is_as_good_as_it_is(planted: TorchRunner):
    report = decoded(planted, strategy="static")
    assert sorted(report["quality"].names) == ["random", "static", "static with means"]
    assert column(report, "static", "energy recall") == pytest.approx(1 / 6)
    assert not any("by prompt" in line for line in report.words)


def kl_by_hand(model: TorchRunner, site: str, core: np.ndarray, tokens: int) -> float:
    """KL at each written token but the first, from one masked forward over the dense continuation."""
    written = model.decode(PROMPT, tokens)
    others = tuple(sorted(set(range(48)) - set(core.tolist())))
    edit = Zero(site, where=Where(features=others, positions=tuple(range(-tokens, -1))))
    full, masked = (model.run(written.inputs, read="logits", edits=e)["logits"].tensor[-tokens:-1].double() for e in ((), [edit]))
    p, q = full.log_softmax(1), masked.log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


@pytest.mark.parametrize("family", ["opt", "llama", "gemma2", "gpt_neox"])
def test_the_cost_is_that_of_the_masked_model(family: str):
    model = act.wrap(*act.testing.tiny(family), certify=False)
    site = "blocks.1.mlp.post"
    report = sparse_decode(model, [PROMPT], skip_layers=1, max_new_tokens=6, rounds=1, exclude=())
    core = core_of(model.run(PROMPT, read=site)[site].tensor, Settings()).neurons
    assert len(core) == 9
    assert column(report, "stability") == pytest.approx(kl_by_hand(model, site, core, 6), rel=1e-3)
    assert column(report, "stability") > 1e-3
    assert report.diagnostics["largest gap to masked dense"] < 1e-5
    assert report["kl"].curves["stability"].mean() == pytest.approx(column(report, "stability"))
    assert len(report["kl"].x) == 5
    assert np.isnan(report["quality"].columns["low"]).all()  # one prompt: no interval


def test_energy_recall_by_hand():
    model = act.wrap(*act.testing.tiny("opt"), certify=False)
    site = "blocks.1.mlp.post"
    report = sparse_decode(model, [PROMPT], skip_layers=1, max_new_tokens=4, rounds=1, exclude=())
    core = core_of(model.run(PROMPT, read=site)[site].tensor, Settings()).neurons
    values = model.run(model.decode(PROMPT, 4).inputs, read=site)[site].tensor[-4:-1].double()
    energy = (values * model.torch_module.model.decoder.layers[1].fc2.weight.double().norm(dim=0)) ** 2
    wanted = (energy[:, core.tolist()].sum(1) / energy.sum(1)).detach().numpy()
    assert report["energy recall"].curves["stability"] == pytest.approx(wanted)
    assert report["recall by layer"].x.tolist() == [1]


def test_an_encoder_stays_dense_and_its_decoder_is_sparse():
    model = act.wrap(*act.testing.tiny("t5"), certify=False)
    report = sparse_decode(model, [PROMPT], max_new_tokens=4, rounds=1, exclude=())
    assert report["recall by layer"].x.tolist() == [0, 1, 2]
    assert report.diagnostics["largest gap to masked dense"] < 1e-5


def test_ceilings_are_counted_from_the_weights():
    model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
    report = sparse_decode(model, [PROMPT], beta=0.25, skip_layers=1, max_new_tokens=3, rounds=1)
    mlp, attention, head = 2 * 32 * 48, 4 * 32 * 32, 32 * 100
    share = 2 * mlp / (3 * mlp + 3 * attention + head)
    assert report.diagnostics["weights in sparse MLPs"] == pytest.approx(share)
    p = report.diagnostics["share of neurons"]
    assert p == 0.25
    assert report.diagnostics["model ceiling"] == pytest.approx(1 / (1 - share + share * p))


def test_timings_are_reported_and_nothing_is_left_behind():
    model = act.wrap(*act.testing.tiny("opt"), certify=False)
    before = model.run(PROMPT).logits.tensor
    report = sparse_decode(model, [PROMPT, "Anna saw the cat"], max_new_tokens=3, rounds=2)
    assert torch.equal(model.run(PROMPT).logits.tensor, before)
    assert sorted(report["speed"].names) == ["dense", "stability"]
    assert report["speed"].columns["timings"].tolist() == [4, 4]
    assert (report["speed"].columns["low"] > 0).all()
    record = report.diagnostics
    assert record["batch"] == 1 and record["phase"].startswith("decode") and record["indices known before"] is True
    assert "contiguous" in record["layout"] and record["threads"] >= 1
    assert any("tokens per second sparse" in line for line in report.words)


def test_first_layers_stay_dense_as_far_as_the_model_has_layers():
    model = act.wrap(*act.testing.tiny("llama", num_hidden_layers=4), certify=False)
    report = sparse_decode(model, [PROMPT], max_new_tokens=2, rounds=1)
    assert report.diagnostics["skip_layers"] == 1
    assert "the first 1 of 4 layers stay dense (the paper leaves 3 of 32" in report.words[0]
    assert report["recall by layer"].x.tolist() == [1, 2, 3]
    assert "all 4 layers are sparse." in sparse_decode(model, [PROMPT], skip_layers=0, max_new_tokens=2, rounds=1).words[0]


def test_what_cannot_be_is_refused_in_words():
    model = act.wrap(*act.testing.tiny("opt"), certify=False)
    with pytest.raises(InputError, match="strategy='magic' is not known; choose 'stability', 'similarity', 'static'"):
        sparse_decode(model, [PROMPT], strategy="magic")
    with pytest.raises(InputError, match=r"pass clusters=core_clusters\(recording\)"):
        sparse_decode(model, [PROMPT], strategy="similarity")
    clusters = act.analyses.core_clusters(model.run([PROMPT], read="blocks.0.mlp.post"), clusters=1)
    with pytest.raises(InputError, match="clusters= belongs to strategy='similarity'"):
        sparse_decode(model, [PROMPT], clusters=clusters)
    with pytest.raises(InputError, match="The clusters have no core sets for blocks.1.mlp.post. Make them from a recording of all layers"):
        sparse_decode(model, [PROMPT], strategy="similarity", clusters=clusters)
    with pytest.raises(InputError, match="skip_layers=2 leaves none of the 2 layers to run sparsely; skip 0 to 1"):
        sparse_decode(model, [PROMPT], skip_layers=2)
    with pytest.raises(InputError, match="max_new_tokens=1: the first token is the prompt's own"):
        sparse_decode(model, [PROMPT], max_new_tokens=1)
    with pytest.raises(InputError, match="rounds=0: "):
        sparse_decode(model, [PROMPT], rounds=0)
    with pytest.raises(MissingSite, match="experts"):
        sparse_decode(act.wrap(*act.testing.tiny("mixtral"), certify=False), [PROMPT])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="third-party models are not on this machine (../shared/models)")
def test_positive_cores_hold_little_of_a_trained_gated_model():
    """A story teller with SwiGLU: large values below zero are in no core, so the frozen fifth holds hardly more than any fifth would."""
    model = act.load(SHARED / "stories260K", certify=False)
    report = sparse_decode(
        model, ["Once upon a time, there was a little girl", "One day, a boy named Tim went"], max_new_tokens=9, rounds=1
    )
    assert report.diagnostics["largest gap to masked dense"] < 1e-5
    assert column(report, "stability", "energy recall") < 0.35
    assert column(report, "stability") > 0.5
