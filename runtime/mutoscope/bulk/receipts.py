"""What is known of each finished video, and the lists of them in the order of the jobs. Knows the store."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from mutoscope_engines.system.file_hash import file_sha256
from mutoscope_engines.system.machine import cpu_model

from ..codec import to_plain
from ..making import MadeVideo
from ..provenance.signature import SIDECAR_ENDING
from ..request import FILES, LORAS, RuntimeOptions
from ..version import __version__
from .store import FolderStore, Store
from .task import FAILED, RECEIPTS, Batch, Task, receipt_name

LIST, FAILURES = "receipts.jsonl", "failures.jsonl"


def receipt_of(made: MadeVideo, task: Task, batch: Batch, runtime: RuntimeOptions, attempt: int) -> dict[str, Any]:
    """What is kept of a video: its file and hashes, everything that decided it, and how long it took.

    Args:
        made: the video.
        task: which one it is.
        batch: whose.
        runtime: with which options it ran, none of them left open.
        attempt: how often it was tried, this time included.
    """
    file = batch.video(task.key)
    return {
        "key": task.key,
        "file": file,
        **{name: value for name, value in made.file.to_dict().items() if name != "path"},
        "sidecar": made.file.sidecar and f"{file}{SIDECAR_ENDING}",
        "seed": made.plan.seed,
        "plan": made.plan.to_dict(),
        "files": {name: path for name in FILES if (path := getattr(task.request, name)) is not None},
        "loras": {name: to_plain(given) for name in LORAS if (given := getattr(task.request, name))},
        "times_s": {stage: round(seconds, 4) for stage, seconds in made.times_s.items()},
        "attempt": attempt,
        "host": platform.node(),
        "device": cpu_model(),
        "runtime": runtime.to_dict(),
        "output": batch.setting["output"],
        "mutoscope": __version__,
    }


def of_the_first(receipt: dict[str, Any], store: FolderStore) -> dict[str, Any]:
    """The receipt where a video was there already, made by a worker that ended before it wrote one."""
    place = store.root / receipt["file"]
    sha256 = file_sha256(place)
    unsigned = receipt["sha256"] == receipt["content_sha256"]
    return receipt | {
        "bytes": place.stat().st_size,
        "sha256": sha256,
        "content_sha256": sha256 if unsigned else receipt["content_sha256"],
    }


def keys_done(store: Store) -> set[str]:
    """The videos that have a receipt."""
    return {name.removesuffix(".json") for name in store.names(RECEIPTS) if name.endswith(".json")}


def failures(store: Store) -> dict[str, int]:
    """How many attempts at a video failed, by its key."""
    found: dict[str, int] = defaultdict(int)
    for name in store.names(FAILED):
        key, _, rest = name.partition(".")
        number = rest.removesuffix(".json")
        if number.isdigit():
            found[key] = max(found[key], int(number))
    return found


def receipt(store: Store, key: str) -> dict[str, Any] | None:
    """That of a video, if it is finished."""
    content = store.read(receipt_name(key))
    return None if content is None else json.loads(content)


def write_lists(batch: Batch, store: Store) -> None:
    """`receipts.jsonl` and `failures.jsonl` anew, from what the store has of these tasks, in their order.

    Workers may do so at the same time: whoever writes last has looked afterwards whether anything was missing.
    """
    while True:
        done = keys_done(store)
        lines = [
            {"id": task.id, "repeat": task.repeat} | found | ({} if task.meta is None else {"meta": task.meta})
            for task in batch.tasks
            if task.key in done and (found := receipt(store, task.key)) is not None
        ]
        store.replace(LIST, _as_lines(lines))
        if keys_done(store) <= done:
            break
    store.replace(FAILURES, _as_lines(_failed(batch, store, done)))


def _failed(batch: Batch, store: Store, done: set[str]) -> Iterable[dict[str, Any]]:
    names: dict[str, list[str]] = defaultdict(list)
    for name in store.names(FAILED):
        names[name.partition(".")[0]].append(name)
    for task in batch.tasks:
        if task.key in names and task.key not in done:
            found = [json.loads(store.read(f"{FAILED}/{name}") or b"{}") for name in names[task.key]]
            found.sort(key=lambda each: int(each.get("attempt", 0)))
            yield {"id": task.id, "repeat": task.repeat, "line": task.line, "key": task.key, "attempts": found}


def _as_lines(objects: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in objects).encode()
