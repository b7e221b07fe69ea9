"""neural_codes: redundancy counted by hand, regions of a known network, scores against scikit-learn, and the words of its refusals."""

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import activarium as act
from activarium.activations import Activations
from activarium.analyses.sparsity import code_classes, codes
from activarium.data import corpus, scenes
from activarium.errors import AxisError, CapacityError, InputError, MissingExtra, NotFinite, UnknownSite
from activarium.recording import Recording
from activarium.results import Report, identical
from activarium.rows import Rows

neural_codes = act.analyses.neural_codes


def rows_of(*lengths: int, examples: list[int] | None = None, **columns: np.ndarray) -> Rows:
    numbers = np.arange(len(lengths)) if examples is None else np.array(examples)
    return Rows({"example": np.repeat(numbers, lengths), "kind": np.array(["token"] * sum(lengths), dtype=object), **columns})


def site(values, rows: Rows | None = None, name: str = "blocks.0.mlp.act", cut: tuple[int, ...] = ()) -> Activations:
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return Activations(list(torch.tensor_split(tensor, cut)), "row d_mlp", site=name, index=rows)


def noise(seed: int, rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width))


# --- how many codes


@pytest.mark.parametrize("copies", [0, 1, 7, 30])
def test_duplicates_are_the_redundancy(copies: int):
    values = noise(0, 40, 64).clip(0)
    table = neural_codes(site(np.concatenate([values, values[:copies]])), code="row")["codes"]
    assert table.values.tolist() == [copies / (40 + copies)]
    assert table.columns["different codes"].tolist() == [40]


