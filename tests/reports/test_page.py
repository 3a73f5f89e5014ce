"""A page is one file that asks for nothing, says what it was given and no more, and can be read by anyone."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from featurepress.reports.page import Figure, Page, Tile
from tests.browser import DESKTOP, PHONE, opened

BAD = "<script>alert(1)</script>"
QUOTES = "a \"b\" 'c' & <i>d</i>.jpg"
VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Reads a page: its tags with what is said of them, its texts, and whether every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [said for name, said in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def picture(kind: str = "PNG", size: tuple[int, int] = (1_800, 760)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "#336699").save(buffer, kind)
    return buffer.getvalue()


def whole(text: str = "plain") -> Page:
    """Write a page with one of everything, the same text everywhere."""
    page = Page(text, lead=text)
    page.section(text)
    page.text(text)
    page.points([text, text])
    page.figures([Figure(text, "93.1 %", text), Figure(text, text, is_absent=True)])
    page.table((text, "n", "share"), [(text, "1", text), ("b", "2", "3")], caption=text)
    page.facts({text: text}, caption=text)
    page.section("more")
    page.picture(picture(), alt=text, caption=text)
    page.tiles([Tile(picture("JPEG", (64, 64)), text, text, (text, text)), Tile(None, text, text)])
    return page


def test_the_parts_are_what_they_should_be() -> None:
    page = Outline(whole().html())
    assert page.tags[0] == ("html", {"lang": "en"})
    assert [len(page.all(tag)) for tag in ("title", "h1", "h2", "section", "main")] == [1, 1, 2, 2, 1]
    own = [said["id"] for said in page.all("h2")]
    assert [said["aria-labelledby"] for said in page.all("section")] == own
    assert len(set(own)) == 2
    assert [said["scope"] for said in page.all("th")] == ["col"] * 3 + ["row"] * 3
    assert len(page.all("caption")) == len(page.all("table")) == 2
    assert [len(page.all(tag)) for tag in ("dt", "dd", "li", "figure", "figcaption")] == [2, 3, 4, 3, 3]
    assert "picture not available" in page.text
    assert {said["name"]: said["content"] for said in page.all("meta") if "name" in said} == {
        "viewport": "width=device-width, initial-scale=1"
    }


def test_pictures_are_within_and_shown_at_half_their_size() -> None:
    plot, tile = Outline(whole("a plot").html()).all("img")
    assert (plot["alt"], plot["width"], plot["height"]) == ("a plot", "900", "380")
    for said, kind, data in ((plot, "png", picture()), (tile, "jpeg", picture("JPEG", (64, 64)))):
        head, _, encoded = str(said["src"]).partition(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(encoded) == data


@pytest.mark.parametrize("text", [BAD, QUOTES, "</style></title>", "苹果 \U0001f34e", "&lt;"])
def test_anyones_text_is_shown_as_it_is(text: str) -> None:
    plain, page = Outline(whole().html()), Outline(whole(text).html())
    assert [name for name, _ in page.tags] == [name for name, _ in plain.tags]
    assert "".join(page.texts).count(text) == "".join(plain.texts).count("plain")
    assert {said["alt"] for said in page.all("img")} == {text}
    assert page.all("div")[2]["aria-label"] == text


def test_what_no_page_can_hold_is_replaced() -> None:
    page = Outline(whole("a\x00b\x1b[31m\ud800c").html())
    assert page.all("img")[0]["alt"] == "a�b�[31m?c"
    whole("\udcff").html().encode()


def test_nothing_comes_from_elsewhere() -> None:
    text = whole(BAD).html()
    page = Outline(text)
    (policy,) = (said["content"] for said in page.all("meta") if "http-equiv" in said)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "link", "iframe", "a", "object"} & {name for name, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import", text)
    assert not [name for _, said in page.tags for name in said if name.startswith("on")]


def test_a_page_of_nothing_but_a_title() -> None:
    page = Outline(Page("empty").html())
    assert (page.all("section"), page.text) == ([], "empty empty")


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_a_browser_shows_it(tmp_path: Path, size: tuple[int, int]) -> None:
    page = whole("a word that is " + "very" * 40 + " long")
    columns = [f"column {i}" for i in range(30)]
    page.table(columns, [["a number"] * 30], caption="wider than the window")
    page.picture(picture(size=(4_000, 1_000)), alt="wider than the window")
    path = tmp_path / "page.html"
    path.write_text(page.html(), encoding="utf-8")
    with opened(path.as_uri(), size=size) as found:
        assert (found.overflow_px, found.broken_pictures, found.complaints) == (0, [], [])
        assert found.asked_for == [path.as_uri()]
        table = found.page.locator(".scroll").last
        assert table.evaluate("one => one.scrollWidth > one.clientWidth")


def test_a_browser_runs_no_script_even_if_one_came_in(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(Page("safe").html().replace("<h1>", "<script>document.title = 'bad'</script><h1>"))
    with opened(path.as_uri()) as found:
        assert found.page.title() == "safe"
        assert "Content Security Policy" in found.complaints[0]


def test_the_colours_are_those_that_the_reader_prefers(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(whole().html())
    ink, back = "getComputedStyle(document.body).color", "getComputedStyle(document.body).backgroundColor"
    seen = []
    for scheme in ("light", "dark"):
        with opened(path.as_uri(), scheme=scheme) as found:
            seen.append([sum(map(int, re.findall(r"\d+", found.page.evaluate(one)))) for one in (ink, back)])
            plots = found.page.locator(".plot").first
            assert plots.evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(255, 255, 255)"
    (light_ink, light_back), (dark_ink, dark_back) = seen
    assert max(light_ink, dark_back) < 200
    assert min(light_back, dark_ink) > 600
