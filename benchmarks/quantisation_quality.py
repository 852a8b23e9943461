"""What bfloat16, int8 and every step of the static forms cost the built-in model: numbers, pixels and prompts.

    python -m benchmarks.quantisation_quality --work FOLDER --output benchmarks/results/quantisation_quality.json

A run that was cut short goes on where it stopped when it is given the same folder. Every graph runs through ONNX
Runtime on the CPU, which has no bfloat16: those graphs run in float32 with each of their values rounded to it.
Knows how to make bundles whose denoiser is another graph. Knows nothing of what the formats are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import msgspec
import mutoscope
import numpy as np
import onnx_ir as ir
import torch
from mutoscope.bundle.bundle import Bundle, write_manifest
from mutoscope_bench.difference import psnr_db
from mutoscope_bench.machine_facts import describe
from mutoscope_engines.backends import load_backend
from mutoscope_engines.chain import Chain
from mutoscope_engines.difference import relative_l2
from mutoscope_engines.session import Session, SessionOptions
from mutoscope_export.demo.grammar import calibration_scenes
from mutoscope_export.demo.renderer import render
from mutoscope_export.export import export_checkpoint
from mutoscope_export.families.family import Recording
from mutoscope_export.families.policy import QuantizationPolicy, QuantizedLayers
from mutoscope_export.families.wan.first_frame import GIVEN
from mutoscope_export.graphs.trace import GRAPH_FILE, Pass
from mutoscope_export.graphs.weight_files import WeightFolder
from mutoscope_export.opening import OpenedCheckpoint, open_checkpoint
from mutoscope_export.options import ExportOptions
from mutoscope_export.passes.in_float32 import InFloat32
from mutoscope_export.passes.in_turn import out_of_turn
from mutoscope_export.passes.nvfp4_in_float32 import nvfp4_in_float32
from mutoscope_export.quantization.calibration import ActivationRange, Ranges, plan_calibration
from mutoscope_export.quantization.four_bits import choose_four_bits
from mutoscope_export.quantization.quantize import calibrated, passes_of
from numpy.typing import NDArray

from .prompt_following import ASPECTS, Frames, measure, summarise

CHECKPOINT = Path(__file__).parents[1] / "export/mutoscope_export/demo/checkpoint"
DOCUMENT = Path(__file__).parents[1] / "docs/quantisation.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- begin of the measured table -->\n", "<!-- end of the measured table -->\n"
EXACT, CHOSEN = "fp32", "the layers that export chooses"  # names of candidates
Velocities = list[NDArray[np.float32]]


class Candidate(Protocol):
    """A model to be measured. Closing it frees its memory."""

    identity: str  # of what makes its clips, as the name of a folder

    def velocity(self, recording: Recording, branch: int) -> NDArray[np.float32]:
        """Of one branch of a recorded step, `[C, F, h, w]`, without the frames that are given."""
        ...

    def generate(self, prompt: str, *, seed: int) -> Any:
        """As `mutoscope.Pipeline.generate`, at the bundle's defaults."""
        ...

    def close(self) -> None:
        """Frees the memory of the model."""
        ...


def asked(velocity: NDArray[np.float32], recording: Recording) -> NDArray[np.float32]:
    """A velocity without the frames that are given: there the graph has the picture, and Diffusers what it discards."""
    given = recording.inputs.get(GIVEN)
    return velocity if given is None else velocity[:, given.numpy() == 0]


def velocity(denoiser: Session, recording: Recording, branch: int) -> NDArray[np.float32]:
    """What a denoiser's graph makes of a recorded step: f32 `[C, F, h, w]`, the velocity of one branch alone."""
    recorded = {name: value.numpy() for name, value in recording.inputs.items()}
    feeds = recorded | {
        "state": np.zeros((1, *recorded["latents"].shape), np.float32),
        "prompt_embeds": recorded["prompt_embeds"][branch : branch + 1],
        "guidance_weights": np.ones(1, np.float32),
        "solver_a": np.zeros((1, 1), np.float32),
        "solver_b": np.ones(1, np.float32),
    }
    return asked(denoiser.run(feeds)["next_state"].numpy()[0], recording)


