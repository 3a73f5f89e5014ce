"""A browser for tests: opens a page without a window, and notes what the page asks for and complains of."""

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
_BROKEN = "[...document.images].filter(one => !(one.complete && one.naturalWidth)).map(one => one.alt)"


@dataclass(frozen=True)
class Opened:
    """A page in the browser.

    Attributes
    ----------
    page : Page
        Playwright's.
    asked_for : list of str
        Every address that was asked for, but those within the page itself (``data:``).
    complaints : list of str
        What stood in its console as a warning or an error, and errors of its scripts.
    """

    page: Page
    asked_for: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def overflow_px(self) -> int:
        """How much wider the page is than the window: 0 unless it scrolls sideways."""
        return int(self.page.evaluate(_OVERFLOW))

    @property
    def broken_pictures(self) -> list[str]:
        """What the pictures that cannot be shown should show."""
        return list(self.page.evaluate(_BROKEN))


@contextlib.contextmanager
def opened(
    address: str, *, size: tuple[int, int] = DESKTOP, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Opened]:
    """Open a page in a browser of its own, which ends with the block; skip the test if there is none here.

    Parameters
    ----------
    address : str
        Where the page is: ``file:///…`` or ``http://127.0.0.1:…``.
    size : tuple of int
        Width and height of the window in pixels.
    scheme : str
        Which colours the reader prefers.
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
            page.on("request", lambda request: _note(found.asked_for, request.url))
            page.on("console", lambda said: _complain(found, said.type, said.text))
            page.on("pageerror", lambda error: found.complaints.append(str(error)))
            page.goto(address)
            yield found
        finally:
            browser.close()


def _note(asked_for: list[str], url: str) -> None:
    if not url.startswith("data:"):
        asked_for.append(url)


def _complain(found: Opened, kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        found.complaints.append(text)
