"""Embed one shard: the one loop, and the only room that knows all stages.

references -> bytes (sources) -> pixels (images) -> features (models) -> part and receipt (ledger)
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

from featurepress import ledger
from featurepress.embedding.inference import empty_batch, infer
from featurepress.embedding.isolation import embed_one_by_one
from featurepress.embedding.reading import content_of, read_images, require_visible_sources
from featurepress.embedding.shard_rows import RevisedShardRows, ShardRows
from featurepress.errors import ImageError, ReplacedError, StoppedError
from featurepress.images import decode, preprocess
from featurepress.ledger import Plan, References
from featurepress.ledger.parts import Account, PartFormat, PartReader, Row
from featurepress.models.backbone import fetch_model, load_backbone
from featurepress.specs import Receipt
from featurepress.storage import run_concurrently

Decoder = Callable[..., Any]  # (data, *, max_pixels) -> array (H, W, 3) uint8, or ImageError

DEATHS_BEFORE_CARE = 2
_LOOKS = 5  # at a part that others replace meanwhile


def embed_shard(plan: Plan, shard: int, decoder: Decoder | None = None, *, repair: bool = False) -> Receipt:
    """Embed a shard, write its part, and give its receipt; if its part already stands, give that one's.

    Parameters
    ----------
    plan : Plan
        Its destination holds the chunk with the shard's references.
    shard : int
        Number of the shard.
    decoder : callable, optional
        Bytes to pixels; `featurepress.images.decode` by default.
    repair : bool
        Whether a driver of a later generation asks, for what this one has left.

    Raises
    ------
    StorageError
        The destination refused, or a source stopped answering.
    StoppedError
        A later generation has begun.
    EngineError
        This process does not see what the driver sees.
    """
    require_visible_sources(plan)
    fetch_model(plan.backbone, plan.storage)
    with ledger.attempt(plan, shard) as n_deaths:
        embed = embed_one_by_one if n_deaths >= DEATHS_BEFORE_CARE else embed_in_batches
        for n_left in reversed(range(_LOOKS)):
            try:
                if shard < plan.first_shard and not repair:
                    ledger.require_open(plan)
                account = _standing_or_embedded(plan, shard, lambda new: embed(plan, new, decoder or decode))
                break
            except ReplacedError:  # another attempt was quicker: look what stands now
                if not n_left:
                    raise
        ledger.finalize_shard(plan, account.receipt, account.failures, repair=repair)
    return account.receipt


def _standing_or_embedded(plan: Plan, shard: int, embed: Callable[[ShardRows], str]) -> Account:
    """Give the account of the part that stands, if it is of this generation, or else of the one that is embedded.

    What is told of the standing part, and what is carried over from it, is of the one version that is replaced.
    """
    part_format = PartFormat(plan.field_names, plan.backbone.n_features)
    standing: PartReader | None
    references: References
    with contextlib.ExitStack() as stack:
        standing, references = run_concurrently(
            plan.storage,
            lambda: stack.enter_context(part_format.open(plan.storage, shard)),
            lambda: ledger.read_references(plan, shard),
        )
        if standing is None:  # new, or lost, and with it what could be carried over
            embedded = ShardRows(plan, shard, references.refs)
        elif (generation := standing.account.receipt.generation) < plan.generation:
            embedded = RevisedShardRows(plan, shard, references, standing)
        elif generation == plan.generation:
            return standing.account
        else:
            raise StoppedError(
                f"Shard {shard} of '{plan.storage.location}' was embedded by generation {generation}, and this "
                f"run is at generation {plan.generation}: another has begun meanwhile. Nothing more was written."
            )
        stack.callback(embedded.close)
        return embedded.commit(embed(embedded))


def embed_in_batches(plan: Plan, shard: ShardRows, decoder: Decoder) -> str:
    """Embed a shard: decode until a batch is full, run it, go on; give the precision."""
    backbone = load_backbone(plan.backbone, plan.precision)
    batch = empty_batch(plan.backbone, backbone.batch_size)
    waiting: list[Row] = []
    max_pixels, steps = plan.settings.images.max_pixels, plan.backbone.preprocess
    for ref, data in read_images(plan.sources, plan.settings, shard.refs):
        try:
            content = content_of(data)
            shard.bytes_read += len(content)
            sha256 = hashlib.sha256(content).hexdigest()
            if shard.carries(ref, sha256):
                continue
            pixels = decoder(content, max_pixels=max_pixels)
            preprocess(pixels, steps, batch[len(waiting)])
        except ImageError as error:
            shard.fail(ref, error)
            continue
        height, width = pixels.shape[:2]
        waiting.append(Row(ref, width, height, sha256))
        if len(waiting) == len(batch):
            shard.add(waiting, infer(backbone, batch))
            waiting.clear()
    if waiting:
        shard.add(waiting, infer(backbone, batch)[: len(waiting)])
    return backbone.precision
