"""Ray: the rows of one process to the byte, whatever dies on the way; a cluster that is not there says so quickly."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import activarium as act
from activarium import testing
from activarium.errors import ClusterError, InputError, MissingExtra, NotFinite, StoreError
from activarium.store import StoreWriter, open_store
from activarium.workflows import cluster as cluster_module
from activarium.workflows.capture import capture, plan
from activarium.workflows.cluster import Cluster, cluster_of

from ..store.fake_model import FakeModel, texts

ROOT = str(Path(__file__).parents[2])
SITES = ["blocks.*.resid_post", "blocks.*.attn.pattern", "encoder.out", "pooled"]
OPTIONS = {"batch_tokens": 64, "shard_bytes": 40_000, "progress": False}
TWO = Cluster(workers=2, threads=1)

slow = pytest.mark.slow


def files(store):
    """Every file that rows lie in, and every commit."""
    found = {p.relative_to(store.path).as_posix(): p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    lines = [json.loads(line) for line in found.pop("journal.jsonl").splitlines()]
    commits = [{k: v for k, v in line.items() if k not in ("session", "line")} for line in lines if line["kind"] == "commit"]
    return found, commits


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same capture in one process."""
    store = capture(FakeModel(), texts(80), SITES, tmp_path_factory.mktemp("alone") / "s.acts", **OPTIONS)
    assert len(store._journal.commits) > 3
    return files(store)


@slow
def test_the_same_files_as_one_process(ray, tmp_path, alone):
    store = capture(FakeModel(slow=0.02), texts(80), SITES, tmp_path / "s.acts", on=TWO, **OPTIONS)
    assert files(store) == alone
    assert store.verify().leftovers == ()
    assert not (tmp_path / "s.acts" / "incoming").exists()


@slow
def test_a_real_model_travels(ray, tmp_path):
    """Weights, tokenizer and certificate reach the workers; text and labels are those of one process."""
    model = act.wrap(*testing.tiny("llama"), name="tiny")
    data = {"text": ["the cat sat", "a dog", "the dog ran home", "a cat", "the cat ran"] * 3, "label": [0, 1, 2, 3, 4] * 3}
    options = {"batch_tokens": 8, "shard_bytes": 4000, "progress": False, "dtype": "bfloat16"}
    one = capture(model, data, ["blocks.*.mlp.post", "logits"], tmp_path / "one.acts", **options)
    two = capture(model, data, ["blocks.*.mlp.post", "logits"], tmp_path / "two.acts", on=TWO, **options)
    assert len(one._journal.commits) > 3
    assert files(one) == files(two)
    assert set(two.rows[""]["label"]) == {0, 1, 2, 3, 4}
    assert "cat" in two.rows[""]["text"]


class Mortal(FakeModel):
    """Dies without a word, as a killed process does, when it meets one example; the first time only, if it can write that down."""

    def __init__(self, marker, *, example=17):
        super().__init__(slow=0.02)
        self.marker, self.example = marker, example

    def run(self, inputs, read):
        if self.example in inputs.numbers and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).write_text("died here")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(inputs, read)


@slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_doubled(ray, tmp_path, alone):
    marker = tmp_path / "died"
    store = capture(Mortal(str(marker)), texts(80), SITES, tmp_path / "s.acts", on=TWO, **OPTIONS)
    assert marker.exists()
    assert files(store) == alone
    assert store.verify().leftovers == ()


@slow
def test_work_that_kills_every_worker_is_given_up_and_the_rest_can_go_on(ray, tmp_path, alone):
    with pytest.raises(
        ClusterError, match=r"A worker died 2 times over the same work, .* Give workers more memory or smaller batches, and run"
    ):
        capture(Mortal(None), texts(80), SITES, tmp_path / "s.acts", on=Cluster(workers=2, threads=1, retries=1), **OPTIONS)
    if (tmp_path / "s.acts" / "manifest.act.json").exists():
        open_store(tmp_path / "s.acts").verify()
    assert files(capture(FakeModel(), texts(80), SITES, tmp_path / "s.acts", **OPTIONS)) == alone


@slow
def test_an_error_in_a_worker_keeps_its_words_and_what_came_before(ray, tmp_path, alone):
    spoilt = FakeModel(spoil=("pooled", 17, float("inf")))
    with pytest.raises(NotFinite, match=r"pooled holds infinity in example 17 "):
        capture(spoilt, texts(80), SITES, tmp_path / "s.acts", on=TWO, **OPTIONS)
    assert not (tmp_path / "s.acts" / "writer.lock").exists()
    store = capture(FakeModel(), texts(80), SITES, tmp_path / "s.acts", **OPTIONS)
    assert files(store) == alone
    assert store.verify().leftovers == ()


