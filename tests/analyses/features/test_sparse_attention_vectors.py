"""sparse_attention_vectors: planted heads, the left-out mean by hand, ties, invariances, chance, other shapes of attention, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium.activations import Activations
from activarium.analyses.features.attention_rows import read_vectors
from activarium.analyses.features.attention_vectors import fit_attention_vectors, fitted, vote
from activarium.errors import InputError, NotFinite, OtherModel, UnknownName, UnknownSite
from activarium.recording import Recording
from activarium.rows import Rows

sparse_attention_vectors = act.analyses.sparse_attention_vectors
MODELS = Path(__file__).parents[3] / ".." / "shared" / "models"
PLANTED = (("blocks.1.attn.z", 2), ("blocks.2.attn.z", 0), ("blocks.2.attn.z", 3))


def recorded(vectors: dict[str, torch.Tensor], kinds: list[str] | None = None, example: list[int] | None = None, **columns) -> Recording:
    """Heads that no model made; one row per example where nothing is said."""
    count = len(next(iter(vectors.values())))
    owner = np.arange(count) if example is None else np.array(example)
    table = Rows({"example": owner, "kind": np.array(kinds or ["token"] * count, dtype=object)} | columns)
    return Recording({n: Activations(v, "row head d_head", site=n, index=table) for n, v in vectors.items()}, {"": table})


def planted(count: int = 240, classes: int = 3, noise: float = 0.8, seed: int = 5) -> tuple[Recording, np.ndarray]:
    """Three of twelve heads know the class; the others hold noise of the same size. d_head 8 is not d_model / heads of anything."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % classes
    vectors = {f"blocks.{i}.attn.z": torch.randn(count, 4, 8, generator=generator) for i in range(3)}
    for site, head in PLANTED:
        means = 1.5 * torch.nn.functional.normalize(torch.randn(classes, 8, generator=generator), dim=1)
        vectors[site][:, head] = means[truth] + noise * torch.randn(count, 8, generator=generator) / 8**0.5
    return recorded(vectors), np.array(["abc"[i] for i in truth.tolist()], dtype=object)


def test_planted_heads_are_found_and_vote_better_than_any_alone():
    recording, labels = planted(noise=1.6)
    report = sparse_attention_vectors(recording, labels, heads=3, shots=20)
    assert set(report["votes"].names) == {f"{s} head {h}" for s, h in PLANTED}
    found = dict(zip(report["accuracy"].names, report["accuracy"].values, strict=True))
    single = report["votes"].columns["right on asked examples"]
    assert found["kept heads"] >= max(single) > found["best single head"] - 1e-9
    assert found["kept heads"] > found["all heads"]
    assert found["kept heads"] > 0.9
    voting = ~report["heads"].masks["does not vote"]
    assert np.argwhere(voting).tolist() == [[1, 2], [2, 0], [2, 3]]


def test_shuffled_labels_give_chance():
    recording, labels = planted()
    report = sparse_attention_vectors(recording, labels, heads=3, shuffles=40)
    at = report["accuracy"].names.index("shuffled labels")
    assert report["accuracy"].values[at] == pytest.approx(1 / 3, abs=0.06)
    generator = np.random.default_rng(0)
    lost = sparse_attention_vectors(recording, generator.permutation(labels), heads=3)
    assert lost["accuracy"].columns["low"][0] < 1 / 3 < lost["accuracy"].columns["high"][0] + 0.05


def test_the_left_out_score_by_hand():
    """Class a at 0° and 58°, b at 90° twice. Left out, 58° faces 0° (cosine .53) and 90° (.85): wrong; in its mean, 29° (.87): right."""
    angles = torch.tensor([0.0, 58.0, 90.0, 90.0], dtype=torch.float64).deg2rad()
    z = torch.stack([angles.cos(), angles.sin()], 1)[:, None]
    made = fitted({"blocks.0.attn.z": z}, np.array(["a", "a", "b", "b"], dtype=object), 1, "last")
    assert made.scores["blocks.0.attn.z"].tolist() == [0.75]
    assert made.optimistic["blocks.0.attn.z"].tolist() == [1.0]
    assert made.means["blocks.0.attn.z"][0, 1].tolist() == pytest.approx([0.0, 1.0])


def test_the_left_out_score_is_a_plain_loop():
    recording, labels = planted(30)
    vectors = read_vectors({n: recording[n] for n in recording}, "last")
    made = fitted(vectors, labels, 3, "last")
    for site, values in vectors.items():
        for head in range(4):
            right = 0
            for j in range(30):
                others = [torch.as_tensor((labels == c) & (np.arange(30) != j)) for c in "abc"]
                cosines = [torch.cosine_similarity(values[j, head], values[o, head].mean(0), dim=0).item() for o in others]
                right += "abc"[int(np.argmax(cosines))] == labels[j]
            assert made.scores[site][head] == pytest.approx(right / 30)


