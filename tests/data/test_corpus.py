"""The corpus: sentences by hand, true positions, honest hold-out, usable corruptions."""

from itertools import islice

import numpy as np
import pytest
from activarium.data.corpus import _agreement, _brackets, _ioi, _two_hop

from activarium.data import corpus


def test_an_ioi_sentence_by_hand():
    item = _ioi.build(0, ("Anna", "Ben", "Anna"), io="Ben", subject="Anna", place="park", thing="ball")
    assert item.text == "When Anna and Ben went to the park, Anna gave the ball to Ben."
    assert item.prompt == "When Anna and Ben went to the park, Anna gave the ball to"
    # <bos> is 0: When 1, Anna 2, and 3, Ben 4, went 5 … "," 9, Anna 10, gave 11, the 12, ball 13, to 14
    assert item.positions == {"io": 4, "s1": 2, "s1_next": 3, "s2": 10, "end": 14}
    assert (item.answer, item.distractors, item.details["order"]) == ("Ben", ("Anna",), "BABA")


def test_an_agreement_sentence_by_hand():
    nouns = tuple(_agreement.NOUNS.index(pair) for pair in (("key", "keys"), ("cabinet", "cabinets")))
    item = _agreement.build(nouns=nouns, numbers=(1, 0), links=("near",), likings=(0,), verb=0, ending="old")
    assert item.text == "The keys near the cabinet are old."
    assert (item.answer, item.distractors, item.details["attractors"]) == ("are", ("is",), 1)


def test_partners_of_nested_brackets_by_hand():
    assert _brackets.partner_positions(["(", "[", "red", "]", ")", "."]) == {1: 5, 2: 4}


def test_two_hop_answers_follow_from_the_table():
    item = _two_hop.composition("Barlow", "capital")
    assert item.text == "The capital of the country of Barlow is Belmar."
    assert _two_hop.origin("Barlow").answer == "Veria"
    assert _two_hop.fact("capital", "Veria").answer == "Belmar"


def test_words_and_join_undo_each_other():
    for text in corpus.training_text(3, 2000):
        assert corpus.join(corpus.words(text)) == text
        assert set(corpus.words(text)) <= set(corpus.VOCABULARY)


@pytest.mark.parametrize("family", corpus.FAMILIES)
def test_positions_point_at_their_words(family):
    for item in corpus.held_out(family, 1, 200):
        tokens = ["<bos>", *corpus.words(item.text)]
        assert tokens[item.positions["end"] + 1] == item.answer
        assert item.answer not in item.distractors
        if family == "ioi":
            assert tokens[item.positions["io"]] == item.answer
            assert tokens[item.positions["s1"]] == tokens[item.positions["s2"]] == item.distractors[0]
        if family == "induction":
            assert tokens[item.positions["source"]] == item.answer
        if family == "brackets":
            assert (tokens[item.positions["open"]], item.answer) in _brackets.BRACKETS


def test_both_orders_are_equally_frequent():
    orders = [item.details["order"] for item in corpus.held_out("ioi", 2, 1000)]
    assert 430 < orders.count("ABBA") < 570


def test_held_out_ioi_combinations_never_appear_in_training():
    # Judged from the words of the sentences, not by the rule that separated them.
    def combination(item):
        tokens = ["<bos>", *corpus.words(item.text)]
        return frozenset((tokens[item.positions["io"]], tokens[item.positions["s1"]])), item.details["template"]

    kept = {combination(item) for item in corpus.held_out("ioi", 5, 2000)}
    seen = {combination(item) for item in islice(corpus.training(6), 20_000) if item.family == "ioi"}
    assert len(kept) > 1000
    assert len(seen) > 4000
    assert not kept & seen


@pytest.mark.parametrize("family", corpus.FAMILIES)
def test_held_out_sentences_never_appear_in_training(family):
    kept = {item.text for item in corpus.held_out(family, 7, 500)}
    seen = {item.text for item in islice(corpus.training(8), 3000) if item.family == family}
    assert seen
    assert not kept & seen


def test_held_out_compositions_have_both_their_facts_in_training():
    texts = set(corpus.training_text(9, 20_000))
    for item in corpus.held_out("two_hop", 1, 100):
        home = _two_hop.country_of(item.details["person"])
        assert item.text not in texts
        assert _two_hop.origin(item.details["person"]).text in texts
        assert _two_hop.fact(item.details["relation"], home).text in texts


@pytest.mark.parametrize("family", corpus.FAMILIES)
def test_corrupted_prompts_keep_their_length(family):
    for index, item in enumerate(corpus.held_out(family, 3, 50)):
        for kind in corpus.corruptions(family):
            changed = corpus.corrupt(item, kind, seed=index)
            assert changed.prompt != item.prompt
            assert len(corpus.words(changed.prompt)) == len(corpus.words(item.prompt))


def test_what_the_ioi_corruptions_do():
    item = corpus.held_out("ioi", 4, 1)[0]
    flipped = corpus.corrupt(item, "s2_to_io", seed=0)
    assert (flipped.answer, flipped.distractors) == (item.distractors[0], (item.answer,))
    assert corpus.corrupt(flipped, "s2_to_io", seed=0).text == item.text  # each is the other's corruption
    assert corpus.corrupt(item, "s1_io_swap", seed=0).answer == item.answer
    strangers = corpus.words(corpus.corrupt(item, "abc", seed=0).prompt)
    assert item.answer not in strangers
    assert item.distractors[0] not in strangers


@pytest.mark.parametrize("family", ["induction", "agreement", "brackets", "sentiment", "two_hop"])
def test_the_other_corruptions_change_the_answer(family):
    for item in corpus.held_out(family, 5, 50):
        changed = corpus.corrupt(item, corpus.corruptions(family)[0], seed=1)
        assert changed.answer != item.answer
        assert changed.positions["end"] == item.positions["end"]


def test_the_seed_decides_everything():
    assert corpus.training_text(1, 50) == corpus.training_text(1, 50)
    assert corpus.training_text(1, 50) != corpus.training_text(2, 50)
    assert corpus.held_out("brackets", 1, 20) == corpus.held_out("brackets", 1, 20)


def test_an_unknown_family_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"No family called 'io'\. Known: ioi, induction"):
        corpus.held_out("io", 0, 1)


def test_an_unknown_corruption_lists_the_known_ones():
    item = corpus.held_out("ioi", 0, 1)[0]
    with pytest.raises(ValueError, match=r"No corruption 'swap' for the family 'ioi'\. It has: s2_to_io, abc"):
        corpus.corrupt(item, "swap", seed=0)


def test_a_single_fact_has_no_composition_to_corrupt():
    with pytest.raises(ValueError, match="Only a composition can be corrupted"):
        _two_hop.corrupt(_two_hop.origin("Barlow"), "person", np.random.default_rng(0))
