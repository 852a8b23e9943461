"""Pictures that clients send: what is read of them, what is refused, how they are kept, and when they go."""

from __future__ import annotations

import base64
import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from mutoscope.errors import RequestError
from mutoscope.pictures import Picture, open_picture
from mutoscope.server.given_files import GivenFiles
from PIL import Image

from tests.runtime.server.picture_kills import ACCEPTED, MADE, TRANSITIONS
from tests.runtime.server.picturing import OTHER, PIXELS, bundle_with_pictures, saved
from tests.runtime.server.processes import ROOT
from tests.runtime.server.served import CIRCLE, Gate, Served, encoded, running, wait_for
from tests.runtime.server.test_further import further

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
QUICK = {"num_frames": 1, "num_inference_steps": 1, "seed": 7}
IDENTITY = Picture(PIXELS).identity
URL = f"data:image/png;base64,{base64.b64encode(saved()).decode()}"
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # turned to the right by a quarter, for whoever looks at it


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pictures")
    bundles = {
        "both": bundle_with_pictures(folder / "both"),
        "needs": bundle_with_pictures(folder / "needs", required=True),
    }
    with running(folder / "data", bundles=bundles) as served:
        yield served


def create(served: Served, picture: Any = None, **more: Any) -> Any:
    reference = {} if picture is None else {"input_reference": ("../a.png", picture)}
    return served.openai.videos.create(prompt=CIRCLE, **reference, extra_body=QUICK | more)


def post(served: Served, files: dict[str, bytes], **more: Any) -> Any:
    sent = {name: ("a.png", content) for name, content in files.items()}
    return served.http.post("/v1/videos", data={"prompt": CIRCLE, **QUICK, **more}, files=sent)


def folder_of(served: Served) -> Path:
    return served.service.studio.folder.parent / "pictures"


def frames_fed(served: Served) -> list[Any]:
    fed = served.service.studio.options.backend.fed  # type: ignore[union-attr]
    return [feeds["frames"][0] for graph, feeds in fed if graph == "vae_encoder_first"]