def test_a_head_that_reads_the_same_everywhere_scores_nothing_and_an_example_alone_does_not_score_itself():
    same = torch.ones(12, 1, 4)
    alone = torch.eye(12)[:, None]  # every example in a direction of its own: the mean holds it, nothing else does
    labels = np.array(["a", "b"] * 6, dtype=object)
    made = fitted({"blocks.0.attn.z": same.double(), "blocks.1.attn.z": alone.double()}, labels, 1, "last")
    assert made.scores["blocks.0.attn.z"].tolist() == [0.0]
    assert made.optimistic["blocks.1.attn.z"].tolist() == [1.0]
    assert made.scores["blocks.1.attn.z"].tolist() == [0.0]


def test_ties_of_the_vote_by_hand():
    toward = {"a": [0.9, 0.1, 0.0], "b": [0.1, 0.6, 0.0], "b!": [0.0, 0.9, 0.0], "none": [0.5, 0.5, 0.5]}

    def asked(*heads: str) -> int:
        return int(vote(torch.tensor([[toward[h] for h in heads]], dtype=torch.float64))[0])

    assert asked("a", "b") == 0  # margins .8 and .5
    assert asked("b!", "a") == 1  # .9 and .8
    assert asked("none", "b") == 1  # who cannot tell does not vote
    assert asked("b", "b", "a") == 1
    even = torch.tensor([[[0.1, 0.9], [0.9, 0.1]], [[0.9, 0.1], [0.1, 0.9]]], dtype=torch.float64)
    assert vote(even).tolist() == [1, 0]  # all equal: the first head


def test_order_of_examples_and_names_of_classes_change_nothing():
    recording, labels = planted(120)
    order = np.random.default_rng(1).permutation(120)
    turned = recorded({n: recording[n].tensor[torch.as_tensor(order)] for n in recording})
    one, other = fit_attention_vectors(recording, labels, heads=3), fit_attention_vectors(turned, labels[order], heads=3)
    assert one.heads == other.heads
    fresh, _ = planted(90, seed=8)
    answers = one.predict(fresh)
    assert (answers == other.predict(fresh)).all()
    renamed = {"a": "z", "b": "k", "c": "m"}
    again = fit_attention_vectors(recording, np.array([renamed[x] for x in labels]), heads=3)
    assert again.heads == one.heads
    assert [renamed[x] for x in answers] == again.predict(fresh).tolist()


def test_bfloat16_is_taken_up_first():
    recording, labels = planted()
    low = recorded({n: recording[n].tensor.bfloat16() for n in recording})
    exact = recorded({n: recording[n].tensor.bfloat16().double() for n in recording})
    a, b = (fit_attention_vectors(r, labels, heads=3) for r in (low, exact))
    assert a.heads == b.heads
    assert all(torch.equal(a.means[n], b.means[n]) for n in a.means)


def test_rows_are_the_last_token_the_class_token_or_the_mean_of_patches():
    values = torch.arange(12.0).reshape(6, 1, 2)
    recording = recorded({"blocks.0.attn.z": values}, kinds=["cls", "patch", "patch"] * 2, example=[0, 0, 0, 1, 1, 1])
    sites = {n: recording[n] for n in recording}
    assert read_vectors(sites, "cls")["blocks.0.attn.z"][:, 0].tolist() == [[0, 1], [6, 7]]
    assert read_vectors(sites, "patches")["blocks.0.attn.z"][:, 0].tolist() == [[3, 4], [9, 10]]
    assert read_vectors(sites, "last", [1])["blocks.0.attn.z"][:, 0].tolist() == [[10, 11]]


def test_padding_side_and_neighbours_do_not_matter():
    texts = ["the cat sat", "the red ball", "Anna gave Tom the book .", "the king of France likes the red ball"] * 2
    model = act.wrap(*act.testing.tiny("llama"), certify=False)
    labels = ["x", "y"] * 4
    together = model.run(texts, read="blocks.*.attn.z")
    alone = [model.run([t], read="blocks.*.attn.z") for t in texts]
    fit = fit_attention_vectors(together, labels, heads=2)
    assert [r.predict(a)[0] for r, a in zip([fit] * 8, alone, strict=True)] == fit.predict(together).tolist()
    last = [a["blocks.1.attn.z"].tensor[-1] for a in alone]
    read = read_vectors({"blocks.1.attn.z": together["blocks.1.attn.z"]}, "last")["blocks.1.attn.z"]
    assert torch.stack(last).double() == pytest.approx(read, abs=1e-5)


