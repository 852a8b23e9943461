"""The interface of a graph in one bundle: what its files say, and what the contract says that it must be.

Knows the contract and the manifest. Knows nothing of files or sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from mutoscope_engines.precisions import network_type

from .contract import DENOISE, LORA_A, LORA_B, LORA_RANK, NETWORK, ROLES, Tensor
from .manifest import Graph, GraphTensor, LoraForm, Manifest
from .record import Shape

Tensors = Mapping[str, GraphTensor]
ANY, REST = "*", "..."  # a size that the contract leaves open, and any number of them at the end


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of the graph of a role by name, whether it is one file or several parts."""

    inputs: Tensors
    outputs: Tensors

    @property
    def caches(self) -> Tensors:
        """What a call of a decoder keeps for the next, by the names that this takes them by."""
        return {
            name.removeprefix("next_"): tensor
            for name, tensor in self.outputs.items()
            if name.removeprefix("next_").startswith("cache_")
        }


def interface_of(parts: Sequence[Graph]) -> Interface:
    """Of a graph in parts: the inputs that no part gives, and the outputs that no part takes."""
    given = {tensor.name for graph in parts for tensor in graph.outputs}
    taken = {tensor.name for graph in parts for tensor in graph.inputs}
    shared = given & taken if len(parts) > 1 else set()
    return Interface(
        {each.name: each for graph in parts for each in graph.inputs if each.name not in shared},
        {each.name: each for graph in parts for each in graph.outputs if each.name not in shared},
    )


def fed_by_number_or_seed(manifest: Manifest) -> Tensors:
    """The inputs of a denoiser that a number of the request or a draw of the seed feeds."""
    numbers = [GraphTensor(name=number.input, dtype="float32", shape=(1,)) for number in manifest.numbers]
    draws = [GraphTensor(name=draw.input, dtype="float32", shape=draw.shape) for draw in manifest.draws]
    return {tensor.name: tensor for tensor in (*numbers, *draws)}


def fed_by_pictures(manifest: Manifest) -> Tensors:
    """The inputs of a denoiser that pictures feed: their latent frames, and which of the video's these are."""
    channels, scale = manifest.geometry.latent_channels, manifest.geometry.vae_scale_factor_temporal
    named: dict[str, Shape] = {}
    for image in manifest.images:
        count: int | str = 1 if image.following is None else "F"
        named |= dict.fromkeys(image.feeds.values(), (channels, count, "h", "w"))
        named[image.given] = ("F",) if image.following is None else (scale, "F")
    return {name: GraphTensor(name=name, dtype="float32", shape=shape) for name, shape in named.items()}


def fed_by_control(manifest: Manifest) -> Tensors:
    """The inputs of a denoiser that a clip with its mask and references feeds: control, and a scale for each layer."""
    channels, scale = manifest.geometry.latent_channels, manifest.geometry.vae_scale_factor_spatial
    named: dict[str, Shape] = {}
    for control in manifest.controls:
        named |= dict.fromkeys(control.feeds.values(), (2 * channels + scale * scale, "F", "h", "w"))
        named[control.scale_input] = (control.layers,)
    return {name: GraphTensor(name=name, dtype="float32", shape=shape) for name, shape in named.items()}


def fed_by_image_embeds(manifest: Manifest) -> Tensors:
    """The inputs of a denoiser that are tokens of pictures, as many as the encoder gives."""
    names = [name for each in manifest.image_embeds for name in each.feeds.values()]
    return {name: GraphTensor(name=name, dtype="float32", shape=(ANY, ANY)) for name in names}


def lora_type(precision: str) -> str:
    """NumPy's name of the type of A and B. It has no bfloat16, and float16 is as small and rounds them less."""
    return "float32" if network_type(precision) == "float32" else "float16"


def fed_by_loras(form: LoraForm, parts: Sequence[Graph]) -> Tensors:
    """The inputs of a denoiser that LoRAs feed: two for each of the weights that its graph lets them change."""
    inputs = interface_of(parts).inputs
    tensors = [
        GraphTensor(name=f"{name}{suffix}", dtype=lora_type(parts[0].precision), shape=shape)
        for name, parameter in form.parameters.items()
        if f"{name}{LORA_A}" in inputs or f"{name}{LORA_B}" in inputs
        for suffix, shape in (
            (LORA_A, (prod(parameter.shape[1:]), LORA_RANK)),
            (LORA_B, (LORA_RANK, parameter.shape[0])),
        )
    ]
    return {tensor.name: tensor for tensor in tensors}


