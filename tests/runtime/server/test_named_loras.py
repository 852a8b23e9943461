"""Clients name files of the operator's folder and nothing else, and see no path of the server's machine."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mutoscope.errors import RequestError
from mutoscope.request import LORAS, RuntimeOptions
from mutoscope.server.intake import Intake
from mutoscope.server.named_loras import NamedLoras, checked_folder
from mutoscope.server.studio import studio_of
from safetensors.numpy import load_file, save_file

from tests.bundles import Q
from tests.runtime.server.clipping import bundle_with_loras, write_lora
from tests.runtime.server.served import Served, running

ASKED = {"prompt": "a", "height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1, "seed": 3}
A = f"{Q}.lora_a"
STYLE = {"path": "style.safetensors", "strength": 0.5}


@pytest.fixture(scope="module")
def offering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a folder of one LoRA, beside which lies another."""
    folder = tmp_path_factory.mktemp("loras") / "offered"
    folder.mkdir()
    for path in (folder / "style.safetensors", folder.parent / "secret.safetensors"):
        write_lora(path)
    (folder / "readme.txt").touch()
    bundles = {"small": bundle_with_loras(folder.parent / "bundle")}
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
    file = Path(str(offering.service.options.loras)) / STYLE["path"]
    assert changed["request"]["loras"] == [STYLE | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}]
    nothing_said = replace(offering.service.studio, options=RuntimeOptions())  # no text says the fake backend
    monkeypatch.setattr(offering.service.intake, "studio", nothing_said)
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


def test_a_form_names_them_as_the_command_line_does(offering: Served) -> None:
    for sent in (
        {"loras": "style.safetensors:0.5"},
        {"loras[]": "style.safetensors:0.5"},
        {"loras": ["style.safetensors:0.5", "style.safetensors"]},
    ):
        answer = offering.http.post("/v1/videos/plan", data={**ASKED, **sent})
        given = next(iter(sent.values()))
        expected = [0.5, 1.0] if isinstance(given, list) else [0.5]
        assert [lora["strength"] for lora in answer.json()["plan"]["loras"]] == expected
    answer = offering.http.post("/v1/videos", data={**ASKED, "loras": "style:much"})
    assert answer.json()["error"]["param"] == "loras" and "there is no LoRA 'style:much'" in answer.text


def test_a_form_may_say_the_hash_as_a_row_has_it(offering: Served) -> None:
    content = (Path(str(offering.service.options.loras)) / STYLE["path"]).read_bytes()
    own = hashlib.sha256(content).hexdigest()
    for sha256, status in ((own, 200), (own.upper(), 200), ("0" * 64, 400), ("0" * 63, 400), ("", 400)):
        sent = {**ASKED, "loras": f"style.safetensors:0.5 sha256:{sha256}"}
        answer = offering.http.post("/v1/videos/plan", data=sent)
        assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"].startswith("loras must have the SHA-256 of a file, 64 hexadecimal digits")


@pytest.mark.parametrize("sha256", ["", "0" * 63, "g" * 64, f"{'0' * 64},{'0' * 64}", 7, True, [], {"a": 1}], ids=repr)
def test_a_hash_that_is_none_is_refused_before_a_file_is_looked_for(offering: Served, sha256: Any) -> None:
    error = post(offering, [{"path": "nowhere.safetensors", "sha256": sha256}]).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "loras")
    words = "loras must have the SHA-256 of a file, 64 hexadecimal digits, as sha256, or none; got "
    assert error["message"] == words + repr(sha256)[:80]


def test_more_files_than_a_video_takes_are_refused_before_any_is_looked_for(offering: Served) -> None:
    error = post(offering, [{"path": "nowhere.safetensors"}] * 101).json()["error"]
    assert error["message"] == "loras may have at most 100 files; it has 101. Give fewer"


