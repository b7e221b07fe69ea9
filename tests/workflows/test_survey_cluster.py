"""Surveys on Ray: the state of one process, for any number of workers, whatever dies on the way."""

import pytest

import activarium as act
from activarium.errors import InputError
from activarium.summaries import CoActivation, Count, Gram, Magnitudes, Moments, Quantiles, TopRows
from activarium.workflows.cluster import Cluster

from ..store.fake_model import FakeModel, texts
from .test_cluster import Mortal
from .test_survey import alike

pytestmark = pytest.mark.slow
EVERY = [Count(), Moments(), Magnitudes(), Quantiles(keep=40), TopRows(5), Gram(), CoActivation()]
WANTED = {"blocks.*.mlp.post": EVERY, "blocks.*.attn.q_rot": EVERY, "encoder.out": EVERY, "pooled": [Count(), Moments()]}
OPTIONS = {"batch_tokens": 24, "progress": False}


def test_any_number_of_workers_gives_the_state_of_one_process(ray, tmp_path):
    data = texts(80)
    alone = act.survey(FakeModel(), WANTED, data, **OPTIONS)
    one = act.survey(FakeModel(), WANTED, data, on=Cluster(workers=1, threads=1), **OPTIONS)
    marker = tmp_path / "died"
    two = act.survey(Mortal(str(marker)), WANTED, data, on=Cluster(workers=2, threads=1), **OPTIONS)
    assert marker.exists()  # a worker was killed on the way, and its batches ran again
    alike(one, two, bits=True)
    alike(alone, two)


def test_a_store_is_surveyed_by_workers(ray, tmp_path):
    store = act.capture(FakeModel(), texts(80), list(WANTED), tmp_path / "s.acts", shard_bytes=3000, **OPTIONS)
    assert len(list((store.path / "shards").iterdir())) > 16  # several portions of eight
    here = act.survey(store, WANTED, progress=False)
    there = act.survey(act.open(store.path), WANTED, on=Cluster(workers=2, threads=1), progress=False)
    alike(here, there)
    assert there["pooled"]["Count"].rows == 80


def test_what_lies_in_memory_stays_here():
    kept = act.capture(FakeModel(), texts(3), ["pooled"], progress=False)
    with pytest.raises(InputError, match=r"in the memory of this process\. on= needs a model with data, or a store"):
        act.survey(kept, {"pooled": [Count()]}, on="ray", progress=False)
