"""What the measurement of real sizes rests on: networks that cost nothing, and a limit that holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mutoscope
import pytest
from mutoscope.bundle.bundle import Bundle

from benchmarks import small_memory
from benchmarks.real_sizes import UMT5_XXL, make_network

SMALL = {"vocab_size": 600, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}


def test_the_weights_of_a_network_are_different_windows_onto_one_array() -> None:
    network = make_network("text_encoder", UMT5_XXL | SMALL)
    weights = dict(network.named_parameters(remove_duplicate=False))
    assert len({weight.untyped_storage().data_ptr() for weight in weights.values()}) == 1
    table = weights["encoder.embed_tokens.weight"]
    assert table.shape == (600, 16) and not table.is_meta
    first, second = (weights[f"encoder.block.{index}.layer.1.DenseReluDense.wo.weight"] for index in (0, 1))
    assert first.shape == second.shape and not first.equal(second)


def test_the_bundle_made_of_such_networks_is_whole_and_can_be_planned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 16, "freq_dim": 8, "num_layers": 2}
    networks = {
        "text_encoder": UMT5_XXL | SMALL,
        "transformer": sizes | {"text_dim": SMALL["d_model"]},
        "vae": {"base_dim": 8, "num_res_blocks": 1},
    }
    monkeypatch.setattr(small_memory, "NETWORKS", networks)
    small_memory.make_bundle(tmp_path / "bundle")
    Bundle.open(tmp_path / "bundle")  # every hash agrees
    with mutoscope.Pipeline.load(tmp_path / "bundle", backend="onnxruntime", tile=(208, 208)) as pipeline:
        assert pipeline.plan(small_memory.PROMPT, **small_memory.REQUEST).decoder_tiles > 1


def test_what_takes_more_than_its_control_group_allows_is_killed() -> None:
    with small_memory.control_group(64 * 2**20) as group:
        if group is None:
            pytest.skip("no control group can be made here")
        enter = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0'); "
        take = "taken = bytearray({} * 2**20); print(len(taken))"
        codes = [
            subprocess.run([sys.executable, "-c", enter + take.format(size)], capture_output=True).returncode
            for size in (8, 500)
        ]
    assert codes == [0, -9]
    assert not Path(group).exists()
