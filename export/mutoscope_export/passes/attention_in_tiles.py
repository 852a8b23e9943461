"""Attention for ONNX Runtime on the CPU, in tiles.

The library's kernel of ONNX's own `Attention` keeps every score, `[B, heads, S, S]`; that of its `MultiHeadAttention`
keeps those of a tile. Knows the two operators. Knows nothing of models.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graphs.edit import Tape

DOMAIN, VERSION = "com.microsoft", 1


def attention_in_tiles(model: ir.Model) -> bool:
    """Replaces each `Attention` of queries, keys and values `[B, S, heads * width]`, all with as many heads, without
    mask, past or cap."""
    graph = model.graph
    changed = False
    for node in list(graph):
        if not _is_plain(node):
            continue
        heads, scale = node.attributes["q_num_heads"].as_int(), node.attributes.get("scale")
        tape = Tape(graph, node, f"{node.outputs[0].name}.tiled")
        tape.replace(tape("MultiHeadAttention", *node.inputs[:3], domain=DOMAIN, num_heads=heads, scale=scale))
        changed = True
    if changed:
        model.opset_imports[DOMAIN] = VERSION
    return changed


def _is_plain(node: ir.Node) -> bool:
    if node.op_type != "Attention" or node.domain != "" or any(node.inputs[3:]) or len(node.outputs) != 1:
        return False
    heads = [node.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads")]
    others = ("is_causal", "softcap", "qk_matmul_output_mode")
    return heads[0] == heads[1] > 0 and not any(
        node.attributes[name].value for name in others if name in node.attributes
    )
