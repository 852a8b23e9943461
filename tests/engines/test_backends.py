"""The table of backends: what it says of unknown and unavailable ones, and that it loads none before it must."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from mutoscope_engines import backends
from mutoscope_engines.backends import BACKENDS, choose_backend, load_backend
from mutoscope_engines.errors import BackendUnavailableError


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Puts backends with these reasons not to run, and these precisions, in the place of the real ones."""

    def replace_all(**reasons: tuple[str | None, tuple[str, ...]]) -> None:
        module = SimpleNamespace()
        for name, (reason, precisions) in reasons.items():
            backend = SimpleNamespace(
                name=name,
                on_device=False,
                unavailable_because=lambda r=reason: r,
                supports=lambda p, all=precisions: p in all,
                preferred_precision="bf16",
                is_slower=lambda p, name=name: name == "slower_than_slow",
            )
            setattr(module, name, lambda backend=backend: backend)
        monkeypatch.setitem(sys.modules, "pretended_backends", module)
        monkeypatch.setattr(backends, "BACKENDS", {name: f"pretended_backends:{name}" for name in reasons})

    return replace_all


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
    with pytest.raises(BackendUnavailableError, match="no backend is called 'solw'"):
        choose_backend("fast+solw", ["fp32"])
    with pytest.raises(BackendUnavailableError, match="no backend is called 'auto'"):
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


def test_a_backend_asked_for_by_name_is_never_replaced_by_another(pretend) -> None:
    pretend(first=("no GPU; plug one in", ("fp32",)), second=(None, ("fp32",)))
    with pytest.raises(BackendUnavailableError, match="no GPU; plug one in") as refusal:
        choose_backend("first", ["fp32"])
    assert "second" not in str(refusal.value)


def test_importing_the_table_imports_no_backend() -> None:
    modules = {path.partition(":")[0] for path in BACKENDS.values()} | {"onnxruntime", "openvino"}
    code = f"import sys, mutoscope_engines.backends; print([name for name in {modules} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
