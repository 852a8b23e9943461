"""Prepares the statically quantized graphs of a checkpoint: calibrates, judges, and makes the passes.

Knows the order. The arithmetic is in `passes/`, the watching in `calibration.py`, the figures in
`narrowing_quality.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mutoscope.bundle.bundle import Manifest
from torch import Tensor

from ..errors import ExportError
from ..families import Form, GraphSource
from ..graphs.trace import Pass
from ..passes.fp8_attention import AttentionScales, Fp8Attention
from ..passes.static_quantization import StaticQuantization
from .calibration import (
    MARGIN,
    Calibration,
    CalibrationOptions,
    Ranges,
    Recording,
    Reference,
    calibrate,
    plan_calibration,
)
from .policy import NarrowedLayers, NarrowingPolicy
from .quality import judge

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class Narrowing:
    """What calibration found, and what follows from it for the graph of each precision."""

    passes: Mapping[str, tuple[Pass, ...]]
    recordings: Sequence[Recording]
    reports: Mapping[str, Mapping[str, Any]]

    def applied(self, source: GraphSource) -> GraphSource:
        """The source of a narrowed graph with its passes, compared on what was recorded: for that the scales hold."""
        if all(form.precision not in self.passes for form in source.forms):
            return source
        return replace(
            source,
            forms=tuple(map(self._with_passes, source.forms)),
            examples=lambda model: [
                _recorded(example, self.recordings[index % len(self.recordings)])
                for index, example in enumerate(source.examples(model))
            ],
        )

    def _with_passes(self, form: Form) -> Form:
        """Before a pass that stores weights otherwise."""
        return replace(form, passes=(*self.passes.get(form.precision, ()), *form.passes))


def narrow(
    opened: Checkpoint,
    manifest: Manifest,
    precisions: Sequence[str],
    options: CalibrationOptions,
    say: Callable[[str], None],
) -> Narrowing:
    """Runs the reference on every prompt of the calibration; `manifest` has all but its graphs.

    Raises:
        ExportError: the network has no layer that the family's policies would narrow.
        RequestError: the reference cannot run what the options ask for.
    """
    policies = {name: opened.family.NARROWED[name] for name in precisions}
    calibration = plan_calibration(options, manifest.defaults, manifest.geometry, manifest.demonstration)
    reference, ranges = calibrated(opened, manifest, calibration, say)
    passes, reports = {}, {}
    for name, policy in policies.items():
        say(f"judge {name}")
        passes[name] = passes_of(policy, policy.layers(reference.layer_names, policy.default), ranges)
        reports[name] = {
            "policy": policy.default,
            "calibration": calibration.to_dict(),
            "margin": MARGIN,
            "largest": _largest(ranges),
            **judge(reference.network, policy, ranges, policy.default),
        }
    del reference
    gc.collect()
    return Narrowing(passes, ranges.recordings, reports)


def calibrated(
    opened: Checkpoint, manifest: Manifest, calibration: Calibration, say: Callable[[str], None]
) -> tuple[Reference, Ranges]:
    """The reference, still in memory, and the ranges of all layers that some step of a policy narrows.

    Raises:
        ExportError: there are none.
    """
    say("calibrate: encode prompts")
    reference = opened.family.reference(opened, calibration, manifest.geometry, manifest.text.max_sequence_length)
    try:
        found = [policy.layers(reference.layer_names, policy.steps[-1]) for policy in opened.family.NARROWED.values()]
    except ValueError as error:
        raise ExportError(f"{opened.name} has no form in eight bits: {error}") from error
    watched = NarrowedLayers(
        tuple(dict.fromkeys(name for layers in found for name in layers.linears)),
        tuple(dict.fromkeys(name for layers in found for name in layers.attentions)),
    )
    return reference, calibrate(reference, watched, say)


def passes_of(policy: NarrowingPolicy, layers: NarrowedLayers, ranges: Ranges) -> tuple[Pass, ...]:
    """Attention first, which is found by names that the weights lose when they are quantized."""
    scaled, made = policy.number_format, []
    if layers.attentions:
        scales = {
            policy.values_weight.format(name): AttentionScales(
                *(spread.scale(scaled) for spread in ranges.attentions[name])
            )
            for name in layers.attentions
        }
        made.append(Fp8Attention(scales))
    linears = {policy.weight.format(name): ranges.linears[name].scale(scaled) for name in layers.linears}
    return *made, StaticQuantization(scaled, linears)


def quality_table(precision: str, report: Mapping[str, Any]) -> str:
    """The figures of a precision's report for a terminal."""
    rows = [(f"{precision} up to this step", "linears", "attentions", "relative L2 of one forward")]
    rows += [
        (step["step"], str(step["linears"]), str(step["attentions"]), f"{step['relative_l2']:.2%}")
        for step in report["steps"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"the graph is in {precision} up to: {report['policy']}")
    worst = ", ".join(f"{name} {error:.1%}" for name, error in report["worst_layers"].items())
    lines.append(f"layers with the largest error of their own: {worst}")
    lines += [
        f"{precision} does not suit the {entry['what']} of {entry['layer']}: its largest magnitude is "
        f"{entry['largest_over_mean']:.0f} times the mean"
        for entry in report["unfit"]
    ]
    return "\n".join(lines)


def _largest(ranges: Ranges) -> dict[str, Any]:
    linears = {name: spread.largest for name, spread in ranges.linears.items()}
    attentions = {name: [spread.largest for spread in spreads] for name, spreads in ranges.attentions.items()}
    return {"linears": linears, "attentions": attentions}


def _recorded(example: Mapping[str, Tensor], recording: Recording) -> dict[str, Tensor]:
    """An example with recorded inputs, the latents and branches cut or repeated to its sizes.

    The text keeps its length, because fewer tokens without padding are mixed to larger values than calibration saw. The
    guidance has one sign, so that two branches that are almost equal do not cancel to what rounding left of them.
    """
    branches = len(example["prompt_embeds"])
    return {
        **example,
        "latents": _fitted(recording.latents, example["latents"].shape),
        "timestep": recording.timestep,
        "prompt_embeds": _fitted(recording.prompt_embeds, (branches, *recording.prompt_embeds.shape[1:])),
        "guidance_weights": example["guidance_weights"].abs(),
    }


def _fitted(value: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape):
        value = value.repeat_interleave(-(-size // value.shape[axis]), axis).narrow(axis, 0, size)
    return value.contiguous()
