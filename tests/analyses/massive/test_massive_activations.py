"""massive_activations: hits planted through weights, thresholds by hand, and the words when there is nothing."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import activarium as act
from activarium.activations import Activations
from activarium.analyses.massive.sequences import position_classes
from activarium.errors import InputError, NotFinite, UnknownSite
from activarium.maths import lower_median
from activarium.recording import Recording
from activarium.rows import Rows

from .planted_massive import DIM, LAYER, LAYERS, TOKEN, planted, wrapped

massive_activations = act.analyses.massive_activations


def table(texts: list[list[str]]) -> Rows:
    example = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
    position = np.concatenate([np.arange(len(t)) for t in texts])
    flat = np.array([word for text in texts for word in text], dtype=object)
    return Rows({"example": example, "position": position, "text": flat, "kind": np.full(len(flat), "token", dtype=object)})


def stream(values: torch.Tensor, rows: Rows | None = None, block: int = 0) -> Activations:
    return Activations(values, "row d_model", site=f"blocks.{block}.resid_post", index=rows)


def stack(*layers: Activations) -> Activations:
    return Activations.stack(layers, [a.site for a in layers], "blocks.*.resid_post")


def test_one_number_by_hand():
    values = torch.full((4, 8), 0.5)
    values[2, 3] = -700.0
    report = massive_activations(stream(values, table([["a", "b", "c", "d"]])))
    hits = report["hits"]
    assert hits.names == ("blocks.0.resid_post · example 0 · position 2 'c' · dim 3",)
    assert hits.values.tolist() == [1400.0]
    assert hits.columns["value"].tolist() == [-700.0]
    assert hits.columns["row"].tolist() == [2]
    assert hits.columns["energy share"][0] == pytest.approx(490000 / (490000 + 7 * 0.25))
    assert report["dimensions"].columns["sign"].tolist() == ["-"]
    assert report["sizes"].curves["top 1"].tolist() == [700.0]
    assert report["sizes"].curves["top 2"].tolist() == [0.5]
    assert report["ratio"].curves["mean"].tolist() == [1400.0]


@pytest.mark.parametrize(
    ("value", "median", "found"),
    [(100.0, 0.01, 0), (100.5, 0.01, 1), (99.0, 0.001, 0), (150.0, 0.2, 0), (200.0, 0.2, 1), (199.0, 0.2, 0)],
)
def test_both_thresholds_hold_at_their_edges(value: float, median: float, found: int):
    values = torch.full((3, 9), median, dtype=torch.float64)
    values[1, 4] = value
    assert len(massive_activations(stream(values))["hits"].names) == found


def test_the_median_is_each_sequences_own():
    quiet, loud = torch.full((2, 6), 0.1), torch.full((2, 6), 10.0)
    quiet[0, 0] = loud[1, 5] = 500.0  # 5000 times the median of one, 50 times that of the other
    report = massive_activations(stream(torch.cat([quiet, loud]), table([["a", "b"], ["c", "d"]])))
    assert report["hits"].columns["example"].tolist() == [0]
    assert report["ratio"].curves["mean"][0] == pytest.approx((5000 + 50) / 2)
    assert report.diagnostics["sequences with a hit"] == 0.5


def test_the_median_of_an_even_count_is_the_lower_one():
    assert lower_median(torch.tensor([4.0, 1.0, 3.0, 2.0])).item() == 2.0
    assert lower_median(torch.tensor([4.0, 1.0, 3.0, 2.0], dtype=torch.bfloat16)).item() == 2.0
    with pytest.raises(InputError, match="median of no values is not defined"):
        lower_median(torch.empty(0))


def test_an_example_across_two_shards_is_one_sequence():
    values = torch.full((5, 4), 0.5)
    values[3, 1] = 900.0
    rows = table([["a", "b"], ["c", "d", "e"]])
    whole = massive_activations(stream(values, rows))
    split = massive_activations(Activations([values[:1], values[1:3], values[3:]], "row d_model", site="blocks.0.resid_post", index=rows))
    assert whole.words == split.words
    for name in whole:
        assert whole[name].to_frame().equals(split[name].to_frame())


def test_persistence_needs_nine_sequences_in_ten_at_three_layers_in_a_row():
    def layers(present: list[int]) -> Activations:
        made = []
        for block in range(5):
            values = torch.full((20, 8), 0.5)
            if block in present:
                values[::2, 6] = 1000.0  # the first row of each of ten sequences
            values[4, 2] = 1200.0  # one sequence only
            made.append(stream(values, table([["a", "b"]] * 10), block))
        return stack(*made)

    dims = massive_activations(layers([1, 2, 3]))["dimensions"].columns
    verdict = dict(zip(dims["dim"].tolist(), zip(dims["persistent"], dims["birth"], dims["death"], strict=True), strict=True))
    assert verdict[6] == (True, 1, 3)
    assert not verdict[2][0]
    dims = massive_activations(layers([0, 1, 3, 4]))["dimensions"].columns
    assert not dict(zip(dims["dim"].tolist(), dims["persistent"], strict=True))[6]


def test_rows_are_classed_as_the_papers_do():
    rows = table([["<s>", "a", ".", "b", "."], ["c", "\n"]])
    assert position_classes(stream(torch.ones(7, 2), rows)).tolist() == [
        "first", "other", "first delimiter", "other", "delimiter", "first", "first delimiter",
    ]  # fmt: skip


# Planted through weights.


def found(texts: list[list[int]], model: LlamaForCausalLM) -> set[tuple[str, int, int, int]]:
    hits = massive_activations(wrapped(model).run(texts, read="blocks.*.resid_post"))["hits"].columns
    return {
        (str(s), int(e), int(p), int(d)) for s, e, p, d in zip(hits["layer"], hits["example"], hits["position"], hits["dim"], strict=True)
    }


def expected(*places: tuple[int, int]) -> set[tuple[str, int, int, int]]:
    return {(f"blocks.{layer}.resid_post", e, p, DIM) for layer in range(LAYER, LAYERS) for e, p in places}


def test_the_planted_number_and_nothing_else():
    report = massive_activations(wrapped(planted()).run([[3, 4, TOKEN, 6]], read="blocks.*.resid_post"))
    hits = report["hits"]
    assert found([[3, 4, TOKEN, 6]], planted()) == expected((0, 2))
    assert hits.columns["value"] == pytest.approx(np.full(3, 1800.0), rel=1e-3)
    dims = report["dimensions"].columns
    assert (dims["birth"].tolist(), dims["death"].tolist(), dims["sign"].tolist(), dims["persistent"].tolist()) == ([1], [3], ["+"], [True])
    ratio = report["ratio"].curves["mean"]
    assert ratio[0] < 1000 < min(ratio[1:])


def test_sizes_and_ratios_agree_with_transformers_hidden_states():
    model, text = planted(), [3, 4, TOKEN, 6, 11]
    report = massive_activations(wrapped(model).run([text], read="blocks.*.resid_post"))
    with torch.no_grad():
        hidden = model.model(torch.tensor([text]), output_hidden_states=True).hidden_states[1:-1]  # the last one is normed already
    for block, stream_after in enumerate(hidden):
        size = np.sort(stream_after[0].abs().numpy().ravel())
        lower = size[(len(size) - 1) // 2]
        assert report["sizes"].curves["top 3"][block] == pytest.approx(size[-3], rel=1e-5)
        assert report["sizes"].curves["median"][block] == pytest.approx(lower, rel=1e-5)
        assert report["ratio"].curves["mean"][block] == pytest.approx(size[-1] / lower, rel=1e-5)


def test_without_the_token_there_is_none_and_the_ratios_are_still_shown():
    report = massive_activations(wrapped(planted()).run([[3, 4, 5, 6]], read="blocks.*.resid_post"))
    assert report["hits"].names == ()
    assert report["dimensions"].names == ()
    assert "none by Sun's criteria" in report.words[0]
    assert "the largest ratio is" in report.words[1]
    assert len(report["largest"].names) == 4


def test_other_lengths_beside_it_change_nothing():
    texts = [[3], [3, 4, TOKEN, 6], list(range(1, 17)), [9, 10]]
    assert found(texts, planted()) == expected((1, 2))


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_on_either_side_change_nothing(side: str):
    texts, width = [[3, 4, TOKEN, 6], list(range(1, 12))], 16
    ids, mask = np.zeros((2, width), int), np.zeros((2, width), int)
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if side == "left" else slice(0, len(text))
        ids[row, place], mask[row, place] = text, 1
    recording = wrapped(planted()).run({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}, read="blocks.*.resid_post")
    hits = massive_activations(recording)["hits"].columns
    assert {
        (str(s), int(e), int(p), int(d)) for s, e, p, d in zip(*(hits[n] for n in ("layer", "example", "position", "dim")), strict=True)
    } == (expected((0, 2)))


def test_two_occurrences_are_two_hits_per_layer():
    assert found([[3, TOKEN, 4, 6, TOKEN]], planted()) == expected((0, 1), (0, 4))


def test_bfloat16_finds_the_same_places():
    assert found([[3, 4, TOKEN, 6], [7, 8]], planted(dtype=torch.bfloat16)) == expected((0, 2))


def test_ninety_nine_is_not_massive_whatever_the_ratio():
    report = massive_activations(wrapped(planted(99.0)).run([[3, 4, TOKEN, 6]], read="blocks.*.resid_post"))
    assert report["hits"].names == ()
    assert report["largest"].values[0] > 1000


def test_thresholds_can_be_chosen_and_the_words_say_so():
    values = torch.full((4, 8), 0.5)
    values[1, 1] = 30.0
    report = massive_activations(stream(values), absolute=20, ratio=50)
    assert report["hits"].values.tolist() == [60.0]
    assert "by the chosen criteria (|h| > 20 and at least 50 times" in report.words[0]


def test_mostly_zeros_are_named_instead_of_divided_by():
    values = torch.zeros(4, 8)
    values[0, 0] = 1.0
    report = massive_activations(stream(values))
    assert report["hits"].names == ()
    assert "their median is 0, their ratio infinite" in report.words[-1]


def test_infinity_is_refused_with_its_place():
    values = torch.ones(2, 3, dtype=torch.float16)
    values[1, 2] = float("inf")
    with pytest.raises(NotFinite, match=r"0 NaN and 1 infinite numbers among 6; the first in example 0, position 1 \('b'\)"):
        massive_activations(stream(values, table([["a", "b"]])))


def test_an_unrecorded_site_says_what_to_read():
    with pytest.raises(UnknownSite, match=r"no site 'blocks.\*.resid_post'; it has no sites. Read it: model.run"):
        massive_activations(Recording({}, {}))


def test_a_threshold_of_nothing_is_refused():
    with pytest.raises(InputError, match="ratio=0 would call every number massive"):
        massive_activations(stream(torch.ones(1, 1)), ratio=0)
