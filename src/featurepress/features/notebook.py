"""How results show themselves in a notebook: a title, facts, and a few rows, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

N_ROWS = 5
_MAX_CHARACTERS = 80


def to_html(title: str, facts: Mapping[str, object], rows: Iterable[Mapping[str, object]] = ()) -> str:
    """Return a title, a table of facts, and a table of rows as HTML; all text is escaped.

    All rows have the same columns, in the order of the first.
    """
    lines = "".join(f"<tr><th>{_text(name)}</th><td>{_escaped(value)}</td></tr>" for name, value in facts.items())
    html = f"<p><b>{_text(title)}</b></p><table>{lines}</table>"
    table = list(rows)
    if not table:
        return html
    head = "".join(f"<th>{_text(name)}</th>" for name in table[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row.values()) + "</tr>" for row in table
    )
    return f"{html}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    """Return a value of a row, cut to a readable length."""
    text = str(value)
    return _escaped(text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…")


def _escaped(value: object) -> str:
    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
