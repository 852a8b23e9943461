"""Small random checkpoints, and bundles exported from them, shared by all tests of a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mutoscope_engines import telemetry

from tests.making import made_once, unmeasured

# Whose tests run torch, and which is no measure of the runtime and the engines: they have tests of their own.
UNMEASURED = ("export", "benchmarks")
WITH_DIFFUSERS = "same_as_diffusers.py"

for load in (telemetry.onnxruntime, telemetry.openvino):  # before a test imports them by name, with their telemetry
    with suppress(ImportError):
        load()

# A shell starts what runs in its background with SIGINT ignored, and so would be what the tests of Ctrl-C start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # and `nohup` starts everything with that one ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys are made in a folder of the tests, and not in that of whoever runs them; child processes inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(autouse=True)
def unsigned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as they are without c2pa-python: the same bytes for the same frames. Tests of signatures undo it."""
    monkeypatch.setattr("mutoscope.output.signing.is_available", lambda: False)


@pytest.fixture(scope="module", autouse=True)
def coverage(request: pytest.FixtureRequest) -> Iterator[None]:
    """Coverage looks away from tests that it makes twice as slow, and that it need not see."""
    first = request.path.relative_to(Path(__file__).parent).parts[0]
    if first not in UNMEASURED and not first.endswith(WITH_DIFFUSERS):
        yield
        return
    with unmeasured():
        yield


@pytest.fixture(scope="session")
def wan_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint of the structure of Wan 2.1. Not to be written to."""

    def make(folder: Path) -> None:
        from mutoscope_export.families.wan.random_checkpoint import random_checkpoint

        random_checkpoint(folder / "small-wan", vae_config={"num_res_blocks": 0})

    return made_once("wan-checkpoint", make, tmp_path_factory) / "small-wan"


@pytest.fixture(scope="session")
def least_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With as few layers as can be, for those to whom it matters that a whole export runs. Not to be written to."""

    def make(folder: Path) -> None:
        from mutoscope_export.families.wan.random_checkpoint import random_checkpoint

        one_doubling = {"dim_mult": [1, 2], "temperal_downsample": [True]}
        scales = {"scale_factor_spatial": 2, "scale_factor_temporal": 2}
        random_checkpoint(folder / "least-wan", num_layers=1, vae_config={"num_res_blocks": 0} | one_doubling | scales)

    return made_once("least-checkpoint", make, tmp_path_factory) / "least-wan"


@pytest.fixture(scope="session")
def wan_bundle(wan_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `wan_checkpoint`, in fp32, int8, bf16 and bf16-cpu, with inputs for LoRAs. Not to be written to."""

    def make(folder: Path) -> None:
        from mutoscope_export.export import export_checkpoint
        from mutoscope_export.options import ExportOptions

        precisions = ("fp32", "int8", "bf16", "bf16-cpu")
        export_checkpoint(wan_checkpoint, folder, ExportOptions(precision=precisions, lora_inputs=True))

    return made_once("wan-bundle", make, tmp_path_factory)
