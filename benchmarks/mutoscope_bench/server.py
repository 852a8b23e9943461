"""What `mutoscope serve` adds to a video: the same request straight to a pipeline, and through HTTP, in turn.

Knows the server as a client does. The server is a process of its own, with the options of the pipeline.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mutoscope import Pipeline
from mutoscope.codec import as_text
from mutoscope.commands.arguments import flag_of
from mutoscope.making import make_file
from mutoscope.request import OutputOptions, RuntimeOptions, VideoRequest
from mutoscope_engines.system.child_python import child_python

from .implementation import Work
from .measuring import Answer, MeasurementError, Run, Way, taking_turns

TIMEOUT_S = 3600.0  # of a step, at most: between two events of a video that is made
OUTPUT = OutputOptions(sign="off")  # of both ways


def server_run(pipeline: Pipeline, work: Work, address: str) -> Run:
    """Makes the video both ways.

    Args:
        pipeline: of the one way, loaded.
        work: what to make.
        address: of a server with the same bundle and options.
    """
    request = VideoRequest.from_dict(work.request)
    return in_turn(
        {"direct": partial(_direct, pipeline, request, Path(work.video)), "served": partial(_served, address, request)}
    )


def in_turn(ways: Mapping[str, Way]) -> Run:
    """Goes both ways, "direct" and "served"; which is first changes from run to run."""
    taken = taking_turns(ways, "the server made another file of the same request")

    def run() -> Answer:
        seconds, _ = taken()
        served, direct = seconds["served"], seconds["direct"]
        return {"elapsed_s": served, "stages": {"direct": direct, "server_adds": served - direct}}

    return run


@contextmanager
def serving(bundle: str, options: RuntimeOptions) -> Iterator[str]:
    """The address of a server of its own, with an empty queue, until the end of the `with`.

    Raises:
        MeasurementError: it does not start; says why.
    """
    given = {field: getattr(options, field.name) for field in fields(options)}
    flags = [f"{flag_of(field.name)}={as_text(field, value)}" for field, value in given.items() if value is not None]
    with tempfile.TemporaryDirectory() as folder:
        command = child_python("-m", "mutoscope", "serve", "--port=0", f"--data={folder}/data", f"--sign={OUTPUT.sign}")
        log, pipe = Path(folder) / "log", subprocess.PIPE
        with (
            log.open("wb") as said,
            subprocess.Popen(
                [*command, *flags, f"it={bundle}"], stdin=pipe, stdout=pipe, stderr=said, text=True
            ) as process,
        ):
            assert process.stdout is not None and process.stdin is not None
            line = process.stdout.readline()
            if not line:
                process.wait()
                raise MeasurementError(f"the server did not start: {log.read_text('utf-8').strip()}")
            try:
                yield json.loads(line)["url"]
            finally:
                process.stdin.close()  # which ends it
                process.wait()


def _direct(pipeline: Pipeline, request: VideoRequest, path: Path) -> tuple[float, str]:
    started = time.perf_counter()
    made = make_file(pipeline, request, path, OUTPUT)
    return time.perf_counter() - started, made.file.content_sha256


def _served(address: str, request: VideoRequest) -> tuple[float, str]:
    """From sending the request until the server says that the video is finished."""
    connection = HTTPConnection(urlsplit(address).netloc, timeout=TIMEOUT_S)
    started = time.perf_counter()
    connection.request("POST", "/v1/videos", json.dumps(request.to_dict()), {"content-type": "application/json"})
    queued = json.loads(connection.getresponse().read())
    if "error" in queued and "id" not in queued:
        raise MeasurementError(f"the server refused the video: {queued['error']['message']}")
    connection.request("GET", f"/v1/videos/{queued['id']}/events")
    video = _ended(line.decode() for line in connection.getresponse())
    elapsed = time.perf_counter() - started
    connection.close()
    if video["state"] != "completed":
        raise MeasurementError(f"the server made no video: {video['error']['message']}")
    return elapsed, video["content_sha256"]


def _ended(lines: Iterator[str]) -> dict[str, Any]:
    """The last event of a video that ends."""
    found: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "data":
            found = json.loads(value)
    return found
