"""bilinear_spectrum: the identity on real rows, planted eigenvectors, biases, Lanczos, cuts, heads, the SVD by hand, approximations."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features.bilinear_layers import BilinearLayer
from activarium.analyses.features.bilinear_models import outputs_of
from activarium.dictionaries import SAE, Design, Origin
from activarium.errors import AxisError, CertificateError, InputError, MissingSite, NotFinite, UnknownName

bilinear_spectrum = act.analyses.bilinear_spectrum
TEXTS = ["the cat sat on the house .", "Anna gave Tom the book ."]


def drawn(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_layer(constant: bool = False, dtype=torch.float64) -> BilinearLayer:
    w, v, p = drawn(20, 9, seed=1, dtype=dtype), drawn(20, 9, seed=2, dtype=dtype), drawn(5, 20, seed=3, dtype=dtype)
    biases = [drawn(n, seed=4 + n, dtype=dtype) for n in (20, 20, 5)] if constant else []
    return BilinearLayer.of(w, v, p, *biases)


def planted(values: list[float], width: int = 12) -> tuple[BilinearLayer, torch.Tensor]:
    """Output 0 is Σ λ (q·x)² with known orthonormal q; output 1 is something else."""
    q = torch.linalg.qr(drawn(width, width, seed=8))[0].T[: len(values)]
    left = torch.cat([q, drawn(3, width, seed=9)])
    right = torch.cat([q, drawn(3, width, seed=10)])
    down = torch.zeros(2, len(left), dtype=torch.float64)
    down[0, : len(values)] = torch.tensor(values, dtype=torch.float64)
    down[1, len(values) :] = 1
    return BilinearLayer(left, right, down), q


@pytest.fixture(scope="module")
def llama():
    return act.wrap(*act.testing.tiny("llama", hidden_act="linear"), certify=False)


@pytest.fixture(scope="module")
def gated():
    return act.wrap(*act.testing.tiny("llama"), certify=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("constant", [False, True])
def test_the_identity_holds_on_rows_with_and_without_biases(dtype, constant):
    layer, rows = some_layer(constant, dtype), drawn(50, 9, seed=20, dtype=dtype)
    report = bilinear_spectrum(layer, rows, {f"{i}": torch.eye(5)[i] for i in range(5)})
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    assert report.check.values.max() < limit
    assert report.check.columns["by the eigenvectors"].max() < limit
    if dtype == torch.float32:
        assert report.check.values.max() > 0  # compared with what float32 really gave


def test_biases_are_those_of_the_plain_formula():
    w, v, p = drawn(20, 9, seed=1), drawn(20, 9, seed=2), drawn(5, 20, seed=3)
    bw, bv, bp = drawn(20, seed=4), drawn(20, seed=5), drawn(5, seed=6)
    x = drawn(7, 9, seed=7)
    plain = ((x @ w.T + bw) * (x @ v.T + bv)) @ p.T + bp
    layer = BilinearLayer.of(w, v, p, bw, bv, bp)
    assert layer(x) == pytest.approx(plain, abs=1e-12)
    assert layer.form(torch.eye(5)[2])(layer.rows(x)) == pytest.approx(plain[:, 2], abs=1e-12)


def test_words_say_how_much_of_a_biased_form_is_no_product():
    """y = (x₁ + 2)(x₂): Q holds ½ for the product and 1 for the linear term, each twice: squares ½ and 2."""
    layer = BilinearLayer.of(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 1), torch.tensor([2.0]))
    report = bilinear_spectrum(layer, torch.eye(2), {"y": [1.0]})
    assert any("linear and constant terms are 80% of that sum" in w for w in report.words)


def test_the_matrix_by_hand():
    """y = x₁x₂: Q = [[0, ½], [½, 0]] with eigenvalues ±½ along (1, ±1)/√2."""
    layer = BilinearLayer(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 1))
    form = layer.form(torch.ones(1))
    assert form.matrix().tolist() == [[0, 0.5], [0.5, 0]]
    spectrum = form.spectrum()
    assert sorted(spectrum.values.tolist()) == pytest.approx([-0.5, 0.5])
    assert np.abs(spectrum.vectors) == pytest.approx(np.full((2, 2), 0.5**0.5))


def test_the_matrix_is_symmetric_and_is_what_lanczos_multiplies_with():
    form = some_layer(True).form(drawn(5, seed=30))
    matrix = form.matrix()
    assert torch.equal(matrix, matrix.T)
    x = drawn(10, 4, seed=31)
    assert form.times(x) == pytest.approx(matrix @ x, abs=1e-12)
    assert form.times(x[:, 0]) == pytest.approx(matrix @ x[:, 0], abs=1e-12)


def test_a_planted_layer_gives_back_its_eigenvectors():
    values = [5.0, -4.0, 3.0, 1.0]
    layer, q = planted(values)
    report = bilinear_spectrum(layer, drawn(30, 12, seed=11), {"planted": [1.0, 0.0]}, vectors=4)
    assert report["eigenvalues"].curves["planted"][:4] == pytest.approx(values)
    assert report["eigenvalues"].curves["planted"][4:] == pytest.approx(np.zeros(8), abs=1e-12)
    cosines = np.abs((report["vectors"].values[0] * q.numpy()).sum(1))
    assert cosines.min() > 0.999


def test_equal_eigenvalues_are_compared_as_spaces():
    from scipy.linalg import subspace_angles

    layer, q = planted([2.0, 2.0, 2.0, -1.0])
    report = bilinear_spectrum(layer, drawn(30, 12, seed=11), {"planted": [1.0, 0.0]}, vectors=4)
    angles = subspace_angles(report["vectors"].values[0, :3].T, q[:3].numpy().T)
    assert angles.max() < 1e-6


def test_lanczos_gives_the_same_as_all_eigenvectors_and_again_the_same():
    layer, rows = some_layer(), drawn(20, 9, seed=20)
    whole = bilinear_spectrum(layer, rows, {"u": drawn(5, seed=1)}, vectors=4)
    few, again = (bilinear_spectrum(layer, rows, {"u": drawn(5, seed=1)}, vectors=4, dense=4) for _ in range(2))
    assert few["eigenvalues"].curves["u"] == pytest.approx(whole["eigenvalues"].curves["u"][:4])
    assert np.abs((few["vectors"].values * whole["vectors"].values).sum(-1)) == pytest.approx(np.ones((1, 4)))
    assert act.results.identical(few["eigenvalues"], again["eigenvalues"])
    assert few.check.values.max() < 1e-12  # the form is exact however few eigenvectors there are
    assert "by the eigenvectors" not in few.check.columns
    assert 0 < few.check.columns["‖Q‖² in the eigenvectors"][0] < 1


def test_overlaps_are_those_of_the_matrices():
    layer = some_layer(True)
    eye = torch.eye(5, dtype=torch.float64)
    matrices = torch.stack([layer.form(u).matrix() for u in eye]).flatten(1)
    assert layer.overlaps(eye) == pytest.approx(matrices @ matrices.T, rel=1e-10)
    report = bilinear_spectrum(layer, drawn(4, 9), {"u": drawn(5, seed=1)})
    singular = torch.linalg.svdvals(matrices).square()
    assert report["shared outputs"].curves["share"] == pytest.approx((singular / singular.sum()).numpy())


def test_a_bilinear_model_is_read_exactly(llama):
    report = bilinear_spectrum(llama, TEXTS, ["cat", "house", "book"], block=1, vectors=3)
    assert report.check.values.max() < 1e-5
    assert report.diagnostics["exact"] is True
    cut = report["truncation"]
    assert cut.curves["largest eigenvalues"][-1] == pytest.approx(0, abs=1e-6)
    assert cut.curves["largest eigenvalues"][0] > 1e-4
    assert report["agreement"].curves["largest eigenvalues"][-1] == 1
    assert report["vectors"].values.shape == (3, 3, 32)
    assert set(report["tokens"].columns["output"]) == {"cat", "house", "book"}


def test_tokens_are_what_a_stream_of_one_token_would_do(llama):
    report = bilinear_spectrum(llama, TEXTS, ["cat"], block=0, vectors=1)
    q = torch.as_tensor(report["vectors"].values[0, 0].copy())
    gain, table = (llama.weight(n).double() for n in ("blocks.0.mlp.norm.gain", "W_E"))
    alone = gain * table / (table.square().mean(1, keepdim=True) + llama.torch_module.config.rms_norm_eps).sqrt()
    size = report["eigenvalues"].curves["cat"][0] * (alone @ q).square()
    best = int(size.abs().argmax())
    assert report["tokens"].columns["token"][0] == llama.tokenizer.decode([best])
    assert report["tokens"].values[0] == pytest.approx(float(size[best]), rel=1e-4)


def test_a_cut_model_writes_the_cut_values(llama):
    """By hand: the block's output is replaced so that along the token's direction it is λ₁(q₁·x)², and nothing else changes."""
    from activarium.edits import Set

    report = bilinear_spectrum(llama, TEXTS[:1], ["cat"], block=1, vectors=1)
    x, y = (llama.run(TEXTS[:1], read=f"blocks.1.mlp.{s}")[f"blocks.1.mlp.{s}"].tensor.double() for s in ("in", "proj"))
    u = outputs_of(llama, ["cat"], 32)[1][0]
    q = torch.as_tensor(report["vectors"].values[0, 0].copy())
    wanted = report["eigenvalues"].curves["cat"][0] * (x @ q).square()
    moved = y + ((wanted - y @ u) / (u @ u))[:, None] * u
    full, cut = (llama.run(TEXTS[:1], read="logits", edits=e)["logits"].tensor.double() for e in ([], [Set("blocks.1.mlp.proj", moved)]))
    a, b = full.log_softmax(1), cut.log_softmax(1)
    at = report["truncation"].x.tolist().index(1)
    assert report["truncation"].curves["largest eigenvalues"][at] == pytest.approx(float((a.exp() * (a - b)).sum(1).mean()), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_outputs_are_what_the_head_reads(family):
    """Along the stream, at a norm's scale held fixed, the direction gives differences of logits exactly."""
    model = act.wrap(*act.testing.tiny(family), certify=False)
    names = [0, 1] if family == "vit" else ["cat", "book"]
    _, found = outputs_of(model, names, 32)
    x = drawn(6, 32, seed=3, dtype=torch.float32)
    centred = x - x.mean(1, keepdim=True) if family != "llama" else x
    scale = centred.double().square().mean(1).sqrt()
    logits = model.readout(x).double()
    ids = names if family == "vit" else [model.tokenizer.encode(n, add_special_tokens=False)[0] for n in names]
    shift = model.readout(torch.zeros(1, 32)).double()[:, ids] if family != "llama" else 0
    assert (x.double() @ found.T / scale[:, None]).detach() == pytest.approx((logits[:, ids] - shift).detach(), rel=1e-3, abs=1e-3)