def test_a_file_that_was_replaced_is_refused_wherever_a_video_follows_it(offering: Served) -> None:
    folder = Path(str(offering.service.options.loras))
    mine, style = folder / "mine.safetensors", (folder / STYLE["path"]).read_bytes()
    mine.write_bytes(style)
    offering.gate.close()
    first = post(offering, []).json()["id"]
    job = post(offering, [STYLE | {"path": "mine.safetensors"}]).json()
    # The same tensors with another note in the file: an operator's update.
    tensors, mine_again = load_file(mine), folder / "next"
    save_file(tensors, mine_again, {"version": "2"})
    mine_again.rename(mine)
    offering.gate.open()
    offering.ended(first)
    failed = offering.ended(job["id"])["error"]
    words = "loras has mine.safetensors, which is another file now than the one that was asked for"
    assert (failed["code"], failed["param"]) == ("invalid_value", "loras") and failed["message"].startswith(words)
    address = f"/v1/videos/{job['id']}"
    for answer in (
        offering.http.get(f"{address}/recipe"),
        offering.http.post(f"{address}/again", json={}),
        offering.http.post(f"{address}/remix", json={"prompt": "b"}),
        post(offering, job["request"]["loras"]),  # a client may say the hash that it wants
    ):
        assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(words)
        assert job["request"]["loras"][0]["sha256"] in answer.text and str(folder) not in answer.text
    mine.write_bytes(style)
    assert offering.ended(offering.http.post(f"{address}/again", json={}).json()["id"])["state"] == "completed"
    mine.unlink()


def test_an_idempotency_key_knows_the_hash_that_was_asked_for(offering: Served) -> None:
    folder = Path(str(offering.service.options.loras))
    mine = folder / "keyed.safetensors"
    write_lora(mine)

    def ask(**said: Any) -> Any:
        body = ASKED | {"loras": [{"path": mine.name, **said}]}
        return offering.http.post("/v1/videos", json=body, headers={"idempotency-key": "with a LoRA"})

    first = ask().json()["id"]
    assert ask().json()["id"] == first
    offering.ended(first)
    write_lora(folder / "next", seed=1)
    (folder / "next").rename(mine)
    refused = ask(sha256=hashlib.sha256(mine.read_bytes()).hexdigest())
    mine.unlink()
    assert ask().json()["id"] == first  # whatever became of the file
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")


def test_a_file_that_goes_between_two_looks_at_it_shows_no_folder(
    offering: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(str(offering.service.options.loras))
    there = {"gone.safetensors": folder / "gone.safetensors"}
    monkeypatch.setattr(NamedLoras, "paths", lambda _: there)
    answer = post(offering, [{"path": "gone.safetensors"}])
    assert "gone.safetensors cannot be read" in answer.text and str(folder) not in answer.text


def test_a_file_that_is_replaced_after_its_plan_was_made_is_refused_without_the_folder(
    offering: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, accepted = Path(str(offering.service.options.loras)), Intake.accepted
    write_lora(folder / "mine.safetensors")

    def replaced_afterwards(self: Intake, asked: Any) -> Any:
        found = accepted(self, asked)
        write_lora(folder / "mine.safetensors", seed=1)
        return found

    monkeypatch.setattr(Intake, "accepted", replaced_afterwards)
    answer = post(offering, [{"path": "mine.safetensors"}])
    (folder / "mine.safetensors").unlink()
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "loras")
    assert error["message"].startswith("loras must be those of the plan, mine.safetensors:1; got mine.safetensors:1")
    assert str(folder) not in answer.text


def test_a_model_offers_the_names_to_whoever_asks_for_its_parameters(offering: Served, shared: Served) -> None:
    for served, expected in ((offering, [["style.safetensors"]]), (shared, [])):
        [model] = served.http.get("/v1/models").json()["data"]
        found = [each for each in model["parameters"] if each["name"] in LORAS]
        assert [each["choices"] for each in found] == expected
        assert all(each["type"] == "loras" for each in found)


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
        [model] = offering.http.get("/v1/models").json()["data"]
    finally:
        folder.with_name("elsewhere").rename(folder)
    assert error["message"] == "loras must be left out: the folder of LoRAs cannot be read"
    assert "loras" not in {each["name"] for each in model["parameters"]}
