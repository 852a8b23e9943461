"""What videos are made with, and where: what all workers of a data folder have in common. Knows no queue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bundle.bundle import Bundle
from ..codec import decode, encode
from ..errors import BundleError, RequestError
from ..request import OutputOptions, RuntimeOptions, VideoRequest
from .given_files import GivenFiles
from .jobs import Job
from .named_loras import NamedLoras, without_hashes

TABLE, VIDEOS, WORKERS, GIVEN = "jobs.sqlite3", "videos", "workers", "pictures"  # in the data folder


@dataclass(frozen=True, kw_only=True)
class Studio:
    """What videos are made with, and where."""

    bundles: Mapping[str, Bundle]
    options: RuntimeOptions
    output: OutputOptions
    folder: Path  # one folder in it for each video
    attempts: int
    free_disk: int
    loras_folder: str | None = None

    def place(self, id: str) -> Path:
        """The folder of one video."""
        return self.folder / id

    @property
    def given(self) -> GivenFiles:
        """What clients sent."""
        return GivenFiles(self.folder.parent / GIVEN)

    @property
    def loras(self) -> NamedLoras:
        """Those that clients may name."""
        return NamedLoras(self.loras_folder)

    def request_of(self, job: Job) -> VideoRequest:
        """What a row asks for, with the files that clients sent and those of the LoRAs that they named.

        Raises:
            RequestError: a file is not there any more.
        """
        said, _ = without_hashes(job.request)
        return self.loras.resolved(self.given.request_of(job.id, said))

    @property
    def disk_is_full(self) -> bool:
        """Whether less is free than is to be left."""
        return shutil.disk_usage(self.folder).free < self.free_disk

    def settings(self) -> str:
        """All of it but the folder, for `studio_of` in another process."""
        models = {name: [str(bundle.root.resolve()), bundle.sha256] for name, bundle in self.bundles.items()}
        return json.dumps(
            {
                "models": models,
                "runtime": encode(self.options),
                "output": encode(self.output),
                "attempts": self.attempts,
                "free_disk": self.free_disk,
                "loras": self.loras_folder,
            }
        )


def studio_of(settings: str, folder: Path, options: Mapping[str, Any]) -> Studio:
    """What a server said of how it makes videos.

    Args:
        settings: of `Studio.settings`.
        folder: of the videos.
        options: fields of `RuntimeOptions` that stand in place of the server's.

    Raises:
        BundleError: a bundle is not the one that the server opened.
        RequestError: no server has said anything, or the options do not fit together.
    """
    if not settings:
        raise RequestError("no server has used this data folder yet; start a server on it first")
    said = json.loads(settings)
    bundles = {name: Bundle.open(Path(root)) for name, (root, _) in said["models"].items()}
    for name, (root, sha256) in said["models"].items():
        if bundles[name].sha256 != sha256:
            raise BundleError(f"{root} is not the bundle that the server opened as {name}; start the server again")
    return Studio(
        bundles=bundles,
        options=replace(RuntimeOptions.from_dict(said["runtime"]), **options),
        output=decode(OutputOptions, said["output"]),
        folder=folder,
        attempts=said["attempts"],
        free_disk=said["free_disk"],
        loras_folder=said["loras"],
    )
