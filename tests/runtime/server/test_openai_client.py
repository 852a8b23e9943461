"""OpenAI's own client, unmodified and over a socket: every method of `client.videos`, and how it sees errors."""

from __future__ import annotations

import io
import time
from typing import Any

import av
import numpy as np
import openai
import pytest
from mutoscope.server.jobs import STATES

from tests.runtime.server.served import CIRCLE, SMALL, Served, running

# Whoever made the client has announced the end of their own service.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def create(served: Served, **more: Any) -> Any:
    return served.openai.videos.create(prompt=CIRCLE, extra_body=SMALL | more)


def finished(served: Served, **more: Any) -> Any:
    return served.openai.videos.poll(create(served, **more).id)


def pictures(content: bytes, kind: str) -> list[Any]:
    with av.open(io.BytesIO(content), format=kind) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_client_has_no_method_that_these_tests_lack(shared: Served):
    methods = {
        name
        for name in dir(shared.openai.videos)
        if not name.startswith(("_", "with_")) and callable(getattr(shared.openai.videos, name))
    }
    assert methods == {
        "create", "create_and_poll", "create_character", "delete", "download_content", "edit", "extend",
        "get_character", "list", "poll", "remix", "retrieve",
    }  # fmt: skip


def test_create_answers_at_once_with_a_video_that_waits_or_runs(served: Served):
    first, second = create(served), create(served)
    assert (first.object, first.model, first.prompt, first.size) == ("video", "built-in", CIRCLE, "64x32")
    assert first.seconds == "0.625" and abs(first.created_at - time.time()) < 60
    assert first.status in ("queued", "in_progress") and second.status == "queued"
    assert (second.error, second.completed_at, second.expires_at, second.remixed_from_video_id) == (None,) * 4
    assert second.model_extra["queue_position"] in (0, 1)


def test_create_and_poll_gives_a_finished_video(shared: Served):
    video = shared.openai.videos.create_and_poll(
        prompt=CIRCLE, model="built-in", size="64x32", seconds="1", extra_body={"num_inference_steps": 1}
    )
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert (video.size, video.seconds) == ("64x32", "1.125")  # 9 frames at 8 a second: 8 cannot be made
    assert video.completed_at is not None and video.completed_at >= video.created_at


def test_lists_and_numbers_go_through_a_form(shared: Served):
    video = create(shared, sigmas=[1.0, 0.5], num_inference_steps=2, fps="25/2", guidance_scale=1.5)
    request = video.model_extra["request"]
    assert (request["sigmas"], request["fps"], request["guidance_scale"], request["seed"]) == (
        [1.0, 0.5],
        "25/2",
        1.5,
        7,
    )


def test_json_and_a_form_ask_for_the_same_video(shared: Served):
    by_json = shared.make(guidance_scale=2.0, sigmas=[1.0, 0.75, 0.5, 0.25], fps=12.5)
    by_form = create(shared, guidance_scale=2.0, sigmas=[1.0, 0.75, 0.5, 0.25], fps=12.5)
    encoded = {"prompt": CIRCLE, **SMALL, "guidance_scale": "2", "sigmas": "1,0.75,0.5,0.25", "fps": "25/2"}
    by_url_encoding = shared.http.post("/v1/videos", data=encoded).json()
    assert by_json["request"] == by_form.model_extra["request"] == by_url_encoding["request"]


def test_retrieve_and_poll_hear_when_to_ask_again(served: Served):
    video = create(served)
    raw = served.openai.videos.with_raw_response.retrieve(video.id)
    assert 250 <= int(raw.headers["openai-poll-after-ms"]) <= 5000
    served.gate.open()
    done = served.openai.videos.poll(video.id)
    assert (done.id, done.status) == (video.id, "completed")
    assert "openai-poll-after-ms" not in served.openai.videos.with_raw_response.retrieve(video.id).headers


def test_a_video_in_progress_says_how_far_it_is(served: Served):
    video = create(served)
    served.gate.allow(2)
    served.wait_for_step(2)
    shown = served.openai.videos.retrieve(video.id)
    assert (shown.status, shown.progress) == ("in_progress", 45)
    assert (shown.model_extra["stage"], shown.model_extra["step"], shown.model_extra["steps"]) == ("denoise", 2, 4)


