"""Jobs with LoRAs: a file that is another one when its video is made is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mutoscope import Pipeline, RuntimeOptions
from mutoscope.bulk.task import Batch
from mutoscope.bulk.worker import Worker
from mutoscope_engines.testing import FakeBackend

from tests.bundles import lora_form
from tests.runtime.planning.test_loras import STEM_Q, factors, file


@pytest.fixture
def pipeline(make_bundle: Any) -> Iterator[Pipeline]:
    with Pipeline(make_bundle(lora_forms=(lora_form(),)), RuntimeOptions(backend=FakeBackend())) as made:
        yield made


@pytest.mark.parametrize("seed", [0, 1], ids=["the same", "another"])
def test_a_lora_that_was_replaced_since_the_jobs_were_read_fails_in_words(
    make_batch: Callable[..., Batch], pipeline: Pipeline, tmp_path: Path, seed: int
) -> None:
    file(tmp_path, factors(STEM_Q, 2, (4, 6)))
    batch = make_batch({"prompt": "a circle", "seed": 1, "loras": [{"path": "l.safetensors"}]})
    file(tmp_path, factors(STEM_Q, 2, (4, 6), seed=seed))
    Worker(batch, pipeline).run()
    causes = {json.loads(path.read_text())["cause"] for path in (batch.out / "failed").iterdir()}
    said = "a file that the job names was changed since the jobs were read; start the batch again"
    assert causes == ({said} if seed else set())
    assert len(list((batch.out / "videos").iterdir())) == 1 - seed
