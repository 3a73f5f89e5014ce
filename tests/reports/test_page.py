"""A report is one accessible file that loads nothing, runs nothing, and shows any text as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featurepress.reports.page import sentence, words
from featurepress.reports.report import evaluation_page
from tests.browser import DESKTOP, PHONE, opened
from tests.reports.documents import BAD, QUOTES, Album, Outline, labelled, made, outline, reduced

SAFE = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "section",
    "h1",
    "h2",
    "p",
    "ul",
    "li",
    "div",
    "br",
}
SAFE |= {"dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "strong", "figure"}
SAFE |= {"figcaption", "img"}


def test_headings_tables_and_plots_are_labelled() -> None:
    page = outline(made())
    assert page.tags[0] == ("html", {"lang": "en"})
    assert [len(page.all(tag)) for tag in ("title", "h1", "main")] == [1, 1, 1]
    ids = [attributes["id"] for attributes in page.all("h2")]
    assert [attributes["aria-labelledby"] for attributes in page.all("section")] == ids
    assert len(set(ids)) == len(ids) > 5
    assert {attributes["scope"] for attributes in page.all("th")} == {"col", "row"}
    assert len(page.all("caption")) == len(page.all("table")) > 3
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert all(attributes["aria-label"] for attributes in page.all("div") if "tabindex" in attributes)
    assert {attributes["name"] for attributes in page.all("meta") if "name" in attributes} == {"viewport"}


def test_plots_are_shown_at_half_their_size() -> None:
    variance, chart = Outline(reduced()).all("img")
    assert (variance["width"], variance["height"], chart["width"]) == ("900", "380", "880")


@pytest.mark.parametrize("text", [BAD, QUOTES, "</style></title>", "苹果 \U0001f34e", "&lt;", "{{ 1 }}{% raw %}"])
def test_any_text_is_shown_as_it_is(text: str) -> None:
    plain, page = outline(labelled("PLAIN")), outline(labelled(text))
    assert [name for name, _ in page.tags] == [name for name, _ in plain.tags]
    assert "".join(page.texts).count(text) == "".join(plain.texts).count("PLAIN") > 10
    assert any(text in str(image["alt"]) for image in page.all("img"))


def test_characters_that_a_page_cannot_contain_are_replaced() -> None:
    page = evaluation_page(labelled("a\x00b\x1b[31m\ud800c"), Album())
    assert "a�b�[31m?c" in Outline(page).text
    page.encode()


@pytest.mark.parametrize("page", [evaluation_page(labelled(BAD), Album()), reduced(BAD)])
def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    parsed = Outline(page)
    (policy,) = (attributes["content"] for attributes in parsed.all("meta") if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {name for name, _ in parsed.tags} <= SAFE
    assert all(str(attributes["src"]).startswith("data:image/") for attributes in parsed.all("img"))
    assert not re.search(r"https?://|url\(|@import", page)
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]


def test_values_become_words() -> None:
    assert words({"n_samples": 900, "features": ""}) == "n samples: 900; features: —"
    assert (words([1, 2, 3], 2), words(True), words(None)) == ("1, 2 and 1 more", "True", "—")
    assert (sentence("a word"), sentence("Ended."), sentence("")) == ("A word.", "Ended.", ".")


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_long_words_and_wide_tables_do_not_widen_the_page(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "report 'of' \"fruit\".html"
    long = "a word that is " + "very" * 40 + " long"
    path.write_text(evaluation_page(labelled(long), Album()), encoding="utf-8")
    with opened(path.as_uri(), size=size) as found:
        assert (found.overflow_px, found.broken_images, found.complaints) == (0, [], [])
        assert found.requests == [found.page.url]


def test_a_browser_runs_no_injected_script(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(reduced().replace("<h1>", "<script>document.title = 'bad'</script><h1>"), encoding="utf-8")
    with opened(path.as_uri()) as found:
        assert found.page.title() == "Reduction to 5 components"
        assert "Content Security Policy" in found.complaints[0]


def test_colours_follow_the_preferred_scheme(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(reduced(), encoding="utf-8")
    text, back = "getComputedStyle(document.body).color", "getComputedStyle(document.body).backgroundColor"
    sums = []
    for scheme in ("light", "dark"):
        with opened(path.as_uri(), scheme=scheme) as found:
            colours = [found.page.evaluate(expression) for expression in (text, back)]
            sums.append([sum(map(int, re.findall(r"\d+", colour))) for colour in colours])
            plot = found.page.locator(".plot").first
            assert plot.evaluate("element => getComputedStyle(element).backgroundColor") == "rgb(255, 255, 255)"
    (light_text, light_back), (dark_text, dark_back) = sums
    assert max(light_text, dark_back) < 200
    assert min(light_back, dark_text) > 600
