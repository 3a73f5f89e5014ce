"""Read again the images that rows of a feature set were embedded from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from featurepress import ledger
from featurepress.embedding.inference import decode_images
from featurepress.ledger import Plan
from featurepress.ledger.names import shard_of
from featurepress.ledger.parts import PartFormat
from featurepress.specs import ImageRef

if TYPE_CHECKING:
    from featurepress.specs import Pixels


def read_originals(plan: Plan, parts: Iterable[str], uris: Collection[str]) -> Iterator[tuple[str, Pixels]]:
    """Yield images by their uris, in the order of the rows; those that cannot be read any more are left out.

    Parameters
    ----------
    plan : Plan
        Of an embedded feature set, not of a reduced one; see `featurepress.features.embedded_set`.
    parts : iterable of str
        Names of the parts to look in.
    uris : collection of str
        Of some of its rows.

    Yields
    ------
    uri, pixels
        Pixels: array (H, W, 3) uint8, RGB.

    Notes
    -----
    Parts are read in order until all uris are found. Memory: the references of one part, and the images read ahead.
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
    for ref, pixels in decode_images(plan.sources, plan.settings, refs):
        yield ref.uri, pixels


def _references(plan: Plan, name: str) -> list[ImageRef]:
    """Return what a part was embedded from, as its own generation listed it."""
    shard = shard_of(name)
    part_format = PartFormat(plan.field_names, plan.backbone.n_features)
    with part_format.open(plan.storage, shard) as standing:
        generation = plan.generation if standing is None else standing.account.receipt.generation
    own: Plan | None = ledger.read_generation(plan.storage, generation)
    return list(ledger.read_references(own or plan, shard).refs)
