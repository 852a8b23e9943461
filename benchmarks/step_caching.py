"""What fewer calls of the network save in time, and cost in likeness and in prompts followed.

    python -m benchmarks.step_caching --count 60 --output benchmarks/results/step_caching.json

The built-in model with every `cache_interval`, with fewer steps, and beside it Diffusers with each of its own caches
that takes a `WanTransformer3DModel`. All make a prompt's clip in turn, in one process, from the same noise; each is
compared with the whole run of its own side. The result is written after every clip, and an interrupted run goes on
from it.

Knows both programs. Knows nothing of how a step is saved.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import mutoscope
import numpy as np
import torch
from diffusers import WanPipeline
from mutoscope.bundle.contract import CONDITION, DENOISE
from mutoscope_bench import difference
from mutoscope_bench.machine_facts import describe
from numpy.typing import NDArray

from .prompt_following import ASPECTS, FIRST_UNSEEN_SEED, choose_scenes, judge
from .reporting import BUILTIN_BUNDLE, BUILTIN_CHECKPOINT, table

Clip = NDArray[np.float32]  # [T, H, W, 3] in whole levels of 0 to 255; rounding alone leaves 56 dB between two
WHOLE = "whole"
DOCUMENT = Path(__file__).parents[1] / "docs/fewer-steps.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- begin of the measured table -->\n", "<!-- end of the measured table -->\n"
OURS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "cache_interval 2": {"cache_interval": 2},
    "cache_interval 3": {"cache_interval": 3},
    "cache_interval 4": {"cache_interval": 4},
    "14 steps": {"num_inference_steps": 14},
    "12 steps": {"num_inference_steps": 12},
    "10 steps": {"num_inference_steps": 10},
}
# The configuration, by what `diffusers` calls its class, with the values that its documentation recommends and milder.
DIFFUSERS: dict[str, tuple[str, dict[str, Any]] | None] = {
    WHOLE: None,
    "FirstBlockCache 0.05": ("FirstBlockCacheConfig", {"threshold": 0.05}),
    "FirstBlockCache 0.1": ("FirstBlockCacheConfig", {"threshold": 0.1}),
    "SeaCache 0.1": ("SeaCacheConfig", {"threshold": 0.1}),
    "SeaCache 0.25": ("SeaCacheConfig", {"threshold": 0.25}),
    "MagCache 0.06": ("MagCacheConfig", {"threshold": 0.06, "num_inference_steps": 20}),
    # Its usual mode names no module of this model, and so caches nothing; the lite mode predicts the last projection.
    "TaylorSeer lite, every 2nd": (
        "TaylorSeerCacheConfig",
        {
            "cache_interval": 2,
            "disable_cache_before_step": 6,
            "use_lite_mode": True,
            "taylor_factors_dtype": torch.float32,
        },
    ),
    "PyramidAttentionBroadcast 2": ("PyramidAttentionBroadcastConfig", {"spatial_attention_block_skip_range": 2}),
    "FasterCache": ("FasterCacheConfig", {"spatial_attention_block_skip_range": 2, "tensor_format": "BCFHW"}),
}


class Ours:
    """The bundle, with each setting of ours."""

    name = "mutoscope"

    def __init__(self, bundle: Path, threads: int) -> None:
        self.pipeline = mutoscope.Pipeline.load(bundle, precision="fp32", threads=threads)

    def settings(self) -> list[str]:
        """The names of what it can be asked for."""
        return list(OURS)

    def make(self, setting: str, prompt: str, seed: int) -> tuple[Clip, dict[str, float]]:
        """The frames f32 `[T, H, W, 3]` of one prompt in levels, and what they took: calls and seconds."""
        started = time.perf_counter()
        with self.pipeline.stream(prompt, seed=seed, **OURS[setting]) as stream:
            frames = np.concatenate(list(stream))
        seconds = time.perf_counter() - started
        facts = {
            "calls": len(stream.plan.schedule.timesteps),
            "denoiser_s": stream.times.seconds[DENOISE] + stream.times.seconds[CONDITION],
            "total_s": seconds,
        }
        return frames.astype(np.float32), facts


class Diffusers:
    """The checkpoint in Diffusers, with each of its caches."""

    name = "diffusers"

    def __init__(self, checkpoint: Path, plan: mutoscope.Plan) -> None:
        diffusers.utils.logging.set_verbosity_error()
        self.pipeline = WanPipeline.from_pretrained(checkpoint, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        names = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "max_sequence_length")
        self.request = {name: getattr(plan.to_request(), name) for name in names}
        self.calls = 0
        transformer = self.pipeline.transformer
        transformer.blocks[-1].ffn.register_forward_pre_hook(self._count)
        self.branches = len(plan.guidance.weights)
        self.mag_ratios = self._calibrated(plan)

    def settings(self) -> list[str]:
        """The names of what it can be asked for."""
        return list(DIFFUSERS)

    def make(self, setting: str, prompt: str, seed: int) -> tuple[Clip, dict[str, float]]:
        """The frames f32 `[T, H, W, 3]` of one prompt in levels, and what they took: calls and seconds."""
        transformer = self.pipeline.transformer
        if (chosen := DIFFUSERS[setting]) is not None:
            transformer.enable_cache(self._config(*chosen))
        try:
            return self._run(prompt, seed)
        finally:
            if chosen is not None:
                transformer.disable_cache()

    def _run(self, prompt: str, seed: int) -> tuple[Clip, dict[str, float]]:
        self.calls, denoised = 0, [0.0]

        def note(pipeline: Any, step: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
            denoised[0] = time.perf_counter()
            return kept

        started = time.perf_counter()
        generator = torch.Generator("cpu").manual_seed(seed)
        made = self.pipeline(
            prompt, generator=generator, output_type="np", callback_on_step_end=note, **self.request
        ).frames[0]
        facts = {
            "calls": self.calls / self.branches,
            "denoiser_s": denoised[0] - started,
            "total_s": time.perf_counter() - started,
        }
        return np.round(255 * made), facts  # to levels, as ours are

    def _config(self, name: str, options: dict[str, Any]) -> Any:
        if name == "MagCacheConfig":
            options = {"mag_ratios": self.mag_ratios, **options}
        if name in ("PyramidAttentionBroadcastConfig", "FasterCacheConfig"):
            options = {"current_timestep_callback": lambda: self.pipeline.current_timestep, **options}
        return getattr(diffusers, name)(**options)

    def _calibrated(self, plan: mutoscope.Plan) -> list[float]:
        """What MagCache asks for: how much the residual grows from step to step, in one whole run."""
        transformer, printed = self.pipeline.transformer, io.StringIO()
        steps = plan.schedule.num_inference_steps
        transformer.enable_cache(diffusers.MagCacheConfig(calibrate=True, num_inference_steps=steps))
        with contextlib.redirect_stdout(printed):
            self._run(plan.conditions.prompt, plan.seed)
        transformer.disable_cache()
        found = re.search(r"^\[.*\]$", printed.getvalue(), re.MULTILINE)
        return list(ast.literal_eval(found.group())) if found else [1.0] * steps

    def _count(self, *_: Any) -> None:
        self.calls += 1


def psnr_db(given: Clip, expected: Clip) -> float:
    """Of clips in levels; 99 for equal ones."""
    return min(99.0, difference.psnr_db(given, expected))


def measure(sides: list[Any], count: int, keep: Callable[[list[dict[str, Any]]], None], rows: list[Any]) -> None:
    """One row a prompt and setting; `rows` of an earlier run are not made again."""
    done = {(row["implementation"], row["setting"], row["seed"]) for row in rows}
    failed = {(row["implementation"], row["setting"]) for row in rows if "note" in row}
    for index, scene in enumerate(choose_scenes(count)):
        prompt, seed = scene.prompt(), FIRST_UNSEEN_SEED + index
        for side in sides:
            missing = [
                name
                for name in side.settings()
                if (side.name, name, seed) not in done and (side.name, name) not in failed
            ]
            whole: Clip | None = None
            for setting in [WHOLE, *(name for name in missing if name != WHOLE)] if missing else []:
                row: dict[str, Any] = {"implementation": side.name, "setting": setting, "seed": seed}
                try:
                    clip, facts = side.make(setting, prompt, seed)
                except Exception as error:  # a cache that this model's pipeline cannot use is a result, too
                    failed.add((side.name, setting))
                    message = (str(error).splitlines() or [""])[0]
                    rows.append(row | {"note": f"{type(error).__name__}: {message[:160]}"})
                    keep(rows)
                    continue
                whole = clip if whole is None else whole
                seen = asdict(judge(clip.astype(np.uint8)))
                right = {aspect: seen[aspect] == getattr(scene, aspect) for aspect in ASPECTS}
                if (side.name, setting, seed) not in done:
                    rows.append(row | facts | {"psnr_db": psnr_db(clip, whole), "right": right})
                    keep(rows)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a setting. `speedup` is the whole run's time over this one's, of denoising, the median over prompts."""
    whole = {(row["implementation"], row["seed"]): row for row in rows if row["setting"] == WHOLE and "note" not in row}
    summary = []
    for key in dict.fromkeys((row["implementation"], row["setting"]) for row in rows):
        own = [row for row in rows if (row["implementation"], row["setting"]) == key]
        line: dict[str, Any] = dict(zip(("implementation", "setting"), key, strict=True))
        made = [row for row in own if "note" not in row]
        if not made:
            summary.append(line | {"note": own[0]["note"]})
            continue
        ratios = [whole[key[0], row["seed"]]["denoiser_s"] / row["denoiser_s"] for row in made]
        line |= {
            "prompts": len(made),
            "calls": round(statistics.mean(row["calls"] for row in made), 2),
            "denoiser_s": round(statistics.median(row["denoiser_s"] for row in made), 3),
            "total_s": round(statistics.median(row["total_s"] for row in made), 3),
            "speedup": round(statistics.median(ratios), 2),
            "psnr_db": round(statistics.mean(row["psnr_db"] for row in made), 1),
            "worst_psnr_db": round(min(row["psnr_db"] for row in made), 1),
        }
        right = {aspect: statistics.mean(row["right"][aspect] for row in made) for aspect in ASPECTS}
        line |= {aspect: round(share, 3) for aspect, share in right.items()}
        summary.append(line | {"followed": round(statistics.mean(right.values()), 3)})
    return summary


