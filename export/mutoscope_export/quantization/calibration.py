"""The largest magnitudes that the layers of networks read in whole denoising runs of the reference.

Knows how to watch a network, and what to ask it for. Knows nothing of any model line, which brings its own reference,
or of graphs. The same request gives the same ranges on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import msgspec
import torch
from mutoscope.bundle.manifest import MAX_STEPS, Manifest
from mutoscope.clips import Clip, read_clip_or_picture
from mutoscope.errors import RequestError
from mutoscope.pictures import Picture
from mutoscope.values import checks
from torch import Tensor, nn

from ..errors import ExportError
from ..families.family import Calibration, Call, Recording, Reference
from ..families.policy import QuantizedLayers
from ..graphs.number_formats import NumberFormat
from ..options import CLIPS, PROMPTS, ExportOptions
from .layer_watch import watch

DEFAULT_PROMPTS = (
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


def plan_calibration(
    options: ExportOptions, manifest: Manifest, own_prompts: Sequence[str] | None = None
) -> Calibration:
    """What to run: at the size of use, with prompts that the model understands, and what its videos follow beside them.

    Args:
        manifest: of the bundle, with or without its graphs.
        own_prompts: those that the authors of the checkpoint name for this.

    Raises:
        RequestError: no prompts or steps, a size that the networks do not take, clips that cannot be read or that no
            video would follow.
    """
    given: dict[str, int] = {}
    if options.calibration_size is not None:
        size = checks.video_size("calibration_size", options.calibration_size, manifest.sizes)
        given |= zip(manifest.sizes, size, strict=True)
    if options.calibration_steps is not None:
        given["num_inference_steps"] = checks.whole(
            "calibration_steps", options.calibration_steps, minimum=1, maximum=MAX_STEPS
        )
    request = msgspec.structs.replace(manifest.defaults, **given)
    if request.num_frames == 1 and any(image.last_required for image in manifest.images):
        raise RequestError(
            "the length of calibration_size must be more than 1, because this model makes a video between two pictures"
        )
    prompts = _prompts(options.calibration_prompts, own_prompts)
    return Calibration(prompts, request, clips=_clips(options.calibration_clips, manifest, len(prompts)))


def _prompts(given: Sequence[str] | None, own: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(given, str):
        raise RequestError(f"calibration_prompts must be {PROMPTS.in_python}; got one text, {given!r}")
    found = (own or DEFAULT_PROMPTS) if given is None else given
    prompts = tuple(prompt.strip() for prompt in found if prompt.strip())
    if not prompts:
        raise RequestError("calibration_prompts has no prompt; give at least one, or leave it out")
    return prompts


def _clips(given: Sequence[Any] | None, manifest: Manifest, prompts: int) -> tuple[Clip | Picture, ...] | None:
    if not manifest.images and not manifest.controls:
        if given is not None:
            raise RequestError(
                "calibration_clips is for models that take pictures or clips, and this one follows text alone; leave "
                "it out"
            )
        return None
    if given is None:
        return ()
    if not isinstance(given, (list, tuple)) or not given:
        raise RequestError(f"calibration_clips must be {CLIPS.in_python}; got {given!r:.80}")
    if len(given) > prompts:
        raise RequestError(
            f"calibration_clips has {len(given)} clips for {prompts} prompts, and each takes one; give as many prompts "
            "with calibration_prompts, or fewer clips"
        )
    return tuple(read_clip_or_picture(each, name="calibration_clips") for each in given)


@dataclass
class ActivationRange:
    """Of the magnitudes of all values of an activation that were seen."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    def see(self, x: Tensor) -> None:
        """Counts the values of one activation.

        Raises:
            ExportError: one is NaN or infinite.
        """
        magnitudes = x.abs()
        largest = float(magnitudes.max())
        if not isfinite(largest):
            raise ExportError(
                "the checkpoint's network computes NaN or infinity, so calibration fails. Get the checkpoint again"
            )
        self.largest = max(self.largest, largest)
        self.total += float(magnitudes.sum(dtype=torch.float64))
        self.count += x.numel()

    @property
    def mean(self) -> float:
        """The mean magnitude; 0 where nothing was seen."""
        return self.total / max(1, self.count)

    def scale(self, number_format: NumberFormat) -> float:
        """The step of a number format whose range holds the largest value, with a margin."""
        return number_format.scale(self.largest, MARGIN)


@dataclass(frozen=True)
class Ranges:
    """What the layers of one network read, by name; an attention has its queries, keys and values in this order."""

    linears: Mapping[str, ActivationRange]
    attentions: Mapping[str, tuple[ActivationRange, ActivationRange, ActivationRange]]
    recordings: Sequence[Recording]  # early, in the middle and late in the first run


def calibrate(reference: Reference, layers: QuantizedLayers, say: Callable[[str], None] = lambda stage: None) -> Ranges:
    """Runs the reference, and notes what these layers of its network read.

    Args:
        say: told what happens.

    Raises:
        ExportError: the reference computes NaN or infinity, or never calls its network.
    """
    linears = {name: ActivationRange() for name in layers.linears}
    attentions = {name: (ActivationRange(), ActivationRange(), ActivationRange()) for name in layers.attentions}
    recorder = _Recorder()

    def on_linear(name: str, layer: nn.Linear, x: Tensor, output: Tensor) -> None:
        linears[name].see(x)

    def on_attention(name: str, *operands: Tensor) -> None:
        for activation, operand in zip(attentions[name], operands, strict=True):
            activation.see(operand)

    with torch.no_grad(), watch(reference.network, layers, on_linear, on_attention):
        hook = reference.network.register_forward_pre_hook(recorder, with_kwargs=True)
        for index, run in enumerate(reference.runs):
            say(f"calibrate: {reference.role}, prompt {index + 1} of {len(reference.runs)}")
            run()
            hook.remove()  # after the first
    if not recorder.calls:
        raise ExportError(
            f"the steps of the calibration never reach the {reference.role} of the checkpoint; raise calibration_steps"
        )
    return Ranges(linears, attentions, _early_middle_and_late(reference.steps(recorder.calls)))


@dataclass
class _Recorder:
    """A hook before a network that keeps its keyword arguments, floating-point numbers in float32 on the CPU."""

    calls: list[Call] = field(default_factory=list)

    def __call__(self, network: nn.Module, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> None:
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        self.calls.append({name: self._kept(name, value.float().cpu()) for name, value in tensors.items()})

    def _kept(self, name: str, value: Tensor) -> Tensor:
        """What both branches or all steps are given, such as control as large as several latents, is kept once."""
        earlier = (call[name] for call in self.calls[-2:] if name in call)
        return next((each for each in earlier if torch.equal(each, value)), value)


def _early_middle_and_late(steps: Sequence[Recording]) -> list[Recording]:
    return [steps[len(steps) * sixth // 6] for sixth in (1, 3, 5)]
