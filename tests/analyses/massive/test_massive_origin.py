"""massive_origin: the planted neuron is the one, and everything adds up."""

import numpy as np
import pytest

import activarium as act
from activarium.errors import InputError
from activarium.results import Ranking, Report, Series

from .planted_massive import DIM, LAYER, NEURON, TEXT, TOKEN, planted, wrapped

massive_origin = act.analyses.massive_origin


def table(report: Report, part: str) -> dict[str, float]:
    found = report[part]
    assert isinstance(found, Ranking)
    return dict(zip(found.names, found.values.tolist(), strict=True))


def test_the_planted_neuron_is_named():
    model = wrapped(planted())
    report = massive_origin(model, [TEXT, [7, 8, TOKEN], [9, 10]])
    assert report.words[0] == f"dim {DIM} is born at blocks.{LAYER}.resid_post, in 2 rows."
    assert f"neuron {NEURON} writes" in report.words[2]
    writers, neurons = table(report, "writers"), table(report, "neurons")
    assert next(iter(writers)) == "mlp"
    assert next(iter(neurons)) == f"neuron {NEURON}"
    assert neurons[f"neuron {NEURON}"] == pytest.approx(writers["mlp"], rel=1e-6)
    assert writers["attention"] == 0  # its output was stopped from writing there
    life = report["life"]
    assert isinstance(life, Series)
    assert life.curves["value"][0] == 0
    assert (life.curves["value"][LAYER:] > 1000).all()
    assert life.curves["mlp"].tolist() == pytest.approx([0, writers["mlp"], 0, 0])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "bert", "vit"])
def test_everything_adds_up(family: str):
    model = act.wrap(*act.testing.tiny(family), certify=False)
    pictures = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    inputs = list(pictures) if family == "vit" else ["the cat sat on the book", "Anna saw the cat"]
    report = massive_origin(model, inputs, absolute=0.5, ratio=3.0, top=1000)
    writers, site = table(report, "writers"), report["writers"].title.split(" at ")[1]
    dim, stem = report.diagnostics["dim"], site.removesuffix(".resid_post")
    names = [site, f"{stem}.resid_pre", f"{stem}.mlp.proj", f"{stem}.attn.proj"]
    read = model.run(inputs, read=names)
    hits = act.analyses.massive_activations(model.run(inputs, read="blocks.*.resid_post"), absolute=0.5, ratio=3.0)["hits"]
    assert isinstance(hits, Ranking)
    rows = hits.columns["row"][(hits.columns["layer"] == site) & (hits.columns["dim"] == dim)]
    assert len(rows) == report.diagnostics["numbers"]
    at = {name: read[name].tensor[rows.tolist(), dim].double().mean().item() for name in names}
    assert sum(writers.values()) == pytest.approx(at[site], rel=1e-5)
    assert writers["before"] == pytest.approx(at[f"{stem}.resid_pre"], rel=1e-5)
    bias = {"mlp": 0.0, "attn": 0.0}
    for room, name in (("mlp", "b_down"), ("attn", "b_O")):
        if family not in ("llama", "gemma2"):
            bias[room] = float(model.weight(f"{stem}.{room}.{name}")[dim])
    assert sum(table(report, "neurons").values()) + bias["mlp"] == pytest.approx(at[f"{stem}.mlp.proj"], rel=1e-4)
    assert sum(table(report, "heads").values()) + bias["attn"] == pytest.approx(at[f"{stem}.attn.proj"], rel=1e-4)
    if family in ("llama", "gpt2", "gpt_neox", "vit"):
        assert writers["norm"] == pytest.approx(0, abs=1e-5)
    if family == "bert":
        assert abs(writers["norm"]) > 1e-3  # its norm follows the sum


def test_more_texts_than_run_at_once_are_averaged():
    model = wrapped(planted())
    texts = [[3, 4, TOKEN, 6], [7, TOKEN]] * 12
    whole, few = massive_origin(model, texts), massive_origin(model, texts[:2])
    assert table(whole, "writers") == pytest.approx(table(few, "writers"), rel=1e-5)
    assert whole.diagnostics["numbers"] == 24


def test_with_none_the_largest_number_is_taken_apart_and_the_words_say_so():
    report = massive_origin(wrapped(planted(0.0)), [TEXT])
    assert report.words[0].startswith("none is massive in 1 sequences; taken apart is the largest number instead, blocks.")
    assert report.diagnostics["numbers"] == 1


def test_what_cannot_be_done_is_refused_with_words():
    model = wrapped(planted())
    with pytest.raises(InputError, match=f"Dimension 3 has no massive number here; those that have: {DIM}"):
        massive_origin(model, [TEXT], dim=3)
    with pytest.raises(InputError, match="There is no stack 'encoder'; the model has ''"):
        massive_origin(model, [TEXT], stack="encoder")
