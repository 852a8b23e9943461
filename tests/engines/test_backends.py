"""The table of backends: what it says of unknown and unavailable ones, and that it loads none before it must."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mutoscope_engines import backends
from mutoscope_engines.backends import BACKENDS, UnusableBackend, choose_backend, load_backend
from mutoscope_engines.errors import BackendUnavailableError
from mutoscope_engines.session import SessionOptions
from mutoscope_engines.testing import FakeBackend, only_backends


class Pretended(FakeBackend):
    preferred_precision = "bf16"

    def is_slower(self, precision: str) -> bool:
        return self.name == "slower_than_slow"


@pytest.fixture
def pretend() -> Iterator[Callable[..., None]]:
    """Puts backends with these reasons not to run, and these precisions, in the place of the real ones."""
    with ExitStack() as replaced:

        def replace_all(**reasons: tuple[str | None, tuple[str, ...]]) -> None:
            backends = [
                Pretended({}, name=name, unavailable=reason, precisions=precisions)
                for name, (reason, precisions) in reasons.items()
            ]
            replaced.enter_context(only_backends(*backends))

        yield replace_all


@pytest.mark.parametrize("function", [load_backend, lambda name: choose_backend(name, ["fp32"])])
def test_an_unknown_backend_lists_the_known(function) -> None:
    with pytest.raises(BackendUnavailableError) as refusal:
        function("cuda")
    assert refusal.value.exit_code == 4
    assert all(name in str(refusal.value) for name in ("'cuda'", "auto", *BACKENDS))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_goes_by_its_name_in_the_table(name: str) -> None:
    assert load_backend(name).name == name


def test_auto_takes_the_first_that_can_run(pretend) -> None:
    pretend(fast=("no GPU; use the CPU", ("fp32",)), slow=(None, ("fp32",)), slower=(None, ("fp32",)))
    backend, precision, _ = choose_backend("auto", ["fp32"])
    assert (backend.name, precision) == ("slow", "fp32")


def test_auto_passes_over_a_backend_that_is_slower_than_another(pretend) -> None:
    pretend(slower_than_slow=(None, ("fp32",)), slow=(None, ("fp32",)))
    backend, _, told = choose_backend("auto", ["fp32"])
    assert (backend.name, told) == ("slow", [])
    assert choose_backend("slower_than_slow", ["fp32"])[0].name == "slower_than_slow"


def test_of_several_names_no_other_is_taken(pretend) -> None:
    pretend(fast=(None, ("fp32",)), slower_than_slow=(None, ("fp32",)), slow=(None, ("fp32",)))
    for names in ("slower_than_slow+slow", "slow+slower_than_slow"):
        assert choose_backend(names, ["fp32"])[0].name == "slow"
    assert choose_backend("slow+fast", ["fp32"])[0].name == "fast"
    with pytest.raises(BackendUnavailableError, match="there is no backend 'solw'"):
        choose_backend("fast+solw", ["fp32"])
    with pytest.raises(BackendUnavailableError, match="there is no backend 'auto'"):
        choose_backend("auto+slow", ["fp32"])


def test_auto_takes_the_slower_backend_where_the_faster_cannot_run(pretend) -> None:
    pretend(slower_than_slow=(None, ("bf16",)), slow=(None, ("fp32",)))
    backend, precision, told = choose_backend("auto", ["bf16"])
    assert (backend.name, precision, told) == ("slower_than_slow", "bf16", [])


def test_auto_passes_over_a_backend_that_lacks_the_precision(pretend) -> None:
    pretend(first=(None, ("fp32",)), second=(None, ("fp32", "int8")))
    backend, precision, _ = choose_backend("auto", ["int8"])
    assert (backend.name, precision) == ("second", "int8")


def test_the_first_precision_that_the_backend_runs_is_taken(pretend) -> None:
    pretend(only=(None, ("fp32", "int8")))
    assert choose_backend("auto", ["bf16", "int8", "fp32"])[1] == "int8"


def test_what_a_backend_prefers_comes_before_the_first_that_it_runs(pretend) -> None:
    pretend(only=(None, ("fp32", "fp16", "bf16")))
    assert choose_backend("auto", ["fp32", "bf16"])[1] == "bf16"
    assert choose_backend("auto", ["fp32", "fp16"])[1] == "fp32"


def test_a_backend_that_lacks_what_it_needs_is_passed_over_and_that_is_told(pretend) -> None:
    pretend(first=(None, ("fp8", "bf16")), second=(None, ("fp32",)))

    def lacking(backend, precision: str) -> str | None:
        return "no engine; build one" if backend.name == "first" else None

    backend, precision, told = choose_backend("auto", ["fp8", "fp32"], lacking)
    assert (backend.name, precision, told) == ("second", "fp32", ["first in fp8: no engine; build one"])
    with pytest.raises(BackendUnavailableError, match="first: no engine; build one"):
        choose_backend("first", ["fp8"], lacking)


def test_auto_says_why_each_was_refused(pretend) -> None:
    pretend(first=("no GPU; plug one in", ("fp8",)), second=(None, ("fp32",)))
    with pytest.raises(BackendUnavailableError, match=r"first: no GPU; plug one in; second: .*fp8 or bf16"):
        choose_backend("auto", ["fp8", "bf16"])


@pytest.mark.parametrize("names", ["first", "first+other"])
def test_a_backend_asked_for_by_name_is_not_replaced_but_one_that_can_run_is_told_once(pretend, names: str) -> None:
    reason = "no GPU; plug one in"
    pretend(first=(reason, ("fp32",)), other=(reason, ("fp32",)), second=(None, ("fp32",)), third=(None, ("fp32",)))
    tried = "; ".join(f"{name}: {reason}" for name in names.split("+"))
    with pytest.raises(BackendUnavailableError) as refusal:
        choose_backend(names, ["fp32"])
    assert str(refusal.value) == f"no backend can run this here; tried {tried}; or choose the backend second"


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_no_backend_is_advised_that_cannot_run_the_precision_or_lacks_what_it_needs(pretend, precision: str) -> None:
    pretend(first=("no GPU; plug one in", ("fp8", "bf16")), second=(None, ("bf16",)))
    with pytest.raises(BackendUnavailableError, match=r"plug one in$"):
        choose_backend("first", [precision], lambda backend, precision: "no engine; build one")


def test_a_backend_that_cannot_be_used_says_why_whatever_is_asked_of_it(tmp_path: Path) -> None:
    backend = UnusableBackend("onnxruntime", "it is damaged; install it again")
    assert backend.unavailable_because() == "it is damaged; install it again"
    assert (backend.version(), backend.supports("fp32")) == ("none", False)
    with pytest.raises(BackendUnavailableError, match="onnxruntime: it is damaged; install it again"):
        backend.open(tmp_path / "model.onnx", SessionOptions())


def test_a_library_that_cannot_be_imported_makes_its_backend_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "unusable_because", lambda module: "two builds over each other; remove one")
    for name in ("onnxruntime", "onnxruntime-cuda"):
        assert load_backend(name).unavailable_because() == "two builds over each other; remove one"


def test_importing_the_table_imports_no_backend() -> None:
    modules = {path.partition(":")[0] for path in BACKENDS.values()} | {"onnxruntime", "openvino"}
    code = f"import sys, mutoscope_engines.backends; print([name for name in {modules} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
