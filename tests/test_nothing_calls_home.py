"""No command makes a socket, or leaves a file that the documents do not name: what SECURITY.md promises.

A library that is taken in gets a row here for each way in which a user gets to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import onnxruntime
import pytest

from tests.seen_from_outside import REQUIRED, watch

PROMPT = "a red circle moving right on a black background"
SMALL = "--height 32 --width 32 --num-frames 5 --num-inference-steps 1"
CHECKPOINT = "CHECKPOINT"  # stands for the folder of a small one
API = f"""
import mutoscope
with mutoscope.Pipeline.load() as pipeline:
    pipeline.generate({PROMPT!r}, height=32, width=32, num_frames=5, num_inference_steps=1).save("red.mp4")
import time
time.sleep(14)  # libraries have waited for ten seconds before they sent anything
"""


SERVER = f"""
import json, os, signal, sys, threading, time, urllib.request
from mutoscope.cli import main

def client():
    while "url" not in said:
        time.sleep(0.05)
    asked = dict(prompt={PROMPT!r}, height=32, width=32, num_frames=5, num_inference_steps=1)
    headers = {{"content-type": "application/json"}}
    request = urllib.request.Request(said["url"] + "/v1/videos", json.dumps(asked).encode(), headers)
    id = json.load(urllib.request.urlopen(request))["id"]
    while json.load(urllib.request.urlopen(said["url"] + "/v1/videos/" + id))["state"] != "completed":
        time.sleep(0.05)
    time.sleep(14)  # libraries have waited for ten seconds before they sent anything
    os.kill(os.getpid(), signal.SIGTERM)

class Output:
    def write(self, text):
        if text.strip():
            said.update(json.loads(text))
    def flush(self):
        pass

said, sys.stdout = {{}}, Output()
threading.Thread(target=client).start()
sys.exit(main(["serve", "--port", "0", "--data", "data", "--free-disk", "1kB"]))
"""


# Whoever starts a cluster sets these two, as docs/scaling.md says. With a configuration, it does not ask which cloud it
# is in. Names of sockets must be short, and the folder of a test is not.
RAY = f"""
import json, os, sys, tempfile
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_REPORT_URL"] = "http://127.0.0.1:9"
with open(os.path.expanduser("~/ray_bootstrap_config.yaml"), "w") as config:
    config.write("{{}}")
