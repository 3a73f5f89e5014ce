"""A page of HTML in one file: sections, figures, tables, pictures; no scripts, nothing from anywhere else."""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Whatever a label holds, a browser loads and runs nothing: pictures are within, and there are no scripts.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5b636d; --back: #f6f7f9; --card: #ffffff;
  --line: #dfe3e8; --mark: #1f5fa8; --bad: #b3401a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --soft: #a2abb5; --back: #15181c; --card: #1f2329;
  --line: #343a42; --mark: #7fb2e5; --bad: #f0956f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 56px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.2rem; margin: 44px 0 12px; padding-top: 14px; border-top: 1px solid var(--line); }
p, ul { max-width: 74ch; margin: 0 0 14px; }
.lead, figcaption, caption, dd.detail { color: var(--soft); }
dl.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); gap: 12px;
  margin: 20px 0; }
dl.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
dl.figures dt { color: var(--soft); font-size: 0.9rem; }
dl.figures dd { margin: 0; font-size: 0.85rem; }
dl.figures dd.value { font-size: 1.75rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
dl.figures dd.absent { color: var(--bad); }
.scroll { overflow-x: auto; margin: 0 0 18px; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); }
table { border-collapse: collapse; min-width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; padding: 10px 14px; font-size: 0.88rem; }
caption span { display: block; max-width: min(100%, 100vw - 60px); position: sticky; left: 14px; }
th, td { text-align: left; padding: 6px 14px; border-top: 1px solid var(--line); vertical-align: top; }
thead th { font-weight: 600; }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
td.long, th.long { overflow-wrap: anywhere; min-width: 14ch; }
figure { margin: 0 0 18px; }
.plot { width: fit-content; max-width: 100%; overflow-x: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 8px; padding: 10px; }
.plot img { display: block; max-width: 100%; height: auto; }
@media (max-width: 640px) { .plot img { max-width: max(100%, 600px); } main { padding: 20px 14px 40px; }
  table { font-size: 0.85rem; } th, td { padding: 5px 8px; } caption { padding: 8px; } caption span { left: 8px; } }