def test_list_pages_through_all_videos_in_both_orders(served: Served):
    made = [create(served).id for _ in range(5)]
    newest_first = [video.id for video in served.openai.videos.list(limit=2)]
    assert newest_first == made[::-1]
    assert [video.id for video in served.openai.videos.list(limit=2, order="asc")] == made
    page = served.openai.videos.list(limit=2, after=made[3])
    assert ([video.id for video in page.data], page.has_more, page.last_id) == (made[1:3][::-1], True, made[1])
    assert page.model_extra == {"object": "list", "first_id": made[2]} | page.model_extra


def test_list_shows_the_states_that_are_asked_for(served: Served):
    ids = [create(served).id for _ in range(2)]
    served.http.post(f"/v1/videos/{ids[1]}/cancel")
    shown = served.openai.videos.list(extra_query={"state": "cancelled,failed"})
    assert [video.id for video in shown] == [ids[1]]


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"order": "up"}, "order"), ({"state": "new"}, "state")],
)
def test_list_refuses_what_it_cannot_do(query: dict[str, Any], param: str, shared: Served):
    with pytest.raises(openai.BadRequestError) as caught:
        shared.openai.videos.list(extra_query=query)
    assert caught.value.param == param
    assert param != "state" or all(state in caught.value.message for state in STATES)


def test_delete_removes_a_video(shared: Served):
    video = finished(shared)
    deleted = shared.openai.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    for method in (shared.openai.videos.retrieve, shared.openai.videos.delete, shared.openai.videos.download_content):
        with pytest.raises(openai.NotFoundError) as caught:
            method(video.id)
        assert caught.value.code == "not_found" and video.id in caught.value.message


def test_download_content_gives_the_video_a_thumbnail_and_a_spritesheet(shared: Served):
    video = finished(shared, num_frames=9)
    content = {
        variant: shared.openai.videos.download_content(video.id, variant=variant)  # type: ignore[arg-type]
        for variant in ("video", "thumbnail", "spritesheet")
    }
    types = [answer.response.headers["content-type"] for answer in content.values()]
    assert types == ["video/mp4", "image/webp", "image/jpeg"]
    assert np.stack(pictures(content["video"].content, "mp4")).shape == (9, 32, 64, 3)
    [thumbnail] = pictures(content["thumbnail"].content, "webp_pipe")
    [sheet] = pictures(content["spritesheet"].content, "jpeg_pipe")
    assert (thumbnail.shape, sheet.shape) == ((32, 64, 3), (3 * 32, 3 * 64, 3))
    again = shared.openai.videos.download_content(video.id, variant="thumbnail")
    assert again.content == content["thumbnail"].content


def test_a_video_is_sought_in_by_ranges(shared: Served):
    video = finished(shared)
    path = f"/v1/videos/{video.id}/content"
    whole = shared.http.get(path)
    part = shared.http.get(path, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    assert whole.headers["etag"] == f'"{video.model_extra["content_sha256"]}-video"'


def test_content_that_is_not_there_yet_is_refused_and_not_asked_for_again(served: Served):
    video = create(served)
    started = time.monotonic()
    with pytest.raises(openai.ConflictError) as caught:
        served.openai.videos.download_content(video.id)
    assert caught.value.code == "video_not_ready" and time.monotonic() - started < 5
    with pytest.raises(openai.BadRequestError, match="variant must be one of video, thumbnail, spritesheet"):
        served.openai.videos.download_content(video.id, variant="sound")  # type: ignore[arg-type]


def test_remix_keeps_the_request_and_the_seed(shared: Served):
    first = finished(shared)
    second = shared.openai.videos.remix(first.id, prompt="a blue square moving left on a black background")
    assert second.remixed_from_video_id == first.id and second.prompt.startswith("a blue square")
    before, after = first.model_extra["request"], second.model_extra["request"]
    assert after == before | {"prompt": second.prompt}
    with pytest.raises(openai.NotFoundError):
        shared.openai.videos.remix("video_0", prompt="a red circle")


def test_a_picture_is_refused_in_words_where_the_model_takes_none(shared: Served):
    with pytest.raises(openai.BadRequestError) as caught:
        shared.openai.videos.create(prompt=CIRCLE, input_reference=("a/../b.png", b"\x89PNG" * 1000, "image/png"))
    assert (caught.value.code, caught.value.param) == ("invalid_value", "input_reference")
    assert "input_reference is not a parameter of this model, which takes: prompt" in caught.value.message


@pytest.mark.parametrize(
    "call",
    [
        lambda videos: videos.create_character(name="Ann", video=b"video"),
        lambda videos: videos.get_character("character_1"),
    ],
    ids=["create_character", "get_character"],
)
def test_characters_are_refused_in_words_and_not_repeated(call: Any, shared: Served):
    started = time.monotonic()
    with pytest.raises(openai.InternalServerError) as caught:
        call(shared.openai.videos)
    assert caught.value.status_code == 501 and "makes videos from text, pictures and videos" in caught.value.message
    assert time.monotonic() - started < 5  # a client that repeats it would take longer, at the least


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"num_frames": 6}, "num_frames", "nearest: 5, 9"),
        ({"height": 33}, "height", "nearest: 32, 64"),
        ({"width": "wide"}, "width", "must be a whole number"),
        ({"num_frame": 5}, "num_frame", "did you mean num_frames?"),
        ({"size": "48"}, "size", "such as 832x480"),
        ({"size": "96x32"}, "width", "size says 96"),
        ({"seconds": "-1"}, "seconds", "above 0"),
        ({"seconds": "9999", "num_frames": None}, "seconds", "at most"),
        ({"seconds": "4"}, "seconds", "give one of them"),
        ({"scheduler": "magic"}, "scheduler", "there is no scheduler 'magic'"),
        ({"negative_prompt": "x" * 32_001}, "negative_prompt", "at most 32000 characters"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_value_is_an_error_that_names_its_field(fields: dict[str, Any], param: str, message: str, shared: Served):
    values = {name: value for name, value in (SMALL | fields).items() if value is not None}
    with pytest.raises(openai.BadRequestError) as caught:
        shared.openai.videos.create(prompt=CIRCLE, extra_body=values)
    assert message in caught.value.message
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda videos: videos.edit(prompt=CIRCLE, video=b"video"), "video is not a parameter of this bundle"),
        (lambda videos: videos.extend(prompt=CIRCLE, seconds="4", video=b"video"), "video is for models that take a"),
    ],
    ids=["edit", "extend"],
)
def test_a_video_is_refused_in_words_where_no_model_takes_one(call: Any, words: str, shared: Served):
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        call(shared.openai.videos)
    assert caught.value.param == "video"


