"""Sparse arithmetic against dense autograd: the same values and the same gradients, ragged rows and empty ones too."""

import pytest
import torch

from activarium.dictionaries.support import Support, decode, encode

ROWS, WIDTH, FEATURES = 7, 5, 11


def made(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(ROWS, WIDTH), draw(FEATURES, WIDTH), draw(FEATURES), draw(WIDTH), draw(FEATURES, WIDTH), draw(ROWS, WIDTH)


def masks():
    generator = torch.Generator().manual_seed(5)
    ragged = torch.rand(ROWS, FEATURES, generator=generator) < 0.3
    ragged[2] = False  # a row without a feature
    ragged[:, 4] = False  # a feature without a row
    fixed = torch.zeros(ROWS, FEATURES, dtype=torch.bool).scatter_(1, torch.rand(ROWS, FEATURES, generator=generator).topk(3).indices, True)
    return {"ragged": ragged, "fixed": fixed, "none": torch.zeros_like(ragged)}


@pytest.mark.parametrize("kind", ["ragged", "fixed", "none"])
@pytest.mark.parametrize("shifted", [True, False])
def test_values_and_gradients_are_those_of_the_dense_products(kind, shifted):
    mask = masks()[kind]
    x, *weights = made()
    target = weights.pop()
    encoder, bias, shift, directions = (w.clone().requires_grad_() for w in weights)
    pre = (x - shift if shifted else x) @ encoder.T + bias
    dense = (pre * mask).relu() @ directions
    (dense - target).square().sum().backward()
    wanted = [w.grad.clone() for w in (encoder, bias, directions)] + ([shift.grad.clone()] if shifted else [])

    again = [w.clone().requires_grad_() for w in weights]
    encoder, bias, shift, directions = again
    with torch.no_grad():
        seen = x - shift if shifted else x
        support = Support.of_flat(mask.flatten().nonzero()[:, 0], ROWS, FEATURES)
        chosen = torch.addmm(bias, seen, encoder.T)[support.rows, support.features].relu()
    codes = encode(encoder, bias, shift if shifted else None, chosen, seen, support)
    sparse = decode(codes, directions, support)
    assert torch.allclose(sparse, dense, atol=1e-12)
    (sparse - target).square().sum().backward()
    found = [w.grad for w in (encoder, bias, directions)] + ([shift.grad] if shifted else [])
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_top_and_flat_are_the_same_support():
    features = torch.tensor([[3, 1], [0, 2]])
    top = Support.of_top(features, 4)
    assert top.rows.tolist() == [0, 0, 1, 1]
    flat = Support.of_flat(torch.tensor([1, 3, 4, 6]), 2, 4)
    assert flat.features.tolist() == [1, 3, 0, 2]
    assert flat.starts.tolist() == top.starts.tolist() == [0, 2, 4]
    weights, values = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.eye(2)
    assert flat.sums(weights, values).tolist() == [[0, 3], [1, 0], [0, 4], [2, 0]]
    assert flat.totals(weights).tolist() == [3, 1, 4, 2]
