"""The page in a real browser: whole runs, refusals, reloads, a server that goes and comes back, and who can use it."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mutoscope.request import RuntimeOptions
from mutoscope.server.app import PAGE

from tests.runtime.server.browsing import browser, fill, press, status, tab
from tests.runtime.server.served import CIRCLE, SMALL, Served, running, wait_for

TOKEN = "correct-horse-battery-staple"
REFUSED = "status of 400"  # as the console reports it
RING = "a cyan ring growing on a navy background"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def studio(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(tmp_path_factory.mktemp("page")) as served:
        # No line of a recipe can say a backend that is an object.
        served.service.intake.studio = replace(served.service.studio, options=RuntimeOptions())
        yield served


@pytest.fixture
def held(studio: Served) -> Iterator[Served]:
    """No step ends before the test says so; nothing is left for the next test."""
    studio.gate.close()
    yield studio
    for video in studio.http.get("/v1/videos?limit=100").json()["data"]:
        studio.http.delete(f"/v1/videos/{video['id']}")
    studio.gate.open()
    wait_for(lambda: studio.service.worker.live is None)
    studio.gate.forget()


def finished(served: Served, **fields: Any) -> dict[str, Any]:
    """A video that is made at once, before the page asks for it."""
    served.gate.open()
    video = served.ended(served.make(**fields)["id"])
    served.gate.forget()
    served.gate.close()
    return video


def test_a_prompt_becomes_a_video_that_is_watched_played_and_downloaded(chromium: Any, held: Served):
    with tab(chromium, held.url) as page:
        page.get_by_text("Finished videos stay here").wait_for()
        fill(page, seed=2**64 - 1)
        assert page.locator("#ask-summary").inner_text().endswith("32 pixels, 0.6 s long, 4 steps")
        press(page, "Make video")
        held.gate.allow(2)
        status(page, "Step 2 of 4")
        page.get_by_alt_text("Preview of the video so far").wait_for()
        assert 0 < page.get_by_role("progressbar", name="Progress", exact=True).evaluate("bar => bar.value") < 100
        assert page.title().endswith("% · Mutoscope") and page.locator("#queue-list li").count() == 1
        held.gate.open()
        status(page, "Finished")
        wait_for(lambda: page.locator("video").evaluate("at => at.videoWidth === 64 && at.currentTime > 0"))
        assert "5 frames, 0.6 s · 4 steps · seed 18446744073709551615" in page.locator("#viewer-facts").inner_text()
        [card] = page.locator(".card").all()
        assert card.get_attribute("aria-current") == "true" and page.locator("#queue").is_hidden()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        [video] = held.http.get("/v1/videos").json()["data"]
        assert hashlib.sha256(Path(download.value.path()).read_bytes()).hexdigest() == video["sha256"]
        assert download.value.suggested_filename == f"{video['id']}.mp4"


def test_the_form_has_every_parameter_of_the_model_with_default_limits_and_help(chromium: Any, held: Served):
    [model] = held.http.get("/v1/models").json()["data"]
    with tab(chromium, held.url) as page:
        page.locator("#ask-prompt").wait_for()
        hidden = set()
        for parameter in model["parameters"]:
            field = page.locator(f"#ask-{parameter['name']}")
            hidden |= set() if field.is_visible() else {parameter["name"]}
            default = parameter["default"]
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert field.input_value() == ("" if default is None else shown)
            described = page.locator(f"#ask-{parameter['name']}-help").text_content()
            assert parameter["help"][1:] in described
            if parameter["maximum"] is not None and parameter["name"] != "seed":
                assert f"{parameter['minimum']:g} to {parameter['maximum']:g}" in described
            if parameter["choices"]:
                assert field.evaluate("at => [...at.options].map(each => each.value)") == parameter["choices"]
        assert hidden == {
            "negative_prompt", "guidance_scale", "fps", "scheduler", "flow_shift", "sigmas", "cache_interval",
            "max_sequence_length",
        }  # fmt: skip
        assert (
            page.locator("#ask .field").count() == len(model["parameters"]) + 1
        )  # and the model, hidden as it is the only one


def test_a_refusal_stands_as_a_sentence_at_its_field_and_is_gone_once_it_is_put_right(chromium: Any, held: Served):
    with tab(chromium, held.url, complaints=(REFUSED,)) as page:
        for name, wrong, words in (
            ("width", "33", "Width must be a multiple of 32; got 33; nearest: 32, 64."),
            ("sigmas", "1,2", "Noise levels must fall from at most 1 to above 0; got 1, 2."),  # in a closed part
            ("prompt", "", 'The prompt is empty; say what the video shows, for example "a red circle".'),
        ):
            fill(page)
            field = page.locator(f"#ask-{name}")
            field.evaluate("(at, wrong) => { at.value = wrong; }", wrong)
            press(page, "Make video")
            error = page.locator(f"#ask-{name}-error")
            error.wait_for()
            assert error.inner_text() == words and field.evaluate("at => at === document.activeElement")
            assert field.get_attribute("aria-invalid") == "true"
            assert f"ask-{name}-error" in field.get_attribute("aria-describedby").split()
            assert page.locator(".error:visible").count() == 1
        assert held.http.get("/v1/videos").json()["data"] == []
        fill(page)
        page.locator("#ask-sigmas").fill("")
        press(page, "Make video")
        page.locator("#queue-list li").wait_for()
        assert page.locator(".error:visible").count() == 0 == page.locator("[aria-invalid]").count()


def test_cancel_stops_what_runs_and_what_waits(chromium: Any, held: Served):
    with tab(chromium, held.url) as page:
        fill(page)
        press(page, "Make video")
        status(page, "First step")
        fill(page, RING)
        press(page, "Make video")
        page.locator("#queue-list").get_by_text("Waits behind 1 other video").wait_for()
        press(page, f"Cancel: {RING}")
        page.locator(".card").wait_for()
        press(page, "Cancel")
        held.gate.open()
        status(page, "Cancelled")
        page.locator("#queue").wait_for(state="hidden")
        assert page.locator(".card .meta").all_inner_texts() == ["Cancelled", "Cancelled"]
        assert {each["state"] for each in held.http.get("/v1/videos").json()["data"]} == {"cancelled"}


def test_a_reload_keeps_the_draft_the_video_and_its_preview(chromium: Any, held: Served):
    old = finished(held, prompt=RING)
    with tab(chromium, held.url) as page:
        fill(page, seed=11)
        press(page, "Make video")
        held.gate.allow(1)
        page.get_by_alt_text("Preview").wait_for()
        page.reload()
        page.get_by_alt_text("Preview").wait_for()  # no step ends in between
        assert page.locator("#ask-prompt").input_value() == CIRCLE and page.locator("#ask-seed").input_value() == "11"
        held.gate.open()
        status(page, "Finished")
        page.locator(".card").nth(1).click()
        assert page.locator("#viewer-title").inner_text() == RING and page.url == f"{held.url}/#{old['id']}"
        page.reload()
        page.locator("#viewer-title").get_by_text(RING).wait_for()


def test_delete_asks_first_and_removes_the_video_from_the_server(chromium: Any, held: Served):
    finished(held)
    with tab(chromium, held.url) as page:
        for answer in ("Keep it", "Escape", "Delete"):
            page.locator("#viewer-actions").get_by_role("button", name="Delete").click()
            dialog = page.get_by_role("dialog", name="Delete this video?")
            assert CIRCLE in dialog.inner_text()
            if answer == "Escape":
                page.keyboard.press("Escape")
            else:
                dialog.get_by_role("button", name=answer).click()
            dialog.wait_for(state="hidden")
            if answer != "Delete":
                assert page.evaluate("document.activeElement.textContent") == "Delete"
                assert len(held.http.get("/v1/videos").json()["data"]) == 1
        page.get_by_text("Finished videos stay here").wait_for()
        assert (
            held.http.get("/v1/videos").json()["data"] == []
            and page.locator("#viewer-title").inner_text() == "No video yet"
        )


def test_a_video_is_made_again_and_elsewhere(chromium: Any, held: Served):
    first = finished(held, seed=2**53 + 1, guidance_scale=2.5)
    with tab(chromium, held.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_text("Command line and Python").click()
        copied = []
        for name in ("Copy: Command line", "Copy: Python"):
            press(page, name)
            page.get_by_text("Copied", exact=True).nth(0).wait_for()
            copied.append(page.evaluate("navigator.clipboard.readText()"))
        assert shlex.split(copied[0])[:2] == ["mutoscope", "generate"] and "--seed=9007199254740993" in copied[0]
        assert "guidance_scale=2.5" in copied[1] and compile(copied[1], "copied", "exec")
        press(page, "Use these settings")
        assert page.locator("#ask-seed").input_value() == "9007199254740993"
        assert (
            page.locator("#ask-guidance_scale").input_value() == "2.5"
            and page.locator("#more").get_attribute("open") == ""
        )
        press(page, "Make again with another seed")
        held.gate.open()
        wait_for(lambda: page.locator(".card").count() == 2)
        second = held.http.get("/v1/videos").json()["data"][0]
        assert second["seed"] != first["seed"]
        assert second["request"] | {"seed": None} == first["request"] | {"seed": None}


def test_the_gallery_goes_back_to_the_oldest_video_and_a_link_leads_there_at_once(chromium: Any, held: Served):
    held.gate.open()
    ids = [held.make(num_inference_steps=1, prompt=RING if not number else CIRCLE)["id"] for number in range(26)]
    held.ended(ids[-1])
    with tab(chromium, f"{held.url}/#{ids[0]}") as page:
        page.locator("#viewer-title").get_by_text(RING).wait_for()
        press(page, "Show older videos")
        wait_for(lambda: page.locator(".card").count() == 26)
        assert page.locator(".card").last.get_attribute("aria-current") == "true"
        assert page.evaluate("[...document.querySelectorAll('.card')].indexOf(document.activeElement)") > 0


def test_another_model_keeps_what_was_changed_and_brings_its_own_defaults(
    chromium: Any, held: Served, monkeypatch: pytest.MonkeyPatch
):
    [(name, bundle)] = held.service.studio.bundles.items()
    defaults = msgspec.structs.replace(bundle.manifest.defaults, num_inference_steps=9)
    other = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, defaults=defaults))
    both = replace(held.service.studio, bundles={name: bundle, "other": other})
    monkeypatch.setattr(held.service.intake, "studio", both)
    with tab(chromium, held.url) as page:
        page.get_by_label("Model").wait_for()
        page.locator("#ask-width").fill("64")
        page.get_by_label("Model").select_option("other")
        assert (page.locator("#ask-width").input_value(), page.locator("#ask-height").input_value()) == ("64", "96")
        assert page.locator("#ask-num_inference_steps").input_value() == "9"
        page.reload()
        page.get_by_label("Model").wait_for()
        assert page.get_by_label("Model").input_value() == "other"
        assert page.locator("#ask-width").input_value() == "64"
        press(page, "Back to 96: Width")
        assert page.locator("#ask-width").input_value() == "96"


def test_a_server_that_is_started_again_goes_on_where_it_was(chromium: Any, tmp_path: Path):
    gone = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
    with running(tmp_path) as before:
        before.gate.close()
        port = int(before.url.rpartition(":")[2])
        context = tab(chromium, before.url, complaints=gone)
        page = context.__enter__()
        fill(page)
        press(page, "Make video")
        status(page, "First step")
        before.service.worker.end(timeout_s=0)  # within a step, that is
    page.get_by_text("The server does not answer. Trying again…").wait_for()
    press(page, "Make video")  # nobody is there to take it
    page.get_by_text("The server does not answer. Try again once it runs.").wait_for()
    with running(tmp_path, port=port) as after:
        status(page, "Finished")
        wait_for(lambda: page.locator("#connection").inner_text() == "")
        assert [each["state"] for each in after.http.get("/v1/videos").json()["data"]] == ["completed"]
        context.__exit__(None, None, None)


def test_a_token_is_asked_for_once_and_a_full_queue_is_told(chromium: Any, tmp_path: Path):
    refused = ("status of 401", "status of 429")
    with running(tmp_path, token=TOKEN, queue=1) as served, tab(chromium, served.url, complaints=refused) as page:
        served.gate.close()
        page.get_by_label("Token").fill("wrong")
        press(page, "Sign in")
        page.get_by_text("This is not the server's token.").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.locator("#ask-prompt").wait_for()
        page.reload()
        fill(page)
        press(page, "Make video")
        status(page, "First step")
        press(page, "Make video")
        alert = page.locator("#ask-error")
        alert.wait_for()
        assert alert.get_attribute("role") == "alert"
        assert re.fullmatch(r"1 videos wait or run already.*try again in \d+ s\.", alert.inner_text())
        press(page, "Sign out")
        page.locator("#token").wait_for()
        assert page.locator("#studio").is_hidden()
        assert page.evaluate("sessionStorage.length + localStorage.length") == 0  # no draft for who comes next


def test_everything_can_be_done_by_keyboard_and_focus_is_always_seen(chromium: Any, held: Served):
    with tab(chromium, held.url) as page:
        page.locator("#ask-prompt").wait_for()

        def go_to(selector: str, key: str = "Tab") -> None:
            for _ in range(40):
                if page.evaluate("to => document.activeElement.matches(to)", selector):
                    return
                page.keyboard.press(key)
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none" or page.evaluate("document.activeElement === document.body")
            raise AssertionError(f"no way to {selector}")

        go_to("#ask-prompt")
        page.keyboard.type(CIRCLE)
        for name in ("width", "height", "num_frames", "num_inference_steps"):
            go_to(f"#ask-{name}")
            page.keyboard.press("Control+A")
            page.keyboard.type(str(SMALL[name]))
        go_to("#more > summary")
        page.keyboard.press("Enter")
        page.locator("#ask-fps").wait_for()
        go_to("#ask button[type=submit]")
        page.keyboard.press("Enter")
        status(page, "First step")
        go_to("#viewer-actions button")
        held.gate.open()
        status(page, "Finished")
        assert page.evaluate("document.activeElement.id") == "viewer-title"  # the button that had it is gone
        go_to(".card")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "viewer-title"
        go_to("#viewer-actions .danger")
        page.keyboard.press("Enter")
        go_to("dialog .danger")
        page.keyboard.press("Enter")
        page.get_by_text("Finished videos stay here").wait_for()
        page.locator("#ask-prompt").press("Control+Enter")  # the draft is still there
        status(page, "Finished")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_of_360_pixels_shows_all_without_scrolling_sideways(chromium: Any, held: Served, scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    finished(held, prompt="w" * 60)
    settings = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme, "reduced_motion": "reduce"}
    with tab(chromium, held.url, **settings, complaints=(REFUSED,), is_mobile=True, has_touch=True) as page:
        page.locator("video").wait_for()
        assert page.evaluate("document.querySelector('video').paused")  # nothing moves unasked
        page.get_by_text("Command line and Python").tap()
        page.locator("pre").nth(1).wait_for()
        page.get_by_text("More settings").tap()
        page.get_by_text("What this model understands").tap()
        held.make(prompt="v" * 60), held.make()
        page.locator("#queue-list li").nth(1).wait_for()
        fill(page, width=33)
        press(page, "Make video")
        page.locator("#ask-width-error").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        small = """[...document.querySelectorAll("button, input, select, summary")]
            .filter(at => at.checkVisibility()).map(at => at.getBoundingClientRect())
            .filter(at => at.height < 24 || at.left < 0 || at.right > 360).length"""
        assert page.evaluate(small) == 0  # all can be hit by a finger
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
        found = axe.run(page)
        assert found.violations_count == 0, found.generate_report()


def test_a_screen_reader_is_told_names_and_what_happens(chromium: Any, held: Served):
    with tab(chromium, held.url) as page:
        fill(page)
        page.evaluate(
            "said = []; new MutationObserver(() => said.push(document.getElementById('announcer').textContent))"
            ".observe(document.getElementById('announcer'), {childList: true})"
        )
        press(page, "Make video")
        status(page, "First step")
        for step in range(1, 5):
            held.gate.allow(1)
            page.locator("#viewer-status").get_by_text(re.compile(f"Step {step} of 4|Finished")).wait_for()
        status(page, "Finished")
        told = page.evaluate("said")
        assert any(each.startswith("Step 2 of 4") for each in told) and told[-1].startswith("Finished")
        snapshot = page.locator("body").aria_snapshot()
        for part in (
            "- banner:", "- main:", '- form "New video"', f'- region "{CIRCLE}"', '- region "Gallery"',
            '- heading "Mutoscope" [level=1]', '- textbox "Prompt"', '- spinbutton "Width"',
            '- button "Make video"', '- link "Download"',
        ):  # fmt: skip
            assert part in snapshot, snapshot
        assert page.locator("#announcer").get_attribute("role") == "status"


def test_nothing_of_the_page_is_inline_or_from_elsewhere_and_every_file_is_short():
    for path in PAGE.iterdir():
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 400
        assert "innerHTML" not in text and "eval(" not in text
        assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}
    html = (PAGE / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
