"""changed_answers: by torch's own losses, ragged and batched alike, classifiers with labels, and nothing for no change."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

import activarium as act
from activarium import testing
from activarium.activations import Activations
from activarium.analyses.changed_answers import changed_answers
from activarium.data import scenes  # pyright: ignore[reportAttributeAccessIssue]
from activarium.edits import Scale, Where, Zero
from activarium.errors import InputError

TEXTS = ["the cat sat on the mat", "Anna saw", "the dog"]
EDIT = [Scale("blocks.0.mlp.out", 3.0)]


@pytest.fixture(scope="module")
def model():
    return act.wrap(*testing.tiny("llama"), name="llama", certify=False)


def test_loss_and_kl_are_those_of_torch(model):
    found = changed_answers(model, TEXTS, {"changed": EDIT})["changed"]
    full, changed = model.run(TEXTS)["logits"], model.run(TEXTS, edits=EDIT)["logits"]
    at = full.index.span(0)
    token = torch.as_tensor(full.index["token"][at].astype(np.int64))
    wanted = functional.cross_entropy(changed.tensor[at][:-1].double(), token[1:], reduction="none")
    here = found.example == 0
    assert found.loss[here & found.known] == pytest.approx(wanted.numpy())
    kl = functional.kl_div(changed.tensor.double().log_softmax(1), full.tensor.double().log_softmax(1), log_target=True, reduction="none")
    assert found.kl == pytest.approx(kl.sum(1).numpy(), abs=1e-12)
    assert found.confidence == pytest.approx(changed.tensor.double().softmax(1).max(1).values.numpy())
    assert found.known.tolist() == [*[True] * (len(token) - 1), False] + [True] * (found.example[found.example == 1].size - 1) + [False] + [
        True
    ] * (found.example[found.example == 2].size - 1) + [False]
    assert np.isnan(found.loss[~found.known]).all()


def test_nothing_changed_is_exactly_nothing(model):
    found = changed_answers(model, TEXTS, {"same": [], "idle": lambda batch: []})
    for answers in found.values():
        assert answers.kl.tolist() == [0.0] * len(answers)
        assert answers.agrees.all()
        assert answers.mean("loss") == answers.mean("full_loss")


def test_a_change_can_be_made_for_each_batch(model, monkeypatch):
    monkeypatch.setattr("activarium.analyses.changed_answers.AT_ONCE", 2)
    seen = []

    def last_example(batch):
        seen.append(len(batch))
        return [Zero("blocks.0.resid_post", where=Where(examples=2))]

    found = changed_answers(model, TEXTS, {"one": last_example})["one"]
    assert seen == [2, 1]
    assert (found.kl[found.example == 2] > 0).all()
    assert found.kl[found.example < 2].tolist() == [0.0] * int((found.example < 2).sum())
    above, count = found.sums(found.kl)
    assert above[2] == pytest.approx(found.kl[found.example == 2].sum())
    assert count.tolist() == np.bincount(found.example).tolist()


def test_classes_are_known_where_labels_are_numbers():
    glyph = act.load("glyph")
    images, labels = scenes.batch(scenes.TEST_SEED, 0, 6)
    without = changed_answers(glyph, list(images), {"same": []})["same"]
    assert not without.known.any()
    found = changed_answers(glyph, {"images": list(images), "label": labels}, {"same": [], "blind": [Zero("blocks.0.resid_pre")]})
    assert found["same"].known.all()
    assert found["same"].mean("correct") == 1.0
    assert found["blind"].mean("loss") > found["same"].mean("loss")


def test_masked_models_know_no_next_token():
    model = act.wrap(*testing.tiny("bert"), certify=False)
    found = changed_answers(model, ["the cat sat"], {"same": []})["same"]
    assert not found.known.any()
    assert np.isnan(found.mean("loss"))


def test_other_answers_are_refused(model):
    vectors = Activations(torch.zeros(3, 4), "row d_model", site="logits")
    fake = SimpleNamespace(name="encoder", inputs=model.inputs, run=lambda *_, **__: {"logits": vectors})
    with pytest.raises(InputError, match="encoder answers with axes 'row d_model'.*load it with a language or class head"):
        changed_answers(fake, TEXTS, {"same": []})
