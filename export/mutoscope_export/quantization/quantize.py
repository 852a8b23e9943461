"""Prepares the statically quantized graphs of a checkpoint: calibrates, measures, and makes the passes.

Knows the order. The arithmetic is in `passes/`, the ranges come from `calibration.py`, the figures from `quality.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mutoscope.bundle.manifest import Manifest
from mutoscope.terminal import format_table
from torch import Tensor

from ..errors import ExportError
from ..families.family import Calibration, GraphSource, Recording, Reference
from ..families.policy import QuantizationPolicy, QuantizedLayers
from ..graphs.trace import Pass, SymbolicValue
from ..opening import OpenedCheckpoint
from ..options import ExportOptions
from ..passes.fp8_attention import AttentionScales, Fp8Attention
from ..passes.nvfp4 import Nvfp4
from ..passes.static_quantization import StaticQuantization
from .calibration import MARGIN, Ranges, calibrate, plan_calibration
from .four_bits import choose_four_bits
from .nvfp4_numbers import nvfp4_scale
from .quality import measure


@dataclass(frozen=True)
class QuantizingPasses:
    """Those that come before the passes of a form, such as one that stores weights otherwise, and those after them."""

    before: tuple[Pass, ...] = ()
    after: tuple[Pass, ...] = ()

    def around(self, passes: Sequence[Pass]) -> tuple[Pass, ...]:
        """All of them in their order."""
        return (*self.before, *passes, *self.after)


@dataclass(frozen=True)
class Quantization:
    """What calibration found, and what follows from it for the graphs of the denoisers.

    Attributes:
        passes: by role and precision.
        recordings: by role.
        reports: by precision; of several denoisers, by precision and role, such as "fp8 of denoiser_low".
    """

    passes: Mapping[str, Mapping[str, QuantizingPasses]]
    recordings: Mapping[str, Sequence[Recording]]
    reports: Mapping[str, Mapping[str, Any]]

    def applied(self, source: GraphSource) -> GraphSource:
        """The source of a quantized graph with its passes, compared on what was recorded: for that the scales hold."""
        passes = self.passes.get(source.role, {})
        if all(form.precision not in passes for form in source.forms):
            return source
        recordings = self.recordings[source.role]
        return replace(
            source,
            forms=tuple(
                replace(form, passes=passes.get(form.precision, QuantizingPasses()).around(form.passes))
                for form in source.forms
            ),
            examples=lambda model: [
                _recorded(example, recordings[index % len(recordings)], source.inputs(model))
                for index, example in enumerate(source.examples(model))
            ],
        )


def quantize(
    opened: OpenedCheckpoint,
    manifest: Manifest,
    precisions: Sequence[str],
    options: ExportOptions,
    say: Callable[[str], None],
) -> Quantization:
    """Runs the reference on every prompt of the calibration, denoiser after denoiser, one of them in memory.

    `manifest` has all but its graphs.

    Raises:
        ExportError: the network has no layer that the family's policies would quantize.
        RequestError: the reference cannot run what the options ask for.
    """
    policies = {name: opened.description.policies[name] for name in precisions}
    calibration = plan_calibration(options, manifest, opened.overrides.calibration_prompts)
    passes: dict[str, dict[str, QuantizingPasses]] = {}
    recordings, reports = {}, {}
    for reference, found in calibrated(opened, calibration, say):
        role = reference.role
        passes[role], recordings[role] = {}, found.recordings
        for name, policy in policies.items():
            subject = name if len(opened.description.experts) == 1 else f"{name} of {role}"
            say(f"measure the quality of {subject}")
            layers, measured = _measured(reference, policy, found)
            passes[role][name] = passes_of(policy, layers, found)
            reports[subject] = {
                "policy": policy.default,
                "calibration": calibration.to_dict(),
                "margin": MARGIN,
                "largest": _largest(found),
                **measured,
            }
        del reference  # before the next is loaded
    gc.collect()
    return Quantization(passes, recordings, reports)


def _measured(
    reference: Reference, policy: QuantizationPolicy, ranges: Ranges
) -> tuple[QuantizedLayers, Mapping[str, Any]]:
    """The layers that are quantized, and what the report says of their cost."""
    layers = policy.layers(reference.layer_names, policy.default)
    if policy.four_bits_error is None:
        return layers, measure(reference.network, policy, ranges, policy.default)
    choice = choose_four_bits(reference.network, policy, layers, ranges)
    return choice.layers, choice.report


def calibrated(
    opened: OpenedCheckpoint, calibration: Calibration, say: Callable[[str], None]
) -> Iterator[tuple[Reference, Ranges]]:
    """Each denoiser, still in memory, with the ranges of all layers that some step of a policy quantizes.

    It is dropped by whoever asks, before the next.

    Raises:
        ExportError: there are none.
    """
    say("calibrate: encode prompts")
    policies = opened.description.policies.values()
    for reference in opened.family.reference(opened, opened.description, calibration):
        try:
            watched = _quantized_by_any(policies, reference.layer_names)
        except ValueError as error:
            raise ExportError(f"{opened.name} cannot be quantized to 8 bits: {error}") from error
        yield reference, calibrate(reference, watched, say)
        del reference


def _quantized_by_any(policies: Iterable[QuantizationPolicy], names: Sequence[str]) -> QuantizedLayers:
    """Those of a network's layers that the last step of some policy quantizes."""
    found = [policy.layers(names, policy.step_names[-1]) for policy in policies]
    return QuantizedLayers(
        tuple(dict.fromkeys(name for layers in found for name in layers.linears)),
        tuple(dict.fromkeys(name for layers in found for name in layers.attentions)),
    )


