"""The plan, parts, receipts and manifest of a feature set: what is done, what remains, and whether it balances.

Objects at the destination, in the order in which they appear:

    plan/plan.json                  the plan, created only if absent
    plan/chunk-00000000.parquet     the listing, one row group per shard, created only if absent
    plan/listing.json               the listing is complete: number of chunks, images and skipped files
    attempts/part-00000000-…        a worker embeds this shard; a mark that remains means that it died
    features/part-00000000.parquet  the rows of a shard, with its account in the footer, created only if absent
    failures/part-00000000.parquet  the failures of a shard, copied from the footer
    receipts/part-00000000.json     the receipt of a shard, copied from the footer
    manifest.json                   the feature set is complete

A later generation g, an update or a retry, adds

    plan/g2/before.json             the shards that generation 1 has revised; later revisions are ignored
    plan/g2/plan.json               its plan, created only if absent; then the manifest says ``updating``
    plan/g2/part-00000000.parquet   the new references of an older shard
    plan/g2/chunk-00000000.parquet  the new images, in new shards
    plan/g2/listing.json            the comparison is complete
    receipts/part-00000000.g2.json  the receipt of a shard whose part was replaced or created

The part is authoritative. Failures and receipts are copies, for people and for fast listing; they can be rebuilt.
"""

from featurepress.ledger.listing import (
    Chunk,
    References,
    Revision,
    commit_chunk,
    commit_revision,
    count_revision,
    count_revisions,
    finish_listing,
    read_chunk,
    read_chunk_shards,
    read_listing,
    read_references,
    read_revision,
    read_shard,
    record_revised,
    require_open,
    revised_shards,
)
from featurepress.ledger.names import MANIFEST, PLAN
from featurepress.ledger.plan import (
    Plan,
    begin_generation,
    check_conditional_writes,
    complete_manifest,
    create_plan,
    is_unconditional,
    new_plan,
    next_plan,
    read_generation,
    read_manifest,
    read_plan,
)
from featurepress.ledger.shards import (
    Totals,
    attempt,
    clear_attempts,
    delete_receipt,
    finalize_shard,
    finished_shards,
    newest_receipts,
    read_failures,
    read_receipt,
    read_receipts,
    unfinished_shards,
)

__all__ = [
    "MANIFEST",
    "PLAN",
    "Chunk",
    "Plan",
    "References",
    "Revision",
    "Totals",
    "attempt",
    "begin_generation",
    "check_conditional_writes",
    "clear_attempts",
    "commit_chunk",
    "commit_revision",
    "complete_manifest",
    "count_revision",
    "count_revisions",
    "create_plan",
    "delete_receipt",
    "finalize_shard",
    "finish_listing",
    "finished_shards",
    "is_unconditional",
    "new_plan",
    "newest_receipts",
    "next_plan",
    "read_chunk",
    "read_chunk_shards",
    "read_failures",
    "read_generation",
    "read_listing",
    "read_manifest",
    "read_plan",
    "read_receipt",
    "read_receipts",
    "read_references",
    "read_revision",
    "read_shard",
    "record_revised",
    "require_open",
    "revised_shards",
    "unfinished_shards",
]
