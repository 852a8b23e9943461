"""What each stage of a video takes on the device, from the shapes in the manifest and what the backend knows.

Knows bundles and backends' figures. Opens no graph, and chooses nothing: that is `memory_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mutoscope_engines.device.device import byte_size
from mutoscope_engines.session import Backend, EngineWanted, Figures
from mutoscope_engines.symbols import sized

from ..bundle.bundle import Bundle
from ..bundle.contract import CONDITION, DECODE, DENOISE, LORA_RANK, ROLES, STAGES, TILED, open_with, stage_of
from ..bundle.manifest import Frames, Graph, GraphTensor
from ..errors import BackendUnavailableError
from .memory_plan import MemoryOption, Stage
from .tiles import num_tiles, window_within, windows


@dataclass(frozen=True)
class Placement:
    """What runs the graphs of a stage, and which of them."""

    backend: Backend
    precision: str  # that the manifest is asked for


def everywhere(backend: Backend, precision: str) -> dict[str, Placement]:
    """Every stage in the same place."""
    return dict.fromkeys(STAGES, Placement(backend, precision))


def snapshot_of(placements: Mapping[str, Placement]) -> dict[str, Placement]:
    """The same with backends as they are now, so that a plan reads once what they have on disk."""
    now = {backend: backend.snapshot() for backend in {where.backend for where in placements.values()}}
    return {stage: replace(where, backend=now[where.backend]) for stage, where in placements.items()}


@dataclass(frozen=True)
class Sizes:
    """The symbols of a video, but for how many branches the denoiser takes at once."""

    branches: int  # of guidance
    lengths: Mapping[str, int]  # of what the video follows: L, the tokens of a text, and other symbols of encoders
    latents_shape: tuple[int, int, int, int]  # C, F, h, w
    state_rows: int  # K
    unguided: Collection[str] = ()  # experts that take one branch, whatever the others take
    encoders: Collection[str] | None = None  # the graphs that encode what it follows; `None` for all of the bundle
    with_loras: Collection[str] = ()  # experts that LoRAs change
    clip_bytes: int = 0  # of clips, in host memory until the video is made

    def branches_of(self, role: str) -> int:
        """How many guidance branches a graph is run for."""
        return 1 if role in self.unguided else self.branches

    def encodes_with(self, role: str) -> bool:
        """Whether the graph encodes something that the video follows."""
        return self.encoders is None or role in self.encoders

    @property
    def picture(self) -> tuple[int, int]:
        """h, w"""
        return self.latents_shape[2:]

    def symbols(self, role: str, branches_per_call: int, window: tuple[int, int]) -> dict[str, int]:
        """`window`: the rows and columns of the features that are decoded at once."""
        _, frames, rows, columns = self.latents_shape
        if role in TILED:
            rows, columns = window
        branches = branches_per_call if stage_of(role) == DENOISE else self.branches
        return {**self.lengths, "B": branches, "F": frames, "h": rows, "w": columns, "K": self.state_rows}


def wanted_engine(bundle: Bundle, graph: Graph, symbols: Mapping[str, int] | None) -> EngineWanted:
    """What an engine of a graph must be, for these sizes, or for any."""
    shapes = {}
    if symbols is not None:  # of any rank, so that LoRAs of all ranks run in one session
        inputs = (tensor for tensor in graph.inputs if LORA_RANK not in tensor.shape)
        shapes = {tensor.name: sized(tensor.shape, symbols) for tensor in inputs}
    return EngineWanted(graph.precision, bundle.content_of(graph), shapes, bundle.size_of(graph), bundle.engines)


@dataclass(frozen=True)
class _Run:
    """One way to run a stage, before what it takes is known."""

    name: str
    branches: int
    window: tuple[int, int]
    tiles: int = 1
    calls: int = 1  # of the denoiser in a step


def stages_of(
    bundle: Bundle,
    placements: Mapping[str, Placement],
    sizes: Sizes,
    branches: Sequence[int],
    tile: tuple[int, int] | None = None,
) -> list[Stage]:
    """Every stage that runs graphs with the options to run it, the fastest first: whole, with less at once, with
    streamed weights.

    Of several encoders or experts, one is open at a time. So each counts as a stage, named after its role.

    Args:
        placements: by stage.
        branches: how many may go through the denoiser in one call, the fastest first.
        tile: the most rows and columns of the features to decode at once; whatever fits if `None`.

    Raises:
        BackendUnavailableError: the backend has no engine for these sizes.
    """
    whole = [_Run("whole", branches[0], sizes.picture)]
    decodes = _decodes(bundle, sizes, branches[0], tile)
    stages = []
    for stage, where in placements.items():
        used = [role for role in bundle.manifest.roles_of(stage) if stage != CONDITION or sizes.encodes_with(role)]
        for name, roles in _open_together(stage, used).items():
            graphs = [
                graph
                for role in roles
                for graph in bundle.manifest.graphs_of(role, where.precision, with_loras=role in sizes.with_loras)
            ]
            runs = {CONDITION: whole, DENOISE: _in_turns(sizes, roles[0], branches), DECODE: decodes}[stage]
            options = _options(bundle, where.backend, sizes, graphs, runs)
            if stage == DENOISE and name != stage:  # one expert is in memory at a time
                options = tuple(replace(option, keepable=False) for option in options)
            stages.append(Stage(name, tuple(_with_clips(option, where.backend, sizes) for option in options)))
    return stages


def _with_clips(option: MemoryOption, backend: Backend, sizes: Sizes) -> MemoryOption:
    if backend.on_device:
        return replace(option, host_bytes=option.host_bytes + sizes.clip_bytes)
    return replace(option, clip_bytes=sizes.clip_bytes)


def _open_together(stage: str, roles: Sequence[str]) -> dict[str, Sequence[str]]:
    """The roles whose graphs are open at the same time, by the name under which their memory is planned."""
    together: dict[str, Sequence[str]] = {name: list(some) for name, some in groupby(roles, open_with)}
    return {stage: roles} if len(together) == 1 else together


def _in_turns(sizes: Sizes, role: str, branches: Sequence[int]) -> list[_Run]:
    """A denoiser with all of its guidance branches in a call, and with fewer."""
    own = sizes.branches_of(role)
    counts = dict.fromkeys(min(count, own) for count in branches)
    return [
        _Run("whole" if count == own else f"{count} branch in a call", count, sizes.picture, calls=-(-own // count))
        for count in counts
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
        runs.append(_Run(name, branches, (rows, columns), count))
    return runs


def _options(
    bundle: Bundle, backend: Backend, sizes: Sizes, graphs: Sequence[Graph], runs: Sequence[_Run]
) -> tuple[MemoryOption, ...]:
    whole, refusals = [], []
    for run in runs:
        try:
            whole.append(_option(bundle, backend, sizes, graphs, run))
        except BackendUnavailableError as error:
            refusals.append(error)
    if not whole:
        raise refusals[0]
    streamed = [replace(option, name=f"{option.name}, weights streamed") for option in whole if option.streamable_bytes]
    return (*(replace(option, streamable_bytes=0) for option in whole), *streamed)


def _option(bundle: Bundle, backend: Backend, sizes: Sizes, graphs: Sequence[Graph], run: _Run) -> MemoryOption:
    tiled = run.window != sizes.picture
    turns = [_together(bundle, backend, sizes, group, run) for group in _turns(graphs, tiled)]
    if len(turns) == 1:
        return turns[0]
    held = _held_bytes(bundle.manifest.frames, sizes, graphs)
    more = max(turns, key=lambda turn: turn.peak_bytes)
    buffers = more.buffer_bytes + (0 if backend.on_device else held)
    return replace(more, buffer_bytes=buffers, host_bytes=held, keepable=False)


def _turns(graphs: Sequence[Graph], tiled: bool) -> list[list[Graph]]:
    """What is open at the same time: all graphs, or in tiles the features of all latent frames first."""
    return [list(group) for _, group in groupby(graphs, lambda graph: tiled and graph.role in TILED)]


def _together(bundle: Bundle, backend: Backend, sizes: Sizes, graphs: Sequence[Graph], run: _Run) -> MemoryOption:
    """With all these graphs open. Only the parts of one stream their weights."""
    figures, buffers, activations = [], 0, 0
    for role, parts in groupby(graphs, lambda graph: graph.role):
        symbols, chain = sizes.symbols(role, run.branches, run.window), list(parts)
        buffers += buffer_bytes(chain, symbols)
        for graph in chain:
            found = backend.figures(bundle.path(graph.file), wanted_engine(bundle, graph, symbols))
            figures.append(found)
            activations = max(activations, activations_of(graph, symbols, found))
    alone = len({graph.role for graph in graphs}) == 1
    return MemoryOption(
        run.name,
        weight_bytes=sum(found.weight_bytes for found in figures),
        buffer_bytes=buffers,
        activation_bytes=activations,
        activations_known=all(found.activation_bytes is not None for found in figures),
        streamable_bytes=sum(found.streamable_bytes for found in figures) if alone else 0,
        branches_per_call=run.branches,
        calls_per_step=run.calls,
        window=run.window,
        tiles=run.tiles,
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


def _held_bytes(lengths: Frames, sizes: Sizes, graphs: Sequence[Graph]) -> int:
    """On the host until the last tile: the features of all latent frames, and the frames of the clip."""
    whole = sizes.symbols("vae_features_next", 1, sizes.picture)
    first, following = lengths.latents_per_call
    made = {graph.role: graph.outputs for graph in graphs}
    return sum(
        calls * _bytes_of(tensor, whole)
        for part in ("vae_features", "vae_decoder")
        for role, calls in ((f"{part}_first", 1), (f"{part}_next", (whole["F"] - first) // following))
        for tensor in made[role]
        if tensor.name in ("features", "frames")
    )


def _bytes_of(tensor: GraphTensor, symbols: Mapping[str, int]) -> int:
    return byte_size(sized(tensor.shape, symbols), tensor.dtype)


def activations_of(graph: Graph, symbols: Mapping[str, int], figures: Figures) -> int:
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
    # Linear for a denoiser, measured from 32,760 to 75,600 tokens. Activations of the features of a VAE grow faster, so
    # this is too much below the size for which they were found.
    grows_with = ROLES[graph.role].grows_with
    if largest.keys() >= set(grows_with):
        here, there = (math.prod(each[symbol] for symbol in grows_with) for each in (symbols, largest))
    else:
        widest = max(graph.inputs, key=lambda tensor: math.prod(sized(tensor.shape, symbols)))
        here, there = math.prod(sized(widest.shape, symbols)), math.prod(figures.largest[widest.name])
    return math.ceil(figures.activation_bytes * here / there)
