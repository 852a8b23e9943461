"""Diffusers on PyTorch, eager and compiled: the reference, and what most people run.

Knows Diffusers' pipeline and networks. The VAE stays in float32 in every precision, as Diffusers advises for Wan.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope.bundle.bundle import Bundle
from mutoscope.output.encoders import silence
from mutoscope.output.video import write_video
from mutoscope.request import PICTURES
from mutoscope_bench.implementation import (
    Implementation,
    Work,
    batch_plans,
    decode_latents,
    forward_feeds,
    needs_checkpoint,
)
from mutoscope_bench.measuring import Answer, Run

ENCODERS = ("text_encoder", "picture_encoder")
AT_ONCE = "gives all frames at once: the first is there when the last is"
BOTH = "keeps both transformers loaded"


class Eager(Implementation):
    """Diffusers as it runs by default, on the CPU."""

    name = "diffusers"
    variants = ("fp32", "bf16")
    import_statement = "import torch; from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel"
    files_of = "checkpoint"
    compiled = False

    def unavailable_because(self) -> str | None:
        missing = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
        return f"needs {', '.join(missing)}; run: pip install 'mutoscope[bench]'" if missing else None

    def cannot(self, work: Work, precision: str) -> str | None:
        manifest = Bundle.open(work.bundle, verify=False).manifest
        if work.plan["family"] != "wan":
            return f"this adapter knows Wan; the bundle's family is {work.plan['family']}"
        defaults = manifest.defaults
        own = {"scheduler": defaults.scheduler, "flow_shift": None, "sigmas": None, "cache_interval": 1}
        changed = [name for name in own if work.request.get(name, own[name]) != own[name]]
        if changed:
            return f"runs the checkpoint's own schedule; this request changes {', '.join(changed)}"
        if defaults.flow_shift is not None:
            return f"runs the checkpoint's own shift; the bundle's default is {defaults.flow_shift:g} (flow_shift)"
        if defaults.sigmas is not None:
            return "runs the checkpoint's own noise levels; this bundle has others as a default (sigmas)"
        if work.kind == "decode" and precision != "fp32":
            return "decodes in float32 alone, as Diffusers advises for this VAE"
        return needs_checkpoint(work)

    def prepare(self, work: Work) -> None:
        """Imports the pipeline that the work needs, which is not always that of text."""
        if work.kind in ("clip", "experts"):
            _pipeline_class(work)

    def load(self, work: Work, precision: str) -> Run:
        import torch

        torch.set_num_threads(work.threads)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        load = {"clip": _load_clip, "experts": _load_clip, "forward": _load_forward, "decode": _load_decode}[work.kind]
        return torch.no_grad()(load(work, dtype, self.compiled))


class Compiled(Eager):
    """The network that dominates is compiled: the transformer, or the VAE where that alone is measured."""

    name = "diffusers-compiled"
    compiled = True

    def unavailable_because(self) -> str | None:
        from shutil import which

        if which("c++") is None and which("g++") is None and which("clang++") is None:
            return "torch.compile needs a C++ compiler; install g++"
        return super().unavailable_because()


def _load_clip(work: Work, dtype: Any, compiled: bool) -> Run:
    """The pipeline from the prompt to frames, written by our writer, which every implementation shares."""
    import torch

    silence()
    pipeline = _pipeline_class(work).from_pretrained(work.checkpoint, dtype={"vae": torch.float32, "default": dtype})
    pipeline.set_progress_bar_config(disable=True)
    networks = [network for network in (pipeline.transformer, pipeline.transformer_2) if network is not None]
    if compiled:
        for network in networks:
            network.compile()
    marks, plan = _Marks(pipeline), work.planned()
    request = {
        name: work.plan[name]
        for name in ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "max_sequence_length")
    }
    if len(networks) == 2:
        request["guidance_scale_2"] = plan.guidance.scales["denoiser_low"]

    def video(seed: int, file: Path) -> Answer:
        marks.clear()
        started = time.perf_counter()
        frames = pipeline(
            prompt=work.plan["prompt"], negative_prompt=work.plan["negative_prompt"], output_type="np",
            generator=torch.Generator().manual_seed(seed), callback_on_step_end=marks.on_step, **request,
            **_pictures(work),
        ).frames[0]  # fmt: skip
        frames = np.rint(frames * 255).astype(np.uint8)
        made = time.perf_counter()
        write_video(file, [frames], replace(plan, seed=seed).header, sign="off")
        ended = time.perf_counter()
        stages = {"decode": made - marks.steps[-1], "first_frame": made - started, "encode": ended - made}
        return {
            "frames": frames, "elapsed_s": ended - started, "steps": marks.steps_s(), "stages": marks.stages() | stages,
        }  # fmt: skip

    def run() -> Answer:
        answers = [video(seed, file) for seed, file in batch_plans(work)]
        frames = [answer.pop("frames") for answer in answers]
        elapsed = sum(answer["elapsed_s"] for answer in answers)
        notes = {"notes": {"first_frame": AT_ONCE}} | ({"note": BOTH} if len(networks) == 2 else {})
        return answers[0] | {"elapsed_s": elapsed} | notes | _kept(work, np.concatenate(frames))

    return run


def _pipeline_class(work: Work) -> Any:
    import diffusers

    return diffusers.WanImageToVideoPipeline if _named_pictures(work) else diffusers.WanPipeline


def _named_pictures(work: Work) -> dict[str, str]:
    """The files of the pictures that the video follows, by their names in the request."""
    return {name: work.request[name] for name in PICTURES if name in work.request}


def _pictures(work: Work) -> dict[str, Any]:
    from PIL import Image

    return {name: Image.open(file).convert("RGB") for name, file in _named_pictures(work).items()}


class _Marks:
    """When the parts of a clip began and ended, which the pipeline's own methods leave behind.

    Attributes:
        steps: when each step ended.
    """

    def __init__(self, pipeline: Any) -> None:
        self.steps: list[float] = []
        self._spans: dict[str, list[tuple[float, float]]] = {}
        pipeline.encode_prompt = self._marked(pipeline.encode_prompt, "text_encoder")
        pipeline.vae.encode = self._marked(pipeline.vae.encode, "picture_encoder")
        if hasattr(pipeline, "encode_image"):
            pipeline.encode_image = self._marked(pipeline.encode_image, "picture_encoder")
        if pipeline.transformer_2 is not None:  # what the pipeline calls before each forward
            second = pipeline.transformer_2
            second.cache_context = self._marked(second.cache_context, "second")

    def clear(self) -> None:
        """Forgets the clip before."""
        self.steps.clear()
        self._spans.clear()

    def on_step(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """To be called at the end of each step."""
        self.steps.append(time.perf_counter())
        return {}

    def steps_s(self) -> list[float]:
        """Seconds of each step; the first begins when all that the video follows is encoded."""
        return [later - earlier for earlier, later in pairwise([self._encoded(), *self.steps])]

    def stages(self) -> dict[str, float]:
        """Seconds of what comes before decoding; with two transformers, from the end of the first's last step to the
        second's first call."""
        spans = {name: each for name, each in self._spans.items() if name in ENCODERS}
        taken = {name: sum(ended - begun for begun, ended in each) for name, each in spans.items()}
        taken["denoiser"] = self.steps[-1] - self._encoded()
        for called, _ in self._spans.get("second", ())[:1]:
            if before := [step for step in self.steps if step <= called]:
                taken["kept_switch"] = called - before[-1]
        return taken

    def _encoded(self) -> float:
        return max(ended for name in ENCODERS for _, ended in self._spans.get(name, ()))

    def _marked(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The same function, which leaves behind when it began and ended."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self._spans.setdefault(name, []).append((started, time.perf_counter()))
            return result

        return marked


def _load_forward(work: Work, dtype: Any, compiled: bool) -> Run:
    """`WanTransformer3DModel` on all branches at once, and the guided sum."""
    import torch
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel.from_pretrained(f"{work.checkpoint}/transformer", torch_dtype=dtype).eval()
    if compiled:
        transformer.compile()
    feeds = {name: torch.from_numpy(value) for name, value in forward_feeds(work).items()}
    weights = torch.tensor(work.plan["guidance_weights"])
    latents = feeds["latents"].to(dtype).expand(len(weights), -1, -1, -1, -1)
    embeds = feeds["prompt_embeds"].to(dtype)

    def run() -> Answer:
        started = time.perf_counter()
        velocity = transformer(latents, feeds["timestep"].expand(len(weights)), embeds, return_dict=False)[0].float()
        torch.einsum("b,bcfhw->cfhw", weights, velocity)
        elapsed = time.perf_counter() - started
        if not Path(work.result).exists():
            np.save(work.result, velocity.numpy())
        return {"elapsed_s": elapsed}

    return run


def _load_decode(work: Work, dtype: Any, compiled: bool) -> Run:
    import torch
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(f"{work.checkpoint}/vae", torch_dtype=dtype).eval()
    if compiled:
        vae.decoder.compile()
    latents = torch.from_numpy(decode_latents(work))[None]
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))

    def run() -> Answer:
        started = time.perf_counter()
        frames = vae.decode((latents * std + mean).to(dtype), return_dict=False)[0][0]
        pixels = (frames.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
        pixels = pixels.permute(1, 2, 3, 0).numpy()
        return {"elapsed_s": time.perf_counter() - started, **_kept(work, pixels)}

    return run


def _kept(work: Work, frames: np.ndarray) -> Answer:
    """Of the first run the frames, in a file, and their hash."""
    if Path(work.result).exists():
        return {}
    np.save(work.result, frames)
    return {"sha256": hashlib.sha256(frames.tobytes()).hexdigest()}
