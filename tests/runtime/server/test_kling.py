"""Kling's API as its documentation has it: log-in, envelope, states, codes, and a request in its words."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from mutoscope.builtin import bundle_path
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import RequestError
from mutoscope.pictures import Picture
from mutoscope.server.options import KLING_VARIABLE, ServeOptions

from tests.runtime.server.picturing import OTHER, PIXELS, bundle_with_pictures, saved
from tests.runtime.server.served import CIRCLE, SMALL, Served, running

ACCESS, SECRET = "an-access-key", "a-secret-key-of-32-characters-or-more"
TASKS, IMAGES = "/v1/videos/text2video", "/v1/videos/image2video"
MANIFEST = Bundle.open(bundle_path(), verify=False).manifest


def signed(secret: str = SECRET, *, algorithm: str = "HS256", **claims: Any) -> str:
    now = int(time.time())
    said = {"iss": ACCESS, "exp": now + 1800, "nbf": now - 5, **claims}
    return jwt.encode({name: value for name, value in said.items() if value is not None}, secret, algorithm)


def kling(served: Served, method: str = "GET", path: str = "", token: str | None = None, **more: Any) -> Any:
    headers = {"authorization": f"Bearer {token or signed()}", **more.pop("headers", {})}
    return served.http.request(
        method, path if path.startswith(("/v1", "/metrics", "/account")) else TASKS + path, headers=headers, **more
    )


def asked(served: Served, **fields: Any) -> Any:
    body = json.dumps({"prompt": CIRCLE, **SMALL, **fields})
    return kling(served, "POST", content=body, headers={"content-type": "application/json"})


def keys(folder: Path) -> str:
    path = folder / "keys.txt"
    path.write_text(f"{ACCESS}\n{SECRET}\n")
    return str(path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("kling")
    with running(folder, kling_keys=keys(folder), token="a-token-of-32-characters-or-more", queue=1000) as served:
        yield served


def test_a_task_goes_from_submitted_to_succeed_with_a_link_that_needs_no_log_in(ready: Served):
    ready.gate.close()
    answer = asked(ready, external_task_id="mine")
    body = answer.json()
    assert (answer.status_code, body["code"], body["message"]) == (200, 0, "SUCCEED") and body["request_id"]
    task = body["data"]
    assert task["task_status"] in ("submitted", "processing") and "task_result" not in task
    assert task["task_info"] == {"external_task_id": "mine"}
    assert abs(task["created_at"] / 1000 - time.time()) < 60 and task["updated_at"] >= task["created_at"]
    ready.gate.allow(1)
    ready.wait_for_step(1)
    assert kling(ready, path=f"/{task['task_id']}").json()["data"]["task_status"] == "processing"
    ready.gate.open()
    ready.ended(task["task_id"])
    done = kling(ready, path=f"/{task['task_id']}").json()["data"]
    [video] = done["task_result"]["videos"]
    assert (done["task_status"], video["id"], video["duration"]) == ("succeed", task["task_id"], "0.625")
    bare = {"authorization": ""}
    content = ready.http.get(video["url"], headers=bare)
    assert content.content == ready.http.get(f"/v1/videos/{video['id']}/content").content
    assert content.headers["content-type"] == "video/mp4" and content.content[4:8] == b"ftyp"
    path, _, token = video["url"].partition("?token=")
    other = ready.make()["id"]
    for url in (
        path,
        f"{path}?token={token}x",
        path.replace(video["id"], other) + f"?token={token}",
        f"{path}?token={signed()}",
    ):
        refused = ready.http.get(url, headers=bare)
        assert (refused.status_code, refused.json()["code"]) == (401, 1002)
    assert kling(ready, token=token).json()["code"] == 1002  # a link opens its video and nothing else


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (lambda: "", 1001),
        (lambda: "Bearer", 1001),
        (lambda: f"Basic {signed()}", 1001),
        (lambda: "Bearer nothing", 1002),
        (lambda: f"Bearer {signed('another-secret-key-of-32-characters')}", 1002),
        (lambda: f"Bearer {signed(iss='somebody')}", 1002),
        (lambda: f"Bearer {signed(iss=None)}", 1002),
        (lambda: f"Bearer {signed(exp=None)}", 1002),
        (lambda: f"Bearer {jwt.encode({'iss': ACCESS, 'exp': 2**33}, '', 'none')}", 1002),
        (lambda: f"Bearer {signed(SECRET * 2, algorithm='HS512')}", 1002),
        (lambda: "Bearer a-token-of-32-characters-or-more", 1002),
        (lambda: f"Bearer {signed(nbf=int(time.time()) + 60)}", 1003),
        (lambda: f"Bearer {signed(exp=int(time.time()) - 60)}", 1004),
    ],
)
def test_a_log_in_that_does_not_hold_is_refused(header: Any, code: int, ready: Served):
    for method, path in (("GET", TASKS), ("POST", TASKS), ("GET", f"{TASKS}/video_1"), ("POST", "/v1/videos/lip-sync")):
        answer = ready.http.request(method, path, headers={"authorization": header()})
        assert (answer.status_code, answer.json()["code"]) == (401, code)
        assert answer.headers["www-authenticate"] == "Bearer" and SECRET not in answer.text


def test_its_log_in_opens_no_other_address(ready: Served):
    for path in ("/v1/videos", "/v1/videos/text2videos", "/v1/queue", "/metrics"):
        assert kling(ready, path=path).status_code == 401


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"duration": "2"}, {"num_frames": 17}),
        ({"duration": 5}, {"num_frames": 41}),
        ({"aspect_ratio": "1:1"}, {"height": 96, "width": 96}),
        ({"aspect_ratio": "16:9"}, {"height": 64, "width": 128}),
        ({"aspect_ratio": "9:16"}, {"height": 128, "width": 64}),
        ({"cfg_scale": 0}, {"guidance_scale": 1.0}),
        ({"cfg_scale": 0.5}, {"guidance_scale": MANIFEST.defaults.guidance_scale}),
        ({"cfg_scale": 1}, {"guidance_scale": 2.0}),
        (
            {"model_name": "built-in", "mode": "std", "sound": "off", "negative_prompt": "rain"},
            {"negative_prompt": "rain"},
        ),
        ({"callback_url": "", "image": None, "external_task_id": ""}, {}),
        ({"seed": 3, "num_inference_steps": 2}, {"seed": 3, "num_inference_steps": 2}),
    ],
    ids=str,
)
def test_a_request_in_its_words_is_one_of_ours(given: dict[str, Any], expected: dict[str, Any], ready: Served):
    answer = kling(ready, "POST", json={"prompt": CIRCLE, "seed": 7, "num_inference_steps": 1, **given}).json()
    assert answer["code"] == 0, answer
    request = ready.get(answer["data"]["task_id"])["request"]
    ready.http.delete(f"/v1/videos/{answer['data']['task_id']}")
    assert {name: request[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"callback_url": "https://example.com"}, "callback_url: this server never connects to an address"),
        (
            {"image": "https://example.com/a.png"},
            "image: a video with a picture is asked for at /v1/videos/image2video",
        ),
        ({"image_tail": "aGk="}, "image_tail: a video with a picture is asked for at /v1/videos/image2video"),
        *[
            (
                {name: "data:;base64,aGk="},
                f"{name}: a video with a picture is asked for at {IMAGES}, and one with a clip",
            )
            for name in ("input_reference", "last_image", "video", "extend", "mask", "reference_images")
        ],
        ({"image_list": [{"image": "aGk="}]}, "image_list: no model here takes it"),
        ({"camera_control": {"type": "forward_up"}}, "say in the prompt how the camera moves"),
        ({"sound": "on"}, "no sound"),
        ({"mode": "pro"}, "one quality"),
        ({"multi_shot": True}, "one prompt"),
        ({"image[image_url]": "data:;base64,aGk="}, "there is no parameter 'image[image_url]'"),
        ({"video[id]": f"video_{'0' * 32}"}, "there is no parameter 'video[id]'"),
        ({"promt": "x"}, "did you mean prompt?"),
        ({"duration": "-1"}, "duration must be a number above 0"),
        ({"duration": "5"}, "duration and num_frames are both given"),
        ({"duration": "5", "seconds": 5}, "duration and seconds say the same"),
        ({"cfg_scale": 2}, "cfg_scale must be a number from 0 to 1"),
        ({"aspect_ratio": "wide", "height": None, "width": None}, "aspect_ratio must be width:height"),
        ({"aspect_ratio": "1:1"}, "aspect_ratio is given beside a size"),
        ({"model_name": 1}, "model_name must be text"),
        ({"external_task_id": "x" * 201}, "at most 200 characters"),
        ({"external_task_id": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": None}, "prompt"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_in_words(given: dict[str, Any], words: str, ready: Served):
    answer = asked(ready, **given)
    assert (answer.status_code, answer.json()["code"]) == (400, 1201)
    assert words in answer.json()["message"] and "data" not in answer.json()


@pytest.mark.parametrize(
    ("method", "path", "more", "expected"),
    [
        ("GET", "/video_0", {}, (404, 1203)),
        ("POST", "", {"json": {"prompt": CIRCLE, "model_name": "kling-v1"}}, (404, 1203)),
        ("PUT", "", {}, (404, 1202)),
        ("POST", "/v1/videos/image2video", {"json": {}}, (400, 1201)),
        ("PUT", "/v1/videos/image2video", {}, (404, 1202)),
        ("POST", "/v1/videos/multi-image2video", {"json": {}}, (404, 1202)),
        ("GET", "/v1/videos/omni-video/video_0", {}, (404, 1202)),
        ("POST", "", {"content": b"{"}, (415, 1200)),
        ("POST", "", {"json": []}, (400, 1201)),
        ("GET", "?pageNum=0", {}, (400, 1201)),
        ("GET", "?pageSize=501", {}, (400, 1201)),
    ],
)
def test_errors_have_the_codes_of_its_documentation(
    method: str, path: str, more: dict[str, Any], expected: tuple[int, int], ready: Served
):
    answer = kling(ready, method, path, **more)
    assert (answer.status_code, answer.json()["code"]) == expected and answer.json()["message"]


def test_an_external_id_is_unique_and_its_request_may_be_repeated(ready: Served):
    first = asked(ready, external_task_id="one").json()["data"]
    assert asked(ready, external_task_id="one").json()["data"]["task_id"] == first["task_id"]
    other = asked(ready, external_task_id="one", seed=8)
    assert (other.status_code, other.json()["code"]) == (422, 1201)


def test_a_task_is_found_by_the_name_that_its_client_gave_it(ready: Served):
    task = asked(ready, external_task_id="my name/2 ü", seed=21).json()["data"]["task_id"]
    assert kling(ready, path="/my%20name%2F2%20%C3%BC").json()["data"]["task_id"] == task
    assert kling(ready, path="/my%20name").json()["code"] == 1203
    ready.http.delete(f"/v1/videos/{task}")
    assert kling(ready, path="/my%20name%2F2%20%C3%BC").json()["code"] == 1203


def test_nobody_has_paid_for_anything(ready: Served):
    answer = kling(ready, path="/account/costs?start_time=1726124664368&end_time=1727366400000").json()
    assert (answer["code"], answer["data"]["code"], answer["data"]["resource_pack_subscribe_infos"]) == (0, 0, [])
    assert ready.http.get("/account/costs").json()["code"] == 1002  # the server's own token opens nothing here


def test_tasks_are_listed_in_pages_newest_first(ready: Served):
    made = [asked(ready).json()["data"]["task_id"] for _ in range(5)][::-1]
    pages = [kling(ready, path=f"?pageNum={number}&pageSize=2").json()["data"] for number in (1, 2)]
    assert [[task["task_id"] for task in page] for page in pages] == [made[:2], made[2:4]]
    assert [task["task_id"] for task in kling(ready).json()["data"]][:5] == made
    assert kling(ready, path="?pageNum=1000").json()["data"] == []
    assert len(kling(ready, path="?pageNum=1&pageSize=500").json()["data"]) >= 5  # the most that it may be


def test_a_full_queue_a_policy_and_a_failure_have_its_codes(tmp_path: Path):
    def policy(request: Any) -> str | None:
        return "not here" if request.seed == 13 else None

    with running(tmp_path, kling_keys=keys(tmp_path), queue=1, policy=policy) as served:  # type: ignore[arg-type]
        refused = asked(served, seed=13)
        assert (refused.status_code, refused.json()["code"]) == (400, 1301) and "not here" in refused.json()["message"]
        served.gate.close()
        task = asked(served).json()["data"]
        full = asked(served)
        assert (full.status_code, full.json()["code"]) == (429, 1303) and int(full.headers["retry-after"]) >= 1
        served.http.post(f"/v1/videos/{task['task_id']}/cancel")
        shown = kling(served, path=f"/{task['task_id']}").json()["data"]
        assert (shown["task_status"], shown["task_status_msg"]) == ("failed", "this video was cancelled")


def test_a_body_that_grows_too_large_is_refused_in_its_envelope(tmp_path: Path):
    with running(tmp_path, kling_keys=keys(tmp_path), max_body=10_000) as served:
        parts = iter([b'{"prompt": "', b"x" * 20_000, b'"}'])  # no length is known beforehand
        answer = kling(served, "POST", content=parts, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (413, 1200)


def test_image2video_takes_a_first_and_a_last_picture_in_base64(tmp_path: Path):
    both = {"image": base64.b64encode(saved()).decode(), "image_tail": base64.b64encode(saved(OTHER)).decode()}
    short = {"num_frames": 1, "num_inference_steps": 1}
    bundles = {"kling-v1": bundle_with_pictures(tmp_path / "bundle")}
    with running(tmp_path / "data", kling_keys=keys(tmp_path), bundles=bundles) as served:

        def ask(**fields: Any) -> Any:
            return kling(served, "POST", IMAGES, json={"prompt": CIRCLE, **short, **fields})

        task = ask(**both, mode="pro", external_task_id="mine").json()["data"]["task_id"]
        video = served.ended(task)
        assert (video["state"], video["size"]) == ("completed", "48x32")  # the shape of the picture
        said = [video["request"][name] for name in ("image", "last_image")]
        assert said == [Picture(PIXELS).identity, Picture(OTHER).identity]
        shown = kling(served, path=f"{IMAGES}/mine").json()["data"]
        assert (shown["task_status"], shown["task_id"]) == ("succeed", task)
        content = served.http.get(shown["task_result"]["videos"][0]["url"], headers={"authorization": ""})
        assert content.content[4:8] == b"ftyp"
        assert [each["task_id"] for each in kling(served, path=IMAGES).json()["data"]] == [task]
        for fields, words in (
            ({"image": "https://example.com/a.png"}, "image must be a picture file in base64; this server never opens"),
            (
                {"image": both["image"], "image_tail": "file:///etc/passwd"},
                "image_tail must be a picture file in base64",
            ),
            ({"image": "/etc/passwd"}, "image must be a file in base64; this is none"),
            ({"image": "not base64!"}, "image must be a file in base64; this is none"),
            ({"image": both["image"], "image_tail": "aGk="}, "image_tail is not a picture or video that can be read"),
            ({**both, "last_image": "data:;base64,aGk="}, "image_tail and last_image say the same; give one of them"),
            ({**both, "input_reference": "data:;base64,aGk="}, "input_reference and image are the same"),
            ({"image": both["image"], "mode": "pro"}, "one quality"),
            ({"image": ["a"]}, "image must be a picture file in base64"),
            ({}, "image is missing"),
        ):
            refused = ask(**fields)
            assert (refused.status_code, refused.json()["code"]) == (400, 1201) and words in refused.json()["message"]


def test_it_is_off_without_keys(shared: Served):
    assert asked(shared).status_code == 405 and kling(shared).status_code == 404


def test_keys_come_from_a_file_or_the_environment_and_have_to_be_two(tmp_path: Path):
    assert ServeOptions().kling({}) is None
    found = ServeOptions(kling_keys=keys(tmp_path)).kling({})
    assert found is not None and (found.access, found.secret) == (ACCESS, SECRET) and SECRET not in repr(found)
    assert ServeOptions().kling({KLING_VARIABLE: f"{ACCESS} {SECRET}"}) == found
    for text in (ACCESS, f"{ACCESS} short", f"{ACCESS} {SECRET} more", f"{ACCESS} {'ü' * 40}"):
        with pytest.raises(RequestError, match="must hold two keys"):
            ServeOptions().kling({KLING_VARIABLE: text})
    with pytest.raises(RequestError, match="kling_keys='nowhere' cannot be read"):
        ServeOptions(kling_keys="nowhere").kling({})
