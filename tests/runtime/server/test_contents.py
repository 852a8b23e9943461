"""The pictures that a video follows can be fetched, whole and small, whatever becomes of the video."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope.pictures import open_picture
from PIL import Image

from tests.runtime.server.picturing import bundle_with_pictures, saved
from tests.runtime.server.served import CIRCLE, Served, running

LARGE = np.random.default_rng(1).integers(0, 256, (500, 1000, 3), np.uint8)


def test_a_sent_picture_is_there_as_png_and_small_before_the_video_is(tmp_path: Path):
    with running(tmp_path / "data", bundles={"both": bundle_with_pictures(tmp_path / "bundle")}) as served:
        served.gate.close()
        sent = {"prompt": CIRCLE, "num_frames": "1"}
        id = served.http.post("/v1/videos", data=sent, files={"image": ("../../x.html", saved(LARGE))}).json()["id"]
        path = f"/v1/videos/{id}/content"
        for _ in range(2):  # the small one is made at first, and lies there then
            whole, small = (served.http.get(f"{path}?variant=image{end}") for end in ("", "_thumbnail"))
            np.testing.assert_array_equal(open_picture(whole.content), LARGE)
            assert Image.open(io.BytesIO(small.content)).size == (320, 160)
        said = [(each.headers["content-type"], each.headers["content-disposition"]) for each in (whole, small)]
        assert said == [
            ("image/png", 'inline; filename="image.png"'),
            ("image/webp", 'inline; filename="image_thumbnail.webp"'),
        ]
        assert whole.headers["etag"] != small.headers["etag"] and whole.headers["x-content-type-options"] == "nosniff"
        for variant, status, words in (
            ("last_image", 404, "this video follows no last_image"),
            ("video", 409, "this video has no content; its state is "),
            ("first", 400, "variant must be one of video, thumbnail, spritesheet, image"),
        ):
            refused = served.http.get(f"{path}?variant={variant}")
            assert refused.status_code == status and refused.json()["error"]["message"].startswith(words)


def refused(served: Served, id: str, variant: str) -> tuple[int, str]:
    answer = served.http.get(f"/v1/videos/{id}/content?variant={variant}")
    return answer.status_code, answer.json()["error"]["message"]


@pytest.mark.parametrize("damaged", [b"no picture", None])
def test_a_picture_that_somebody_changed_or_removed_is_refused_in_words(tmp_path: Path, damaged: bytes | None):
    with running(tmp_path / "data", bundles={"both": bundle_with_pictures(tmp_path / "bundle")}) as served:
        sent = {"prompt": CIRCLE, "num_frames": "1", "num_inference_steps": "1"}
        id = served.http.post("/v1/videos", data=sent, files={"image": ("a", saved(LARGE))}).json()["id"]
        [file] = (tmp_path / "data" / "pictures" / id).iterdir()
        if damaged is None:
            file.unlink()
            words = "the image of this video is not in the data folder of the server any more"
            assert refused(served, id, "image") == (404, words)
        else:
            file.write_bytes(damaged)
        words = "image is not in the data folder of the server any more as it was sent; send it again"
        assert refused(served, id, "image_thumbnail") == (404, words)


def test_a_video_whose_file_somebody_removed_is_refused_in_words(shared: Served):
    id = shared.ended(shared.make(num_inference_steps=1)["id"])["id"]
    (shared.service.studio.place(id) / "video.mp4").unlink()
    for variant in ("video", "thumbnail"):
        words = f"the {variant} of this video is not in the data folder of the server any more"
        assert refused(shared, id, variant) == (404, words)


def test_a_thumbnail_that_does_not_fit_on_the_disk_says_so(shared: Served, monkeypatch: pytest.MonkeyPatch):
    id = shared.ended(shared.make(num_inference_steps=1)["id"])["id"]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mutoscope.server.contents.write_thumbnail", full)
    assert refused(shared, id, "thumbnail")[0] == 507
