"""The plan, parts, receipts and manifest of a feature set: what is done, what is left, does it balance.

What lies at the destination, in the order in which it appears:

    plan/plan.json                  the plan, created only if absent
    plan/chunk-00000000.parquet     the listing, a row group a shard, created only if absent
    plan/listing.json               the listing is complete: chunks, images, what was skipped
    attempts/part-00000000-…        somebody is at this shard; what stays behind tells of a death
    features/part-00000000.parquet  the rows of a shard, its account in the footer, created only if absent
    failures/part-00000000.parquet  the failures of a shard, from that footer
    receipts/part-00000000.json     the shard is done, from that footer
    manifest.json                   everything is done

A later generation g, an update or a retry, adds

    plan/g2/before.json             which parts generation 1 has revised: what comes later is not taken up
    plan/g2/plan.json               its plan, created only if absent; then the manifest says ``updating``
    plan/g2/part-00000000.parquet   the references that an older shard has from now on
    plan/g2/chunk-00000000.parquet  the images that are new, in shards of their own
    plan/g2/listing.json            the comparison is complete
    receipts/part-00000000.g2.json  the shard is done, its part replaced or created

The part decides: failures and receipt are copies for people and for quick listing, and can be made again.
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