DRIVER = """
import sys
from tests.workflows.test_cluster import FakeModel, OPTIONS, SITES, TWO, capture, texts
capture(FakeModel(slow=0.3), texts(80), SITES, sys.argv[1], on=TWO, **OPTIONS)
print("finished", flush=True)
"""


@slow
def test_a_killed_driver_goes_on(ray, tmp_path, alone):
    """On the cluster or in one process, whichever is there next."""
    path = tmp_path / "s.acts"
    journal = path / "journal.jsonl"
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(path)], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:
        deadline = time.monotonic() + 90
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 2) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert "finished" not in process.communicate()[0]
    held = open_store(path)
    held.verify()
    assert 0 < held.examples < 80
    shutil.copytree(path, tmp_path / "copy.acts")
    assert files(capture(FakeModel(), texts(80), SITES, tmp_path / "copy.acts", **OPTIONS)) == alone
    store = capture(FakeModel(), texts(80), SITES, path, on=TWO, **OPTIONS)
    assert files(store) == alone
    assert store.verify().leftovers == ()


@slow
def test_two_drivers_on_one_store(ray, tmp_path):
    writer = StoreWriter(tmp_path / "s.acts", plan(FakeModel(), texts(80), "pooled").draft({}, {}))
    with pytest.raises(StoreError, match=rf"s.acts is being written by process {os.getpid()} on .* Wait for it to end"):
        capture(FakeModel(), texts(80), "pooled", tmp_path / "s.acts", on=TWO, **OPTIONS)
    writer.abort()


@slow
def test_a_folder_that_workers_do_not_see(ray, tmp_path, monkeypatch):
    worker = StoreWriter.worker

    def elsewhere(self):
        made = worker(self)
        made._folder = tmp_path / "elsewhere" / "s.acts"
        return made

    monkeypatch.setattr(StoreWriter, "worker", elsewhere)
    with pytest.raises(StoreError, match=r"elsewhere/s.acts is not there for the worker on .*: capture into a folder that every machine"):
        capture(FakeModel(), texts(8), "pooled", tmp_path / "s.acts", on=TWO, **OPTIONS)


def tired(model, item):
    time.sleep(0.3 if item == 0 else 0.01)
    return item, os.getpid(), torch.get_num_threads()


def calm(model, item):
    time.sleep(0.2)
    return item


@slow
def test_a_pool_keeps_the_order_and_draws_items_as_it_goes(ray):
    drawn = []

    def items():
        for i in range(12):
            drawn.append(i)
            yield i

    torch.set_num_threads(2)  # here; the workers were given one each
    try:
        with TWO.pool({"model": "anything"}) as pool:
            answers, processes, threads = zip(*pool.map(tired, items()), strict=True)
            assert answers == tuple(range(12))
            assert len(set(processes)) == 2 and os.getpid() not in processes
            assert set(threads) == {1}
            drawn.clear()
            rest = pool.map(calm, items())
            assert next(rest) == 0 and len(drawn) < 6
            assert list(rest) == list(range(1, 12)) and len(drawn) == 12
            assert list(pool.map(tired, [])) == []
    finally:
        torch.set_num_threads(1)


def enter(cluster, model):
    with cluster.pool(model):
        pass


@slow
def test_what_does_not_fit_on_the_cluster(ray, monkeypatch):
    too_many = Cluster(workers=3, threads=1)
    words = r"3 worker\(s\) of 1 thread\(s\) .* do not fit on a cluster of 2 processors and 0 cards. Lower workers="
    with pytest.raises(ClusterError, match=words):
        enter(too_many, FakeModel())
    with pytest.raises(ClusterError, match=r"This lock cannot travel to another process .*. Use a model made by act.load or act.wrap"):
        enter(TWO, threading.Lock())
    monkeypatch.setattr(cluster_module, "versions", lambda: {"torch": "0.0.1"})
    with pytest.raises(ClusterError, match=r"A worker runs torch .* \(here 0.0.1\): its numbers could differ. Install the same versions"):
        enter(Cluster(workers=1, threads=1), FakeModel())


# ------------------------------------------------------------------------------------------------ addresses


class Located(FakeModel):
    """Leaves a mark for the node that it ran on."""

    def __init__(self, marks):
        super().__init__(slow=0.1)
        self.marks = marks

    def run(self, inputs, read):
        import ray

        Path(self.marks, ray.get_runtime_context().get_node_id()).touch()
        return super().run(inputs, read)


NODES = """
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["PYTHONPATH"] = os.pathsep.join([{root!r}, {root!r} + "/toolkit"])
sys.path[:0] = [{root!r}, {root!r} + "/toolkit"]
from ray.cluster_utils import Cluster as Nodes
nodes = Nodes(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
nodes.add_node(num_cpus=1)
from tests.workflows.test_cluster import Located, OPTIONS, SITES, capture, texts
capture(Located(sys.argv[2]), texts(80), SITES, sys.argv[1], on=nodes.address, **(OPTIONS | {{"progress": True}}))
nodes.shutdown()
"""


