"""Workers on the machines of a Ray cluster, each an actor that runs the loop of `worker.work`.

Knows Ray and the loop. The shared folder alone decides who makes what: an actor is given the whole batch and claims
its videos there, so that nothing waits for an actor that is lost. Imported only where Ray is asked for.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol

from mutoscope_engines.system.machine import usable_cores

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..errors import BackendUnavailableError, MutoscopeError, RequestError
from ..pipeline import Pipeline
from .processes import ENDS_WITHIN_S, LOOK_EVERY_S, LostWorkers, shared
from .store import Store
from .task import SETTING, Batch
from .worker import Watch, work

AUTO = "auto"  # the cluster that this machine belongs to
ANSWERS_WITHIN_S = 10.0
ON_A_GPU = frozenset({"tensorrt-rtx", "tensorrt", "onnxruntime-cuda"})


class WorkerError(MutoscopeError):
    """What a worker on another machine could not go on with; has the exit code of its error there."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # of each one, not of the class


@dataclass(frozen=True)
class Refusal:
    """An error of an actor, as it is sent: not every error can be, and the other machine may not know its type."""

    message: str
    exit_code: int


@dataclass(frozen=True)
class Assignment:
    """What an actor is sent.

    Attributes:
        batch: with the threads of one actor.
        begun: when the folder was begun, in whole seconds of its share: tells it from another folder of that name.
        builtin: whether to take the bundle that comes with the installation, wherever that lies there.
    """

    batch: Batch
    begun: int
    builtin: bool


class WorkerActor:
    """Works when it is told to, until it is asked to stop, which Ray calls in another thread."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def begin(self) -> None:
        """Answers as soon as this actor has its place."""

    def stop(self) -> None:
        """Ends the work at the next step."""
        self._stopped.set()

    def work(self, assignment: Assignment) -> Refusal | None:
        """Works until each video is finished or left alone. Gives the error that it cannot go on with, if any."""
        try:
            work(_at_home(assignment), self._watch)
        except MutoscopeError as error:
            return Refusal(f"on {platform.node()}: {error}", error.exit_code)
        except KeyboardInterrupt:
            pass  # as it was asked to
        return None

    def _watch(self) -> None:
        if self._stopped.is_set():
            raise KeyboardInterrupt


class Actor(Protocol):
    """An actor that was started, perhaps one that waits for a free place in the cluster."""

    def finished(self) -> bool | None:
        """Whether it did its work: `None` while it works, `False` where it was lost.

        Raises:
            WorkerError: it cannot go on.
        """

    def end(self, within_s: float) -> None:
        """Asks it to stop, and ends it after so many seconds."""


def run_on_ray(batch: Batch, store: Store, watch: Watch) -> None:
    """Works with as many actors as the batch has workers, on the cluster that its options name.

    Args:
        batch: with the options of one worker, as they were given.
        store: its folder.
        watch: called often; what it raises stops all actors.

    Raises:
        BackendUnavailableError: Ray is not installed.
        RequestError: the cluster cannot be reached, or has no place for the actors.
        WorkerError: an actor cannot go on; all others are stopped.
        WorkersLostError: more were lost than a video has attempts, and no video was finished or failed meanwhile.
    """
    library = _connected(batch.options.ray or AUTO)
    try:
        needs_gpu = batch.setting["backend"] in ON_A_GPU
        nodes = [node["Resources"] for node in library.nodes() if node["Alive"]]
        threads = batch.runtime.threads or threads_each([int(node.get("CPU", 0)) for node in nodes], batch)
        refuse_without_place(nodes, threads, needs_gpu)
        assignment = assignment_of(replace(batch, runtime=replace(batch.runtime, threads=threads)))
        # A restart or retry by Ray would bind the work to one actor; `supervise` starts another instead.
        kind = library.remote(
            num_cpus=threads, num_gpus=int(needs_gpu), max_restarts=0, max_task_retries=0, max_concurrency=2
        )(WorkerActor)
        supervise(lambda: _RayActor(library, kind, assignment), batch, store, watch)
    finally:
        library.shutdown()


def supervise(start: Callable[[], Actor], batch: Batch, store: Store, watch: Watch) -> None:
    """Keeps as many actors as the batch has workers until one of them finds nothing left to do; as `run_on_ray`
    raises."""
    running = [start() for _ in range(batch.options.workers)]
    lost = LostWorkers(batch, store)
    try:
        while True:
            time.sleep(LOOK_EVERY_S)
            watch()
            for place, actor in enumerate(running):
                finished = actor.finished()
                if finished:  # nothing is left; others may wait for a place in the cluster for ever
                    return
                if finished is False:
                    lost.add("see the logs of the cluster")
                    running[place] = start()
    finally:
        deadline = time.monotonic() + ENDS_WITHIN_S
        threads = [
            threading.Thread(target=actor.end, args=(max(0.0, deadline - time.monotonic()),)) for actor in running
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def threads_each(cpus: Sequence[int], batch: Batch) -> int:
    """The most threads with which all workers of a batch find a place.

    Args:
        cpus: of each machine of the cluster.
        batch: how many workers there are to be.

    Raises:
        RequestError: there are fewer CPUs than workers.
    """
    workers = batch.options.workers
    for threads in range(max(cpus, default=0), 0, -1):
        if sum(count // threads for count in cpus) >= workers:
            return threads
    raise RequestError(f"workers={workers} is more than the cluster has CPUs, {sum(cpus)}; ask for fewer")


def assignment_of(batch: Batch) -> Assignment:
    """What the actors of a batch are sent. Its paths hold on every machine."""
    begun = int((batch.out / SETTING).stat().st_mtime)
    builtin = batch.bundle.resolve() == bundle_path().resolve()
    return Assignment(replace(batch, out=batch.out.resolve(), bundle=batch.bundle.resolve()), begun, builtin)


def _at_home(assignment: Assignment) -> Batch:
    """The batch as this machine does it.

    Raises:
        RequestError: this machine does not see the folder.
        BundleError: nor the bundle.
    """
    batch = assignment.batch
    begun = None
    with suppress(OSError):
        begun = int((batch.out / SETTING).stat().st_mtime)
    if begun != assignment.begun:
        raise RequestError(
            f"{batch.out} is not the folder of this batch here; choose one that all machines of the cluster share "
            "under the same path"
        )
    batch = replace(batch, bundle=bundle_path()) if assignment.builtin else batch
    runtime = batch.runtime
    if runtime.memory_limit is None and batch.setting["backend"] not in ON_A_GPU:
        with Pipeline(Bundle.open(batch.bundle), runtime) as pipeline:
            equal = shared(pipeline.settled, max(1, usable_cores() // (runtime.threads or 1)))
        runtime = replace(runtime, memory_limit=equal.memory_limit)
    return replace(batch, runtime=runtime)


def refuse_without_place(nodes: Sequence[dict[str, float]], threads: int, needs_gpu: bool) -> None:
    """
    Raises:
        RequestError: no machine has what one worker takes.
    """
    if not any(node.get("CPU", 0) >= threads and (node.get("GPU", 0) >= 1 or not needs_gpu) for node in nodes):
        wanted = f"{threads} CPUs" + (" and a GPU" if needs_gpu else "")
        raise RequestError(f"no machine of the cluster has {wanted} for a worker; add one, or lower threads")


def _connected(address: str) -> Any:
    """Ray, once it is connected.

    Raises:
        BackendUnavailableError: it is not installed.
        RequestError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported; it reports to its makers
    try:
        import ray
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"ray={address!r} needs {error.name}, which is not installed; run: pip install 'mutoscope[ray]'"
        ) from error
    if address != AUTO:
        refuse_unreachable(address)
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        cause = " ".join(str(error).split())
        raise RequestError(f"no Ray cluster answers at {address}: {cause}; start a head node of Ray") from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process without tidying up
    # Whatever it was told above, Ray prints there what it hears of lost actors, amid our lines for a program.
    vars(import_module("ray._private.worker"))["_worker_logs_enabled"] = False
    return ray