def test_the_openai_clients_reference_is_the_first_picture_of_the_video(studio: Served):
    video = studio.openai.videos.poll(create(studio, saved()).id)
    assert (video.status, video.size) == ("completed", "48x32")
    assert video.model_extra["request"]["image"] == IDENTITY
    expected = Image.fromarray(PIXELS).resize((48, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(frames_fed(studio)[-1], np.asarray(expected))


def test_every_form_of_the_same_picture_asks_for_the_same_video(studio: Served):
    by_file = create(studio, saved()).model_extra["request"]
    others = [
        create(studio, input_reference={"image_url": URL}).model_extra,  # as a form has it: input_reference[image_url]
        studio.http.post("/v1/videos", json={"prompt": CIRCLE, **QUICK, "input_reference": {"image_url": URL}}).json(),
        studio.http.post("/v1/videos", json={"prompt": CIRCLE, **QUICK, "image": URL}).json(),
        post(studio, {"image": saved(kind="BMP")}).json(),
    ]
    assert [other["request"] for other in others] == [by_file] * 4


def test_both_pictures_are_taken_and_a_reference_beside_image_is_not(studio: Served):
    request = post(studio, {"image": saved(), "last_image": saved(OTHER)}).json()["request"]
    assert (request["image"], request["last_image"]) == (IDENTITY, Picture(OTHER).identity)
    refused = post(studio, {"image": saved(), "input_reference": saved()})
    assert refused.status_code == 400 and "are the same; give one of them" in refused.json()["error"]["message"]


@pytest.mark.parametrize("name", ["input_reference", "image", "last_image"])
def test_no_path_address_or_id_of_a_client_is_opened(name: str, studio: Served, tmp_path: Path):
    path = tmp_path / "first.png"
    path.write_bytes(saved())  # whoever opened it would take it
    own = f"{studio.url}/v1/videos/{create(studio, saved()).id}/content?variant=image"
    for value in (str(path), path.as_uri(), own, "https://example.com/a.png", IDENTITY):
        for body in (
            {"json": {"prompt": CIRCLE, name: value}},
            {"json": {"prompt": CIRCLE, name: {"image_url": value}}},
            {"json": {"prompt": CIRCLE, name: {"file_id": value}}},
            {"data": {"prompt": CIRCLE, name: value}},
            {"data": {"prompt": CIRCLE, f"{name}[file_id]": value}},
        ):
            refused = studio.http.post("/v1/videos", **body)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (400, "unsupported_value", name)
            assert (
                error["message"].startswith(f"{name} must be the picture itself") and "never opened" in error["message"]
            )


@pytest.mark.parametrize(
    "content",
    [b"", b"x", saved()[:2000], saved(kind="JPEG")[:900], b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"#EXTM3U\nfile:///etc/passwd\n"],
    ids=["empty", "a letter", "half a PNG", "half a JPEG", "SVG", "a list of addresses"],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_the_words_of_open_picture(content: bytes, studio: Served):
    before = sum(studio.service.table.counts().values()), os.listdir(folder_of(studio))
    with pytest.raises(RequestError) as expected:
        open_picture(content, name="input_reference")
    with pytest.raises(openai.BadRequestError) as caught:
        create(studio, content)
    assert caught.value.body["message"] == str(expected.value)  # type: ignore[index]
    assert (caught.value.code, caught.value.param) == ("invalid_value", "input_reference")
    assert (sum(studio.service.table.counts().values()), os.listdir(folder_of(studio))) == before


def test_too_many_pixels_are_refused_by_the_head_of_the_file_alone(studio: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mutoscope.pictures.MOST_PIXELS", 2000)
    with pytest.raises(openai.BadRequestError, match=r"input_reference has 60x40 pixels: .* at most 2000 are read"):
        create(studio, saved())


def test_a_picture_is_kept_as_a_person_sees_it_and_nothing_else_of_its_file(studio: Served):
    transparent = np.dstack([PIXELS, np.full((40, 60), 255, np.uint8)])
    transparent[:20, :, 3] = 0
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    for content, expected in (
        (saved(kind="TIFF", exif=ROTATED), np.rot90(PIXELS, -1)),
        (saved(transparent), np.concatenate([np.full((20, 60, 3), 255, np.uint8), PIXELS[20:]])),
        (saved(exif=exif), PIXELS),
    ):
        id = create(studio, content).id
        [kept] = (folder_of(studio) / id).iterdir()
        np.testing.assert_array_equal(open_picture(kept), expected)
        assert kept.suffix == ".png" and b"secret" not in kept.read_bytes()
    plan = studio.http.post("/v1/videos/plan", data={"prompt": CIRCLE}, files={"image": saved(transparent)}).json()
    assert any("transparent in parts, which become white" in note for note in plan["notes"])
    assert plan["plan"]["image"].startswith("60x40 sha256:")


def test_a_model_without_pictures_and_one_that_needs_one_say_so(studio: Served, shared: Served):
    for files, name in (({"image": saved()}, "image"), ({"input_reference": b"x"}, "input_reference")):
        refused = post(shared, files).json()["error"]
        assert refused["param"] == name and refused["message"].startswith(f"{name} is not a parameter of this model")
    with pytest.raises(openai.BadRequestError, match="image is missing: this model makes a video from a picture"):
        create(studio, model="needs")
    refused = post(studio, {"negative_prompt": b"x"}).json()["error"]
    assert refused["message"] == "negative_prompt is no file; send it as text"
    refused = studio.http.post("/v1/videos", json={"prompt": CIRCLE, "image": "data:image/png;base64,%"}).json()
    assert refused["error"]["message"] == "image must be a file in base64; this is none"


def test_a_policy_sees_the_pixels(tmp_path: Path):
    seen: list[Any] = []

    def policy(request: Any) -> str | None:
        seen.append(request.image.pixels)
        return "no such pictures here"

    bundles = {"both": bundle_with_pictures(tmp_path / "bundle")}
    with running(tmp_path / "data", bundles=bundles, policy=policy) as served:  # type: ignore[arg-type]
        assert post(served, {"image": saved()}).json()["error"]["code"] == "refused_by_policy"
    np.testing.assert_array_equal(seen, [PIXELS])


def test_a_remix_and_another_seed_keep_the_picture_when_the_first_video_is_gone(studio: Served):
    first = create(studio, saved())
    remixed = studio.openai.videos.remix(first.id, prompt="a blue square")
    again = studio.http.post(f"/v1/videos/{first.id}/again").json()
    studio.openai.videos.delete(first.id)
    assert remixed.model_extra["request"]["image"] == again["request"]["image"] == IDENTITY
    fed = len(frames_fed(studio))
    assert [studio.ended(id)["state"] for id in (remixed.id, again["id"])] == ["completed"] * 2
    assert len(frames_fed(studio)) >= fed and first.id not in os.listdir(folder_of(studio))


def test_a_worker_in_another_process_makes_the_video_from_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with running(tmp_path / "data", bundles={"both": bundle_with_pictures(tmp_path / "bundle")}) as served:
        served.gate.close()
        create(served, seed=1)
        wait_for(lambda: served.gate.steps == 1)  # the server's own worker is busy now
        fed: list[Any] = []
        monkeypatch.setattr(
            "tests.runtime.server.served.encoded", lambda frames: fed.append(frames[0]) or encoded(frames)
        )
        with further(served, Gate()):
            assert served.ended(create(served, saved()).id)["state"] == "completed"
        expected = Image.fromarray(PIXELS).resize((48, 32), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(fed, [np.asarray(expected)])


def test_an_idempotency_key_knows_the_picture_and_keeps_one(studio: Served):
    def ask(pixels: Any, seed: int = 7) -> Any:
        header = {"idempotency-key": "with a picture"}
        return studio.http.post(
            "/v1/videos", data={"prompt": CIRCLE, **QUICK, "seed": seed}, files={"image": saved(pixels)}, headers=header
        )

    first = ask(PIXELS).json()["id"]
    kept = os.listdir(folder_of(studio))
    assert ask(PIXELS).json()["id"] == first and ask(OTHER).status_code == 422
    assert os.listdir(folder_of(studio)) == kept


@pytest.mark.skipif(sys.platform == "win32", reason="has no modes")
def test_folder_and_pictures_are_for_the_owner_alone(studio: Served):
    id = create(studio, saved()).id
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder_of(studio), folder_of(studio) / id)] == [0o700] * 2


def test_a_picture_goes_with_its_video_and_with_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bundles = {"both": bundle_with_pictures(tmp_path / "bundle")}
    with running(tmp_path / "data", bundles=bundles, keep=1) as served:
        served.gate.close()
        old, cancelled = create(served, saved()).id, create(served, saved(OTHER)).id
        served.http.post(f"/v1/videos/{cancelled}/cancel")
        assert set(os.listdir(folder_of(served))) == {old, cancelled}  # it may be made again
        served.openai.videos.delete(cancelled)
        served.gate.open()
        served.ended(old)
        assert os.listdir(folder_of(served)) == [old]
        two_days_on = time.time() + 2 * 86_400
        monkeypatch.setattr("mutoscope.server.service.time.time", lambda: two_days_on)
        served.service.delete_old()
        assert os.listdir(folder_of(served)) == []


def full(_: Path) -> None:
    raise OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize("how", ["before it", "because of it", "while it is written"])
def test_a_picture_that_the_disk_has_no_space_for_is_507_and_leaves_nothing(
    how: str, studio: Served, monkeypatch: pytest.MonkeyPatch
):
    before = os.listdir(folder_of(studio))
    if how == "while it is written":
        monkeypatch.setattr("mutoscope.server.given_files.sync", full)
    else:
        said = iter([how == "before it", True])
        monkeypatch.setattr(type(studio.service.studio), "disk_is_full", property(lambda _: next(said, True)))
    refused = post(studio, {"image": saved()})
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
    assert os.listdir(folder_of(studio)) == before


def test_a_picture_above_the_limit_of_a_body_is_413(tmp_path: Path):
    bundles = {"both": bundle_with_pictures(tmp_path / "bundle")}
    with running(tmp_path / "data", bundles=bundles, max_body=5000) as served:
        assert post(served, {"image": saved()}).status_code == 413


def test_a_picture_that_was_changed_in_the_folder_fails_its_video_without_a_path_of_the_server(
    tmp_path: Path,
):
    bundles = {"both": bundle_with_pictures(tmp_path / "bundle")}
    with running(tmp_path / "data", bundles=bundles) as served:
        served.gate.close()
        first, second = create(served).id, create(served, saved()).id
        [kept] = (folder_of(served) / second).iterdir()
        kept.write_bytes(saved(OTHER))
        served.gate.open()
        served.ended(first)
        error = served.ended(second)["error"]
        assert (
            error["message"] == "image is not in the data folder of the server any more as it was sent; send it again"
        )
        assert served.http.post(f"/v1/videos/{second}/again").json()["error"]["message"] == error["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_a_kill_at_any_transition_leaves_each_video_its_picture_and_no_other(tmp_path: Path):
    bundle = bundle_with_pictures(tmp_path / "bundle")
    command = [sys.executable, "-m", "tests.runtime.server.picture_kills", tmp_path / "data", bundle.root]
    subprocess.run(command, check=True, cwd=ROOT, timeout=120)
    assert len(os.listdir(tmp_path / "data" / "pictures")) > 4  # what the kills left, of refused and deleted ones too
    with running(tmp_path / "data", bundles={"both": bundle}) as served:
        videos = {each["seed"]: served.ended(each["id"]) for each in served.http.get("/v1/videos").json()["data"]}
        expected = {number for number, (what, *_) in enumerate(TRANSITIONS) if what in (ACCEPTED, MADE)}
        assert {seed: each["state"] for seed, each in videos.items()} == dict.fromkeys(expected, "completed")
        assert set(os.listdir(folder_of(served))) == {each["id"] for each in videos.values()}
        for each in videos.values():
            kept = served.http.get(f"/v1/videos/{each['id']}/content?variant=image").content
            np.testing.assert_array_equal(open_picture(kept), PIXELS)


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path):
    store = GivenFiles(tmp_path / "pictures")
    assert store.ids() == []
    store.keep("video_1", {})
    assert not (tmp_path / "pictures").exists()
    store.keep("video_1", {"image": [Picture(PIXELS)], "last_image": [Picture(PIXELS)]})
    request = store.request_of("video_1", {"prompt": "a", "image": IDENTITY})
    assert isinstance(request.image, Picture) and request.last_image is None
    np.testing.assert_array_equal(request.image.pixels, PIXELS)
    store.remove("video_1"), store.remove("video_2")
    assert store.ids() == []
