"""What export asks of a model line, and the records in which the line answers.

A family answers with data. Knows of the bundle only the records of its manifest, and nothing of any model line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import torch
from mutoscope.bundle.conditionings import Conditioning
from mutoscope.bundle.manifest import Defaults, Draw, Expert, Frames, Geometry
from mutoscope.clips import Clip
from mutoscope.pictures import Picture
from mutoscope_engines.precisions import network_type
from torch import Tensor, nn

from ..checkpoint.checkpoint import Checkpoint
from ..graphs.parts import Cut
from ..graphs.trace import GRAPH_FILE, Pass, SymbolicValue
from .clips import ClipPixels, drawn, frames_of, identity
from .policy import QuantizationPolicy

Call = Mapping[str, Tensor]
"""The keyword arguments of one call of a network."""


@dataclass(frozen=True)
class Description:
    """What the manifest of a checkpoint says, beside its graphs and where its weights come from.

    Attributes:
        conditionings: what a video follows. The tokenizer of a text is the component of that name: "tokenizer.json"
            is written from the component `tokenizer`.
        scheduler: its configuration, as Diffusers writes it.
        precisions: those in which the denoiser can be exported.
        policies: which of its layers run in eight bits, for the precisions that are calibrated.
    """

    geometry: Geometry
    frames: Frames
    conditionings: tuple[Conditioning, ...]
    draws: tuple[Draw, ...]
    defaults: Defaults
    scheduler: Mapping[str, Any]
    precisions: tuple[str, ...]
    experts: tuple[Expert, ...] = (Expert(),)
    policies: Mapping[str, QuantizationPolicy] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """A graph in one precision: what is done to it after it was traced."""

    precision: str
    passes: tuple[Pass, ...] = ()
    cut: Cut | None = None  # into parts, after the passes
    lora_inputs: bool = False  # whether LoRAs change it while it runs

    @property
    def network_type(self) -> str:
        """A name of NumPy's or torch's: "float32", "bfloat16", "float16"."""
        return network_type(self.precision)

    @property
    def file(self) -> str:
        """Its name in the folder of its role."""
        stem, dot, ending = GRAPH_FILE.partition(".")
        marks = [] if self.precision == "fp32" else [self.precision]
        return "-".join([stem, *marks, *(["lora"] if self.lora_inputs else [])]) + dot + ending


@dataclass(frozen=True)
class GraphSource:
    """How one graph is made from a component of the checkpoint; each function takes the loaded component.

    It is traced once, and written in each of its `forms`. `module` is also given the type of the network.

    Attributes:
        role: of the graph, one of `mutoscope.bundle.contract.ROLES`.
        component: the folder of the checkpoint that its weights come from.
        module: what computes the role's outputs from its inputs, around the weights of the component.
        inputs: their names, dtypes and shapes, in the order of the module's parameters.
        outputs: the same of what it gives.
        examples: inputs at several sizes. The first is traced, so that no size of it may be 1; all are compared.
        own: what the module, and what the component's own class, makes of the same inputs. A component whose graphs
            only work together has it at the last of them; every other graph has its own.
    """

    role: str
    component: str
    module: Callable[[Any, torch.dtype], nn.Module]
    inputs: Callable[[Any], Sequence[SymbolicValue]]
    outputs: Callable[[Any], Sequence[SymbolicValue]]
    examples: Callable[[Any], Sequence[Mapping[str, Tensor]]]
    forms: tuple[Form, ...]
    own: Callable[[Any], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class Calibration:
    """Whole runs of the reference: one for each prompt, with the seeds that follow `seed`.

    Attributes:
        clips: what the videos of a model that takes pictures or clips follow, in the order of the prompts, and over
            again; drawn ones where there is none. `None` for a model that follows text alone.
    """

    prompts: tuple[str, ...]
    request: Defaults
    seed: int = 0
    clips: tuple[Clip | Picture, ...] | None = None

    def clip(self, number: int) -> ClipPixels:
        """What the video of a prompt may follow, in its size: uint8 `[T, H, W, 3]`.

        Raises:
            RequestError: a clip cannot be read to its end.
        """
        size = (self.request.num_frames, self.request.height, self.request.width)
        return frames_of(self.clips[number % len(self.clips)], *size) if self.clips else drawn(number, *size)

    def to_dict(self) -> dict[str, Any]:
        """What the report of an export says of it."""
        asked = msgspec.structs.asdict(self.request)
        names = ["height", "width", "num_frames", "num_inference_steps", "guidance_scale", "negative_prompt"]
        names += [] if self.request.flow_shift is None else ["flow_shift"]
        told: dict[str, Any] = {"prompts": list(self.prompts), "seed": self.seed}
        if self.clips is not None:
            told["clips"] = [identity(clip, self.request.num_frames) for clip in self.clips] or "drawn"
        return told | {name: asked[name] for name in names}


@dataclass(frozen=True)
class Recording:
    """One denoising step of the reference.

    Attributes:
        inputs: of the denoiser's graph, as far as the step decides them.
        calls: what the reference gave its network in this step, a call for each branch of guidance.
    """

    inputs: Mapping[str, Tensor]
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Reference:
    """One of the checkpoint's own denoisers in float32, and denoising runs with it, one for each prompt.

    Attributes:
        role: of its graph.
        runs: all steps that it makes. Of several denoisers, a later one goes on from where the one before stopped.
        steps: turns its calls in one run into the steps that it made, in order.
    """

    role: str
    network: nn.Module
    runs: Sequence[Callable[[], object]]
    steps: Callable[[Sequence[Call]], list[Recording]]

    @property
    def layer_names(self) -> list[str]:
        """The names of all modules in the network, in its order."""
        return [name for name, _ in self.network.named_modules()]


class Family(Protocol):
    """What export asks of a family's module."""

    NAME: str
    PIPELINES: Mapping[str, Mapping[str, tuple[str, ...]]]
    """The class that `model_index.json` names, to the components it needs, to the classes that each may have:
    "library.Class". A pipeline that uses a scheduler of its own, whatever the checkpoint says, has none here."""

    def describe(self, checkpoint: Checkpoint) -> Description:
        """What the manifest says of a checkpoint, from its configuration and tokenizers alone.

        Raises:
            ValueError: it only looks like a checkpoint of this family; says what was found and what is supported.
            ExportError: a file is missing, or contradicts another.
        """
        ...

    def original_name(self, name: str) -> str:
        """What a denoiser's parameter is called where its authors publish files of another layout than Diffusers'."""
        ...

    def sources(self, checkpoint: Checkpoint, precisions: Sequence[str]) -> list[GraphSource]:
        """The graphs to make for these precisions of the denoiser, those of one component beside each other."""
        ...

    def reference(
        self, checkpoint: Checkpoint, described: Description, calibration: Calibration
    ) -> Iterator[Reference]:
        """Denoising runs as the family's authors make them, to watch for ranges: expert after expert, in order.

        Each is loaded when it is asked for, so that whoever drops one before the next has one in memory. Each of its
        runs must have been made by then. Asked only of a family that describes `policies`.
        """
        ...
