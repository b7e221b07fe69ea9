"""Factors of factors: what is composed, the tree by hand, tuning that only lowers the error and keeps signs."""

import numpy as np
import pytest
import torch

from activarium import testing
from activarium.dictionaries import SNMF, Levels, factorise_levels
from activarium.errors import InputError

SITE = "blocks.1.mlp.post"


def planted(seed=0, rows=300, width=40):
    """Six sparse factors in two families of three that share half of their neurons."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.zeros(6, width)
    for i in range(6):
        family = i // 3
        factors[i, family * 20 : family * 20 + 4] = 1.0
        factors[i, family * 20 + 5 + i % 3 * 4 : family * 20 + 9 + i % 3 * 4] = 1.0
    codes = torch.rand(rows, 6, generator=generator) * (torch.rand(rows, 6, generator=generator) < 0.4)
    return factors, testing.recording_of({SITE: codes @ factors + 0.01 * torch.randn(rows, width, generator=generator)})


def made(tune=0, **options):
    return factorise_levels(planted()[1], SITE, features=(6, 2), share=0.3, tune=tune, progress=False, **options)


def test_families_are_found_and_activations_are_the_products():
    levels = made()
    children = [{i for i, _ in levels.children(1, j)} for j in range(2)]
    first = levels.levels[0].directions
    family = [int(first[i, 20:].abs().sum() > first[i, :20].abs().sum()) for i in range(6)]
    assert sorted(len(c) for c in children) == [3, 3]
    assert all(len({family[i] for i in c}) == 1 for c in children)
    by_hand = levels.coefficients[0] @ levels.coefficients[1] * levels.scales[1]
    assert torch.allclose(levels.activations(1), by_hand)
    rows = planted()[1][SITE].tensor
    for level in range(2):
        left = rows - levels.activations(level) @ levels.levels[level].directions
        assert levels.errors[level] == pytest.approx(float(left.square().sum() / rows.square().sum()), rel=1e-4)
    assert levels.errors[0] < 0.01 < levels.errors[1]
    assert all(bool((c >= 0).all()) for c in levels.coefficients)


def test_tuning_lowers_the_error_and_keeps_signs_entries_and_lengths():
    plain, tuned = made(), made(tune=60, rate=0.02)
    assert tuned.errors[1] < plain.errors[1]
    assert tuned.errors[0] < plain.errors[0] + 0.01, "a better coarse level does not cost the fine one"
    for level, snmf in enumerate(tuned.levels):
        left = planted()[1][SITE].tensor - tuned.activations(level) @ snmf.directions
        assert tuned.errors[level] == pytest.approx(float(left.square().sum() / planted()[1][SITE].tensor.square().sum()), rel=1e-3)
    assert tuned.tuned == 60
    assert all(bool((c >= 0).all()) for c in tuned.coefficients)
    for mine, theirs in zip(tuned.levels, plain.levels, strict=True):
        assert torch.equal(mine.directions != 0, theirs.directions != 0)
    for snmf in tuned.levels:
        assert torch.allclose(snmf.directions.norm(dim=1), torch.ones(snmf.width), atol=1e-5)


def test_children_by_hand():
    snmf, coarse = SNMF(torch.eye(6)), SNMF(torch.eye(6)[:2])
    mixed = torch.tensor([[1.0, 0.0], [0.14, 0.0], [0.15, 2.0], [0.5, 0.1], [0.9, 0.0], [0.8, 0.0]])
    levels = Levels((snmf, coarse), (torch.ones(1, 6), mixed), (torch.ones(6), torch.ones(2)), (0.0, 0.0), np.arange(1))
    assert [i for i, _ in levels.children(1, 0)] == [0, 4, 5, 3]
    assert [i for i, _ in levels.children(1, 0, most=5)] == [0, 4, 5, 3, 2]
    assert [i for i, _ in levels.children(1, 0, most=9)] == [0, 4, 5, 3, 2], "0.14 is below 0.15 of the largest"
    assert levels.children(1, 1) == [], "one child alone is no union"


def test_levels_must_fall():
    with pytest.raises(InputError, match=r"each level has fewer factors than the one before"):
        factorise_levels(planted()[1], SITE, features=(4, 4))
