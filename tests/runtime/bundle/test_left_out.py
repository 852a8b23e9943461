"""Graphs that are not there, beside engines: which files may be missing, and which names are refused all the same."""

from __future__ import annotations

from typing import Any

import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import BundleError

from tests.runtime.bundle.test_bundle import GRAPH, edit_manifest


@pytest.mark.parametrize("name", ["/etc/nothere/model.onnx", "../outside/model.onnx", "/etc/nothere.onnx"])
def test_a_graph_that_was_left_out_beside_engines_still_has_a_path_in_the_bundle(make_bundle, name: str) -> None:
    root = make_bundle().root
    (root / "engines").mkdir()
    (root / "engines" / "index.json").write_text("{}")

    def move(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop(GRAPH)
        for graph in manifest["graphs"]:
            graph["file"] = name if graph["file"] == GRAPH else graph["file"]

    edit_manifest(root, move)
    with pytest.raises(BundleError, match="a path that leaves the bundle; refused"):
        Bundle.open(root)
