"""What follows from encode and decode alone, for a dictionary of any kind."""

import pytest
import torch

from activarium.dictionaries import FeatureDictionary, Origin, as_dictionary
from activarium.errors import InputError


class Signs(FeatureDictionary):
    """Two features for each number, by hand: its positive and its negative part."""

    def __init__(self, width):
        self.origin = Origin("blocks.0.resid_post")
        self.basis = torch.cat([torch.eye(width), -torch.eye(width)])

    @property
    def d_in(self):
        return self.basis.shape[1]

    @property
    def directions(self):
        return self.basis

    def encode(self, x, features=None):
        self.check_rows(x)
        codes = (x @ self.basis.T).relu()
        return codes if features is None else codes[:, list(features)]

    def decode(self, feature_acts):
        return (feature_acts if isinstance(feature_acts, torch.Tensor) else feature_acts.dense()) @ self.basis


X = torch.tensor([[1.0, -2.0], [0.0, 3.0]])


def test_sizes_forward_and_error_follow():
    made = Signs(2)
    assert (made.width, made.d_in, made.d_out, made.dtype, made.transcoder) == (4, 2, 2, torch.float32, False)
    assert made.encode(X).tolist() == [[1, 0, 0, 2], [0, 3, 0, 0]]
    assert torch.equal(made(X), X)
    assert torch.equal(made.forward(X), X)
    assert not made.error(X).any()
    assert torch.equal(made.error(X, X + 1), torch.ones(2, 2))


def test_sparse_codes_are_the_dense_ones_however_few_rows_at_a_time(monkeypatch):
    made = Signs(2)
    for at_once in (1, 4, 1 << 20):
        monkeypatch.setattr("activarium.dictionaries.dictionary.AT_ONCE", at_once)
        codes = made.codes(X)
        assert (codes.starts.tolist(), codes.features.tolist(), codes.values.tolist()) == ([0, 2, 3], [0, 3, 1], [1, 2, 3])
        assert torch.equal(made.decode(codes), X)
    assert not made.codes(X.clone().requires_grad_()).values.requires_grad
    assert (len(made.codes(torch.zeros(0, 2))), made.codes(torch.zeros(0, 2)).width) == (0, 4)


def test_it_is_a_dictionary_for_every_analysis():
    made = Signs(2)
    assert as_dictionary(made) is made


@pytest.mark.parametrize("rows", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(1, 2, 2)])
def test_rows_of_another_width_are_refused(rows):
    with pytest.raises(InputError, match=r"reads rows of 2 numbers \(blocks\.0\.resid_post\); got shape"):
        Signs(2)(rows)


def test_what_does_not_say_how_it_codes_is_no_dictionary():
    with pytest.raises(TypeError, match="abstract"):
        FeatureDictionary()  # pyright: ignore[reportAbstractUsage]
