"""What each stage of a video takes on the device, from the shapes in the manifest and what the backend knows.

Knows bundles and backends' figures. Opens no graph, and chooses nothing: that is `memory_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mutoscope_engines.device import byte_size
from mutoscope_engines.session import Backend, EngineWanted, Figures

from .bundle import Bundle
from .engine_shapes import sized
from .errors import BackendUnavailableError
from .manifest import Graph
from .memory_plan import Stage, Way

GRAPHS = {
    "text_encoder": ("text_encoder",),
    "denoiser": ("denoiser",),
    "vae_decoder": ("vae_decoder_first", "vae_decoder_next"),  # both are open while the second takes over the caches
}
# What activations grow with, once attention is fused; measured as linear from 32,760 to 75,600 tokens.
GROWS_WITH = {"text_encoder": "BL", "denoiser": "BFhw", "vae_decoder_first": "hw", "vae_decoder_next": "hw"}


@dataclass(frozen=True)
class Sizes:
    """The symbols of a video, but for how many branches the denoiser takes at once."""

    branches: int  # of guidance
    text_tokens: int  # L
    latents_shape: tuple[int, int, int, int]  # C, F, h, w
    state_rows: int  # K

    def symbols(self, role: str, branches_per_call: int) -> dict[str, int]:
        _, frames, rows, columns = self.latents_shape
        branches = branches_per_call if role == "denoiser" else self.branches
        return {"B": branches, "L": self.text_tokens, "F": frames, "h": rows, "w": columns, "K": self.state_rows}


def wanted_engine(bundle: Bundle, graph: Graph, symbols: Mapping[str, int] | None) -> EngineWanted:
    """What an engine of a graph must be, for these sizes, or for any."""
    shapes = {} if symbols is None else {tensor.name: sized(tensor.shape, symbols) for tensor in graph.inputs}
    return EngineWanted(graph.precision, bundle.content_of(graph), shapes, bundle.size_of(graph))


def stages_of(bundle: Bundle, precision: str, backend: Backend, sizes: Sizes, branches: Sequence[int]) -> list[Stage]:
    """Every stage with the ways to run it, the fastest first: whole, with less at once, with streamed weights.

    Args:
        precision: of the denoiser.
        branches: how many may go through the denoiser in one call, the fastest first.

    Raises:
        BackendUnavailableError: the backend has no engine for these sizes.
    """
    return [
        Stage(name, _ways(bundle, precision, backend, sizes, roles, branches if name == "denoiser" else branches[:1]))
        for name, roles in GRAPHS.items()
    ]


def _ways(
    bundle: Bundle,
    precision: str,
    backend: Backend,
    sizes: Sizes,
    roles: Sequence[str],
    branches: Sequence[int],
) -> tuple[Way, ...]:
    graphs = [bundle.manifest.graph(role, precision) for role in roles]
    whole, refusals = [], []
    for count in branches:
        name = "whole" if count == sizes.branches or roles != ("denoiser",) else f"{count} branch in a call"
        try:
            whole.append(_way(bundle, backend, graphs, sizes, name, count))
        except BackendUnavailableError as error:
            refusals.append(error)
    if not whole:
        raise refusals[0]
    streamed = [replace(way, name=f"{way.name}, weights streamed") for way in whole if way.streamable_bytes]
    return (*(replace(way, streamable_bytes=0) for way in whole), *streamed)


def _way(bundle: Bundle, backend: Backend, graphs: Sequence[Graph], sizes: Sizes, name: str, branches: int) -> Way:
    """A stage with all its graphs open. Only what is one graph alone streams its weights."""
    figures, buffers, activations = [], 0, 0
    for graph in graphs:
        symbols = sizes.symbols(graph.role, branches)
        found = backend.figures(bundle.path(graph.file), wanted_engine(bundle, graph, symbols))
        figures.append(found)
        buffers += sum(
            byte_size(sized(tensor.shape, symbols), tensor.dtype) for tensor in (*graph.inputs, *graph.outputs)
        )
        activations = max(activations, _activations(graph, symbols, found))
    return Way(
        name,
        weight_bytes=sum(found.weight_bytes for found in figures),
        buffer_bytes=buffers,
        activation_bytes=activations,
        activations_known=all(found.activation_bytes is not None for found in figures),
        streamable_bytes=figures[0].streamable_bytes if len(graphs) == 1 else 0,
        branches_per_call=branches,
    )


def _activations(graph: Graph, symbols: Mapping[str, int], figures: Figures) -> int:
    """Those that were found for the largest shapes, in proportion; 0 where they are not known."""
    if figures.activation_bytes is None or figures.largest is None:
        return figures.activation_bytes or 0
    largest = {
        size: figures.largest[tensor.name][axis]
        for tensor in graph.inputs
        for axis, size in enumerate(tensor.shape)
        if isinstance(size, str)
    }
    here, there = (math.prod(each[symbol] for symbol in GROWS_WITH[graph.role]) for each in (symbols, largest))
    return math.ceil(figures.activation_bytes * here / there)
