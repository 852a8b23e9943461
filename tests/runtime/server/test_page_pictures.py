"""Pictures on the page, in a real browser: chosen, dropped, pasted, shown, removed, refused, and sent again."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutoscope.pictures import Picture

from tests.runtime.server.browsing import asked, browser, press, status, tab
from tests.runtime.server.picturing import OTHER, PIXELS, bundle_with_pictures, mp4, saved
from tests.runtime.server.served import CIRCLE, Served, running, wait_for

REFUSED = "status of 400"  # as the console reports it
QUICK = {"num_frames": 1, "num_inference_steps": 1}
# Gives the page a file as dragging or the clipboard does: the event, its target, and the file in base64.
SEND = """async ([kind, to, name, content]) => {
    const data = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
    data.items.add(new File([bytes], name, { type: "image/png" }));
    const at = document.querySelector(to);
    const options = { bubbles: true, cancelable: true };
    if (kind === "paste") return at.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: data }));
    const over = new DragEvent("dragover", { ...options, dataTransfer: data });
    if (at.dispatchEvent(over)) throw new Error("nothing may be dropped here");
    at.dispatchEvent(new DragEvent("drop", { ...options, dataTransfer: data }));
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Served]:
    with running(tmp_path / "data", bundles={"both": bundle_with_pictures(tmp_path / "bundle")}) as served:
        yield served


def send(page: Any, kind: str, to: str, content: bytes, name: str = "first.png") -> None:
    page.evaluate(SEND, [kind, to, name, base64.b64encode(content).decode()])


def preview(page: Any, name: str) -> Any:
    """The canvas with a picture, once it is drawn."""
    found = page.get_by_role("img", name=f"Preview: {name}")
    found.wait_for()
    return found


def first_pixel(canvas: Any) -> list[int]:
    return canvas.evaluate("at => [...at.getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3)")


def test_a_chosen_picture_is_shown_sent_and_seen_in_the_gallery(chromium: Any, studio: Served):
    with tab(chromium, studio.url) as page:
        page.locator("#ask-prompt").wait_for()
        assert page.locator("#ask-width").input_value() == "48"
        page.get_by_label("First picture", exact=True).set_input_files(
            {"name": "a.png", "mimeType": "", "buffer": saved()}
        )
        canvas = preview(page, "First picture")
        assert canvas.evaluate("at => at.width / at.height") == 1.5
        assert (page.locator("#ask-width").input_value(), page.locator("#ask-height").input_value()) == ("", "")
        assert page.locator("#ask-summary").inner_text().startswith("As the picture is shaped, ")
        page.locator("#ask-prompt").fill(CIRCLE)
        page.locator("#ask-num_frames").fill("1")
        press(page, "Make video")
        status(page, "Finished")
        [request] = asked(studio)
        assert request["image"] == Picture(PIXELS).identity and (request["width"], request["height"]) == (48, 32)
        for shown in (page.locator(".card img[data-name=image]"), page.locator("#viewer-pictures img")):
            wait_for(lambda shown=shown: shown.evaluate("at => at.complete && at.naturalWidth === 60"))
            assert shown.get_attribute("alt") == "First picture"
        assert page.get_by_role("link", name="First picture").get_attribute("href").endswith("content?variant=image")
        press(page, "Make again with another seed")
        wait_for(lambda: len(asked(studio)) == 2)
        assert [each["image"] for each in asked(studio)] == [request["image"]] * 2


@pytest.mark.parametrize("frames", [1, 17])
def test_of_a_clip_as_a_picture_the_frame_is_shown_that_will_be_used(chromium: Any, studio: Served, frames: int):
    colours = np.repeat(np.uint8([[220, 20, 20], [20, 200, 20]]), (frames - 1, 1), axis=0)  # red, and at last green
    clip = mp4(np.broadcast_to(colours[:, None, None], (frames, 32, 48, 3)).copy())
    with tab(chromium, studio.url) as page:
        page.locator("#ask-prompt").wait_for()
        file = {"name": "red.mp4", "mimeType": "video/mp4", "buffer": clip}
        page.get_by_label("First picture", exact=True).set_input_files(file)
        red, green, blue = first_pixel(preview(page, "First picture"))
        assert green > 100 > max(red, blue)


