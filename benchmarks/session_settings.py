"""Measures what ONNX Runtime's settings do to time and memory on the CPU, one change from its defaults at a time.

    python -m benchmarks.session_settings [--output FILE.json] [--busy PROCESSES]

The settings of `mutoscope_engines.onnxruntime.cpu` were chosen from its result. Each row is a fresh process. The memory
that counts is of the whole process: about 60 MB are Python, NumPy and ONNX Runtime themselves.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mutoscope.bundle.bundle import Bundle
from mutoscope.commands.arguments import one_of
from mutoscope_bench.measuring import Answer, MeasurementError, PeakMemory, Run, Worker, measure_once, serve
from mutoscope_engines.backends import load_backend
from mutoscope_engines.onnx_file import read_onnx_file
from mutoscope_engines.onnxruntime.cpu import THREADING
from mutoscope_peers.random_models import SIZES_13B, SIZES_TINY, TINY, WIDTH_13B, make_denoiser, random_feeds

from .reporting import arguments, summary, write_result

# By name: `attributes` and `config` entries of SessionOptions, `run_config` entries of RunOptions, how `weights` come.
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "1 thread": {"attributes": {"intra_op_num_threads": 1}},
    "2 threads": {"attributes": {"intra_op_num_threads": 2}},
    "optimization disabled": {"level": "ORT_DISABLE_ALL"},
    "optimization basic": {"level": "ORT_ENABLE_BASIC"},
    "optimization extended": {"level": "ORT_ENABLE_EXTENDED"},
    "no spinning": {"config": {"session.intra_op.allow_spinning": "0"}},
    "dynamic block base 4": {"config": {"session.dynamic_block_base": "4"}},
    "no spinning, dynamic block base 4": {"config": THREADING},
    "spins for 100 us": {"config": {"session.intra_op.spin_duration_us": "100"}},
    "spins for 100 us, dynamic block base 4": {
        "config": {"session.intra_op.spin_duration_us": "100", "session.dynamic_block_base": "4"}
    },
    "no arena": {"attributes": {"enable_cpu_mem_arena": False}},
    "arena grows by what is asked": {"config": {"session.use_env_allocators": "1"}, "arena": True},
    "arena shrinks after a run": {"run_config": {"memory.enable_memory_arena_shrinkage": "cpu:0"}},
    "no memory pattern": {"attributes": {"enable_mem_pattern": False}},
    "no arena, no memory pattern": {"attributes": {"enable_cpu_mem_arena": False, "enable_mem_pattern": False}},
    "no prepacking": {"config": {"session.disable_prepacking": "1"}},
    "prepacking in parallel": {"config": {"session.prepack.enable_parallel": "1"}},
    "weights outside the arena": {"config": {"session.use_device_allocator_for_initializers": "1"}},
    # By default the weights' file is mapped into memory, and what kernels pack is a second copy on the heap.
    "weights read, not mapped": {"weights": "read"},
    "optimized graph from disk": {"weights": "optimized"},
    "optimized graph and packed weights from disk": {"weights": "packed"},
}
# 512 tokens: fewer than a forward of `mutoscope bench` has, so that all settings fit into some minutes.
SIZES = SIZES_13B | {"F": 2}


def load_session(spec: dict[str, Any]) -> Run:
    """The graph with one setting, through ONNX Runtime directly."""
    from mutoscope_engines.onnxruntime.library import ort

    memory = PeakMemory()
    path, setting = Path(spec["graph"]), SETTINGS[spec["setting"]]
    level = setting.get("level", "ORT_ENABLE_ALL")
    if setting.get("weights") in ("optimized", "packed"):
        path, level = Path(spec["optimized"]), "ORT_DISABLE_ALL"
    options = _options(spec["threads"], setting, level)
    if setting.get("weights") == "read":
        files = sorted(read_onnx_file(path).locations)
        contents = [path.with_name(file).read_bytes() for file in files]
        options.add_external_initializers_from_files_in_memory(files, contents, list(map(len, contents)))
    if setting.get("arena"):
        device = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(device, ort.OrtArenaCfg({"arena_extend_strategy": 1}))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in np.load(spec["feeds"]).items()}
    run_options = ort.RunOptions()
    for name, value in setting.get("run_config", {}).items():
        run_options.add_run_config_entry(name, value)

    def run() -> Answer:
        session.run_with_ort_values(names, values, run_options)
        return {"peak_anonymous_bytes": memory.so_far()["peak_anonymous_bytes"]}

    return run


def write_optimized(spec: dict[str, Any]) -> Run:
    """Saves the graph as ONNX Runtime optimizes it for this processor, its weights beside it as kernels pack them."""
    from mutoscope_engines.onnxruntime.library import ort

    target = Path(spec["optimized"])
    packed = SETTINGS[spec["setting"]]["weights"] == "packed"
    options = _options(spec["threads"], {}, "ORT_ENABLE_ALL")
    options.optimized_model_filepath = str(target)
    for name, value in {
        "session.optimized_model_external_initializers_file_name": target.name + ".data",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": str(int(packed)),
    }.items():
        options.add_session_config_entry(name, value)
    ort.InferenceSession(spec["graph"], options, providers=["CPUExecutionProvider"])
    return dict


def _options(threads: int, setting: dict[str, Any], level: str) -> Any:
    from mutoscope_engines.onnxruntime.library import ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    for name, value in setting.get("attributes", {}).items():
        setattr(options, name, value)
    for name, value in setting.get("config", {}).items():
        options.add_session_config_entry(name, value)
    return options


def builtin_graphs(root: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """The denoisers and the VAE's next chunk of a bundle, at its default size, with feeds written to `folder`."""
    bundle = Bundle.open(root)
    manifest = bundle.manifest
    defaults, geometry = manifest.defaults, manifest.geometry
    sizes = {
        "B": 2, "L": manifest.symbol_ranges["L"][1], "K": 4,
        "F": manifest.frames.latent_frames(defaults.num_frames),
        "h": defaults.height // geometry.vae_scale_factor_spatial,
        "w": defaults.width // geometry.vae_scale_factor_spatial,
    }  # fmt: skip
    runs = load_backend("onnxruntime").supports
    for graph in manifest.graphs:
        if graph.role in ("denoiser", "vae_decoder_next") and runs(graph.precision):
            feeds = folder / f"{graph.name}.npz"
            np.savez(feeds, **random_feeds(graph.inputs, sizes))
            name = f"builtin {graph.name} {graph.precision}"
            yield {"name": name, "graph": str(bundle.path(graph.file)), "feeds": str(feeds)}


