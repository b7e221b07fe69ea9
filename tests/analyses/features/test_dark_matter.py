"""Dark matter: planted linear errors give their R², complete dictionaries give none, parts and controls in a model are what they say."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses import dark_matter, dictionary_quality
from activarium.analyses.features._dark_matter import _halves
from activarium.analyses.features.error_cost import TAKEN, without
from activarium.analyses.features.error_parts import ErrorFit
from activarium.analyses.features.error_scaling import error_scaling
from activarium.analyses.features.pursuit import gradient_pursuit
from activarium.analyses.features.recovered import Draw
from activarium.analyses.features.ridge import Ridge
from activarium.dictionaries import SAE, Design, Origin, controls, rows_for
from activarium.edits import Replace
from activarium.errors import InputError

SITE, OUT = "blocks.0.mlp.in", "blocks.0.mlp.out"


def found(report, part="predicted"):
    return dict(zip(report[part].names, report[part].values, strict=True))


def zero_transcoder(width, out):
    """It writes nothing, so its error is what should be written."""
    design = Design(width, 2, d_out=out, transcoder=True, subtracts_bias=False)
    weights = {"encoder": torch.zeros(2, width), "W_dec": torch.zeros(2, out), "b_enc": torch.zeros(2), "b_dec": torch.zeros(out)}
    return SAE.of_weights(design, weights, Origin(site=SITE, target=OUT))


def errors_of(x, e, **options):
    """A recording and a dictionary that makes these errors on it."""
    data = act.testing.recording_of({SITE: x, OUT: e}, example=np.arange(len(x)) // 10)
    return dark_matter(zero_transcoder(x.shape[1], e.shape[1]), data, pursuit=0, **options)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_planted_linear_error_gives_its_share_pooled_and_by_number():
    # Var(x B0) by number 9, 4, 1, 0 times 1, noise 1, 4, 1, 2: shares .9, .5, .5, 0; pooled 14 / 22.
    x = drawn(20_000, 6) @ torch.diag(torch.tensor([1.0, 2, 3, 1, 1, 1]))
    weight = torch.zeros(6, 4)
    weight[0, 0], weight[1, 1], weight[2, 2] = 3, 1, 1 / 3
    noise = drawn(20_000, 4, seed=1) * torch.tensor([1.0, 2, 1, 2**0.5])
    report = errors_of(x + 50, x @ weight + noise - 7)
    here = found(report)
    assert here["error, pooled"] == pytest.approx(14 / 22, abs=0.01)
    assert here["error, mean over numbers"] == pytest.approx((0.9 + 0.5 + 0.5 + 0) / 4, abs=0.01)
    assert abs(here["error, pooled, by chance"]) < 0.01
    i = report["predicted"].names.index("error, pooled")
    assert report["predicted"].columns["low"][i] < 14 / 22 < report["predicted"].columns["high"][i]
    share = found(report, "error")
    assert share["nonlinear part"] == pytest.approx(8 / 22, abs=0.01)


def test_lengths_can_be_foretold_where_directions_cannot():
    x = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    e = torch.nn.functional.normalize(drawn(20_000, 8, seed=1), dim=1) * (1 + 3 * x[:, :1]).sqrt()
    here = found(errors_of(x, e))
    assert abs(here["error, pooled"]) < 0.01
    assert here["squared length"] == pytest.approx(1, abs=1e-3)
    assert abs(here["squared length, by chance"]) < 0.01
    curve = errors_of(x, e)["lengths"].curves
    assert curve["mean squared length"] == pytest.approx(curve["as predicted"], abs=0.01)


def test_a_complete_dictionary_leaves_nothing_linear():
    # Orthonormal atoms, codes above a threshold that the noise never passes: what is left is noise in the directions that are off.
    atoms = torch.linalg.qr(drawn(32, 32)).Q
    on = torch.rand(20_000, 32, generator=torch.Generator().manual_seed(1)) < 0.1
    sizes = on * (0.7 + 0.3 * drawn(20_000, 32, seed=2).abs())
    x = sizes @ atoms + 0.02 * drawn(20_000, 32, seed=3)
    weights = {
        "encoder": atoms,
        "W_dec": atoms.clone(),
        "b_enc": torch.zeros(32),
        "b_dec": torch.zeros(32),
        "threshold": torch.full((32,), 0.35),
    }
    sae = SAE.of_weights(Design(32, 32, "jumprelu"), weights, Origin(site=SITE))
    data = act.testing.recording_of({SITE: x}, example=np.arange(20_000) // 20)
    here = dark_matter(sae, data, pursuit=0)
    assert 0 < found(here, "error")["whole error"] < 0.01
    assert abs(found(here)["error, pooled"]) < 0.01
    half = SAE.of_weights(
        Design(32, 32, "jumprelu"), weights | {"threshold": torch.where(torch.arange(32) < 16, 0.35, 1e9)}, Origin(site=SITE)
    )
    assert found(dark_matter(half, data, pursuit=0))["error, pooled"] > 0.99  # missing features are linear


def test_a_projection_leaves_a_linear_error_and_a_shift_a_constant_one():
    x = drawn(2000, 6) + 3
    data = act.testing.recording_of({SITE: x}, example=np.arange(2000))
    report = dark_matter(controls.principal(data[SITE], 3), data)
    assert found(report)["error, pooled"] == pytest.approx(1, abs=1e-6)
    assert found(report, "error")["nonlinear part"] == pytest.approx(0, abs=1e-9)
    moved = controls.identity(6)
    moved = SAE.of_weights(moved.design, dict(moved.named_parameters()) | {"b_dec": torch.ones(6)}, Origin(site=SITE))
    moved.design = Design(6, 12, subtracts_bias=False)
    shift = dark_matter(moved, data)
    assert found(shift, "error")["whole error"] == pytest.approx(1, rel=0.1)
    assert found(shift, "error")["nonlinear part"] < 1e-9


def test_figures_are_those_of_scikit_learn_on_the_same_halves():
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score

    x = drawn(3000, 8) + 1000
    sae = SAE(Design(8, 32, "topk", k=4), Origin(site=SITE), seed=1)
    data = act.testing.recording_of({SITE: x}, example=np.arange(3000) // 7)
    report = dark_matter(sae, data, ridge=1e-12)
    held = _halves(rows_for(sae, data), 0)
    e, wide = (x.double() - sae(x).double()).detach().numpy(), x.double().numpy()
    assert 0.4 < held.mean() < 0.6
    assert not set(np.unique((np.arange(3000) // 7)[held])) & set(np.unique((np.arange(3000) // 7)[~held]))
    predicted = LinearRegression().fit(wide[~held], e[~held]).predict(wide[held])
    norm = LinearRegression().fit(wide[~held], (e[~held] ** 2).sum(1)).predict(wide[held])
    here = found(report)
    assert here["error, mean over numbers"] == pytest.approx(r2_score(e[held], predicted), abs=1e-6)
    assert here["error, pooled"] == pytest.approx(r2_score(e[held], predicted, multioutput="variance_weighted"), abs=1e-6)
    assert here["squared length"] == pytest.approx(r2_score((e[held] ** 2).sum(1), norm), abs=1e-6)
    share = found(report, "error")
    total = ((wide[held] - wide[held].mean(0)) ** 2).sum()
    assert share["whole error"] == pytest.approx((e[held] ** 2).sum() / total)
    assert share["nonlinear part"] == pytest.approx(((e[held] - predicted) ** 2).sum() / total, rel=1e-6)


def test_ridge_in_pieces_is_ridge_at_once():
    from sklearn.linear_model import Ridge as Reference

    x, y = drawn(500, 5) + 10, drawn(500, 2, seed=1)
    sums = Ridge(5, 2)
    for start in (0, 3, 200, 499):
        stop = {0: 3, 3: 200, 200: 499, 499: 500}[start]
        sums.add(x[start:stop], y[start:stop])
    penalty = 0.1 * float(x.double().var(0, correction=0).mean()) * 500
    wanted = Reference(alpha=penalty).fit(x.double().numpy(), y.double().numpy())
    made = sums.solved(0.1)
    assert made.weight.numpy() == pytest.approx(wanted.coef_.T, abs=1e-9)
    assert made.bias.numpy() == pytest.approx(wanted.intercept_, abs=1e-8)


# --- in a model


@pytest.fixture(scope="module")
def texts():
    from activarium.data import corpus

    model = act.load("scribe")
    data = [e.text for family in corpus.FAMILIES for e in corpus.held_out(family, 3, 8)]
    return model, data, model.run(data, read="blocks.1.resid_post")


def test_the_site_lacks_just_the_part_that_was_taken_out(texts):
    model, data, recorded = texts
    site = "blocks.1.resid_post"
    sae = SAE(Design(128, 64, "topk", k=8), Origin(site=site), seed=3)
    report = dark_matter(sae, recorded, model, data, pursuit=0)
    source = rows_for(sae, recorded)
    held = _halves(source, 0)
    fit = ErrorFit(sae)
    rows = np.flatnonzero(~held)
    x, y = source.read(rows)
    fit.add(x, fit.errors(x, y), torch.Generator().manual_seed(0))
    fit.fit(1e-6)
    full = model.run(data, read="logits").logits.tensor.double().log_softmax(1)
    sizes = {}
    for name, part in (("whole error", "error"), ("linear part", "linear"), ("nonlinear part", "nonlinear")):

        def lacking(x, part=part, name=name):
            gone = getattr(fit.parts(x, fit.errors(x, x)), part)
            sizes[name] = float(gone.square().sum())
            return x - gone

        logs = model.run(data, read="logits", edits=[Replace(site, lacking)]).logits.tensor.double().log_softmax(1)
        assert found(report, "cost")[name] == pytest.approx(float((full.exp() * (full - logs)).sum(1).mean()), rel=1e-3)
    table = report["cost"].to_frame().set_index("name")
    for name, size in sizes.items():
        for line in (name, f"random direction, as long as the {name}"):
            assert table.loc[line, "share of squared length"] == pytest.approx(size / sizes["whole error"], rel=1e-4)
    quality = dictionary_quality(sae, recorded, model, data)["recovered"].to_frame().set_index("name")
    assert table.loc["whole error", "KL, nats"] == pytest.approx(quality.loc["dictionary", "KL, nats"], rel=1e-4)
    assert table.loc["whole error", "rise of CE"] == pytest.approx(quality.loc["dictionary", "rise of CE"], rel=1e-3)


def test_random_directions_are_as_long_as_the_part_and_other_than_it():
    x, fit = drawn(300, 6), ErrorFit(SAE(Design(6, 12, "topk", k=2), seed=1))
    fit.add(x, fit.errors(x, x), torch.Generator().manual_seed(5))
    fit.fit(1e-6)
    for of in TAKEN.values():
        part = of(fit.parts(x, fit.errors(x, x)))
        gone = [x.double() - without(fit, of, "", {}, g)(x, x) for g in (None, torch.Generator().manual_seed(9))]
        assert torch.allclose(gone[0], part)
        assert torch.allclose(gone[1].norm(dim=1), part.norm(dim=1))
        assert torch.cosine_similarity(gone[1], part).mean().abs() < 0.1


def test_a_store_and_excluded_rows(texts, tmp_path):
    model, data, recorded = texts
    sae = SAE(Design(128, 64, "topk", k=8), Origin(site="blocks.1.resid_post", exclude=("bos",)), seed=3)
    stored = act.capture(model, data, ["blocks.1.resid_post"], to=tmp_path / "kept.acts", progress=False)
    live, kept = (dark_matter(sae, r, pursuit=0) for r in (recorded, stored))
    assert live["predicted"].values[:3] == pytest.approx(kept["predicted"].values[:3], abs=1e-4)
    assert live.diagnostics["rows left out"] == {"bos": len(data)}
    assert any("the linear part is understated" in word for word in live.words)


def test_images_go_the_same_way():
    model, images = act.wrap(*act.testing.tiny("vit"), certify=False), act.testing.images() * 4
    recorded = model.run(images, read="blocks.0.resid_post")
    sae = SAE(Design(32, 16, "topk", k=4), Origin(site="blocks.0.resid_post", exclude=("cls",)), seed=1)
    report = dark_matter(sae, recorded, model, {"images": images, "label": [1] * len(images)})
    assert {"cost", "pursuit"} <= set(report)
    assert report["cost"].columns["rise of CE"].shape == (6,)


# --- another dictionary, another way to codes


def test_scaling_by_hand():
    generator = np.random.default_rng(0)
    e, n, x = generator.random((3, 400))
    held = np.arange(400) % 2 == 1
    table = error_scaling(
        {"x": x, "small error": e, "small nonlinear": n, "large error": 2 * e + n + 5}, held, np.arange(400), ("a", "b"), Draw(0.95, 200, 0)
    )
    values = dict(zip(table.names, table.values, strict=True))
    assert values["‖e‖ and ‖n‖ of the smaller"] == pytest.approx(1)
    assert values["‖e‖ of the smaller"] == pytest.approx(4 / 5, abs=0.06)
    assert abs(values["‖x‖"]) < 0.1


def test_the_smaller_foretells_the_larger_whichever_comes_first():
    x = drawn(2000, 8) * torch.linspace(0.2, 2, 2000)[torch.randperm(2000, generator=torch.Generator().manual_seed(3))][:, None]
    data = act.testing.recording_of({SITE: x}, example=np.arange(2000))
    small, large = (SAE(Design(8, f, "topk", k=2), Origin(site=SITE), seed=f) for f in (16, 64))
    one, other = dark_matter(small, data, second=large, pursuit=0), dark_matter(large, data, second=small, pursuit=0)
    assert one["scaling"].values == pytest.approx(other["scaling"].values)
    assert found(one, "scaling")["‖e‖ of the smaller"] > 0.3
    itself = dark_matter(small, data, second=small, pursuit=0)
    assert found(itself, "scaling")["‖e‖ of the smaller"] == pytest.approx(1)


def test_pursuit_takes_the_largest_of_orthonormal_directions():
    directions, rows = torch.linalg.qr(drawn(10, 10)).Q, drawn(50, 10, seed=1)
    counts = torch.arange(50) % 4
    codes = gradient_pursuit(rows, directions, counts)
    for row, code, count in zip(rows, codes, counts.tolist(), strict=True):
        along = (directions @ row).clamp_min(0)
        kept = along.argsort(descending=True)[:count]
        wanted = torch.zeros(10).index_put((kept,), along[kept])
        assert torch.allclose(code, wanted, atol=1e-5) or count > 1  # later steps move all codes by one size
        assert int((code > 0).sum()) <= count
    exact = gradient_pursuit(rows, torch.cat([directions, -directions]), torch.full((50,), 200))
    assert torch.allclose(exact @ torch.cat([directions, -directions]), rows, atol=1e-3)


def slowly(row, directions, count):
    """The published steps, for one row."""
    codes, taken, residual = torch.zeros(len(directions)), set(), row.clone()
    for _ in range(count):
        along = directions @ residual
        taken.add(int(along.argmax()))
        gradient = torch.tensor([float(along[i]) if i in taken else 0.0 for i in range(len(directions))])
        change = gradient @ directions
        codes = (codes + (change @ residual) / (change @ change) * gradient).clamp_min(0)
        residual = row - codes @ directions
    return codes


@pytest.mark.parametrize("width", [12, 3])
def test_pursuit_is_the_published_one_row_by_row(width):
    directions = torch.nn.functional.normalize(drawn(30, width), dim=1)
    rows, counts = drawn(20, width, seed=1), torch.arange(20) % 7
    codes = gradient_pursuit(rows, directions, counts)
    for row, code, count in zip(rows, codes, counts.tolist(), strict=True):
        assert torch.allclose(code, slowly(row, directions, count), atol=1e-5)


def test_pursuit_never_takes_a_direction_backwards():
    # The third direction, taken first, is no longer wanted once both of the others are there: a step would take it below 0.
    directions = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6], [0.6, 0.6, 1.0]]), dim=1)
    rows = torch.rand(200, 2, generator=torch.Generator().manual_seed(2)) @ directions[:2] + torch.tensor([0.3, 0.3, -0.4])
    codes = gradient_pursuit(rows, directions, torch.full((200,), 12))
    assert codes.min() == 0
    assert any((codes[:, i] == 0).any() and (codes[:, i] > 0).any() for i in range(3))


def test_pursuit_beats_a_bad_encoder_and_takes_no_more_codes():
    atoms, rows, _ = act.testing.planted_rows(6000, width=24, atoms=40, active=3)
    blind = SAE.of_weights(
        Design(24, 40, "topk", k=4),
        {"encoder": drawn(40, 24), "W_dec": atoms, "b_enc": torch.zeros(40), "b_dec": torch.zeros(24)},
        Origin(site=SITE),
    )
    data = act.testing.recording_of({SITE: rows}, example=np.arange(6000) // 10)
    table = dark_matter(blind, data)["pursuit"].to_frame().set_index("name")
    assert table.loc["gradient pursuit", "FVU"] < 0.15 < 0.8 < table.loc["encoder", "FVU"]
    assert table.loc["gradient pursuit", "codes per row"] <= table.loc["encoder", "codes per row"]
    whole = dark_matter(blind, data, pursuit=10_000)
    assert whole["pursuit"].to_frame().set_index("name").loc["encoder", "FVU"] == pytest.approx(
        found(whole, "error")["whole error"], rel=1e-4
    )
    assert whole["pursuit"].to_frame().set_index("name").loc["encoder", "R² of the error"] == pytest.approx(
        found(whole)["error, pooled"], abs=1e-4
    )


def test_pursuit_is_left_out_with_its_reason():
    x = drawn(1400, 300)
    data = act.testing.recording_of({SITE: x}, example=np.arange(1400))
    assert any("rows have up to 300 codes" in w for w in dark_matter(controls.identity(300), data, site=SITE).words)
    scaled = SAE(Design(8, 16, scaling="layer_norm"), Origin(site=SITE))
    small = act.testing.recording_of({SITE: x[:, :8]}, example=np.arange(1400))
    assert any("scales each row before" in w for w in dark_matter(scaled, small).words)
    coder = act.testing.recording_of({SITE: x[:, :8], OUT: x[:, 8:12]}, example=np.arange(1400))
    assert any("a transcoder's codes are of other rows" in w for w in dark_matter(zero_transcoder(8, 4), coder).words)


def test_refusals(texts):
    model, _, recorded = texts
    sae = SAE(Design(8, 16), Origin(site=SITE))
    with pytest.raises(InputError, match="needs both model= and inputs="):
        dark_matter(sae, recorded, model)
    with pytest.raises(InputError, match="All rows are of one example"):
        dark_matter(sae, act.testing.recording_of({SITE: drawn(100, 8)}))
    with pytest.raises(InputError, match="Half of the examples holds 10 rows; a linear map from 8 numbers is fitted to at least 16"):
        dark_matter(sae, act.testing.recording_of({SITE: drawn(20, 8)}, example=np.arange(20)))
    data = act.testing.recording_of({SITE: drawn(100, 8), OUT: drawn(100, 8)}, example=np.arange(100))
    with pytest.raises(InputError, match="second dictionary reads blocks.0.mlp.out and the first blocks.0.mlp.in"):
        dark_matter(sae, data, second=SAE(Design(8, 16), Origin(site=OUT)))