def test_a_picture_is_dropped_pasted_replaced_and_removed(chromium: Any, studio: Served):
    with tab(chromium, studio.url) as page:
        page.locator("#ask-prompt").wait_for()
        send(page, "drop", "#ask-image", saved())
        preview(page, "First picture")
        send(page, "paste", "body", saved(OTHER))  # to the first that is free
        assert first_pixel(preview(page, "Last picture")) != first_pixel(preview(page, "First picture"))
        page.get_by_text("More settings").click()
        page.locator("#ask-width").fill("64")
        press(page, "Remove: First picture")
        assert page.evaluate("document.activeElement.id") == "ask-image"
        press(page, "Remove: Last picture")
        assert page.locator("#pictures canvas:visible").count() == 0
        assert (page.locator("#ask-width").input_value(), page.locator("#ask-height").input_value()) == ("64", "32")
        page.locator("#ask-image").focus()
        send(page, "paste", "#ask-image", b"no picture", "notes.txt")
        assert page.locator("#ask-image").evaluate("at => at.files[0].name") == "notes.txt"
        page.get_by_role("button", name="Remove: First picture").wait_for()
        assert page.locator("#pictures canvas:visible").count() == 0


def test_a_refused_picture_is_told_at_its_field(chromium: Any, studio: Served):
    with tab(chromium, studio.url, complaints=(REFUSED,)) as page:
        page.locator("#ask-prompt").fill(CIRCLE)
        page.locator("#ask-image").set_input_files({"name": "a.png", "mimeType": "", "buffer": saved()[:1000]})
        press(page, "Make video")
        error = page.locator("#ask-image-error")
        error.wait_for()
        assert error.inner_text().startswith("First picture is damaged, or of a kind that cannot be read")
        assert page.evaluate("document.activeElement.id") == "ask-image"
        assert page.locator("#ask-image").get_attribute("aria-invalid") == "true"
        page.locator("#ask-image").set_input_files({"name": "a.png", "mimeType": "", "buffer": saved()})
        press(page, "Make video")
        status(page, "Finished")
        assert page.locator(".error:visible").count() == 0


def test_the_settings_of_a_video_bring_its_pictures_and_its_size(chromium: Any, studio: Served):
    sent = {"image": ("a.png", saved()), "last_image": ("b.png", saved(OTHER))}
    size = {"height": "32", "width": "48"}  # the model's own, which are not those of a picture
    tall = {"image": ("a.png", saved(PIXELS[:, :20]))}
    for files, more in ((sent, {}), (tall, size)):
        studio.http.post("/v1/videos", data={"prompt": CIRCLE, **QUICK, **more}, files=files)
    second, first = asked(studio)
    with tab(chromium, studio.url) as page:
        page.locator(".card").nth(1).wait_for()
        for request, place in ((first, 1), (second, 0)):
            page.locator(".card").nth(place).click()
            press(page, "Use these settings")
            preview(page, "First picture")
            wait_for(lambda request=request: page.locator("#ask-seed").input_value() == str(request["seed"]))
            last = page.get_by_role("img", name="Preview: Last picture")
            wait_for(
                lambda request=request, last=last: last.is_visible() == ("last_image" in request)
            )  # it is drawn later
        press(page, "Make video")
        wait_for(lambda: len(asked(studio)) == 3)
        assert asked(studio)[0] == second


def test_pictures_work_by_keyboard_and_are_named_for_a_screen_reader(chromium: Any, studio: Served):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    settings = {"viewport": {"width": 360, "height": 740}, "reduced_motion": "reduce"}
    video = studio.http.post(
        "/v1/videos", data={"prompt": CIRCLE, **QUICK}, files={"image": ("a", saved()), "last_image": ("b", saved())}
    ).json()
    studio.ended(video["id"])
    with tab(chromium, studio.url, **settings) as page:
        page.locator("#ask-prompt").focus()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "ask-image"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        page.locator("#ask-image").set_input_files({"name": "w" * 80, "mimeType": "", "buffer": saved()})
        preview(page, "First picture")
        described = page.locator("#ask-image").get_attribute("aria-describedby").split()
        assert "drop it here or paste it" in page.locator(f"#{described[1]}").inner_text()
        page.locator(".card img[data-name=last_image]").scroll_into_view_if_needed()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()
        snapshot = page.locator("body").aria_snapshot()
        assert re.search(r'button "First picture( |")', snapshot) and 'img "Preview: First picture"' in snapshot, (
            snapshot
        )
        page.locator("#ask-image").focus()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.ariaLabel") == "Remove: First picture"
        page.keyboard.press("Enter")
        assert page.locator("#ask-image").evaluate("at => at.files.length") == 0
