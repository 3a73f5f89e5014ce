"""HTML pages from Jinja2 templates: one file each, without scripts, that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import functools
import re
import struct
from collections.abc import Mapping
from typing import Any

# A page may contain any text, but no control characters except tab and newline.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")


def render(template: str, **context: Any) -> str:
    """Return a complete HTML page from a template of this package, such as ``evaluation.html``.

    `context` are the variables of the template. Every text is escaped, so it may come from anyone.
    """
    page = _environment().get_template(template).render(context)
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", page.encode("utf-8", "replace").decode("utf-8"))


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("featurepress.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (count, data_uri, interval, percent, png_size, sentence, words)
    environment.filters |= {function.__name__: function for function in filters}
    return environment


def percent(share: float) -> str:
    """Return a share as a percentage: 0.931 is "93.1 %"."""
    return f"{100 * share:.1f} %"


def interval(ends: tuple[float, float]) -> str:
    """Return two shares as an interval: "91.0 to 94.8 %"."""
    return f"{100 * ends[0]:.1f} to {percent(ends[1])}"


def count(number: int) -> str:
    """Return a number with separators: 1234 is "1,234"."""
    return f"{number:,}"


def sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    ended = text if text.endswith((".", "!", "?")) else f"{text}."
    return ended[:1].upper() + ended[1:]


def words(value: Any, limit: int = 12) -> str:
    """Return a value of a JSON document in words; of a list the first `limit` items."""
    if isinstance(value, Mapping):
        return "; ".join(f"{str(key).replace('_', ' ')}: {words(item)}" for key, item in value.items()) or "—"
    if isinstance(value, list | tuple):
        first = ", ".join(map(words, value[:limit]))
        return first if len(value) <= limit else f"{first} and {len(value) - limit:,} more"
    if value is None or value == "":
        return "—"
    return count(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def data_uri(data: bytes, image_format: str) -> str:
    """Return an image as a ``data:`` address."""
    return f"data:image/{image_format};base64,{base64.b64encode(data).decode('ascii')}"


def png_size(png: bytes) -> tuple[int, int]:
    """Return width and height of a PNG in pixels, from its header."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height