def test_a_gate_with_an_activation_is_refused_or_approximated_with_its_share(gated):
    with pytest.raises(InputError, match="is not bilinear: it multiplies a gate"):
        bilinear_spectrum(gated, TEXTS, ["cat"], block=0)
    report = bilinear_spectrum(gated, TEXTS, ["cat"], block=0, approximation="taylor")
    assert report.diagnostics["exact"] is False
    assert "NOT bilinear" in report.words[0]
    assert report.check.unit == "R²"
    assert report.check.values[0] < 0.9999
    with pytest.raises(InputError, match="has no gate"):
        bilinear_spectrum(act.wrap(*act.testing.tiny("gpt2"), certify=False), TEXTS, ["cat"], block=0)


def test_the_taylor_polynomial_is_the_second_derivative(gated):
    """Rows near the mean: the error is of third order, so ten times nearer is a thousand times better; the linear part only a hundred."""
    from activarium.analyses.features.bilinear_models import read_block

    read = read_block(gated, TEXTS, 0, ["cat"], "taylor")
    mlp = gated.torch_module.model.layers[0].mlp.double()
    try:
        centre, step = read.x.double().mean(0), drawn(5, 32, seed=2)
        errors = []
        for size in (0.1, 0.01):
            x = centre + size * step
            real = mlp(x).detach()
            errors.append(
                [
                    float((layer.form(read.directions[0])(layer.rows(x)) - real @ read.directions[0]).abs().max())
                    for layer in (read.layer, read.linear)
                ]
            )
    finally:
        gated.torch_module.model.layers[0].mlp.float()
    assert errors[0][0] < 0.5 * errors[0][1]
    assert errors[1][1] == pytest.approx(errors[0][1] / 100, rel=0.3)
    assert errors[1][0] < errors[0][0] / 300


