"""A real browser for pages that must work offline."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=[*quiet, "--disable-sync", "--no-first-run"])
        yield running
        running.close()


@pytest.fixture
def opened(browser, page_file, request):
    """Opens the module's `page_file` offline and waits for its DRAWN; in the end nothing was requested or wrong."""
    complaints, contexts = [], []

    def open_page(viewport=DESKTOP, **options):
        contexts.append(browser.new_context(viewport=viewport, offline=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("data:", "file:")) or complaints.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_selector(request.module.DRAWN)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
