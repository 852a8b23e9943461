"""Reads the figures of `docs/results.md` from results: each function makes, or is, a reader of one kind of file.

Knows the layout of the files in `benchmarks/results/`. Knows nothing of the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .real_sizes import MODELS

Result = dict[str, Any]
HEAD_SIZE = 128  # in every Wan


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.1f} GB"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def seconds(time: float) -> str:
    return f"{time:.2f} s" if time < 10 else f"{time:.1f} s"


def followed(result: Result) -> str:
    right = result["right"]["all"]
    aspects = ", ".join(f"{name} {percent(right[name])}" for name in ("background", "motion", "colour", "shape"))
    return f"{aspects}, of {right['n']} prompts"


def wrong_shapes(result: Result) -> str:
    """How many prompts show another shape than asked for, by the size and shape that they name."""
    asked, wrong = Counter[str](), Counter[str]()
    for row in result["rows"]:
        shape = next(word for word in ("circle", "square", "triangle", "ring") if word in row["prompt"])
        kind = next((f"{size} {shape}" for size in ("small", "large") if size in row["prompt"]), f"medium {shape}")
        asked[kind] += 1
        wrong[kind] += not row["shape"]
    told = ", ".join(f"{kind} {count} of {asked[kind]}" for kind, count in wrong.most_common() if count)
    return f"{wrong.total()}: {told}"


def lost_and_gained(**names: str) -> Callable[[Result], str]:
    """Of the candidates with these names in the result, by the names they get on the page."""

    def read(result: Result) -> str:
        rows = {row["name"]: row for row in result["rows"]}
        return "; ".join(
            f"{label}: {rows[name]['lost']} lost, {rows[name]['gained']} gained" for label, name in names.items()
        )

    return read


def bench_row(bench: Result, case: str, stage: str, implementation: str, precision: str) -> Result:
    wanted = (case, stage, implementation, precision)
    row: Result
    (row,) = (
        row
        for row in bench["rows"]
        if (row["case"], row["stage"], row["implementation"], row["precision"]) == wanted
    )  # fmt: skip
    return row


def times(case: str, stage: str, ours: str, *peers: str) -> Callable[[Result], str]:
    """Median times of "implementation, precision", ours first, with errors where the result has them."""

    def read(bench: Result) -> str:
        told = []
        for name in (ours, *peers):
            row = bench_row(bench, case, stage, *name.split(", "))
            error = row["relative_error"]
            told.append(f"{name}: {seconds(row['median_s'])}{'' if error is None else f' ({100 * error:.2g} % error)'}")
        return f"**{told[0]}**; " + "; ".join(told[1:])

    return read


def turns(case: str, stage: str, ours: str, *peers: str) -> Callable[[Result], str]:
    """How many times as fast ours ran as each peer when the two took turns, and the slowest and fastest round."""

    def read(bench: Result) -> str:
        told = []
        for name in peers:
            wanted = (case, stage, *ours.split(", "), *name.split(", "))
            keys = ("case", "stage", "implementation", "precision", "against", "against_precision")
            (ratio,) = (ratio for ratio in bench["ratios"] if tuple(ratio[key] for key in keys) == wanted)
            told.append(f"{ratio['ratio']:.2f} times {name} ({ratio['low']:.2f} to {ratio['high']:.2f})")
        return "; ".join(told)

    return read


def peaks_by_length(result: Result) -> str:
    told = []
    for implementation in ("mutoscope", "diffusers"):
        rows = [row for row in result["rows"] if row["implementation"] == implementation]
        sizes = ", ".join(f"{row['peak_rss_bytes'] / 1e6:.0f}" for row in rows)
        told.append(f"{implementation}: {sizes} MB with {', '.join(str(row['num_frames']) for row in rows)} frames")
    return "; ".join(told)


def peaks_by_tiles(result: Result) -> str:
    return "; ".join(
        f"{'whole' if row['tiles'] == 1 else str(row['tiles']) + ' tiles'}: {megabytes(row['peak_rss_bytes'])}"
        for row in result["rows"]
    )


def within_limit(result: Result) -> str:
    *stages, run = result["rows"]
    named = ", ".join(f"{row['stage']} {gigabytes(row['peak_anonymous_bytes'])}" for row in stages)
    return f"exit code {run['exit_code']} within {run['limit']}; not reclaimable by the system: {named}"


def stages_of_export(result: Result) -> str:
    rows = {row["stage"].split()[0]: row for row in result["rows"]}
    return "; ".join(f"{name}: {gigabytes(rows[name]['peak_anonymous_bytes'])}" for name in ("write", "compare"))


def engines(result: Result, **wanted: Any) -> list[Result]:
    return [row for row in result["engines"] if all(row[key] == value for key, value in wanted.items())]


def activations(*wanted: tuple[str, int]) -> Callable[[Result], str]:
    """Of the denoiser, for pairs of largest shapes and guidance branches."""

    def read(result: Result) -> str:
        told = []
        for shapes, branches in wanted:
            size = max(row["activation_bytes"] for row in engines(result, shapes=shapes, branches=branches))
            told.append(f"{shapes}, {branches} branch{'es' if branches > 1 else ''}: {gigabytes(size)}")
        return "; ".join(told)

    return read


def decoder_activations(result: Result) -> str:
    rows = engines(result, role="vae_decoder_next")
    return "; ".join(f"{row['shapes']}, {row['tiles']}: {gigabytes(row['activation_bytes'])}" for row in rows)


def added_by_loras(*results: Result) -> str:
    """How much more the form that LoRAs change takes than the plain one of each target, and how much is allowed.

    The last result has that form, the others have the plain one with as many blocks, each size that it has.
    """
    *plain, changed = results
    told = []
    for row in changed["engines"]:
        size = {name: row[name] for name in ("role", "shapes", "branches")}
        target = _target(changed, row)
        (base,) = (
            engine["activation_bytes"]
            for result in plain
            for engine in engines(result, **size)
            if _target(result, engine) == target
        )
        told.append(f"{target}: {megabytes(row['activation_bytes'] - base)} more than {megabytes(base)}")
    config = MODELS[changed["model"]].transformer
    largest = config["num_attention_heads"] * HEAD_SIZE * config["ffn_dim"] * 2
    return f"{'; '.join(told)}; allowed {megabytes(1.5 * largest)}"


def _target(result: Result, row: Result) -> str:
    """Of an engine; results of before rows had one have one for all."""
    return str(row.get("target", result.get("target")))


def span(values: Sequence[float]) -> str:
    least, most = (f"{value:.1f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def compiler_memory(*results: Result) -> str:
    """The compiler's peak memory over the weights of all parts, as a range over sizes and branches."""
    told = []
    for result in results:
        groups: dict[tuple[str, int], list[Result]] = {}
        for row in result["engines"]:
            groups.setdefault((row["shapes"], row["branches"]), []).append(row)
        peaks = [max(row["host_peak_bytes"] for row in rows) for rows in groups.values()]
        weights = [sum(row["weight_bytes"] for row in rows) for rows in groups.values()]
        factors = [peak / weight for peak, weight in zip(peaks, weights, strict=True)]
        parts = {len(rows) for rows in groups.values()}
        name = f"{result['model']} {result['precision']}, {max(parts)} engine{'s' if max(parts) > 1 else ''}"
        told.append(
            f"{name}: {span(factors)} times the weights (at most {gigabytes(max(peaks))} for {gigabytes(max(weights))})"
        )
    return "; ".join(told)


