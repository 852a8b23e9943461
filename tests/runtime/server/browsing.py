"""Debian's Chromium, driven by Playwright, for tests of the page; what it complains about fails them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.runtime.server.served import CIRCLE, SMALL, Served

REQUIRED = "MUTOSCOPE_REQUIRE_BROWSER"  # set in CI: without a browser the tests then fail instead of being skipped


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; skips where there is none, or no Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("playwright: pip install playwright")
    program = shutil.which("chromium")
    if program is None:
        _without("chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        # Chromium has no sandbox for root.
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=60_000)
        yield found
        found.close()


@contextmanager
def tab(chromium: Any, url: str, *, complaints: tuple[str, ...] = (), **settings: Any) -> Iterator[Any]:
    """A page in a profile of its own. At its end nothing may have gone wrong in it, or been asked of another server.

    Args:
        url: of the page; its server is the only one that may be asked.
        complaints: parts of what its console may say beside, as a browser reports each refused request there.
        settings: of the browser's context.
    """
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
    context.set_default_timeout(20_000)
    said: list[str] = []
    asked: set[str] = set()
    page = context.new_page()
    page.on("console", lambda message: message.type in ("error", "warning") and said.append(message.text))
    page.on("pageerror", lambda error: said.append(f"uncaught: {error}"))
    page.on("request", lambda request: asked.add(request.url))
    try:
        page.goto(url)
        yield page
        assert [each for each in said if not any(part in each for part in complaints)] == []
        own = url.partition("#")[0]
        assert {each for each in asked if not each.startswith((own, f"blob:{own}", "data:"))} == set()
    finally:
        context.close()


def fill(page: Any, prompt: str = CIRCLE, **values: Any) -> None:
    page.locator("#ask-prompt").fill(prompt)
    for name, value in ({key: value for key, value in SMALL.items() if key != "seed"} | values).items():
        page.locator(f"#ask-{name}").fill(str(value))


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def status(page: Any, words: str) -> None:
    """Waits until the video that is looked at is so far."""
    page.locator("#viewer-status").get_by_text(words).wait_for()


def asked(studio: Served) -> list[dict[str, Any]]:
    """The requests of all videos, the newest first."""
    return [each["request"] for each in studio.http.get("/v1/videos").json()["data"]]


def _without(what: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(f"needs {what}")
    pytest.skip(f"needs {what}")
