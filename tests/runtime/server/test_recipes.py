"""The command line and the Python lines of a video make the same video."""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope import OutputOptions, RuntimeOptions, VideoRequest
from mutoscope.cli import main
from mutoscope.server.recipes import command_line, python_lines
from mutoscope_engines.testing import FakeBackend, only_backends
from PIL import Image

from tests.runtime.server.picturing import OTHER, PIXELS, bundle_with_pictures, saved
from tests.runtime.server.processes import serving
from tests.runtime.server.served import CIRCLE, Served, encoded, running

ODD = 'it\'s -- a "red" circle; $(rm -rf /)\n`x` \\ é'


def test_both_make_the_file_that_the_server_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import httpx2

    asked = {"prompt": CIRCLE, "num_frames": 5, "num_inference_steps": 2, "fps": "25/2", "scheduler": "euler"}
    with serving(tmp_path / "data", "--sign", "off") as server, httpx2.Client(base_url=server.url) as http:
        id = http.post("/v1/videos", json=asked).json()["id"]
        while (video := http.get(f"/v1/videos/{id}").json())["state"] not in ("completed", "failed"):
            pass
        recipe = http.get(f"/v1/videos/{id}/recipe").json()
    assert recipe["request"] == video["request"]
    assert "flow-shift" not in recipe["command"]  # it is what the bundle does unasked
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(recipe["command"])[1:]) == 0
    by_command = Path("video.mp4").read_bytes()
    Path("video.mp4").unlink()
    exec(compile(recipe["python"], "recipe", "exec"), {"__name__": "recipe"})
    made = [hashlib.sha256(content).hexdigest() for content in (by_command, Path("video.mp4").read_bytes())]
    assert made == [video["sha256"]] * 2


def test_both_say_which_picture_is_which_file_and_nothing_of_the_servers_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = bundle_with_pictures(tmp_path / "bundle")
    fake = FakeBackend({"vae_encoder_first": encoded})
    fake.gives_zeros = True
    with running(tmp_path / "data", bundles={"both": bundle}) as served:
        # No line of a recipe can say a backend that is an object.
        served.service.intake.studio = replace(served.service.studio, options=RuntimeOptions())
        asked = {"prompt": CIRCLE, "num_frames": 1, "num_inference_steps": 1, "width": 64}
        files = {"image": ("a", saved()), "last_image": ("b", saved(OTHER))}
        id = served.http.post("/v1/videos", data=asked, files=files).json()["id"]
        recipe = served.http.get(f"/v1/videos/{id}/recipe").json()
        assert str(tmp_path / "data") not in str(recipe)
        monkeypatch.chdir(tmp_path)
        for each in recipe["command"], recipe["python"]:
            said = dict(re.findall(rf"^# (\S+) is the content of {id} with variant=(\S+)$", each, re.MULTILINE))
            assert said == {"image.png": "image", "last_image.png": "last_image"}
        for file, variant in said.items():
            Path(file).write_bytes(served.http.get(f"/v1/videos/{id}/content?variant={variant}").content)
    with only_backends(fake):
        assert main(shlex.split(recipe["command"], comments=True)[1:]) == 0
        exec(compile(recipe["python"], "recipe", "exec"), {"__name__": "recipe"})
    fed = [feeds["frames"][0] for graph, feeds in fake.fed if graph == "vae_encoder_first"]
    expected = [
        np.asarray(Image.fromarray(each).resize((64, 32), Image.Resampling.LANCZOS)) for each in (PIXELS, OTHER)
    ]
    np.testing.assert_array_equal(fed, expected * 2)


def test_a_video_whose_model_is_offered_no_more_has_no_recipe_of_another(
    shared: Served, monkeypatch: pytest.MonkeyPatch
):
    id, studio = shared.make()["id"], shared.service.intake.studio
    others = replace(studio, bundles={"other": studio.bundles["built-in"]})
    monkeypatch.setattr(shared.service.intake, "studio", others)
    answer = shared.http.get(f"/v1/videos/{id}/recipe")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_every_kind_of_value_is_written_so_that_it_is_read_again(monkeypatch: pytest.MonkeyPatch):
    request = VideoRequest(prompt=ODD, negative_prompt="-x", seed=-5, fps=Fraction(24000, 1001), sigmas=(1.0, 0.5))
    options = RuntimeOptions(
        backend=("onnxruntime", "openvino"), memory_limit=8 * 10**9, tile=(64, 64), cuda_graphs=False
    )
    said: tuple[Any, ...] = (request, "/a folder", options, OutputOptions(codec="h264"))
    from mutoscope.commands.arguments import Parser, add_bundle, add_fields, given

    parser = Parser("generate", "")
    parser.add_argument("prompt")
    parser.add_argument("-o")
    add_bundle(parser, "--bundle")
    add_fields(parser, VideoRequest, skip=["prompt"])
    add_fields(parser, RuntimeOptions)
    add_fields(parser, OutputOptions)
    read = parser.parse(shlex.split(command_line(*said))[2:])
    assert VideoRequest(**given(read, VideoRequest)) == request
    assert RuntimeOptions(**given(read, RuntimeOptions)) == options
    assert (read.bundle, read.codec) == (Path("/a folder"), "h264")

    seen: dict[str, Any] = {}

    class Recorder:
        @staticmethod
        def load(*bundle: str, **options: Any) -> Any:
            seen.update(bundle=bundle, options=options)
            return Recorder()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def generate(self, request: VideoRequest) -> Any:
            seen["request"] = request
            return self

        def save(self, path: str, **options: Any) -> None:
            seen["saved"] = (path, options)

    monkeypatch.setattr("mutoscope.Pipeline", Recorder)
    exec(python_lines(*said), {})
    assert seen["request"] == request and RuntimeOptions(**seen["options"]) == options
    assert (seen["bundle"], seen["saved"]) == (("/a folder",), ("video.mp4", {"codec": "h264"}))
