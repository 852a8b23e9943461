"""A second model line, of which nothing but its folder and its row in a table knows, from checkpoint to frames.

Its network, text encoders, tokenizers, frame rule, decoder and random draws differ from those of the first line: two
encoders read the prompt, and a number of the request conditions it. `docs/adding-a-family.md` walks through its folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mutoscope
import mutoscope.cli
import numpy as np
import pytest
import torch
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import RequestError
from mutoscope_bench.implementation import Work, forward_feeds, text_shapes
from mutoscope_bench.implementations import load_implementation
from mutoscope_export.errors import ExportError
from mutoscope_export.export import export_checkpoint
from mutoscope_export.families import FAMILIES
from mutoscope_export.opening import open_checkpoint
from mutoscope_export.options import ExportOptions
from numpy.typing import NDArray

from tests.comparing import psnr_db
from tests.export.second_line.random_checkpoint import LETTERS, TOKENS, random_checkpoint
from tests.export.second_line.reference import DriftPipeline
from tests.export.spoiling import edit

ROOT = Path(__file__).parents[2]
ROW = {"DriftPipeline": "tests.export.second_line"}
PRECISIONS = ("fp32", "int8", "bf16-cpu", "bf16")
Frames = NDArray[np.uint8]

PROMPT = "a red circle moving right"
REQUESTS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "another frame rate, negative prompt": {"fps": 30.0, "negative_prompt": "blue square , slowly"},
    "one window, no guidance": {"num_frames": 6, "guidance_scale": 1.0, "seed": 2**33 + 5},
    "another size, more steps": {"height": 20, "width": 12, "num_frames": 24, "num_inference_steps": 7},
}


@dataclass
class Line:
    """A checkpoint of the line, its bundle, and its own pipeline."""

    checkpoint: Path
    bundle: Path

    def __post_init__(self) -> None:
        self.reference = cache(self.run)
        self.own = DriftPipeline(self.checkpoint)

    def run(self, case: str, prompt: str = PROMPT) -> Frames:
        return self.own(prompt, **{"seed": 3, **REQUESTS[case]}).numpy()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("second")
    checkpoint = random_checkpoint(folder / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        for pipeline, module in ROW.items():
            patch.setitem(FAMILIES, pipeline, module)
        export_checkpoint(checkpoint, folder / "bundle", ExportOptions(precision=PRECISIONS))
        yield Line(checkpoint, folder / "bundle")


def generated(line: Line, backend: str, precision: str = "fp32", **request: Any) -> Frames:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    options = {name: request.pop(name) for name in ("branches_per_call", "tile") if name in request}
    with mutoscope.Pipeline.load(line.bundle, backend=backend, precision=precision, **options) as pipeline:
        frames: Frames = pipeline.generate(**{"prompt": PROMPT, "seed": 3, **request}).frames
    return frames


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("case", REQUESTS)
def test_its_frames_are_those_of_its_own_pipeline(line: Line, backend: str, case: str) -> None:
    expected = line.reference(case)
    assert 20 < expected.std() < 90  # neither grey, which would agree with anything, nor black and white
    assert psnr_db(generated(line, backend, **REQUESTS[case]), expected) >= 60


@pytest.mark.parametrize("options", [{"branches_per_call": 1}, {"tile": (20, 24)}])
def test_they_are_the_same_branch_by_branch_and_tile_by_tile(line: Line, options: dict[str, Any]) -> None:
    assert psnr_db(generated(line, "onnxruntime", **options), line.reference("the defaults")) >= 60


def test_the_benchmark_of_one_forward_feeds_what_both_text_encoders_give(line: Line, tmp_path: Path) -> None:
    with mutoscope.Pipeline.load(line.bundle, backend="onnxruntime", precision="fp32") as pipeline:
        plan, texts = pipeline.plan(PROMPT), text_shapes(pipeline.bundle, 5)
    assert texts == {"context": [5, 12], "sound": [8]}
    work = Work(
        kind="forward", bundle=str(line.bundle), checkpoint=None, plan=plan.to_dict(), request={"prompt": PROMPT},
        text_tokens=5, texts=texts, threads=1, batch=1, result=str(tmp_path / "velocity.npy"), video="", runtime={},
    )  # fmt: skip
    load_implementation("mutoscope onnxruntime").load(work, "fp32")()
    feeds = {name: torch.from_numpy(value) for name, value in forward_feeds(work).items()}
    latents, timestep = feeds["latents"].expand(2, -1, -1, -1, -1), feeds["timestep"].expand(2)
    with torch.no_grad():  # the frame rate and the texture are zero
        nothing = torch.zeros_like(feeds["latents"][:, 0])
        expected = line.own.transformer(latents, timestep, feeds["context"], feeds["sound"], torch.zeros(2), nothing)
    np.testing.assert_allclose(np.load(work.result), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "change", [{"fps": 30.0}, {"prompt": "blue square on the white background"}, {"seed": 4}, {"guidance_scale": 1.0}]
)
def test_each_condition_changes_the_video(line: Line, change: dict[str, Any]) -> None:
    assert psnr_db(generated(line, "onnxruntime", **change), line.reference("the defaults")) < 30


def test_what_only_the_second_text_encoder_can_tell_apart_changes_the_video_as_in_its_own_pipeline(line: Line) -> None:
    zebra, yacht = "a red zebra", "a red yacht"  # to the first encoder both are a red word that it does not know
    first = generated(line, "onnxruntime", prompt=zebra)
    assert psnr_db(first, line.run("the defaults", zebra)) >= 60
    assert psnr_db(first, line.run("the defaults", yacht)) < 30


def test_a_plan_tells_the_length_and_the_memory_of_each_text_encoder(line: Line) -> None:
    with mutoscope.Pipeline.load(line.bundle, backend="onnxruntime", precision="fp32") as pipeline:
        plan = pipeline.plan("a  red   zebra")
        shorter = pipeline.plan("a red zebra", max_sequence_length=30)
    facts = plan.conditions.facts  # the text as it was given, because only one of the encoders folds spaces
    assert (facts["prompt"], facts["prompt_tokens"], facts["prompt_tokens_2"]) == ("a  red   zebra", 5, 11)
    assert (plan.conditions.lengths, facts["max_sequence_length"]) == ({"S": TOKENS, "N": LETTERS}, LETTERS)
    assert shorter.conditions.lengths == {"S": TOKENS, "N": 30}
    assert list(plan.memory.options) == ["text_encoder", "text_encoder_2", "denoise", "decode"]


@pytest.mark.parametrize(("backend", "precision"), [("onnxruntime", "int8"), ("openvino", "bf16-cpu")])
def test_other_precisions_stay_close(line: Line, backend: str, precision: str) -> None:
    assert psnr_db(generated(line, backend, precision), line.reference("the defaults")) > 30


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_its_graphs_compile_for_gpus(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUTOSCOPE_CACHE", str(tmp_path / "engines"))
    assert mutoscope.cli.main(["build", str(line.bundle), "--precision", "bf16", "--target", "rtx40", "--report"]) == 0
    built = {row.split()[0].partition(".")[0] for row in capsys.readouterr().out.splitlines()}
    # One engine serves both calls of the features, whose graphs are equal.
    assert built >= {
        "text_encoder",
        "text_encoder_2",
        "denoiser",
        "vae_features_next",
        "vae_decoder_first",
        "vae_decoder_next",
    }


def test_what_the_prompt_alone_decides_is_a_part_of_its_own(line: Line) -> None:
    first, second = Bundle.open(line.bundle).manifest.graphs_of("denoiser", "fp32")
    assert {tensor.name for tensor in first.inputs} == {"context", "sound"}
    assert {"fps", "texture"} <= {tensor.name for tensor in second.inputs}


def test_a_length_that_is_no_whole_window_and_a_frame_rate_out_of_range_are_refused(line: Line) -> None:
    with mutoscope.Pipeline.load(line.bundle, backend="onnxruntime", precision="fp32") as pipeline:
        with pytest.raises(RequestError, match=r"num_frames.* 17.*(12|18)"):
            pipeline.plan(PROMPT, num_frames=17)
        with pytest.raises(RequestError, match="fps must be a number from 1 to 60; got 61"):
            pipeline.plan(PROMPT, fps=61)


def test_a_checkpoint_that_contradicts_itself_is_refused_in_the_lines_words(line: Line, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "spoilt")
    edit(checkpoint / "vae" / "config.json", lambda config: config.update(channels=5))
    with pytest.raises(ExportError, match="spoilt is refused: the transformer has 3 channels, the VAE 5"):
        open_checkpoint(checkpoint)


def test_nothing_but_its_folder_knows_of_it() -> None:
    packages = [ROOT / name for name in ("runtime", "engines", "export", "benchmarks")]
    sources = [path for package in packages for path in package.rglob("*.py")]
    assert len(sources) > 200
    assert not [path for path in sources if "drift" in path.read_text("utf-8").lower().replace("adrift", "")]


def test_the_page_about_it_shows_its_own_code() -> None:
    page = (ROOT / "docs" / "adding-a-family.md").read_text("utf-8")
    shown = re.findall(r"<!-- (\S+) -->\n```python\n(.*?)```", page, re.DOTALL)
    assert len(shown) == page.count("```python") > 5
    for file, code in shown:
        assert code in (ROOT / file).read_text("utf-8"), f"{file} has not:\n{code}"
