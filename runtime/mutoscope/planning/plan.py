"""What will be done for one video: every default resolved, every size computed. Knows no bundle and no request.

A plan is a handful of records. `Plan.to_dict` gives them as one flat dictionary, for people and for JSON, and
`Plan.from_dict` makes the plan from it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from fractions import Fraction
from functools import cache
from itertools import islice, zip_longest
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, get_type_hints

from mutoscope_engines.system.file_hash import known_sha256

from ..bundle.contract import DECODE, ROLES, open_with, stage_of
from ..clips import identity_of, read_clip_or_picture
from ..codec import from_plain, to_plain
from ..conditions.base import Condition, Fact, Settled
from ..errors import RequestError
from ..output.frames import VideoHeader
from ..pictures import Picture, read_picture, read_pictures
from ..request import FILES, LORAS, PICTURES, REFERENCES, FileFields, VideoRequest
from ..solvers.solvers import Schedule
from ..values.byte_sizes import format_bytes
from ..values.guidance import later_weights
from ..values.loras import Lora
from ..version import __version__
from .footprints import Sizes
from .going_on import Before
from .loras import PlannedLora, SettledLoras
from .memory_plan import MemoryOption, MemoryPlan


@dataclass(frozen=True)
class ConditionsPlan:
    """What the video follows."""

    facts: dict[str, Fact]  # by name: what was asked for, cleaned, and what is known of it
    lengths: dict[str, int]  # sizes of symbols in the shapes of graphs, such as L, the tokens of a prompt
    encoders: tuple[str, ...]  # the graphs that encode it

    @property
    def prompt(self) -> str:
        """What the video shows; empty where the model takes no prompt."""
        return str(self.facts.get("prompt", ""))


@dataclass(frozen=True)
class GeometryPlan:
    """How large the video is, in pixels, latents and tokens."""

    height: int  # H
    width: int  # W
    num_frames: int  # T, of those that are made
    frames_before: int  # of the clip that it goes on from; its last is the first of those that are made
    fps: Fraction
    latents_shape: tuple[int, int, int, int]  # C, F, h, w
    network_tokens: int


@dataclass(frozen=True)
class SchedulePlan:
    """Which steps lead from noise to latents."""

    scheduler: str
    num_inference_steps: int
    cache_interval: int
    flow_shift: float
    sigmas: tuple[float, ...]  # before the shift, one a step; none where they are evenly spaced
    timesteps: tuple[float, ...]  # at which the network is called
    calls: dict[str, int]  # how often each denoiser is called, branch by branch or all at once
    first_steps: dict[str, int]  # of the inference steps, counted from 1, the one with which each denoiser begins
    state_rows: int  # K


@dataclass(frozen=True)
class GuidancePlan:
    """How closely the prompt is followed."""

    scale: float  # of the first expert, which decides for all whether there is guidance
    weights: tuple[float, ...]  # at that scale, one a branch: (negative, positive), or (1,)
    scales: dict[str, float]  # by expert

    def weights_of(self, role: str) -> tuple[float, ...]:
        """Those of an expert; with a scale of 1 it needs one branch, also where the first needs two."""
        return later_weights(self.scales[role]) if len(self.weights) > 1 else self.weights

    @property
    def unguided(self) -> tuple[str, ...]:
        """The experts that need no negative prompt."""
        return tuple(role for role in self.scales if len(self.weights_of(role)) == 1)


@dataclass(frozen=True)
class PlacementPlan:
    """What runs the graphs."""

    backend: str  # of the denoiser
    precision: str  # of the denoiser
    stages: dict[str, str]  # what runs each: precision of its graphs, and backend
    threads: int
    settings: dict[str, dict[str, str]]  # of the backends' libraries, by backend


# What these are called among the values of all records.
_FLAT = {
    "conditions.facts": "conditions",
    "guidance.scale": "guidance_scale",
    "guidance.weights": "guidance_weights",
    "guidance.scales": "guidance_scales",
    "memory.limit_bytes": "memory_limit_bytes",
    "memory.options": "memory",
}
_DERIVED = ("branches_per_call", "decoder_window", "decoder_tiles", "memory_peak_bytes")


@dataclass(frozen=True)
class Plan:
    """What will be done. Nothing in it is optional; `describe` prints it, `to_dict` gives it as plain values."""

    conditions: ConditionsPlan
    geometry: GeometryPlan
    schedule: SchedulePlan
    guidance: GuidancePlan
    loras: tuple[PlannedLora, ...]
    seed: int
    placements: PlacementPlan
    memory: MemoryPlan
    family: str
    bundle: str
    bundle_sha256: str
    notes: tuple[str, ...]  # what the caller should know, for a person

    @property
    def branches_per_call(self) -> int:
        """How many guidance branches go through a denoiser at once, at most."""
        return max(self.option_of(role).branches_per_call for role in self.guidance.scales)

    @property
    def decoder_window(self) -> tuple[int, int]:
        """h, w of the features that are decoded at once."""
        return self.memory.options[DECODE].window

    @property
    def decoder_tiles(self) -> int:
        """As many windows make a picture; 1 where it is decoded whole."""
        return self.memory.options[DECODE].tiles

    @property
    def memory_peak_bytes(self) -> int:
        """At least, where the activations of a graph are not known."""
        return self.memory.peak_bytes

    @property
    def sizes(self) -> Sizes:
        """The symbols of its graphs' shapes."""
        return Sizes(
            len(self.guidance.weights),
            self.conditions.lengths,
            self.geometry.latents_shape,
            self.schedule.state_rows,
            self.guidance.unguided,
            with_loras={lora.role for lora in self.loras},
        )

    def option_of(self, role: str) -> MemoryOption:
        """How the graph of a role runs: as its stage does, or by itself where it is one of several experts or
        encoders."""
        options = self.memory.options
        own = open_with(role)
        return options[own] if own in options else options[stage_of(role)]

    def runs_once(self, role: str) -> bool:
        """Whether a graph runs once before it is closed."""
        again = ROLES[role].tiled and self.decoder_tiles > 1
        return ROLES[role].once and not self.memory.keep_loaded and not again

    @property
    def has_footage(self) -> bool:
        """Whether frames of a clip that was given are in the video: as they were, in parts, or changed."""
        facts = self.conditions.facts
        return "extend" in facts or "mask" in facts or facts.get("strength", 1) != 1

    @property
    def header(self) -> VideoHeader:
        """What the writer of a file is told of the video."""
        # Without a path and a remark of the machine it was made on; the bundle's hash says the same for everybody.
        facts = {name: value for name, value in self.to_dict().items() if name not in ("bundle", "notes")}
        return VideoHeader(
            height=self.geometry.height,
            width=self.geometry.width,
            num_frames=self.geometry.num_frames + max(0, self.geometry.frames_before - 1),
            fps=self.geometry.fps,
            has_footage=self.has_footage,
            threads=self.placements.threads,
            title=self.conditions.prompt,
            recipe=json.dumps({"mutoscope": __version__, **facts}),
        )

    def to_request(self, **given: Unpack[FileFields]) -> VideoRequest:
        """The request that says all of it, `seed` included: with the same bundle it makes the same video again.

        Args:
            given: the files that the video follows. Of pictures and clips a plan has only size and hash, and of LoRAs
                name, hash and strength.

        Raises:
            RequestError: a file is missing, or is another than the plan has.
        """
        by_name: Mapping[str, Any] = given
        for name in FILES:
            self._refuse_another(name, by_name.get(name))
        return self.request_of(**given)

    def request_of(self, **given: Unpack[FileFields]) -> VideoRequest:
        """As `to_request`, for who made the plan of these very pictures and clips: none is read again to compare it.

        Raises:
            RequestError: a LoRA is another than the plan has.
        """
        if unknown := set(given) - {*FILES, *LORAS}:
            raise TypeError(f"to_request takes {', '.join((*FILES, *LORAS))}; got {', '.join(sorted(unknown))}")
        by_name: Mapping[str, Any] = given
        loras = {name: tuple(by_name.get(name, ())) for name in LORAS}
        self._refuse_other_loras(loras)
        files = {name: by_name.get(name) for name in FILES}
        asked = {field.name for field in fields(VideoRequest)}
        values = {name: attrgetter(home)(self) for name, home in _homes().items() if name in asked}
        for scale in list(self.guidance.scales.values())[1:]:
            values["guidance_scale_2"] = scale
        values |= loras
        followed: dict[str, Any] = {name: value for name, value in self.conditions.facts.items() if name in asked}
        return VideoRequest(**{"prompt": self.conditions.prompt} | followed | values | files)

    def _refuse_another(self, name: str, source: Any) -> None:
        planned = self.conditions.facts.get(name)
        if source is None and planned is not None:
            raise RequestError(f"{name} is missing: the plan has {planned}; give it again")
        if source is not None and (found := self._identity_of(name, source)) != planned:
            raise RequestError(f"{name} is another than the plan has, which is {planned or 'none'}; got {found}")

    def _identity_of(self, name: str, source: Any) -> str:
        if name == REFERENCES:
            return ", ".join(each.identity for each in read_pictures(source, name=name))
        read = read_picture(source, name=name) if name in PICTURES else read_clip_or_picture(source, name=name)
        if isinstance(read, Picture):
            return read.identity
        used = None if name == "extend" else self.geometry.num_frames
        return identity_of(islice(read.frames(), used))

    def _refuse_other_loras(self, given: Mapping[str, Sequence[Lora]]) -> None:
        for (name, loras), role in zip_longest(given.items(), self.guidance.scales):
            planned = [(lora.sha256, lora.strength) for lora in self.loras if lora.role == role]
            try:
                found = [(known_sha256(Path(lora.path)), lora.strength) for lora in loras]
            except (OSError, ValueError) as error:  # a ValueError of a zero byte
                cause = error.strerror if isinstance(error, OSError) else error
                raise RequestError(f"{name} has a file that cannot be read: {cause}") from error
            if found != planned:
                wanted = [f"{lora.file}:{lora.strength:g}" for lora in self.loras if lora.role == role]
                got = [f"{Path(lora.path).name}:{lora.strength:g}" for lora in loras]
                raise RequestError(
                    f"{name} must be those of the plan, {', '.join(wanted) or 'none'}; got {', '.join(got) or 'none'}, "
                    "which differ in content, order or strength"
                )

    def to_dict(self) -> dict[str, Any]:
        """All values by name, the records' beside each other, as JSON has them."""
        flat: dict[str, Any] = {name: to_plain(attrgetter(home)(self)) for name, home in _homes().items()}
        flat |= {name: to_plain(getattr(self, name)) for name in _DERIVED}
        for stage, option in self.memory.options.items():
            flat["memory"][stage]["peak_bytes"] = option.peak_bytes
        facts: dict[str, Any] = flat.pop("conditions")
        return facts | flat | {"conditions": list(facts)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The plan whose `to_dict` gave these values, before or after JSON.

        Raises:
            RequestError: they are no plan's; says what does not fit.
        """
        named = values.get("conditions", ()) if isinstance(values, dict) else None
        if not isinstance(named, (list, tuple)):
            raise RequestError("this is not a Plan: a Plan is an object with a list of `conditions`")
        facts = [str(name) for name in named]
        unlike = sorted({*_homes(), *facts} ^ (values.keys() - set(_DERIVED)))
        if unlike:
            raise RequestError(f"this is not a Plan of this version: it differs in {', '.join(unlike)}")
        values = values | {"conditions": {name: values[name] for name in facts}}
        nested: dict[str, Any] = {}
        for name, home in _homes().items():
            record, _, field = home.partition(".")
            if field:
                nested.setdefault(record, {})[field] = values[name]
            else:
                nested[record] = values[name]
        return from_plain(cls, nested)

    def describe(self) -> str:
        """One line a fact, aligned, for a terminal."""
        facts = {name: _readable(name, value) for name, value in self.to_dict().items() if name != "notes"}
        facts["memory"] = "; ".join(f"{stage} {_described(option)}" for stage, option in self.memory.options.items())
        if not all(option.activations_known for option in self.memory.options.values()):
            facts["memory_peak_bytes"] = f"at least {facts['memory_peak_bytes']}"
        facts["loras"] = facts["loras"] or "none"
        facts["sigmas"] = facts["sigmas"] or "evenly spaced"
        longest = max(map(len, facts))
        return "\n".join(f"{name:<{longest}}  {value}" for name, value in facts.items())

    if not TYPE_CHECKING:  # which is to see no other attributes than there are

        def __getattr__(self, name: str) -> Any:
            """Says where a value is that stood in the plan itself before it had records."""
            where = f"; it is plan.{_homes()[name]} now" if name in _homes() else ""
            raise AttributeError(f"a plan has no {name!r}{where}")


@cache
def _homes() -> dict[str, str]:
    """Where in a plan each value of its flat form is, such as "height" in "geometry.height"."""
    homes = {}
    for record, kind in get_type_hints(Plan).items():
        for name in [f"{record}.{part.name}" for part in fields(kind)] if is_dataclass(kind) else [record]:
            homes[_FLAT.get(name, name.rpartition(".")[2])] = name
    return homes


def _readable(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable('', item)}" for key, item in value.items()) or "the library's own"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"{item:g}" if isinstance(item, float) else _readable("", item) for item in value)
    return format_bytes(value) if name.endswith("_bytes") else str(value)


def _described(option: MemoryOption) -> str:
    parts = [f"weights {format_bytes(option.weight_bytes)}", f"inputs and outputs {format_bytes(option.buffer_bytes)}"]
    if option.streamed_bytes:
        often = f" {option.calls_per_step} times in each step" if option.calls_per_step > 1 else ""
        parts.append(f"streamed {format_bytes(option.streamed_bytes)}{often}")
    known = option.activations_known
    parts.append(f"activations {format_bytes(option.activation_bytes) if known else 'not known'}")
    if option.clip_bytes:
        parts.append(f"clips {format_bytes(option.clip_bytes)}")
    if option.host_bytes:
        parts.append(f"features, frames and clips in host memory {format_bytes(option.host_bytes)}")
    return f"{option.name}: {'' if known else 'at least '}{format_bytes(option.peak_bytes)} ({', '.join(parts)})"


@dataclass(frozen=True, eq=False)
class Job:
    """A plan with the values that are too large to print: what the stages work from."""

    plan: Plan
    conditions: tuple[tuple[Condition, Settled], ...]  # what encodes each value of the request, and the value
    schedule: Schedule
    before: Before | None = None  # the clip that it goes on from
    loras: SettledLoras = field(default_factory=SettledLoras)
