"""How an engine is found, loaded and set up. What the library itself does is pretended."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.identity import ShapeRange, content_of
from mutoscope_engines.cache.installation_key import default_key_path, make_key
from mutoscope_engines.cache.record import EngineReport
from mutoscope_engines.cache.shipped import ShippedEngines, ship
from mutoscope_engines.errors import BackendUnavailableError
from mutoscope_engines.session import EngineWanted, SessionOptions
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt.backend import TensorRtBackend
from mutoscope_engines.tensorrt.kernel_cache import KEPT_S, KernelCache
from mutoscope_engines.tensorrt.session import TensorRtSettings

from tests.engines.fake_tensorrt import FakeTensorRt, engine_of
from tests.engines.host_device import HostDevice
from tests.engines.opened_files import opened_files

pytest.importorskip("tensorrt_rtx", reason="its version is a part of every engine's identity")

REPORT = EngineReport(
    graph="denoiser",
    target="rtx40",
    precision="bf16",
    activation_bytes=1000,
    weight_bytes=400,
    engine_bytes=10,
    build_s=1.0,
    host_peak_bytes=1,
)


class BackendOnHost(TensorRtBackend):
    def __init__(self, folder: Path) -> None:
        super().__init__("tensorrt-rtx", target=find_target("rtx40"))
        self.on_host = HostDevice()
        self.engines = EngineCache(folder / "engines", key_path=folder / "engine.key")
        self.trt = FakeTensorRt(self.on_host)
        self.library = replace(self.library)
        self.library.__dict__["module"] = self.trt  # the library is a cached property of it

    def device(self, options: SessionOptions) -> Any:
        return self.on_host

    def cache(self) -> EngineCache:
        return self.engines


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BackendOnHost:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return BackendOnHost(tmp_path)


@pytest.fixture
def build(backend: BackendOnHost, sum_and_product: Path):
    """Puts an engine of `sum_and_product` into the cache, for matrices from 1x1 to `largest`."""

    def publish(
        largest: tuple[int, int] = (64, 64), *, target: str = "rtx40", streams: bool = False, **report: Any
    ) -> str:
        shapes = ShapeRange((1, 1), largest, largest)
        identity = backend.library.identity(
            content_of(sum_and_product),
            "bf16",
            [find_target(target)],
            {"a": shapes, "b": shapes},
            weight_streaming=streams,
        )
        with backend.engines.reserve(identity) as slot:
            content = engine_of(sum_and_product)
            slot.partial.write_bytes(content)
            slot.publish(replace(REPORT, **report), hashlib.sha256(content).hexdigest())
        return identity.digest

    return publish


def wanted(graph: Path, *shape: int) -> EngineWanted:
    return EngineWanted("bf16", content_of(graph), {"a": shape, "b": shape} if shape else {}, stored_bytes=1000)


def options(graph: Path, *shape: int, **given: Any) -> SessionOptions:
    return SessionOptions(engine=wanted(graph, *shape), **given)


def test_the_engine_of_a_graph_is_found_and_runs(backend, build, sum_and_product) -> None:
    build()
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    with backend.open(sum_and_product, options(sum_and_product, 2, 3)) as session:
        np.testing.assert_array_equal(session.run({"a": a, "b": a})["sum"].numpy(), a + a)


def test_without_an_engine_the_next_step_is_to_build_one(backend, sum_and_product) -> None:
    with pytest.raises(BackendUnavailableError, match=r"has not built any\. Build it") as refusal:
        backend.open(sum_and_product, options(sum_and_product, 2, 3))
    assert refusal.value.exit_code == 4


@pytest.mark.parametrize(
    ("asked", "component"), [({"target": "rtx50"}, "compute_capabilities"), ({"largest": (2, 2)}, "profile")]
)
def test_a_miss_says_which_part_differs(backend, build, sum_and_product, asked, component) -> None:
    build(**asked)
    with pytest.raises(BackendUnavailableError, match=rf"^graph: .*{component}"):
        backend.figures(sum_and_product, wanted(sum_and_product, 3, 3))


def test_another_graph_of_the_same_name_is_not_served(backend, build, sum_and_product) -> None:
    build()
    sum_and_product.write_bytes(sum_and_product.read_bytes() + b"\n")
    with pytest.raises(BackendUnavailableError, match="files"):
        backend.figures(sum_and_product, wanted(sum_and_product, 2, 2))


def test_figures_are_those_of_the_smallest_engine_that_serves(backend, build, sum_and_product) -> None:
    build((64, 64), activation_bytes=9000)
    build((8, 8), activation_bytes=700)
    small = backend.figures(sum_and_product, wanted(sum_and_product, 8, 8))
    assert (small.weight_bytes, small.activation_bytes, small.largest) == (400, 700, {"a": (8, 8), "b": (8, 8)})
    assert small.streamable_bytes == 0
    assert backend.figures(sum_and_product, wanted(sum_and_product, 9, 8)).activation_bytes == 9000
    assert backend.figures(sum_and_product, wanted(sum_and_product)).activation_bytes == 700


def test_a_plan_reads_each_record_once_for_all_graphs_and_sizes(backend, build, sum_and_product) -> None:
    build()
    build((8, 8))
    build(streams=True)
    with opened_files(backend.engines.folder) as opened:
        now = backend.snapshot()
        for side in range(1, 20):
            now.figures(sum_and_product, wanted(sum_and_product, side, side))
    assert len(opened) == 3 == len(set(opened))


def test_an_engine_that_came_with_the_graph_runs_on_a_machine_that_built_none(
    backend, build, sum_and_product, tmp_path
) -> None:
    build(activation_bytes=700)
    pin = ship(backend.engines.catalogue().records, backend.engines, tmp_path / "shipped")
    elsewhere = BackendOnHost(tmp_path / "elsewhere")
    shipped = ShippedEngines.open(tmp_path / "shipped", [pin])
    asked = replace(wanted(sum_and_product, 2, 3), shipped=shipped)
    assert elsewhere.figures(sum_and_product, asked).activation_bytes == 700
    assert elsewhere.shares_by(SessionOptions(engine=asked))[0] == shipped.catalogue.records[0].identity.digest
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    with elsewhere.open(sum_and_product, SessionOptions(engine=asked)) as session:
        np.testing.assert_array_equal(session.run({"a": a, "b": a})["sum"].numpy(), a + a)
    with pytest.raises(BackendUnavailableError, match=r"has not built any\. Build it"):
        elsewhere.open(sum_and_product, options(sum_and_product, 2, 3))


def test_what_did_not_come_with_the_graph_is_taken_from_the_cache_or_refused_by_what_differs(
    backend, build, sum_and_product, tmp_path
) -> None:
    build((8, 8), activation_bytes=700)
    pin = ship(backend.engines.catalogue().records, backend.engines, tmp_path / "shipped")
    shipped = ShippedEngines.open(tmp_path / "shipped", [pin])
    asked = replace(wanted(sum_and_product, 9, 9), shipped=shipped)
    with pytest.raises(BackendUnavailableError, match=r"no engine in .*shipped fits .* profile: .* not \[9, 9\]"):
        backend.open(sum_and_product, SessionOptions(engine=asked))
    build((16, 16), activation_bytes=900)
    assert backend.figures(sum_and_product, asked).activation_bytes == 900
    a = np.ones((9, 9), np.float32)
    with backend.open(sum_and_product, SessionOptions(engine=asked)) as session:
        np.testing.assert_array_equal(session.run({"a": a, "b": a})["sum"].numpy(), a + a)


def test_a_snapshot_does_not_see_what_is_built_later_and_the_backend_does(backend, build, sum_and_product) -> None:
    before = backend.snapshot()
    build()
    with pytest.raises(BackendUnavailableError, match="has not built any"):
        before.figures(sum_and_product, wanted(sum_and_product, 2, 2))
    assert backend.figures(sum_and_product, wanted(sum_and_product, 2, 2)).weight_bytes == 400


def test_opening_a_session_reads_each_record_once(backend, build, sum_and_product) -> None:
    build()
    with opened_files(backend.engines.folder) as opened:
        session = backend.open(sum_and_product, options(sum_and_product, 2, 3))
    session.close()
    assert len([name for name in opened if name.endswith(".json")]) == 1


def test_weights_stream_where_an_engine_was_built_for_it(backend, build, sum_and_product) -> None:
    build()
    build(streams=True)
    assert backend.figures(sum_and_product, wanted(sum_and_product, 2, 2)).streamable_bytes == 300
    a = np.ones((2, 2), np.float32)
    streamed = options(sum_and_product, 2, 2, streamed_weight_bytes=250)
    with backend.open(sum_and_product, streamed) as session, session.bind() as binding:
        assert backend.trt.engines[-1].weight_streaming_budget_v2 == 1000 - 250
        for _ in range(3):
            binding.run({"a": a, "b": a})
    assert backend.on_host.captures == 0  # such an engine allocates while it runs
    assert backend.shares_by(streamed) != backend.shares_by(options(sum_and_product, 2, 2))


def test_sessions_are_shared_by_the_engine_that_serves_them(backend, build, sum_and_product) -> None:
    build((8, 8), activation_bytes=700)
    build((64, 64), activation_bytes=9000)
    keys = [backend.shares_by(options(sum_and_product, side, side)) for side in (2, 8, 9)]
    assert keys[0] == keys[1] != keys[2]


def test_a_damaged_engine_is_never_loaded(backend, build, sum_and_product) -> None:
    build()
    (engine,) = backend.engines.folder.glob("*.engine")
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    with pytest.raises(BackendUnavailableError, match="damaged"):
        backend.open(sum_and_product, options(sum_and_product, 2, 2))
    assert backend.trt.engines == []


def test_what_the_library_decides_at_run_time_is_set_and_told(backend, build, sum_and_product) -> None:
    build()
    told = backend.settings(SessionOptions())
    assert {name: told[name] for name in asdict(TensorRtSettings())} == {
        "cuda_graph_strategy": "DISABLED",
        "dynamic_shapes_kernel_specialization_strategy": "EAGER",
        "kernel_cache": "True",
    }
    assert "captured by the session" in told["cuda_graph"]
    assert backend.settings(SessionOptions(cuda_graphs=False))["cuda_graph"] == "off"
    backend.open(sum_and_product, options(sum_and_product, 2, 2)).close()
    assert ("set_runtime_cache", "no graphs") in backend.trt.calls


def test_what_was_compiled_for_this_gpu_is_kept_for_the_next_process(backend, build, sum_and_product) -> None:
    build()
    backend.open(sum_and_product, options(sum_and_product, 2, 2)).close()
    assert backend.trt.kernels_of_before is None
    backend.open(sum_and_product, options(sum_and_product, 2, 2)).close()
    assert backend.trt.kernels_of_before == b"compiled kernels"


def test_kernels_that_nobody_used_for_long_go_with_their_engine(backend, build, tmp_path) -> None:
    digest = build()
    KernelCache(backend.engines, "gone").store(b"of an engine that was removed")
    KernelCache(backend.engines, "shipped").store(b"of one that came with a bundle")
    long_ago = time.time() - KEPT_S - 1
    os.utime(backend.engines.folder.parent / "kernels" / "gone.kernels", (long_ago, long_ago))
    KernelCache(backend.engines, digest).store(b"of one that is there")
    KernelCache(backend.engines, "new").store(b"of one that is being used")
    assert {path.stem for path in (tmp_path / "kernels").iterdir()} == {digest, "new", "shipped"}


@pytest.mark.parametrize("key", ["shared", "damaged", "a folder"])
def test_a_session_is_closed_whatever_became_of_the_key_that_signs_its_kernels(
    backend, build, sum_and_product, tmp_path, key: str
) -> None:
    build()
    path = default_key_path()
    make_key(path)
    session = backend.open(sum_and_product, options(sum_and_product, 2, 2))
    if key == "shared":
        path.chmod(0o644)
    elif key == "damaged":
        path.write_bytes(b"short")
    else:
        path.unlink()
        path.mkdir()
    session.close()
    assert backend.on_host.sessions == 0 and not (tmp_path / "kernels").exists()


def test_kernels_of_another_installation_are_not_loaded(backend, tmp_path) -> None:
    ours = KernelCache(backend.engines, "digest", key_path=tmp_path / "ours")
    theirs = KernelCache(backend.engines, "digest", key_path=tmp_path / "theirs")
    assert ours.load() is None
    theirs.store(b"theirs")
    assert ours.load() is None and theirs.load() == b"theirs"
    ours.store(b"ours")
    assert ours.load() == b"ours" and theirs.load() is None
    (file,) = (tmp_path / "kernels").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert ours.load() is None
