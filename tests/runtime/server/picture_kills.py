"""Kills a process, as by `kill -9`, around each step that a video with a picture takes, all on one data folder.

python -m tests.runtime.server.picture_kills DATA BUNDLE
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from mutoscope.bundle.bundle import Bundle
from mutoscope.request import OutputOptions, RuntimeOptions
from mutoscope.server.options import ServeOptions
from mutoscope.server.reading import Asked
from mutoscope.server.service import Service
from mutoscope.server.studio import Studio

from tests.runtime.server.dying import arm
from tests.runtime.server.picturing import saved
from tests.runtime.server.served import CIRCLE, Gate, GatedBackend

TABLE, KEPT = "mutoscope.server.jobs:JobTable", "mutoscope.server.given_files:GivenFiles"
REFUSED, ACCEPTED, MADE, DELETED = "refused", "accepted", "made", "deleted"  # what was going on, or had happened
TRANSITIONS = [
    (REFUSED, "before", f"{KEPT}.keep"),
    (REFUSED, "before", "mutoscope.server.given_files:sync"),
    (REFUSED, "after", f"{KEPT}.keep"),
    (REFUSED, "before", f"{TABLE}.add"),
    (ACCEPTED, "after", f"{TABLE}.add"),
    (MADE, "before", "mutoscope.server.worker:make_file"),
    (MADE, "before", f"{TABLE}.complete"),
    (MADE, "after", f"{TABLE}.complete"),
    (DELETED, "after", f"{TABLE}.mark_deleted"),
    (DELETED, "before", f"{KEPT}.remove"),
    (DELETED, "after", f"{KEPT}.remove"),
    (DELETED, "before", f"{TABLE}.forget"),
]


def ask(data: Path, bundle: Path, seed: int, what: str) -> None:
    """Asks for a video, and for what else a transition needs."""
    studio = Studio(
        bundles={"both": Bundle.open(bundle)},
        options=RuntimeOptions(backend=GatedBackend(Gate())),
        output=OutputOptions(sign="off"),
        folder=data / "videos",
        attempts=100,
        free_disk=1,
    )
    studio.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    service = Service(studio, ServeOptions())
    values = {"prompt": CIRCLE, "num_frames": 1, "num_inference_steps": 1, "seed": seed}
    job = service.create(Asked(values, files={"image": saved()}))
    if what == DELETED:
        service.delete(job.id)
    if what == MADE:
        service.worker.start()
        time.sleep(60)


if __name__ == "__main__":
    for number, (what, when, where) in enumerate(TRANSITIONS):
        child = os.fork()
        if not child:
            arm(when, where)
            ask(Path(sys.argv[1]), Path(sys.argv[2]), number, what)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{when} {where}: {status}"
