"""A server in this process, over a real socket, whose videos are made of functions in place of a network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import openai
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.conditionings import ImageConditioning, TextConditioning
from mutoscope.policy import Policy
from mutoscope.request import OutputOptions, RuntimeOptions
from mutoscope.server.app import make_app
from mutoscope.server.listening import Server, address_of, listen, tls_context
from mutoscope.server.options import ServeOptions
from mutoscope.server.service import Service
from mutoscope.server.studio import Studio
from mutoscope_engines.onnx_file import read_onnx_file
from mutoscope_engines.session import Host, Session, SessionOptions
from mutoscope_engines.testing import FakeBackend, FakeSession

from tests.runtime.server.picturing import written

CIRCLE = "a red circle moving right on a black background"
SMALL = {"height": 32, "width": 64, "num_frames": 5, "num_inference_steps": 4, "seed": 7}


class Gate:
    """Lets the steps of videos through: all, or as many as a test says."""

    def __init__(self) -> None:
        self.steps = 0  # that were begun
        self.raises: Exception | None = None
        self._open = threading.Event()
        self._open.set()
        self._allowed = threading.Semaphore(0)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()
        self._allowed.release(1000)

    def forget(self) -> None:
        """What was allowed and not used."""
        self._allowed = threading.Semaphore(0)

    def allow(self, steps: int) -> None:
        self._allowed.release(steps)

    def step(self) -> None:
        """A step begins."""
        self.steps += 1
        if self.raises is not None:
            raise self.raises
        if not self._open.is_set():
            assert self._allowed.acquire(timeout=60)


def encoded(frames: Any) -> dict[str, Any]:
    """Zeros for a picture `[1, H, W, 3]`; no size of them can be told from the names of its axes."""
    return {"condition": np.zeros((4, 1, frames.shape[1] // 8, frames.shape[2] // 8), np.float32)}


class GatedBackend(FakeBackend):
    """Zeros for every graph; what ends a step waits at a gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__({"vae_encoder_first": encoded})
        self.gives_zeros = True
        self.gate = gate

    def function_of(self, graph: Path) -> Any:
        function = super().function_of(graph)
        if graph.parent.name != "vae_encoder_first" or len(read_onnx_file(graph).outputs) == 1:
            return function

        def followed(frames: Any) -> dict[str, Any]:
            """One whose cache another call takes."""
            condition = encoded(frames)["condition"]
            return {"condition": condition, "cache_0": np.zeros((1, 2, *condition.shape[2:]), np.float32)}

        return followed

    def open(self, graph: Path, options: SessionOptions) -> Session:
        return GatedSession(self, graph, options)


class GatedSession(FakeSession):
    backend: GatedBackend

    def compute(self, arrays: Mapping[str, Host]) -> dict[str, Host]:
        if any(output.name == "next_state" for output in self.outputs):
            self.backend.gate.step()
        return super().compute(arrays)


class Served:
    """A running server."""

    def __init__(self, service: Service, url: str, gate: Gate, token: str | None) -> None:
        self.service, self.url, self.gate = service, url, gate
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=token or "none")

    def make(self, **fields: Any) -> dict[str, Any]:
        """Queues a small video by JSON."""
        answer = self.http.post("/v1/videos", json={"prompt": CIRCLE, **SMALL, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, id: str) -> dict[str, Any]:
        return self.http.get(f"/v1/videos/{id}").json()

    def ended(self, id: str) -> dict[str, Any]:
        """The video, once it has ended."""
        return wait_for(lambda: (video := self.get(id))["state"] not in ("queued", "running") and video)

    def wait_for_step(self, step: int) -> None:
        """Waits until the running video has done as many steps."""
        wait_for(lambda: (live := self.service.worker.live) and live.step >= step)


def wait_for(found: Callable[[], Any], seconds: float = 60) -> Any:
    """What it gives, once that is true. Moments in which this process stands still hardly count."""
    looked = time.monotonic()
    while not (value := found()):
        assert seconds > 0, "it did not come"
        time.sleep(0.01)
        before, looked = looked, time.monotonic()
        seconds -= min(looked - before, 1)
    return value


def from_text_alone(root: Path) -> Bundle:
    """The built-in bundle, as if its model took nothing but text; its graphs are for a fake backend.

    A bundle that is there already is opened.
    """
    if root.exists():
        return Bundle.open(root)
    manifest = Bundle.open(bundle_path(), verify=False).manifest
    texts = tuple(each for each in manifest.conditionings if isinstance(each, TextConditioning))
    others = [each for each in manifest.conditionings if each not in texts]
    encoders = {role for each in others for role in each.roles}
    fed = {
        name for each in others if isinstance(each, ImageConditioning) for name in (*each.feeds.values(), each.given)
    }
    graphs = tuple(
        msgspec.structs.replace(graph, inputs=tuple(each for each in graph.inputs if each.name not in fed), weights=())
        for graph in manifest.graphs
        if graph.role not in encoders
    )
    return written(root, msgspec.structs.replace(manifest, conditionings=texts, graphs=graphs, lora_forms=()))


@contextmanager
def running(
    folder: Path,
    *,
    token: str | None = None,
    policy: Policy | None = None,
    gate: Gate | None = None,
    bundles: Mapping[str, Bundle] | None = None,
    **options: Any,
) -> Iterator[Served]:
    """A server for the length of a `with`.

    Args:
        folder: of its data.
        bundles: the built-in one by default, with text alone.
        options: fields of `ServeOptions`.
    """
    gate = gate or Gate()
    said = ServeOptions(**{"port": 0, "free_disk": 1, **options})
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    studio = Studio(
        bundles=bundles or {"built-in": from_text_alone(folder / "bundle")},
        options=RuntimeOptions(backend=GatedBackend(gate), precision="fp32"),
        output=OutputOptions(),
        folder=folder / "videos",
        attempts=said.attempts,
        free_disk=said.free_disk,
        loras_folder=said.loras,
    )
    service = Service(studio, said, policy)
    service.start()
    found = listen(said)
    tls = tls_context(said)
    server = Server(make_app(service, token, kling=said.kling({})), found, stopping=service.events.close, tls=tls)
    thread = threading.Thread(target=server.serve_until_the_end)
    thread.start()
    wait_for(lambda: server.started)
    served = Served(service, address_of(found, tls is not None)["url"], gate, token)
    try:
        with served.http, served.openai:
            yield served
    finally:
        gate.open()
        server.end()
        thread.join()
        service.stop()
        found.close()
