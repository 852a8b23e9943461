from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mutoscope_engines
import pytest
from mutoscope_engines.cache.identity import ShapeRange
from mutoscope_engines.errors import BackendUnavailableError
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt import library as tensorrt_library
from mutoscope_engines.tensorrt.library import LIBRARIES

needs_library = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
FILES = {"model.onnx": "a" * 64}


def identity(*targets: str, streaming: bool = False, size: int = 8):
    profile = {"x": ShapeRange((1,), (size,), (size,))}
    found = [find_target(target) for target in targets]
    return LIBRARIES["tensorrt-rtx"].identity(FILES, "bf16", found, profile, weight_streaming=streaming)


@needs_library
def test_the_order_of_targets_makes_no_other_engine_but_each_part_does():
    assert identity("rtx50", "rtx40").digest == identity("rtx40", "rtx50").digest
    others = [identity("rtx40"), identity("rtx40", "rtx50", streaming=True), identity("rtx40", "rtx50", size=9)]
    assert len({identity("rtx40", "rtx50").digest, *(other.digest for other in others)}) == 4


@needs_library
def test_an_engine_for_several_targets_and_large_shapes_serves_one_target_and_a_small_shape():
    assert identity("rtx40", "rtx50").misses(identity("rtx50", size=3)) == {}
    assert set(identity("rtx40").misses(identity("rtx50", size=9))) == {"compute_capabilities", "profile"}


@needs_library
def test_an_engine_with_streamed_weights_does_not_serve_where_a_graph_is_captured():
    assert set(identity("rtx40", streaming=True).misses(identity("rtx40"))) == {"flags"}


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_library_that_is_not_installed_says_how_to_install_it():
    for ask in (LIBRARIES["tensorrt"].version, lambda: LIBRARIES["tensorrt"].module):
        with pytest.raises(BackendUnavailableError, match=r"pip install 'mutoscope\[tensorrt\]'"):
            ask()


def test_asking_for_the_version_imports_no_library():
    code = (
        "import sys; from mutoscope_engines.tensorrt.library import LIBRARIES\n"
        "try: LIBRARIES['tensorrt-rtx'].version()\n"
        "except Exception: pass\n"
        "sys.exit('tensorrt_rtx' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(Path(mutoscope_engines.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_the_classic_library_compiles_for_the_gpu_of_its_machine_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensorrt_library, "cuda_unavailable_because", lambda: None)
    monkeypatch.setattr(tensorrt_library, "compute_capability", lambda: 89)
    config = object()  # which it tells nothing
    LIBRARIES["tensorrt"].set_targets(config, [89])
    with pytest.raises(BackendUnavailableError, match="choose the target sm89"):
        LIBRARIES["tensorrt"].set_targets(config, [120])
    monkeypatch.setattr(tensorrt_library, "cuda_unavailable_because", lambda: "there is no NVIDIA driver; install one")
    with pytest.raises(BackendUnavailableError, match="no NVIDIA driver; install one; or use tensorrt-rtx"):
        LIBRARIES["tensorrt"].set_targets(config, [89])
