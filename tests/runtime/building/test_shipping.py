"""Engines that go with a bundle: built for real, loaded by another installation up to the bytes that it would run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mutoscope
import pytest
from mutoscope import cli
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import BackendUnavailableError, BundleError, EngineError, RequestError
from mutoscope.planning.footprints import wanted_engine
from mutoscope_engines.session import SessionOptions
from mutoscope_engines.targets import find_target
from mutoscope_engines.tensorrt.backend import TensorRtBackend

from tests.runtime.building.networks import FUSED, network
from tests.runtime.building.test_build import ROLES, Make

pytestmark = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

BUILD = ("--target", "rtx40", "--shapes", "32x48x9", "--quiet")


class Rtx40(TensorRtBackend):
    """TensorRT-RTX as on a machine with such a card."""

    def __init__(self) -> None:
        super().__init__("tensorrt-rtx", target=find_target("rtx40"))

    def unavailable_because(self) -> None:
        return None

    def memory_bytes(self, options: SessionOptions) -> int:
        return 8 * 10**9


@pytest.fixture
def bundle(make_bundle: Make) -> Bundle:
    root = make_bundle().root
    graphs = tuple(network(root, role, precision, FUSED) for role in ROLES for precision in ("fp32", "bf16"))
    return make_bundle(graphs=graphs, geometry={"patch_size": (1, 1, 1), "vae_scale_factor_spatial": 1})


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process one of another installation, by its name."""

    def move(name: str) -> None:
        for variable in ("HOME", "MUTOSCOPE_CACHE", "XDG_DATA_HOME"):
            monkeypatch.setenv(variable, str(tmp_path / name / variable))

    return move


def built(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert cli.main(["build", *command, *BUILD, "--json"]) == 0
    return str(json.loads(capsys.readouterr().out)["engines_sha256"])


def run_by(bundle: Bundle) -> list[bytes]:
    """What a card would be handed, graph by graph."""
    assert bundle.engines is not None
    return [
        bytes(bundle.engines.load(bundle.engines.catalogue.find(identity)).data)
        for role in ROLES
        for (graph,) in [bundle.manifest.graphs_of(role, "bf16")]
        for identity in [Rtx40()._identity(wanted_engine(bundle, graph, None), streams=False)]  # noqa: SLF001
    ]


def test_a_bundle_with_its_engines_runs_where_nothing_was_built_but_only_with_their_pin(
    bundle: Bundle, elsewhere: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere("here")
    pin = built(capsys, str(bundle.root), "--into-bundle")
    ours = {path.read_bytes() for path in (tmp_path / "here").rglob("*.engine")}
    elsewhere("there")
    moved = shutil.copytree(bundle.root, tmp_path / "moved")
    with mutoscope.Pipeline.load(moved, backend=Rtx40(), engines_sha256=("0" * 64, pin.upper())) as pipeline:
        assert pipeline.settled.precision == "bf16"
        assert set(run_by(pipeline.bundle)) == ours and len(ours) == len(ROLES)
        assert pipeline.bundle.sha256 == bundle.sha256
    with pytest.raises(BackendUnavailableError, match=r"not built any\. .* has engines of its own, .* engines_sha256"):
        mutoscope.Pipeline.load(moved, backend=Rtx40())
    with pytest.raises(EngineError, match=rf"has the SHA-256 {pin}, and engines_sha256 is 0000"):
        mutoscope.Pipeline.load(moved, backend=Rtx40(), engines_sha256="0" * 64)
    assert cli.main(["inspect", str(moved)]) == 0
    assert f"engines_sha256 {pin}, if you trust it" in capsys.readouterr().out
    assert cli.main(["generate", "a circle", "--bundle", str(moved), "--engines-sha256", "0" * 64]) == 3
    assert f"has the SHA-256 {pin}, and --engines-sha256 is 0000" in capsys.readouterr().err


def test_a_lean_bundle_has_its_engines_and_no_graphs_and_says_so_where_it_cannot_run(
    bundle: Bundle, elsewhere: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere("here")
    lean = tmp_path / "lean"
    pin = built(capsys, str(bundle.root), "--lean", str(lean))
    assert {"engines", "manifest.json", "tokenizer.json"} <= set(os.listdir(lean))
    assert not any((lean / name).exists() for graph in bundle.manifest.graphs for name in (graph.file, *graph.weights))
    assert not (bundle.root / "engines").exists()
    elsewhere("there")
    with mutoscope.Pipeline.load(lean, backend=Rtx40(), engines_sha256=pin) as pipeline:
        assert len(run_by(pipeline.bundle)) == len(ROLES)
    with pytest.raises(BackendUnavailableError, match="shipped with engines and without graphs; get the whole bundle"):
        mutoscope.Pipeline.load(lean, backend="onnxruntime", engines_sha256=pin)
    with pytest.raises(BundleError, match="shipped without graphs"):
        mutoscope_build(lean)
    assert cli.main(["build", str(bundle.root), "--lean", str(lean), *BUILD]) == 2
    assert f"--lean is {lean}, which is there already" in capsys.readouterr().err
    (lean / "engines" / "index.json").unlink()
    with pytest.raises(BundleError, match="is missing from"):
        Bundle.open(lean)


def mutoscope_build(root: Path) -> Any:
    from mutoscope.building.build import BuildOptions, plan_engines

    return plan_engines(Bundle.open(root), BuildOptions(target="rtx40"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--into-bundle"], "--into-bundle needs a bundle of yours"),
        (["BUNDLE", "--into-bundle", "--lean", "there"], "--into-bundle and --lean are both given"),
    ],
)
def test_what_cannot_be_shipped_is_refused_before_anything_is_built(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", *words, *BUILD]) == 2
    assert message in capsys.readouterr().err


def test_a_bundle_that_cannot_be_written_is_named_with_what_to_do(
    bundle: Bundle, elsewhere: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere("here")
    (bundle.root / "engines").write_text("a file")
    assert cli.main(["build", str(bundle.root), "--into-bundle", *BUILD]) == 3
    assert "engines cannot be written: File exists. Make room" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["abc", "0" * 63, ("0" * 64, "x"), (), 7, "0" * 64 + "," + "1" * 64])
def test_a_pin_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match=r"engines_sha256 must be a SHA-256 in hexadecimal, or a tuple of them"):
        mutoscope.Pipeline.load(engines_sha256=value)


def test_a_pin_for_a_bundle_without_engines_is_refused() -> None:
    with pytest.raises(EngineError, match=r"has no index.json of engines"):
        mutoscope.Pipeline.load(engines_sha256="0" * 64)
