"""Quality of dictionaries: numbers by hand, the ends of every scale, losses against torch, the same rows for splice and ablation."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses import dictionary_quality
from activarium.dictionaries import SAE, Design, Origin, Recipe, controls, train
from activarium.edits import Replace, Where, Zero
from activarium.errors import InputError, OtherModel

SITE, OUT = "blocks.0.resid_post", "blocks.0.mlp.out"


def line(report, name="dictionary", part="quality"):
    table = report[part].to_frame().set_index("name")
    return table.loc[name]


def made(directions, bias=None, encoder=None, site=SITE, **options):
    """A dictionary with these directions; its codes are relu of the products with them."""
    directions = torch.as_tensor(directions, dtype=torch.float32)
    encoder = directions if encoder is None else torch.as_tensor(encoder, dtype=torch.float32)
    bias = torch.zeros(directions.shape[1]) if bias is None else torch.as_tensor(bias, dtype=torch.float32)
    design = Design(encoder.shape[1], len(directions), d_out=directions.shape[1], **{"subtracts_bias": False, **options})
    weights = {"encoder": encoder.clone(), "W_dec": directions, "b_enc": torch.zeros(len(directions)), "b_dec": bias}
    return SAE.of_weights(design, weights, Origin(site=site, target=OUT if design.transcoder else ""))


def recording(rows, **options):
    return act.testing.recording_of({SITE: torch.as_tensor(rows, dtype=torch.float32)}, **options)


@pytest.fixture(scope="module")
def rows():
    return 3 + torch.randn(500, 8, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 9)


def test_figures_by_hand():
    # mean (2, 1); variance about it 4+1 + 4+1 + 0+4 + 0+4 = 18. The one feature keeps the first number.
    x = [[0.0, 2.0], [4.0, 0.0], [2.0, 3.0], [2.0, -1.0]]
    here = line(dictionary_quality(made([[1.0, 0.0], [0.0, 0.0]]), recording(x, example=[0, 0, 1, 1])))
    assert here["FVU"] == pytest.approx(14 / 18)
    assert here["explained variance"] == pytest.approx(4 / 18)
    assert here["FVU by number"] == pytest.approx((0 + 14 / 10) / 2)
    assert here["codes per row"] == 3 / 4
    assert [here[f"codes p{p}"] for p in (5, 50, 95)] == [0, 1, 1]
    assert here["cosine"] == pytest.approx((0 + 1 + 2 / 13**0.5 + 2 / 5**0.5) / 4)
    assert here["norm ratio"] == pytest.approx((0 + 1 + 2 / 13**0.5 + 2 / 5**0.5) / 4)
    assert here["bias"] == 1.0
    assert here["constant error"] == pytest.approx((4**2) / 4 / 14)
    assert (here["dead"], here["dense > 0.1"], here["dense > 0.5"], here["features"]) == (1, 1, 1, 2)


def test_the_ends_of_the_scale(rows):
    report = dictionary_quality(
        {"same": controls.identity(8), "mean": made(torch.zeros(3, 8), rows.double().mean(0))}, recording(rows), site=SITE
    )
    same, mean = line(report, "same"), line(report, "mean")
    assert same["FVU"] == 0
    assert same["cosine"] == pytest.approx(1) and same["bias"] == pytest.approx(1)
    assert mean["FVU"] == pytest.approx(1, abs=1e-6)
    for measured, said in ((same, line(report, "the rows themselves")), (mean, line(report, "the mean of the rows"))):
        for name in ("FVU", "explained variance", "FVU by number", "cosine", "norm ratio", "bias"):
            assert measured[name] == pytest.approx(said[name], abs=2e-6), name


def test_a_constant_error_counts_and_shrinking_shows_as_bias(rows):
    total = float((rows.double() - rows.double().mean(0)).square().sum())
    constant, identity = torch.arange(8.0), controls.identity(8)
    moved = made(identity.directions, constant)
    small = made(0.5 * identity.directions, encoder=identity.directions)
    report = dictionary_quality({"moved": moved, "small": small}, recording(rows))
    assert line(report, "moved")["FVU"] == pytest.approx(500 * float(constant.square().sum()) / total, rel=1e-5)
    assert line(report, "moved")["constant error"] == pytest.approx(1)
    assert line(report, "small")["bias"] == pytest.approx(0.5)
    assert line(report, "small")["norm ratio"] == pytest.approx(0.5)
    assert line(report, "small")["FVU"] == pytest.approx(0.25 * float(rows.double().square().sum()) / total, rel=1e-5)


def test_a_large_mean_takes_no_digits_away():
    x = 1e5 + torch.randn(9000, 4, generator=torch.Generator().manual_seed(0))
    wide = x.double()
    wanted = float((wide - x[:, :1].double() * torch.tensor([1.0, 0, 0, 0])).square().sum() / (wide - wide.mean(0)).square().sum())
    found = line(dictionary_quality(made([[1.0, 0, 0, 0]]), recording(x)))["FVU"]
    assert found == pytest.approx(wanted, rel=1e-9)
    assert wanted > 1e9  # the rows lie far from 0, the bias is 0


def test_each_row_counts_once_however_rows_lie_in_examples_and_pieces(rows):
    sae = SAE(Design(8, 24, "topk", k=3), Origin(site=SITE), seed=5)
    one = dictionary_quality(sae, recording(rows))
    many = dictionary_quality(sae, recording(rows, example=np.arange(500)))
    assert line(one)["FVU"] == pytest.approx(line(many)["FVU"], rel=1e-12)
    assert np.isnan(line(one)["FVU low"])
    assert line(many)["FVU low"] < line(many)["FVU"] < line(many)["FVU high"]
    x, with_bos = rows, torch.cat([rows[:7] * 1000, rows])
    left = dictionary_quality(sae, recording(with_bos, kinds=["bos"] * 7 + ["token"] * 500), exclude=("bos",))
    assert line(left)["FVU"] == pytest.approx(line(one)["FVU"], rel=1e-12)
    assert left.diagnostics["rows left out"]["dictionary"] == {"bos": 7}
    direct = (x.double() - sae(x).double()).square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert line(one)["FVU"] == pytest.approx(float(direct.detach()), rel=1e-6)


def test_intervals_are_those_of_drawing_examples_again():
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.2, 3, 400)[:, None]
    owner = np.repeat(np.arange(40), 10)
    sae = SAE(Design(6, 12, "topk", k=2), Origin(site=SITE), seed=5)
    here = line(dictionary_quality(sae, recording(x, example=owner), seed=4, resamples=2000))
    above = np.bincount(owner, (x - sae(x)).double().square().sum(1).detach().numpy())
    below = np.bincount(owner, (x.double() - x.double().mean(0)).square().sum(1).numpy())
    draws = np.random.default_rng(9).integers(0, 40, (4000, 40))
    low, high = np.quantile(above[draws].sum(1) / below[draws].sum(1), [0.025, 0.975])
    assert here["FVU low"] == pytest.approx(low, abs=0.05 * (high - low))
    assert here["FVU high"] == pytest.approx(high, abs=0.05 * (high - low))


def test_firing_by_hand():
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator), dim=1)
    directions[7], directions[30] = directions[2] * 5, -directions[3]
    x = torch.zeros(1000, 40)
    x[:, 0], x[:600, 1], x[:100, 2], x[:101, 3], x[:10, 4], x[0, 5] = 1, 1, 1, 1, 1, 1
    x[:300, 6], x[300:, 6] = 1e-3, -1  # what is below zero does not fire
    sae = made(directions, encoder=torch.eye(40), transcoder=True)
    data = act.testing.recording_of({SITE: x, OUT: torch.randn(1000, 6, generator=generator)})
    report = dictionary_quality(sae, data)
    here = line(report)
    assert (here["dense > 0.1"], here["dense > 0.5"], here["dead"]) == (4, 2, 33)
    assert here["duplicates"] == 1
    shares = report["density"].curves["dictionary"] * 40
    bars = dict(zip(report["density"].x, np.round(shares).astype(int).tolist(), strict=True))
    assert bars == {"never": 33, "-3": 1, "-2.5": 0, "-2": 1, "-1.5": 0, "-1": 3, "-0.5": 2}
    counts = dict(zip(report["codes"].x.tolist(), report["codes"].curves["dictionary"].tolist(), strict=True))
    assert sum(counts.values()) == pytest.approx(1)


def test_a_transcoder_is_held_against_what_it_writes_with_its_skip():
    generator = torch.Generator().manual_seed(1)
    x, skip = torch.randn(300, 5, generator=generator), torch.randn(3, 5, generator=generator)
    design = Design(5, 4, d_out=3, transcoder=True, skip=True, subtracts_bias=False)
    weights = {
        "encoder": torch.ones(4, 5),
        "W_dec": torch.ones(4, 3),
        "b_enc": torch.full((4,), -1e9),
        "b_dec": torch.ones(3),
        "W_skip": skip,
    }
    coder = SAE.of_weights(design, weights, Origin(site=SITE, target=OUT))
    data = act.testing.recording_of({SITE: x, OUT: x @ skip.T + 1})
    assert line(dictionary_quality(coder, data))["FVU"] == pytest.approx(0, abs=1e-12)
    other = act.testing.recording_of({SITE: x, OUT: x @ skip.T + 2})
    assert line(dictionary_quality(coder, other))["constant error"] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["standard", "gated", "jumprelu", "topk", "abstopk"])
def test_codes_of_a_row_do_not_depend_on_its_neighbours(kind, rows):
    sae = SAE(Design(8, 40, kind, k=4 if "topk" in kind else None), seed=2)
    alone = torch.cat([sae.codes(row[None]).dense() for row in rows[:40]])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    crowd = torch.cat([rows[:40][order], 1e4 * rows[40:300], torch.zeros(9, 8)])
    together = sae.codes(crowd).dense()[:40][order.argsort()]
    assert torch.equal(alone != 0, together != 0)
    assert torch.allclose(alone, together, atol=1e-5 * float(alone.abs().max()))


def test_a_batch_top_k_dictionary_is_measured_the_same_on_any_batch(rows):
    recipe = Recipe(24, "batchtopk", k=3)
    sae = train(recording(rows), SITE, recipe, batch=100, steps=20, progress=False).sae
    halves = [dictionary_quality(sae, recording(part)) for part in rows.split(250)]
    whole = dictionary_quality(sae, recording(rows))
    assert line(whole)["codes per row"] == np.mean([line(h)["codes per row"] for h in halves])


# --- in a model


@pytest.fixture(scope="module")
def texts():
    model, data = act.load("scribe"), ["Anna gave Tom the book .", "the old dogs near the house bark loudly .", "Tom saw Anna ."] * 2
    return model, data, model.run(data, read="blocks.1.resid_post")


def by_hand(model, data, edits):
    """Mean loss of next tokens and mean KL, from two plain runs."""
    full, changed = model.run(data, read="logits").logits, model.run(data, read="logits", edits=edits).logits
    a, b = full.tensor.double().log_softmax(1), changed.tensor.double().log_softmax(1)
    losses = []
    for example in full.index.examples:
        span = full.index.span(example)
        token = torch.as_tensor(full.index["token"][span][1:].astype(int))
        losses.append(torch.nn.functional.nll_loss(b[span][:-1], token, reduction="none"))
    return float(torch.cat(losses).mean()), float((a.exp() * (a - b)).sum(1).mean()), float((a.argmax(1) == b.argmax(1)).double().mean())


def test_losses_are_those_of_plain_runs_with_the_same_rows_ablated(texts):
    model, data, recorded = texts
    site = "blocks.1.resid_post"
    sae = SAE(Design(recorded[site].shape[1], 64, "topk", k=8), Origin(site=site, exclude=("bos",)), seed=3)
    report = dictionary_quality(sae, recorded, model, data)
    here = line(report, part="recovered")
    where = Where(kinds=("token", "special", "cls", "register", "patch", "image", "example"))
    tokens = np.flatnonzero(recorded[site].index["kind"] != "bos")
    mean = recorded[site].tensor[tokens].double().mean(0)
    clean, *_ = by_hand(model, data, [])
    loss, kl, agreement = by_hand(model, data, [Replace(site, lambda x: sae(x), where=where)])
    zero, zero_kl, _ = by_hand(model, data, [Zero(site, where=where)])
    average, average_kl, _ = by_hand(model, data, [Replace(site, lambda x: mean.float().expand_as(x), where=where)])
    assert here["KL, nats"] == pytest.approx(kl, rel=1e-4)
    assert here["agreement"] == pytest.approx(agreement)
    assert here["CE"] == pytest.approx(loss, rel=1e-5)
    assert here["rise of CE"] == pytest.approx(loss - clean, rel=1e-3)
    assert here["CE recovered (zero)"] == pytest.approx((zero - loss) / (zero - clean), rel=1e-3)
    assert here["CE recovered (mean)"] == pytest.approx((average - loss) / (average - clean), rel=1e-3)
    assert here["KL recovered (zero)"] == pytest.approx(1 - kl / zero_kl, rel=1e-3)
    assert here["KL recovered (mean)"] == pytest.approx(1 - kl / average_kl, rel=1e-3)
    everywhere, *_ = by_hand(model, data, [Zero(site)])
    assert abs((everywhere - loss) / (everywhere - clean) - here["CE recovered (zero)"]) > 1e-3  # ablating BOS too is another number
    assert report["recovered"].diagnostics["rows left alone"] == "bos"


def test_the_identity_recovers_all_and_the_ablations_nothing(texts):
    model, data, recorded = texts
    width = recorded["blocks.1.resid_post"].shape[1]
    report = dictionary_quality(controls.identity(width), recorded, model, data, site="blocks.1.resid_post")
    for name in ("dictionary", "the rows themselves"):
        here = line(report, name, "recovered")
        assert here["KL, nats"] == 0 and here["agreement"] == 1
        for figure in ("CE recovered (zero)", "CE recovered (mean)", "KL recovered (zero)", "KL recovered (mean)"):
            assert here[figure] == here[f"{figure} low"] == here[f"{figure} high"] == 1
    for kind in ("zero", "mean"):
        here = line(report, f"{kind} ablation", "recovered")
        assert here[f"CE recovered ({kind})"] == here[f"KL recovered ({kind})"] == 0


def test_several_dictionaries_in_one_pass_are_each_measured_as_alone(texts):
    model, data, _ = texts
    recorded = model.run(data, read=["blocks.1.resid_post", "blocks.2.mlp.out"])
    named = {
        "early": SAE(Design(128, 64, "topk", k=8), Origin(site="blocks.1.resid_post"), seed=3),
        "wide": SAE(Design(128, 256, "topk", k=4), Origin(site="blocks.1.resid_post"), seed=4),
        "late": SAE(Design(128, 64), Origin(site="blocks.2.mlp.out", exclude=("bos",)), seed=5),
    }
    together = dictionary_quality(named, recorded, model, data)
    for name, sae in named.items():
        alone = dictionary_quality({name: sae}, recorded, model, data)
        for part in ("quality", "recovered"):
            a, b = line(together, name, part), line(alone, name, part)
            assert np.allclose(a[b.index].astype(float), b.astype(float), equal_nan=True, rtol=1e-6), name
    assert {"zero ablation 1 (blocks.1.resid_post)", "mean ablation 2 (blocks.2.mlp.out)"} <= set(together["recovered"].names)


def test_images_go_the_same_way_with_labels_and_without():
    model, images = act.wrap(*act.testing.tiny("vit"), certify=False), act.testing.images()
    recorded = model.run(images, read=SITE)
    made = train(recorded, SITE, Recipe(64, k=4, learning_rate=1e-3), batch=16, steps=20, progress=False).sae
    assert made.origin.exclude == ("bos", "cls", "register", "special")
    labels = [1, 3]
    report = dictionary_quality(made, recorded, model, {"images": images, "label": labels})
    edits = [Replace(SITE, lambda x: made(x), where=Where(kinds=("patch",)))]
    full = model.run(images, read="logits").logits.tensor.double().log_softmax(1)
    spliced = model.run(images, read="logits", edits=edits).logits.tensor.double().log_softmax(1)
    here = line(report, part="recovered")
    assert here["CE"] == pytest.approx(-float(spliced[[0, 1], labels].mean()), rel=1e-5)
    assert here["KL, nats"] == pytest.approx(float((full.exp() * (full - spliced)).sum(1).mean()), rel=1e-3)
    without = dictionary_quality(made, recorded, model, images)["recovered"]
    assert "CE recovered (zero)" not in without.columns and "CE" not in without.columns
    assert line({"r": without}, part="r")["KL, nats"] == pytest.approx(here["KL, nats"])


def test_an_ablation_that_changes_nothing_is_said_to_mean_nothing():
    # After the last block, patches reach no answer of a classifier that reads its cls row.
    model, images = act.wrap(*act.testing.tiny("vit"), certify=False), act.testing.images()
    last = "blocks.1.resid_post"
    recorded = model.run(images, read=last)
    sae = SAE(Design(32, 64), Origin(site=last, exclude=("cls",)))
    report = dictionary_quality(sae, recorded, model, images)
    assert any("zero ablation changes no answer" in word for word in report.words)
    assert np.isnan(report["recovered"].columns.get("KL recovered (zero)", np.array([np.nan]))).all()


def test_a_store_gives_what_the_run_gave(texts, tmp_path):
    model, data, recorded = texts
    stored = act.capture(model, data, ["blocks.1.resid_post"], to=tmp_path / "kept.acts", progress=False)
    sae = SAE(Design(128, 64, "topk", k=8), Origin(site="blocks.1.resid_post"), seed=3)
    live, kept = (dictionary_quality(sae, r)["quality"].to_frame() for r in (recorded, stored))
    assert np.allclose(live.iloc[:, 1:].astype(float), kept.iloc[:, 1:].astype(float), rtol=1e-5, equal_nan=True)


def test_refusals(rows, texts):
    model, data, recorded = texts
    with pytest.raises(InputError, match="needs both model= and inputs="):
        dictionary_quality(controls.identity(8), recording(rows), model)
    with pytest.raises(InputError, match="does not say where it reads"):
        dictionary_quality(controls.identity(8), recording(rows))
    with pytest.raises(InputError, match="No dictionary was given"):
        dictionary_quality({}, recording(rows))
    with pytest.raises(InputError, match="All 5 rows of blocks.0.resid_post are the same, so there is no variance"):
        dictionary_quality(controls.identity(2), recording(torch.ones(5, 2)), site=SITE)
    other = SAE(Design(128, 4), Origin(site="blocks.1.resid_post", weight_hash="0" * 16))
    with pytest.raises(OtherModel, match="was trained on"):
        dictionary_quality(other, recorded, model, data)


# --- dead features at the first step: what a centred beginning is worth


@pytest.mark.slow
@pytest.mark.parametrize(("severity", "never"), [(20, 0.9), (3, 0.8)])
def test_a_centred_beginning_leaves_no_feature_dead(severity, never):
    from activarium.dictionaries.learner import Learner
    from activarium.dictionaries.rows import RowSource

    width, features, k = 256, 2048, 32
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(width)
    mean[torch.randperm(width, generator=generator)[: round(0.02 * width)]] = 1
    x = torch.randn(8192, width, generator=generator) + severity * width**0.5 * mean / mean.norm()
    data = recording(x)
    source = RowSource(data[SITE])
    statistics = source.statistics(0)
    assert statistics.severity == pytest.approx(severity, rel=0.02)
    learner = Learner(Recipe(features, k=k), statistics, False, 10)
    centred = learner.finished(Origin(site=SITE))
    with torch.no_grad():
        learner.sae.b_dec.zero_()
        zero = learner.finished(Origin(site=SITE))
        never_positive = (x @ zero.W_enc).max(0).values <= 0
    fires = {name: sae.codes(x).fires for name, sae in (("centred", centred), ("zero", zero))}
    assert int((fires["centred"] == 0).sum()) == 0
    assert float((fires["zero"] == 0).float().mean()) > never
    if severity == 20:
        assert never_positive.float().mean() > 0.35