def complaints_of(manifest: Manifest, parts: Sequence[Graph], form: LoraForm | None = None) -> list[str]:
    """How the graph of a role differs from what the contract says of it; none where it does not.

    Args:
        form: of a graph that LoRAs change.
    """
    (graph, *_), found = parts, interface_of(parts)
    role, where = ROLES[graph.role], f"the graph of the {graph.role} in {graph.precision}"
    takes, gives = (_in_bundle(manifest, graph, tensors) for tensors in (role.takes, role.gives))
    if role.stage == DENOISE:
        embeds = [name for text in manifest.texts for name in text.feeds.values()]
        embedded = {name: _embeds(name) for name in embeds}
        of_pictures = {**fed_by_pictures(manifest), **fed_by_image_embeds(manifest), **fed_by_control(manifest)}
        takes = {**embedded, **of_pictures, **fed_by_number_or_seed(manifest), **takes}
    gives |= {name: _embeds(name) for text in manifest.texts if text.role == graph.role for name in text.feeds}
    if form is not None:
        takes = {**fed_by_loras(form, parts), **takes}
    if role.caches:
        gives |= {name: tensor for name, tensor in found.outputs.items() if tensor in found.caches.values()}
    if role.caches == "passes":
        takes |= {name: _renamed(tensor, name) for name, tensor in found.caches.items()}
    return [
        *_differences(where, "input", takes, found.inputs),
        *_differences(where, "output", gives, found.outputs),
        *_wrong_caches(where, network_type(graph.precision), found.caches),
    ]


def _in_bundle(manifest: Manifest, graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, GraphTensor]:
    """Tensors of the contract with the numbers of a bundle."""
    following = not graph.role.endswith("_first")
    scale = manifest.geometry.vae_scale_factor_spatial
    numbers: dict[str | int, str | int] = {
        "channels": manifest.geometry.latent_channels,
        "latents": manifest.frames.latents_per_call[following],
        "frames": manifest.frames.frames_per_call[following],
        "height": f"{scale}*h",
        "width": f"{scale}*w",
    }
    for text in manifest.texts:
        if text.role == graph.role:
            numbers["L"] = text.symbol
    return {
        name: GraphTensor(
            name=name,
            dtype=network_type(graph.precision) if tensor.dtype == NETWORK else tensor.dtype,
            shape=tuple(numbers.get(size, size) for size in tensor.shape),
        )
        for name, tensor in tensors.items()
    }


def _embeds(name: str) -> GraphTensor:
    """What an encoder gives: a row for each guidance branch, be it of tokens, of their mask, or one vector."""
    return GraphTensor(name=name, dtype="float32", shape=("B", REST))


def _renamed(tensor: GraphTensor, name: str) -> GraphTensor:
    return GraphTensor(name=name, dtype=tensor.dtype, shape=tensor.shape)


def _differences(where: str, end: str, wanted: Tensors, found: Tensors) -> list[str]:
    missing = [f"{where} has no {end} {name}" for name in wanted if name not in found]
    further = [f"{where} has the {end} {name}, which nothing {'feeds' if end == 'input' else 'reads'}"
               for name in found if name not in wanted]  # fmt: skip
    others = [
        f"{where} has the {end} {name} as {written(found[name])}; it must be {written(tensor)}"
        for name, tensor in wanted.items()
        if name in found and not _alike(found[name], tensor)
    ]
    return missing + further + others


def _alike(found: GraphTensor, wanted: GraphTensor) -> bool:
    given, expected = found.shape, wanted.shape
    if expected[-1:] == (REST,):
        expected = expected[:-1]
        given = given[: len(expected)]
    return (
        found.dtype == wanted.dtype
        and len(given) == len(expected)
        and all(other in (size, ANY) for size, other in zip(given, expected, strict=True))
    )


def _wrong_caches(where: str, dtype: str, caches: Tensors) -> list[str]:
    if list(caches) != [f"cache_{index}" for index in range(len(caches))]:
        return [f"{where} gives the caches {', '.join(caches)}; they must be numbered cache_0, cache_1 and so on"]
    return [
        f"{where} gives {name} as {tensor.dtype}; in this precision it must be {dtype}"
        for name, tensor in caches.items()
        if tensor.dtype != dtype
    ]


def written(tensor: GraphTensor) -> str:
    """Type and shape, for a person."""
    return f"{tensor.dtype} [{', '.join('any' if size == ANY else str(size) for size in tensor.shape)}]"
