"""The two long stages: noise into latents, latents into frames.

Knows the names and order of the graphs' inputs and outputs. Knows nothing of requests, or of who takes the frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mutoscope_engines.session import Tensor
from numpy.typing import NDArray

from ..bundle.bundle import Bundle
from ..bundle.manifest import TILED
from ..errors import NumericalError, ShapeError
from ..planning.plan import Job, Plan
from ..planning.tiles import tiles_of
from ..solvers.noise import standard_normals
from .loaded import LoadedGraphs
from .preview import latents_to_rgb

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class StepEvent:
    """What `on_step` is told after each denoising step that calls the network. `step` counts from 1 to `total`."""

    step: int
    total: int
    preview: Callable[[], Frames | None]
    """Frames uint8 `[F, h, w, 3]` from the latents as they are, or `None` where the bundle has no preview map.
    To be called before `on_step` returns: the next step takes the latents' place."""


@dataclass(frozen=True)
class HostTensor:
    """What lies in host memory already, as the results of a backend."""

    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> str:
        return str(self.values.dtype)

    def row(self, index: int) -> HostTensor:
        return HostTensor(self.values[index])

    def numpy(self) -> NDArray[Any]:
        return self.values


OnStep = Callable[[StepEvent], object]


def denoise(graphs: LoadedGraphs, job: Job, prompt_embeds: NDArray[Any], on_step: OnStep | None) -> NDArray[np.float32]:
    """Noise to latents f32 `[C, F, h, w]`: one graph call a step, or one a step and guidance branch.

    Raises:
        NumericalError: a step gave NaN or Inf.
    """
    plan, schedule = job.plan, job.schedule
    host_state = np.zeros((schedule.state_rows, *plan.latents_shape), np.float32)
    host_state[: schedule.noise_rows] = standard_normals(plan.seed, plan.latents_shape, schedule.noise_rows)
    weights = np.asarray(plan.guidance_weights, np.float32)
    calls = [slice(i, i + plan.branches_per_call) for i in range(0, len(weights), plan.branches_per_call)]
    keep = np.eye(schedule.state_rows, dtype=np.float32)
    feeds: dict[str, Any] = {"state": host_state, "latents": host_state[0]}
    with graphs.use("denoiser", plan) as run:
        for number, step in enumerate(schedule.steps, start=1):
            feeds |= {"timestep": np.asarray([step.timestep], np.float32), "solver_b": step.solver_b}
            for branches in calls:
                # The step is linear in the velocity: later branches only add theirs to what the first left.
                feeds["solver_a"] = step.solver_a if branches.start == 0 else keep
                if number == 1 or len(calls) > 1:
                    feeds |= {"prompt_embeds": prompt_embeds[branches], "guidance_weights": weights[branches]}
                outputs = run(feeds)
                _check_peak(float(outputs["velocity_peak"].numpy()), number, plan)
                feeds = {"state": outputs["next_state"]}  # what is not fed again stays as it is
            feeds["latents"] = latents = outputs["next_state"].row(0)
            if on_step is not None:
                preview = partial(_preview, latents, graphs.bundle)
                on_step(StepEvent(number, len(schedule.steps), preview))
        return latents.numpy()


def decode(graphs: LoadedGraphs, plan: Plan, latents: NDArray[np.float32]) -> Iterator[Tensor]:
    """Latents `[C, F, h, w]` to frames u8 `[T, H, W, 3]`, T by T: one latent frame at a time, whole or in tiles.

    Frames are where the backend keeps them, in tiles on the host, and valid until the next are asked for.
    """
    slices = (latents[None, :, index : index + 1] for index in range(latents.shape[1]))
    with closing(_chunks(graphs, plan, "vae_features", slices)) as features:
        if plan.decoder_tiles > 1:
            held = [chunk.numpy() for chunk in features]
        else:
            with closing(_chunks(graphs, plan, "vae_decoder", features)) as frames:
                yield from frames
            return
    yield from _in_tiles(graphs, plan, held)


def _chunks(graphs: LoadedGraphs, plan: Plan, part: str, values: Iterable[Tensor | NDArray[Any]]) -> Generator[Tensor]:
    """One part of the decoder, a graph call a latent frame; the caches pass from chunk to chunk."""
    given, made = {"vae_features": ("latents", "features"), "vae_decoder": ("features", "frames")}[part]
    caches: dict[str, Tensor] = {}
    with ExitStack() as first, ExitStack() as following:
        for index, value in enumerate(values):
            if index == 0:
                run = first.enter_context(graphs.use(f"{part}_first", plan))
            elif index == 1:
                run = following.enter_context(graphs.use(f"{part}_next", plan))
            outputs = run({given: value, **caches})
            if index == 1:
                first.close()  # its caches have been taken over
            result = outputs.pop(made)
            # A graph may not give an output the name of an input, so "next_cache_0" becomes "cache_0".
            caches = {name.removeprefix("next_"): cache for name, cache in outputs.items()}
            yield result


def _in_tiles(graphs: LoadedGraphs, plan: Plan, features: list[NDArray[Any]]) -> Iterator[Tensor]:
    """Tile after tile, each through all latent frames: so only the caches of one tile are in memory. While the last is
    decoded, the frames are finished one after the other."""
    geometry = graphs.bundle.manifest.geometry
    scale, (rows, columns) = geometry.vae_scale_factor_spatial, plan.decoder_window
    tiles = tiles_of(plan.sizes.picture, plan.decoder_window, geometry.vae_decoder_halo)
    clip = np.empty((plan.num_frames, plan.height, plan.width, 3), np.uint8)
    with ExitStack() as loaded:
        for role in TILED[: len(features)]:
            loaded.enter_context(graphs.use(role, plan))  # from one tile to the next
        for number, tile in enumerate(tiles, start=1):
            done = 0
            with closing(_chunks(graphs, plan, "vae_decoder", (tile.of_features(each) for each in features))) as made:
                for chunk in made:
                    frames = clip[done : done + chunk.shape[0]]
                    done += len(frames)
                    if chunk.shape != (len(frames), rows * scale, columns * scale, 3):
                        raise ShapeError(
                            f"the decoder gave frames {chunk.shape} for a tile of {rows}x{columns} latents"
                        )
                    tile.paste(chunk.numpy(), frames, scale)
                    if number == len(tiles):
                        yield HostTensor(frames)


def _preview(latents: Tensor, bundle: Bundle) -> Frames | None:
    return latents_to_rgb(latents.numpy(), bundle.manifest.preview)


def _check_peak(peak: float, number: int, plan: Plan) -> None:
    if not math.isfinite(peak):
        raise NumericalError(
            f"step {number} of {len(plan.timesteps)} gave {peak}: the network overflowed in {plan.precision}. "
            "Try another --precision or seed, or export the checkpoint again in fp32"
        )
