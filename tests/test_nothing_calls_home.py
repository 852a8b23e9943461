"""No command makes a socket, or leaves a file that the documents do not name: what SECURITY.md promises.

A library that is taken in gets a row here for each way in which a user gets to it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import onnxruntime
import pytest
from mutoscope.builtin import bundle_path
from mutoscope.errors import BundleError

from tests.seen_from_outside import Seen, watch

PROMPT = "a red circle moving right on a black background"
RED = "red.mp4"
SMALL = ["--height", "32", "--width", "32", "--num-frames", "5", "--num-inference-steps", "1"]
API = f"""
import mutoscope
with mutoscope.Pipeline.load() as pipeline:
    pipeline.generate({PROMPT!r}, height=32, width=32, num_frames=5, num_inference_steps=1).save({RED!r})
"""


@dataclass(frozen=True)
class Way:
    """A way to use Mutoscope, with the packages that it needs and what it may do."""

    arguments: Sequence[str]  # of Python
    needs: Sequence[str] = ()
    loopback: bool = False
    leaves: Sequence[str] = ()  # patterns of paths


def command(*arguments: str) -> list[str]:
    return ["-m", "mutoscope", *arguments]


WAYS = {
    "doctor": Way(command("doctor")),
    "inspect": Way(command("inspect")),
    "verify": Way(command("verify")),
    "generate": Way(command("generate", PROMPT, "-o", RED, *SMALL), leaves=["here/red.mp4"]),
    "generate by OpenVINO": Way(
        command("generate", PROMPT, "-o", RED, "--backend", "openvino", *SMALL),
        needs=["openvino"],
        leaves=["here/red.mp4"],
    ),
    "the Python API": Way(["-c", API], leaves=["here/red.mp4"]),
    "build": Way(
        command("build", "--target", "sm89", "--shapes", "32x32x5", "--branches", "1"),
        needs=["tensorrt_rtx"],
        leaves=["home/.cache/mutoscope/engines/*", "home/.local/share/mutoscope/engine.key"],
    ),
}
# What imports PyTorch makes an empty folder, and a client of HTTP that it brings binds ::1 to see if there is IPv6.
WITH_TORCH = {"needs": ["torch", "diffusers"], "loopback": True}
TORCH_LEAVES = "tmp/torchinductor_*"


def seen(way: Way, folder: Path) -> Seen:
    """Of what a way did, only what it may not do."""
    for package in way.needs:
        pytest.importorskip(package)
    folder.mkdir()
    found = watch([sys.executable, *way.arguments], folder, loopback=way.loopback)
    unnamed = [path for path in found.left if not any(fnmatch(path, pattern) for pattern in way.leaves)]
    return Seen(found.output, found.reached, unnamed)


@pytest.mark.parametrize("name", WAYS)
def test_a_way_of_use_makes_no_socket_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    try:
        bundle_path()
    except BundleError as error:
        pytest.skip(str(error))
    found = seen(WAYS[name], tmp_path / "seen")
    assert (found.reached, found.left) == ([], [])


def test_an_export_and_a_comparison_with_peers_reach_nothing_and_leave_nothing(
    wan_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = str(tmp_path / "bundle")
    export = Way(command("export", str(wan_checkpoint), bundle), leaves=[TORCH_LEAVES], **WITH_TORCH)
    found = seen(export, tmp_path / "export")
    assert (found.reached, found.left) == ([], [])

    against = ["--against", "diffusers,openvino", "--checkpoint", str(wan_checkpoint)]
    ours = ["--backend", "onnxruntime", "--precision", "fp32", "--quick"]
    bench = Way(command("bench", bundle, *against, *ours, *SMALL), leaves=[TORCH_LEAVES], **WITH_TORCH)
    found = seen(bench, tmp_path / "bench")
    assert (found.reached, found.left) == ([], [])
    assert "diffusers" in found.output and "not measured" not in found.output


def test_the_watcher_catches_onnx_runtime_with_its_telemetry_on(tmp_path: Path) -> None:
    """Native threads of its own: they queue events at once, and send them some ten seconds later."""
    libraries = Path(onnxruntime.__file__).with_name("capi").glob("*.so*")
    if not any(b"events.data.microsoft.com" in library.read_bytes() for library in libraries):
        pytest.skip("this onnxruntime has no telemetry")
    found = watch([sys.executable, "-c", "import onnxruntime, time; time.sleep(14)"], tmp_path)
    assert "home/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid" in found.left
    assert any("htons(53)" in call for call in found.reached)


@pytest.mark.parametrize(
    ("code", "loopback", "reached"),
    [
        ("s.socket().bind(('127.0.0.1', 0))", False, True),
        ("s.socket().bind(('127.0.0.1', 0))", True, False),
        ("s.socket().bind(('0.0.0.0', 0))", True, True),
        ("s.socket(s.AF_INET6).bind(('::1', 0))", True, False),
        ("s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))", True, True),
        ("s.socket(s.AF_UNIX).bind('name')", True, True),
        ("s.socketpair()", False, False),
    ],
)
def test_the_watcher_tells_this_machine_from_others(code: str, loopback: bool, reached: bool, tmp_path: Path) -> None:
    found = watch([sys.executable, "-c", f"import socket as s; {code}"], tmp_path, loopback=loopback)
    assert bool(found.reached) == reached, found.reached
