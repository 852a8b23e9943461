"""Compares speed on the CPU with Diffusers, doing the same work: one forward at real width, and a whole clip.

    python -m benchmarks.cpu_speed [--case width-1.3b builtin-clip] [--output FILE.json]

Each implementation is a process of its own; all of a case are loaded, then run in turn. Times are only comparable
within one result. Diffusers in fp32, not compiled, is what the others' errors are measured against.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope.bundle import Bundle

from .graph_cases import SIZES_13B, SIZES_TINY, TINY, WIDTH_13B, make_denoiser
from .measuring import Answer, MeasurementError, Run, arguments, measure_in_turn, serve, summary, write_result

EAGER, COMPILED, OURS = "diffusers", "diffusers torch.compile", "mutoscope onnxruntime"
CASES = {
    "width-1.3b": [
        (EAGER, "fp32"), (COMPILED, "fp32"), (EAGER, "bf16"), (COMPILED, "bf16"), (OURS, "fp32"), (OURS, "int8"),
    ],
    "builtin-clip": [(EAGER, "fp32"), (COMPILED, "fp32"), (EAGER, "bf16"), (OURS, "fp32"), (OURS, "int8")],
}  # fmt: skip
REFERENCE = f"{EAGER} fp32"
PROMPT, SEED = "a red circle moving right on a black background", 7


def load_forward_diffusers(spec: dict[str, Any]) -> Run:
    """`WanTransformer3DModel` on both branches at once, and the guided sum."""
    import torch
    from diffusers import WanTransformer3DModel

    torch.set_num_threads(spec["threads"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[spec["precision"]]
    folder = Path(spec["folder"])
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype).eval()
    if spec["implementation"] == COMPILED:
        transformer.compile()
    feeds = {name: torch.from_numpy(value) for name, value in np.load(folder / "feeds.npz").items()}
    weights = feeds["guidance_weights"]
    latents = feeds["latents"].to(dtype).expand(len(weights), -1, -1, -1, -1)

    def run() -> Answer:
        with torch.no_grad():
            velocity = transformer(
                latents, feeds["timestep"].expand(len(weights)), feeds["prompt_embeds"].to(dtype), return_dict=False
            )[0]
        np.save(spec["result"], torch.einsum("b,bcfhw->cfhw", weights, velocity.float()).numpy())
        return {}

    return run


def load_forward_ours(spec: dict[str, Any]) -> Run:
    """The denoiser graph, whose next state is the guided sum here."""
    from mutoscope_engines.backends import load_backend
    from mutoscope_engines.session import SessionOptions

    folder = Path(spec["folder"])
    session = load_backend("onnxruntime").open(
        folder / spec["precision"] / "model.onnx", SessionOptions(threads=spec["threads"])
    )
    feeds = dict(np.load(folder / "feeds.npz"))

    def run() -> Answer:
        np.save(spec["result"], session.run(feeds)["next_state"].numpy()[0])
        return {}

    return run


def load_clip_diffusers(spec: dict[str, Any]) -> Run:
    """`WanPipeline` from prompt to uint8 frames. The VAE stays in fp32, as Diffusers advises."""
    import torch
    from diffusers import WanPipeline

    torch.set_num_threads(spec["threads"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[spec["precision"]]
    pipeline = WanPipeline.from_pretrained(spec["folder"], torch_dtype={"vae": torch.float32, "default": dtype})
    pipeline.set_progress_bar_config(disable=True)
    if spec["implementation"] == COMPILED:
        pipeline.transformer.compile()
    stages: dict[str, float] = {}
    pipeline.encode_prompt = _timed(pipeline.encode_prompt, "text_encoder", stages)
    pipeline.vae.decode = _timed(pipeline.vae.decode, "vae_decoder", stages)

    def run() -> Answer:
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(SEED)
        frames = pipeline(PROMPT, generator=generator, output_type="np", **spec["request"]).frames[0]
        frames = np.rint(frames * 255).astype(np.uint8)
        elapsed = time.perf_counter() - started
        np.save(spec["result"], frames)
        return {"elapsed_s": elapsed, "stages_s": stages | {"denoiser": elapsed - sum(stages.values())}}

    return run


def _timed(function: Callable[..., Any], stage: str, stages: dict[str, float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        stages[stage] = time.perf_counter() - started
        return result

    return timed


def load_clip_ours(spec: dict[str, Any]) -> Run:
    """`mutoscope.Pipeline` from prompt to uint8 frames."""
    import mutoscope

    pipeline = mutoscope.Pipeline.load(spec["bundle"], precision=spec["precision"], threads=spec["threads"])

    def run() -> Answer:
        started = time.perf_counter()
        stream = pipeline.stream(PROMPT, seed=SEED, **spec["request"])
        frames = np.concatenate(list(stream))
        elapsed = time.perf_counter() - started
        np.save(spec["result"], frames)
        return {"elapsed_s": elapsed, "stages_s": stream.times.seconds}

    return run


def worker(spec: dict[str, Any]) -> None:
    loaders = {
        ("width-1.3b", False): load_forward_diffusers,
        ("width-1.3b", True): load_forward_ours,
        ("builtin-clip", False): load_clip_diffusers,
        ("builtin-clip", True): load_clip_ours,
    }
    serve(partial(loaders[spec["case"], spec["implementation"] == OURS], spec))


def measure(case: str, folder: Path, rounds: int, facts: dict[str, Any]) -> Iterator[Answer]:
    """One row for each implementation of a case; `facts` go to every worker."""
    specs = {
        f"{implementation} {precision}": {
            "case": case, "implementation": implementation, "precision": precision,
            "result": str(folder / f"{case}-{index}.npy"), **facts,
        }
        for index, (implementation, precision) in enumerate(CASES[case])
    }  # fmt: skip
    measured = measure_in_turn(__spec__.name, specs, rounds)
    for name, spec in specs.items():
        row = {"case": case, "implementation": spec["implementation"], "precision": spec["precision"]}
        outcome = measured[name]
        if isinstance(outcome, MeasurementError):
            yield row | {"note": f"not measured: {outcome}"}
            continue
        row |= summary(*outcome)
        if name != REFERENCE and not isinstance(measured[REFERENCE], MeasurementError):
            row |= _difference(case, np.load(spec["result"]), np.load(specs[REFERENCE]["result"]))
        stages = [answer["stages_s"] for answer in outcome[1] if "stages_s" in answer]
        if stages:
            row["stages_s"] = {stage: round(float(np.median([s[stage] for s in stages])), 4) for stage in stages[0]}
        yield row


def _difference(case: str, given: np.ndarray, expected: np.ndarray) -> Answer:
    off = given.astype(np.float64) - expected
    if case == "width-1.3b":
        return {"relative_error": float(np.linalg.norm(off) / np.linalg.norm(expected.astype(np.float64)))}
    error = float(np.square(off).mean())
    return {"psnr_db": round(10 * np.log10(255**2 / error), 2)} if error else {"psnr_db": None, "note": "equal frames"}


def _request(bundle: Path, quick: bool) -> dict[str, Any]:
    """The default clip of a bundle, in the words of both pipelines."""
    manifest = Bundle.open(bundle, verify=False).manifest
    names = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "negative_prompt")
    request = {name: getattr(manifest.defaults, name) for name in names}
    request["max_sequence_length"] = manifest.text.max_sequence_length
    return request | ({"num_frames": 5, "num_inference_steps": 2} if quick else {})


def main() -> None:
    parser = arguments(__doc__, default_rounds=3)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker)
    rounds = 1 if given.quick else given.rounds
    model, sizes = (TINY, SIZES_TINY) if given.quick else (WIDTH_13B, SIZES_13B)
    rows: list[Answer] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{name}/inductor"  # so that each result compiles anew
        if "width-1.3b" in given.case:
            make_denoiser(folder / "width", model, sizes)
            rows += measure("width-1.3b", folder, rounds, {"folder": str(folder / "width"), "threads": given.threads})
        if "builtin-clip" in given.case:
            missing = [path.name for path in (given.checkpoint, given.bundle) if not path.is_dir()]
            if missing:
                rows.append({"case": "builtin-clip", "note": f"not measured: no {' and no '.join(missing)}"})
            else:
                facts = {"folder": str(given.checkpoint), "bundle": str(given.bundle), "threads": given.threads}
                request = _request(given.bundle, given.quick)
                rows += measure("builtin-clip", folder, rounds, facts | {"request": request})
    write_result(given.output, rows, threads=given.threads, quick=given.quick, rounds=rounds, sizes=sizes, model=model)


if __name__ == "__main__":
    sys.exit(main())
