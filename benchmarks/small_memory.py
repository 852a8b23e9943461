"""Shows in how little memory Wan 2.1 1.3B runs on a CPU in int8: the whole pipeline at its real size, random weights.

    python -m benchmarks.small_memory --workspace DIR [--limit 8GB 4GB] [--output FILE.json]

Makes a bundle with the text encoder UMT5-XXL, the denoiser 1.3B and the VAE of Wan 2.1 (about 9 GB in DIR, kept for
the next time), and measures three things: each graph with settings of ONNX Runtime, in a process of its own; the stages
of a whole run; and `mutoscope generate` under a limit. Neither time nor memory depends on what the weights are, so they
are windows onto one small array, and no network of this size is ever in memory to make the bundle.

Two figures of memory count. "peak_rss" is all that a process had in memory, pages of the mapped weights among them; the
system takes those back when it needs them, and reads them again. "peak_anonymous" is what it cannot take back. Under a
limit, a run is in a control group that the kernel holds to it, pages of files included, which are not in memory before;
it needs root and the memory controller.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from mutoscope.bundle.bundle import TOKENIZER, Bundle, write_manifest
from mutoscope.bundle.manifest import Draw, Graph
from mutoscope.commands.arguments import one_of
from mutoscope.values.parameters import BYTES
from mutoscope_bench import page_cache
from mutoscope_bench.cases import PROMPT
from mutoscope_bench.measuring import Answer, MeasurementError, PeakMemory, Run, measure_once, serve
from mutoscope_engines.system.machine import usable_cores
from mutoscope_peers.random_models import random_feeds, write_graphs

from .real_sizes import MAX_SEQUENCE_LENGTH, MODELS, make_network
from .reporting import BUILTIN_BUNDLE, write_result
from .session_settings import load_session

MODEL = MODELS["1.3B"]
NETWORKS = MODEL.networks()
PRECISION = "int8"
SIZES = {"L": MAX_SEQUENCE_LENGTH, "F": 5, "h": 32, "w": 32, "K": 4}  # of the request, with UniPC's state
REQUEST = {"height": 256, "width": 256, "num_frames": 17, "num_inference_steps": 2, "seed": 0}
# Graph, settings of `session_settings`, guidance branches, runs after the first.
STAGES: list[tuple[str, list[str], int, int]] = [
    ("text_encoder", ["defaults", "no prepacking", "weights read, not mapped"], 2, 0),
    ("denoiser", ["defaults", "no prepacking", "no arena", "no memory pattern", "weights read, not mapped"], 2, 1),
    ("denoiser", ["defaults", "no prepacking"], 1, 1),
    ("vae_decoder_next", ["defaults", "no prepacking", "no arena", "no memory pattern"], 2, 1),
]


def make_bundle(folder: Path) -> None:
    """A bundle around graphs of real size; its tokenizer and settings are those of the built-in one."""
    from mutoscope_export.families.wan import vae
    from mutoscope_export.families.wan.graph_sources import text_to_video

    graphs: list[Graph] = []
    network, component, halo = None, None, 0
    for source in text_to_video([PRECISION]):
        if source.component != component:
            component = source.component
            network = make_network(component, NETWORKS[component])
            if component == "vae":
                halo = vae.DecoderChunk(network, first=True).halo()
        (form,) = source.forms
        print(f"write {source.role} {form.precision}", file=sys.stderr)
        graphs += write_graphs(source, network, {form.precision: folder / source.role}, cut=form.cut)[form.precision]
    shutil.copy(BUILTIN_BUNDLE / TOKENIZER, folder)
    built_in = Bundle.open(BUILTIN_BUNDLE, verify=False).manifest
    prompt = built_in.conditionings[0]
    manifest = msgspec.structs.replace(
        built_in,
        graphs=tuple(graphs),
        geometry=MODEL.geometry(halo),
        conditionings=(msgspec.structs.replace(prompt, max_sequence_length=MAX_SEQUENCE_LENGTH),),
        draws=(Draw(input="latents", shape=(MODEL.latent_channels, "F", "h", "w")),),
        preview=None,
        demonstration=None,
        lora_forms=(),
    )
    write_manifest(folder, manifest)


def measure_stages(bundle: Path, folder: Path, threads: int) -> Iterator[Answer]:
    """Each graph with each setting, in a fresh process, through ONNX Runtime directly."""
    opened = Bundle.open(bundle, verify=False)
    for role, settings, branches, runs in STAGES:
        *_, graph = opened.manifest.graphs_of(role, PRECISION)  # of several parts the one that runs in every step
        feeds = folder / "feeds.npz"
        np.savez(
            feeds,
            **random_feeds(graph.inputs, SIZES | {"B": branches}),
        )
        for setting in settings:
            row = {"graph": role, "branches": branches, "setting": setting}
            spec = {"graph": str(bundle / graph.file), "feeds": str(feeds), "setting": setting, "threads": threads}
            forget_pages(bundle)
            try:
                first, answers = measure_once(__spec__.name, spec, runs)
            except MeasurementError as error:
                yield row | {"note": f"not measured: {error}"}
                continue
            last = [first, *answers][-1]
            figures = {name: last[name] for name in ("elapsed_s", "peak_rss_bytes", "peak_anonymous_bytes")}
            yield row | {"load_s": round(first["load_s"], 2)} | figures


def load_pipeline(spec: dict[str, Any]) -> Run:
    """A whole run through the pipeline, told by stages; in a control group where one is named."""
    from mutoscope.pipeline import Pipeline
    from mutoscope.request import RuntimeOptions

    if spec["group"]:
        (Path(spec["group"]) / "cgroup.procs").write_text("0")
    bundle = Bundle.open(spec["bundle"], verify=False)  # hashing reads all of it, and takes no memory

    def run() -> Answer:
        stages: Answer = {}
        memory = PeakMemory()

        def began(stage: str) -> None:
            if stages:
                stages[list(stages)[-1]] |= memory.so_far()
            memory.restart()
            stages[stage] = {}

        with Pipeline(bundle, RuntimeOptions(threads=spec["threads"], **spec["options"])) as pipeline:
            with pipeline.stream(PROMPT, on_stage=began, **REQUEST) as stream:
                for _ in stream:
                    pass
            stages[list(stages)[-1]] |= memory.so_far()
            for stage, seconds in stream.times.seconds.items():
                stages[stage] |= {"elapsed_s": round(seconds, 2), "option": stream.plan.memory.options[stage].name}
        return {"stages": stages}

    return run


def measure_pipeline(bundle: Path, limit: str, threads: int) -> Iterator[Answer]:
    """The stages of a run under a limit: to the planner, and where there are control groups to the kernel."""
    forget_pages(bundle)
    with control_group(BYTES.read(limit)) as group:
        spec = {"bundle": str(bundle), "threads": threads, "options": {"memory_limit": BYTES.read(limit)}}
        try:
            first, _ = measure_once(__spec__.name, spec | {"group": str(group) if group else None})
        except MeasurementError as error:
            yield {"limit": limit, "enforced": group is not None, "note": str(error)}
            return
    for stage, row in first["stages"].items():
        yield {"stage": stage, "limit": limit, "enforced": group is not None, **row}


def generate(bundle: Path, limit: str, threads: int, folder: Path) -> Answer:
    """`mutoscope generate` in a control group of so many bytes."""
    command = [sys.executable, "-m", "mutoscope", "generate", PROMPT, "-o", str(folder / "clip.mp4")]
    command += ["--json", "--quiet"]
    command += ["--bundle", str(bundle), "--threads", str(threads), "--memory-limit", limit]
    for name, value in REQUEST.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    forget_pages(bundle)
    started = time.perf_counter()
    with control_group(BYTES.read(limit)) as group:
        enter = None if group is None else partial((group / "cgroup.procs").write_text, "0")
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter)
        row = {"limit": limit, "enforced": group is not None, "exit_code": done.returncode}
        row |= {"wall_s": round(time.perf_counter() - started, 1)}
        if group is not None:
            row |= {"group_peak_bytes": int((group / PEAKS[group.parent.name]).read_text())}
    if done.returncode:
        return row | {"error": done.stderr.strip().splitlines()[-1:]}
    told = json.loads(done.stdout)
    plan = {name: told["plan"][name] for name in ("memory", "keep_loaded", "branches_per_call")}
    return row | {"times_s": told["times_s"], "peak_rss_bytes": told["peak_memory_bytes"], "plan": plan}


LIMITS = {"memory": "memory.limit_in_bytes", "cgroup": "memory.max"}  # by the name of the controller's folder
PEAKS = {"memory": "memory.max_usage_in_bytes", "cgroup": "memory.peak"}


@contextmanager
def control_group(limit_bytes: int) -> Iterator[Path | None]:
    """A new control group with this much memory, of version 1 or 2; `None` where there can be none."""
    root = Path("/sys/fs/cgroup")
    group = (root / "memory" if (root / "memory").is_dir() else root) / f"small-memory-{os.getpid()}"
    try:
        group.mkdir()
        (group / LIMITS[group.parent.name]).write_text(str(limit_bytes))
    except OSError as error:
        print(f"no control group here, so nothing holds a run to its limit: {error}", file=sys.stderr)
        if group.is_dir():
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def forget_pages(folder: Path) -> None:
    """Takes the files out of the system's cache, so that who reads them next is charged for their pages."""
    if reason := page_cache.drop(folder):
        print(f"pages of the bundle may be charged to nobody: {reason}", file=sys.stderr)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--workspace", type=Path, help="folder for the bundle; made there where it is missing")
    parser.add_argument("--limit", nargs="+", default=["8GB"], help="of memory, for whole runs")
    parser.add_argument(
        "--part", nargs="+", type=one_of("part", PARTS), default=PARTS, help=f"what to measure: {', '.join(PARTS)}"
    )
    given = parser.parse_args()
    if given.worker:
        return serve(partial(load_pipeline if "options" in given.worker else load_session, given.worker))
    if given.workspace is None:
        parser.error("--workspace is missing: a folder with room for about 9 GB")
    bundle = given.workspace / "small-memory"
    if not (bundle / "manifest.json").is_file():
        make_bundle(bundle)
    rows: list[Answer] = []
    with tempfile.TemporaryDirectory(dir=given.workspace) as name:
        if "graphs" in given.part:
            for row in measure_stages(bundle, Path(name), given.threads):
                print(json.dumps(row), file=sys.stderr)
                rows.append(row)
        if "stages" in given.part:
            for limit in given.limit:
                rows += measure_pipeline(bundle, limit, given.threads)
        if "generate" in given.part:
            rows += [generate(bundle, limit, given.threads, Path(name)) for limit in given.limit]
    write_result(given.output, rows, threads=given.threads, sizes=SIZES, request=REQUEST)


PARTS = ["graphs", "stages", "generate"]


if __name__ == "__main__":
    main()