def encoder_activations(result: Result) -> str:
    rows = [row for row in result["engines"] if row["role"].startswith("vae_encoder")]
    return "; ".join(f"{row['shapes']}, {row['role']}: {gigabytes(row['activation_bytes'])}" for row in rows)


def predicted(
    model: str, precision: str, parts: int, branches: int, decoder: str, shapes: str = "480x832x81"
) -> Callable[[Result], str]:
    wanted = {"target": "rtx40", "shapes": shapes, "model": model, "precision": precision,
              "parts": parts, "branches": branches, "decoder": decoder, "lora_rank": 0}  # fmt: skip

    def read(result: Result) -> str:
        (row,) = (row for row in result["rows"] if all(row[key] == value for key, value in wanted.items()))
        stages = ", ".join(f"{name} {gigabytes(size)}" for name, size in row["stages"].items())
        return f"{gigabytes(row['in_turns_bytes'])} ({stages})"

    return read


def quieter_forward(result: Result) -> str:
    rows = result["quieter"]["rows"]
    told = [f"{row['implementation']}, {row['precision']}: {seconds(row['wall_min_s'])}" for row in rows]
    return "; ".join(told) + ", the least of seven runs"


def killed_batches(result: Result) -> str:
    total = {name: sum(row[name] for row in result["rows"]) for name in ("kills", "kills_with_a_claim", "videos")}
    kept = {name: sum(row[name] for row in result["rows"]) for name in ("lost", "doubled", "left_over")}
    return (
        f"{total['kills']} kills, {total['kills_with_a_claim']} of them while a video was made; of {total['videos']} "
        f"videos {kept['lost']} lost, {kept['doubled']} doubled; {kept['left_over']} files left over"
    )


def videos_per_hour(result: Result) -> str:
    rows = {row["side"]: row for row in result["rows"]}
    told = [f"{name}: {row['videos_per_hour']} videos an hour" for name, row in rows.items()]
    return f"{'; '.join(told)}, of {rows['batch']['videos']} in {rows['batch']['rounds']} rounds"


def bulk_per_hour(implementation: str, precision: str) -> Callable[[Result], str]:
    """Videos an hour of a batch, beside those of a loop in Python."""

    def read(bench: Result) -> str:
        batch, loop = (bench_row(bench, "bulk", stage, implementation, precision) for stage in ("batch", "loop"))
        return f"batch: {3600 * batch['videos_per_s']:.0f} videos an hour; loop: {3600 * loop['videos_per_s']:.0f}"

    return read


def server_adds(implementation: str, precision: str) -> Callable[[Result], str]:
    """The time of a clip with and without the server, and the median of their differences."""

    def read(bench: Result) -> str:
        served, direct, adds = (
            bench_row(bench, "server", stage, implementation, precision)["median_s"]
            for stage in ("served", "direct", "server_adds")
        )
        return f"served: {seconds(served)}; direct: {seconds(direct)}; the server adds {1000 * adds:.0f} ms"

    return read


def killed_servers(result: Result) -> str:
    (row,) = result["rows"]
    states = {**row["states"], "deleted": row["deleted"]}
    ended = ", ".join(f"{count} {state}" for state, count in states.items())
    return (
        f"{row['kills']} kills; {row['accepted']} jobs accepted, and some whose answer a kill cut off: {ended}; "
        f"{row['faults']} lost, doubled or left half written"
    )


def loaded_server(result: Result) -> str:
    (row,) = result["rows"]
    return (
        f"{row['clients']} clients, {row['requests']} requests in {row['minutes']:.0f} minutes: {row['wrong']} wrong "
        f"answers, {row['median_ms']:.0f} ms at the median, {row['p99_ms'] / 1000:.1f} s at the 99th percentile; "
        f"resident memory grew by {100 * row['growth']:.1f} % after the second minute"
    )
