"""preference_features: attributes that drive a preference told from those that do not, odd to the last bit, no prompt on two sides."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features import preference_fits as fits
from activarium.analyses.features.pair_dictionary import pair_dictionary
from activarium.analyses.features.pair_splits import components, split
from activarium.errors import InputError, NotFinite

preference_features = act.analyses.preference_features
SMALL = {"features": 8, "k": 2, "prefixes": (4, 8), "joint": 2, "steps": (200,), "resamples": 100}


def planted(count: int = 1200, seed: int = 0):
    """Six attributes along directions at right angles. Attribute 0 is liked, 1 disliked; 2 goes with length, which is liked; 3 to 5 do nothing."""
    random = np.random.default_rng(seed)
    attribute = random.integers(-1, 2, size=(count, 6)) * (random.random((count, 6)) < 0.5)
    length = 2.0 * attribute[:, 2] + random.normal(size=count)
    logits = 2.5 * attribute[:, 0] - 2 * attribute[:, 1] + 1.2 * length
    labels = random.random(count) < 1 / (1 + np.exp(-logits))
    directions = np.linalg.qr(random.normal(size=(16, 16)))[0][:6]
    b = random.normal(size=(count, 16))
    a = b + attribute @ directions + 0.03 * random.normal(size=(count, 16))
    prompts = random.integers(count // 3, size=count)
    return a.astype("float32"), b.astype("float32"), labels.astype(int), prompts.tolist(), length, directions, attribute


@pytest.fixture(scope="module")
def found():
    a, b, labels, prompts, length, *_ = planted()
    return preference_features(a, b, labels, prompts, controls={"length": length}, **SMALL)


def attribute_of(sae, directions: np.ndarray) -> dict[int, int]:
    """Attribute → the feature along it."""
    cosines = np.abs(torch.nn.functional.normalize(sae.directions, dim=1).numpy() @ directions.T)
    assert cosines.max(0).min() > 0.9
    return {k: int(cosines[:, k].argmax()) for k in range(6)}


def test_attributes_that_drive_are_told_from_those_that_do_not(found):
    a, b, labels, prompts, _, directions, _ = planted()
    part = split(components(prompts, len(a)), (0.7, 0.1, 0.2), 0)
    delta = torch.as_tensor(a) - torch.as_tensor(b)
    made = pair_dictionary(delta[part == 0], delta[part == 1], features=8, k=2, groups=(4, 8), steps=(200,))
    feature = attribute_of(made.sae, directions)
    table = found["features"].to_frame().set_index("name")
    sign = {k: np.sign(float(made.sae.directions[f] @ torch.as_tensor(directions[k]).float())) for k, f in feature.items()}
    effect = {k: sign[k] * table.iloc[:, 0][f"feature {feature[k]}"] for k in range(6)}
    kept = {k: bool(table.loc[f"feature {feature[k]}", "kept"]) for k in range(6)}
    assert effect[0] > 0.5 and effect[1] < -0.5 and kept[0] and kept[1]
    assert not kept[2] and not any(kept[k] for k in (3, 4, 5))  # length is held fixed
    assert max(abs(effect[k]) for k in (2, 3, 4, 5)) < 0.3
    assert {n for n in found["joint"].names if n.startswith("feature")} == {f"feature {feature[0]}", f"feature {feature[1]}"}
    plain = preference_features(a, b, labels, prompts, **SMALL)
    assert (
        plain["features"].to_frame().set_index("name").loc[f"feature {feature[2]}", "kept"]
    )  # and is taken for the attribute where it is not
    assert "may be that of length" in plain.words[-1]


def test_what_was_planted_predicts_and_shuffled_labels_do_not(found):
    table = found["accuracy"].to_frame().set_index("name")["share"]
    assert table["2 features"] > table["controls alone"] + 0.05
    assert table["2 features, labels shuffled"] < 0.62
    assert found.diagnostics["kept after shuffling labels"] <= 0.5
    assert found.diagnostics["error on test pairs"] < 0.25


def test_swapping_turns_codes_around_and_leaves_effects(found):
    a, b, labels, prompts, length, *_ = planted()
    swapped = preference_features(b, a, 1 - labels, prompts, controls={"length": -length}, **SMALL)
    one, other = (r["features"] for r in (found, swapped))
    assert one.names == other.names
    assert one.values == pytest.approx(other.values, abs=1e-9, nan_ok=True)
    first, second = found["pairs"], swapped["pairs"]
    assert first.values.tolist() == second.values.tolist() and first.names == second.names
    assert (np.asarray(first.columns["exchanged"]) != np.asarray(second.columns["exchanged"])).all()
    intercepts = [dict(zip(r["joint"].names, r["joint"].values, strict=True))["intercept"] for r in (found, swapped)]
    assert intercepts[0] == pytest.approx(-intercepts[1], abs=1e-5)


def test_codes_are_odd_to_the_last_bit():
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) + 1
    options = {"features": 8, "k": 2, "groups": (4, 8), "steps": (30,)}
    made = pair_dictionary(rows, rows[:50], **options)
    assert torch.equal(made.sae.encode(-rows), -made.sae.encode(rows))
    signs = torch.where(torch.arange(300) % 3 == 0, -1.0, 1.0)[:, None]
    again = pair_dictionary(rows * signs, rows[:50], **options)
    assert torch.equal(again.sae.encoder, made.sae.encoder) and torch.equal(again.sae.W_dec, made.sae.W_dec)


def test_training_stops_where_the_validation_error_is_least():
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    made = pair_dictionary(rows, rows[:60], features=6, k=2, groups=(6,), steps=(5, 60, 20))
    assert list(made.errors) == [5, 20, 60]
    assert made.errors[made.steps] == min(made.errors.values())


def test_components_join_through_others():
    prompts, conversations = ["p", "p", "q", "r", "s"], ["1", "2", "2", "3", "3"]
    assert components([prompts, conversations], 5).tolist() == [0, 0, 0, 1, 1]
    assert components(prompts, 5).tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_no_component_is_on_two_sides(seed):
    random = np.random.default_rng(seed)
    prompts, conversations = random.integers(150, size=300), random.integers(400, size=300)
    component = components([prompts, conversations], 300)
    part = split(component, (0.6, 0.2, 0.2), seed)
    for ids in (prompts, conversations):
        assert all(len(set(part[ids == i])) == 1 for i in np.unique(ids))
    assert set(part) == {0, 1, 2}


def test_the_regression_is_sklearns_and_its_errors_those_of_the_textbook():
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(2)
    design = np.c_[np.ones(400), random.normal(size=(400, 2))]
    answers = (random.random(400) < 1 / (1 + np.exp(-design @ [0.2, 1.0, -0.5]))).astype(float)
    weights = fits.fitted(design, answers)
    plain = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(design[:, 1:], answers)
    assert weights == pytest.approx(np.r_[plain.intercept_, plain.coef_[0]], abs=1e-4)
    shares = 1 / (1 + np.exp(-design @ weights))
    classic = np.sqrt(np.linalg.inv((design * (shares * (1 - shares))[:, None]).T @ design)[1, 1])
    single = fits.effect(design, answers, 1, np.arange(400))
    assert single.error == pytest.approx(classic, rel=0.1)  # a right model: the robust error estimates the same
    # Every pair twice says nothing new: only the error that knows of the clusters stays as it was.
    doubled = fits.effect(np.r_[design, design], np.r_[answers, answers], 1, np.r_[np.arange(400), np.arange(400)])
    assert doubled.error == pytest.approx(single.error, rel=1e-6)
    blind = fits.effect(np.r_[design, design], np.r_[answers, answers], 1, np.arange(800))
    assert blind.error == pytest.approx(single.error / 2**0.5, rel=0.01)


def test_chances_of_nothing_are_uniform():
    random = np.random.default_rng(5)
    found = []
    for _ in range(300):
        design = np.c_[np.ones(150), random.normal(size=(150, 2))]
        one = fits.effect(design, (random.random(150) < 0.4).astype(float), 1, np.arange(150))
        found.append((one.chance, one.ratio_chance))
    assert np.mean(found, axis=0) == pytest.approx([0.5, 0.5], abs=0.06)
    assert (np.array(found) < 0.05).mean(0) == pytest.approx([0.05, 0.05], abs=0.035)


def test_the_penalty_leaves_controls_alone_and_meets_its_conditions():
    random = np.random.default_rng(3)
    design = np.c_[np.ones(300), random.normal(size=(300, 6))]
    answers = (random.random(300) < 1 / (1 + np.exp(-design @ [0.3, 1, 1.5, -1, 0.2, 0, 0]))).astype(float)
    weights, penalty = fits.sparse_fit(design, answers, free=2, wanted=2)
    slope = design.T @ (1 / (1 + np.exp(-design @ weights)) - answers) / 300
    kept = weights[2:] != 0
    assert kept.tolist() == [True, True, False, False, False]
    assert slope[:2] == pytest.approx([0, 0], abs=1e-5)
    assert slope[2:][kept] == pytest.approx(-penalty * np.sign(weights[2:][kept]), abs=1e-5)
    assert (np.abs(slope[2:][~kept]) <= penalty + 1e-5).all()


def test_separated_classes_have_no_effect_that_could_be_told():
    design = np.c_[np.ones(20), np.r_[-np.ones(10), np.ones(10)]]
    assert np.isnan(fits.effect(design, np.r_[np.zeros(10), np.ones(10)], 1, np.arange(20)).value)


def test_fidelity_is_pearson_on_test_pairs_and_descriptions_the_wrong_way_round_fail():
    from scipy.stats import pearsonr

    a, b, labels, prompts, length, directions, attribute = planted()
    part = split(components(prompts, len(a)), (0.7, 0.1, 0.2), 0)
    delta = torch.as_tensor(a) - torch.as_tensor(b)
    sae = pair_dictionary(delta[part == 0], delta[part == 1], features=8, k=2, groups=(4, 8), steps=(200,)).sae
    feature, codes = attribute_of(sae, directions), sae.encode(delta).numpy()
    verdicts = np.full((len(a), 8), np.nan)
    sign = np.sign(sae.directions.numpy() @ directions.T)
    f, g = feature[3], feature[4]
    verdicts[:, f], verdicts[:, g] = sign[f, 3] * attribute[:, 3], -sign[g, 4] * attribute[:, 4]
    texts = [(f"a{i}", f"b{i}") for i in range(len(a))]
    report = preference_features(a, b, labels, prompts, controls={"length": length}, verdicts=verdicts, texts=texts, **SMALL)
    table = report["features"].to_frame().set_index("name")
    expected = pearsonr(verdicts[part == 2, f], codes[part == 2, f])
    assert table.loc[f"feature {f}", "fidelity"] == pytest.approx(expected[0]) and table.loc[f"feature {f}", "faithful"]
    assert table.loc[f"feature {g}", "fidelity"] < -0.5 and not table.loc[f"feature {g}", "faithful"]
    shown = report["pairs"].to_frame()
    first = shown[shown["feature"] == f].iloc[0]
    i = int(first["pair"])
    assert abs(codes[i, f]) == np.abs(codes[:, f]).max()
    assert (first["more"], first["less"]) == ((f"a{i}", f"b{i}") if codes[i, f] > 0 else (f"b{i}", f"a{i}"))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"embeddings_b": np.zeros((1200, 3), "float32")}, InputError, "pair by number"),
        ({"labels": np.full(1200, 0.5)}, InputError, "Leave ties out"),
        ({"labels": np.ones(1200, int)}, InputError, "have the same answer"),
        ({"groups": ["one"] * 1200}, InputError, "hang together in 1 components"),
        ({"groups": [["a"], ["b"]]}, InputError, "one id for each pair"),
        ({"controls": {"length": [1.0]}}, InputError, "1 values for 1200 pairs"),
        ({"controls": {"length": np.full(1200, np.nan)}}, NotFinite, "Leave those pairs out"),
        ({"joint": 9}, InputError, "a number from 1 to 8"),
        ({"shares": (0.5, 0.6, 0.1)}, InputError, "add up to 1"),
        ({"texts": [("a", "b")]}, InputError, "1 pairs of texts"),
        ({"verdicts": np.ones((3, 8))}, InputError, "pair by feature"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, error, words):
    a, b, labels, prompts, *_ = planted()
    given = {"embeddings_a": a, "embeddings_b": b, "labels": labels, "groups": prompts, **SMALL} | changes
    with pytest.raises(error, match=words):
        preference_features(**given)