def width_13b_graphs(folder: Path, model: dict[str, int], sizes: dict[str, int]) -> list[dict[str, Any]]:
    """Writes a denoiser of the width of Wan 1.3B; each of its graphs with its feeds."""
    make_denoiser(folder, model, sizes)
    feeds = str(folder / "feeds.npz")
    return [
        {"name": f"width-1.3b {graph.parent.name}", "graph": str(graph), "feeds": feeds}
        for graph in sorted(folder.glob("*/*.onnx"))
    ]


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other programs, which want a core each for as long as this lasts."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(graph: dict[str, Any], setting: str, threads: int, rounds: int) -> Answer:
    """A row of the table: one graph with one setting, in a process of its own for each round."""
    row = {"graph": graph["name"], "setting": setting}
    with tempfile.TemporaryDirectory() as folder:
        spec = graph | {"setting": setting, "threads": threads, "optimized": f"{folder}/optimized.onnx"}
        try:
            if SETTINGS[setting].get("weights") in ("optimized", "packed"):
                measure_once(__spec__.name, spec | {"write": True})
            first, answers = measure_once(__spec__.name, spec, rounds)
        except MeasurementError as error:
            return row | {"note": f"not measured: {error}"}
    return row | summary(first, answers) | {"rss_after_bytes": answers[-1]["rss_bytes"]}


def measure_in_turn(graph: dict[str, Any], settings: list[str], threads: int, rounds: int) -> list[Answer]:
    """A row for each setting, whose processes run one after the other, round by round: a machine whose speed changes
    slows all alike."""
    workers = {name: Worker(__spec__.name, graph | {"setting": name, "threads": threads}) for name in settings}
    answers: dict[str, list[Answer]] = {name: [] for name in settings}
    for _ in range(rounds):
        for name, worker in workers.items():
            answers[name].append(worker.run())
    for worker in workers.values():
        worker.close()
    return [
        {"graph": graph["name"], "setting": name} | summary(workers[name].first, answers[name]) for name in settings
    ]


def main() -> None:
    """Runs what the command line asks for."""
    parser = arguments(__doc__, default_rounds=2)
    parser.add_argument(
        "--setting", nargs="+", metavar="NAME", type=one_of("setting", list(SETTINGS)), default=list(SETTINGS),
        help=f"{'; '.join(SETTINGS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--busy", type=int, default=0, metavar="PROCESSES", help="other programs that want a core each")
    parser.add_argument(
        "--in-turn", action="store_true", help="run the settings in turn; all that are named load at once"
    )
    given = parser.parse_args()
    if given.worker:
        return serve(partial(write_optimized if given.worker.get("write") else load_session, given.worker))
    rounds = 1 if given.quick else given.rounds
    model, sizes = (TINY, SIZES_TINY) if given.quick else (WIDTH_13B, SIZES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: list[Answer] = []
        graphs = width_13b_graphs(folder / "width", model, sizes)
        if given.bundle.is_dir():
            graphs += builtin_graphs(given.bundle, folder)
        else:
            rows.append({"graph": "builtin", "note": f"not measured: no {given.bundle.name}"})
        with busy(given.busy):
            for graph in graphs:
                if given.in_turn:
                    rows += measure_in_turn(graph, given.setting, given.threads, rounds)
                    continue
                for setting in given.setting:
                    if SETTINGS[setting] != {"attributes": {"intra_op_num_threads": given.threads}}:  # the default
                        rows.append(measure(graph, setting, given.threads, rounds))
    facts = {"threads": given.threads, "quick": given.quick, "rounds": rounds, "sizes": sizes, "model": model}
    write_result(given.output, rows, busy=given.busy, in_turn=given.in_turn, **facts)


if __name__ == "__main__":
    main()
