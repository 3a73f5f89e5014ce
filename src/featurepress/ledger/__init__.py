"""The plan, parts, receipts and manifest of a feature set: what is done, what remains, and whether it balances.

docs/reference/format.md lists the objects in the order in which they appear. The part of a shard is authoritative:
its footer holds the failures and the receipt, whose own files are copies that can be rebuilt.
"""

from featurepress.ledger.listing import Chunk as Chunk
from featurepress.ledger.listing import References as References
from featurepress.ledger.listing import Revision as Revision
from featurepress.ledger.listing import commit_chunk as commit_chunk
from featurepress.ledger.listing import commit_revision as commit_revision
from featurepress.ledger.listing import count_revision as count_revision
from featurepress.ledger.listing import count_revisions as count_revisions
from featurepress.ledger.listing import finish_listing as finish_listing
from featurepress.ledger.listing import read_chunk as read_chunk
from featurepress.ledger.listing import read_chunk_shards as read_chunk_shards
from featurepress.ledger.listing import read_listing as read_listing
from featurepress.ledger.listing import read_references as read_references
from featurepress.ledger.listing import read_revision as read_revision
from featurepress.ledger.listing import read_shard as read_shard
from featurepress.ledger.listing import record_revised as record_revised
from featurepress.ledger.listing import require_open as require_open
from featurepress.ledger.listing import revised_shards as revised_shards
from featurepress.ledger.names import MANIFEST as MANIFEST
from featurepress.ledger.names import PLAN as PLAN
from featurepress.ledger.plan import Plan as Plan
from featurepress.ledger.plan import begin_generation as begin_generation
from featurepress.ledger.plan import check_conditional_writes as check_conditional_writes
from featurepress.ledger.plan import complete_manifest as complete_manifest
from featurepress.ledger.plan import create_plan as create_plan
from featurepress.ledger.plan import is_unconditional as is_unconditional
from featurepress.ledger.plan import new_plan as new_plan
from featurepress.ledger.plan import next_plan as next_plan
from featurepress.ledger.plan import read_generation as read_generation
from featurepress.ledger.plan import read_manifest as read_manifest
from featurepress.ledger.plan import read_plan as read_plan
from featurepress.ledger.plan import superseded as superseded
from featurepress.ledger.shards import Totals as Totals
from featurepress.ledger.shards import attempt as attempt
from featurepress.ledger.shards import clear_attempts as clear_attempts
from featurepress.ledger.shards import delete_receipt as delete_receipt
from featurepress.ledger.shards import finalize_shard as finalize_shard
from featurepress.ledger.shards import finished_shards as finished_shards
from featurepress.ledger.shards import newest_receipts as newest_receipts
from featurepress.ledger.shards import read_failures as read_failures
from featurepress.ledger.shards import read_receipt as read_receipt
from featurepress.ledger.shards import read_receipts as read_receipts
from featurepress.ledger.shards import unfinished_shards as unfinished_shards
