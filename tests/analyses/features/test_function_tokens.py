"""function_tokens: the graph against a plain loop, one pass whatever the pieces, a planted function token, a null that keeps what it should."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.analyses.features import token_graph as graphs
from activarium.analyses.features.token_graph import token_graph
from activarium.dictionaries import LiveCodes, rows_for
from activarium.errors import InputError, UnknownName
from activarium.testing import recording_of

from .planted_classes import SITE, dictionary

function_tokens = act.analyses.function_tokens


def planted(texts: int = 120, contexts: int = 10, own: int = 12):
    """Texts of five words, each of a context. Content words have a feature of their own; `the` has that of the text's context.

    Features 0 … contexts − 1 are contexts, the rest belong to content words.
    """
    random = np.random.default_rng(0)
    directions = torch.eye(contexts + own)
    words, rows, example = [], [], []
    for e in range(texts):
        context = int(random.integers(contexts))
        for p in range(5):
            feature = context if p in (0, 2) else contexts + int(random.integers(own))
            words.append("the" if p in (0, 2) else f"word{feature - contexts}")
            rows.append(directions[feature] * (1 + random.random()))
            example.append(e)
    return dictionary(directions), recording_of({SITE: torch.stack(rows)}, example=example, text=np.array(words, dtype=object))


def random_case(seed: int = 1, rows: int = 60):
    random = np.random.default_rng(seed)
    directions = torch.nn.functional.normalize(torch.randn(9, 6, generator=torch.Generator().manual_seed(seed)), dim=1)
    text = np.array(list("abcde"), dtype=object)[random.integers(5, size=rows)]
    x = torch.as_tensor(random.normal(size=(rows, 6)), dtype=torch.float32)
    return dictionary(directions), recording_of({SITE: x}, example=(np.arange(rows) // 6).tolist(), text=text)


@pytest.mark.parametrize("piece", [7, 4096])
def test_the_graph_is_that_of_a_plain_loop(piece, monkeypatch):
    monkeypatch.setattr(graphs, "PIECE", piece)
    sae, rec = random_case()
    made = token_graph(LiveCodes(rows_for(sae, rec), sae), shuffles=2)
    codes, text = sae.encode(rec[SITE].tensor), rec[SITE].index["text"]
    counts, largest = np.zeros((5, 9), int), np.zeros((5, 9))
    for row, word in zip(codes, text, strict=True):
        for f in range(9):
            if row[f] != 0:
                counts["abcde".index(word), f] += 1
                largest["abcde".index(word), f] = max(largest["abcde".index(word), f], float(row[f].abs()))
    assert made.names == tuple("abcde")
    assert made.counts.toarray().tolist() == counts.tolist()
    assert made.largest.toarray() == pytest.approx(largest)
    assert (made.edges.toarray() == (counts > 0)).all()
    assert made.degrees.tolist() == (counts > 0).sum(1).tolist()
    assert made.occurrences.tolist() == [(text == c).sum() for c in "abcde"]
    order = made.order
    reached = [int((counts[order[: m + 1]] > 0).any(0).sum()) for m in range(5)]
    assert made.coverage(order).tolist() == reached


def test_a_shuffle_keeps_types_at_their_positions():
    groups, values = np.array([0, 1, 0, 1, 0, 2]), np.array([1, 2, 3, 4, 5, 6])
    drawn = [graphs._within(groups, values, np.random.default_rng(s)) for s in range(40)]
    assert all(sorted(d[groups == 0]) == [1, 3, 5] and sorted(d[groups == 1]) == [2, 4] and d[5] == 6 for d in drawn)
    assert len({tuple(d) for d in drawn}) == 12


def test_shuffles_ride_along_and_change_nothing():
    sae, rec = random_case()
    plain, beside = (token_graph(LiveCodes(rows_for(sae, rec), sae), shuffles=s) for s in (0, 3))
    assert (plain.counts != beside.counts).nnz == 0
    for s in range(3):
        assert beside.coverage(beside.order, s)[-1] == plain.coverage(plain.order)[-1]  # all types together reach the same features


def test_a_planted_function_token_is_found():
    sae, rec = planted()
    report = function_tokens(sae, rec, ["the"])
    tokens = report["tokens"].to_frame().set_index("name")
    assert tokens.index[0] == "the" and tokens.loc["the", "features"] == 10
    assert all(tokens.loc[f"word{i}", "features"] == 1 for i in range(12))
    # Every type keeps its positions, so `the` keeps its contexts' features; a content word loses its own.
    assert tokens.loc["the", "of null"] == pytest.approx(1.0)
    assert tokens.drop("the")["of null"].max() < 0.2
    entropy = report["features"].to_frame().set_index("name")
    assert (entropy["bits"] == 0).all()
    assert entropy.loc["feature 0", "most often on"] == "the" and entropy.loc["feature 12", "most often on"] == "word2"
    groups = report["groups"]
    assert groups.values[:, 3] == pytest.approx([10 / 22, 12 / 22])  # each reaches what the other does not


def test_entropy_by_hand():
    sae = dictionary(torch.eye(2))
    x = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 1]])
    rec = recording_of({SITE: x}, text=np.array(["a", "a", "b", "c"], dtype=object))
    table = function_tokens(sae, rec, ["a"], shuffles=2)["features"].to_frame().set_index("name")
    assert table.loc["feature 0", "bits"] == pytest.approx(1.5)  # ½, ¼, ¼
    assert table.loc["feature 1", "bits"] == 0
    assert table.loc["feature 0", "types"] == 3


def test_without_features_of_ones_own_frequency_explains_it_all():
    random = np.random.default_rng(3)
    sae = dictionary(torch.eye(20))
    x = torch.eye(20)[random.integers(20, size=600)]
    text = np.array([f"t{min(int(v), 30)}" for v in random.zipf(1.5, size=600)], dtype=object)
    report = function_tokens(sae, recording_of({SITE: x}, example=(np.arange(600) // 6).tolist(), text=text), 0.05)
    table = report["tokens"].to_frame()
    inside = (table["null low"] <= table["features"]) & (table["features"] <= table["null high"])
    assert inside.mean() > 0.85
    assert "frequency explains it" in report.words[1]


def test_the_split_by_frequency_and_by_words():
    sae, rec = planted()
    by_share, by_words = function_tokens(sae, rec, 0.3, shuffles=2), function_tokens(sae, rec, "the", shuffles=2)
    assert act.results.identical(by_share["groups"], by_words["groups"])
    assert by_share["groups"].values[:, 1] == pytest.approx([0.4, 0.6])


def test_a_store_gives_what_memory_gives(tmp_path):
    model = act.load("scribe", certify=False)
    texts = ["Anna gave Tom the book .", "Tom gave Anna the cup ."]
    site = "blocks.1.resid_post"
    identity = act.dictionaries.controls.identity(128)
    store = act.capture(model, texts, [site], to=tmp_path / "a.acts", progress=False)
    one, other = (function_tokens(identity, r, ["the"], site=site, shuffles=2) for r in (model.run(texts, read=site), store))
    assert act.results.identical(one["tokens"], other["tokens"])


@pytest.mark.parametrize(
    ("function", "options", "error", "words"),
    [
        (1.5, {}, InputError, "give one between 0 and 1"),
        (["thhe"], {}, UnknownName, "Did you mean 'the'"),
        (0.9, {}, InputError, "0 of 13 types"),
        (0.1, {"shuffles": 1}, InputError, "give no interval"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(function, options, error, words):
    sae, rec = planted()
    with pytest.raises(error, match=words):
        function_tokens(sae, rec, function, **options)


def test_rows_that_are_no_tokens_are_refused():
    sae, rec = dictionary(torch.eye(4)), recording_of({SITE: torch.eye(4)})
    with pytest.raises(InputError, match="'text' and 'position'"):
        function_tokens(sae, rec)
    patches = recording_of({SITE: torch.eye(4)}, kinds=["patch"] * 4, text=np.array([""] * 4, dtype=object))
    with pytest.raises(InputError, match="patches of images"):
        function_tokens(sae, patches)


def test_a_silent_dictionary_is_refused():
    rec = recording_of({SITE: torch.zeros(4, 4)}, text=np.array(list("abcd"), dtype=object))
    with pytest.raises(InputError, match="No feature is active"):
        function_tokens(dictionary(torch.eye(4)), rec)
