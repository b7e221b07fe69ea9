"""cett_sparsity: by hand, by brute force at the eps that were found, and with perplexity as the model really has it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

import activarium as act
from activarium import testing
from activarium.data import scenes  # pyright: ignore[reportAttributeAccessIssue]
from activarium.edits import Replace, Where
from activarium.errors import AxisError, InputError, UnknownName, UnknownSite

from .recorded import cut, recording, table

cett_sparsity = act.analyses.cett_sparsity
TEXTS = ["the cat sat on the mat", "Anna saw a dog", "the dog ran to the house", "a book and a cat"]
POST = "blocks.*.mlp.post"


def holding(*downs: torch.Tensor, bias: torch.Tensor | None = None):
    """A model of which only the down projections are known."""
    weights = {f"blocks.{i}.mlp.W_down": d for i, d in enumerate(downs)}
    weights |= {} if bias is None else {"blocks.0.mlp.b_down": bias}

    def weight(name: str) -> torch.Tensor:
        if name not in weights:
            raise UnknownName(f"No weight called {name!r}.")
        return weights[name]

    return SimpleNamespace(name="planted", sites={}, weight=weight, inputs=None, looks_back=None, run=None, readout=None)


@pytest.fixture(scope="module")
def llama():
    return act.wrap(*testing.tiny("llama"), name="llama", certify=False)


def brute_force(values: torch.Tensor, down: torch.Tensor, bias: torch.Tensor | None, eps: float) -> tuple[float, float]:
    """CETT and sparsity from every neuron's own write, one by one, in float64."""
    writes = values.double()[:, :, None] * down.double()[None]  # row, neuron, d_model
    faint = writes.norm(dim=2) < eps * (1 + 1e-6)
    output = writes.sum(1) + (0 if bias is None else bias.double())
    lost = torch.where(faint[:, :, None], writes, 0).sum(1)
    return float((lost.norm(dim=1) / output.norm(dim=1)).mean()), float(faint.double().mean())


def test_three_and_four_make_five():
    layers = recording([torch.tensor([[3.0, 4.0], [-3.0, 4.0]])], table([0, 1]), "mlp.post")
    model = holding(torch.eye(2))
    dropped = cett_sparsity(layers, model, target=0.6001)["layers"]
    assert dropped.values.tolist() == [0.5]
    assert dropped.columns["CETT"][0] == pytest.approx(0.6)
    assert 3 <= dropped.columns["eps"][0] < 4
    assert cett_sparsity(layers, model, target=0.5999).diagnostics["sparsity"] == 0.0


def test_the_norm_is_of_the_sum_not_the_sum_of_norms():
    down = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 10.0]])  # two faint neurons that cancel
    layers = recording([torch.tensor([[1.0, 1.0, 1.0]] * 2)], table([0, 1]), "mlp.post")
    found = cett_sparsity(layers, holding(down), target=0.01)
    assert found.diagnostics["sparsity"] == pytest.approx(2 / 3)
    assert found["layers"].columns["CETT"][0] == 0.0


def test_the_bias_is_part_of_the_output():
    layers = recording([torch.tensor([[3.0, 4.0]] * 2)], table([0, 1]), "mlp.post")
    bias = torch.tensor([3.0, 4.0])  # the output is twice as long
    found = cett_sparsity(layers, holding(torch.eye(2), bias=bias), target=0.301)
    assert found["layers"].columns["CETT"][0] == pytest.approx(0.3)
    assert found.diagnostics["sparsity"] == 0.5


def test_columns_decide_by_contribution_and_not_by_size():
    down = torch.diag(torch.tensor([1.0, 100.0]))
    layers = recording([torch.tensor([[2.0, 1.0]] * 2)], table([0, 1]), "mlp.post")
    assert cett_sparsity(layers, holding(down), target=0.05).diagnostics["sparsity"] == 0.5  # writes 2 and 100
    assert cett_sparsity(layers, holding(down), target=0.05, by="size").diagnostics["sparsity"] == 0.0


def test_neurons_without_a_column_are_always_dropped_and_silent_rows_counted():
    down = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    layers = recording([torch.tensor([[5.0, 1.0], [5.0, 0.0]])], table([0, 1]), "mlp.post")
    report = cett_sparsity(layers, holding(down), target=0.2)
    assert report.diagnostics["sparsity"] == 0.75  # two without a column, one zero
    assert "rows whose output is zero have no CETT and were left out: {'blocks.0.mlp.post': 1}." in report.words


