"""Which variants of a case can run here: ours by backend and precision, and those of the peers.

Knows backends, precisions and reasons. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from mutoscope.bundle.bundle import Bundle
from mutoscope.bundle.contract import DECODE, DENOISE
from mutoscope.errors import MutoscopeError
from mutoscope.planning.execution import Execution
from mutoscope.request import RuntimeOptions
from mutoscope_engines.backends import JOINED_BY

from .cases import Case
from .implementation import Variant, Work
from .implementations import OURS, REFERENCE, load_implementation
from .options import Options

DECODER = "vae_decoder_next"  # the graph that a decode runs most
Note = Callable[[str, str | None, str], object]  # told an implementation, its precision, and why it is not measured


def our_variants(case: Case, options: Options, root: Path, note: Note) -> dict[Variant, bool]:
    """Every backend asked for, with every precision asked for that it runs; the one that a user gets first.

    The value is whether it runs on a GPU.
    """
    bundle = Bundle.open(root)
    return {
        variant: on_device
        for backend in options.backends
        for variant, on_device in _of_backend(case, options, bundle, backend, note)
    }


def peer_variants(case: Case, options: Options, work: Work, on_device: bool, note: Note) -> Iterator[Variant]:
    """Those that can do the work, the reference first. `on_device`: whether ours runs on a GPU."""
    if case.ours_alone:
        return
    for name in sorted(options.against, key=lambda name: name != REFERENCE[0]):
        if name in case.left_out:
            note(name, None, f"left out: {case.left_out[name]}")
            continue
        try:
            peer = load_implementation(name)
        except ModuleNotFoundError as error:
            note(name, None, f"needs {error.name}; run: pip install 'mutoscope[bench]'")
            continue
        reason = peer.unavailable_because()
        if reason is None and on_device and not peer.on_device:
            reason = "runs on the CPU, ours on a GPU; to compare with it, add --backend onnxruntime"
        if reason is not None:
            note(name, None, reason)
            continue
        for precision in peer.variants:
            reason = peer.cannot(work, precision)
            if reason is None:
                yield Variant(name, precision)
            else:
                note(name, precision, reason)


def _of_backend(
    case: Case, options: Options, bundle: Bundle, backend: str, note: Note
) -> Iterator[tuple[Variant, bool]]:
    asked = options.precisions
    try:
        first = _execution(options, bundle, backend)
    except MutoscopeError as error:
        note(f"{OURS} {backend}", None, str(error))
        return
    for precision in dict.fromkeys(asked or (first.main.precision, *bundle.manifest.precisions())):
        try:
            execution = _execution(options, bundle, backend, precision)
        except MutoscopeError as error:
            if asked:
                note(f"{OURS} {backend}", precision, str(error))
            continue
        variant, on_device = _variant(case, bundle, execution), execution.main.backend.on_device
        if on_device == first.main.backend.on_device:
            yield variant, on_device
        elif asked:
            where = "a GPU" if on_device else "the CPU"
            note(variant.implementation, precision, f"runs on {where}; add --backend to measure it")


def _execution(options: Options, bundle: Bundle, backend: str, precision: str | None = None) -> Execution:
    return Execution.choose(runtime_options(options, backend, precision), bundle)


def runtime_options(options: Options, backend: str, precision: str | None) -> RuntimeOptions:
    """How a pipeline of ours runs, with one or several backends."""
    given = {"backend": backend.split(JOINED_BY), "precision": precision, "threads": options.threads}
    return RuntimeOptions.from_dict(options.runtime | given)


def _variant(case: Case, bundle: Bundle, execution: Execution) -> Variant:
    """What runs in this case alone: a decoder without graphs in the denoiser's precision is named by its own."""
    placements, precision = execution.placements, execution.main.precision
    several = {"clip", "bulk", "server", "experts"}
    ran = placements if case.kind in several else {"forward": [DENOISE], "decode": [DECODE]}[case.kind]
    names = dict.fromkeys(placements[stage].backend.name for stage in ran)
    if case.kind == "decode":
        decodes = bundle.manifest.graphs_of(DECODER, placements[DECODE].precision)[0].precision
        precision = decodes if decodes in bundle.manifest.precisions() else precision
    return Variant(f"{OURS} {JOINED_BY.join(names)}", precision)
