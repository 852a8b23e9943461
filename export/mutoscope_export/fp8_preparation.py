"""Prepares the FP8 graph of a checkpoint: calibrates, judges, and makes the passes.

Knows the order. The arithmetic is in `passes/`, the watching in `calibration.py`, the figures in `fp8_quality.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mutoscope.bundle import Manifest
from torch import Tensor

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
from .errors import ExportError
from .families import Form, GraphSource
from .fp8_policy import Fp8Layers, Fp8Policy
from .fp8_quality import judge
from .graph import Pass
from .passes.fp8 import StaticFp8
from .passes.fp8_attention import AttentionScales, Fp8Attention

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Fp8Preparation:
    """What calibration found, and what follows from it for the graph."""

    passes: tuple[Pass, ...]
    recordings: Sequence[Recording]
    report: Mapping[str, Any]

    def applied(self, source: GraphSource) -> GraphSource:
        """The source of an FP8 graph with its passes, compared on what was recorded: for that the scales hold."""
        if all(form.precision != "fp8" for form in source.forms):
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
        return replace(form, passes=(*self.passes, *form.passes)) if form.precision == "fp8" else form


def prepare_fp8(
    opened: Checkpoint, manifest: Manifest, options: CalibrationOptions, say: Callable[[str], None]
) -> Fp8Preparation:
    """Runs the reference on every prompt of the calibration; `manifest` has all but its graphs.

    Raises:
        ExportError: the network has no layer that the family's policy would narrow.
        RequestError: the reference cannot run what the options ask for.
    """
    policy = opened.family.FP8
    calibration = plan_calibration(options, manifest.defaults, manifest.geometry, manifest.demonstration)
    reference, ranges = calibrated(opened, manifest, calibration, say)
    chosen = policy.layers(reference.layer_names, policy.default)
    say("judge FP8")
    report = {
        "policy": policy.default,
        "calibration": calibration.to_dict(),
        "margin": MARGIN,
        "largest": _largest(ranges),
        **judge(reference.network, policy, ranges, policy.default),
    }
    del reference
    gc.collect()
    return Fp8Preparation(fp8_passes(policy, chosen, ranges), ranges.recordings, report)


def calibrated(
    opened: Checkpoint, manifest: Manifest, calibration: Calibration, say: Callable[[str], None]
) -> tuple[Reference, Ranges]:
    """The reference, still in memory, and the ranges of all layers that some step of the policy narrows.

    Raises:
        ExportError: there are none.
    """
    policy = opened.family.FP8
    say("calibrate: encode prompts")
    reference = opened.family.reference(opened, calibration, manifest.geometry, manifest.text.max_sequence_length)
    try:
        watched = policy.layers(reference.layer_names, policy.steps[-1])
    except ValueError as error:
        raise ExportError(f"{opened.name} has no FP8 form: {error}") from error
    return reference, calibrate(reference, watched, say)


def fp8_passes(policy: Fp8Policy, layers: Fp8Layers, ranges: Ranges) -> tuple[Pass, ...]:
    """Attention first, which is found by names that the weights lose when they are quantized."""
    attentions = {
        policy.values_weight.format(name): AttentionScales(*(spread.scale for spread in ranges.attentions[name]))
        for name in layers.attentions
    }
    linears = {policy.weight.format(name): ranges.linears[name].scale for name in layers.linears}
    return Fp8Attention(attentions), StaticFp8(linears)


def quality_table(report: Mapping[str, Any]) -> str:
    """The report's figures for a terminal."""
    rows = [("FP8 up to this step", "linears", "attentions", "relative L2 of one forward")]
    rows += [
        (step["step"], str(step["linears"]), str(step["attentions"]), f"{step['relative_l2']:.2%}")
        for step in report["steps"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"the graph is in FP8 up to: {report['policy']}")
    worst = ", ".join(f"{name} {error:.1%}" for name, error in report["worst_layers"].items())
    lines.append(f"layers with the largest error of their own: {worst}")
    lines += [
        f"FP8 does not suit the {entry['what']} of {entry['layer']}: its largest magnitude is "
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
