"""The two libraries of one interface, and the few lines in which they differ. Importing this imports neither.

Only TensorRT-RTX was run. What is said of the classic `tensorrt` is read from its documentation and unverified.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..cache.identity import EngineIdentity, Profile
from ..device.cuda import compute_capability, cuda_unavailable_because
from ..errors import BackendUnavailableError
from ..targets import Target

MAX_FUSED_HEAD_SIZE = 256  # wider attention has no kernel of its own, and is built from its parts
# What every network is built with. Streams of its own beside ours would each need memory for what they hold at once.
ALWAYS = (f"decomposed-above-{MAX_FUSED_HEAD_SIZE}", "no-auxiliary-streams")


@dataclass(frozen=True)
class TensorRT:
    """One of the two. `module` is what the code calls `trt`; its names are the same in both."""

    name: str  # of the backend
    module_name: str
    distribution: str
    builds_for_other_gpus: bool  # without a GPU, for the compute capabilities that it is given
    capture_flags: tuple[str, ...]  # without which an engine may allocate while a CUDA graph is captured

    @cached_property
    def module(self) -> Any:
        """The library itself.

        Raises:
            BackendUnavailableError: it is not installed, or does not load.
        """
        try:
            return import_module(self.module_name)
        except (ImportError, OSError) as error:
            raise BackendUnavailableError(f"{self.name} cannot be used: {error}. {self._install}") from error

    def version(self) -> str:
        """Of the installed library, with the platform that its engines are for. Imports nothing.

        Raises:
            BackendUnavailableError: it is not installed.
        """
        try:
            number = version(self.distribution)
        except PackageNotFoundError as error:
            raise BackendUnavailableError(f"{self.name} is not installed. {self._install}") from error
        return f"{self.module_name} {number} {sys.platform}-{platform.machine()}"

    def identity(
        self,
        files: Mapping[str, str],
        precision: str,
        targets: Sequence[Target],
        profile: Profile,
        *,
        weight_streaming: bool = False,
    ) -> EngineIdentity:
        """Of the engine that this library makes from a graph: the same for its builder and for who looks for it.

        Args:
            files: SHA-256 of the graph and its weights, by name in their folder (`content_of`, or the manifest).
            profile: the shapes to build for; to look for an engine, those that it must take.
            weight_streaming: whether weights can stay in host memory, at the cost of speed. The library then allocates
                while it runs, so that no CUDA graph can be captured.
        """
        flags = ("WEIGHT_STREAMING",) if weight_streaming else self.capture_flags
        return EngineIdentity(
            files=dict(files),
            precision=precision,
            compute_capabilities=tuple(sorted(target.compute_capability for target in targets)),
            profile=dict(profile),
            library=self.version(),
            flags=tuple(sorted((*flags, *ALWAYS))),
        )

    @property
    def _install(self) -> str:
        return f"Run: pip install 'mutoscope[{self.name}]'"

    def set_targets(self, config: Any, compute_capabilities: Sequence[int]) -> None:
        """Says which GPUs to compile for. The classic library compiles for that of this machine alone, unasked.

        Raises:
            BackendUnavailableError: it does not compile for one of them; lists those it does.
        """
        if not self.builds_for_other_gpus:
            if reason := cuda_unavailable_because():
                raise BackendUnavailableError(f"{self.name} needs a GPU to compile: {reason}; or use tensorrt-rtx")
            if list(compute_capabilities) != [here := compute_capability()]:
                raise BackendUnavailableError(
                    f"{self.name} compiles only for the GPU of this machine; choose the target sm{here}"
                )
            return
        known = {name: value for name, value in self.module.ComputeCapability.__members__.items() if name[:2] == "SM"}
        names = [f"SM{number}" for number in compute_capabilities]
        if unknown := [name.lower() for name in names if name not in known]:
            raise BackendUnavailableError(
                f"{self.version()} does not compile for {', '.join(unknown)}; "
                f"it does for: {', '.join(name.lower() for name in sorted(known, key=lambda name: int(name[2:])))}"
            )
        # A config knows no capability until it is told how many there are.
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(known[name], index)


LIBRARIES = {
    library.name: library
    for library in (
        TensorRT("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx-cu13", True, ("REQUIRE_USER_ALLOCATION",)),
        TensorRT("tensorrt", "tensorrt", "tensorrt-cu13", False, ()),
    )
}
