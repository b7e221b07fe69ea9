"""Workers that each hold one model, on this machine or on a Ray cluster; results come back in the order of the items."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from activarium._recorded import versions
from activarium.errors import ActivariumError, ClusterError, InputError, MissingExtra

PATIENCE = 5.0  # seconds until a machine must have answered
STARTING = 120.0  # seconds until the first worker must have started: a model may be large
Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Cluster:
    """Where work is spread.

    Attributes:
        address: Of a running Ray cluster, `"10.0.0.5:6379"` or `"ray://10.0.0.5:10001"`; empty for the Ray that this process is
            connected to or that RAY_ADDRESS names, or else processes on this machine.
        workers: How many, each with a model of its own; by default as many as processors or graphics cards allow.
        threads: Processors per worker; by default the threads torch uses here, so that the numbers come out the same to the bit.
        gpus: Graphics cards per worker; by default one if the model is on one.
        retries: How often the same item may lose its worker.
    """

    address: str = ""
    workers: int | None = None
    threads: int | None = None
    gpus: float | None = None
    retries: int = 3

    @contextmanager
    def pool(self, model: Any, *, most: int | None = None) -> Iterator[Pool]:
        """Start workers that hold this model; they end with the `with` block.

        Args:
            model: Travels once, through Ray's object store.
            most: No more workers than this: there is not more to do.

        Raises:
            ClusterError: No cluster answers, it is too small, or no worker starts.
            MissingExtra: Ray is not installed.
        """
        ours = _connect(self.address)
        try:
            pool = Pool(self, model, most)
            try:
                yield pool
            finally:
                pool.close()
        finally:
            if ours:
                _ray().shutdown()


def cluster_of(on: str | Cluster) -> Cluster:
    """The cluster that `on=` names.

    Raises:
        InputError: It names none.
    """
    if isinstance(on, Cluster):
        return on
    if on == "ray":
        return Cluster()
    if ":" in on:
        return Cluster(address=on)
    raise InputError(f"on={on!r} names no cluster. Choose 'ray' for this machine, an address 'host:6379', or act.Cluster(…).")


class Pool:
    """Workers of one cluster, all with the same model. Made by `Cluster.pool`.

    Attributes:
        workers: How many there are.
    """

    def __init__(self, cluster: Cluster, model: Any, most: int | None) -> None:
        ray = _ray()
        threads = cluster.threads or torch.get_num_threads()
        gpus = cluster.gpus if cluster.gpus is not None else float(str(getattr(model, "device", "cpu")).startswith("cuda"))
        count = _room(cluster, threads, gpus, most)
        options = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": cluster.retries}
        self._retries = cluster.retries
        kind = ray.remote(_Worker).options(**options)
        self._model = [_packed(model)]  # in a list, so that a worker fetches it once and not with every item
        self._actors = _started([kind.remote(threads) for _ in range(count)], threads)
        self.workers = len(self._actors)

    def map(self, function: Callable[[Any, Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
        """`function(model, item)` for every item, in the order of the items, whoever is done first.

        An item whose worker dies runs again on another one, so the function must not mind being repeated. Items are drawn
        as workers become free, so that they need not all be in memory.

        Raises:
            ClusterError: An item lost its worker too often.
            ActivariumError: Whatever the function raises.
        """
        from ray.util import ActorPool

        pool, early, expected = ActorPool(self._actors), {}, 0
        model = self._model
        for number, item in enumerate(items):
            if not pool.has_free():
                early.update([self._next(pool)])
            pool.submit(lambda actor, job: actor.work.remote(model, function, *job), (number, item))
            while expected in early:
                yield early.pop(expected)
                expected += 1
        while pool.has_next() or early:
            if expected not in early:
                early.update([self._next(pool)])
            while expected in early:
                yield early.pop(expected)
                expected += 1

    def _next(self, pool: Any) -> tuple[int, Any]:
        from ray.exceptions import GetTimeoutError, RayError, RaySystemError, RayTaskError

        try:
            number, error, answer = pool.get_next_unordered()
        except RayTaskError:
            raise  # a mistake in the function: its own traceback says most
        except (RaySystemError, GetTimeoutError, RayError) as reason:
            raise ClusterError(
                f"A worker died {self._retries + 1} times over the same work, or its cluster went away ({_first_line(reason)}). "
                "What is finished is kept. Give workers more memory or smaller batches, and run the same call again to go on."
            ) from reason
        if error is not None:
            raise error
        return number, answer

    def close(self) -> None:
        """End the workers."""
        for actor in self._actors:
            _ray().kill(actor)
        self._actors = []


class _Worker:
    """Lives in a process of its own."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model: list[Any] = []

    def versions(self) -> dict[str, str]:
        return versions()

    def work(
        self, model: list[Any], function: Callable[[Any, Any], Any], number: int, item: Any
    ) -> tuple[int, ActivariumError | None, Any]:
        if not self._model:
            self._model = _ray().get(model)
        try:
            return number, None, function(self._model[0], item)
        except ActivariumError as error:  # words for the user, who needs no traceback of another machine
            return number, error, None


