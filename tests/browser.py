"""A headless browser for tests: opens a page, and records its requests, warnings and errors."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHONE, DESKTOP = (390, 844), (1280, 800)

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_BROKEN = "[...document.images].filter(image => !(image.complete && image.naturalWidth)).map(image => image.alt)"


@dataclass(frozen=True)
class Opened:
    """A page in the browser.

    Attributes
    ----------
    page : Page
        The page object of Playwright.
    requests : list of str
        Every requested address except ``data:`` addresses.
    complaints : list of str
        Warnings and errors of the console, and errors of scripts.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def overflow_px(self) -> int:
        """Width of the page beyond the window: 0 unless it scrolls sideways."""
        return int(self.page.evaluate(_OVERFLOW))

    @property
    def broken_images(self) -> list[str]:
        """Alternative texts of images that cannot be shown."""
        return list(self.page.evaluate(_BROKEN))


@contextlib.contextmanager
def opened(
    address: str, *, size: tuple[int, int] = DESKTOP, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Opened]:
    """Open a page in a new browser, which closes with the block; skip the test without Chromium or Playwright.

    Parameters
    ----------
    address : str
        Address of the page: ``file:///…`` or ``http://127.0.0.1:…``.
    size : tuple of int
        Width and height of the window in pixels.
    scheme : str
        Preferred colour scheme.
    """
    reason = "needs playwright: pip install playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        try:
            viewport = {"width": size[0], "height": size[1]}
            page = browser.new_page(viewport=viewport, color_scheme=scheme)
            found = Opened(page)
            page.on("request", lambda request: _note(found.requests, request.url))
            page.on("console", lambda message: _complain(found, message.type, message.text))
            page.on("pageerror", lambda error: found.complaints.append(str(error)))
            page.goto(address)
            yield found
        finally:
            browser.close()


def _note(requests: list[str], url: str) -> None:
    if not url.startswith("data:"):
        requests.append(url)


def _complain(found: Opened, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        found.complaints.append(text)
