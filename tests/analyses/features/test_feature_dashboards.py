"""Features ranked, with their pages behind them: planted atoms are found where they were planted."""

import numpy as np
import pytest
import torch

import activarium as act
from activarium.dashboards import open_pages
from activarium.dictionaries import SAE, Design, Origin
from activarium.errors import InputError

SITE = "blocks.0.resid_post"


@pytest.fixture(scope="module")
def planted():
    """Rows of known atoms, and the dictionary that reads each of them off."""
    atoms = torch.eye(32)[:20]
    on = torch.rand(600, 20, generator=torch.Generator().manual_seed(2)) < torch.linspace(0.02, 0.5, 20)
    on[:, 4] = False
    sizes = on * (1 + torch.rand(600, 20, generator=torch.Generator().manual_seed(3)))
    words = np.array(["+".join(f"a{j}" for j in range(20) if on[i, j]) or "nothing" for i in range(600)], dtype=object)
    recording = act.testing.recording_of({SITE: sizes @ atoms}, example=np.arange(600) // 6, text=words)
    weights = {"encoder": atoms, "W_dec": atoms, "b_enc": torch.zeros(20), "b_dec": torch.zeros(32)}
    return SAE.of_weights(Design(32, 20), weights, Origin(site=SITE)), recording, sizes.numpy()


def test_planted_atoms_are_ranked_and_every_context_has_its_atom(planted, tmp_path):
    dictionary, recording, sizes = planted
    ranking = act.analyses.feature_dashboards(dictionary, recording, to=tmp_path / "a.features", buffer=0)
    fires = (sizes != 0).sum(0)
    assert [int(n.removeprefix("feature ")) for n in ranking.names] == np.argsort(-fires, kind="stable").tolist()
    assert ranking.values.tolist() == sorted(fires.tolist(), reverse=True) and ranking.unit == "fires"
    assert ranking.diagnostics["never active"] == 1 and ranking.names[-1] == "feature 4"
    assert ranking.columns["strongest"][-1] == ""
    pages = open_pages(ranking.diagnostics["pages"])
    for name, word in zip(ranking.names[:-1], ranking.columns["strongest"], strict=False):
        f = int(name.removeprefix("feature "))
        assert f"a{f}" in word.split("+")
        contexts = pages.page(f)["contexts"]
        assert contexts[0]["value"] == pytest.approx(sizes[:, f].max())
        assert all(f"a{f}" in c["tokens"][0].split("+") for c in contexts)
    assert "contexts" not in pages.page(4)


def test_ranked_by_another_number_and_of_some_features(planted):
    dictionary, recording, sizes = planted
    ranking = act.analyses.feature_dashboards(dictionary, recording, features=[1, 4, 7], by="max")
    order = sorted([1, 4, 7], key=lambda f: -sizes[:, f].max())
    assert ranking.names == tuple(f"feature {f}" for f in order)
    assert ranking.values == pytest.approx(sizes[:, order].max(0)) and "max" not in ranking.columns
    assert ranking.diagnostics["pages last"] == "until this process ends"
    with pytest.raises(InputError, match="ranked by 'beauty'. Choose one of fires, density"):
        act.analyses.feature_dashboards(dictionary, recording, by="beauty")


def test_with_a_model_the_table_tells_tokens(tmp_path):
    model = act.wrap(*act.testing.tiny("gpt2"), certify=False)
    recording = model.run(act.testing.texts(), read=SITE)
    dictionary = act.dictionaries.controls.principal(recording[SITE], 3)
    ranking = act.analyses.feature_dashboards(dictionary, recording, model, tmp_path / "a.features")
    pages = open_pages(tmp_path / "a.features")
    first = int(ranking.names[0].removeprefix("feature "))
    assert ranking.columns["promoted"][0] == ", ".join(w.strip() for w, _ in pages.page(first)["promoted"][:3])
    assert ranking.to_frame().shape[0] == 6 and "strongest" in ranking._repr_html_()