def _ray() -> Any:
    try:
        import ray
    except ImportError as reason:
        raise MissingExtra("Spreading work needs Ray, which is not installed here. pip install 'activarium[cluster]'") from reason
    return ray


def _connect(address: str) -> bool:
    """Join the cluster; True if this call did, and so has to leave it."""
    # Nothing is reported to anybody, and workers see the graphics cards that torch sees.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = _ray()
    if ray.is_initialized():
        _same_cluster(address, ray.get_runtime_context().gcs_address)
        return False
    if address.startswith("ray://"):
        _needs_client()
    address = address or os.environ.get("RAY_ADDRESS", "")
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address:
        _answers(address)
    else:
        quiet["include_dashboard"] = False
    try:
        # A Ray that others started on this machine is joined only by its address.
        ray.init(address=address or "local", **quiet)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as reason:
        raise _silent(address or "this machine", _first_line(reason)) from reason
    return True


def _same_cluster(address: str, joined: str) -> None:
    host, _, port = address.rpartition(":")
    if address and "://" not in address and (_ip(host), port) != (_ip(joined.rpartition(":")[0]), joined.rpartition(":")[2]):
        raise ClusterError(
            f"This process has joined the Ray cluster at {joined}, so it cannot join {address}. Leave it first: ray.shutdown()."
        )


def _ip(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host


def _needs_client() -> None:
    try:
        import grpc  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as reason:
        raise MissingExtra("Addresses that begin with ray:// need Ray's client. pip install 'ray[client]'") from reason


def _answers(address: str) -> None:
    """Is there a Ray? Asked in a process that can be ended: a connection that stays silent would hold this one for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"{address!r} is no address of a cluster; wanted host:port as in 'ray://10.0.0.5:10001' or '10.0.0.5:6379'.")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as reason:
        raise _silent(address, str(reason)) from reason
    if address.startswith("ray://"):
        return
    ask = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "health-check", "--address", f"{host}:{port}"]
    try:
        done = subprocess.run([*ask, "--skip-version-check"], capture_output=True, timeout=3 * PATIENCE, check=False)
    except subprocess.TimeoutExpired as reason:
        raise _silent(address, "something listens there, but it is no Ray") from reason
    if done.returncode:
        raise _silent(address, "something listens there, but it is no healthy Ray")


def _silent(address: str, reason: str) -> ClusterError:
    return ClusterError(
        f"No Ray cluster answers at {address} ({reason}). Start one with 'ray start --head' and give its address, or use this machine: on='ray'."
    )


def _room(cluster: Cluster, threads: int, gpus: float, most: int | None) -> int:
    have = _ray().cluster_resources()
    fit = int(have.get("CPU", 0) // threads)
    if gpus:
        fit = min(fit, int(have.get("GPU", 0) // gpus))
    if fit < max(cluster.workers or 1, 1):
        raise ClusterError(
            f"{cluster.workers or 1} worker(s) of {threads} thread(s) and {gpus:g} graphics card(s) do not fit on a cluster of "
            f"{have.get('CPU', 0):g} processors and {have.get('GPU', 0):g} cards. Lower workers= or threads= of act.Cluster."
        )
    return max(1, min(cluster.workers or fit, fit if most is None else most))


def _packed(model: Any) -> Any:
    try:
        return _ray().put(model)
    except (TypeError, AttributeError, ValueError) as reason:
        raise ClusterError(
            f"This {type(model).__name__} cannot travel to another process ({_first_line(reason)}). Use a model made by act.load or act.wrap."
        ) from reason


def _started(actors: list[Any], threads: int) -> list[Any]:
    """Those that came up in time, with the versions that this process has."""
    ray = _ray()
    asked = {actor.versions.remote(): actor for actor in actors}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=STARTING)
    for answer in late:
        ray.kill(asked[answer])
    if not ready:
        free = ray.available_resources().get("CPU", 0)
        raise ClusterError(
            f"No worker started within {STARTING:.0f} s: {free:g} processors are free, each worker takes {threads}. Wait, or choose fewer threads."
        )
    here = versions()
    try:
        for there in ray.get(ready):
            other = {k: (v, here[k]) for k, v in there.items() if k in here and v != here[k]}
            if other:
                words = ", ".join(f"{k} {a} (here {b})" for k, (a, b) in other.items())
                raise ClusterError(f"A worker runs {words}: its numbers could differ. Install the same versions on every machine.")
    except ray.exceptions.RayError as reason:
        raise ClusterError(
            f"A worker could not start ({_first_line(reason)}). Every machine needs activarium and the model's packages."
        ) from reason
    return [asked[answer] for answer in ready]


def _first_line(reason: BaseException) -> str:
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return (lines[0] if lines else type(reason).__name__)[:200]
