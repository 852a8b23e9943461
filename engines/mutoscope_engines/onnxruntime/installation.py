"""What is wrong with the installed ONNX Runtime, and how to mend it. Importing this imports none of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import PurePosixPath

FOLDER = "onnxruntime"  # every build is installed into this one
BUILDS = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-migraphx",
    "onnxruntime-rocm", "onnxruntime-training", "onnxruntime-trt-rtx", "onnxruntime-webgpu", "onnxruntime-cann",
)  # fmt: skip
DAMAGED = (ImportError, OSError, AttributeError)  # what importing it raises where files of it are missing or broken


def unusable_because(module: str, names: Sequence[str] = BUILDS) -> str | None:
    """Why a `module` that imports ONNX Runtime must not or cannot be imported, with the next step; `None` when it can.

    Two builds over each other are refused, because neither of them runs: pip mixes their files by the order in which
    it wrote them, and removing one takes files from the other.

    Args:
        names: of the packages that install ONNX Runtime.
    """
    found = _distributions(names)
    builds = [each for each in found if _has_files(each)]
    folders = [build.locate_file("") for build in builds]
    mixed = [build for build, folder in zip(builds, folders, strict=True) if folders.count(folder) > 1]
    if mixed:
        return (
            f"{' and '.join(f'{build.name} {build.version}' for build in mixed)} are installed over each other; run: "
            f"pip uninstall -y {' '.join(build.name for build in mixed)}, then install Mutoscope again "
            "(docs/gpu.md says how for NVIDIA GPUs)"
        )
    try:
        import_module(module)
    except DAMAGED as error:
        if not builds and found:  # pip takes it for installed, and would not install it
            return (
                "onnxruntime-gpu is not installed, only the empty package named onnxruntime that requires it; "
                "run: pip install --force-reinstall --no-deps onnxruntime-gpu"
            )
        if not builds:
            return "onnxruntime is not installed; run: pip install onnxruntime"
        build = f"{builds[0].name}=={builds[0].version}"
        cause = str(error).partition("\n")[0]
        return f"{build} is damaged ({cause}); run: pip install --force-reinstall --no-deps {build}"
    return None


def _distributions(names: Sequence[str]) -> list[Distribution]:
    """Every installed package of these names."""
    found = []
    for name in names:
        with suppress(PackageNotFoundError):
            found.append(distribution(name))
    return found


def _has_files(build: Distribution) -> bool:
    """Whether it installed files of ONNX Runtime. The package in `distributions/` did not: it only has the name."""
    return any(PurePosixPath(file).parts[0] == FOLDER for file in build.files or [])