@pytest.mark.parametrize(("family", "changes"), [("llama", {"head_dim": 6}), ("gpt2", {}), ("vit", {})])
def test_query_heads_of_any_width(family, changes):
    model = act.wrap(*act.testing.tiny(family, **changes), certify=False)
    data = act.testing.images(8) if family == "vit" else ["the cat sat", "the red ball", "the old king", "who ?"] * 2
    recording = model.run(data, read=["blocks.*.attn.z", "blocks.*.resid_post"])
    report = sparse_attention_vectors(recording, ["x", "y"] * 4, shots=2, heads=3)
    assert report["heads"].values.shape[1] == model.torch_module.config.num_attention_heads
    assert report.diagnostics["rows"] == ("cls" if family == "vit" else "last")
    assert any(n.startswith("nearest mean of blocks.") for n in report["accuracy"].names)


def test_labels_come_with_the_inputs_or_are_given():
    model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
    texts, labels = ["the cat", "the ball", "a cat", "a ball"] * 3, ["cat", "ball"] * 6
    run = model.run({"text": texts, "label": labels}, read="blocks.*.attn.z")
    bare = model.run(texts, read="blocks.*.attn.z")
    assert fit_attention_vectors(run).heads == fit_attention_vectors(bare, labels).heads
    with pytest.raises(InputError, match="give labels="):
        sparse_attention_vectors(bare)
    other = act.wrap(*act.testing.tiny("gpt2", seed=1), certify=False)
    with pytest.raises(OtherModel, match="fit again"):
        fit_attention_vectors(run).predict(other.run(texts, read="blocks.*.attn.z"))


def test_refusals():
    recording, labels = planted(30)
    with pytest.raises(InputError, match="labels have shape"):
        sparse_attention_vectors(recording, labels[:5])
    with pytest.raises(InputError, match="leaves none of them to ask"):
        sparse_attention_vectors(recording, labels, shots=10)
    with pytest.raises(InputError, match="too few"):
        sparse_attention_vectors(recording, labels, shots=1)
    with pytest.raises(InputError, match="at least two"):
        fit_attention_vectors(recording, ["a"] * 30)
    with pytest.raises(InputError, match="one example"):
        fit_attention_vectors(recording, ["a"] * 29 + ["b"])
    with pytest.raises(InputError, match="lets no head vote"):
        fit_attention_vectors(recording, labels, heads=0)
    with pytest.raises(UnknownName, match="choice of rows"):
        sparse_attention_vectors(recording, labels, rows="first")
    with pytest.raises(InputError, match="needs rows of kind 'cls'"):
        sparse_attention_vectors(recording, labels, rows="cls")
    with pytest.raises(UnknownSite, match=r"attn\.z"):
        sparse_attention_vectors(act.testing.recording_of({"blocks.0.resid_post": torch.ones(4, 4)}), ["a", "b"] * 2)
    two = {f"{s}.blocks.0.attn.z": torch.ones(4, 1, 2) for s in ("text", "vision")}
    with pytest.raises(InputError, match="heads of 2 stacks"):
        sparse_attention_vectors(recorded(two), ["a", "b"] * 2)
    with pytest.raises(InputError, match="no row table"):
        sparse_attention_vectors(Activations(torch.ones(4, 1, 2), "row head d_head", site="blocks.0.attn.z"), ["a"] * 4)
    broken = recorded({"blocks.0.attn.z": torch.full((8, 1, 2), torch.nan)})
    with pytest.raises(NotFinite, match="no angle"):
        sparse_attention_vectors(broken, ["a", "b"] * 4, shots=2)
    fit = fit_attention_vectors(recording, labels, heads=3)
    with pytest.raises(UnknownSite, match="site in this recording"):
        fit.predict(recorded({"blocks.0.attn.z": torch.ones(2, 4, 8)}))


@pytest.mark.skipif(not (MODELS / "vit-mnist-10").is_dir(), reason="the third-party models are not on this machine")
def test_a_trained_vision_transformer_tells_digits_by_a_few_heads():
    found = np.load(MODELS.parent / "corpora" / "mnist" / "mnist_sample200.npz")
    images, labels = found["images"], found["labels"]
    model = act.load(str(MODELS / "vit-mnist-10"), certify=False)
    recording = model.run(list(images), read="blocks.*.attn.z")
    report = sparse_attention_vectors(recording, labels, heads=8, shots=10, shuffles=5)
    found = dict(zip(report["accuracy"].names, report["accuracy"].values, strict=True))
    assert found["kept heads"] > 0.7 > found["best single head"] > 0.4
    assert found["shuffled labels"] < 0.25
