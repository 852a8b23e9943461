"""Clips, masks, references and LoRAs on the page, in a real browser: where the model takes them, sent, sent again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.clips import scene
from tests.runtime.server.browsing import asked, browser, press, status, tab
from tests.runtime.server.clipping import (
    bundle_that_edits,
    bundle_with_control,
    bundle_with_loras,
    probed,
    write_lora,
)
from tests.runtime.server.picturing import OTHER, PIXELS, mp4, saved
from tests.runtime.server.served import CIRCLE, Served, running, wait_for

REFUSED = "status of 400"  # as the console reports it
GIVEN = (
    "image",
    "last_image",
    "video",
    "strength",
    "extend",
    "mask",
    "reference_images",
    "conditioning_scale",
    "loras",
)


CLIP = {"name": "clip.mp4", "mimeType": "video/mp4", "buffer": mp4(scene(10))}
PICTURES = [{"name": "a.png", "mimeType": "image/png", "buffer": saved(each)} for each in (PIXELS, OTHER)]
MASK = {"name": "m.png", "mimeType": "image/png", "buffer": saved(np.full((32, 48, 3), 255, np.uint8))}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {"edits": bundle_that_edits, "control": bundle_with_control, "loras": bundle_with_loras}
    return {name: make(folder / name) for name, make in made.items()}


@pytest.fixture
def studio(bundles: dict[str, Any], tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "loras").mkdir()
    for seed, name in enumerate(("style", "fox: red")):
        write_lora(tmp_path / "loras" / f"{name}.safetensors", seed)
    with running(tmp_path / "data", bundles=bundles, loras=str(tmp_path / "loras")) as served:
        yield served


def opened(page: Any, model: str) -> None:
    """The form for a model, with what every test asks for."""
    page.locator("#ask-model").select_option(model)
    page.locator("#ask-prompt").fill(CIRCLE)
    page.locator("#ask-num_inference_steps").fill("1")


def made_again(page: Any, studio: Served, first: dict[str, Any], shown: Sequence[str] = ()) -> None:
    """A video by the settings of the one that is shown follows the same request. `shown` are all previews meanwhile."""
    press(page, "Use these settings")
    if shown:
        wait_for(lambda: previews(page) == shown)
    wait_for(lambda: page.locator("#ask-seed").input_value() == str(first["seed"]))
    press(page, "Make video")
    wait_for(lambda: len(asked(studio)) == 2)
    assert asked(studio)[0] == first


def previews(page: Any) -> list[str]:
    return page.locator("#pictures canvas:visible").evaluate_all("all => all.map((each) => each.ariaLabel)")


def test_each_model_has_the_fields_of_what_it_takes_and_no_others(chromium: Any, studio: Served):
    expected = {
        "edits": ["image", "video", "extend"],  # and strength once there is a video
        "control": ["video", "mask", "reference_images"],
        "loras": ["loras"],
    }
    with tab(chromium, studio.url) as page:
        for model, names in expected.items():
            opened(page, model)
            page.get_by_text("More settings").evaluate("at => at.parentElement.open = true")
            assert [name for name in GIVEN if page.locator(f"#ask-{name}").is_visible()] == names
        opened(page, "edits")
        page.locator("#ask-video").set_input_files(CLIP)
        page.locator("#ask-strength").wait_for()
        press(page, "Remove: Given video")
        page.locator("#ask-strength").wait_for(state="hidden")


def test_a_clip_is_changed_and_its_settings_are_taken_once_more(chromium: Any, studio: Served):
    with tab(chromium, studio.url) as page:
        opened(page, "edits")
        page.locator("#ask-video").set_input_files(CLIP)
        wait_for(lambda: previews(page) == ["Preview: Given video"])
        # Red is where the block of the first frame is.
        pixel = page.locator("#pictures canvas").evaluate(
            "at => [...at.getContext('2d').getImageData(at.width / 6, at.height / 2, 1, 1).data]"
        )
        assert pixel[0] > 150 > pixel[1]
        for name in ("width", "height", "num_frames", "fps"):
            assert page.locator(f"#ask-{name}").input_value() == "", name
        assert page.locator("#ask-summary").inner_text() == "As the video is shaped, 1 step"
        page.locator("#ask-strength").fill("1")
        press(page, "Make video")
        status(page, "Finished")
        [first] = asked(studio)
        assert (first["strength"], first["num_frames"], first["fps"]) == (1, 9, 10)
        assert first["video"].startswith("48x32 video sha256:")
        for shown in (page.locator(".card img[data-name=video]"), page.locator("#viewer-pictures img")):
            wait_for(lambda shown=shown: shown.evaluate("at => at.complete && at.naturalWidth === 48"))
        link = page.get_by_role("link", name="Given video")
        assert link.get_attribute("href").endswith("content?variant=given_video")
        press(page, "Remove: Given video")
        made_again(page, studio, first)


def test_a_clip_is_gone_on_from_and_a_refusal_stands_at_its_field(chromium: Any, studio: Served, tmp_path: Path):
    with tab(chromium, studio.url, complaints=(REFUSED,)) as page:
        opened(page, "edits")
        page.locator("#ask-extend").set_input_files(CLIP | {"buffer": CLIP["buffer"][:-300]})
        page.locator("#ask-num_frames").fill("5")
        press(page, "Make video")
        page.locator("#ask-extend-error").wait_for()
        assert page.evaluate("document.activeElement.id") == "ask-extend"
        page.locator("#ask-extend").set_input_files(CLIP)
        press(page, "Make video")
        status(page, "Finished")
        assert "14 frames, 1.4 s" in page.locator("#viewer-facts").inner_text()
        [video] = studio.http.get("/v1/videos").json()["data"]
        assert probed(studio.http.get(f"/v1/videos/{video['id']}/content").content, tmp_path) == (14, "10/1")


def test_a_mask_and_references_are_sent_and_taken_once_more(chromium: Any, studio: Served):
    with tab(chromium, studio.url) as page:
        opened(page, "control")
        page.locator("#ask-video").set_input_files(CLIP)
        page.locator("#ask-mask").set_input_files(MASK)
        page.locator("#ask-reference_images").set_input_files(PICTURES)
        shown = [f"Preview: {name}" for name in ("Given video", "Mask", "References 1", "References 2")]
        wait_for(lambda: previews(page) == shown)
        page.locator("#ask-conditioning_scale").fill("0.5")
        press(page, "Make video")
        status(page, "Finished")
        [first] = asked(studio)
        assert len(first["reference_images"]) == 2 and first["conditioning_scale"] == 0.5
        names = page.locator("#viewer-pictures img").evaluate_all("all => all.map(({ alt }) => alt)")
        assert names == ["Given video", "Mask", "References 1", "References 2"]
        for name in ("Given video", "Mask", "References"):
            press(page, f"Remove: {name}")
        made_again(page, studio, first, shown)


def test_loras_are_chosen_by_name_kept_over_a_reload_and_taken_once_more(chromium: Any, studio: Served, tmp_path: Path):
    with tab(chromium, studio.url, complaints=(REFUSED,)) as page:
        opened(page, "loras")
        page.get_by_text("More settings").click()
        for _ in range(3):
            press(page, "Add a LoRA")
        rows = page.locator(".loras li")
        assert rows.locator("select").evaluate_all("all => all.map(({ value }) => value)") == [
            "fox: red.safetensors", "style.safetensors", "fox: red.safetensors",
        ]  # fmt: skip
        rows.nth(0).get_by_label("Strength").fill("-0.25")
        rows.nth(2).get_by_role("button", name="Remove").click()
        assert page.evaluate("document.activeElement.textContent") == "Add a LoRA"
        page.reload()
        wait_for(lambda: rows.count() == 2)
        press(page, "Make video")
        status(page, "Finished")
        [first] = asked(studio)
        said = [(each["path"], each["strength"]) for each in first["loras"]]
        assert said == [("fox: red.safetensors", -0.25), ("style.safetensors", 1)]
        page.get_by_role("button", name="Clear: LoRAs").click()
        assert rows.count() == 0
        made_again(page, studio, first)
        (tmp_path / "loras" / "style.safetensors").unlink()
        press(page, "Make video")
        error = page.locator("#ask-loras-error")
        error.wait_for()
        assert "there is no LoRA 'style.safetensors'" in error.inner_text()


def test_a_lora_that_was_replaced_is_refused_at_its_field_until_it_is_added_anew(
    chromium: Any, studio: Served, tmp_path: Path
):
    values = {"prompt": CIRCLE, "model": "loras", "num_inference_steps": 1, "loras": [{"path": "style.safetensors"}]}
    assert studio.http.post("/v1/videos", json=values).status_code == 200
    write_lora(tmp_path / "next", 2)
    (tmp_path / "next").rename(tmp_path / "loras" / "style.safetensors")
    with tab(chromium, studio.url, complaints=(REFUSED,)) as page:
        page.locator(".card").click()
        press(page, "Use these settings")
        rows = page.locator(".loras li")
        wait_for(lambda: rows.count() == 1)
        page.reload()
        press(page, "Make video")
        error = page.locator("#ask-loras-error")
        error.wait_for()
        assert error.inner_text().startswith("LoRAs has style.safetensors, which is another file now")
        assert len(asked(studio)) == 1
        rows.get_by_role("button", name="Remove").click()
        press(page, "Add a LoRA")
        rows.locator("select").select_option("style.safetensors")
        press(page, "Make video")
        wait_for(lambda: len(asked(studio)) == 2)
        new, old = (each["loras"][0] for each in asked(studio))
        assert new["path"] == old["path"] and new["sha256"] != old["sha256"]


def test_settings_that_the_model_takes_no_longer_are_named(chromium: Any, studio: Served, tmp_path: Path):
    values = {"prompt": CIRCLE, "model": "loras", "num_inference_steps": 1, "loras": [{"path": "style.safetensors"}]}
    assert studio.http.post("/v1/videos", json=values).status_code == 200
    for path in (tmp_path / "loras").iterdir():
        path.unlink()
    with tab(chromium, studio.url) as page:
        page.locator(".card").click()
        press(page, "Use these settings")
        page.get_by_text("This model takes no LoRAs now; the rest was taken over.").wait_for()


def test_the_fields_fit_a_phone_and_are_named_for_a_screen_reader(chromium: Any, studio: Served):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with tab(chromium, studio.url, viewport={"width": 360, "height": 740}, reduced_motion="reduce") as page:
        opened(page, "loras")
        page.get_by_text("More settings").click()
        press(page, "Add a LoRA")
        for model, names in {"loras": [], "control": ["video", "mask", "reference_images"]}.items():
            opened(page, model)
            for name in names:
                page.locator(f"#ask-{name}").set_input_files(CLIP if name == "video" else PICTURES[0])
            wait_for(lambda names=names: len(previews(page)) == len(names))
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            found = axe.run(page)
            assert found.violations_count == 0, found.generate_report()