def test_an_exact_layer_is_its_own_approximation(llama):
    report = bilinear_spectrum(llama, TEXTS, ["cat"], block=0, approximation="taylor")
    assert report.diagnostics["exact"] is True


def test_a_vision_transformer_shows_its_eigenvectors_as_pixels():
    model = act.wrap(*act.testing.tiny("vit"), certify=False)
    report = bilinear_spectrum(model, act.testing.images(2), [0, 1], block=0, approximation="taylor", vectors=2)
    conv = next(m for m in model.torch_module.modules() if isinstance(m, torch.nn.Conv2d))
    gain = model.weight("blocks.0.mlp.norm.gain").double()
    q = torch.as_tensor(report["vectors"].values[1, 0, :-1].copy())
    assert report["pixels"].axes == ("output", "eigenvector", "channel", "height", "width")
    assert report["pixels"].values[1, 0] == pytest.approx(
        torch.einsum("d,dchw->chw", q * gain, conv.weight.double()).detach().numpy(), abs=1e-9
    )


def test_a_layer_with_labels_loses_accuracy_only_where_eigenvectors_are_missing():
    """Class c is (q_c·x)²: one eigenvector each is all there is."""
    q = torch.linalg.qr(drawn(12, 12, seed=8))[0].T[:3]
    layer = BilinearLayer(q, q, torch.eye(3, dtype=torch.float64))
    x = drawn(200, 12, seed=4)
    labels = (x @ q.T).square().argmax(1).numpy()
    report = bilinear_spectrum(layer, x, {n: torch.eye(3)[i] for i, n in enumerate("abc")}, labels=labels, vectors=2)
    curve = dict(zip(report["truncation"].x.tolist(), report["truncation"].curves["largest eigenvalues"], strict=True))
    assert curve[1] == curve[12] == 1
    assert curve[0] == pytest.approx((labels == 0).mean())
    assert report["truncation"].curves["eigenvectors drawn at random"][1] < 0.7


