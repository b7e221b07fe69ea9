"""act.pairs: alignment, answers, places and selections; what does not fit is shown."""

import doctest

import numpy as np
import pytest
import torch

import activarium as act
from activarium.errors import InputError
from activarium.pairs import Pairs


@pytest.fixture(scope="module")
def gpt2():
    return act.wrap(*act.testing.tiny("gpt2"), certify=False)


@pytest.fixture(scope="module")
def vit():
    return act.wrap(*act.testing.tiny("vit"), certify=False)


def two(model) -> Pairs:
    clean, corrupt = ["Anna saw the cat", "the dog ran to Tom"], ["Tom saw the cat", "the dog ran to Anna"]
    return act.pairs(model, clean, corrupt, answers=["Anna", "Tom"], foils=["Tom", "Anna"], places={"name": [0, -1]}, name="two")


def test_answers_and_foils_become_a_logit_difference_at_the_last_row(gpt2) -> None:
    made = two(gpt2)
    run = gpt2.run(made.clean, metrics=made.metric)
    ids = [gpt2.tokenizer.convert_tokens_to_ids(n) for n in ("Anna", "Tom")]
    for e, (answer, foil) in enumerate([ids, ids[::-1]]):
        last = run.logits.example(e).tensor[-1]
        assert run.metric["logit_difference"][e] == last[answer] - last[foil]


def test_the_first_difference_is_where_the_tokens_first_differ(gpt2) -> None:
    assert two(gpt2).first_difference[""].tolist() == [0, 4]
    same = act.pairs(gpt2, ["who ?"], ["who ?"], answers=["Anna"], foils=["Tom"])
    assert same.first_difference[""].tolist() == [2], "no difference: the number of rows"


def test_places_count_from_the_end_and_follow_a_selection(gpt2) -> None:
    made = two(gpt2)
    assert made.places["name"].tolist() == [0, 4]
    second = made.select([1])
    assert second.places["name"].tolist() == [4]
    assert second.clean.numbers.tolist() == [0]
    whole, part = (gpt2.run(m.clean, metrics=m.metric).metric["logit_difference"] for m in (made, second))
    assert torch.allclose(whole[1:], part, atol=1e-6), "each answer stays with its example"
    assert made.words()[1] == ["the", "dog", "ran", "to", "Tom"]
    assert "2 pairs" in repr(made)
    assert "places name" in repr(made)


def test_the_same_pairs_have_the_same_hash(gpt2) -> None:
    assert two(gpt2).hash == two(gpt2).hash
    assert two(gpt2).hash != two(gpt2).select([0]).hash


def test_misaligned_pairs_show_both_tokenisations_and_the_first_difference(gpt2) -> None:
    wanted = (
        r"Pair 1 does not align: 3 clean rows, 4 corrupted ones. They differ from position 1 on.\n"
        r"  clean:   'who' \| 'saw' \| 'Tom'\n  corrupt: 'who' \| 'gave' \| 'to' \| 'Tom'\nChoose words of as many tokens"
    )
    with pytest.raises(InputError, match=wanted):
        act.pairs(gpt2, ["who ?", "who saw Tom"], ["now ?", "who gave to Tom"], answers=["Tom"] * 2, foils=["Anna"] * 2)


def test_a_longer_copy_differs_where_the_shorter_one_ends(gpt2) -> None:
    with pytest.raises(InputError, match="They differ from position 2 on"):
        act.pairs(gpt2, ["who saw"], ["who saw Tom"], answers=["Tom"], foils=["Anna"])


def test_counts_that_do_not_fit_are_named(gpt2) -> None:
    with pytest.raises(InputError, match="There are 2 clean and 1 corrupted inputs"):
        act.pairs(gpt2, ["who ?", "now ?"], ["who ?"], answers=["Tom"], foils=["Anna"])
    with pytest.raises(InputError, match="There are 1 pairs and 2 foils; give one for each"):
        act.pairs(gpt2, ["who ?"], ["now ?"], answers=["Tom"], foils=["Anna", "Tom"])
    with pytest.raises(InputError, match="These pairs have no metric: give metric="):
        act.pairs(gpt2, ["who ?"], ["now ?"], answers=["Tom"])


