"""ioi: who is where, what each corruption changes, what scribe makes of it, and vocabularies that cannot say it."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import activarium as act
from activarium.errors import InputError, UnknownName
from activarium.pairs._ioi import CORRUPTIONS


@pytest.fixture(scope="module")
def scribe():
    return act.load("scribe", certify=False)


@pytest.fixture(scope="module")
def llama():
    return act.wrap(*act.testing.tiny("llama"), certify=False)


def words_at(inputs, places: dict) -> dict[str, list[str]]:
    return {n: [inputs.words(int(inputs.data[""][i][p])) for i, p in enumerate(at)] for n, at in places.items()}


def difference(model, inputs, made) -> torch.Tensor:
    return model.run(inputs, metrics=made.metric).metric["logit_difference"].double()


def test_places_stand_where_their_names_say(scribe) -> None:
    made = act.pairs.ioi(scribe, 30)
    found = words_at(made.clean, made.places)
    assert found["S1"] == found["S2"]
    assert all(io != s for io, s in zip(found["IO"], found["S1"], strict=True)), "never twice the same name"
    assert found["END"] == ["to"] * 30
    assert (made.places["S1+1"] == made.places["S1"] + 1).all()
    assert (made.places["END"] == made.clean.lengths - 1).all()
    for i, (io, s) in enumerate(zip(found["IO"], found["S1"], strict=True)):
        sentence = made.words()[i]
        assert (sentence.count(io), sentence.count(s)) == (1, 2)
        assert "<unk>" not in sentence
    answers = [scribe.tokenizer.convert_ids_to_tokens(int(a)) for a in made.metric.columns[:, 0]]
    assert answers == found["IO"]


def test_scribe_names_the_receiver_and_follows_the_corruption(scribe) -> None:
    made = act.pairs.ioi(scribe, 100)
    run = scribe.run(made.clean, metrics=made.metric)
    clean, corrupt = run.metric["logit_difference"], difference(scribe, made.corrupt, made)
    best = torch.stack([run.logits.example(e).tensor[p].argmax() for e, p in enumerate(made.places["END"])])
    assert (best == made.metric.columns[:, 0]).double().mean() >= 0.95, "chance is 1 in 466"
    assert clean.mean() > 10
    assert corrupt.mean() < -10
    for removed in ("abc", "s2_random"):
        without = act.pairs.ioi(scribe, 100, corruption=removed)
        assert difference(scribe, without.corrupt, without).mean().abs() < 3, "no evidence, no preference"
    swapped = act.pairs.ioi(scribe, 100, corruption="s1_io_swap")
    assert difference(scribe, swapped.corrupt, swapped).mean() > 10, "another order, the same answer"


@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_the_order_says_who_is_named_first(llama, order: str) -> None:
    made = act.pairs.ioi(llama, 8, order=order)
    assert ((made.places["IO"] < made.places["S1"]) == (order == "ABBA")).all()


def test_mixed_holds_half_of_each(llama) -> None:
    made = act.pairs.ioi(llama, 10)
    assert int((made.places["IO"] < made.places["S1"]).sum()) == 5


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_only_the_names_that_are_meant_differ(scribe, corruption: str) -> None:
    made = act.pairs.ioi(scribe, 20, corruption=corruption)
    where = {"s2_to_io": ["S2"], "s2_random": ["S2"], "io_random": ["IO"], "s1_io_swap": ["IO", "S1"], "abc": ["IO", "S1", "S2"]}[
        corruption
    ]
    for i, (a, b) in enumerate(zip(made.clean.data[""], made.corrupt.data[""], strict=True)):
        assert (a != b).nonzero().flatten().tolist() == sorted(int(made.places[n][i]) for n in where)
    clean, corrupt = words_at(made.clean, made.places), words_at(made.corrupt, made.places)
    for i in range(20):
        old = {clean["IO"][i], clean["S1"][i]}
        new = [corrupt[n][i] for n in ("IO", "S1", "S2")]
        expected = {
            "s2_to_io": new[2] == clean["IO"][i],
            "s1_io_swap": new[:2] == [clean["S1"][i], clean["IO"][i]],
            "io_random": new[0] not in old,
            "s2_random": new[2] not in old,
            "abc": not old & set(new) and len(set(new)) == 3,
        }
        assert expected[corruption]


def test_the_normalised_metric_is_antisymmetric_for_pairs_that_are_each_others_corruption(llama) -> None:
    """The corruption of a corrupted sentence is the clean one, with answer and foil exchanged: fractions add up to one."""
    made = act.pairs.ioi(llama, 8)
    answers, foils = made.metric.columns.T.tolist()
    metric = act.metrics.logit_difference(foils, answers, position=made.places["END"])
    mirrored = act.pairs(llama, made.corrupt, made.clean, metric)
    high, low = difference(llama, made.clean, made), difference(llama, made.corrupt, made)
    assert torch.equal(difference(llama, mirrored.clean, mirrored), -low)
    patched = llama.run(made.corrupt, edits=[act.edits.Zero("blocks.0.mlp.out")], metrics={"a": made.metric, "b": mirrored.metric}).metric
    here = (patched["a"].double() - low) / (high - low)
    there = (patched["b"].double() + high) / (-low + high)
    assert torch.allclose(here + there, torch.ones(8, dtype=torch.float64), atol=1e-5)
    assert (here - here.round()).abs().max() > 1e-3, "a run that is neither clean nor corrupted"


def test_a_bos_token_moves_every_place_by_one(llama) -> None:
    with_bos, without = (act.pairs.ioi(llama, 6, bos=b) for b in (True, False))
    for name in with_bos.places:
        assert (with_bos.places[name] == without.places[name] + 1).all()


def test_a_token_at_the_end_is_not_where_the_answer_is_read() -> None:
    """A tokenizer that ends its texts with a special token."""
    model, tokenizer = act.testing.tiny("llama")
    tokenizer.backend_tokenizer.post_processor = type(tokenizer.backend_tokenizer.post_processor)(
        single="$A <eos>", pair="$A $B", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    made = act.pairs.ioi(act.wrap(model, tokenizer, certify=False), 4)
    assert (made.places["END"] == made.clean.lengths - 2).all()
    assert (made.metric.places(made.clean.lengths)[:, 0] == made.places["END"]).all()


def test_the_same_seed_gives_the_same_pairs(scribe) -> None:
    assert act.pairs.ioi(scribe, 5, seed=3).hash == act.pairs.ioi(scribe, 5, seed=3).hash
    assert act.pairs.ioi(scribe, 5, seed=3).hash != act.pairs.ioi(scribe, 5, seed=4).hash


def test_byte_pairs_take_names_with_their_space() -> None:
    """A made byte-pair vocabulary in which ` Anna` is one token and `Anna` at the start is several."""
    model = made_byte_pairs(["Anna", "Ben", "Clara"])
    made = act.pairs.ioi(model, 6)
    found = words_at(made.clean, made.places)
    assert set(found["IO"]) <= {" Anna", " Ben", " Clara"}
    assert all(w[0] not in ("Anna", "Ben", "Clara") for w in made.words()), "no frame that begins with a name"
    with pytest.raises(InputError, match=r"Name 'David' is \[.*\] in this tokenizer; every name must be one known token"):
        act.pairs.ioi(model, 6, names=["Anna", "Ben", "David"])
    with pytest.raises(InputError, match="Corruption 'abc' needs 5 names of one token; found 3: Anna, Ben, Clara"):
        act.pairs.ioi(model, 6, corruption="abc")


def made_byte_pairs(names: list[str]):
    """A GPT-2 with letters and these names (with a space before them) as tokens."""
    words = [f"Ġ{w}" for w in (*names, "park", "book")]
    steps = [(w[:i], w[i]) for w in words for i in range(1, len(w))]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {t: i for i, t in enumerate(dict.fromkeys([*letters, *(a + b for a, b in steps)]))}
    made = Tokenizer(models.BPE(vocabulary, list(dict.fromkeys(steps))))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    model, _ = act.testing.tiny("gpt2", vocab_size=len(vocabulary), n_positions=256)
    return act.wrap(model, tokenizer, certify=False)


@pytest.mark.slow  # TransformerLens takes seconds to import
@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")  # told to whoever makes one
def test_transformerlens_models_get_the_same_sentences(llama) -> None:
    from ..capture.lens_models import bridge, hooked

    wanted = act.pairs.ioi(llama, 6)
    for kind in (hooked, bridge):
        found = act.pairs.ioi(act.wrap(*kind("llama"), certify=False), 6)
        assert found.words() == wanted.words()
        assert all((found.places[n] == at).all() for n, at in wanted.places.items())


def test_a_vocabulary_that_cannot_say_it_is_refused() -> None:
    words = ["<unk>", "the", "Anna", "Ben", "park", "book"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model, _ = act.testing.tiny("gpt2")
    model = act.wrap(model, PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"), certify=False)
    with pytest.raises(InputError, match=r"No sentence of this task can be said with this tokenizer: none of \d+ frames is known"):
        act.pairs.ioi(model, 2)


def test_models_that_do_not_write_are_refused() -> None:
    for family in ("bert", "t5", "vit"):
        with pytest.raises(InputError, match="does not write text from left to right"):
            act.pairs.ioi(act.wrap(*act.testing.tiny(family), certify=False), 2)


def test_unknown_orders_and_corruptions_are_named(llama) -> None:
    with pytest.raises(UnknownName, match="No order of names called 'AABB'"):
        act.pairs.ioi(llama, 2, order="AABB")
    with pytest.raises(UnknownName, match=r"No corruption of this task called 's2_to_i0'. Did you mean 's2_to_io'"):
        act.pairs.ioi(llama, 2, corruption="s2_to_i0")
    with pytest.raises(InputError, match="count=0 makes no pairs"):
        act.pairs.ioi(llama, 0)
    assert np.unique(act.pairs.ioi(llama, 2).places["END"]).size >= 1
