"""core_neurons: planted neurons come back, ties and short sets as stated, and the published code's other rule."""

from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium.activations import Activations
from activarium.analyses.sparsity.cores import Core, Settings, core_of, prefix_cores, similarities, similarity, token_cores
from activarium.data import samples
from activarium.errors import AxisError, InputError, NotFinite, UnknownSite
from activarium.recording import Recording
from activarium.rows import Rows

core_neurons = act.analyses.core_neurons
TEXTS = ["Anna gave the book to Peter.", "The red cats near the house sleep.", "Say a b c again."]


def site(values: torch.Tensor, lengths: list[int], kinds: list[str] | None = None, name: str = "blocks.0.mlp.post") -> Activations:
    position = np.concatenate([np.arange(n) for n in lengths])
    kind = np.array(kinds or ["token"] * len(position), dtype=object)
    text = np.array([f"w{p}" for p in position], dtype=object)
    rows = Rows({"example": np.repeat(np.arange(len(lengths)), lengths), "position": position, "text": text, "kind": kind})
    return Activations(values, "row d_mlp", site=name, index=rows)


def random(rows: int, neurons: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, neurons, generator=torch.Generator().manual_seed(seed))


def in_pieces(activations: Activations, sizes: list[int]) -> Activations:
    return Activations(list(activations.tensor.split(sizes)), activations.axes, site=activations.site, index=activations.index)


def test_the_core_of_a_token_is_the_share_alpha_of_its_positive_neurons_rounded_up():
    values = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, -9.0], [-1.0, -2.0, 0.0, -0.0, -5.0, -6.0], [0.0, 0.0, 7.0, 0.0, 0.0, 0.0]])
    found = token_cores(values, Settings(alpha=0.4))
    assert found.int().tolist() == [[1, 1, 0, 0, 0, 0], [0] * 6, [0, 0, 1, 0, 0, 0]]
    assert token_cores(values, Settings(alpha=0.41)).sum(1).tolist() == [3, 0, 1]
    assert token_cores(values, Settings(alpha=1.0)).sum(1).tolist() == [5, 0, 1]


def test_equal_activations_are_taken_by_number_and_shares_are_not_spoiled_by_floats():
    assert token_cores(torch.ones(1, 5), Settings(alpha=0.4)).int().tolist() == [[1, 1, 0, 0, 0]]
    # 0.07 · 100 is 7.000000000000001 and 0.29 · 100 is 28.999999999999996 in floats.
    assert token_cores(torch.ones(1, 100), Settings(alpha=0.07)).sum() == 7
    assert core_of(random(4, 100), Settings(beta=0.29)).wanted == 29


def test_three_planted_neurons_are_the_core_and_are_in_every_tokens_core():
    values = random(20, 30)
    values[:, [4, 17, 25]] = 50 + random(20, 3, seed=1).abs()
    core = core_of(values, Settings(beta=0.1))
    assert sorted(core.neurons) == [4, 17, 25]
    assert core.counts[core.neurons].tolist() == [20, 20, 20]
    assert not core.short


@pytest.mark.parametrize("rule", ["paper", "shared_k"])
def test_no_neuron_outside_the_core_is_in_more_tokens_cores(rule: str):
    for seed in range(20):
        core = core_of(random(11, 40, seed), Settings(beta=0.2, rule=rule))
        rest = np.delete(core.counts, core.neurons)
        assert len(core.neurons) == 8
        assert core.counts[core.neurons].min() >= rest.max()
        assert (np.diff(core.counts[core.neurons]) <= 0).all()


def test_ties_go_to_the_higher_sum_and_then_to_the_lower_number():
    # Neurons 1, 2, 4 fire in one token each; 2 and 4 with the same size, 1 with more.
    values = torch.tensor([[0.0, 9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 5.0]])
    assert core_of(values, Settings(beta=0.6)).neurons.tolist() == [1, 2, 4]
    assert core_of(values, Settings(beta=0.4)).neurons.tolist() == [1, 2]
    # A negative value elsewhere lowers the sum of 2 below that of 4.
    values[0, 2] = -1.0
    assert core_of(values, Settings(beta=0.6)).neurons.tolist() == [1, 4, 2]


