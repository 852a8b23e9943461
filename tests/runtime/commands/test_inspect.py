"""`mutoscope inspect` shows what is in a bundle."""

from __future__ import annotations

import json
import re
from hashlib import sha256

import numpy as np
import pytest
from mutoscope import cli
from mutoscope.errors import RequestError
from safetensors.numpy import save_file

from tests.bundles import Q, lora_form


def test_inspect_shows_where_the_weights_come_from_and_what_is_in_it(bundle, capsys):
    assert cli.main(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    size = f"{(bundle / 'denoiser' / 'model.onnx').stat().st_size} bytes"
    for fact in ("someone/model", "Apache-2.0", "by someone", "wan", size, "3 caches", "[B, L, 4]"):
        assert fact in text
    assert "next_cache" not in text
    assert re.search("^follows +prompt, negative_prompt$", text, re.MULTILINE)


def test_inspect_in_json_is_the_manifest(bundle, capsys):
    assert cli.main(["inspect", str(bundle), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["manifest"] == json.loads((bundle / "manifest.json").read_text())
    assert result["sha256"] == sha256((bundle / "manifest.json").read_bytes()).hexdigest()


@pytest.fixture
def lora(tmp_path):
    stem = f"transformer.{Q.removesuffix('.weight')}"
    path = tmp_path / "style.safetensors"
    tensors = {f"{stem}.lora_A.weight": np.ones((2, 6), np.float16), f"{stem}.lora_B.weight": np.ones((4, 2))}
    others = {"a.dora_scale": np.ones(3), "blocks.3.norm.diff": np.ones(3), f"{stem}.alpha": np.ones(1)}
    save_file(tensors | others, path, {"trained_by": "someone"})
    return path


def test_inspect_counts_what_the_file_of_a_lora_changes(lora, capsys):
    assert cli.main(["inspect", str(lora), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sha256"] == sha256(lora.read_bytes()).hexdigest()
    assert facts["changes"] == "1 layers by low rank, 1 parameters by a difference"
    assert facts["of other methods"] == "1 tensors"
    assert (facts["ranks"], facts["blocks"], facts["types"]) == ("2", 4, "F16, F64")
    assert facts["note trained_by"] == "someone"
    assert "fits" not in facts


def test_inspect_says_whether_a_lora_fits_a_bundle_and_why_not(lora, make_bundle, capsys):
    bundle = make_bundle(lora_forms=(lora_form(),)).root
    assert cli.main(["inspect", str(lora), str(bundle), "--json"]) == 0
    assert "1 are of another method than LoRA" in json.loads(capsys.readouterr().out)["fits"]["denoiser fp32"]
    stem = f"transformer.{Q.removesuffix('.weight')}"
    save_file({f"{stem}.lora_A.weight": np.ones((2, 6)), f"{stem}.lora_B.weight": np.ones((4, 2))}, lora)
    assert cli.main(["inspect", str(lora), str(bundle)]) == 0
    assert re.search("denoiser fp32 +yes", capsys.readouterr().out)
    assert cli.main(["inspect", str(bundle)]) == 0
    assert re.search("takes LoRAs +denoiser in fp32", capsys.readouterr().out)
    assert cli.main(["inspect", str(lora), str(make_bundle().root)]) == 0
    assert "not known: this bundle was exported without --lora-inputs" in capsys.readouterr().out


def test_inspect_refuses_what_is_no_safetensors_file(bundle, tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert cli.main(["inspect", str(tmp_path / "x.safetensors")]) == RequestError.exit_code
    assert "x.safetensors cannot be read: x.safetensors is no safetensors file" in capsys.readouterr().err
    assert cli.main(["inspect", str(bundle), str(bundle)]) == RequestError.exit_code
    assert "must be a safetensors file where a bundle follows" in capsys.readouterr().err
