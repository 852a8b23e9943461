"""Attention for ONNX Runtime on the CPU, in tiles.

The library's kernel of ONNX's own `Attention` keeps every score, `[B, heads, S, S]`; that of its `MultiHeadAttention`
keeps those of a tile. Knows the two operators. Knows nothing of models.
"""

import onnx_ir as ir

DOMAIN, VERSION = "com.microsoft", 1


def attention_in_tiles(model: ir.Model) -> bool:
    """Replaces each `Attention` of queries, keys and values `[B, S, heads * width]`, all with as many heads, without
    mask, past or cap."""
    graph = model.graph
    changed = False
    for node in list(graph):
        if not _is_plain(node):
            continue
        attributes = {"num_heads": node.attributes["q_num_heads"].as_int()}
        scale = node.attributes.get("scale")
        tiled = ir.node(
            "MultiHeadAttention",
            node.inputs[:3],
            attributes | ({"scale": scale.as_float()} if scale else {}),
            domain=DOMAIN,
        )
        graph.insert_before(node, tiled)
        output, result = node.outputs[0], tiled.outputs[0]
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
        result.name, result.shape, result.type = output.name, output.shape, output.type
        graph.remove(node, safe=True)
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
