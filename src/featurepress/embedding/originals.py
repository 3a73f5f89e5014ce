"""Read again the pictures that rows of a feature set were pressed from."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from featurepress import ledger
from featurepress.embedding.shard import read_pictures
from featurepress.features.feature_set import FeatureSet, open_features
from featurepress.ledger import Plan
from featurepress.ledger.parts import PartFormat
from featurepress.specs import ImageRef

if TYPE_CHECKING:
    from featurepress.specs import Pixels


def pressed_set(features: FeatureSet) -> FeatureSet:
    """Give the set that was pressed: itself, or the one that a reduced set came from.

    Raises
    ------
    FeatureSetError
        The set that it came from is gone.
    """
    origin = features.plan.certificate.get("reduced")
    return features if origin is None else open_features(origin["features"], allow_incomplete=True)


def read_originals(features: FeatureSet, uris: Collection[str]) -> Iterator[tuple[str, Pixels]]:
    """Yield pictures of a set by their uris, in the order of its rows; those that cannot be read are left out.

    Parameters
    ----------
    features : FeatureSet
        Pressed or reduced.
    uris : collection of str
        Of some of its rows.

    Yields
    ------
    uri, pixels
        Pixels: array (H, W, 3) uint8, RGB.

    Raises
    ------
    FeatureSetError
        The set is a reduced one, and the one that it came from is gone.

    Notes
    -----
    Parts are looked through in order until all are found; memory is that of the references of one part, and of
    the pictures that are read ahead.
    """
    pressed, wanted = pressed_set(features), set(uris)
    for name in pressed.parts:
        if not wanted:
            return
        found = [ref for ref in _references(pressed, name) if ref.uri in wanted]
        wanted.difference_update(ref.uri for ref in found)
        yield from _read(pressed.plan, found)


def read_part_originals(features: FeatureSet, name: str) -> Iterator[tuple[str, Pixels]]:
    """Yield the pictures of one of the `parts` of a set, as `read_originals` does, in the order of the listing."""
    pressed = pressed_set(features)
    return _read(pressed.plan, _references(pressed, name))


def _read(plan: Plan, refs: list[ImageRef]) -> Iterator[tuple[str, Pixels]]:
    for ref, pixels in read_pictures(plan.sources, plan.settings, refs):
        yield ref.uri, pixels


def _references(pressed: FeatureSet, name: str) -> list[ImageRef]:
    """Give what a part was pressed from, as its own generation listed it."""
    plan, shard = pressed.plan, int(name.removesuffix(".parquet").rpartition("-")[2])
    sink = PartFormat(plan.field_names, plan.backbone.n_features)
    with sink.standing(plan.storage, shard) as standing:
        generation = plan.generation if standing is None else standing.account.receipt.generation
    own: Plan | None = ledger.read_generation(plan.storage, generation)
    return list(ledger.read_references(own or plan, shard).refs)