def test_a_set_that_cannot_be_filled_is_short_and_one_of_no_neuron_is_empty():
    values = -random(9, 64).abs()
    values[:, [3, 60]] = 1.0
    core = core_of(values, Settings(alpha=1.0, beta=0.5))
    assert core.wanted == 32 and core.short and sorted(core.neurons) == [3, 60]
    empty = core_of(values, Settings(beta=0.01))
    assert empty.wanted == 0 and empty.short and len(empty.neurons) == 0
    report = core_neurons(site(values, [9]), alpha=1.0, beta=0.5)
    assert report.diagnostics["short sets"] == 1
    assert any("1 of 1 sets are short" in line for line in report.words)


def test_the_published_code_gives_every_token_the_same_number_positive_or_not():
    values = torch.tensor([[4.0, 3.0, 2.0, 1.0], [-1.0, -2.0, 1.0, -3.0], [-1.0, -2.0, -3.0, 1.0]])
    shared = token_cores(values, Settings(alpha=1.0, rule="shared_k"))  # mean of 4, 1 and 1 positive ones is 2
    assert shared.int().tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert token_cores(values, Settings(alpha=1.0)).sum(1).tolist() == [4, 1, 1]


def test_the_two_rules_agree_about_as_much_as_was_measured():
    # On random rows of uneven scale the two rules give Jaccard similarities between .73 and .92.
    found = []
    for seed in range(5):
        values = random(40, 400, seed) + 0.8 * random(40, 1, seed + 99)
        one, other = (token_cores(values, Settings(rule=rule)) for rule in ("paper", "shared_k"))
        found.append(float((one & other).sum() / (one | other).sum()))
    assert min(found) > 0.5 and max(found) < 0.95


def test_disjoint_sentences_share_nothing_and_a_sentence_said_twice_is_itself():
    left, right = torch.zeros(2, 6, 20)
    left[:, :10], right[:, 10:] = random(6, 10).abs() + 1, random(6, 10, 1).abs() + 1
    settings = Settings(beta=0.25)
    one, other = core_of(left, settings), core_of(right, settings)
    assert similarity(one.neurons, other.neurons) == 0.0
    twice = core_of(torch.cat([left, left]), settings)
    assert similarity(one.neurons, twice.neurons) == 1.0
    assert twice.counts.tolist() == (2 * one.counts).tolist()
    grid = core_neurons(site(torch.cat([left, right, left]), [6, 6, 6]), beta=0.25)["similarity"]
    assert grid.values.tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]


def test_similarity_is_of_all_neurons_involved():
    assert similarity(np.array([1, 2, 3]), np.array([3, 4])) == 0.25
    assert np.isnan(similarity(np.array([], int), np.array([], int)))
    cores = [np.array([], int), np.array([1]), np.array([0, 1])]
    table = similarities(cores, cores, 3)
    assert np.isnan(table[0, 0])
    assert table[1:].tolist() == [[0.0, 1.0, 0.5], [0.0, 0.5, 1.0]]


@pytest.mark.parametrize("rule", ["paper", "shared_k"])
def test_looks_in_passing_give_the_core_of_each_beginning(rule: str):
    values, settings = random(23, 50), Settings(rule=rule)
    for core, length in zip(prefix_cores(values, settings, [5, 10, 23]), [5, 10, 23], strict=True):
        alone = core_of(values[:length], settings)
        assert core.neurons.tolist() == alone.neurons.tolist()
        assert core.counts.tolist() == alone.counts.tolist()
        assert core.tokens == length


