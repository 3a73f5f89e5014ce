"""Embed one shard: the loop that connects all stages.

references -> bytes (sources) -> pixels (images) -> features (models) -> part and receipt (ledger)
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable

from featurepress import ledger
from featurepress.embedding.inference import Decoder, empty_batch, infer
from featurepress.embedding.isolation import embed_one_by_one
from featurepress.embedding.reading import content_of, read_images, require_visible_sources
from featurepress.embedding.shard_rows import RevisedShardRows, ShardRows
from featurepress.errors import ImageError, ReplacedError
from featurepress.images import decode, preprocess
from featurepress.ledger import Plan, References
from featurepress.ledger.parts import Account, PartReader, Row, open_part
from featurepress.models.backbone import fetch_model, load_backbone
from featurepress.specs import Receipt
from featurepress.storage import run_concurrently

DEATHS_BEFORE_ISOLATION = 2  # of workers at the same shard
_MAX_ATTEMPTS = 5  # while other workers replace the same part


def embed_in_batches(plan: Plan, shard: ShardRows, decoder: Decoder) -> str:
    """Read, decode and embed the images of a shard batch by batch, and return the precision."""
    backbone = load_backbone(plan.backbone, plan.precision)
    batch = empty_batch(plan.backbone, backbone.batch_size)
    rows: list[Row] = []  # of the images in the batch
    max_pixels, steps = plan.settings.images.max_pixels, plan.backbone.preprocess
    for ref, data in read_images(plan.sources, plan.settings, shard.refs):
        try:
            content = content_of(data)
            shard.bytes_read += len(content)
            sha256 = hashlib.sha256(content).hexdigest()
            if shard.is_unchanged(ref, sha256):
                continue
            pixels = decoder(content, max_pixels=max_pixels)
            preprocess(pixels, steps, batch[len(rows)])
        except ImageError as error:
            shard.fail(ref, error)
            continue
        height, width = pixels.shape[:2]
        rows.append(Row(ref, width, height, sha256))
        if len(rows) == len(batch):
            shard.add(rows, infer(backbone, batch))
            rows.clear()
    if rows:
        shard.add(rows, infer(backbone, batch)[: len(rows)])
    return backbone.precision


def embed_shard(plan: Plan, shard: int, decoder: Decoder | None = None, *, repair: bool = False) -> Receipt:
    """Embed a shard, write its part, and return its receipt; if its part exists, return the receipt of that.

    With `repair`, a driver of a later generation embeds a shard that this generation left unfinished.

    Raises
    ------
    StorageError
        The destination refuses, or a source does not answer.
    StoppedError
        A later generation has begun.
    EngineError
        This process does not see the sources that the driver sees.
    """
    require_visible_sources(plan)
    fetch_model(plan.backbone, plan.storage)
    with ledger.attempt(plan, shard) as n_deaths:
        embed = embed_one_by_one if n_deaths >= DEATHS_BEFORE_ISOLATION else embed_in_batches
        for n_left in reversed(range(_MAX_ATTEMPTS)):
            try:
                if shard < plan.first_shard and not repair:
                    ledger.require_open(plan)
                account = _find_or_embed(plan, shard, lambda rows: embed(plan, rows, decoder or decode))
                break
            except ReplacedError:  # another attempt was faster, perhaps with the same result
                if not n_left:
                    raise
        ledger.finalize_shard(plan, account.receipt, account.failures, repair=repair)
    return account.receipt


def _find_or_embed(plan: Plan, shard: int, embed: Callable[[ShardRows], str]) -> Account:
    """Return the account of the existing part if it is of this generation; else embed, and return the new one.

    The rows that are carried over come from exactly the version of the part that is then replaced.
    """
    existing: PartReader | None
    references: References
    with contextlib.ExitStack() as stack:
        existing, references = run_concurrently(
            plan.storage,
            lambda: stack.enter_context(open_part(plan.storage, shard)),
            lambda: ledger.read_references(plan, shard),
        )
        if existing is None:  # new, or lost together with the rows that could have been carried over
            rows = ShardRows(plan, shard, references.refs)
        elif (generation := existing.account.receipt.generation) < plan.generation:
            rows = RevisedShardRows(plan, shard, references, existing)
        elif generation == plan.generation:
            return existing.account
        else:
            raise ledger.superseded(plan, generation)
        stack.callback(rows.close)
        return rows.commit(embed(rows))
