"""Embed the images of a shard one by one in child processes, after the shard has killed workers."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

from featurepress.embedding.inference import Decoder, empty_batch, infer
from featurepress.embedding.reading import content_of, read_images
from featurepress.embedding.shard_rows import ShardRows
from featurepress.errors import ImageError
from featurepress.images import preprocess
from featurepress.ledger import Plan
from featurepress.ledger.parts import Row
from featurepress.models.backbone import load_backbone
from featurepress.process import Child, ChildDiedError, send_message
from featurepress.specs import ImageRef


def embed_one_by_one(plan: Plan, shard: ShardRows, decoder: Decoder) -> str:
    """Embed a shard image by image in child processes, and return the precision.

    An image that kills two children in a row becomes a failure. The features equal those of batches bit for bit.
    """
    precision = plan.precision
    with contextlib.closing(_Children()) as children:
        for ref in shard.refs:
            try:
                row, features, n_bytes, precision = _embed_isolated(plan, ref, decoder, children)
                shard.bytes_read += n_bytes
                if not shard.is_unchanged(ref, row.sha256):
                    shard.add([row], features)
            except ImageError as error:
                shard.fail(ref, error)
    return precision


def _embed_isolated(plan: Plan, ref: ImageRef, decoder: Decoder, children: _Children) -> Any:
    reason = ""
    for _ in range(2):
        send_message(("alive",))  # each attempt may take all of the silence that the engine allows
        try:
            return children.current().call(
                embed_one, plan, ref, decoder, silence_seconds=plan.settings.images.silence_seconds
            )
        except ChildDiedError as death:
            children.close()
            reason = str(death)
    raise ImageError("decode", f"decoder crashed: its process {reason}, twice")


def embed_one(plan: Plan, ref: ImageRef, decoder: Decoder) -> tuple[Row, Any, int, str]:
    """Embed a single image. Return its row, features (1, n_features), number of bytes, and precision."""
    ((_, data),) = read_images(plan.sources, plan.settings, [ref])
    content = content_of(data)
    backbone = load_backbone(plan.backbone, plan.precision)
    batch = empty_batch(plan.backbone, backbone.batch_size)
    pixels = decoder(content, max_pixels=plan.settings.images.max_pixels)
    preprocess(pixels, plan.backbone.preprocess, batch[0])
    features = infer(backbone, batch)[:1].copy()
    height, width = pixels.shape[:2]
    row = Row(ref, width, height, hashlib.sha256(content).hexdigest())
    return row, features, len(content), backbone.precision


class _Children:
    """One child process at a time."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def current(self) -> Child:
        """Return the child; start one if there is none."""
        self._child = self._child or Child()
        return self._child

    def close(self) -> None:
        """Stop the child, if there is one."""
        if self._child is not None:
            self._child.close(patience_seconds=0.5)
            self._child = None
