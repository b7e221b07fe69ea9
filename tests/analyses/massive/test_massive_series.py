"""massive_series: ratios by hand, the bundled series again from its recorder, a folder of checkpoints, its refusals."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import activarium as act
from activarium.activations import Activations
from activarium.data import folder, train_scribe
from activarium.errors import InputError, NotFinite
from activarium.recording import Recording
from activarium.rows import Rows

massive_series = act.analyses.massive_series
RUNS = Path(__file__).parents[4] / "shared" / "models" / "shakespeare-gpt2-series"
CORPUS = RUNS.parents[1] / "corpora" / "tinyshakespeare.txt"


class Fake:
    """A model whose residual stream is its input, times a factor, in every one of its layers."""

    name = "fake"

    def __init__(self, factor: float = 1.0, layers: int = 2) -> None:
        self.factor, self.sites = factor, {f"blocks.{i}.resid_post": None for i in range(layers)}

    def run(self, inputs, read=(), *, edits=(), **options):
        values = torch.tensor(inputs[0]) ** 1
        values[0, 0] *= self.factor
        rows = Rows({"example": np.zeros(len(values), dtype=int)})
        return Recording({s: Activations(values, "row d_model", site=s, index=rows) for s in read}, {"": rows})


SEQUENCES = [[[-40.0, 1.0], [3.0, 2.0]], [[5.0, 1.0], [1.0, 1.0], [2.0, 1.0]]]


def test_ratios_by_hand():
    """Sizes 40 3 2 1 and 5 2 1 1 1 1: lower medians 2 and 1, ratios 20 and 5, and ten times as much at step 9."""
    series = massive_series({9: Fake(10.0), 2: Fake()}, SEQUENCES, progress=False)
    assert series.x.tolist() == [2, 9]
    assert list(series.curves) == ["block 0", "block 1"]
    assert series.curves["block 1"].tolist() == [12.5, 125.0]
    low, high = series.bands["block 0"]
    assert low.tolist() == [5.0, 50.0] and high.tolist() == [20.0, 200.0]
    assert series.diagnostics["sequences"] == 2


def test_one_sequence_has_no_band():
    series = massive_series({0: Fake()}, SEQUENCES[:1], progress=False)
    assert np.isnan(series.bands["block 0"]).all()


def test_the_bundled_series_ends_where_the_bundled_weights_are():
    """The recorder of the training script and this analysis are two programs; they agree on the trained model."""
    rows = train_scribe.probe_rows(128).tolist()
    record = json.loads((folder("scribe") / "massive_series.json").read_text(encoding="utf-8"))
    series = massive_series({3000: act.load("scribe", certify=False)}, rows, progress=False)
    assert [float(v[0]) for v in series.curves.values()] == pytest.approx(record["series"][-1]["ratio"], rel=1e-3)


def test_an_encoder_decoder_has_two_stacks():
    model = act.wrap(*act.testing.tiny("t5"), certify=False)
    series = massive_series({0: model}, act.testing.texts(), progress=False)
    assert [n.split()[0] for n in series.curves] == ["encoder"] * 2 + ["decoder"] * 3


def test_images():
    model = act.wrap(*act.testing.tiny("vit"), certify=False)
    series = massive_series({0: model}, act.testing.images(), progress=False)
    assert all(np.isfinite(v).all() and v[0] > 1 for v in series.curves.values())


def checkpoints(place: Path, *names: str) -> Path:
    for name in names:
        (place / name).mkdir()
        (place / name / "config.json").write_text("{}")
    return place


def test_a_folder_of_checkpoints_is_read_in_the_order_of_steps(tmp_path: Path):
    place = checkpoints(tmp_path, "step1000", "step2", "checkpoint-30", "tokenizer")
    (place / "step7").mkdir()  # not a model
    seen: list[str] = []

    def load(path: Path) -> Fake:
        seen.append(path.name)
        return Fake()

    assert massive_series(place, SEQUENCES, load=load, progress=False).x.tolist() == [2, 30, 1000]
    assert seen == ["step2", "checkpoint-30", "step1000"]


def test_what_it_refuses(tmp_path: Path):
    with pytest.raises(InputError, match=r"There is no folder .*nowhere"):
        massive_series(tmp_path / "nowhere", SEQUENCES)
    with pytest.raises(InputError, match=r"no checkpoint whose name ends in its step.*models in it: final"):
        massive_series(checkpoints(tmp_path, "final"), SEQUENCES)
    with pytest.raises(InputError, match=r"a5 and b05 both end in step 5"):
        massive_series(checkpoints(tmp_path, "a5", "b05"), SEQUENCES)
    with pytest.raises(InputError, match=r"is no loaded model\. Say how to load it: load=act\.load"):
        massive_series({0: "scribe"}, SEQUENCES)
    with pytest.raises(InputError, match="No checkpoints"):
        massive_series({}, SEQUENCES)
    with pytest.raises(InputError, match="No sequences to look at"):
        massive_series({0: Fake()}, [])
    with pytest.raises(InputError, match="Step 5 has 3 layers, the first checkpoint has 2"):
        massive_series({0: Fake(), 5: Fake(layers=3)}, SEQUENCES, progress=False)
    with pytest.raises(NotFinite, match=r"blocks\.0\.resid_post holds 0 NaN and 1 infinite"):
        massive_series({0: Fake(float("inf"))}, SEQUENCES, progress=False)


@pytest.mark.slow
@pytest.mark.skipif(not RUNS.is_dir(), reason="third-party models are not on this machine (../shared/models)")
def test_a_real_training_run():
    """Ten checkpoints of a model that nobody tuned: hardly anything stands out at first, more at the end; ten steps do not pin a curve down."""
    text = CORPUS.read_text(encoding="utf-8")
    texts = [text[i : i + 60] for i in range(0, 600, 60)]
    series = massive_series(RUNS, texts, load=partial(act.load, certify=False), progress=False)
    assert series.x.tolist() == [0, 1, 4, 16, 64, 128, 256, 512, 1000, 1600]
    assert all(v[0] < 10 for v in series.curves.values())
    report = act.analyses.massive_dynamics(series, resamples=50, progress=False)
    words = report["parameters"].columns["verdict"].reshape(-1, 5)
    assert (words == "not identified").any(1).all()