def refuse_unreachable(address: str) -> None:
    """Asks first, because Ray itself waits long for a machine that is not there.

    Raises:
        RequestError: this is no address, or nothing answers there.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise RequestError(
            f"ray={address!r} is not the address of a cluster; give HOST:PORT as the head node prints it at its "
            f"start, or {AUTO} on a machine of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise RequestError(
            f"no Ray cluster answers at {address}: {error}; start a head node of Ray, and name the address that it "
            "prints"
        ) from error


class _RayActor:
    """An actor of Ray's with its only call."""

    def __init__(self, library: Any, kind: Any, assignment: Assignment) -> None:
        self._library = library
        self._actor = kind.remote()
        self._begun = self._actor.begin.remote()
        self._call = self._actor.work.remote(assignment)

    def finished(self) -> bool | None:
        if not self._has(self._call):
            return None
        errors = self._library.exceptions
        try:
            refusal = self._library.get(self._call)
        except errors.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                raise _on_a_node(error) from error
            return False
        except errors.RayTaskError as error:
            raise _on_a_node(error) from error
        except errors.RayError:
            return False
        if refusal is not None:
            raise WorkerError(refusal.message, refusal.exit_code)
        return True

    def end(self, within_s: float) -> None:
        errors = self._library.exceptions
        with suppress(errors.RayError):
            if self._has(self._begun) and not self._has(self._call):
                self._actor.stop.remote()
                self._has(self._call, within_s)
        with suppress(errors.RayError):
            self._library.kill(self._actor)

    def _has(self, answer: Any, within_s: float = 0.0) -> bool:
        ready, _ = self._library.wait([answer], timeout=within_s)
        return bool(ready)


def _on_a_node(error: Exception) -> WorkerError:
    """A fault of the installation there, or of ours."""
    last = str(error).strip().splitlines()[-1]
    return WorkerError(f"a worker could not run on its machine: {last}; install the same versions on all machines", 1)
