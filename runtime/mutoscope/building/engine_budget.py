"""How much memory an engine of a graph as export writes it may take while it runs. The gate of `mutoscope build`.

Knows the roles of graphs and their sizes. Knows nothing of libraries and logs.

    text_encoder      20 hidden states of L tokens, in float32, and 3 times its scores: with the position bias that
                      these encoders add, attention has no fused kernel, and L is short
    denoiser          12 hidden states of all video tokens, in 16 bits; 7 more where it follows a control, which a
                      second row of blocks reads; where LoRAs change it, also 1.5 times the largest weight that they
                      change
    vae_features_*    12 times its widest feature map, and 3 times the scores of its attention, in 16 bits
    vae_decoder_*     12 times its widest feature map, in 16 bits
    vae_encoder_*     8 feature maps of 96 channels as large as its frames, and 3 times the scores of its attention,
                      in 16 bits
    image_encoder     it has a few hundred tokens of a thousand channels

and 256 MB are never refused. A hidden state is B x tokens x width, where the width is that of the attention, heads
times head size, as the compiler's parser sees it. In the precisions that were measured, denoisers of Wan 2.1, 1.3B and
14B, take 8.7 to 9.9, those of Wan 2.2 5B, which have a timestep for each frame, 9.4 to 9.7, and as Diffusers writes
their rotary embedding they take 73. With the second row of blocks, that of VACE, those of 1.3B take 15.5 in bf16 and in
FP8. Scores written to memory would be tokens^2 x heads, 256 more, and at 720x1280x81 590 more. Feature maps are those
of the decoder's caches, in tiles those of one tile, and of no more frames than a cache holds, because the widest layers
run on so many at a time: the decoders of Wan 2.1 take 10.0 to 11.1, and those of Wan 2.2 up to 11.3; 13 with all frames
of a chunk at once, and 23 in stock form. The features' attention has a head too wide for any fused kernel, and so has
the encoder's. Beside its scores the encoder of Wan 2.1 takes 2.0 to 5.8 maps, and that of Wan 2.2 1.3 to 1.6.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from mutoscope_engines.symbols import sized, symbols_of
from mutoscope_engines.tensorrt.builder import Compiled

from ..bundle.conditionings import ControlConditioning
from ..bundle.contract import LORA_A, LORA_B, ROLES
from ..bundle.manifest import Geometry, Graph
from ..errors import EngineError

NEVER_REFUSED_BYTES = 256 * 10**6
ENCODER_HIDDEN_STATES = 20
DENOISER_HIDDEN_STATES = 12
CONTROL_HIDDEN_STATES = 7
CHANGED_WEIGHTS = 1.5
FEATURE_MAPS = 12
ENCODER_FEATURE_MAPS = 8
ENCODER_CHANNELS = 96  # of the first convolution of Wan 2.1; in Wan 2.2 160 at a quarter of the size
SCORES = 3


def budget_bytes(
    graph: Graph,
    symbols: Mapping[str, int],
    geometry: Geometry,
    compiled: Compiled,
    controls: Collection[ControlConditioning] = (),
) -> int:
    """The most that the activations of this engine may take at the sizes of `symbols`.

    Args:
        controls: those that the manifest has. A part of a graph follows them if it takes their scales.
    """
    width, heads = compiled.attention_width, compiled.attention_heads
    kind = ROLES[graph.role].budget
    if kind == "denoiser":
        tokens = math.prod(symbols[name] for name in "Fhw") // math.prod(geometry.patch_size)
        scales, given = {control.scale_input for control in controls}, {tensor.name for tensor in graph.inputs}
        states = DENOISER_HIDDEN_STATES + (CONTROL_HIDDEN_STATES if scales & given else 0)
        budget = states * symbols["B"] * tokens * width * 2
        budget += math.ceil(CHANGED_WEIGHTS * _largest_changed_weight(graph) * 2)
    elif kind == "text":
        named = {name for tensor in graph.inputs for size in tensor.shape for name in symbols_of(size)}
        tokens = max((symbols[name] for name in named & symbols.keys() - set("BFhwK")), default=1)  # of its own text
        budget = symbols["B"] * tokens * (ENCODER_HIDDEN_STATES * width + SCORES * heads * tokens) * 4
    elif kind == "small":
        budget = 0
    else:
        if kind == "encoder":
            budget = ENCODER_FEATURE_MAPS * _values_of_frames(graph, symbols) * 2
        else:
            budget = FEATURE_MAPS * _widest_feature_map(graph, symbols) * 2
        if kind in ("features", "encoder"):
            budget += SCORES * (symbols["h"] * symbols["w"]) ** 2 * 2
    return max(NEVER_REFUSED_BYTES, budget)


def check_budget(
    graph: Graph,
    symbols: Mapping[str, int],
    geometry: Geometry,
    compiled: Compiled,
    where: str,
    controls: Collection[ControlConditioning] = (),
) -> None:
    """Refuses an engine beyond its budget. `where` says what it was built for.

    Raises:
        EngineError: with both numbers.
    """
    budget = budget_bytes(graph, symbols, geometry, compiled, controls)
    if compiled.activation_bytes > budget:
        raise EngineError(
            f"the engine of the {graph.name} in {graph.precision} for {where} needs "
            f"{compiled.activation_bytes / 1e9:.2f} GB besides its weights, and at most {budget / 1e9:.2f} GB is "
            "expected with fused attention. The engine was discarded. Export the bundle again with this version of "
            "Mutoscope; if that does not help, report it"
        )


def _largest_changed_weight(graph: Graph) -> int:
    """Elements of `A·B`; 0 where LoRAs do not change the graph."""
    shapes = {tensor.name: tensor.shape for tensor in graph.inputs}
    sizes = [
        sized((*shape[:1], *shapes[f"{name.removesuffix(LORA_A)}{LORA_B}"][1:]), {})
        for name, shape in shapes.items()
        if name.endswith(LORA_A)
    ]
    return max(map(math.prod, sizes), default=0)


def _values_of_frames(graph: Graph, symbols: Mapping[str, int]) -> int:
    """Elements of the first feature map of an encoder, which takes `frames` `[T, H, W, 3]`."""
    (frames,) = (tensor for tensor in graph.inputs if tensor.name == "frames")
    return math.prod(sized(frames.shape[:3], symbols)) * ENCODER_CHANNELS


def _widest_feature_map(graph: Graph, symbols: Mapping[str, int]) -> int:
    """Elements. A cache `[past, channels, height, width]` is what a convolution sees of the frames before."""
    shapes = {tensor.name: sized(tensor.shape, symbols) for tensor in graph.outputs}
    frames, *_ = shapes.pop("frames", (1,))
    return max((min(frames, past) * math.prod(size) for past, *size in shapes.values()), default=0)