def document_table(summary: list[dict[str, Any]]) -> str:
    """The summary as Markdown, for docs/fewer-steps.md."""
    prompts = max(row.get("prompts", 0) for row in summary)
    lines = [
        f"| {prompts} prompts | | calls | denoising, s | times faster | PSNR, mean / worst, dB | prompts followed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary:
        told = f"| {row['implementation']} | {row['setting']} | "
        if "note" in row:
            lines.append(told + f"cannot: {row['note']} | | | | |")
            continue
        likeness = "-" if row["setting"] == WHOLE else f"{row['psnr_db']:.1f} / {row['worst_psnr_db']:.1f}"
        lines.append(
            told + f"{row['calls']:g} | {row['denoiser_s']:.2f} | {row['speedup']:.2f} | {likeness} "
            f"| {row['followed']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def publish(summary: list[dict[str, Any]], document: Path) -> None:
    """Replaces the table in a document."""
    before, _, rest = document.read_text("utf-8").partition(TABLE_BEGINS)
    _, _, after = rest.partition(TABLE_ENDS)
    document.write_text(before + TABLE_BEGINS + document_table(summary) + TABLE_ENDS + after, "utf-8")


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="prompts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint", type=Path, default=BUILTIN_CHECKPOINT)
    parser.add_argument("--bundle", type=Path, default=BUILTIN_BUNDLE)
    parser.add_argument(
        "--output", type=Path, required=True, help="the result as JSON; the table goes into docs/fewer-steps.md, too"
    )
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    earlier = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"rows": []}
    rows = earlier["rows"]
    if rows and earlier["count"] != arguments.count:
        parser.error(f"{arguments.output} was begun with --count {earlier['count']}, whose prompts are others")
    ours = Ours(arguments.bundle, arguments.threads)
    plan = ours.pipeline.plan("a red circle growing on a black background", seed=0)
    facts = {
        "machine": describe(),
        "bundle_sha256": plan.bundle_sha256,
        "count": arguments.count,
        "num_inference_steps": plan.schedule.num_inference_steps,
        "guidance_scale": plan.guidance.scale,
        "threads": arguments.threads,
    }

    def keep(rows: list[dict[str, Any]]) -> None:
        text = json.dumps(facts | {"summary": summarise(rows), "rows": rows})
        arguments.output.write_text(text.replace('{"implementation"', '\n{"implementation"') + "\n")

    measure([ours, Diffusers(arguments.checkpoint, plan)], arguments.count, keep, rows)
    summary = summarise(rows)
    print(table(summary))
    publish(summary, DOCUMENT)


if __name__ == "__main__":
    main()