def test_pairs_of_features_by_hand():
    """y = x₁x₂ + 3 x₃²: features along the axes meet as ½ and as 3."""
    left, right = torch.eye(3)[[0, 2]], torch.eye(3)[[1, 2]]
    layer = BilinearLayer(left, right, torch.tensor([[1.0, 3.0]]))
    rows = torch.eye(3)
    sae = SAE.of_weights(Design(3, 3), {"encoder": rows, "W_dec": rows, "b_enc": torch.zeros(3), "b_dec": torch.zeros(3)}, Origin())
    report = bilinear_spectrum(layer, drawn(4, 3, dtype=torch.float32), {"y": [1.0]}, dictionary=sae)
    found = report["interactions"]
    assert found.names[:2] == ("y · 2, 2", "y · 0, 1")
    assert found.values[:3].tolist() == [3, 0.5, 0]
    assert len(found.names) == 6


def test_pictures_of_a_layer_of_ones_own():
    layer, _ = planted([3.0, 1.0])
    embedding = drawn(12, 4, 5, seed=6)
    report = bilinear_spectrum(layer, drawn(4, 12), {"a": [1.0, 0.0]}, embedding=embedding, vectors=2)
    expected = np.tensordot(report["vectors"].values, embedding.numpy(), 1)
    assert report["pixels"].values == pytest.approx(expected)
    with pytest.raises(AxisError, match="embedding has shape"):
        bilinear_spectrum(layer, drawn(4, 12), {"a": [1.0, 0.0]}, embedding=drawn(11, 4, 5))