def test_a_model_that_there_is_not_is_named(shared: Served):
    with pytest.raises(openai.NotFoundError, match="There are: built-in") as caught:
        shared.openai.videos.create(prompt=CIRCLE, model="sora-2")
    assert caught.value.code == "model_not_found"
    assert [model.id for model in shared.openai.models.list()] == ["built-in"]
    assert shared.openai.models.retrieve("built-in").owned_by == "mutoscope"


def test_an_idempotency_key_makes_one_video_of_a_repeated_request(shared: Served):
    def ask(**more: Any) -> Any:
        return shared.openai.videos.create(
            prompt=CIRCLE, extra_body=SMALL | more, extra_headers={"Idempotency-Key": "one"}
        )

    first = ask()
    assert ask().id == first.id
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(seed=8)
    assert caught.value.code == "idempotency_key_reused"
    shared.openai.videos.delete(first.id)
    assert ask(seed=8).id != first.id  # the key went with its video


def test_a_full_queue_is_429_and_a_client_that_waits_gets_through(tmp_path):
    with running(tmp_path, queue=1) as served:
        finished(served)  # so that the server knows how short a wait can be
        served.gate.close()
        create(served)
        with pytest.raises(openai.RateLimitError) as caught:
            served.openai.with_options(max_retries=0).videos.create(prompt=CIRCLE, extra_body=SMALL)
        assert caught.value.code == "queue_full" and int(caught.value.response.headers["retry-after"]) >= 1
        served.gate.open()
        assert create(served).status in ("queued", "in_progress")  # after a retry of the client's own


def test_a_failed_video_has_a_code_and_a_message(served: Served):
    served.gate.raises = ValueError("a secret prompt")
    served.gate.open()
    video = served.openai.videos.poll(create(served).id)
    assert video.status == "failed" and video.error is not None
    assert video.error.code == "internal_error" and "ValueError" in video.error.message
    assert "secret" not in video.error.message and video.model_extra["attempts"] == 3


def test_a_cancelled_video_is_failed_to_this_client(served: Served):
    video = create(served)
    assert served.http.post(f"/v1/videos/{video.id}/cancel").json()["state"] == "cancelled"
    served.gate.open()
    shown = served.openai.videos.poll(video.id)
    assert shown.status == "failed" and shown.error is not None and shown.error.code == "cancelled"


def test_the_async_client_makes_a_video_too(shared: Served):
    import asyncio

    async def made() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="none") as client:
            return await client.videos.create_and_poll(prompt=CIRCLE, extra_body=SMALL)

    assert asyncio.run(made()).status == "completed"