@slow
def test_two_nodes_by_address(tmp_path, alone):
    """Two raylets, joined by address: both take part, progress is shown, and the files are those of one process."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'activarium[cluster]'")
    (tmp_path / "marks").mkdir()
    command = [sys.executable, "-c", NODES.format(root=ROOT), str(tmp_path / "s.acts"), str(tmp_path / "marks")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "marks").iterdir())) == 2
    assert "80/80" in done.stdout and "rows/s" in done.stdout
    assert files(open_store(tmp_path / "s.acts")) == alone


@pytest.fixture
def silent():
    """Something that listens and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield server.getsockname()[1]


@pytest.fixture
def not_connected(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'activarium[cluster]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    return ray


def test_an_address_where_nobody_listens(not_connected, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    words = (
        rf"No Ray cluster answers at {address} \(.*refused\). Start one with 'ray start --head' and give its address, or use this machine"
    )
    with pytest.raises(ClusterError, match=words):
        capture(FakeModel(), texts(3), "pooled", tmp_path / "s.acts", on=address, progress=False)
    assert time.monotonic() - started < cluster_module.PATIENCE
    assert not list((tmp_path / "s.acts").iterdir())


@slow
def test_an_address_that_stays_silent(not_connected, silent):
    started = time.monotonic()
    with pytest.raises(ClusterError, match=rf"No Ray cluster answers at 127.0.0.1:{silent} \(something listens there, but it is no"):
        enter(Cluster(f"127.0.0.1:{silent}"), None)
    assert time.monotonic() - started < 5 * cluster_module.PATIENCE


def test_a_cluster_that_does_not_let_us_in(not_connected, monkeypatch):
    def nothing(**_):
        raise ConnectionError("Could not find any running Ray instance.\nPlease start one.")

    monkeypatch.setattr(not_connected, "init", nothing)
    monkeypatch.setattr(cluster_module, "_answers", lambda address: None)
    words = r"No Ray cluster answers at 10.0.0.5:6379 \(Could not find any running Ray instance.\). Start one with 'ray start --head' .* on='ray'"
    with pytest.raises(ClusterError, match=words):
        enter(Cluster("10.0.0.5:6379"), None)


def test_this_machine_means_this_machine(not_connected, monkeypatch):
    """Somebody else's Ray is not joined by accident; RAY_ADDRESS names one on purpose."""
    asked = []
    monkeypatch.setattr(not_connected, "init", lambda **options: asked.append(options["address"]))
    monkeypatch.setattr(cluster_module, "_answers", lambda address: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_module._connect("")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert cluster_module._connect("")
    assert cluster_module._connect("10.0.0.5:6379")
    assert asked == ["local", "10.0.0.7:6379", "10.0.0.5:6379"]


def test_one_process_joins_one_cluster():
    cluster_module._same_cluster("", "10.0.0.5:6379")
    cluster_module._same_cluster("10.0.0.5:6379", "10.0.0.5:6379")
    cluster_module._same_cluster("localhost:6379", "127.0.0.1:6379")
    with pytest.raises(
        ClusterError, match=r"has joined the Ray cluster at 10.0.0.5:6379, so it cannot join 10.0.0.6:6379. Leave it first: ray.shutdown"
    ):
        cluster_module._same_cluster("10.0.0.6:6379", "10.0.0.5:6379")


def test_addresses_that_are_none():
    for on in ("dask", "", "rays", "auto"):
        with pytest.raises(InputError, match=rf"on='{on}' names no cluster. Choose 'ray' for this machine"):
            cluster_of(on)
    assert cluster_of("ray") == Cluster()
    assert cluster_of("10.0.0.5:6379") == Cluster(address="10.0.0.5:6379")
    assert cluster_of(TWO) is TWO
    for address in ("ray://host", "host:port", ":1"):
        with pytest.raises(InputError, match=r"is no address of a cluster; wanted host:port as in"):
            cluster_module._answers(address)


def test_memory_and_clusters_do_not_go_together():
    with pytest.raises(InputError, match=r"on= and append= need a folder: pass to='name.acts', on a disk that every worker sees"):
        capture(FakeModel(), texts(4), "pooled", on="ray", progress=False)


def test_without_ray(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"needs Ray, which is not installed here. pip install 'activarium\[cluster\]'"):
        capture(FakeModel(), texts(4), "pooled", tmp_path / "s.acts", on="ray", progress=False)


def test_rays_client_is_a_package_of_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(MissingExtra, match=r"Addresses that begin with ray:// need Ray's client. pip install 'ray\[client\]'"):
        cluster_module._needs_client()
