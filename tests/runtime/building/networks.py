"""Small real networks for each role, which TensorRT-RTX compiles. They keep the contract, and mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from mutoscope.bundle.manifest import Graph
from mutoscope_engines.onnx_file import ONNX_TYPES
from mutoscope_engines.precisions import network_type
from onnx import helper, numpy_helper

from tests.bundles import interfaces

CHANNELS = 4
WIDTH, HEADS = 128, 2  # of the denoiser's attention

FUSED = f"""
q = MatMul(hidden, w_q)
k = MatMul(hidden, w_k)
v = MatMul(hidden, w_v)
attended = Attention<q_num_heads = {HEADS}, kv_num_heads = {HEADS}>(q, k, v)
"""
# A running sum over the scores, which no kernel of attention knows.
NOT_FUSED = """
split = Reshape(hidden, to_heads)
q = Transpose<perm = [0, 2, 1, 3]>(split)
k = Transpose<perm = [0, 2, 3, 1]>(split)
scores = MatMul(q, k)
summed = CumSum(scores, two)
m = MatMul(summed, q)
joined = Transpose<perm = [0, 2, 1, 3]>(m)
attended = Reshape(joined, from_heads)
"""

# TYPE is the number of the network's type, FLOAT and BYTE those of float32 and uint8.
DENOISER = """
pixels = Transpose<perm = [1, 2, 3, 0]>(latents)
grid = Shape(pixels)
flat = Reshape(pixels, as_tokens)
tokens = Cast<to = TYPE>(flat)
embedded = MatMul(tokens, w_in)
text = ReduceMean(prompt_embeds, one_two)
told = Add(text, timestep)
bias = Cast<to = TYPE>(told)
hidden = Add(embedded, bias)
{attention}
projected = MatMul(attended, w_out)
wide = Cast<to = FLOAT>(projected)
weights = Unsqueeze(guidance_weights, one_two)
weighted = Mul(weights, wide)
guided = ReduceSum<keepdims = 0>(weighted, zero)
on_grid = Reshape(guided, grid)
velocity = Transpose<perm = [3, 0, 1, 2]>(on_grid)
size = Abs(velocity)
velocity_peak = ReduceMax<keepdims = 0>(size)
rows = Reshape(state, as_rows)
kept = MatMul(solver_a, rows)
moved = Reshape(velocity, as_row)
column = Unsqueeze(solver_b, one)
pushed = Mul(column, moved)
stepped = Add(kept, pushed)
shape = Shape(state)
next_state = Reshape(stepped, shape)
"""

OTHERS = {
    "text_encoder": """
kept = Mul(input_ids, attention_mask)
numbers = Cast<to = TYPE>(kept)
column = Unsqueeze(numbers, two)
embeds = Mul(column, w_text)
prompt_embeds = Cast<to = FLOAT>(embeds)
""",
    "vae_features_first": """
features = Squeeze(latents, two)
cache_0 = Cast<to = TYPE>(latents)
""",
    "vae_features_next": """
before = Cast<to = FLOAT>(cache_0)
both = Add(latents, before)
features = Squeeze(both, two)
next_cache_0 = Cast<to = TYPE>(latents)
""",
    "vae_decoder_first": """
cache_0 = Cast<to = TYPE>(features)
cache_1 = Slice(cache_0, zero, one, one)
colours = Slice(features, zero, three, one)
image = Transpose<perm = [0, 2, 3, 1]>(colours)
frames = Cast<to = BYTE>(image)
""",
    "vae_decoder_next": """
next_cache_0 = Cast<to = TYPE>(features)
next_cache_1 = Slice(cache_0, zero, one, one)
before = Add(cache_0, cache_1)
wide = Cast<to = FLOAT>(before)
both = Add(features, wide)
colours = Slice(both, zero, three, one)
image = Transpose<perm = [0, 2, 3, 1]>(colours)
four = Concat<axis = 0>(image, image, image, image)
frames = Cast<to = BYTE>(four)
""",
}

WHOLE = {
    **{"zero": [0], "one": [1], "two": [2], "three": [3], "one_two": [1, 2]},
    **{"as_tokens": [1, -1, CHANNELS], "as_rows": [0, -1], "as_row": [1, -1]},
    **{"to_heads": [0, 0, HEADS, WIDTH // HEADS], "from_heads": [0, 0, WIDTH]},
}
WEIGHTS = {
    "w_in": np.ones((CHANNELS, WIDTH)),
    **{f"w_{name}": np.eye(WIDTH) for name in "qkv"},
    "w_out": np.full((WIDTH, CHANNELS), 1 / WIDTH),
    "w_text": np.linspace(0.5, 1, 6)[None, None],
}


def network(root: Path, role: str, precision: str, attention: str = FUSED) -> Graph:
    """Writes the network of a role, for latents of the size of the picture; gives what a manifest says of it."""
    kind = network_type(precision)
    inputs, outputs = interfaces(channels=CHANNELS, cache_type=kind, scale=1)[role]
    graph = Graph(role=role, precision=precision, file=f"{role}-{precision}/model.onnx", inputs=inputs, outputs=outputs)
    body = DENOISER.format(attention=attention) if role == "denoiser" else OTHERS[role]
    for name, dtype in (("TYPE", kind), ("FLOAT", "float32"), ("BYTE", "uint8")):
        body = body.replace(f"to = {name}", f"to = {ONNX_TYPES[dtype]}")
    nodes = [onnx.parser.parse_node(line) for line in body.splitlines() if line]
    save(root / graph.file, graph, nodes)
    return graph


def save(path: Path, graph: Graph, nodes: Sequence[onnx.NodeProto]) -> None:
    """Writes nodes, and the constants that they name, with the inputs and outputs of a graph."""
    named = {name for node in nodes for name in node.input}
    kind = ONNX_TYPES[network_type(graph.precision)]
    constants = [numpy_helper.from_array(np.array(WHOLE[name], np.int64), name) for name in sorted(named & set(WHOLE))]
    constants += [
        helper.make_tensor(name, kind, WEIGHTS[name].shape, WEIGHTS[name].ravel())
        for name in sorted(named & set(WEIGHTS))
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(each.name, ONNX_TYPES[each.dtype], each.shape) for each in ends]
        for ends in (graph.inputs, graph.outputs)
    )
    whole = helper.make_graph(list(nodes), graph.role, inputs, outputs, constants)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
