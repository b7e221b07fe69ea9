"""Errors are small lessons: thing, found, wanted, next step; and the builtin a caller expects."""

import inspect

import pytest

from activarium import errors
from activarium.errors import ActivariumError, InputError, UnknownName, UnknownSite, nearest, unknown

CHILDREN = [e for e in vars(errors).values() if inspect.isclass(e) and issubclass(e, ActivariumError) and e is not ActivariumError]


def test_unknown_name_offers_the_nearest_and_lists_what_exists() -> None:
    error = unknown("analysis", "atention_rollout", ["attention_rollout", "logit_lens"])
    assert str(error) == "No analysis called 'atention_rollout'. Did you mean 'attention_rollout'? Known: attention_rollout, logit_lens."


def test_nothing_near_is_not_guessed() -> None:
    assert str(unknown("widget", "zzz", ["Heatmap"])) == "No widget called 'zzz'. Known: Heatmap."


def test_nothing_known_is_said() -> None:
    assert str(unknown("bundled model", "scribe", [])) == "No bundled model called 'scribe'. Known: none."


def test_a_long_list_is_cut_and_counted() -> None:
    message = str(unknown("site", "x", [f"blocks.{i}.mlp.post" for i in range(40)], UnknownSite))
    assert "(40 in all)" in message
    assert "blocks.11." in message
    assert "blocks.12." not in message


def test_line_breaks_survive_a_lookup_error() -> None:
    assert str(UnknownName("one\ntwo")) == "one\ntwo"


def test_nearest_first() -> None:
    assert nearest("mlp.pst", ["attn.z", "mlp.post", "mlp.pre"])[0] == "mlp.post"


@pytest.mark.parametrize("kind", CHILDREN, ids=lambda e: e.__name__)
def test_every_error_is_also_a_builtin(kind: type[Exception]) -> None:
    builtin = [b for b in kind.__mro__ if b.__module__ == "builtins" and b not in (Exception, BaseException, object)]
    assert builtin, f"{kind.__name__} inherits no builtin that a caller would expect"
    assert kind.__doc__


def test_expected_builtins() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(UnknownSite, KeyError)
    assert issubclass(errors.StoreError, OSError)
    assert issubclass(errors.CapacityError, MemoryError)
    assert issubclass(errors.MissingExtra, ImportError)
