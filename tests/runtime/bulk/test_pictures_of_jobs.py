"""Jobs with pictures: which file is meant, which video it is, and whether it is still the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mutoscope.conditions
import numpy as np
import pytest
from mutoscope import OutputOptions, Pipeline, Plan, RequestError, VideoRequest
from mutoscope.bulk.jobs import JobsError, read_jobs
from mutoscope.bulk.receipts import write_lists
from mutoscope.bulk.remake import read_receipts, remake
from mutoscope.bulk.task import Batch, Task
from mutoscope.bulk.worker import Worker, open_store
from mutoscope.bundle.manifest import Manifest
from mutoscope.conditions.base import Settled
from mutoscope.conditions.text import TextCondition
from mutoscope.making import Observer
from mutoscope.pictures import read_picture
from mutoscope_engines.testing import FakeBackend
from PIL import Image

RED, BLUE = (np.full((4, 6, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))


class PromptAndPicture(TextCondition):
    """Has a picture beside the prompt, which changes nothing but the plan."""

    def settle(self, request: Any, *settings: Any, **named: Any) -> Settled:
        settled = super().settle(request, *settings, **named)
        return replace(settled, facts={**settled.facts, "image": read_picture(request.image).identity})


@pytest.fixture
def pipeline(bundle: Path, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    monkeypatch.setitem(mutoscope.conditions.CONDITIONS, "TextConditioning", f"{__name__}:PromptAndPicture")
    monkeypatch.setattr(Manifest, "followed", ("prompt", "negative_prompt", "image"))
    with Pipeline.load(bundle) as made:
        yield made


@pytest.fixture
def read(pipeline: Pipeline) -> Callable[[Path], tuple[Task, ...]]:
    return lambda path: read_jobs(path, pipeline, ".npy", OutputOptions()).tasks


def save(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def batch(make_batch: Callable[..., Batch], tmp_path: Path) -> Batch:
    save(tmp_path / "first.png", RED)
    return make_batch({"prompt": "a circle", "seed": 1, "image": "first.png"})


def test_a_path_is_relative_to_the_file_of_jobs(
    read: Any, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "shots" / "first.png", RED)
    path = write({"prompt": "a circle", "image": "shots/first.png"}, {"prompt": "a circle", "image": "none.png"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(JobsError) as caught:
        read(Path("../jobs.jsonl"))
    assert "image is not there" in str(caught.value.problems) and "line 1" not in str(caught.value.problems)
    path.write_text(path.read_text().split("\n")[0])
    [task] = read(Path("../jobs.jsonl"))
    assert Path(task.request.image).is_absolute()
    assert Path(task.request.image).samefile(tmp_path / "shots" / "first.png")


def test_the_same_jobs_in_another_folder_have_the_same_seeds_and_keys(read: Any, tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        save(folder / "first.png", RED)
        (folder / "jobs.jsonl").write_text('{"prompt": "a circle", "image": "first.png"}')
        [task] = read(folder / "jobs.jsonl")
        found.append((task.request.seed, task.key))
    assert found[0] == found[1]


def test_the_key_is_that_of_what_a_picture_shows_and_not_of_its_file(read: Any, write: Any, tmp_path: Path) -> None:
    for name, pixels in {"red.png": RED, "red.bmp": RED, "blue.png": BLUE}.items():
        save(tmp_path / name, pixels)
    names = ("red.png", "red.bmp", "blue.png")
    tasks = read(write(*({"prompt": "a circle", "image": name} for name in names)))
    assert tasks[0].key == tasks[1].key != tasks[2].key
    assert tasks[0].texts == tasks[1].texts != tasks[2].texts


def test_a_picture_that_changed_since_the_jobs_were_read_fails_in_words(
    batch: Batch, pipeline: Pipeline, tmp_path: Path
) -> None:
    save(tmp_path / "first.png", BLUE)
    Worker(batch, pipeline).run()
    failed = [json.loads(path.read_text()) for path in (batch.out / "failed").iterdir()]
    assert {each["cause"] for each in failed} == {
        "a file that the job names was changed since the jobs were read; start the batch again"
    }
    assert not list((batch.out / "videos").iterdir())


def test_a_receipt_names_the_picture_and_makes_the_video_again_from_it_alone(
    batch: Batch, pipeline: Pipeline, tmp_path: Path
) -> None:
    Worker(batch, pipeline).run()
    with open_store(batch) as store:
        write_lists(batch, store)
    [receipt] = read_receipts(batch.out)
    assert receipt.facts["files"] == {"image": str(tmp_path / "first.png")}
    assert receipt.facts["plan"]["image"] == read_picture(RED).identity
    file = remake(receipt, pipeline, tmp_path / "again.npy", Observer())
    assert file.content_sha256 == receipt.facts["content_sha256"]
    save(tmp_path / "first.png", BLUE)
    with pytest.raises(RequestError, match="image is another than the plan has, which is 6x4 sha256:"):
        remake(receipt, pipeline, tmp_path / "again.npy", Observer())


def test_a_plan_asks_for_its_picture_again(pipeline: Pipeline) -> None:
    plan = pipeline.plan("a circle", image=RED)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    with pytest.raises(RequestError, match=r"image is missing: .* 6x4 sha256:.*; give it again"):
        again.to_request()
    with pytest.raises(RequestError, match="image is another than the plan has"):
        again.to_request(image=BLUE)
    with pytest.raises(RequestError, match="last_image is another than the plan has, which is none"):
        again.to_request(image=RED, last_image=RED)
    assert pipeline.plan(again.to_request(image=RED)).to_dict() == plan.to_dict()


def test_the_size_that_is_left_open_is_that_of_the_picture(pipeline: Pipeline) -> None:
    def size(picture: Any, **given: Any) -> tuple[int, int]:
        geometry = pipeline.plan("a circle", image=picture, **given).geometry
        return geometry.height, geometry.width

    tall = np.zeros((60, 40, 3), np.uint8)
    assert (size(RED), size(tall), size(tall[:40])) == ((32, 48), (48, 32), (32, 32))  # 1536 pixels or fewer
    assert (size(tall, height=32), size(tall, width=64), size(tall, height=64, width=64)) == (
        (32, 48), (32, 64), (64, 64),
    )  # fmt: skip


def test_a_picture_is_read_once_for_a_plan(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    really = Image.open
    path = save(tmp_path / "first.png", RED)
    monkeypatch.setattr(Image, "open", lambda file, **options: opened.append(file.name) or really(file, **options))
    pipeline.plan("a circle", image=path)
    assert opened == [str(path)]


def test_a_picture_is_given_as_an_array_bytes_or_a_path(pipeline: Pipeline, tmp_path: Path) -> None:
    path = save(tmp_path / "first.png", RED)
    for image in (RED, path, str(path), path.read_bytes()):
        assert pipeline.generate("a circle", image=image).plan.conditions.facts["image"] == read_picture(RED).identity
    plan = pipeline.plan(VideoRequest(prompt="a circle", image=RED), image=BLUE)
    assert plan.conditions.facts["image"] == read_picture(BLUE).identity
