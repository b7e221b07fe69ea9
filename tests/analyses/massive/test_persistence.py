"""persistent_dims: the mask that keeps massive dimensions out of cosines."""

import doctest

import pytest
import torch

import activarium as act
from activarium.analyses.massive import persistence, persistent_dims
from activarium.errors import InputError
from activarium.results import Report, Series

from .planted_massive import DIM, TEXT, TOKEN, planted, wrapped

READ = ["blocks.*.resid_pre", "blocks.*.resid_post"]


def test_the_planted_dimension_is_named_and_leaving_it_out_undoes_it():
    texts = [TEXT, [TOKEN, 8, 9, 10, 11], [3, TOKEN, 5]]
    massive, twin = (wrapped(model).run(texts, read=READ) for model in (planted(), planted(0.0)))
    mask = persistent_dims(act.analyses.massive_activations(massive))
    assert mask == (DIM,)
    assert persistent_dims(act.analyses.massive_activations(twin)) == ()
    rows = {name: r["blocks.1.resid_post"].tensor[[2, 4]] for name, r in {"massive": massive, "twin": twin}.items()}
    cosine = {name: float(torch.cosine_similarity(*h.unsqueeze(1))) for name, h in rows.items()}
    assert cosine["massive"] > 0.999  # two different rows look the same
    kept = [d for d in range(64) if d not in mask]
    assert float(torch.cosine_similarity(*rows["massive"][:, kept].unsqueeze(1))) == pytest.approx(cosine["twin"], abs=0.01)


def test_block_influence_takes_the_mask():
    recording = wrapped(planted()).run([TEXT], read=READ)
    report = act.analyses.block_influence(recording, without=persistent_dims(act.analyses.massive_activations(recording)))
    assert "influence" in report


def test_another_report_is_refused():
    with pytest.raises(InputError, match=r"no part 'encoder dimensions' of massive_activations; it has ratio"):
        persistent_dims(Report({"ratio": Series([0], {"a": [1.0]})}), "encoder")


def test_the_example_runs():
    assert doctest.testmod(persistence).failed == 0