@pytest.mark.parametrize("by", ["contribution", "size"])
def test_cett_at_the_eps_found_is_that_of_brute_force(by: str):
    generator = torch.Generator().manual_seed(0)
    downs = [torch.randn(24, 7, generator=generator) * torch.rand(24, 1, generator=generator) * 3 for _ in range(2)]
    values = [torch.randn(50, 24, generator=generator) ** 3 for _ in range(2)]
    report = cett_sparsity(recording(values, table(np.repeat(np.arange(5), 10)), "mlp.post"), holding(*downs), target=0.3, by=by)
    frame = report["layers"].to_frame().set_index("name")
    for i, (v, d) in enumerate(zip(values, downs, strict=True)):
        line = frame.loc[f"blocks.{i}.mlp.post"]
        ranked = d if by == "contribution" else d / d.norm(dim=1, keepdim=True)
        writes = (v[:, :, None] * ranked[None]).norm(dim=2)
        output, faint = v @ d, writes <= line["eps"]
        wanted = ((torch.where(faint, v, 0) @ d).norm(dim=1) / output.norm(dim=1)).double().mean()
        assert line["CETT"] == pytest.approx(float(wanted), rel=1e-5)
        assert 0.3 * 0.95 < line["CETT"] <= 0.3
        assert line["share dropped"] == float(faint.double().mean())
        if by == "contribution":
            assert (line["CETT"], line["share dropped"]) == pytest.approx(brute_force(v, d, None, float(line["eps"])), rel=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt"])
def test_real_models_by_brute_force(name: str):
    model = act.wrap(*testing.tiny(name), certify=False)
    recorded = model.run(TEXTS, read=[POST, "blocks.*.mlp.proj"])
    frame = cett_sparsity(recorded, model, target=0.25)["layers"].to_frame().set_index("name")
    post, proj = recorded["blocks.0.mlp.post"], recorded["blocks.0.mlp.proj"]
    keep = torch.from_numpy(np.flatnonzero(~np.isin(post.index["kind"], ["bos", "special"])))
    line, down = frame.loc["blocks.0.mlp.post"], model.weight("blocks.0.mlp.W_down")
    writes = post.tensor[keep][:, :, None] * down[None]
    faint = post.tensor[keep].abs() <= line["eps"] / down.norm(dim=1)  # eps may lie within rounding of one neuron's norm
    lost = torch.where(faint[:, :, None], writes, 0).sum(1)
    assert line["CETT"] == pytest.approx(float((lost.norm(dim=1) / proj.tensor[keep].norm(dim=1)).mean()), rel=1e-4)


def test_the_same_bits_in_pieces_and_from_a_store(llama, tmp_path: Path):
    generator = torch.Generator().manual_seed(1)
    down, values = torch.randn(16, 6, generator=generator), torch.randn(700, 16, generator=generator)
    whole = recording([values], table(np.repeat(np.arange(7), 100)), "mlp.post")
    assert act.identical(cett_sparsity(whole, holding(down)), cett_sparsity(cut(whole, [3, 5, 400]), holding(down)))
    here = act.capture(llama, TEXTS, [POST], progress=False)
    act.capture(llama, TEXTS, [POST], to=tmp_path / "a.acts", progress=False)
    assert act.identical(cett_sparsity(here, llama), cett_sparsity(act.open(tmp_path / "a.acts"), llama))


def test_perplexity_is_that_of_the_model_with_those_neurons_really_dropped(llama):
    recorded = llama.run(TEXTS, read=POST)
    report = cett_sparsity(recorded, llama, TEXTS, percent=0.5)
    frame = report["layers"].to_frame().set_index("name")
    where = Where(kinds=("token",))

    def without_faint(i: int) -> Replace:
        down, eps = llama.weight(f"blocks.{i}.mlp.W_down"), frame.loc[f"blocks.{i}.mlp.post", "eps at perplexity +0.5 %"]
        return Replace(f"blocks.{i}.mlp.post", lambda v: torch.where(v.abs() * down.norm(dim=1) > eps, v, 0), where=where)

    def perplexity(edits: list[Replace]) -> float:
        logits = llama.run(TEXTS, edits=edits)["logits"]
        spans = [logits.index.span(e) for e in range(len(TEXTS))]
        token = torch.as_tensor(logits.index["token"].astype(np.int64))
        losses = [functional.cross_entropy(logits.tensor[s][:-1].double(), token[s][1:], reduction="none") for s in spans]
        return float(torch.cat(losses).mean().exp())

    full, changed = perplexity([]), perplexity([without_faint(i) for i in range(2)])
    assert report.diagnostics["perplexity"] == pytest.approx(full)
    assert report.diagnostics["rise of perplexity"] == pytest.approx(100 * (changed / full - 1), abs=1e-3)
    assert report.diagnostics["rise of perplexity"] <= 0.5
    search = report["search"]
    allowed = list(search.x).index(report.diagnostics["CETT at perplexity"])
    assert search.curves["rise of perplexity, %"][allowed + 1] > 0.5  # the next target that was tried is too much
    assert 0 < report.diagnostics["sparsity at perplexity"] < 1


def test_images_with_labels_have_a_perplexity_and_without_have_none():
    glyph = act.load("glyph")
    images, labels = scenes.batch(scenes.TEST_SEED, 0, 4)
    recorded = glyph.run(list(images), read="blocks.0.mlp.post")
    report = cett_sparsity(recorded, glyph, {"images": list(images), "label": labels})
    assert report.diagnostics["rise of perplexity"] <= 1
    with pytest.raises(InputError, match="Perplexity needs right answers.*For images pass"):
        cett_sparsity(recorded, glyph, list(images))


def test_stacks_are_reported_apart():
    model = act.wrap(*testing.tiny("t5"), certify=False)
    recorded = model.run({"encoder": TEXTS, "decoder": TEXTS}, read=["encoder.blocks.*.mlp.post", "decoder.blocks.*.mlp.post"])
    assert {"encoder sparsity", "decoder layers"} <= set(cett_sparsity(recorded, model).parts)


def test_what_cannot_be_answered_is_refused(llama):
    layers = recording([torch.ones(2, 2)], table([0, 1]), "mlp.post")
    with pytest.raises(AxisError, match="has 2 neurons; the down projection of planted takes 3"):
        cett_sparsity(layers, holding(torch.ones(3, 2)))
    with pytest.raises(InputError, match=r"between 0 and 1; found 20.*usual choice is 0\.2"):
        cett_sparsity(layers, holding(torch.eye(2)), target=20)
    with pytest.raises(InputError, match="found 0.*positive number"):
        cett_sparsity(layers, holding(torch.eye(2)), percent=0)
    with pytest.raises(InputError, match="choose 'contribution' or 'size'"):
        cett_sparsity(layers, holding(torch.eye(2)), by="rank")
    with pytest.raises(UnknownSite, match=r"no site 'blocks.\*.mlp.post'"):
        cett_sparsity(recording([torch.ones(2, 2)], table([0, 1]), "resid_post"), llama)
