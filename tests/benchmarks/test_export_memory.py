"""The checkpoint of real size that an export is measured with, small."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutoscope_export.opening import open_checkpoint

from benchmarks import export_memory
from benchmarks.real_sizes import Model

SMALL = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40, "num_layers": 2, "freq_dim": 8}


@pytest.mark.parametrize("max_shard_size", ["1GB", "100KB"])
def test_its_transformer_is_whole_in_one_file_or_several_and_no_two_blocks_are_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_shard_size: str
) -> None:
    monkeypatch.setattr(export_memory, "SIZES", {"small": Model(SMALL)})
    export_memory.make_checkpoint("small", tmp_path, max_shard_size)
    files = list((tmp_path / "transformer").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_size == "100KB")
    weights = open_checkpoint(tmp_path).load("transformer").state_dict()  # refuses any that is missing
    first, second = (weights[f"blocks.{block}.ffn.net.2.weight"] for block in (0, 1))
    assert first.std() > 0 and not first.equal(second)
