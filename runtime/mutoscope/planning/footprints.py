"""What each stage of a video takes on the device, from the shapes in the manifest and what the backend knows.

Knows bundles and backends' figures. Opens no graph, and chooses nothing: that is `memory_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mutoscope_engines.device.device import byte_size
from mutoscope_engines.session import Backend, EngineWanted, Figures

from ..bundle.bundle import Bundle
from ..bundle.manifest import TILED, Graph, GraphTensor, sized
from ..errors import BackendUnavailableError
from .memory_plan import Stage, Way
from .tiles import num_tiles, window_within, windows

GRAPHS = {
    "text_encoder": ("text_encoder",),
    "denoiser": ("denoiser",),
    # All are open while the second of each part takes over the caches; in tiles one part after the other.
    "vae_decoder": ("vae_features_first", "vae_features_next", "vae_decoder_first", "vae_decoder_next"),
}
RUN_ONCE = ("text_encoder", "vae_features_first", "vae_decoder_first")  # in a video that is decoded whole
# What activations grow with, once attention is fused; measured as linear from 32,760 to 75,600 tokens. Those of the
# features grow faster, so that this is too much below the size for which they were found.
GROWS_WITH = {"text_encoder": "BL", "denoiser": "BFhw"} | dict.fromkeys(GRAPHS["vae_decoder"], "hw")


def stage_of(role: str) -> str:
    """The stage that runs the graph of a role."""
    return next(stage for stage, roles in GRAPHS.items() if role in roles)


@dataclass(frozen=True)
class Placement:
    """What runs the graphs of a stage, and which of them."""

    backend: Backend
    precision: str  # that the manifest is asked for


def everywhere(backend: Backend, precision: str) -> dict[str, Placement]:
    """Every stage in the same place."""
    return dict.fromkeys(GRAPHS, Placement(backend, precision))


@dataclass(frozen=True)
class Sizes:
    """The symbols of a video, but for how many branches the denoiser takes at once."""

    branches: int  # of guidance
    text_tokens: int  # L
    latents_shape: tuple[int, int, int, int]  # C, F, h, w
    state_rows: int  # K

    @property
    def picture(self) -> tuple[int, int]:
        """h, w"""
        return self.latents_shape[2:]

    def symbols(self, role: str, branches_per_call: int, window: tuple[int, int]) -> dict[str, int]:
        """`window`: the rows and columns of the features that are decoded at once."""
        _, frames, rows, columns = self.latents_shape
        if role in TILED:
            rows, columns = window
        branches = branches_per_call if role == "denoiser" else self.branches
        return {"B": branches, "L": self.text_tokens, "F": frames, "h": rows, "w": columns, "K": self.state_rows}


def wanted_engine(bundle: Bundle, graph: Graph, symbols: Mapping[str, int] | None) -> EngineWanted:
    """What an engine of a graph must be, for these sizes, or for any."""
    shapes = {} if symbols is None else {tensor.name: sized(tensor.shape, symbols) for tensor in graph.inputs}
    return EngineWanted(graph.precision, bundle.content_of(graph), shapes, bundle.size_of(graph))


@dataclass(frozen=True)
class _Run:
    """One way to run a stage, before what it takes is known."""

    name: str
    branches: int
    window: tuple[int, int]


def stages_of(
    bundle: Bundle,
    placements: Mapping[str, Placement],
    sizes: Sizes,
    branches: Sequence[int],
    tile: tuple[int, int] | None = None,
) -> list[Stage]:
    """Every stage with the ways to run it, the fastest first: whole, with less at once, with streamed weights.

    Args:
        placements: by stage.
        branches: how many may go through the denoiser in one call, the fastest first.
        tile: the most rows and columns of the features to decode at once; whatever fits if `None`.

    Raises:
        BackendUnavailableError: the backend has no engine for these sizes.
    """
    whole = [_Run("whole", branches[0], sizes.picture)]
    in_turns = [
        _Run("whole" if count == sizes.branches else f"{count} branch in a call", count, sizes.picture)
        for count in branches
    ]
    runs = {"text_encoder": whole, "denoiser": in_turns, "vae_decoder": _decodes(bundle, sizes, branches[0], tile)}
    return [
        Stage(
            name,
            _ways(
                bundle,
                where.backend,
                sizes,
                [graph for role in GRAPHS[name] for graph in bundle.manifest.graphs_of(role, where.precision)],
                runs[name],
            ),
        )
        for name, where in placements.items()
    ]


def _decodes(bundle: Bundle, sizes: Sizes, branches: int, tile: tuple[int, int] | None) -> list[_Run]:
    geometry = bundle.manifest.geometry
    halo, scale = geometry.vae_decoder_halo, geometry.vae_scale_factor_spatial
    if tile is None:
        chosen = [sizes.picture, *windows(sizes.picture, halo)]
    else:
        chosen = [window_within(sizes.picture, tile, halo)]
    runs = []
    for rows, columns in chosen:
        count = num_tiles(sizes.picture, (rows, columns), halo)
        name = "whole" if count == 1 else f"in {count} tiles of {rows * scale}x{columns * scale}"
        runs.append(_Run(name, branches, (rows, columns)))
    return runs


def _ways(
    bundle: Bundle, backend: Backend, sizes: Sizes, graphs: Sequence[Graph], runs: Sequence[_Run]
) -> tuple[Way, ...]:
    whole, refusals = [], []
    for run in runs:
        try:
            whole.append(_way(bundle, backend, sizes, graphs, run))
        except BackendUnavailableError as error:
            refusals.append(error)
    if not whole:
        raise refusals[0]
    streamed = [replace(way, name=f"{way.name}, weights streamed") for way in whole if way.streamable_bytes]
    return (*(replace(way, streamable_bytes=0) for way in whole), *streamed)


def _way(bundle: Bundle, backend: Backend, sizes: Sizes, graphs: Sequence[Graph], run: _Run) -> Way:
    if run.window == sizes.picture:
        return _together(bundle, backend, sizes, graphs, run)
    # The features of all latent frames, and then the tiles: what is open for the one is closed for the other.
    parts = [
        _together(bundle, backend, sizes, [graph for graph in graphs if (graph.role in TILED) == tiled], run)
        for tiled in (False, True)
    ]
    held = _held_bytes(sizes, graphs)
    more = max(parts, key=lambda part: part.peak_bytes)
    buffers = more.buffer_bytes + (0 if backend.on_device else held)
    return replace(more, buffer_bytes=buffers, host_bytes=held, keepable=False)


def _together(bundle: Bundle, backend: Backend, sizes: Sizes, graphs: Sequence[Graph], run: _Run) -> Way:
    """With all these graphs open. Only the parts of one stream their weights."""
    figures, buffers, activations = [], 0, 0
    for role, parts in groupby(graphs, lambda graph: graph.role):
        symbols, chain = sizes.symbols(role, run.branches, run.window), list(parts)
        buffers += buffer_bytes(chain, symbols)
        for graph in chain:
            found = backend.figures(bundle.path(graph.file), wanted_engine(bundle, graph, symbols))
            figures.append(found)
            activations = max(activations, _activations(graph, symbols, found))
    alone = len({graph.role for graph in graphs}) == 1
    return Way(
        run.name,
        weight_bytes=sum(found.weight_bytes for found in figures),
        buffer_bytes=buffers,
        activation_bytes=activations,
        activations_known=all(found.activation_bytes is not None for found in figures),
        streamable_bytes=sum(found.streamable_bytes for found in figures) if alone else 0,
        branches_per_call=run.branches,
        window=run.window,
    )


def buffer_bytes(parts: Sequence[Graph], symbols: Mapping[str, int]) -> int:
    """Inputs and outputs; what passes from part to part takes the place of what no part will read again."""
    read_by = {tensor.name: number for number, graph in enumerate(parts) for tensor in graph.inputs}
    made = {tensor.name for graph in parts for tensor in graph.outputs}
    total = sum(_bytes_of(tensor, symbols) for graph in parts for tensor in graph.inputs if tensor.name not in made)
    places: list[tuple[int, tuple[int, ...], str]] = []  # until which part each is read, and what lies there
    for number, graph in enumerate(parts):
        leaves = any(tensor.name not in read_by for tensor in graph.outputs)
        for tensor in graph.outputs:
            alike = (sized(tensor.shape, symbols), tensor.dtype)
            free = [place for place in places if place[0] < number and place[1:] == alike and not leaves]
            if free:
                places.remove(free[0])
            else:
                total += _bytes_of(tensor, symbols)
            places.append((read_by.get(tensor.name, len(parts)), *alike))
    return total


def _held_bytes(sizes: Sizes, graphs: Sequence[Graph]) -> int:
    """On the host until the last tile: the features of all latent frames, and the frames of the clip."""
    whole = sizes.symbols("vae_features_next", 1, sizes.picture)
    made = {graph.role: graph.outputs for graph in graphs}
    return sum(
        calls * _bytes_of(tensor, whole)
        for part in ("vae_features", "vae_decoder")
        for role, calls in ((f"{part}_first", 1), (f"{part}_next", whole["F"] - 1))
        for tensor in made[role]
        if tensor.name in ("features", "frames")
    )


def _bytes_of(tensor: GraphTensor, symbols: Mapping[str, int]) -> int:
    return byte_size(sized(tensor.shape, symbols), tensor.dtype)


def _activations(graph: Graph, symbols: Mapping[str, int], figures: Figures) -> int:
    """Those that were found for the largest shapes, in proportion; 0 where they are not known.

    A part that does not see all that they grow with has inputs that do.
    """
    if figures.activation_bytes is None or figures.largest is None:
        return figures.activation_bytes or 0
    largest = {
        size: figures.largest[tensor.name][axis]
        for tensor in graph.inputs
        for axis, size in enumerate(tensor.shape)
        if isinstance(size, str)
    }
    if largest.keys() >= set(GROWS_WITH[graph.role]):
        here, there = (math.prod(each[symbol] for symbol in GROWS_WITH[graph.role]) for each in (symbols, largest))
    else:
        widest = max(graph.inputs, key=lambda tensor: math.prod(sized(tensor.shape, symbols)))
        here, there = math.prod(sized(widest.shape, symbols)), math.prod(figures.largest[widest.name])
    return math.ceil(figures.activation_bytes * here / there)
