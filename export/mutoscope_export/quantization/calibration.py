"""The largest magnitudes that a network's layers read in whole denoising runs of the reference.

Knows how to watch a network, and what to ask it for. Knows nothing of any model line, which brings its own reference,
or of graphs. The same request gives the same ranges on the same machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import msgspec
import torch
from mutoscope.bundle.bundle import Defaults, Demonstration, Geometry
from mutoscope.errors import RequestError
from torch import Tensor, nn

from ..demo.grammar import all_scenes
from ..errors import ExportError
from ..graphs.number_formats import NumberFormat
from ..sizes import allowed_sizes
from .layer_watch import watch
from .policy import NarrowedLayers

PROMPTS = (
    "a cat walks over wet grass in the morning, close-up, shallow depth of field",
    "an aerial view of a coast road at sunset, cars with their lights on, waves against the rocks",
    "two people dance in a crowded market street in the rain, handheld camera",
    "a white ceramic cup on a white table in front of a white wall",
    "a city skyline at night, fireworks over the river, long exposure",
    "an old man reads a newspaper in a café and looks up into the camera, film grain",
    "ink spreads in clear water, macro, black background",
    "a cartoon fox runs through a forest of flat coloured paper trees",
)
MARGIN = 1.1  # for magnitudes that calibration did not meet
GRAMMAR_PROMPTS = tuple(scene.prompt() for scene in all_scenes()[371::343])  # 8 that share few words


@dataclass(frozen=True)
class CalibrationOptions:
    """What the caller wants calibrated otherwise than at the checkpoint's own defaults; `None` leaves it so."""

    prompts: Sequence[str] | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None


@dataclass(frozen=True)
class Calibration:
    """Whole runs of the reference: one for each prompt, with the seeds that follow `seed`."""

    prompts: tuple[str, ...]
    request: Defaults
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        asked = msgspec.structs.asdict(self.request)
        names = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "negative_prompt")
        return {"prompts": list(self.prompts), "seed": self.seed, **{name: asked[name] for name in names}}


def plan_calibration(
    options: CalibrationOptions, defaults: Defaults, geometry: Geometry, demonstration: Demonstration | None
) -> Calibration:
    """What to run: at the size of use, with prompts that the model understands.

    Raises:
        RequestError: no prompts, or a size that the networks do not take.
    """
    given = {name: value for name, value in vars(options).items() if name != "prompts" and value is not None}
    request = msgspec.structs.replace(defaults, **given)
    for name, allowed in allowed_sizes(geometry).items():
        if (value := getattr(request, name)) not in allowed:
            raise RequestError(
                f"the {name} of the calibration is {value}; the networks take {allowed[0]} to {allowed[-1]} in steps "
                f"of {allowed.step}"
            )
    if request.num_inference_steps < 1:
        raise RequestError(f"the calibration has {request.num_inference_steps} steps; name at least 1")
    if options.prompts is not None and not any(prompt.strip() for prompt in options.prompts):
        raise RequestError("the calibration has no prompts; name some, one a line, or leave the choice to export")
    knows_grammar = demonstration is not None and all(map(demonstration.understands, GRAMMAR_PROMPTS))
    prompts = options.prompts or (GRAMMAR_PROMPTS if knows_grammar else PROMPTS)
    return Calibration(tuple(prompt.strip() for prompt in prompts if prompt.strip()), request)


@dataclass(frozen=True)
class Reference:
    """The checkpoint's own network in float32, and whole denoising runs with it, one for each prompt."""

    network: nn.Module
    runs: Sequence[Callable[[], object]]

    @property
    def layer_names(self) -> list[str]:
        return [name for name, _ in self.network.named_modules()]


@dataclass
class Spread:
    """Of the magnitudes of all values of an activation that were seen."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    def see(self, x: Tensor) -> None:
        magnitudes = x.abs()
        largest = float(magnitudes.max())
        if not isfinite(largest):
            raise ExportError(
                "the reference computes NaN or infinity, for which there is no range. Get the checkpoint again"
            )
        self.largest = max(self.largest, largest)
        self.total += float(magnitudes.sum(dtype=torch.float64))
        self.count += x.numel()

    @property
    def mean(self) -> float:
        return self.total / max(1, self.count)

    def scale(self, number_format: NumberFormat) -> float:
        return number_format.scale(self.largest, MARGIN)


@dataclass(frozen=True)
class Recording:
    """One step's inputs of the network: `latents` `[C, F, h, w]`, `timestep` `[1]`, `prompt_embeds` `[B, L, D]`."""

    latents: Tensor
    timestep: Tensor
    prompt_embeds: Tensor


@dataclass(frozen=True)
class Ranges:
    """What the layers read, by name; an attention has its queries, keys and values in this order."""

    linears: Mapping[str, Spread]
    attentions: Mapping[str, tuple[Spread, Spread, Spread]]
    recordings: Sequence[Recording]  # early, in the middle and late in the first run


def calibrate(reference: Reference, layers: NarrowedLayers, say: Callable[[str], None] = lambda stage: None) -> Ranges:
    """Runs the reference, and notes what these layers of its network read."""
    linears = {name: Spread() for name in layers.linears}
    attentions = {name: (Spread(), Spread(), Spread()) for name in layers.attentions}

    def on_linear(name: str, layer: nn.Linear, x: Tensor, output: Tensor) -> None:
        linears[name].see(x)

    def on_attention(name: str, *operands: Tensor) -> None:
        for spread, operand in zip(attentions[name], operands, strict=True):
            spread.see(operand)

    recorder = _Recorder()
    with torch.no_grad(), watch(reference.network, layers, on_linear, on_attention):
        for index, run in enumerate(reference.runs):
            say(f"calibrate: prompt {index + 1} of {len(reference.runs)}")
            hook = reference.network.register_forward_pre_hook(recorder, with_kwargs=True) if index == 0 else None
            run()
            if hook is not None:
                hook.remove()
    return Ranges(linears, attentions, recorder.chosen())


@dataclass
class _Recorder:
    """A hook before a network that is called once a branch, the positive first, with Diffusers' names of its inputs."""

    calls: list[tuple[Tensor, Tensor, list[Tensor]]] = field(default_factory=list)

    def __call__(self, network: nn.Module, arguments: tuple[Any, ...], given: Mapping[str, Tensor]) -> None:
        latents, timestep, text = (given[name] for name in ("hidden_states", "timestep", "encoder_hidden_states"))
        if self.calls and torch.equal(self.calls[-1][1], timestep):
            self.calls[-1][2].insert(0, text)
        else:
            self.calls.append((latents, timestep, [text]))

    def chosen(self) -> list[Recording]:
        count = len(self.calls)
        return [
            Recording(latents[0].float().cpu(), timestep[:1].float().cpu(), torch.cat(texts).float().cpu())
            for latents, timestep, texts in (self.calls[count * sixth // 6] for sixth in (1, 3, 5))
        ]
