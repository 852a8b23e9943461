"""From an ONNX graph to an engine in a file, with TensorRT-RTX or TensorRT. Needs no GPU with the former.

Knows the library's builder and its log. Knows nothing of bundles, caches or budgets. It is meant to run in a process of
its own (`engine_process.py`): it takes a multiple of the weights in host memory, and may crash.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..cache.identity import EngineIdentity
from ..errors import EngineError
from ..system.machine import peak_memory_bytes
from ..system.weight_pages import pages_given_back
from .library import LIBRARIES, MAX_FUSED_HEAD_SIZE, TensorRT


@dataclass(frozen=True)
class Compiled:
    """What the compiler and its log say of an engine that was written to a file."""

    activation_bytes: int
    weight_bytes: int
    engine_bytes: int
    sha256: str
    build_s: float
    host_peak_bytes: int
    attention_width: int  # heads times head size of the widest attention; 0 without any
    attention_heads: int  # of the attention with the most


def compile_engine(graph: Path, destination: Path, library_name: str, identity: EngineIdentity) -> Compiled:
    """Compiles a graph for the capabilities and shapes of an identity, with its flags, and writes it to `destination`.

    Raises:
        EngineError: the library cannot read or compile the graph, or the file cannot be written.
        BackendUnavailableError: the library is missing, or does not know one of the capabilities.
    """
    started = time.perf_counter()
    library = LIBRARIES[library_name]
    trt = library.module
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)  # owns the weights: it must live until the end of the build
    with pages_given_back(graph.parent), destination.open("wb") as file:
        if not parser.parse_from_file(str(graph)):
            reasons = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
            raise EngineError(f"{library.name} cannot read {_name(graph)}: {reasons}. Export it again")
        _decompose_wide_attention(trt, network)
        config = _config(library, builder, identity, _name(graph))
        writer = _writer(trt, file)
        built = builder.build_serialized_network_to_stream(network, config, writer)
    if writer.error:
        raise EngineError(f"the engine of {_name(graph)} cannot be written: {writer.error}") from writer.error
    if not built:
        raise EngineError(_refusal(library, graph, identity, log.errors))
    width, heads = _attention(trt, network)
    return Compiled(
        activation_bytes=log.count("Total Activation Memory"),
        weight_bytes=log.count("Total Weights Memory"),
        engine_bytes=writer.written,
        sha256=writer.hash.hexdigest(),
        build_s=round(time.perf_counter() - started, 3),
        host_peak_bytes=peak_memory_bytes(),
        attention_width=width,
        attention_heads=heads,
    )


def _config(library: TensorRT, builder: Any, identity: EngineIdentity, name: str) -> Any:
    trt = library.module
    config = builder.create_builder_config()
    library.set_targets(config, identity.compute_capabilities)
    for flag in filter(str.isupper, identity.flags):  # the others name what is done to the network
        config.set_flag(trt.BuilderFlag.__members__[flag])
    config.max_aux_streams = 0
    profile = builder.create_optimization_profile()
    for tensor, shapes in identity.profile.items():
        profile.set_shape(tensor, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{library.name} refuses the shapes {dict(identity.profile)} for {name}")
    return config


def _decompose_wide_attention(trt: Any, network: Any) -> None:
    """The middle block of a VAE has one head of hundreds; without this the build fails for want of a kernel."""
    for layer in _layers(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the binding hands every layer out as the base class
            if layer.get_input(0).shape[-1] > MAX_FUSED_HEAD_SIZE:
                layer.attention.decomposable = True


def _attention(trt: Any, network: Any) -> tuple[int, int]:
    """The widest attention, as heads times head size, and the most heads. (0, 0) without any.

    It is an attention node, or a product of two tensors `[B, heads, S, size]` as in one that is written out.
    """
    found = [(0, 0)]
    for layer in _layers(network):
        written_out = layer.type == trt.LayerType.MATRIX_MULTIPLY
        if written_out or layer.type == trt.LayerType.ATTENTION_INPUT:
            shape = tuple(layer.get_input(0).shape)
            if len(shape) == 4 and shape[1] > 0 and shape[3] > 0:
                found.append((shape[1] * shape[3], shape[1]))
    return max(width for width, _ in found), max(heads for _, heads in found)


def _layers(network: Any) -> Any:
    return (network.get_layer(index) for index in range(network.num_layers))


def _refusal(library: TensorRT, graph: Path, identity: EngineIdentity, errors: list[str]) -> str:
    capabilities = ", ".join(f"sm{number}" for number in identity.compute_capabilities)
    reason = errors[0] if errors else "it does not say why"
    advice = f"Try another precision than {identity.precision}, or other targets"
    return f"{library.name} cannot compile {_name(graph)} for {capabilities}: {reason}. {advice}"


def _name(graph: Path) -> str:
    return f"{graph.parent.name}/{graph.name}"


def _log(trt: Any) -> Any:
    """A logger that keeps errors and the sizes of memory, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self._counts: dict[str, int] = {}

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message.strip())
            elif found := re.fullmatch(r"(Total \w+ Memory): (\d+) bytes", message.strip()):
                self._counts[found[1]] = max(self._counts.get(found[1], 0), int(found[2]))

        def count(self, what: str) -> int:
            if what not in self._counts:
                raise EngineError(
                    f"the compiler's log has no {what!r}, so the engine's memory cannot be checked; "
                    "install the version of the library that Mutoscope requires"
                )
            return self._counts[what]

    return Log()


def _writer(trt: Any, file: BinaryIO) -> Any:
    """Writes an engine to a file as it is made, so that it is never whole in memory beside what it is made from."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.hash = hashlib.sha256()
            self.written = 0
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                file.write(data)
            except OSError as error:  # the library would call the build a success all the same
                self.error = error
                return 0
            self.hash.update(data)
            self.written += len(data)
            return len(data)

    return Writer()
