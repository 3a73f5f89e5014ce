"""Read the images that a feature set was embedded from again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from featurepress import ledger
from featurepress.embedding.inference import decode_images
from featurepress.ledger import Plan
from featurepress.ledger.names import shard_of
from featurepress.ledger.parts import open_part
from featurepress.specs import ImageRef

if TYPE_CHECKING:
    from featurepress.specs import Pixels


def read_originals(plan: Plan, parts: Iterable[str], uris: Collection[str]) -> Iterator[tuple[str, Pixels]]:
    """Yield images, arrays (H, W, 3) uint8, RGB, by their uris in the order of the rows. Skip unreadable ones.

    `plan` is that of an embedded feature set, not of a reduced one; see `featurepress.features.embedded_set`. The
    parts with these names are read in order until all uris are found. Memory: the references of one part, and the
    images that are read ahead.
    """
    wanted = set(uris)
    for name in parts:
        if not wanted:
            return
        found = [ref for ref in _references(plan, name) if ref.uri in wanted]
        wanted.difference_update(ref.uri for ref in found)
        yield from _read(plan, found)


def read_part_originals(plan: Plan, name: str) -> Iterator[tuple[str, Pixels]]:
    """Yield the images of one part, as `read_originals` does, in the order of the listing."""
    return _read(plan, _references(plan, name))


def _read(plan: Plan, refs: list[ImageRef]) -> Iterator[tuple[str, Pixels]]:
    return ((ref.uri, pixels) for ref, pixels in decode_images(plan.sources, plan.settings, refs))


def _references(plan: Plan, name: str) -> list[ImageRef]:
    """Return the references of a part, as listed by the generation that wrote it."""
    shard = shard_of(name)
    with open_part(plan.storage, shard) as part:
        generation = plan.generation if part is None else part.account.receipt.generation
    return ledger.read_references(ledger.read_generation(plan.storage, generation) or plan, shard).refs
