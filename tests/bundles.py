"""What the graphs of a bundle take and give, for bundles that tests make: real in everything but what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import onnx
from mutoscope.bundle.manifest import Graph, GraphTensor, LoraForm, Parameter
from mutoscope_engines.onnx_file import ONNX_TYPES
from mutoscope_engines.precisions import network_type
from onnx import helper

Ends = tuple[tuple[GraphTensor, ...], tuple[GraphTensor, ...]]
TYPES = {"input_ids": "int64", "attention_mask": "int64", "frames": "uint8"}  # of the others, float32


def tensors(cache_type: str = "float32", **shapes: tuple[Any, ...]) -> tuple[GraphTensor, ...]:
    """Inputs or outputs, each with the type that one of its name has."""
    return tuple(
        GraphTensor(name=name, dtype=cache_type if "cache" in name else TYPES.get(name, "float32"), shape=shape)
        for name, shape in shapes.items()
    )


def interfaces(
    *,
    channels: int = 4,
    text_width: int = 6,
    feature_channels: int = 4,
    feature_caches: Sequence[tuple[Any, ...]] = ((1, 4, 1, "h", "w"),),
    decoder_caches: Sequence[tuple[Any, ...]] = ((1, 4, "h", "w"), (1, 1, "h", "w")),
    cache_type: str = "float32",
    scale: int = 8,
) -> dict[str, Ends]:
    """Inputs and outputs of every role, as the table of docs/architecture.md has them. `scale` is the decoder's."""

    def caches(shapes: Sequence[tuple[Any, ...]], prefix: str = "") -> tuple[GraphTensor, ...]:
        return tensors(cache_type, **{f"{prefix}cache_{number}": shape for number, shape in enumerate(shapes)})

    def frames(count: int) -> tuple[GraphTensor, ...]:
        return tensors(frames=(count, f"{scale}*h", f"{scale}*w", 3))

    picture = (channels, "F", "h", "w")
    latents = tensors(latents=(1, channels, 1, "h", "w"))
    features = tensors(features=(1, feature_channels, "h", "w"))
    return {
        "text_encoder": (
            tensors(input_ids=("B", "L"), attention_mask=("B", "L")),
            tensors(prompt_embeds=("B", "L", text_width)),
        ),
        "denoiser": (
            tensors(
                latents=picture,
                state=("K", *picture),
                timestep=(1,),
                prompt_embeds=("B", "L", text_width),
                guidance_weights=("B",),
                solver_a=("K", "K"),
                solver_b=("K",),
            ),
            tensors(next_state=("K", *picture), velocity_peak=()),
        ),
        "vae_features_first": (latents, features + caches(feature_caches)),
        "vae_features_next": (latents + caches(feature_caches), features + caches(feature_caches, "next_")),
        "vae_decoder_first": (features, frames(1) + caches(decoder_caches)),
        "vae_decoder_next": (features + caches(decoder_caches), frames(4) + caches(decoder_caches, "next_")),
    }


def graphs(ends: dict[str, Ends], precision: str = "fp32") -> tuple[Graph, ...]:
    """One graph for each role."""
    return tuple(
        Graph(role=role, precision=precision, file=f"{role}/model.onnx", inputs=inputs, outputs=outputs)
        for role, (inputs, outputs) in ends.items()
    )


def in_parts(make_bundle: Callable[..., Any]) -> Any:
    """A bundle, as `make_bundle` makes it, whose denoiser has two parts."""
    ends = interfaces()
    inputs, outputs = ends["denoiser"]
    handed_on = tensors(hidden=(1,))
    parts = [
        Graph(role="denoiser", precision="fp32", file=f"denoiser/{part}.onnx", part=part, inputs=takes, outputs=gives)
        for part, takes, gives in ((1, inputs[:3], handed_on), (2, inputs[:2] + inputs[3:] + handed_on, outputs))
    ]
    return make_bundle(graphs=(*graphs({role: each for role, each in ends.items() if role != "denoiser"}), *parts))


def in_precision(graph: Graph, precision: str) -> Graph:
    """The same graph in another precision: its caches have the type of its network."""
    inputs, outputs = (
        tuple(
            msgspec.structs.replace(each, dtype=network_type(precision)) if "cache" in each.name else each
            for each in ends
        )
        for ends in (graph.inputs, graph.outputs)
    )
    return msgspec.structs.replace(graph, precision=precision, inputs=inputs, outputs=outputs)


def onnx_file(graph: Graph) -> bytes:
    """A file that declares the inputs and outputs of a graph, and computes nothing."""
    inputs, outputs = (
        [helper.make_tensor_value_info(each.name, ONNX_TYPES[each.dtype], each.shape) for each in ends]
        for ends in (graph.inputs, graph.outputs)
    )
    model = helper.make_model(helper.make_graph([], graph.role, inputs, outputs), ir_version=10)
    content: bytes = onnx.ModelProto.SerializeToString(model)
    return content


Q, TWO = "blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.2.weight"
PARAMETERS = {
    Q: Parameter(shape=(4, 6), original="blocks.0.self_attn.q.weight"),
    "blocks.0.attn1.to_q.bias": Parameter(shape=(4,), original="blocks.0.self_attn.q.bias"),
    TWO: Parameter(shape=(3, 5), original="blocks.1.ffn.2.weight"),
    "proj_out.weight": Parameter(shape=(3, 4), original="head.head.weight"),
}


def lora_form(role: str = "denoiser", precision: str = "fp32") -> LoraForm:
    """A denoiser with LoRA inputs for two of its layers, in one graph; for `proj_out` it has none."""
    inputs, outputs = interfaces()["denoiser"]
    dtype = "float32" if network_type(precision) == "float32" else "float16"
    shapes: dict[str, tuple[int | str, ...]] = {
        f"{Q}.lora_a": (6, "R"), f"{Q}.lora_b": ("R", 4), f"{TWO}.lora_a": (5, "R"), f"{TWO}.lora_b": ("R", 3),
    }  # fmt: skip
    further = tuple(GraphTensor(name=name, dtype=dtype, shape=shape) for name, shape in shapes.items())
    file = f"{role}/model-{precision}-lora.onnx"
    graph = Graph(role=role, precision=precision, file=file, inputs=inputs + further, outputs=outputs)
    return LoraForm(role=role, parameters=PARAMETERS, graphs=(graph,))