class BundleCandidate:
    """A denoiser's graph in a bundle, through ONNX Runtime."""

    def __init__(self, root: Path, precision: str) -> None:
        self._pipeline = mutoscope.Pipeline.load(root, precision=precision)
        bundle = Bundle.open(root, verify=False)
        self.identity = f"{bundle.sha256[:16]}-{precision}"
        backend, graphs = load_backend("onnxruntime"), bundle.manifest.graphs_of("denoiser", precision)
        self._denoiser = Chain([backend.open(bundle.path(graph.file), SessionOptions()) for graph in graphs])

    def generate(self, prompt: str, *, seed: int) -> Any:
        """As `Candidate.generate`."""
        return self._pipeline.generate(prompt, seed=seed)

    def velocity(self, recording: Recording, branch: int) -> NDArray[np.float32]:
        """As `Candidate.velocity`."""
        return velocity(self._denoiser, recording, branch)

    def close(self) -> None:
        """Frees the memory of the model."""
        self._denoiser.close()
        self._pipeline.close()


class DiffusersCandidate:
    """The transformer in bfloat16 as Diffusers runs it; text encoder, VAE and solver in float32."""

    def __init__(self, checkpoint: Path, bundle: Bundle) -> None:
        from diffusers import WanPipeline
        from diffusers.utils.logging import disable_progress_bar

        disable_progress_bar()
        types = {"transformer": torch.bfloat16, "default": torch.float32}
        self._pipeline = WanPipeline.from_pretrained(checkpoint, dtype=types)
        self._pipeline.set_progress_bar_config(disable=True)
        self.identity = f"{bundle.sha256[:16]}-diffusers"
        defaults = bundle.manifest.defaults
        names = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
        self._request = {name: getattr(defaults, name) for name in names}
        self._request["max_sequence_length"] = bundle.manifest.symbol_ranges["L"][1]

    def velocity(self, recording: Recording, branch: int) -> NDArray[np.float32]:
        """As `Candidate.velocity`."""
        with torch.no_grad():
            call = {name: value.bfloat16() for name, value in recording.calls[branch].items() if name != "timestep"}
            timestep = recording.calls[branch]["timestep"]
            given = self._pipeline.transformer(**call, timestep=timestep, return_dict=False)[0]
        return asked(given[0].float().numpy(), recording)

    def generate(self, prompt: str, *, seed: int) -> Any:
        """As `Candidate.generate`."""
        generator = torch.Generator("cpu").manual_seed(seed)
        made = self._pipeline(prompt, generator=generator, output_type="np", **self._request).frames[0]
        return SimpleNamespace(frames=(255 * made).round().astype(np.uint8), plan=SimpleNamespace(seed=seed))

    def close(self) -> None:
        """Frees the memory of the model."""
        del self._pipeline


class Baseline:
    """What float32 makes, that others are compared with. Clips are kept in `folder`, and made once."""

    def __init__(self, recordings: Sequence[Recording], count: int, folder: Path) -> None:
        self._recordings, self._count, self._folder = recordings, count, folder
        self._exact: Velocities = []
        self._clips: list[Frames] = []
        self._rows: list[dict[str, Any]] = []

    def compare(self, candidate: Candidate) -> dict[str, Any]:
        """The first candidate is the baseline of the others."""
        velocities = [
            candidate.velocity(recording, branch)
            for recording in self._recordings
            for branch in range(len(recording.inputs["prompt_embeds"]))
        ]
        clips: list[Frames] = []

        def generate(prompt: str, *, seed: int) -> Any:
            """As `Candidate.generate`."""
            clips.append(kept(self._folder / candidate.identity / f"{seed}.npy", prompt, seed, candidate))
            return SimpleNamespace(frames=clips[-1], plan=SimpleNamespace(seed=seed))

        rows = measure(SimpleNamespace(generate=generate), self._count)  # type: ignore[arg-type]
        candidate.close()
        if not self._clips:
            self._exact, self._clips, self._rows = velocities, clips, rows
        psnr = [psnr_db(clip, exact) for clip, exact in zip(clips, self._clips, strict=True)]
        pairs = [(_whole(row), _whole(other)) for row, other in zip(rows, self._rows, strict=True)]
        lost, gained = (sum(now == gain and before != gain for now, before in pairs) for gain in (False, True))
        return {
            "relative_l2": relative_l2(zip(velocities, self._exact, strict=True)),
            "psnr_db_median": finite(float(np.median(psnr))),
            "psnr_db_least": finite(min(psnr)),
            "right": summarise(rows)["all"],
            "all_right": float(np.mean([now for now, _ in pairs]).round(4)),
            "lost": lost,
            "gained": gained,
            "p": round(sign_test(lost, gained), 4),
            "wrong": {aspect: [index for index, row in enumerate(rows) if not row[aspect]] for aspect in ASPECTS},
        }


