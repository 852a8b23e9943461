"""Prompts in many scripts, with the vocabulary that Wan's text encoder has: 256,300 pieces for 256,384 rows.

The vocabulary is no part of this repository. The source distribution of stable-diffusion-cpp-python, a peer of the
benchmarks, has it as the bytes of a C array; pip fetches that once, which takes a minute.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mutoscope.conditions.cleaning import mend_unicode_and_html
from mutoscope.conditions.text import Tokenizer
from mutoscope_export.checkpoint.tokenizer import write_tokenizer
from mutoscope_export.families.wan.random_checkpoint import random_checkpoint
from mutoscope_export.opening import open_checkpoint
from safetensors.torch import load_file, save_file

from tests.export.spoiling import edit
from tests.seen_from_outside import REQUIRED

SOURCE = "stable-diffusion-cpp-python==0.4.7"
ROWS = 256_384
LENGTH = 512  # of `WanPipeline`
# ruff: noqa: RUF001
PROMPTS = [
    "A cat in a straw hat walks along the beach at sunset, cinematic lighting, shallow depth of field.",
    "Close-up of hands kneading dough; flour drifts through a beam of light. 35mm film, f/1.8, 24 fps",
    "A red circle moves right on a black background",
    "   two   dogs,\n\nplaying\tin the rain!!! (slow motion) -- 4K #hdr @home",
    "Ein Schäferhund läuft über die verschneite Wiese, während Kinder Drachen steigen lassen.",
    "Une vieille dame nourrit des pigeons près de la cathédrale, l'été, « plan large ».",
    "Đường phố Hà Nội buổi sáng sớm, xe máy và hàng phở bốc khói",
    "İstanbul Boğazı'nda gün doğumu, martılar ve eski bir vapur",
    "Zażółć gęślą jaźń: stary młynarz niesie worek mąki",
    "Рыжая лиса осторожно идёт по заснеженному лесу, мягкий утренний свет, вид сбоку",
    "Козак їде верхи степом, а над ним пролітає журавель",
    "Ένα μικρό ψαροκάικο επιστρέφει στο λιμάνι το σούρουπο, ήρεμη θάλασσα",
    "قطة بيضاء تجلس على نافذة مطلة على البحر، ضوء ذهبي وقت الغروب",
    "پیرمردی در کوچه‌ای باریک با دوچرخه می‌گذرد",
    "ילדה רצה בשדה חמניות, רוח קלה, מצלמה עוקבת",
    "एक मोर बारिश में नाच रहा है, पृष्ठभूमि में हरे पहाड़",
    "একটি নৌকা কুয়াশাচ্ছন্ন নদীতে ধীরে ধীরে ভেসে চলেছে",
    "மழையில் நனையும் பழைய கோவில், மெதுவாக நகரும் கேமரா",
    "แมวสีส้มนอนอยู่บนหลังคาวัดในกรุงเทพฯ ตอนเย็น",
    "一只橘猫戴着草帽,坐在海边的冲浪板上,镜头缓慢推进,电影感光影。",
    "夜晚的香港街頭,霓虹燈倒映在雨後的路面上,行人撐著傘走過",
    "桜の花びらが舞う川沿いを、着物の女性がゆっくり歩いている。",
    "눈 내리는 서울 골목길에서 강아지가 뛰어논다, 따뜻한 조명",
    "🐉 dragon over the 長城, épique, 8K — 'золотой час' ☀️",
    "ﬁne “typographic” quotes… naïve café ½ ℃ Ⅷ ㊗ e\u0301",
    "</s> <pad> <extra_id_0> <unk> plain text",
]


@pytest.fixture(scope="session")
def vocabulary(request: pytest.FixtureRequest) -> Path:
    """tokenizer.json of UMT5, kept in pytest's cache."""
    cache: Any = request.config.cache
    path = Path(cache.mkdir("umt5")) / "tokenizer.json"
    if not path.is_file():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--retries", "0"]
        done = subprocess.run([*command, "--dest", path.parent, SOURCE], capture_output=True, text=True)
        if done.returncode:
            end = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
            end(f"pip cannot fetch {SOURCE}, which has the vocabulary: {done.stderr.strip()[-200:]}")
        (archive,) = path.parent.glob("*.tar.gz")
        path.write_bytes(_array_in(archive))
        archive.unlink()
    return path


def _array_in(archive: Path) -> bytes:
    """The bytes of the one array in umt5.hpp."""
    with tarfile.open(archive) as files:
        (header,) = (member for member in files if member.name.endswith("/umt5.hpp"))
        text = files.extractfile(header).read().decode("ascii")  # type: ignore[union-attr]
    (body,) = re.findall(r"\{([^}]*)\}", text)
    return bytes.fromhex(body.replace("0x", "").replace(",", ""))


@pytest.fixture(scope="session")
def checkpoint(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with Wan's vocabulary and as many rows in its embedding as Wan's, though narrow ones."""
    root = random_checkpoint(tmp_path_factory.mktemp("umt5") / "checkpoint")
    (root / "tokenizer" / "tokenizer.json").write_bytes(vocabulary.read_bytes())
    edit(root / "tokenizer" / "tokenizer_config.json", lambda config: config.update(model_max_length=LENGTH))
    edit(root / "text_encoder" / "config.json", lambda config: config.update(vocab_size=ROWS))
    file = root / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    embedding = torch.zeros(ROWS, weights["shared.weight"].shape[1])
    save_file({**weights, "shared.weight": embedding}, file, {"format": "pt"})
    return root


def test_prompts_in_many_scripts_have_the_ids_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint)
    reference = opened.tokenizer()
    (text,) = opened.description.conditionings  # which judges the vocabulary by the embedding
    write_tokenizer(reference, tmp_path / "tokenizer.json")
    bundle: Any = SimpleNamespace(root=tmp_path, path=tmp_path.joinpath, manifest=SimpleNamespace(texts=(text,)))
    prompts = [*PROMPTS, *map(mend_unicode_and_html, PROMPTS)]
    tokens = Tokenizer(bundle, text).encode({str(number): prompt for number, prompt in enumerate(prompts)}, LENGTH)
    expected = reference(prompts, padding="max_length", max_length=LENGTH, return_tensors="np")
    np.testing.assert_array_equal(tokens.input_ids, expected.input_ids)
    np.testing.assert_array_equal(tokens.attention_mask, expected.attention_mask)
    assert len(reference) == 256_300 and 250_000 < tokens.input_ids.max() < ROWS
    for prompt, ids in zip(PROMPTS, tokens.input_ids, strict=False):
        assert (reference.unk_token_id in ids) == ("<unk>" in prompt), prompt