def test_a_wrong_weight_shows_in_the_identity(llama, monkeypatch):
    real = llama.weight

    def wrong(name):
        return real(name) * (1.001 if name.endswith("W_down") else 1)

    monkeypatch.setattr(llama, "weight", wrong)
    with pytest.raises(CertificateError, match="away from its quadratic form"):
        bilinear_spectrum(llama, TEXTS, ["cat"], block=0)


def test_refusals(llama):
    layer, rows = some_layer(), drawn(4, 9)
    one = {"u": torch.eye(5)[0]}
    with pytest.raises(InputError, match="needs block="):
        bilinear_spectrum(llama, TEXTS, ["cat"])
    with pytest.raises(InputError, match="needs block="):
        bilinear_spectrum(layer, rows, one, block=1)
    with pytest.raises(InputError, match="labels= is for a layer"):
        bilinear_spectrum(llama, TEXTS, ["cat"], block=0, labels=[0])
    with pytest.raises(InputError, match="No approximation called 'pade'"):
        bilinear_spectrum(llama, TEXTS, ["cat"], block=0, approximation="pade")
    with pytest.raises(InputError, match="vectors=0"):
        bilinear_spectrum(layer, rows, one, vectors=0)
    with pytest.raises(InputError, match="has no tokens or classes"):
        bilinear_spectrum(layer, rows, ["cat"])
    with pytest.raises(InputError, match="wanted 5 finite numbers"):
        bilinear_spectrum(layer, rows, {"u": torch.zeros(5)})
    with pytest.raises(InputError, match="at least one vector"):
        bilinear_spectrum(layer, rows, {})
    with pytest.raises(InputError, match="give tokens"):
        bilinear_spectrum(llama, TEXTS, [], block=0)
    with pytest.raises(InputError, match="wanted 4 whole numbers"):
        bilinear_spectrum(layer, rows, one, labels=[0, 1])
    with pytest.raises(InputError, match="Lanczos gives 1 to 7"):
        bilinear_spectrum(layer, rows, one, dense=2, vectors=8)
    with pytest.raises(InputError, match="no rows"):
        bilinear_spectrum(layer, rows[:0], one)
    with pytest.raises(AxisError, match="reads rows of 9"):
        bilinear_spectrum(layer, drawn(4, 8), one)
    with pytest.raises(AxisError, match="writes 5 numbers"):
        layer.form(torch.ones(4))
    with pytest.raises(AxisError, match="W, V and P"):
        BilinearLayer(drawn(3, 4), drawn(4, 4), drawn(2, 3))
    with pytest.raises(AxisError, match="directions have 3 numbers"):
        bilinear_spectrum(layer, rows, one, dictionary=SAE(Design(3, 4)))
    with pytest.raises(NotFinite, match="nothing can be checked"):
        bilinear_spectrum(layer, torch.full((2, 9), torch.nan), one)
    with pytest.raises(UnknownName, match="single token"):
        bilinear_spectrum(llama, TEXTS, ["zebra crossing"], block=0)
    with pytest.raises(MissingSite, match=r"no weights of blocks\.9"):
        bilinear_spectrum(llama, TEXTS, ["cat"], block=9)
    with pytest.raises(InputError, match="A norm follows"):
        bilinear_spectrum(
            act.wrap(*act.testing.tiny("gemma2"), certify=False), TEXTS, {"u": torch.ones(32)}, block=0, approximation="taylor"
        )
