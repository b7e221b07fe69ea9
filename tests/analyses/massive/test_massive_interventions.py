"""massive_interventions: a planted constant that only zero can hurt, a planted variable, and the words where there is nothing."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.massive.calibration import Hits, replacements, usual_values
from activarium.edits import Set, Where
from activarium.errors import InputError, UnknownName
from activarium.protocols import Runner
from activarium.results import Grid, Overlay, Ranking, Report, Series

from .planted_massive import DIM, TOKEN, planted, wrapped

massive_interventions = act.analyses.massive_interventions
SITE = "blocks.1.resid_post"


def texts(count: int, at: int | None, length: int = 12, seed: int = 0) -> list[list[int]]:
    """Random tokens with the trigger at one position only."""
    random = np.random.default_rng(seed)
    made = random.integers(1, 40, (count, length))
    made[made == TOKEN] = 2
    if at is not None:
        made[:, at] = TOKEN
    return made.tolist()


@pytest.fixture(scope="module")
def model() -> Runner:
    return wrapped(planted(text=[TOKEN, 3, 4, 6]))


@pytest.fixture(scope="module")
def first(model: Runner) -> Report:
    return massive_interventions(model, texts(5, 0), texts(100, 0, seed=1))


def cost(report: Report, mode: str, name: str = "") -> float:
    table = report["cost"]
    assert isinstance(table, Ranking)
    values = table.columns[name] if name else table.values
    return float(values[table.names.index(mode)])


def by_position(report: Report, mode: str) -> np.ndarray:
    grid = report["KL by position"]
    assert isinstance(grid, Grid)
    return grid.values[grid.label("mode").index(mode)]


def test_at_the_first_position_the_mean_is_the_value_and_zero_is_not(first: Report):
    mean, zero = by_position(first, "mean"), by_position(first, "zero")
    assert mean.max() <= 1e-6  # what precedes position 0 is nothing, so its value is the same in every text
    assert (zero > 0).all()
    assert zero[0] > 0.01
    assert (zero[1:] > 100e-6).all()  # later rows look at it
    assert zero.min() > 100 * max(mean.max(), 1e-12)
    assert cost(first, "mean", "agreement") == 1.0
    assert first.diagnostics["at"] == SITE
    assert first.words[0] == f"acted at {SITE}, where dim {DIM} is born."


def test_the_usual_value_is_the_planted_constant(first: Report):
    usual = first["usual values"]
    assert isinstance(usual, Ranking)
    assert usual.names == (f"dim {DIM} · first",)
    assert usual.values == pytest.approx([1800], rel=1e-3)
    assert usual.columns["variation"].tolist() == pytest.approx([0], abs=1e-6)
    assert usual.columns["hits"].tolist() == [100]


def test_later_in_a_text_the_value_varies_and_the_mean_is_near_but_not_it(model: Runner):
    report = massive_interventions(model, texts(5, 3), texts(40, 3, seed=1))
    usual = report["usual values"]
    assert isinstance(usual, Ranking)
    assert usual.columns["variation"][0] > 0.01
    mean, zero = by_position(report, "mean"), by_position(report, "zero")
    assert 0 < mean[3] < zero[3] / 100
    assert (mean[:3] == 0).all() and (zero[:3] == 0).all()  # a causal model: nothing changes before the row
    assert (zero[4:] > 0).all()
    assert "40 sequences only; give a calibration set of 100 or more" in " ".join(report.words)


def test_the_split_adds_up_to_the_whole(first: Report):
    for mode in ("zero", "clip"):
        at, other = cost(first, mode, "at massive rows"), cost(first, mode, "at other rows")
        assert (at + 11 * other) / 12 == pytest.approx(cost(first, mode), rel=1e-9)
        assert by_position(first, mode)[0] == pytest.approx(at, rel=1e-9)


def test_zero_is_what_a_plain_edit_at_that_one_number_does(model: Runner, first: Report):
    edit = Set(SITE, 0.0, where=Where(positions=(0,), features=(DIM,)))
    full, changed = (model.run(texts(5, 0), read="logits", edits=e)["logits"].tensor.double().log_softmax(1) for e in ((), [edit]))
    kl = (full.exp() * (full - changed)).sum(1).unflatten(0, (5, 12)).mean(0)
    assert by_position(first, "zero") == pytest.approx(kl.numpy(), rel=1e-6)


def test_found_online_or_before_is_the_same(model: Runner):
    clean, online = (massive_interventions(model, texts(4, 2), detect=d, value=7.0) for d in ("clean", "online"))
    for name in ("cost", "KL by position", "attention"):
        assert clean[name].to_frame().equals(online[name].to_frame())
    assert online.diagnostics["detect"] == "online"


def test_other_lengths_beside_it_change_nothing(model: Runner):
    alone = massive_interventions(model, [texts(1, 0)[0]], texts(4, 0, seed=1), modes="zero")
    beside = massive_interventions(model, [[3, 4], texts(1, 0)[0], texts(1, None, 20)[0]], texts(4, 0, seed=1), modes="zero", example=1)
    rows = beside["rows"]
    assert isinstance(rows, Overlay)
    assert rows.values[0] == pytest.approx(by_position(alone, "zero"), rel=1e-4)
    assert "massive rows: 0" in rows.title
    assert beside.words[2] == "1 massive numbers in 1 of 3 sequences were replaced."


def test_attention_before_and_after_against_the_patterns_themselves(model: Runner):
    report = massive_interventions(model, texts(3, 2), modes="zero")
    series = report["attention"]
    assert isinstance(series, Series)
    edit = Set(SITE, 0.0, where=Where(positions=(2,), features=(DIM,)))
    for name, edits in {"as it is": [], "zero": [edit]}.items():
        pattern = model.run(texts(3, 2), read="blocks.*.attn.pattern", edits=edits)["blocks.{2,3}.attn.pattern"]
        by_hand = torch.stack([pattern.example(e).tensor[:, :, 3:, 2] for e in range(3)]).mean((0, 2, 3))
        assert series.curves[name] == pytest.approx(by_hand.numpy(), rel=1e-5)
    assert series.curves["uniform attention"] == pytest.approx(np.mean([1 / n for n in range(4, 13)]))
    assert series.x.tolist() == [2, 3]
    assert abs(series.curves["zero"] - series.curves["as it is"]).max() > 1e-5


def test_replacements_by_hand():
    def hits(dims: list[int], where: list[str], values: list[float]) -> Hits:
        n = len(dims)
        return Hits(np.zeros(n, int), np.arange(n), np.array(dims), np.array(where, dtype=object), np.array(values), np.full(n, 0.5))

    usual = usual_values(hits([4, 4, 4, 9], ["first", "first", "other", "first"], [-300.0, -500.0, -200.0, 800.0]))
    now = hits([4, 4, 4, 9, 1], ["first", "other", "delimiter", "other", "first"], [-450.0, -150.0, -120.0, 700.0, 130.0])
    for mode, wanted in {
        "zero": [0, 0, 0, 0, 0],
        "mean": [-400, -200, -1000 / 3, 800, 130],  # a class never seen takes its dimension's mean; a dimension never seen stays
        "median": [-0.5, -0.5, -0.5, 0.5, 0.5],
        "clip": [-150, -150, -120, 150, 130],
        "value": [3, 3, 3, 3, 3],
    }.items():
        new, known = replacements(mode, now, usual, 3.0, 300.0)
        assert new == pytest.approx(wanted)
        assert known.tolist() == [True] * 4 + [mode != "mean"]


def test_a_number_of_ones_own_costs_less_the_nearer_it_is(model: Runner):
    near, far = (massive_interventions(model, texts(3, 0), modes=(), value=v) for v in (1790.0, 900.0))
    assert 0 < cost(near, "value") < cost(far, "value") / 100


def test_the_twin_has_none_and_says_so():
    report = massive_interventions(wrapped(planted(0.0)), texts(3, 0))
    assert "none: no number at any block is massive" in report.words[0]
    assert list(report) == ["largest"]
    report = massive_interventions(wrapped(planted(0.0)), texts(3, 0), at=2)
    assert "none: no number at blocks.2.resid_post is massive" in report.words[0]


def test_calibrated_with_hits_but_measured_without(model: Runner):
    report = massive_interventions(model, texts(3, None), texts(3, 0))
    assert "the inputs have none: nothing was changed" in report.words[-1]
    assert list(report) == ["usual values"]


def test_bfloat16_acts_at_the_same_numbers():
    report = massive_interventions(wrapped(planted(dtype=torch.bfloat16)), texts(2, 3), modes="zero")
    usual = report["usual values"]
    assert isinstance(usual, Ranking)
    assert (usual.columns["dim"].tolist(), report.diagnostics["massive numbers"], report.diagnostics["at"]) == ([DIM], 2, SITE)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"modes": ("zero", "maen")}, UnknownName, "No mode called 'maen'. Did you mean 'mean'"),
        ({"modes": ()}, InputError, "modes is empty, so nothing would be replaced. Choose among zero, mean"),
        ({"modes": "value"}, InputError, "Mode 'value' sets a number that you choose: give value="),
        ({"clip": 0}, InputError, "clip=0 is no size"),
        ({"detect": "before"}, UnknownName, "No way to detect called 'before'"),
        ({"at": 7}, UnknownName, "No block output called '7'"),
        ({"absolute": -1}, InputError, "absolute=-1 would call every number massive"),
        ({"example": 9}, InputError, "no example 9 among the inputs; they are numbered 0 to 1"),
    ],
)
def test_what_cannot_be_done_is_refused_with_words(model: Runner, options: dict, error: type, words: str):
    with pytest.raises(error, match=words):
        massive_interventions(model, texts(2, 0), **options)


def test_pictures_have_one_answer_each_and_every_row_looks_back():
    model, processor = act.testing.tiny("vit")
    with torch.no_grad():
        model.vit.embeddings.cls_token[..., 3] = 5e4  # its class row alone holds it, in every picture
    pictures = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    report = massive_interventions(act.wrap(model, processor, certify=False), list(pictures), modes=("zero", "mean"))
    assert report.words[0] == "acted at blocks.0.resid_post, where dim 3 is born."
    assert list(report) == ["usual values", "cost", "attention"]  # one answer each: neither positions nor rows
    assert cost(report, "zero") > 0
    assert np.isnan(cost(report, "zero", "rise of loss"))
    assert "the mean comes from the inputs themselves, which flatters it; give a calibration= of other sequences." in report.words


def test_two_stacks_are_told_apart_and_one_is_acted_on():
    model = act.wrap(*act.testing.tiny("t5"), certify=False)
    pair = {"encoder": ["the cat sat on the book"], "decoder": ["the cat sat"]}
    report = massive_interventions(model, pair, absolute=0.5, ratio=2.0, at="decoder.blocks.0.resid_post", modes="zero")
    assert report.diagnostics["at"] == "decoder.blocks.0.resid_post"
    assert by_position(report, "zero").shape == (4,)
    with pytest.raises(InputError, match=r"Block 0 is in several stacks: encoder.blocks.0.resid_post, decoder.blocks.0.resid_post"):
        massive_interventions(model, pair, at=0)
