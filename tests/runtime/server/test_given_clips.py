"""Clips, masks and references that clients send, and OpenAI's `edit` and `extend`, over a socket."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from mutoscope.cli import main
from mutoscope.pictures import Picture, open_picture
from mutoscope.request import RuntimeOptions
from mutoscope.video_files import every_frame
from mutoscope_engines.testing import only_backends
from PIL import Image

from tests.runtime.server.clipping import CLIP, FRAMES, OTHER_CLIP, bundle_that_edits, bundle_with_control, probed
from tests.runtime.server.picturing import OTHER, PIXELS, bundle_with_pictures, saved
from tests.runtime.server.served import CIRCLE, Gate, GatedBackend, Served, running, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
IDENTITY = f"60x40 video sha256:{hashlib.sha256(CLIP).hexdigest()}"
QUICK = {"num_inference_steps": 2, "seed": 7}
URL = f"data:video/mp4;base64,{base64.b64encode(CLIP).decode()}"
MASK, REFERENCES = saved(np.full_like(PIXELS, 255)), (saved(PIXELS), saved(OTHER))


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clips")
    bundles = {
        "pictures": bundle_with_pictures(folder / "pictures"),
        "edits": bundle_that_edits(folder / "edits"),
        "control": bundle_with_control(folder / "control"),
    }
    with running(folder / "data", bundles=bundles) as served:
        yield served


def controlled(served: Served, **more: Any) -> dict[str, Any]:
    files = [("video", CLIP), ("mask", MASK), *(("reference_images", each) for each in REFERENCES)]
    sent = [(name, ("../a", content)) for name, content in files]
    values = {"prompt": CIRCLE, "model": "control", **QUICK, **more}
    answer = served.http.post("/v1/videos", data=values, files=sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


def resized(frames: Any) -> Any:
    return [np.asarray(Image.fromarray(frame).resize((48, 32), Image.Resampling.LANCZOS)) for frame in frames]


def fed(backend: Any) -> list[Any]:
    """The frames that the encoder was given, in the order of its calls."""
    return [
        frame for graph, feeds in backend.fed if "encoder" in graph and "frames" in feeds for frame in feeds["frames"]
    ]


def kept(served: Served) -> set[str]:
    return set(os.listdir(served.service.studio.folder.parent / "pictures"))


def test_an_edit_of_openais_client_changes_the_video_that_it_uploads(studio: Served, tmp_path: Path):
    studio.service.studio.options.backend.fed.clear()  # type: ignore[union-attr]
    asked = studio.openai.videos.edit(prompt=CIRCLE, video=("a/../b.mp4", CLIP), extra_body=QUICK | {"strength": 0.5})
    video = studio.openai.videos.poll(asked.id)
    request = video.model_extra["request"]
    assert (video.status, video.model, video.size) == ("completed", "edits", "48x32")
    assert (request["video"], request["strength"], request["num_frames"]) == (IDENTITY, 0.5, 9)
    np.testing.assert_array_equal(fed(studio.service.studio.options.backend), resized(FRAMES[:9]))
    assert probed(studio.openai.videos.download_content(video.id).content, tmp_path) == (9, "10/1")
    assert video.seconds == "0.9"


def test_an_extension_has_all_frames_of_the_clip_and_then_as_many_as_the_seconds_say(studio: Served, tmp_path: Path):
    asked = studio.openai.videos.extend(prompt=CIRCLE, seconds="0.8", video=CLIP, extra_body=QUICK)  # type: ignore[arg-type]
    video = studio.openai.videos.poll(asked.id)
    request = video.model_extra["request"]
    assert (video.status, video.model, request["extend"]) == ("completed", "pictures", IDENTITY)
    assert (request["num_frames"], request["fps"]) == (9, 10)  # 8 new ones, and the one that the clip ends with
    count, rate = probed(studio.openai.videos.download_content(video.id).content, tmp_path)
    assert (count, rate) == (10 + 8, "10/1")
    assert (video.model_extra["num_frames"], video.seconds) == (18, "1.8")
    thumbnail = studio.openai.videos.download_content(video.id, variant="thumbnail")
    assert thumbnail.response.headers["content-type"] == "image/webp"


def test_a_video_of_this_server_is_named_by_its_id_and_may_be_deleted_then(tmp_path: Path):
    with running(tmp_path / "data", bundles={"edits": bundle_that_edits(tmp_path / "edits")}) as served:
        first = served.make(num_frames=9)["id"]
        sha256 = served.ended(first)["sha256"]
        served.gate.close()
        body = {"prompt": CIRCLE, **QUICK, "video": {"id": first}}
        by_id = QUICK | {"video": {"id": first}}  # the client writes it as the field video[id]
        edit = served.get(served.openai.videos.edit(prompt=CIRCLE, video=openai.omit, extra_body=by_id).id)  # type: ignore[arg-type]
        extension = served.http.post("/v1/videos/extensions", json=body | {"seconds": "1"}).json()
        ours = served.http.post("/v1/videos", json=body).json()
        waits = served.http.post("/v1/videos/edits", json=body | {"video": {"id": ours["id"]}})
        assert (waits.status_code, waits.json()["error"]["code"]) == (409, "video_not_ready")
        served.http.delete(f"/v1/videos/{first}")
        assert served.http.post("/v1/videos/edits", json=body).status_code == 404
        served.gate.open()
        for video, name in ((edit, "video"), (extension, "extend"), (ours, "video")):
            assert video["request"][name] == f"64x32 video sha256:{sha256}"
            assert served.ended(video["id"])["state"] == "completed"
        assert ours["request"] == edit["request"]


def test_mask_references_and_scale_reach_the_model_and_are_there_again(studio: Served):
    first = controlled(studio, conditioning_scale="0.5")
    as_json = {
        "prompt": CIRCLE, "model": "control", **QUICK, "video": URL, "conditioning_scale": 0.5,
        "mask": f"data:image/png;base64,{base64.b64encode(MASK).decode()}",
        "reference_images": [f"data:;base64,{base64.b64encode(each).decode()}" for each in REFERENCES],
    }  # fmt: skip
    assert studio.http.post("/v1/videos", json=as_json).json()["request"] == first["request"]
    request = first["request"]
    assert (request["video"], request["conditioning_scale"]) == (IDENTITY, 0.5)
    assert request["reference_images"] == [Picture(each).identity for each in (PIXELS, OTHER)]
    assert request["mask"] == Picture(np.full_like(PIXELS, 255)).identity
    assert studio.ended(first["id"])["state"] == "completed"
    path = f"/v1/videos/{first['id']}/content?variant="
    clip = studio.http.get(path + "given_video")
    assert (clip.content, clip.headers["content-type"]) == (CLIP, "video/x-matroska")
    np.testing.assert_array_equal(open_picture(studio.http.get(path + "reference_2").content), OTHER)
    for variant in ("given_video", "mask", "reference_1"):
        small = studio.http.get(f"{path}{variant}_thumbnail").content
        assert Image.open(io.BytesIO(small)).size == (60, 40)
    for variant, status in (("reference_3", 404), ("extend", 404), ("reference_x", 400)):
        assert studio.http.get(path + variant).status_code == status


@pytest.mark.parametrize("name", ["video", "extend", "mask", "reference_images"])
def test_no_path_or_address_of_a_client_is_opened(name: str, studio: Served, tmp_path: Path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(CLIP)  # whoever opened it would take it
    before = sum(studio.service.table.counts().values()), kept(studio)
    for value in (str(path), path.as_uri(), "https://example.com/a.mp4", IDENTITY, f"concat:{path}"):
        for sent in (value, {"image_url": value}, {"file_id": value}, {"id": 7}, {"id": value, "url": value}):
            sent = [sent] if name == "reference_images" else sent
            refused = studio.http.post("/v1/videos", json={"prompt": CIRCLE, "model": "control", name: sent})
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (400, "unsupported_value", name)
            assert "are never opened" in error["message"] and str(path) not in error["message"]
        refused = studio.http.post("/v1/videos", data={"prompt": CIRCLE, "model": "control", name: value})
        assert refused.json()["error"]["code"] == "unsupported_value"
    assert (sum(studio.service.table.counts().values()), kept(studio)) == before


@pytest.mark.parametrize(
    ("address", "body", "param", "words"),
    [
        ("edits", {}, "video", "video is missing; a file of a form"),
        ("edits", {"model": "pictures", "video": URL}, "video", "video is not a parameter of this bundle"),
        ("extensions", {"model": "control", "video": URL}, "video", "video is for models that take a picture"),
        ("extensions", {"video": URL, "extend": URL}, "extend", "extend and video are the same here"),
        ("extensions", {"video": URL, "seconds": "99999"}, "seconds", "seconds must be at most"),
        ("edits", {"video": "data:video/mp4;base64,YQ=="}, "video", "video is not a video that can be read: 1 bytes"),
        ("edits", {"video": URL, "seconds": "9"}, "video", "video has 10 frames, and the video that is made of it has"),
        ("edits", {"model": "control", "video": URL, "reference_images": URL}, "reference_images", "must be a list"),
        ("edits", {"video": URL, "strength": 2}, "strength", "strength must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_words(
    address: str, body: dict[str, Any], param: str, words: str, studio: Served
):
    answer = studio.http.post(f"/v1/videos/{address}", json={"prompt": CIRCLE, **QUICK, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]


def test_a_clip_with_too_many_pixels_is_refused_before_all_of_it_is_decoded(
    studio: Served, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mutoscope.server.given_files.MOST_CLIP_PIXELS", 9 * 832 * 480)  # however small
    with pytest.raises(openai.BadRequestError, match=r"video has more than 9 frames, .* cut it"):
        studio.openai.videos.extend(prompt=CIRCLE, seconds="4", video=CLIP)
    monkeypatch.setattr("mutoscope.server.given_files.MOST_CLIP_PIXELS", 10 * 832 * 480)
    assert studio.openai.videos.extend(prompt=CIRCLE, seconds="4", video=CLIP).status in ("queued", "in_progress")


def test_references_are_limited_in_number_and_in_pixels_together(studio: Served, monkeypatch: pytest.MonkeyPatch):
    one = f"data:;base64,{base64.b64encode(REFERENCES[0]).decode()}"

    def refused(count: int) -> str:
        body = {"prompt": CIRCLE, "model": "control", **QUICK, "reference_images": [one] * count}
        answer = studio.http.post("/v1/videos", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "reference_images")
        return error["message"]

    monkeypatch.setattr("mutoscope.pictures.MOST_PIXELS", 4 * 60 * 40)
    assert refused(21) == "reference_images may have at most 20 pictures; it has 21. Give fewer"
    assert refused(5).startswith("reference_images may have 9600 pixels in all pictures together; 60x40 more")


def test_a_remix_and_another_seed_keep_every_file_when_the_first_video_is_gone(studio: Served):
    first = controlled(studio)
    again = studio.http.post(f"/v1/videos/{first['id']}/again", json={"seed": 7}).json()
    remix = studio.openai.videos.remix(first["id"], prompt="a blue square").model_extra["request"]
    studio.http.delete(f"/v1/videos/{first['id']}")
    assert again["request"] == first["request"] and remix == first["request"] | {"prompt": "a blue square"}
    assert studio.ended(again["id"])["state"] == "completed"
    wait_for(lambda: first["id"] not in kept(studio))


def test_a_clip_is_still_there_after_a_restart(tmp_path: Path):
    bundles = {"edits": bundle_that_edits(tmp_path / "edits")}
    with running(tmp_path / "data", bundles=bundles) as served:
        first = served.ended(served.openai.videos.edit(prompt=CIRCLE, video=CLIP, extra_body=QUICK).id)
    with running(tmp_path / "data", bundles=bundles) as served:
        again = served.http.post(f"/v1/videos/{first['id']}/again", json={"seed": 7}).json()
        assert again["request"] == first["request"] and served.ended(again["id"])["state"] == "completed"
        np.testing.assert_array_equal(fed(served.service.studio.options.backend), resized(FRAMES[:9]))


def test_an_idempotency_key_knows_the_clip(studio: Served):
    def ask(clip: bytes) -> Any:
        headers = {"idempotency-key": "with a clip"}
        return studio.http.post("/v1/videos/edits", data={"prompt": CIRCLE}, files={"video": clip}, headers=headers)

    first = ask(CLIP).json()["id"]
    assert ask(CLIP).json()["id"] == first and ask(OTHER_CLIP).status_code == 422


def test_a_repeat_with_its_key_gives_its_video_though_the_clip_it_names_is_gone(studio: Served):
    source = studio.http.post("/v1/videos", json={"prompt": CIRCLE, "model": "edits", "num_frames": 9, **QUICK}).json()
    studio.ended(source["id"])

    def ask(key: str = "by id", **more: Any) -> Any:
        body = {"prompt": CIRCLE, **QUICK, "video": {"id": source["id"]}, **more}
        return studio.http.post("/v1/videos/edits", json=body, headers={"idempotency-key": key})

    first = ask()
    studio.http.delete(f"/v1/videos/{source['id']}")
    assert (ask().status_code, ask().json()["id"]) == (200, first.json()["id"])
    assert [ask(seed=8).status_code, ask(video={"id": "video_0"}).status_code] == [422, 422]
    assert ask("another").json()["error"]["code"] == "not_found"


def test_a_clip_to_go_on_from_is_decoded_once_for_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with running(tmp_path / "data", bundles={"edits": bundle_that_edits(tmp_path / "edits")}) as served:
        served.gate.close()
        served.make()
        wait_for(lambda: served.gate.steps == 1)  # the worker decodes nothing now
        passes: list[Any] = []
        monkeypatch.setattr("mutoscope.clips.every_frame", lambda *file: passes.append(file) or every_frame(*file))
        served.openai.videos.extend(prompt=CIRCLE, seconds="0.8", video=CLIP)  # type: ignore[arg-type]
        assert len(passes) == 1


def test_a_video_of_this_server_is_read_when_it_is_the_turn_of_its_request(
    studio: Served, monkeypatch: pytest.MonkeyPatch
):
    source = studio.http.post("/v1/videos", json={"prompt": CIRCLE, "model": "edits", "num_frames": 9, **QUICK}).json()
    studio.ended(source["id"])
    held, content = [], studio.service.content

    def watched(*asked: Any) -> Any:
        held.append(studio.service.intake.turn(["video"]).locked())  # type: ignore[attr-defined]
        return content(*asked)

    monkeypatch.setattr(studio.service, "content", watched)
    body = {"prompt": CIRCLE, **QUICK, "video": {"id": source["id"]}}
    for address in ("edits", "plan"):
        assert studio.http.post(f"/v1/videos/{address}", json=body | {"model": "edits"}).status_code == 200
    assert held == [True, True]


def test_a_clip_that_was_changed_in_the_folder_fails_its_video_without_a_path(tmp_path: Path):
    with running(tmp_path / "data", bundles={"edits": bundle_that_edits(tmp_path / "edits")}) as served:
        served.gate.close()
        first = served.make()["id"]
        second = served.openai.videos.edit(prompt=CIRCLE, video=CLIP, extra_body=QUICK).id
        [file] = (tmp_path / "data" / "pictures" / second).iterdir()
        file.write_bytes(OTHER_CLIP)
        served.gate.open()
        served.ended(first)
        error = served.ended(second)["error"]
        words = "video is not in the data folder of the server any more as it was sent; send it again"
        assert error["message"] == words and error["param"] == "video"
        assert served.http.post(f"/v1/videos/{second}/again").json()["error"]["message"] == words
        small = served.http.get(f"/v1/videos/{second}/content?variant=given_video_thumbnail")
        assert (small.status_code, small.json()["error"]["message"]) == (404, f"given_{words}")
        assert served.http.get(f"/v1/videos/{second}/recipe").json()["error"]["message"] == words


def test_the_recipe_makes_the_video_of_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with running(tmp_path / "data", bundles={"control": bundle_with_control(tmp_path / "control")}) as served:
        backend: Any = served.service.studio.options.backend
        served.service.intake.studio = replace(served.service.studio, options=RuntimeOptions())
        id = controlled(served)["id"]
        assert served.ended(id)["state"] == "completed"
        expected = fed(backend)
        recipe = served.http.get(f"/v1/videos/{id}/recipe").json()
        assert str(tmp_path / "data") not in str(recipe)
        monkeypatch.chdir(tmp_path)
        said = dict(
            re.findall(rf"^# (\S+) is the content of {id} with variant=(\S+)$", recipe["command"], re.MULTILINE)
        )
        assert said == {
            "given_video.mkv": "given_video", "mask.png": "mask",
            "reference_1.png": "reference_1", "reference_2.png": "reference_2",
        }  # fmt: skip
        for file, variant in said.items():
            Path(file).write_bytes(served.http.get(f"/v1/videos/{id}/content?variant={variant}").content)
    fake = GatedBackend(Gate())
    with only_backends(fake):
        assert main(shlex.split(recipe["command"], comments=True)[1:]) == 0
        exec(compile(recipe["python"], "recipe", "exec"), {"__name__": "recipe"})
    assert expected
    np.testing.assert_array_equal(fed(fake), expected * 2)


def test_what_is_kept_says_which_kind_of_file_it_is(tmp_path: Path):
    from mutoscope.server.given_files import kind_of_clip

    for begin, kind in (
        (b"\0\0\0\x20ftypisom", ".mp4"), (CLIP[:64], ".mkv"), (b"\x1aE\xdf\xa3\x01B\x82\x84webm", ".webm"),
        (b"RIFF\0\0\0\0AVI LIST", ".avi"), (b"FLV\x01", ".video"),
    ):  # fmt: skip
        assert kind_of_clip(begin)[0] == kind