def half_planes(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lines in general position, and a grid of points that is fine enough to meet every region."""
    angle = torch.arange(count, dtype=torch.float64) * torch.pi / count + 0.1
    weight = torch.stack([angle.cos(), angle.sin()])
    bias = torch.tensor([0.31, -0.17, 0.23, -0.05, 0.41][:count], dtype=torch.float64)
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)
    return torch.cartesian_prod(x, x), weight, bias


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_layer_of_half_planes_has_the_regions_that_geometry_says(count: int):
    """m lines of which no two are parallel and no three meet: 1 + m + m (m − 1) / 2 regions."""
    points, weight, bias = half_planes(count)
    crossings = [torch.linalg.solve(weight[:, [i, j]].T, -bias[[i, j]]) for i, j in combinations(range(count), 2)]
    assert all(bool((c.abs() < 3.5).all()) for c in crossings)
    table = neural_codes(site((points @ weight + bias).relu()), code="row")["codes"]
    assert table.columns["different codes"].tolist() == [1 + count + count * (count - 1) // 2]


def test_a_step_over_one_line_changes_one_bit():
    _, weight, bias = half_planes(4)
    for line in range(4):
        normal = weight[:, line]
        on_it = -bias[line] * normal + 1.9 * torch.tensor([-normal[1], normal[0]])  # far from where lines meet
        both = torch.stack([on_it - 1e-3 * normal, on_it + 1e-3 * normal])
        read = codes.read_codes({"a": site((both @ weight + bias).relu())}, "row", None, ())
        (distance,) = codes.hamming(read, read)
        assert distance.tolist() == [[0, 1], [1, 0]]
        assert (np.unpackbits(read.packed, axis=1)[0] != np.unpackbits(read.packed, axis=1)[1]).nonzero()[0].tolist() == [line]


def test_the_bits_of_all_layers_stand_beside_one_another():
    rows = rows_of(1, 1, 1)
    low, high = site([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]], rows), site([[0.0, 1], [0, 1], [5, 1]], rows, "blocks.3.mlp.act")
    read = codes.read_codes({a.site: a for a in (low, high)}, "row", None, ())
    assert np.concatenate(list(read.unpacked())).tolist() == [[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [1, 1, 0, 1, 1]]
    assert read.ones().tolist() == [2, 2, 0, 1, 3]
    some = read.chosen(np.array([1, 3]))
    assert np.concatenate(list(some.unpacked())).tolist() == [[0, 0], [1, 0], [1, 1]]
    assert some.sites == {"blocks.0.mlp.act": 1, "blocks.3.mlp.act": 1}
    report = neural_codes(
        Activations.stack([low, site([[0.0, 1, 1]] * 3, rows, "blocks.3.mlp.act")], ["a", "b"], "blocks.*.mlp.act"), code="row"
    )
    assert report["bits"].curves["varying"].tolist() == pytest.approx([2 / 3, 0])
    assert report["bits"].curves["always off"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert report["bits"].curves["always on"].tolist() == pytest.approx([0, 2 / 3])


def test_codes_of_sequences():
    values = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]], dtype=float)  # two, then two rows
    majority, anything = (codes.read_codes({"a": site(values, rows_of(3, 1))}, p, None, ()) for p in ("majority", "any"))
    assert np.concatenate(list(majority.unpacked())).tolist() == [[1, 0, 1, 0], [1, 0, 0, 0]]
    assert np.concatenate(list(anything.unpacked())).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    even = codes.read_codes({"a": site(values[:2], rows_of(2))}, "majority", None, ())
    assert np.concatenate(list(even.unpacked())).tolist() == [[1, 0, 0, 0]]  # half of them is not most of them


def test_another_cut_than_zero():
    values = [[0.5, -2.0], [-0.5, 0.0]]
    signs = codes.read_codes({"a": site(values)}, "row", None, ())
    sizes = codes.read_codes({"a": site(values)}, "row", 1.0, ())
    assert np.concatenate(list(signs.unpacked())).tolist() == [[1, 0], [0, 0]]
    assert np.concatenate(list(sizes.unpacked())).tolist() == [[0, 1], [0, 0]]


def test_constant_bits_are_those_of_train_alone():
    """The second bit varies in test only: dropped, and test codes that differ in it alone become one."""
    train, test = site([[1.0, 1, 0], [0, 1, 1], [1, 1, 1]]), site([[1.0, 0, 1], [1, 1, 1], [0, 0, 0]])
    report = neural_codes(train, test, code="row")
    table = report["codes"]
    assert table.columns["bits"].tolist() == [2, 2]
    assert table.values.tolist() == pytest.approx([0, 1 / 3])
    assert table.columns["redundancy of all bits"].tolist() == [0, 0]
    assert table.columns["seen in train"].tolist() == [0, 1]
    assert "1 test items have exactly the code of a train item: their scores are recall." in report.words
    assert report.diagnostics["dropped bits"] == 1


def test_dropping_changes_nothing_on_train():
    values = (noise(1, 60, 9) > 1) * np.repeat([1.0, 0.0, 1.0], [4, 2, 3])
    table = neural_codes(site(values), code="row")["codes"]
    assert table.values[0] == table.columns["redundancy of all bits"][0] > 0


def test_distances_are_counted_bit_by_bit():
    a, b = (codes.read_codes({"a": site(noise(s, n, 77))}, "row", None, ()) for s, n in ((0, 30), (1, 20)))
    wanted = (np.concatenate(list(a.unpacked()))[:, None] != np.concatenate(list(b.unpacked()))[None]).sum(-1)
    assert np.array_equal(np.concatenate(list(codes.hamming(a, b))), wanted)


def test_much_at_once_or_little_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    made = [classified() for _ in range(2)]
    monkeypatch.setattr(codes, "AT_ONCE", 100)
    made.append(classified())
    assert identical(made[0], made[1])
    assert identical(made[0], made[2])


# --- classes


def planted(seed: int, items: int, classes: int = 4, width: int = 120, flips: float = 0.1) -> tuple[Activations, np.ndarray]:
    """Codes near one of a few centres, which are the same for all seeds."""
    centres = np.random.default_rng(99).random((classes, width)) < 0.3
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, items)
    bits = centres[labels] ^ (generator.random((items, width)) < flips)
    return site(bits * (0.1 + generator.random((items, width))), rows_of(*[1] * items)), labels


def classified(flips: float = 0.1, **options: object) -> Report:
    (train, truth), (test, wanted) = planted(1, 120, flips=flips), planted(2, 80, flips=flips)
    return neural_codes(train, test, labels=truth.tolist(), test_labels=wanted.tolist(), **options)


def test_planted_classes_are_found():
    report = classified()
    scores = dict(zip(report["scores"].names, report["scores"].values, strict=True))
    for name in ("logistic regression, one against one", "9 nearest neighbours", "K-Means, one class per cluster", "K-Means, purity"):
        assert scores[name] == 1.0
    assert scores["most frequent class"] < 0.5
    distances = report["distances"].curves
    centres = report["distances"].x
    assert centres @ distances["same class"] == pytest.approx(0.18, abs=0.02)  # 2 · 0.1 · 0.9
    assert centres @ distances["other class"] > 0.3
    assert np.trace(report["confusion"].values) == report["confusion"].values.sum() == 80


def test_nothing_planted_nothing_found():
    report = classified(flips=0.5)
    for name, low, high in zip(report["scores"].names, report["scores"].columns["low"], report["scores"].columns["high"], strict=True):
        assert low - 0.1 < 0.25 < high + 0.1, name


def test_neighbours_vote_as_in_scikit_learn():
    """Where the last that votes is nearer than the next, there is nothing to choose among."""
    generator = np.random.default_rng(5)
    train, test = (codes.read_codes({"a": site(generator.random((n, 4000)) - 0.3)}, "row", None, ()) for n in (60, 25))
    truth = generator.integers(0, 3, 60)
    (distance,) = codes.hamming(test, train)
    for k in (1, 9):
        ranked = np.sort(distance, axis=1)
        clear = ranked[:, k - 1] < ranked[:, k]
        ours = code_classes.neighbours(train, truth, test, np.zeros(25, int), k).guesses
        dense = [np.concatenate(list(c.unpacked())) for c in (train, test)]
        theirs = KNeighborsClassifier(k, metric="hamming", algorithm="brute").fit(dense[0], truth).predict(dense[1])
        assert np.array_equal(ours[clear], theirs[clear]) and clear.sum() > 10


def test_two_clusters_may_not_take_one_class_but_for_purity():
    """One class lies in two heaps, two classes in one: one to one, somebody must be wrong; purity forgives less than it seems."""
    heap = np.eye(3).repeat(20, 1)  # three heaps
    truth = np.array([0] * 10 + [0] * 10 + [1] * 6 + [2] * 4)
    values = heap[np.array([0] * 10 + [1] * 10 + [2] * 10)]
    read = codes.read_codes({"a": site(values)}, "row", None, ())
    own, pure = code_classes.clusters(read, truth, read, 0)
    assert (own == truth).sum() == 16  # 10 and 6; the other heap of class 0 has to be class 2
    assert (pure == truth).sum() == 26  # 10, 10 and 6


def test_labels_follow_example_numbers_not_the_order_of_the_rows():
    values = np.array([[1.0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 1]] * 3)
    order = np.random.default_rng(0).permutation(12)
    shuffled = site(values[order], rows_of(*[1] * 12, examples=order.tolist()))
    labels = ["left", "left", "right", "right"] * 3
    for code in ("majority", "row"):
        report = neural_codes(shuffled, site(values, rows_of(*[1] * 12)), labels=labels, test_labels=labels, code=code, nearest=3)
        assert report["scores"].values[0] == 1.0
        assert np.array_equal(np.diag(report["confusion"].values), [6, 6])


def test_labels_of_the_row_table_are_taken():
    said = np.array(["a", "b"] * 6, dtype=object)
    train = site(np.eye(2).repeat(4, 1)[[0, 1] * 6], rows_of(*[1] * 12, label=said))
    report = neural_codes(train, train, nearest=3)
    assert report["confusion"].labels["class"] == ("a", "b")
    assert report["scores"].values[0] == 1.0


def test_without_a_second_split_nothing_is_scored():
    train, truth = planted(1, 30)
    report = neural_codes(train, labels=truth.tolist())
    assert list(report) == ["codes", "bits"]
    assert any("No classes are scored" in w for w in report.words)


# --- sources and models


def test_pieces_give_the_same_bits():
    (train, truth), rows = planted(1, 40), rows_of(*[4] * 10)
    whole, parts = (neural_codes(site(train.tensor, rows, cut=cut), labels=truth[:10].tolist()) for cut in ((), (1, 6, 23)))
    assert identical(whole, parts)


@pytest.mark.parametrize("family", ["gpt2", "vit"])
def test_memory_and_store(family: str, tmp_path: Path):
    model = act.wrap(*act.testing.tiny(family), certify=False)
    data = act.testing.images() if family == "vit" else act.testing.texts()
    live = act.capture(model, data, ["blocks.*.mlp.act"], progress=False)
    act.capture(model, data, ["blocks.*.mlp.act"], to=tmp_path / "some.acts", progress=False)
    options = {"labels": list(range(len(data))), "test_labels": list(range(len(data))), "nearest": 1, "exclude": ("cls",)}
    report, stored = neural_codes(live, live, **options), neural_codes(act.open(tmp_path / "some.acts"), live, **options)
    assert all(identical(report[n], stored[n]) for n in report)
    assert dict(zip(report["scores"].names, report["scores"].values, strict=True))["1 nearest neighbours"] == 1.0  # itself


def test_what_the_words_say_of_linear_regions():
    relu, smooth = site([[1.0, 0], [0, 1]], rows_of(1, 1)), site([[1.0, -0.1], [-0.1, 1]], rows_of(1, 1))
    said = {
        name: " ".join(neural_codes(a, code=c).words)
        for name, a, c in (("relu", relu, "row"), ("smooth", smooth, "row"), ("pooled", relu, "any"))
    }
    assert "a code fixes the linear map of each MLP, not of attention and norms between them" in said["relu"]
    assert "A bit is the sign of an activation: the reading of a code as a linear region holds for ReLU with a > 0 only." in said["smooth"]
    assert "A code of a whole sequence is no linear region" in said["pooled"]


def test_glyph_sorts_its_shapes():
    """Codes of the last layer hold the class; with fifteen scenes of each seed the score only has to be far above chance."""
    model = act.load("glyph", certify=False)
    recordings, labels = [], []
    for seed in (scenes.TEST_SEED, 424_242):
        drawn = [scenes.scene(seed, i) for i in range(60)]
        recordings.append(model.run([s.image for s in drawn], read="blocks.3.mlp.act")["blocks.3.mlp.act"])
        labels.append([scenes.CLASSES[s.label] for s in drawn])
    report = neural_codes(*recordings, labels=labels[0], test_labels=labels[1])
    scores = dict(zip(report["scores"].names, report["scores"].values, strict=True))
    assert scores["logistic regression, one against one"] > 0.7 > 0.3 > scores["most frequent class"]
    assert report["codes"].values.tolist() == [0.0, 0.0]
    assert "linear region holds for ReLU" in " ".join(report.words)
    assert len(report._repr_html_()) > 1000


def test_scribe_relu_sorts_its_families():
    model = act.load("scribe-relu", certify=False)
    sides = [[(e.text, family) for family in corpus.FAMILIES for e in corpus.held_out(family, seed, 12)] for seed in (1, 2)]
    recordings = [model.run([t for t, _ in side], read="blocks.*.mlp.act") for side in sides]
    report = neural_codes(*recordings, labels=[f for _, f in sides[0]], test_labels=[f for _, f in sides[1]], nearest=5)
    assert dict(zip(report["scores"].names, report["scores"].values, strict=True))["5 nearest neighbours"] > 0.9


# --- refusals


def test_what_it_refuses():
    good, rows = site(np.eye(4), rows_of(1, 1, 1, 1)), rows_of(2, 2)
    labels = {"labels": ["a", "a", "b", "b"], "test_labels": ["a", "a", "b", "b"]}
    with pytest.raises(InputError, match=r"code='mean' is no way to make a code; choose 'majority', 'any', 'row'"):
        neural_codes(good, code="mean")
    with pytest.raises(InputError, match=r"above=-1 makes every bit 1"):
        neural_codes(good, above=-1)
    with pytest.raises(InputError, match=r"nearest=0 lets nobody vote"):
        neural_codes(good, nearest=0)
    with pytest.raises(InputError, match=r"labels has 3 entries for 2 codes of 2 examples"):
        neural_codes(site(np.eye(4), rows), labels=["a", "b", "c"])
    with pytest.raises(InputError, match=r"class 'c', which train has not; train has a, b"):
        neural_codes(good, good, **labels | {"test_labels": ["a", "b", "c", "a"]})
    with pytest.raises(InputError, match=r"All train items are 'a': there is nothing to tell apart"):
        neural_codes(good, good, labels=["a"] * 4, test_labels=["a"] * 4)
    with pytest.raises(AxisError, match=r"their bits are not the same\. Record the same layers"):
        neural_codes(good, site(np.eye(4), name="blocks.1.mlp.act"))
    with pytest.raises(NotFinite, match=r"A bit of it would mean nothing"):
        neural_codes(site([[float("inf"), 0.0]]))
    with pytest.raises(UnknownSite, match=r"no site 'blocks\.\*\.mlp\.act'"):
        neural_codes(Recording({}, {}))
    two = {f"{s}.blocks.0.mlp.act": site(np.eye(4), name=f"{s}.blocks.0.mlp.act") for s in ("encoder", "decoder")}
    with pytest.raises(InputError, match=r"2 stacks with rows of their own.*recording\['encoder\.blocks\.\*\.mlp\.act'\]"):
        neural_codes(Recording(two, {}))


def test_too_many_bits_to_unpack(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(code_classes, "MOST_BYTES", 1000)
    with pytest.raises(CapacityError, match=r"codes of 120 bits take .* GiB when unpacked.*Choose fewer layers"):
        classified()


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingExtra, match=r"need scikit-learn and SciPy.*pip install 'activarium\[vision\]'"):
        classified()
