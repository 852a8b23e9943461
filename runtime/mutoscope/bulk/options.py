"""What a caller can ask of a batch, beside the videos. The command line makes its flags from these fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mutoscope_engines.system.machine import usable_cores

from ..output import FORMATS
from ..values import checks
from ..values.parameters import parameter

# A folder of pictures cannot be put in place in one step, and a single picture is no video.
FILES = tuple(ending for ending in FORMATS if ending not in ("", ".png"))
MOST_ATTEMPTS = 1_000_000
MOST_ACTORS = 100_000
LONGEST_LEASE_S = 7 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How the work is shared and how often it is tried."""

    TITLE: ClassVar[str] = "batch"

    attempts: int = parameter("leave a video alone after this many failed attempts", 3, unit="N")
    lease: int = parameter(
        "a claim on a video that was not renewed for this long is taken over by another worker; live workers renew "
        "theirs four times in it",
        120,
        unit="SECONDS",
    )
    workers: int = parameter(
        "processes on this machine, which share its threads and the memory limit equally; with ray, actors in all",
        1,
        unit="N",
    )
    ray: str | None = parameter(
        "run the workers on the Ray cluster at this address, such as 10.0.0.1:6379, or auto for the one of this "
        "machine; OUT is a folder that all its machines share",
        unit="ADDRESS",
    )
    ending: str = parameter("kind of file", ".mp4", choices=FILES)

    def check(self) -> None:
        """
        Raises:
            RequestError: a value that cannot be; says which can.
        """
        checks.whole("attempts", self.attempts, minimum=1, maximum=MOST_ATTEMPTS)
        checks.whole("lease", self.lease, minimum=1, maximum=LONGEST_LEASE_S)
        checks.whole("workers", self.workers, minimum=1, maximum=usable_cores() if self.ray is None else MOST_ACTORS)