def passes_of(policy: QuantizationPolicy, layers: QuantizedLayers, ranges: Ranges) -> QuantizingPasses:
    """Attention first, which is found by names that the weights lose when they are quantized; NVFP4 last, whose form no
    other pass knows."""
    number_format, passes = policy.number_format, list[Pass]()
    if layers.attentions:
        scales = {
            policy.values_weight.format(name): AttentionScales(
                *(activation.scale(number_format) for activation in ranges.attentions[name])
            )
            for name in layers.attentions
        }
        passes.append(Fp8Attention(scales))
    eight = {policy.weight.format(name): ranges.linears[name].scale(number_format) for name in layers.eight_bits}
    four = {policy.weight.format(name): nvfp4_scale(ranges.linears[name]) for name in layers.four_bits}
    return QuantizingPasses((*passes, StaticQuantization(number_format, eight)), (Nvfp4(four),) if four else ())


def quality_table(precision: str, report: Mapping[str, Any]) -> str:
    """The figures of a precision's report for a terminal."""
    counted = ("linears", *(["four_bits"] if "four_bits" in report else []), "attentions")
    titles = {"linears": "linears in FP8", "four_bits": "in NVFP4"} if "four_bits" in report else {}
    names = (
        f"{precision} up to this step",
        *(titles.get(name, name) for name in counted),
        "relative L2 of one forward pass",
    )
    rows = [
        (step["step"], *(str(step[name]) for name in counted), f"{step['relative_l2']:.2%}") for step in report["steps"]
    ]
    lines = [format_table(names, rows)]
    lines.append(f"the graph is in {precision} up to: {report['policy']}")
    worst = ", ".join(f"{name} {error:.1%}" for name, error in report["worst_layers"].items())
    lines.append(f"layers with the largest errors: {worst}")
    lines += [
        f"{precision} does not suit the {entry['what']} of {entry['layer']}: its largest magnitude is "
        f"{entry['largest_over_mean']:.0f} times the mean"
        for entry in report["unfit"]
    ]
    return "\n".join(lines)


def _largest(ranges: Ranges) -> dict[str, Any]:
    linears = {name: activation.largest for name, activation in ranges.linears.items()}
    attentions = {name: [each.largest for each in operands] for name, operands in ranges.attentions.items()}
    return {"linears": linears, "attentions": attentions}


def _recorded(
    example: Mapping[str, Tensor], recording: Recording, inputs: Sequence[SymbolicValue]
) -> dict[str, Tensor]:
    """An example with recorded inputs, whose branches, frames, heights and widths are cut or repeated to its sizes.

    Texts keep their length, because fewer tokens without padding are mixed to larger values than calibration saw. The
    guidance has one sign, so that two branches that are almost equal do not cancel to what rounding left of them.
    """
    recorded = {
        name: _fitted(
            recording.inputs[name],
            [
                example[name].shape[axis] if size in ("B", "F", "h", "w") else recording.inputs[name].shape[axis]
                for axis, size in enumerate(shape)
            ],
        )
        for name, _, shape in inputs
        if name in recording.inputs
    }
    return {**example, **recorded, "guidance_weights": example["guidance_weights"].abs()}


def _fitted(value: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape):
        value = value.repeat_interleave(-(-size // value.shape[axis]), axis).narrow(axis, 0, size)
    return value.contiguous()
