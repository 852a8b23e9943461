"""`mutoscope inspect` shows what is in a bundle."""

from __future__ import annotations

import json
import re
from hashlib import sha256

from mutoscope import cli


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
