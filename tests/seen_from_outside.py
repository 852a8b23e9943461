"""Runs a command where everything that it sends, and every file that it leaves, is seen from outside its process.

Native code does not pass Python's audit hooks, but it calls the kernel, and strace tells. The command has a network of
its own, with a default route that leads nowhere: a library that first asks whether there is a network finds one. Its
home and its temporary folder are new and empty, and so is its environment, because what tells a library that it runs in
CI or in a test keeps it quiet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

REQUIRED = "MUTOSCOPE_REQUIRE_NETWORK_CHECKS"  # set in CI: what cannot be checked then fails instead of being skipped
FOLDERS = ("home", "tmp", "here")
_PROGRAMS = ("unshare", "ip", "strace")
_NETWORK = """
ip link set lo up
ip link add out type veth peer name nowhere  # in place of a dummy interface, which fewer kernels have
ip address add 10.1.1.1/24 dev out
ip link set out up
ip link set nowhere up
ip route add default via 10.1.1.2
exec "$@"
"""
_FAMILY = re.compile(r"\bsocket\(AF_(\w+)")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
# Asked for the user's name. The names of hosts go there, too, and from there to the network, but not in a namespace.
_USER_NAMES = "/var/run/nscd/socket"


@dataclass(frozen=True)
class Seen:
    """What a command did. Paths begin with one of `FOLDERS`: its home, its temporary and its working folder."""

    output: str
    reached: list[str]  # calls of the kernel, as strace writes them
    left: list[str]  # files and empty folders


def watch(command: Sequence[str], folder: Path, *, loopback: bool = False) -> Seen:
    """Runs a command to its end, which must be a good one, in `folder`, which must be empty.

    Args:
        loopback: whether sockets are allowed that reach this machine alone.
    """
    _require()
    home, temporary, here = (folder / name for name in FOLDERS)
    for made in (home, temporary, here):
        made.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    calls = folder / "calls"
    done = subprocess.run(
        _watched(command, calls),
        cwd=here,
        env=kept | {"HOME": str(home), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reached = [call for call in calls.read_text().splitlines() if _reaches(call, loopback)]
    return Seen(done.stdout + done.stderr, reached, _left(folder))


def _watched(command: Sequence[str], calls: Path) -> list[str]:
    network = ["unshare", "--net", "sh", "-ec", _NETWORK, "sh"]
    strace = ["strace", "--follow-forks", "--seccomp-bpf", "--quiet=all", "--signal=none", "--trace=%network"]
    return [*network, *strace, f"--output={calls}", *command]


def _reaches(call: str, loopback: bool) -> bool:
    if family := _FAMILY.search(call):
        return family[1] != "UNIX" and not (loopback and family[1] in ("INET", "INET6"))
    if "sun_path=" in call:
        return _USER_NAMES not in call
    addresses = [ip_address(v4 or v6) for v4, v6 in _ADDRESS.findall(call)]
    return any(not (loopback and address.is_loopback) for address in addresses)


def _left(folder: Path) -> list[str]:
    paths = (path for name in FOLDERS for path in (folder / name).rglob("*"))
    return sorted(str(path.relative_to(folder)) for path in paths if not path.is_dir() or not any(path.iterdir()))


def _require() -> None:
    reason = _unavailable_because()
    if reason and os.environ.get(REQUIRED):
        pytest.fail(f"what reaches the network cannot be checked here, and {REQUIRED} is set: {reason}")
    if reason:
        pytest.skip(f"what reaches the network cannot be checked here: {reason}")


def _unavailable_because() -> str | None:
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"{', '.join(missing)} is not installed (Debian: apt-get install strace iproute2 util-linux)"
    tried = subprocess.run(_watched(["true"], Path(os.devnull)), capture_output=True, text=True)
    return f"{tried.stderr.strip()}; it takes root" if tried.returncode else None