def test_an_answer_that_is_not_one_known_token_is_refused(gpt2) -> None:
    with pytest.raises(InputError, match=r"'old king' is 2 tokens here: \['old', 'king'\].*begins with a space, ' old king'"):
        act.pairs(gpt2, ["who ?"], ["now ?"], answers=["old king"], foils=["Tom"])
    with pytest.raises(InputError, match=r"'Xanthippe' is 1 tokens here: \['<unk>'\]"):
        act.pairs(gpt2, ["who ?"], ["now ?"], answers=["Xanthippe"], foils=["Tom"])


def test_places_out_of_range_are_refused(gpt2) -> None:
    with pytest.raises(InputError, match="Place 'name' is position 2 in pair 0, which has 2 rows"):
        act.pairs(gpt2, ["who ?"], ["now ?"], answers=["Tom"], foils=["Anna"], places={"name": [2]})
    with pytest.raises(InputError, match=r"Place 'name' has shape \(2,\); give one position for each of the 1 pairs"):
        act.pairs(gpt2, ["who ?"], ["now ?"], answers=["Tom"], foils=["Anna"], places={"name": [0, 1]})


def test_an_example_too_short_for_the_metric_shows_when_pairs_are_made(gpt2) -> None:
    metric = act.metrics.logit_difference([7, 7], [8, 8], position=3)
    with pytest.raises(InputError, match="reads position 3; example 1 has 2 rows"):
        act.pairs(gpt2, ["who saw the cat", "who ?"], ["now saw the cat", "now ?"], metric)


def test_ids_are_answers_too_and_need_no_tokenizer() -> None:
    model = act.wrap(act.testing.tiny("gpt2")[0], certify=False)
    made = act.pairs(model, [[10, 11, 12]], [[10, 11, 13]], answers=[20], foils=[21])
    assert made.first_difference[""].tolist() == [2]
    with pytest.raises(InputError, match="has no tokenizer, so 'Tom' cannot be looked up; give token ids"):
        act.pairs(model, [[10]], [[11]], answers=["Tom"], foils=[21])


def test_encoder_and_decoder_align_each() -> None:
    model = act.wrap(*act.testing.tiny("t5"), certify=False)
    clean = {"encoder": ["Anna saw the cat"], "decoder": ["the cat"]}
    made = act.pairs(model, clean, {"encoder": ["Tom saw the cat"], "decoder": ["the cat"]}, answers=["Anna"], foils=["Tom"])
    assert made.spaces == ("encoder", "decoder")
    assert made.first_difference["encoder"].tolist() == [0]
    assert made.first_difference["decoder"].tolist() == [3], "start token and two words, all the same"
    assert model.run(made.clean, metrics=made.metric).metric["logit_difference"].shape == (1,)
    with pytest.raises(InputError, match=r"Pair 0 does not align in 'decoder': 3 clean rows, 2 corrupted ones"):
        act.pairs(model, clean, {"encoder": ["Tom saw the cat"], "decoder": ["the"]}, answers=["Anna"], foils=["Tom"])


def test_images_make_pairs_with_classes_by_name(vit) -> None:
    pictures = act.testing.images(4)
    made = act.pairs(vit, pictures[:2], pictures[2:], answers=["LABEL_0", "LABEL_1"], foils=["LABEL_1", "LABEL_0"])
    assert made.first_difference[""].tolist() == [0, 0]
    run = vit.run(made.clean, metrics=made.metric)
    logits = run.logits.tensor
    assert torch.equal(run.metric["logit_difference"], torch.stack([logits[0, 0] - logits[0, 1], logits[1, 1] - logits[1, 0]]))
    with pytest.raises(InputError, match="No class is called 'cat'. Known: LABEL_0, LABEL_1"):
        act.pairs(vit, pictures[:1], pictures[1:2], answers=["cat"], foils=["LABEL_0"])


def test_the_inputs_that_were_given_are_left_alone(gpt2) -> None:
    texts = ["who ?"]
    inputs = gpt2.inputs(texts)
    before = inputs.data[""][0].clone()
    made = act.pairs(gpt2, inputs, ["now ?"], answers=["Tom"], foils=["Anna"], places={"x": np.array([0])})
    assert torch.equal(inputs.data[""][0], before)
    assert made.places["x"].tolist() == [0]


@pytest.mark.parametrize("name", ["pairs", "ioi", "swap_words", "images"])
def test_the_examples_run(name: str) -> None:
    for example in doctest.DocTestFinder(recurse=False).find(getattr(act.pairs, name), name):
        assert example.examples
        assert doctest.DocTestRunner().run(example).failed == 0
