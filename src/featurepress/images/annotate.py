"""Draw boxes with labels into a copy of an image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from featurepress.specs import Pixels

    Box = tuple[int, int, int, int]

_MAX_SIDE_PX = 65_500  # of a JPEG
_COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b")


def annotate(pixels: Pixels, boxes: Sequence[tuple[Box, str]]) -> bytes:
    """Return a copy of an image as JPEG with labelled boxes; smaller if the image is too large for JPEG.

    Parameters
    ----------
    pixels : array (H, W, 3) uint8
        RGB.
    boxes : sequence of ((left, top, right, bottom), str)
        In pixels, right and bottom exclusive. Texts that differ only in the last word have the same colour.
    """
    image = Image.fromarray(pixels)
    draw, short = ImageDraw.Draw(image), min(image.size)
    font, line = ImageFont.load_default(max(10, short // 28)), max(1, short // 150)
    names = list(dict.fromkeys(text.rpartition(" ")[0] for _, text in boxes))
    for (left, top, right, bottom), text in boxes:
        colour = _COLOURS[names.index(text.rpartition(" ")[0]) % len(_COLOURS)]
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line)
        label = draw.textbbox((left + line, top + line), text, font=font)
        draw.rectangle((left, top, label[2] + line, label[3] + line), fill=colour)
        draw.text((left + line, top + line), text, fill="white", font=font)
    image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
