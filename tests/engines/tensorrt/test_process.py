"""Builders that die at any moment: the cache stays sound, and nothing of them stays behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.identity import EngineIdentity, ShapeRange, content_of
from mutoscope_engines.errors import EngineError, OutOfMemoryError
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt import process as engine_process
from mutoscope_engines.tensorrt.library import LIBRARIES
from mutoscope_engines.tensorrt.process import compile_in_process

needs_library = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
IDENTITY = EngineIdentity({}, "bf16", (89,), {}, "library", ())

# Publishes for ever, over what is there too, and removes the oldest: every moment of a builder's life, in quick turns.
PUBLISHER = """
import os, random, sys
from hashlib import sha256
from pathlib import Path
from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.identity import EngineIdentity
from mutoscope_engines.cache.record import EngineReport
cache = EngineCache(Path(sys.argv[1]) / "engines", key_path=Path(sys.argv[1]) / "key", limit_bytes=2_000_000)
print("at work", flush=True)
while True:
    identity = EngineIdentity({}, random.choice("abcdef"), (89,), {}, "library", ())
    with cache.reserve(identity) as slot:
        content = os.urandom(random.randrange(800_000))
        slot.partial.write_bytes(content)
        slot.publish(EngineReport("denoiser", "rtx40", "bf16", 1, 1, len(content), 1.0, 1), sha256(content).hexdigest())
    cache.trim(keep=[identity.digest])
"""

BUILDER = """
import json, sys
from pathlib import Path
from mutoscope_engines.cache.engine_cache import EngineCache
from mutoscope_engines.cache.identity import EngineIdentity
from mutoscope_engines.tensorrt.process import compile_in_process
from mutoscope_engines.cache.record import EngineReport
folder, graph, identity = Path(sys.argv[1]), Path(sys.argv[2]), EngineIdentity.from_json(json.loads(sys.argv[3]))
with EngineCache(folder / "engines", key_path=folder / "key").reserve(identity) as slot:
    if slot.record is None:
        made = compile_in_process(graph, slot.partial, "tensorrt-rtx", identity)
        slot.publish(EngineReport("sum", "rtx40", "fp32", 0, 0, made.engine_bytes, 0.0, 0), made.sha256)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, stdout=subprocess.PIPE)


def refuse_half_engines(cache: EngineCache) -> list[str]:
    """The digests of all engines, each of which is what its record says, byte for byte."""
    found = []
    for record in cache.catalogue().records:
        engine = cache.load(record)
        assert sha256(engine.data).hexdigest() == record.sha256
        assert len(engine.data) == record.report.engine_bytes
        found.append(record.identity.digest)
    return found


def test_no_half_engine_is_ever_returned_after_kills_at_random_moments(tmp_path: Path):
    cache = EngineCache(tmp_path / "engines", key_path=tmp_path / "key", limit_bytes=2_000_000)
    moments, found = random.Random(1), 0
    for _ in range(12):
        builders = [start(PUBLISHER, tmp_path) for _ in range(2)]
        for builder in builders:
            assert builder.stdout and builder.stdout.readline()
        time.sleep(moments.uniform(0, 0.5))
        for builder in builders:
            builder.kill()
            builder.communicate()
        found += len(refuse_half_engines(cache))
    assert found > 24
    cache.trim()
    kept = [path.name for path in cache.folder.iterdir()]
    for kind in ("json", "engine"):
        assert sorted(refuse_half_engines(cache)) == sorted(name[:64] for name in kept if name.endswith(kind))
    assert {name.rpartition(".")[2] for name in kept} == {"json", "engine"}


@pytest.fixture
def sum_identity(sum_and_product: Path) -> EngineIdentity:
    profile = {name: ShapeRange((1, 1), (8, 8), (8, 8)) for name in "ab"}
    return LIBRARIES["tensorrt-rtx"].identity(content_of(sum_and_product), "fp32", [find_target("rtx40")], profile)


@needs_library
def test_real_builds_killed_at_random_moments_leave_a_sound_cache(
    tmp_path: Path, sum_and_product: Path, sum_identity: EngineIdentity
):
    cache = EngineCache(tmp_path / "engines", key_path=tmp_path / "key")
    arguments = (tmp_path, sum_and_product, json.dumps(asdict(sum_identity)))
    begun = time.monotonic()
    with start(BUILDER, *arguments) as builder:
        assert builder.wait() == 0
    whole_s = time.monotonic() - begun
    moments = random.Random(2)
    for _ in range(int(os.environ.get("MUTOSCOPE_TEST_KILLS", "5"))):
        for path in cache.folder.iterdir():
            path.unlink()
        with start(BUILDER, *arguments) as builder:
            time.sleep(moments.uniform(0, whole_s))
            builder.kill()
        assert refuse_half_engines(cache) in ([], [sum_identity.digest])
    with start(BUILDER, *arguments) as builder:
        assert builder.wait() == 0
    assert refuse_half_engines(cache) == [sum_identity.digest]
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".engine", ".json"]


@needs_library
def test_the_compiler_ends_with_the_process_that_started_it(
    tmp_path: Path, sum_and_product: Path, sum_identity: EngineIdentity
):
    with start(BUILDER, tmp_path, sum_and_product, json.dumps(asdict(sum_identity))) as builder:
        children = Path(f"/proc/{builder.pid}/task/{builder.pid}/children")
        while not (started := children.read_text().split()):
            assert builder.poll() is None
            time.sleep(0.01)
        builder.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{started[0]}").exists() and "\nState:\tZ" not in Path(f"/proc/{started[0]}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of the process that compiles."""

    def replace(script: str) -> None:
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(engine_process.sys, "executable", str(path))

    return replace


def test_a_crash_of_the_compiler_is_an_error_with_its_last_words(compiler: Callable[[str], None], tmp_path: Path):
    compiler("echo first >&2; echo 'last words' >&2; kill -SEGV $$")
    with pytest.raises(EngineError, match=r"code -11 while it built g/model.onnx: last words"):
        compile_in_process(tmp_path / "g" / "model.onnx", tmp_path / "engine", "tensorrt-rtx", IDENTITY)


def test_a_compiler_that_the_system_kills_was_short_of_memory(compiler: Callable[[str], None], tmp_path: Path):
    compiler("kill -KILL $$")
    with pytest.raises(OutOfMemoryError, match="larger machine"):
        compile_in_process(tmp_path / "g" / "model.onnx", tmp_path / "engine", "tensorrt-rtx", IDENTITY)


def test_an_interrupt_while_it_waits_ends_the_compiler(compiler: Callable[[str], None], tmp_path: Path):
    compiler(f"echo $$ > {tmp_path}/pid; exec sleep 600")

    def interrupt() -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_in_process(tmp_path / "m.onnx", tmp_path / "engine", "tensorrt-rtx", IDENTITY, on_tick=interrupt)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_ctrl_c_is_for_this_process_alone_on_every_system(monkeypatch: pytest.MonkeyPatch):
    assert engine_process.own_group() == {"start_new_session": True}
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)  # its value in winbase.h
    assert engine_process.own_group() == {"creationflags": 0x200}