def kept(file: Path, prompt: str, seed: int, candidate: Candidate) -> Frames:
    """The frames in `file`, made and written there if it is not there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, candidate.generate(prompt, seed=seed).frames)
        partial.rename(file)
    frames: Frames = np.load(file)
    return frames


def sign_test(lost: int, gained: int) -> float:
    """How likely counts as unequal as these, or more so, are where losing and gaining are equally likely (McNemar)."""
    tail = sum(math.comb(lost + gained, fewer) for fewer in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2 ** (lost + gained))


def finite(value: float) -> float | None:
    """JSON has no infinity: `None` stands for equal clips."""
    return round(value, 2) if np.isfinite(value) else None


def _whole(row: dict[str, Any]) -> bool:
    return all(row[aspect] for aspect in ASPECTS)


def with_denoiser(base: Bundle, passes: Sequence[Pass], root: Path) -> Path:
    """A bundle beside `base` whose denoiser is its bfloat16 graph after `passes`, with each value rounded."""
    (graph,) = base.manifest.graphs_of("denoiser", "bf16")
    shutil.copytree(base.root, root, copy_function=os.link, ignore=shutil.ignore_patterns("denoiser*", "manifest.json"))
    model = ir.load(base.path(graph.file))
    for change in (out_of_turn, *passes, nvfp4_in_float32, InFloat32(rounded=True)):
        change(model)
    stored = WeightFolder(root / "denoiser").save(model, GRAPH_FILE)
    others = tuple(other for other in base.manifest.graphs if other.role != "denoiser")
    made = msgspec.structs.replace(
        graph,
        precision="fp32",
        file=f"denoiser/{GRAPH_FILE}",
        weights=tuple(f"denoiser/{file}" for file in stored.files),
        weight_bytes=stored.num_bytes,
    )
    write_manifest(root, msgspec.structs.replace(base.manifest, graphs=(*others, made)))
    return root


def rows(checkpoint: Path, work: Path, count: int, options: ExportOptions, only: str = "") -> Iterator[dict[str, Any]]:
    """One a candidate: float32, and those whose names begin with `only`."""
    base, names, ranges = prepared(checkpoint, work, options)
    baseline = Baseline(ranges.recordings, count, work / "clips")
    for row, candidate in candidates(checkpoint, work, base, names, ranges):
        if row["name"] == EXACT or row["name"].startswith(only):
            yield row | baseline.compare(candidate())


def candidates(
    checkpoint: Path, work: Path, base: Bundle, names: Sequence[str], ranges: Ranges
) -> Iterator[tuple[dict[str, Any], Callable[[], Candidate]]]:
    """What a row says of each, and what makes it: float32, bfloat16, int8, then the calibrated forms."""

    def changed(passes: Sequence[Pass]) -> BundleCandidate:
        shutil.rmtree(work / "changed", ignore_errors=True)
        return BundleCandidate(with_denoiser(base, passes, work / "changed"), "fp32")

    yield {"name": EXACT}, lambda: BundleCandidate(base.root, "fp32")
    yield {"name": "bf16"}, lambda: changed(())
    yield {"name": "bf16 in Diffusers"}, lambda: DiffusersCandidate(checkpoint, base)
    yield {"name": "int8"}, lambda: BundleCandidate(base.root, "int8")
    opened = open_checkpoint(checkpoint)
    for precision, policy in opened.description.policies.items():
        for name, layers in _forms(opened, policy, names, ranges):
            row = {"name": f"{precision}: {name}", "default": name in (f"and {policy.default}", CHOSEN)}
            row |= {"linears": len(layers.linears), "attentions": len(layers.attentions)}
            row |= {"four_bits": len(layers.four_bits)} if layers.four_bits else {}
            yield row, partial(changed, passes_of(policy, layers, ranges).around(()))


def _forms(
    opened: OpenedCheckpoint, policy: QuantizationPolicy, names: Sequence[str], ranges: Ranges
) -> Iterator[tuple[str, QuantizedLayers]]:
    """The steps of a policy; where it goes on to four bits, the layers that an export would choose, and all of them."""
    if policy.four_bits_error is None:
        for number, step in enumerate(policy.step_names):
            yield f"and {step}" if number else step, policy.layers(names, step)
        return
    layers = policy.layers(names, policy.default)
    yield CHOSEN, choose_four_bits(opened.load("transformer").float(), policy, layers, ranges).layers
    yield "every linear layer", replace(layers, four_bits=layers.linears)


def prepared(checkpoint: Path, work: Path, options: ExportOptions) -> tuple[Bundle, list[str], Ranges]:
    """What takes longest before the first clip, found in `work` or put there: base bundle, names of layers, ranges."""
    if not (work / "base").exists():
        export_checkpoint(
            checkpoint, work / "base", ExportOptions(precision=("fp32", "int8", "bf16")), on_progress=_say
        )
    base, file = Bundle.open(work / "base"), work / "ranges.pt"
    if not file.exists():
        opened = open_checkpoint(checkpoint)
        planned = plan_calibration(options, base.manifest, opened.overrides.calibration_prompts)
        [(reference, found)] = calibrated(opened, planned, _say)
        torch.save((reference.layer_names, found), file.with_suffix(".partial"))
        file.with_suffix(".partial").rename(file)
    with torch.serialization.safe_globals([Ranges, ActivationRange, Recording]):
        names, ranges = torch.load(file)
    return base, names, ranges


def with_rows_of(earlier: dict[str, Any], result: dict[str, Any], only: str) -> dict[str, Any]:
    """An earlier result with the rows of another that begin with `only` in place of its own.

    Raises:
        ValueError: they are of other weights or another number of prompts, so that they cannot stand in one table.
    """
    for fact in ("transformer_sha256", "count"):
        if earlier[fact] != result[fact]:
            raise ValueError(
                f"{fact} of the earlier result is {earlier[fact]}, and now {result[fact]}; measure all rows again"
            )
    kept = [row for row in earlier["rows"] if not row["name"].startswith(only)]
    return earlier | {"rows": [*kept, *(row for row in result["rows"] if row["name"].startswith(only))]}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    head = (
        "denoiser", "linears", "in NVFP4", "attentions", "relative L2", "PSNR median / least", *ASPECTS, "all four",
        "lost / gained", "p",
    )  # fmt: skip
    cells = [head, ["---"] * len(head)]
    for row in result["rows"]:
        psnr = [row["psnr_db_median"], row["psnr_db_least"]]
        cells.append(
            [
                f"**{row['name']}**" if row.get("default") else row["name"],
                *(str(row.get(name, "")) for name in ("linears", "four_bits", "attentions")),
                f"{row['relative_l2']:.2%}" if row["relative_l2"] else "0",
                " / ".join("same" if value is None else f"{value:.1f}" for value in psnr),
                *(f"{row['right'][aspect]:.1%}" for aspect in ASPECTS),
                f"{row['all_right']:.1%}",
                f"{row['lost']} / {row['gained']}",
                f"{row['p']:.2g}",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def publish(result: dict[str, Any], document: Path) -> None:
    """Puts the table into the document, between its two comments."""
    before, _, rest = document.read_text("utf-8").partition(TABLE_BEGINS)
    _, _, after = rest.partition(TABLE_ENDS)
    document.write_text(f"{before}{TABLE_BEGINS}{table(result)}{TABLE_ENDS}{after}", "utf-8")


def _say(stage: str) -> None:
    print(stage, file=sys.stderr, flush=True)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="default: the built-in model's")
    parser.add_argument("--count", type=int, default=96, help="prompts to generate")
    parser.add_argument("--calibration-prompts", type=int, help="how many of them; all when not given")
    parser.add_argument("--calibration-steps", type=int)
    parser.add_argument("--work", type=Path, help="keeps what is made, to go on with the same code, model and options")
    parser.add_argument("--output", type=Path, help="the result as JSON; the table goes into docs/quantisation.md, too")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="measure rows that begin so, and put them into --output"
    )
    arguments = parser.parse_args()
    scenes = calibration_scenes()[: arguments.calibration_prompts]
    options = ExportOptions(
        calibration_prompts=[scene.prompt() for scene in scenes],
        calibration_clips=[render(scene, np.random.default_rng(number)) for number, scene in enumerate(scenes)],
        calibration_steps=arguments.calibration_steps,
    )
    weights = open_checkpoint(arguments.checkpoint).sha256_of_files()
    digest = next(digest for name, digest in weights.items() if name.startswith("transformer/diff"))
    result: dict[str, Any] = {"machine": describe(), "transformer_sha256": digest, "count": arguments.count, "rows": []}
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for row in rows(arguments.checkpoint, work, arguments.count, options, arguments.only):
            _say(json.dumps(row))
            result["rows"].append(row)
    if arguments.only and arguments.output:
        result = with_rows_of(json.loads(arguments.output.read_text("utf-8")), result, arguments.only)
    print(table(result))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        publish(result, DOCUMENT)


if __name__ == "__main__":
    main()