from mutoscope.cli import main
with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder, open("jobs.jsonl", "w") as jobs:
    os.environ["RAY_TMPDIR"] = folder
    from ray.cluster_utils import Cluster
    json.dump(dict(prompt={PROMPT!r}, height=32, width=32, num_frames=1, num_inference_steps=1), jobs)
    jobs.close()
    head = dict(num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        code = main(["batch", "jobs.jsonl", "out", "--ray", cluster.address])
    finally:
        cluster.shutdown()
sys.exit(code)
"""
OF_RAY = [  # calls within the cluster; and how it learns its own address, for which nothing is sent
    *(f'*"{address}"*' for address in ("10.1.1.1", "::ffff:10.1.1.1", "::", "0.0.0.0")),
    "*AF_NETLINK*",
    "*sun_path=*/sockets/*",
    '*connect(*htons(53), sin_addr=inet_addr("8.8.8.8")}*',
]
BENCH = f"""
import sys
from mutoscope.cli import main
from mutoscope_bench import processes
from mutoscope_peers.diffusers_peer import Eager

processes.IMPORTS, Eager.variants = 1, ("fp32",)  # more of the same processes would do the same
asked = "bench --quick --rounds 1 --case default-clip --against diffusers,openvino --backend onnxruntime {SMALL}"
sys.exit(main([*asked.split(), "--precision", "fp32"]))
"""


@dataclass(frozen=True)
class Way:
    """A way to use Mutoscope, with the packages that it needs and what it may do."""

    arguments: Sequence[str]  # of Python
    needs: Sequence[str] = ()
    loopback: bool = False
    calls: Sequence[str] = ()  # patterns of calls that are allowed beside those to this machine
    leaves: Sequence[str] = ()  # patterns of paths


def command(line: str, *arguments: str) -> list[str]:
    return ["-m", "mutoscope", *line.split(), *arguments]


SIGNED = """
from mutoscope.cli import main
assert main("generate -o red.mp4 --sign on --num-inference-steps 1 --num-frames 5 a_red_circle".split()) == 0
assert main(["verify", "red.mp4"]) == 0
"""
KEY = "home/.local/share/mutoscope/provenance/signer.pem"  # where c2pa-python is installed
TORCH = ("torch", "diffusers")
# Importing it makes an empty folder, and a client of HTTP that comes with it binds ::1 to see whether there is IPv6.
TORCH_LEAVES = "tmp/torchinductor_*"
WAYS = {
    "doctor": Way(command("doctor")),
    "inspect": Way(command("inspect")),
    "verify": Way(command("verify")),
    "generate": Way(command(f"generate -o red.mp4 {SMALL}", PROMPT), leaves=["here/red.mp4", KEY]),
    "generate by OpenVINO": Way(
        command(f"generate -o red.mp4 --backend openvino {SMALL}", PROMPT), ["openvino"], leaves=["here/red.mp4", KEY]
    ),
    "the Python API": Way(["-c", API], leaves=["here/red.mp4", KEY]),
    "serve": Way(["-c", SERVER], ["starlette"], loopback=True, leaves=["here/data/*", KEY]),
    "batch on Ray": Way(
        ["-c", RAY],
        ["ray"],
        loopback=True,
        calls=OF_RAY,
        leaves=["home/ray_bootstrap_config.yaml", "here/jobs.jsonl", "here/out/*", KEY],
    ),
    "a signed video": Way(["-c", SIGNED], ["c2pa"], leaves=["here/red.mp4", KEY]),
    "bench": Way(
        ["-c", BENCH],
        [*TORCH, "openvino"],
        loopback=True,
        leaves=[TORCH_LEAVES],
    ),
    "build": Way(
        command("build --target sm89 --shapes 32x32x5 --branches-per-call 1"),
        ["tensorrt_rtx"],
        leaves=["home/.cache/mutoscope/engines/*", "home/.local/share/mutoscope/engine.key"],
    ),
    "export": Way(
        command("export", CHECKPOINT, "bundle", "--precision", "int8", "bf16"),
        TORCH,
        loopback=True,
        leaves=["here/bundle/*", TORCH_LEAVES],
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_way_of_use_makes_no_socket_and_leaves_nothing(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    way = WAYS[name]
    for package in way.needs:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    arguments = list(way.arguments)
    if any(CHECKPOINT in argument for argument in arguments):
        checkpoint = str(request.getfixturevalue("least_checkpoint"))
        arguments = [argument.replace(CHECKPOINT, checkpoint) for argument in arguments]
    found = watch([sys.executable, *arguments], tmp_path, loopback=way.loopback)
    unnamed = [path for path in found.left if not any(fnmatch(path, pattern) for pattern in way.leaves)]
    reached = [call for call in found.reached if not any(fnmatch(call, pattern) for pattern in way.calls)]
    assert (reached, unnamed) == ([], [])


def test_the_watcher_catches_onnx_runtime_with_its_telemetry_on(tmp_path: Path) -> None:
    """Native threads of its own: they queue events at once, and send them some ten seconds later."""
    libraries = Path(onnxruntime.__file__).with_name("capi").glob("*.so*")
    if not any(b"events.data.microsoft.com" in library.read_bytes() for library in libraries):
        pytest.skip("this onnxruntime has no telemetry")
    found = watch([sys.executable, "-c", "import onnxruntime, time; time.sleep(20)"], tmp_path)
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


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_where_it_cannot_be_checked_ci_fails_and_others_skip(
    required: str, outcome: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(REQUIRED, required)
    with pytest.raises(outcome, match="unshare, ip, strace is not installed"):
        watch(["true"], tmp_path)
