"""swap_words and replace_tokens: exactly the words and positions that were named, and refusals in words."""

import pytest
import torch

import activarium as act
from activarium.errors import InputError

ANSWERS = {"answers": ["Anna"], "foils": ["Tom"]}


@pytest.fixture(scope="module")
def gpt2():
    return act.wrap(*act.testing.tiny("gpt2"), certify=False)


def text(inputs, i: int = 0) -> str:
    return " ".join(inputs.words(int(t)) for t in inputs.data[""][i])


def test_words_are_exchanged_all_at_once(gpt2) -> None:
    made = act.pairs.swap_words(gpt2, ["Anna saw Tom and Anna ran"], {"Anna": "Tom", "Tom": "Anna"}, **ANSWERS)
    assert text(made.clean) == "Anna saw Tom and Anna ran"
    assert text(made.corrupt) == "Tom saw Anna and Tom ran"


def test_only_whole_words_are_exchanged(gpt2) -> None:
    made = act.pairs.swap_words(gpt2, ["the keys and the key"], {"key": "cup"}, **ANSWERS)
    assert text(made.corrupt) == "the keys and the cup"


def test_places_of_words_count_from_either_end(gpt2) -> None:
    made = act.pairs.swap_words(
        gpt2, ["Anna saw the cat", "Anna saw the dog"], [{0: "Tom"}, {-1: "cat"}], answers=["Anna"] * 2, foils=["Tom"] * 2
    )
    assert [text(made.corrupt, i) for i in (0, 1)] == ["Tom saw the cat", "Anna saw the cat"]


def test_swaps_that_find_nothing_are_refused(gpt2) -> None:
    with pytest.raises(InputError, match="Text 1 has none of the words 'Anna': 'Tom ran'"):
        act.pairs.swap_words(gpt2, ["Anna ran", "Tom ran"], {"Anna": "Mary"}, **ANSWERS)
    with pytest.raises(InputError, match="Text 0 has 2 words; there is none at place 2: 'Anna ran'"):
        act.pairs.swap_words(gpt2, ["Anna ran"], {2: "Mary"}, **ANSWERS)
    with pytest.raises(InputError, match="There are 1 texts and 2 sets of swaps"):
        act.pairs.swap_words(gpt2, ["Anna ran"], [{0: "Tom"}, {0: "Tom"}], **ANSWERS)
    with pytest.raises(InputError, match="does not align: 2 clean rows, 3 corrupted ones"):
        act.pairs.swap_words(gpt2, ["Anna ran"], {"Anna": "old Tom"}, **ANSWERS)


def test_random_tokens_stand_at_the_named_positions_only(gpt2) -> None:
    made = act.pairs.replace_tokens(
        gpt2, ["Anna saw the cat", "who gave Tom the red book"], [1, -1], answers=["Anna"] * 2, foils=["Tom"] * 2
    )
    for a, b in zip(made.clean.data[""], made.corrupt.data[""], strict=True):
        assert (a != b).nonzero().flatten().tolist() == [1, len(a) - 1]
        assert not {int(t) for t in b} & {*gpt2.tokenizer.all_special_ids}


def test_the_draw_repeats_and_never_gives_the_same_token(gpt2) -> None:
    known = [20, 21]
    one, again = (act.pairs.replace_tokens(gpt2, [[20, 21, 20]], [0, 1, 2], seed=5, tokens=known, **ANSWERS) for _ in range(2))
    assert one.corrupt.data[""][0].tolist() == [21, 20, 21]
    assert torch.equal(one.corrupt.data[""][0], again.corrupt.data[""][0])
    drawn = {int(act.pairs.replace_tokens(gpt2, ["who ?"], 0, seed=s, **ANSWERS).corrupt.data[""][0][0]) for s in range(20)}
    assert len(drawn) > 10


def test_a_bos_token_is_counted_and_not_added_twice() -> None:
    llama = act.wrap(*act.testing.tiny("llama"), certify=False)
    made = act.pairs.replace_tokens(llama, ["Anna ran"], 1, **ANSWERS)
    assert [len(side.data[""][0]) for side in (made.clean, made.corrupt)] == [3, 3]
    assert made.corrupt.data[""][0][0] == llama.tokenizer.bos_token_id


def test_what_cannot_be_drawn_is_refused(gpt2) -> None:
    with pytest.raises(InputError, match="Position -3 is not in text 0, which has 2 rows"):
        act.pairs.replace_tokens(gpt2, ["who ?"], -3, **ANSWERS)
    with pytest.raises(InputError, match="no other token to draw for id 20"):
        act.pairs.replace_tokens(gpt2, [[20]], 0, tokens=[20], **ANSWERS)
    t5 = act.wrap(*act.testing.tiny("t5"), certify=False)
    with pytest.raises(InputError, match=r"These inputs give \['encoder', 'decoder'\]; random tokens need one text"):
        act.pairs.replace_tokens(t5, ["who ?"], 0, **ANSWERS)