figcaption { font-size: 0.88rem; padding-top: 6px; max-width: 80ch; }
ul.tiles { list-style: none; padding: 0; max-width: none; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(152px, 1fr)); }
ul.tiles figure { margin: 0; height: 100%; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; overflow: hidden; }
ul.tiles img, ul.tiles .absent { display: flex; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: #ffffff; color: #5b636d; }
ul.tiles .absent { align-items: center; justify-content: center; text-align: center; padding: 12px;
  font-size: 0.85rem; background: #eceef1; }
ul.tiles figcaption { padding: 8px 10px 10px; line-height: 1.4; }
ul.tiles strong { color: var(--ink); }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
@media print { body { background: #ffffff; } .scroll, .plot { overflow: visible; } }
"""


@dataclass(frozen=True)
class Figure:
    """A number that matters: what it is, its value, and what is to be said of it.

    Attributes
    ----------
    name, value, detail : str
        In words; the detail may be "".
    is_absent : bool
        Whether the value says that there is none.
    """

    name: str
    value: str
    detail: str = ""
    is_absent: bool = False


@dataclass(frozen=True)
class Tile:
    """A small picture with its caption.

    Attributes
    ----------
    jpeg : bytes or None
        The picture; None shows a box that says that there is none.
    alt : str
        What it shows, for those who do not see it.
    title : str
        The first line below it.
    lines : tuple of str
        The lines after that.
    """

    jpeg: bytes | None
    alt: str
    title: str
    lines: tuple[str, ...] = ()


class Page:
    """A page that is written from top to bottom.

    Every text that it is given may be anyone's: all are escaped.

    Parameters
    ----------
    title : str
        Its heading, and the name of the browser's tab.
    lead : str
        What it is about, in a sentence.

    Examples
    --------
    >>> page = Page("Fruit", lead="How well apples are told from pears.")
    >>> page.section("Data")
    >>> page.text("The pictures are <small>.")
    >>> "The pictures are &lt;small&gt;." in page.html()
    True
    """

    def __init__(self, title: str, *, lead: str = "") -> None:
        self._title, self._parts, self._n_sections = _escaped(title), [f"<h1>{_escaped(title)}</h1>"], 0
        if lead:
            self._parts.append(f'<p class="lead">{_escaped(lead)}</p>')

    def section(self, title: str) -> None:
        """Begin a section with a heading."""
        end = "</section>\n" if self._n_sections else ""
        self._n_sections += 1
        own = f"section-{self._n_sections}"
        self._parts.append(f'{end}<section aria-labelledby="{own}">\n<h2 id="{own}">{_escaped(title)}</h2>')

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{_escaped(text)}</p>")

    def points(self, texts: Iterable[str]) -> None:
        """Add a list of sentences."""
        items = "".join(f"<li>{_escaped(text)}</li>" for text in texts)
        self._parts.append(f"<ul>{items}</ul>")

    def figures(self, figures: Iterable[Figure]) -> None:
        """Add numbers that matter, side by side."""
        cards = []
        for one in figures:
            kind = "value absent" if one.is_absent else "value"
            detail = f'<dd class="detail">{_escaped(one.detail)}</dd>' if one.detail else ""
            cards.append(
                f'<div><dt>{_escaped(one.name)}</dt><dd class="{kind}">{_escaped(one.value)}</dd>{detail}</div>'
            )
        self._parts.append(f'<dl class="figures">{"".join(cards)}</dl>')

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, n_words: int = 1
    ) -> None:
        """Add a table.

        Parameters
        ----------
        columns : sequence of str
            Its headings; no line of headings if all are "".
        rows : iterable of sequence of str
            A text a column; the first names the row.
        caption : str
            What it shows.
        n_words : int
            So many columns hold words, and the others numbers, which stand to the right.
        """
        kinds = ["long" if i < n_words else "number" for i in range(len(columns))]
        heads = zip(kinds, columns, strict=True)
        head = "".join(f'<th scope="col" class="{kind}">{_escaped(text)}</th>' for kind, text in heads)
        head = f"<thead><tr>{head}</tr></thead>\n" if any(columns) else ""
        body = []
        for first, *others in rows:
            cells = zip(kinds[1:], others, strict=True)
            rest = "".join(f'<td class="{kind}">{_escaped(text)}</td>' for kind, text in cells)
            body.append(f'<tr><th scope="row" class="{kinds[0]}">{_escaped(first)}</th>{rest}</tr>\n')
        label = f'role="region" tabindex="0" aria-label="{_escaped(caption)}"'
        self._parts.append(
            f'<div class="scroll" {label}>\n<table>\n<caption><span>{_escaped(caption)}</span></caption>\n'
            f"{head}<tbody>\n{''.join(body)}</tbody>\n</table>\n</div>"
        )

    def facts(self, facts: Mapping[str, str], *, caption: str) -> None:
        """Add a table of names and what they are."""
        self.table(("", ""), list(facts.items()), caption=caption, n_words=2)

    def picture(self, png: bytes, *, alt: str, caption: str = "") -> None:
        """Add a picture of twice the dots that it is shown with; on a narrow screen it scrolls in its own box."""
        width, height = struct.unpack(">II", png[16:24])  # where every PNG has them
        size = f'width="{width // 2}" height="{height // 2}"'
        said = f"<figcaption>{_escaped(caption)}</figcaption>" if caption else ""
        box = f'<div class="plot" role="group" tabindex="0" aria-label="{_escaped(alt)}">'
        self._parts.append(
            f'<figure>{box}<img src="{_inline("png", png)}" alt="{_escaped(alt)}" {size}></div>{said}</figure>'
        )

    def tiles(self, tiles: Iterable[Tile]) -> None:
        """Add small pictures with captions, as many a line as there is room for."""
        items = []
        for one in tiles:
            shown = '<div class="absent">picture not available</div>'
            if one.jpeg is not None:
                shown = f'<img src="{_inline("jpeg", one.jpeg)}" alt="{_escaped(one.alt)}">'
            lines = "".join(f"<br>{_escaped(line)}" for line in one.lines)
            caption = f"<figcaption><strong>{_escaped(one.title)}</strong>{lines}</figcaption>"
            items.append(f"<li><figure>{shown}{caption}</figure></li>\n")
        self._parts.append(f'<ul class="tiles">\n{"".join(items)}</ul>')

    def html(self) -> str:
        """Give the page: one file, which needs no other and no network."""
        end = "\n</section>" if self._n_sections else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{self._title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(self._parts)
            + f"{end}\n</main>\n</body>\n</html>\n"
        )


def _escaped(text: str) -> str:
    """Give a text as HTML shows it; what UTF-8 cannot hold, or HTML must not, becomes a replacement character."""
    known = str(text).encode("utf-8", "replace").decode("utf-8")
    clean = "".join(one if one >= " " or one in "\t\n" else "\N{REPLACEMENT CHARACTER}" for one in known)
    return html.escape(clean, quote=True)


def _inline(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
