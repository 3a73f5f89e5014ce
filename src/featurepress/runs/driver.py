"""One run of one plan, from any state of its destination to the manifest.

Nothing is written before one of the first images has been embedded. Once plan.json exists, the run can be resumed:
a thread commits chunks of the listing while the engine embeds their shards. The manifest is written last, after
every listed image is a row or a failure.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

from featurepress import ledger
from featurepress.engines import Engine, LocalEngine, Task
from featurepress.errors import DestinationError, SourceError, StoppedError, StorageError
from featurepress.features.export import ExportCsv
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan
from featurepress.ledger.destination import require_same_plan
from featurepress.ledger.names import CSV_FOLDER, RECEIPTS_FOLDER, csv_name, part_name
from featurepress.models import store
from featurepress.progress import OnProgress, ignore_progress
from featurepress.runs import manifest as manifests
from featurepress.runs.first_images import decide_precision, start_listing
from featurepress.runs.lister import Lister, NewListing, ShardGroup
from featurepress.runs.tally import Tally
from featurepress.runs.tasks import Decoder, EmbedShard
from featurepress.sources import visible
from featurepress.specs import ImageRef, Receipt

REPLACEMENT_SECONDS = 30  # for a worker to start the child that embeds an image that kills processes
_UNCONDITIONAL = (
    "The store of '{}' does not support conditional writes (If-None-Match): run only one driver at a time on it, "
    "and no speculative tasks."
)


@dataclass(frozen=True)
class Job:
    """A plan to carry out, and the means to do so."""

    plan: Plan
    is_new: bool = False  # the destination is free: the precision is decided first, and the plan is created
    engine: Engine | None = None  # None: worker processes on this machine, for this run only
    on_progress: OnProgress = ignore_progress
    started: float = field(default_factory=time.perf_counter)  # time of the request
    task: Task[Receipt] | None = None  # embeds a shard; None: `EmbedShard`
    shard_groups: Iterable[ShardGroup] | None = None  # of an update or a retry; None: those of the listing


class Driver:
    """Carries out a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._plan = job.plan
        self._task: Task[Receipt] = job.task or EmbedShard()
        self._tally = Tally(job.on_progress)

    def run(self) -> FeatureSet:
        """Carry out the job, from the state in which the destination is; return the complete feature set."""
        manifest = None if self._job.is_new else ledger.read_manifest(self._plan.storage)
        if manifest is not None and manifests.is_finished(self._plan, manifest):
            return manifests.existing_set(self._plan, manifest, self._job.started)
        with self._engine() as engine:
            with self._shared_model(engine):
                if self._job.is_new:
                    shard_groups: Iterable[ShardGroup] = self._begin(engine)
                else:
                    self._continue(engine)
                    shard_groups = self._job.shard_groups or NewListing(self._plan)
            self._embed(engine, shard_groups)
            if self._plan.generation > 1 and not self._tally.shards and ledger.read_listing(self._plan) is None:
                return manifests.unchanged_set(self._plan, self._job.started)
            return self._finish(engine)

    @contextlib.contextmanager
    def _engine(self) -> Iterator[Engine]:
        """Yield the engine of the job, or workers of this machine for this run only."""
        if self._job.engine is not None:
            yield self._job.engine
            return
        with LocalEngine(
            self._plan.n_workers,
            silence_seconds=self._plan.settings.images.silence_seconds + REPLACEMENT_SECONDS,
            preload=("featurepress.embedding.shard",),
        ) as engine:
            engine.warm_up(1)
            yield engine

    @contextlib.contextmanager
    def _shared_model(self, engine: Engine) -> Iterator[None]:
        """Copy the model to the destination for workers on other machines; remove it if no plan is created."""
        storage, key = self._plan.storage, self._plan.backbone.file
        engine.connect()
        if engine.is_cluster and key:
            store.put_into(storage, key)
        try:
            yield
        finally:
            if engine.is_cluster and key and ledger.read_plan(storage) is None:
                store.remove_from(storage, key)

    # -- begin -----------------------------------------------------------------------------------------------

    def _begin(self, engine: Engine) -> NewListing:
        """List the first images, decide the precision, and create the plan."""
        started = start_listing(self._plan)
        if engine.is_cluster:
            self._plan = replace(self._plan, seen=started.listing.firsts)
        self._plan = decide_precision(self._plan, started.first, engine, self._decoder)
        if self._create_plan():
            return NewListing(self._plan, started.listing, started.refs)
        existing = ledger.read_plan(self._plan.storage)
        if existing is None:
            raise StoppedError(f"The plan at '{self._plan.storage.location}' was removed while it was read.")
        self._plan = replace(require_same_plan(existing, self._plan), seen=self._plan.seen)
        return NewListing(self._plan)

    @property
    def _decoder(self) -> Decoder | None:
        return self._task.decode if isinstance(self._task, EmbedShard) else None

    def _create_plan(self) -> bool:
        """Create plan.json, the first object of a run; return False if another driver was faster."""
        try:
            self._plan.storage.prepare()
            is_ours = ledger.create_plan(self._plan)
            if is_ours and not ledger.check_conditional_writes(self._plan):
                self._tally.progress.warning = _UNCONDITIONAL.format(self._plan.storage.location)
                self._tally.report()
            return is_ours
        except StorageError as error:
            if getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DestinationError(f"{str(error).rstrip('.')}. Choose another --out.") from error

    def _continue(self, engine: Engine) -> None:
        """Repair earlier generations, and continue with the existing plan."""
        if engine.is_cluster:
            self._plan = replace(self._plan, seen=self._visible_images())
        for generation, shards in sorted(ledger.unfinished_shards(self._plan.storage).items()):
            earlier = ledger.read_generation(self._plan.storage, generation)
            if generation < self._plan.generation and earlier is not None:
                repair = EmbedShard(self._decoder, repair=True)
                for _ in engine.run(repair, earlier, sorted(shards), self._tally.on_message):
                    pass

    def _visible_images(self) -> tuple[ImageRef, ...]:
        """Return an image of each source that the driver can see; its workers must see it too."""
        first = ledger.read_generation(self._plan.storage, 1)
        shards = () if first is None or ledger.read_chunk(first, 0) is None else ledger.read_chunk_shards(first, 0)
        by_source: dict[int, ImageRef] = {}
        for _, refs in shards:
            for ref in refs:
                by_source.setdefault(ref.source, ref)
        return visible(self._plan.sources, self._plan.settings.images, tuple(by_source.values()))

    # -- embed -----------------------------------------------------------------------------------------------

    def _embed(self, engine: Engine, shard_groups: Iterable[ShardGroup]) -> None:
        """Embed the shards without a receipt, as they are committed."""
        finished = ledger.finished_shards(self._plan)
        self._tally.progress.stage = "embedding"
        self._tally.progress.started = time.perf_counter()
        lister = Lister(shard_groups)
        self._tally.follow(lister)
        pending = self._tally.pending(self._plan, lister, finished)
        try:
            # On an error the lister is left first, since workers may wait for it.
            with (
                closing(engine.run(self._task, self._plan, pending, self._tally.on_message)) as receipts,
                lister,
            ):
                for receipt in receipts:
                    self._tally.add(receipt)
        except SourceError as error:  # the plan exists: the run can be resumed
            raise StoppedError(f"The listing stopped: {error}") from error

    def _embed_new_revisions(self, engine: Engine) -> None:
        """Embed the shards that another driver has revised since the listing was complete."""
        while new := ledger.revised_shards(self._plan) - self._tally.shards:
            groups = ledger.count_revisions(self._plan, new)
            pending = self._tally.pending(self._plan, groups, ledger.finished_shards(self._plan))
            for receipt in engine.run(self._task, self._plan, pending, self._tally.on_message):
                self._tally.add(receipt)

    # -- finish ----------------------------------------------------------------------------------------------

    def _finish(self, engine: Engine) -> FeatureSet:
        """Check that all images are accounted for, export, and write the manifest."""

        def build_manifest() -> dict[str, object]:
            if self._plan.generation > 1:
                self._embed_new_revisions(engine)
            return manifests.build_manifest(self._plan, self._tally)

        self._embed_new_revisions(engine)
        self._balance(engine)
        ledger.require_open(self._plan)
        self._export(engine)
        ledger.clear_attempts(self._plan)
        self._plan.storage.sync(RECEIPTS_FOLDER)  # they were written without sync, and the manifest relies on them
        manifest = ledger.complete_manifest(self._plan, build_manifest)
        self._tally.report("done")
        return manifests.finished_set(self._plan, manifest, self._tally, self._job.started)

    def _balance(self, engine: Engine) -> None:
        """Check that every listed image is a row or a failure; embed shards that do not balance again."""
        plan, tally = self._plan, self._tally
        if ledger.read_listing(plan) is None:
            raise StoppedError("The listing is not complete.")
        missing = (tally.shards - ledger.finished_shards(plan)) | tally.unbalanced
        for shard in tally.unbalanced:
            ledger.delete_receipt(plan, shard)
            plan.storage.delete(part_name(shard))
        if missing:
            for receipt in engine.run(self._task, plan, sorted(missing), tally.on_message):
                if not receipt.balances:
                    raise StoppedError(f"Shard {receipt.shard} does not balance: {receipt.to_json()}.")
        if missing or tally.totals.listed != tally.n_images:
            tally.recount(plan)
        manifests.require_balance(plan, tally.totals, tally.n_images)

    def _export(self, engine: Engine) -> None:
        """Write the CSV files, if requested: those that are missing, or all in a later generation."""
        output = self._plan.settings.output
        if output.format != "csv":
            return
        self._tally.report("exporting")
        is_first = self._plan.generation == 1
        existing = {entry.name for entry in self._plan.storage.list(CSV_FOLDER)} if is_first else set()
        missing = [number for number in range(output.parts) if csv_name(number) not in existing]
        for _ in engine.run(ExportCsv(output.parts), self._plan, missing):
            pass