def test_the_stability_curve_says_where_the_core_changes():
    # Ten tokens use neurons 0 to 4, then thirty use 5 to 9: the core turns over when those are the majority.
    values = torch.zeros(40, 10)
    values[:10, :5], values[10:, 5:] = 1.0, 1.0
    series = core_neurons(site(values, [40]), alpha=1.0, beta=0.5, every=10)["stability"]
    assert series.x.tolist() == [10, 20, 30, 40]
    assert series.curves["all"].tolist() == [0.0, 0.0, 1.0, 1.0]  # at 20 tokens both are tied and the lower numbers stay
    assert series.curves["next"][:3].tolist() == [1.0, 0.0, 1.0]
    assert np.isnan(series.curves["next"][3])
    assert series.diagnostics["sentences"] == (1, 1, 1, 1)


def test_curves_are_means_over_the_sentences_that_are_long_enough():
    values = torch.zeros(12, 10)
    values[:8, :5], values[8:, 5:] = 1.0, 1.0
    series = core_neurons(site(values, [8, 4]), alpha=1.0, beta=0.5, every=4)["stability"]
    assert series.diagnostics["sentences"] == (2, 1)
    assert series.curves["all"].tolist() == [1.0, 1.0]


def test_neurons_are_ranked_by_the_sentences_whose_core_they_are():
    values = torch.zeros(6, 8)
    values[:, 6], values[:2, 1], values[2:, 3] = 9.0, 1.0, 1.0
    ranking = core_neurons(site(values, [2, 4]), alpha=1.0, beta=0.25)["neurons"]
    assert ranking.names == ("blocks.0.mlp.post · neuron 6", "blocks.0.mlp.post · neuron 3", "blocks.0.mlp.post · neuron 1")
    assert ranking.values.tolist() == [2, 1, 1]
    assert ranking.columns["tokens"].tolist() == [6, 4, 2]


