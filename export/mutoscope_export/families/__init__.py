"""The model lines that export knows. A family is one package here, one file in the runtime, one row in each table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from mutoscope.bundle.bundle import Defaults, Geometry, Text, base_precision
from torch import Tensor, nn

from ..graphs.parts import Cut
from ..graphs.trace import GRAPH_FILE, Pass, SymbolicValue
from ..quantization.policy import NarrowingPolicy

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..quantization.calibration import Calibration, Reference

# Class of the pipeline, as model_index.json names it, to module.
FAMILIES = {"WanPipeline": "mutoscope_export.families.wan", "WanDMDPipeline": "mutoscope_export.families.wan"}


# The type of the network by a graph's precision, or else by the base of it.
_NETWORK_TYPES = {"fp32": "float32", "bf16": "bfloat16", "bf16-cpu": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Form:
    """A graph in one precision: what is done to it after it was traced."""

    precision: str
    passes: tuple[Pass, ...] = ()
    cut: Cut | None = None  # into parts, after the passes

    @property
    def network_type(self) -> str:
        """A name of NumPy's or torch's: "float32", "bfloat16", "float16"."""
        return _NETWORK_TYPES.get(self.precision) or _NETWORK_TYPES[base_precision(self.precision)]

    @property
    def file(self) -> str:
        """Its name in the folder of its role."""
        return GRAPH_FILE if self.precision == "fp32" else f"model-{self.precision}.onnx"


@dataclass(frozen=True)
class GraphSource:
    """How one graph is made from a component of the checkpoint; each function takes the loaded component.

    It is traced once, and written in each of its `forms`. `module` is also given the type of the network.
    """

    role: str
    component: str
    module: Callable[[Any, torch.dtype], nn.Module]
    inputs: Callable[[Any], Sequence[SymbolicValue]]
    outputs: Callable[[Any], Sequence[SymbolicValue]]
    examples: Callable[[Any], Sequence[Mapping[str, Tensor]]]  # the first is traced, all are compared
    forms: tuple[Form, ...]


class Family(Protocol):
    """What export asks of a family's module."""

    NAME: str  # in the runtime's table
    COMPONENTS: Mapping[str, tuple[str, ...]]  # and the classes that each may have, as "library.Class"
    DEFAULTS: Mapping[str, Defaults]  # by class of the pipeline; `scheduler` is taken from its configuration
    SCHEDULERS: Mapping[str, Mapping[str, Any]]  # of pipelines that use their own whatever the checkpoint says
    PRECISIONS: Sequence[str]  # of the denoiser
    PREVIEWED: str  # the component whose `decode` the preview imitates
    NARROWED: Mapping[str, NarrowingPolicy]  # of the denoiser, for the precisions that are calibrated

    def refuse_unsupported(self, checkpoint: Checkpoint, index: Mapping[str, Any]) -> None:
        """Refuses, from the configuration alone, what only looks like a checkpoint of this family.

        Raises:
            ValueError: says what was found and what is supported.
        """
        ...

    def geometry(self, checkpoint: Checkpoint) -> Geometry: ...

    def text_settings(self, checkpoint: Checkpoint, tokenizer: Any) -> Text:
        """
        Raises:
            ExportError: the tokenizer cannot pad, or is not the text encoder's.
        """
        ...

    def beside_own_class(self, component: str, model: Any) -> tuple[Tensor, Tensor]:
        """What the module that is exported, and what the component's own class, makes of the same small inputs."""
        ...

    def sources(self, precisions: Sequence[str]) -> list[GraphSource]:
        """The graphs to make, those of one component beside each other."""
        ...

    def reference(
        self, checkpoint: Checkpoint, calibration: Calibration, geometry: Geometry, max_tokens: int
    ) -> Reference:
        """Denoising runs as the family's authors make them, to be watched for ranges; loads the denoiser."""
        ...

    def decode(self, component: Any, latents: Tensor) -> Iterator[Tensor]:
        """Latents f32 `[C, F, h, w]` to u8 frames `[T, H, W, 3]`, one chunk a latent frame."""
        ...


def load_family(pipeline_class: str) -> Family:
    """The family of a pipeline class in `FAMILIES`."""
    return cast(Family, import_module(FAMILIES[pipeline_class]))
