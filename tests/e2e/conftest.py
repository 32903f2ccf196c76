"""The demo, once for all end-to-end tests, and a headless browser that is logged in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from backend.bootstrap.environments import BY_HAND, find_browser
from backend.processes.embedded_redis import free_port
from tests.support.running_demo import RunningDemo

IMAGES = 4
# Minutes of training are for people; here only the way there and back counts.
SHORT_TRAINING = '{"iterations": 4, "batch_size": 2}'
PATIENCE_MS = 240_000  # Label Studio's pages take 6 s on an idle machine; nothing here waits longer than it must
BROWSER_FLAGS = (
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a page crashes where it is small
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDemo]:
    """`transfiner demo` in an empty folder on free ports, with the model that ships."""
    running = RunningDemo(tmp_path_factory.mktemp("e2e"), free_port(), free_port(), IMAGES)
    if not os.environ.get("TRANSFINER_FIRST_HOUR"):
        running.variables["TRANSFINER_FINETUNE_OPTIONS"] = SHORT_TRAINING
    try:
        running.start()
        yield running
    finally:
        if running.process is not None:
            running.stop()


@pytest.fixture
def page(demo: RunningDemo, tmp_path: Path) -> Iterator[Page]:
    """A page of Chromium, logged in to the demo's Label Studio."""
    browser = find_browser()
    if browser is None:
        # Continuous integration installs one; a person without root rights is told what to type.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no Chromium: {BY_HAND}")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=browser,
            args=BROWSER_FLAGS,
            headless=True,
            viewport={"width": 1440, "height": 900},
            timeout=PATIENCE_MS,
        )
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        opened = context.pages[0]
        opened.goto(f"{demo.url}/user/login/")
        opened.fill("input[name=email]", demo.email)
        opened.fill("input[name=password]", demo.password)
        opened.click("button[type=submit]")
        opened.wait_for_url(lambda url: "login" not in url)
        yield opened
        context.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of the editor are kept for people to look at."""
    folder = Path(__file__).resolve().parents[2] / "output" / "e2e"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