def test_left_out_rows_count_nothing_and_are_blank_in_the_strip():
    values = torch.tensor([[9.0, 9.0, 9.0, 9.0], [1.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])
    report = core_neurons(site(values, [3], ["bos", "token", "token"]), alpha=1.0, beta=0.25, example=0)
    assert report["rows"].values[0, 1:].tolist() == [1.0, 2.0]
    assert np.isnan(report["rows"].values[0, 0])
    assert report["rows in the sentence's core"].values[0, 1:].tolist() == [1.0, 1.0]
    assert report["rows"].tokens == ("w0", "w1", "w2")
    assert "Left out before counting: 1 bos rows." in report.words
    assert core_neurons(site(values, [3], ["bos", "token", "token"]), exclude=()).diagnostics["longest"] == 3


def test_a_recording_cut_into_pieces_gives_the_same_bits():
    whole = site(random(30, 64), [7, 13, 10])
    first = core_neurons(whole, example=1)
    for sizes in ([30], [1] * 30, [6, 2, 20, 2]):
        assert all(act.identical(core_neurons(in_pieces(whole, sizes), example=1)[name], first[name]) for name in first)


@pytest.mark.parametrize("name", ["mlp.post", "mlp.act", "mlp.pre"])
def test_live_and_stored_agree_bit_for_bit(tmp_path: Path, name: str):
    model = act.load("scribe-relu", certify=False)
    live = act.capture(model, TEXTS, [f"blocks.*.{name}"], progress=False)
    act.capture(model, TEXTS, [f"blocks.*.{name}"], to=tmp_path / "cores.acts", progress=False)
    here, there = (core_neurons(r, site=name, example=1) for r in (live, act.open(tmp_path / "cores.acts")))
    assert list(here) == list(there) and all(act.identical(here[part], there[part]) for part in here)
    assert here.diagnostics["site"] == name


def test_a_gated_model_has_other_cores_at_its_gate():
    model = act.wrap(*act.testing.tiny("llama"), certify=False)
    recording = model.run(["the cat sat on the book", "Anna saw the cat"], read=["blocks.*.mlp.post", "blocks.*.mlp.act"])
    post, gate = (core_neurons(recording, site=s)["neurons"] for s in ("mlp.post", "mlp.act"))
    assert post.names[0].startswith("blocks.") and ".mlp.post · neuron" in post.names[0]
    assert [n.split(" ")[-1] for n in post.names] != [n.split(" ")[-1] for n in gate.names]


def test_patches_of_images_without_the_class_row():
    from safetensors.numpy import load_file

    pictures = list(load_file(samples("scenes.safetensors"))["image"][:3])
    report = core_neurons(act.load("glyph", certify=False).run(pictures, read="blocks.*.mlp.post"), example=1, image=pictures[1])
    assert report.diagnostics["excluded"]["cls"] == 3
    assert report["rows"].values.shape == (4, 8, 8)
    assert report["rows"].image is not None
    assert (report["rows in the sentence's core"].values <= report["rows"].values).all()
    assert report["layers"].columns["asked for"].tolist() == [102] * 4


def test_stacks_are_reported_apart():
    model = act.wrap(*act.testing.tiny("t5"), certify=False)
    report = core_neurons(
        model.run({"encoder": ["the cat sat"], "decoder": ["the book"]}, read=["encoder.blocks.*.mlp.post", "decoder.blocks.*.mlp.post"])
    )
    assert len(report["encoder layers"].names) == 2
    assert len(report["decoder layers"].names) == 3


def test_one_sentence_has_no_similarity_to_another():
    report = core_neurons(site(random(5, 20), [5]))
    assert np.isnan(report.diagnostics["similarity"])
    assert not any("two sentences" in line for line in report.words)
    assert any("not settled" in line for line in report.words)


def test_inputs_are_left_untouched():
    values = random(6, 10)
    before = values.clone()
    core_neurons(site(values, [3, 3]), example=0)
    assert torch.equal(values, before)


def test_what_makes_no_sense_is_refused_in_words():
    one = site(random(4, 8), [4])
    with pytest.raises(InputError, match=r"alpha=0 is no share of neurons; give a number above 0 and at most 1, such as 0.4"):
        core_neurons(one, alpha=0)
    with pytest.raises(InputError, match=r"beta=1.5 is no share of neurons; give a number at least 0"):
        core_neurons(one, beta=1.5)
    with pytest.raises(InputError, match="rule='code' is not known; choose 'paper' or 'shared_k'"):
        core_neurons(one, rule="code")
    with pytest.raises(UnknownSite, match=r"chosen at mlp.post, mlp.act, mlp.pre; there is no 'attn.z'"):
        core_neurons(one, site="attn.z")
    recording = Recording({"blocks.0.mlp.post": one}, {"": one.index or Rows({"example": np.zeros(4)})})
    with pytest.raises(UnknownSite, match=r"no site 'blocks.\*.mlp.act'; it has blocks.0.mlp.post. Read it"):
        core_neurons(recording, site="mlp.act")
    with pytest.raises(AxisError, match="needs axes 'row d_mlp'"):
        core_neurons(Activations(torch.ones(2, 2, 2), "row slot d_mlp", site="blocks.0.mlp.post"))
    with pytest.raises(InputError, match="No row is left to count"):
        core_neurons(one, exclude=("token",))
    with pytest.raises(InputError, match="every=0 tokens lie between two places"):
        core_neurons(one, every=0)
    with pytest.raises(InputError, match="There is no example 7"):
        core_neurons(one, example=7)
    spoiled = random(4, 8)
    spoiled[2, 1] = float("nan")
    with pytest.raises(
        NotFinite, match=r"1 NaN and 0 infinite numbers among 32; the first in example 0, position 2 \('w2'\). They cannot be ranked"
    ):
        core_neurons(site(spoiled, [4]))


def test_a_core_knows_its_sizes():
    assert Core(np.array([2]), 1, np.zeros(4, np.int32), 3).short is False
