"""Rows of a recording for a dictionary: the right ones, in pieces, or refused with the site, the widths or the model."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.dictionaries import SAE, Design, LiveCodes, Origin, rows_for
from activarium.errors import InputError, OtherModel, UnknownSite
from activarium.recording import Recording

SITE, OUT = "blocks.1.mlp.in", "blocks.1.mlp.out"
KINDS = ["bos", *["token"] * 5] * 4


def recording(**model):
    generator = torch.Generator().manual_seed(0)
    made = act.testing.recording_of(
        {SITE: torch.randn(24, 6, generator=generator), OUT: torch.randn(24, 4, generator=generator)},
        kinds=KINDS,
        example=np.repeat(range(4), 6),
    )
    return Recording(dict(made.items()), made.rows, {"model": model} if model else {})


def sae(origin, **more):
    return SAE(Design(6, 10, "topk", k=2, **more), origin, seed=1)


def transcoder(origin):
    return sae(origin, d_out=4, transcoder=True, subtracts_bias=False)


def test_rows_are_those_that_training_left_in():
    found = rows_for(sae(Origin(SITE, exclude=("bos",))), recording())
    assert (len(found), found.dropped) == (20, {"bos": 4})
    assert set(found.chosen % 6) == {1, 2, 3, 4, 5}
    every = rows_for(sae(Origin(SITE, exclude=("bos",))), recording(), exclude=())
    assert len(every) == 24


def test_a_site_that_is_given_comes_before_its_own():
    assert rows_for(sae(Origin("blocks.9.mlp.in")), recording(), site=SITE).inputs.site == SITE
    both = rows_for(transcoder(Origin(SITE, OUT)), recording())
    assert (both.width, both.target_width) == (6, 4)
    assert rows_for(transcoder(Origin(SITE)), recording(), target=OUT).target_width == 4


def test_codes_in_pieces_are_the_codes_of_all_rows():
    rec, dictionary = recording(), sae(Origin(SITE, exclude=("bos",)))
    live = LiveCodes(rows_for(dictionary, rec), dictionary)
    parts = list(live.pieces(rows=7))
    assert [len(index) for index, _ in parts] == [7, 7, 6]
    assert np.array_equal(np.concatenate([index for index, _ in parts]), live.chosen)
    wanted = dictionary.encode(rec[SITE].tensor[live.chosen])
    assert torch.allclose(torch.cat([codes.dense() for _, codes in parts]), wanted, atol=1e-6)
    assert live.width == 10
    assert live.index is not None
    assert live.index["kind"][live.chosen[0]] == "token"


@pytest.mark.parametrize(
    ("made", "call", "error", "words"),
    [
        (sae(Origin()), {}, InputError, "does not say where it reads: its origin.site is empty. Give site="),
        (transcoder(Origin(SITE)), {}, InputError, "This transcoder reads blocks.1.mlp.in and does not say where it writes"),
        (
            sae(Origin("blocks.1.mlp.inn")),
            {},
            UnknownSite,
            "No site in this recording called 'blocks.1.mlp.inn'. Did you mean 'blocks.1.mlp.in'",
        ),
        (transcoder(Origin(SITE, "blocks.1.attn.out")), {}, UnknownSite, "No site in this recording called 'blocks.1.attn.out'"),
        (sae(Origin(OUT)), {}, InputError, "reads 6 numbers and writes 6; blocks.1.mlp.out has 4. Is it another site's"),
        (transcoder(Origin(SITE, SITE)), {}, InputError, "reads 6 numbers and writes 4; blocks.1.mlp.in has 6 and blocks.1.mlp.in 6"),
        (sae(Origin(SITE)), {"exclude": ("bos", "token")}, InputError, "has no rows left after bos, token were left out"),
    ],
)
def test_what_does_not_fit_is_refused(made, call, error, words):
    with pytest.raises(error, match=words):
        rows_for(made, recording(), **call)


def test_a_recording_of_another_model_is_refused():
    made = sae(Origin(SITE, model="scribe", weight_hash="a" * 32))
    rows_for(made, recording(name="scribe", weight_hash="a" * 32))
    rows_for(made, recording(name="scribe"))  # a recording that does not know its model is not refused
    with pytest.raises(OtherModel, match=r"trained on scribe with weights aaaaaaaaaaaa…; this recording is of glyph with bbbbbbbbbbbb…"):
        rows_for(made, recording(name="glyph", weight_hash="b" * 32))
