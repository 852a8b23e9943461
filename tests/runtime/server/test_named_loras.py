"""Clients name files of the operator's folder and nothing else, and see no path of the server's machine."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope.bundle.bundle import Bundle
from mutoscope.errors import RequestError
from mutoscope.request import RuntimeOptions
from mutoscope.server.named_loras import checked_folder
from mutoscope.server.studio import studio_of
from safetensors.numpy import save_file

from tests.runtime.server.served import Served, running

ASKED = {"prompt": "a", "height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1, "seed": 3}
A = "blocks.0.attn1.to_v.weight.lora_a"
STYLE = {"path": "style.safetensors", "strength": 0.5}


@pytest.fixture(scope="module")
def offering(wan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a folder of one LoRA, beside which lies another."""
    folder = tmp_path_factory.mktemp("loras") / "offered"
    folder.mkdir()
    random, stem = np.random.default_rng(0), "transformer.blocks.0.attn1.to_v"
    halves = {f"{stem}.lora_A.weight": (2, 24), f"{stem}.lora_B.weight": (24, 2)}
    for path in (folder / "style.safetensors", folder.parent / "secret.safetensors"):
        save_file({name: random.standard_normal(shape, np.float32) for name, shape in halves.items()}, path)
    (folder / "readme.txt").touch()
    bundles = {"small": Bundle.open(wan_bundle, verify=False)}
    with running(tmp_path_factory.mktemp("served"), bundles=bundles, loras=str(folder)) as served:
        yield served


def post(served: Served, loras: Any) -> Any:
    return served.http.post("/v1/videos", json=ASKED | {"loras": loras})


def test_a_named_lora_is_fed_to_the_denoiser_and_its_path_is_shown_to_nobody(
    offering: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = offering.service.studio.options.backend
    for loras in ([], [STYLE]):
        backend.fed.clear()
        changed = offering.ended(post(offering, loras).json()["id"])
        assert changed["state"] == "completed"
        fed = [arrays[A] for _, arrays in backend.fed if A in arrays]
        assert [bool(array.any()) for array in fed] == [True for _ in loras]
    assert changed["request"]["loras"] == [STYLE]
    nothing_said = replace(offering.service.studio, options=RuntimeOptions())  # no text says the fake backend
    monkeypatch.setattr(offering.service, "studio", nothing_said)
    recipe = offering.http.get(f"/v1/videos/{changed['id']}/recipe").json()
    words = shlex.split(recipe["command"])
    assert words[words.index("--lora") + 1] == "style.safetensors:0.5"
    assert "from mutoscope import Lora\n" in recipe["python"]
    assert "loras=(Lora(path='style.safetensors', strength=0.5),)" in recipe["python"]
    again = offering.http.post(f"/v1/videos/{changed['id']}/again", json={"seed": 3}).json()
    assert again["request"] == changed["request"]
    planned = offering.http.post("/v1/videos/plan", json=ASKED | {"loras": [STYLE]})
    folder = str(offering.service.options.loras)
    for text in (str(changed), recipe["python"], str(again), planned.text):
        assert folder not in text


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "secret.safetensors", "/etc/passwd", "readme.txt", "", ".", "style.safetensors/"]
)
def test_anything_but_a_file_of_the_folder_is_refused_with_those_that_are_there(offering: Served, name: str) -> None:
    answer = post(offering, [{"path": name}])
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "loras" and "style.safetensors" in error["message"]
    assert str(offering.service.options.loras) not in answer.text


def test_what_is_no_list_of_objects_is_refused(offering: Served) -> None:
    assert "loras must be a list of objects" in post(offering, ["style.safetensors"]).json()["error"]["message"]
    answer = offering.http.post("/v1/videos", data={"prompt": "a", "loras": "style.safetensors"})
    assert "which only JSON has" in answer.json()["error"]["message"]


def test_a_server_without_a_folder_offers_none(shared: Served) -> None:
    answer = post(shared, [STYLE])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "loras")
    assert "this server offers no LoRAs" in answer.json()["error"]["message"]


def test_workers_in_other_processes_know_the_folder(offering: Served) -> None:
    studio = replace(offering.service.studio, options=RuntimeOptions(backend="onnxruntime"))
    assert studio_of(studio.settings(), studio.folder, {}).loras_folder == offering.service.options.loras


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    assert checked_folder(None) is None
    assert checked_folder(str(tmp_path)) == str(tmp_path.resolve())
    with pytest.raises(RequestError, match="loras must be a folder with LoRAs; got 'nowhere'"):
        checked_folder("nowhere")


def test_what_follows_a_lora_that_was_removed_is_refused_in_words(offering: Served) -> None:
    folder = Path(str(offering.service.options.loras))
    gone = folder / "gone.safetensors"
    gone.write_bytes((folder / "style.safetensors").read_bytes())
    job = offering.ended(post(offering, [{"path": "gone.safetensors"}]).json()["id"])
    gone.unlink()
    for answer in (
        offering.http.get(f"/v1/videos/{job['id']}/recipe"),
        offering.http.post(f"/v1/videos/{job['id']}/again", json={}),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "loras")
        assert "there is no LoRA 'gone.safetensors'" in error["message"]
    folder.rename(folder.with_name("elsewhere"))
    try:
        error = post(offering, [STYLE]).json()["error"]
    finally:
        folder.with_name("elsewhere").rename(folder)
    assert error["message"] == "loras must be left out: the folder of LoRAs cannot be read"
