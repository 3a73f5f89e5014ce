"""One run of one plan, from any moment of its life to the manifest.

Only the driver, the process that runs this, starts a run and declares it complete:

1. list the first images and try them (`Probe`): nothing is written before one of them can be embedded;
2. create plan.json; from here on everything can be resumed;
3. list on in a thread, committing chunks; the engine embeds their shards at the same time;
4. check that every listed image is a row or a failure;
5. export, if asked, and write the manifest.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import shlex
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from typing import Any

from featurepress import ledger
from featurepress.engines import Engine, LocalEngine, Task
from featurepress.errors import (
    DestinationError,
    RequestError,
    SourceError,
    StoppedError,
    StorageError,
    TooManyFailuresError,
    WorkerDeathError,
)
from featurepress.features.export import ExportCsv
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan, Totals
from featurepress.ledger.destination import require_same_plan
from featurepress.ledger.names import CSV_FOLDER, FEATURES_FOLDER, RECEIPTS_FOLDER, csv_name, part_name
from featurepress.models import store
from featurepress.progress import SHARED, Changes, OnProgress, Progress, Summary, summary_again
from featurepress.runs.lister import Lister, NewListing, Work
from featurepress.runs.tasks import Decoder, EmbedShard, Probe, ProbeResult
from featurepress.sources import Listing, visible
from featurepress.specs import ImageRef, Receipt

PROBE_IMAGES = 1_000
MAX_PROBE_DEATHS = 32  # more than that is not the images' doing


class Driver:
    """One run of one plan, from its first or any later moment to the manifest."""

    def __init__(
        self,
        plan: Plan,
        engine: Engine | None,
        on_progress: OnProgress,
        started: float,
        task: Task[Receipt] | None = None,
        work: Iterable[Work] | None = None,
    ) -> None:
        self.plan = plan
        self._work = work
        self._embed = task
        self.started = started
        self.progress = Progress()
        self._on_progress = on_progress
        self._engine = engine
        self._totals = Totals()
        self._counting = threading.Lock()  # shards are taken, and beats heard, in the engine's threads
        self._noted: dict[int, tuple[int, int]] = {}  # images embedded and failed, by shard
        self._repaired: set[int] = set()
        self._lister: Lister | None = None
        self._shards: set[int] = set()
        self._n_listed = self._n_more = 0  # images in the work of this generation, and how many more that makes

    def run(self, *, is_new: bool) -> FeatureSet:
        """Carry the plan out, from its beginning (`is_new`) or from wherever it stands."""
        manifest = None if is_new else ledger.read_manifest(self.plan.storage)
        if manifest is not None and self._is_done(manifest):
            return self._checked(manifest, summary_again(manifest, self.started))
        owned = None
        if self._engine is None:
            owned = LocalEngine(
                self.plan.n_workers,
                # A worker waits so long for the child to which it leaves a suspect image.
                silence_seconds=self.plan.settings.images.silence_seconds + 30,
                preload=("featurepress.embedding.shard",),
            )
            owned.warm_up(1)
        engine = self._engine or owned
        assert engine is not None
        try:
            with self._model_at_hand(engine):
                if engine.is_cluster and not is_new:
                    self._look_again()
                self._settle_earlier(engine, is_new=is_new)
                work: Iterable[Work] = self._begin(engine) if is_new else self._work or NewListing(self.plan)
            manifest = self._finish(engine, Lister(work), self._embed or EmbedShard())
        finally:
            if owned is not None:
                owned.close()
        return self._up_to_date() if manifest is None else self._result(manifest)

    def _up_to_date(self) -> FeatureSet:
        """Give the set in which an update or a retry has found nothing to do, and has written nothing."""
        plan, manifest = ledger.read_plan(self.plan.storage), ledger.read_manifest(self.plan.storage)
        if plan is None or manifest is None:
            raise StoppedError(f"The feature set '{self.plan.storage.location}' vanished while it was read.")
        self.plan = plan
        summary = replace(summary_again(manifest, self.started), changes=Changes(0, 0, 0, 0))
        return self._checked(manifest, summary)

    def _is_done(self, manifest: dict[str, Any]) -> bool:
        """Whether the plan is finished, and no part, receipt or exported file has been lost since."""
        if manifest.get("status") != "complete" or manifest.get("generation", 1) != self.plan.generation:
            return False
        output, storage = self.plan.settings.output, self.plan.storage
        n_files = output.parts if output.format == "csv" else 0
        return sum(1 for _ in storage.list(CSV_FOLDER)) >= n_files and not ledger.unfinished_shards(storage)

    # -- the beginning ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _model_at_hand(self, engine: Engine) -> Iterator[None]:
        """Lay the model where workers on other machines find it; take it away if no plan comes of it."""
        storage, key = self.plan.storage, self.plan.backbone.file
        engine.connect()
        if engine.is_cluster and key:
            store.put_into(storage, key)
        try:
            yield
        except BaseException:
            if engine.is_cluster and ledger.read_plan(storage) is None:
                store.remove_from(storage, key)
            raise

    def _look_again(self) -> None:
        """Note which images of the listing the driver can see, which its workers must see then, too."""
        first = ledger.read_generation(self.plan.storage, 1)
        shards = () if first is None or ledger.read_chunk(first, 0) is None else ledger.read_chunk_shards(first, 0)
        firsts: dict[int, ImageRef] = {}
        for _, refs in shards:
            for ref in refs:
                firsts.setdefault(ref.source, ref)
        seen = visible(self.plan.sources, self.plan.settings.images, tuple(firsts.values()))
        self.plan = replace(self.plan, seen=seen)

    def _settle_earlier(self, engine: Engine, *, is_new: bool) -> None:
        """Finish what earlier generations have left, and make again what they have lost: next to never anything."""
        unsettled = {} if is_new else ledger.unfinished_shards(self.plan.storage)
        for generation, shards in sorted(unsettled.items()):
            earlier = ledger.read_generation(self.plan.storage, generation)
            if generation < self.plan.generation and earlier is not None:
                for _ in engine.run(
                    EmbedShard(self._decoder, repair=True), earlier, sorted(shards), self._on_message
                ):
                    pass

    @property
    def _decoder(self) -> Decoder | None:
        return self._embed.decode if isinstance(self._embed, EmbedShard) else None

    def _begin(self, engine: Engine) -> NewListing:
        """List the first images, try them, and create the plan."""
        settings = self.plan.settings
        listing = Listing(self.plan.sources, settings.listing, limits=settings.images)
        stream = iter(listing)
        head = list(itertools.islice(stream, PROBE_IMAGES))
        if not head:
            raise SourceError("The sources hold no image.")
        if "{" in settings.listing.labels and not any(any(ref.fields) for ref in head):
            raise SourceError(
                f"The pattern '{settings.listing.labels}' (--labels) fits none of the first {len(head):,} images, "
                f"such as '{head[0].uri}'. It is held against the end of the path, name for name."
            )
        if isinstance(engine, LocalEngine):
            engine.warm_up(self.plan.layout.n_shards(len(head)))
        # The first chunk will need it, and the workers are busy starting anyway.
        import_module("pyarrow.parquet")
        if engine.is_cluster:
            self.plan = replace(self.plan, seen=listing.firsts)
        result = _probe(engine, self.plan, tuple(head), self._decoder)
        if not result.cosines:
            raise SourceError(_all_failed(result))
        asked = self.plan.settings.features.precision
        precision, certificate = result.decide(asked)
        if asked == "bfloat16" and precision != asked:
            raise RequestError(
                "The precision bfloat16 was asked for, and this CPU has no native bfloat16. "
                "Use --precision auto or float32."
            )
        self.plan = replace(self.plan, precision=precision, certificate={**self.plan.certificate, **certificate})
        if not self._create_plan():
            standing = ledger.read_plan(self.plan.storage)
            if standing is None:
                raise StoppedError(f"The plan at '{self.plan.storage.location}' vanished while it was read.")
            self.plan = replace(require_same_plan(standing, self.plan), seen=self.plan.seen)
            return NewListing(self.plan)
        return NewListing(self.plan, listing, itertools.chain(head, stream))

    def _create_plan(self) -> bool:
        """Write the first thing of a run; a destination that does not take it is a bad request."""
        try:
            self.plan.storage.prepare()
            is_ours = ledger.create_plan(self.plan)
            if is_ours and not ledger.check_conditional_writes(self.plan):
                self.progress.warning = _UNSAFE.format(self.plan.storage.location)
                self._report()
            return is_ours
        except StorageError as error:
            if getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DestinationError(f"{str(error).rstrip('.')}. Choose another --out.") from error

    # -- the middle ------------------------------------------------------------------------------------------

    def _finish(self, engine: Engine, lister: Lister, task: Task[Receipt]) -> dict[str, Any] | None:
        """Embed what is left, balance, export, and write the manifest; None if a new generation has no work."""
        done = ledger.finished_shards(self.plan)
        self.progress.stage = "embedding"
        self.progress.started = time.perf_counter()
        self._lister = lister
        try:
            # Left in this order when something stops the run: first the listing, on which workers may be waiting.
            with (
                closing(engine.run(task, self.plan, self._left(lister, done), self._on_message)) as receipts,
                lister,
            ):
                for receipt in receipts:
                    self._count(receipt)
        except SourceError as error:  # the plan stands, so this is no bad request but a stop
            raise StoppedError(f"The listing stopped: {error}") from error
        if self.plan.generation > 1 and not self._shards and ledger.read_listing(self.plan) is None:
            return None
        self._embed_late(engine, task)
        self._balance(engine, task)
        ledger.require_open(self.plan)
        self._export(engine)
        ledger.clear_attempts(self.plan)
        self.plan.storage.sync(RECEIPTS_FOLDER)  # they were written in haste, and the manifest answers for them
        return ledger.complete_manifest(self.plan, lambda: self._sum_up(engine, task))

    def _embed_late(self, engine: Engine, task: Task[Receipt]) -> None:
        """Embed what another driver has committed since the listing was complete."""
        while late := ledger.revised_shards(self.plan) - self._shards:
            found = ledger.count_revisions(self.plan, late)
            done = ledger.finished_shards(self.plan)
            for receipt in engine.run(task, self.plan, self._left(found, done), self._on_message):
                self._count(receipt)

    def _sum_up(self, engine: Engine, task: Task[Receipt]) -> dict[str, Any]:
        """Give the manifest, with what another driver has done up to now."""
        if self.plan.generation > 1:
            self._embed_late(engine, task)
        return self._manifest()

    def _left(self, committed: Iterable[Work], done: set[int]) -> Iterator[int]:
        """Yield the shards without a receipt as their chunks are committed; count those with one."""
        for work in committed:
            self._shards.update(work.shards)
            self._n_listed += work.n_images
            self._n_more += work.n_more
            receipts = ledger.read_receipts(self.plan, [shard for shard in work.shards if shard in done])
            for shard in work.shards:
                receipt = next(receipts) if shard in done else None
                if receipt is None or not receipt.balances:
                    yield shard
                    continue
                with self._counting:
                    self._totals.add(receipt)
                    self.progress.embedded += receipt.embedded
                    self.progress.failed += receipt.failed
                    self.progress.done_before += receipt.listed
            self._report()

    def _report(self) -> None:
        """Pass on how the run gets on."""
        if self._lister is not None:
            self.progress.listed = self._lister.n_images
            self.progress.listing = not self._lister.is_complete
        self._on_progress(self.progress)

    def _on_message(self, message: Any) -> None:
        """Take a beat of a worker."""
        if message[0] == "images":
            self._note(*message[1:])
            self._report()

    def _note(self, shard: int, embedded: int, failed: int) -> None:
        """Take how far a shard is; a second attempt begins at nothing again."""
        with self._counting:
            before = self._noted.get(shard, (0, 0))
            self._noted[shard] = (embedded, failed)
            self.progress.embedded += embedded - before[0]
            self.progress.failed += failed - before[1]

    def _count(self, receipt: Receipt) -> None:
        self._note(receipt.shard, receipt.embedded, receipt.failed)
        if receipt.balances:
            with self._counting:
                self._totals.add(receipt)
        else:
            self._repaired.add(receipt.shard)
        self._report()

    def _balance(self, engine: Engine, task: Task[Receipt]) -> None:
        """Make sure that every listed image is a row or a failure; embed again what is not."""
        if ledger.read_listing(self.plan) is None:
            raise StoppedError("The listing did not come to its end.")
        expected = self._shards
        missing = (expected - ledger.finished_shards(self.plan)) | self._repaired
        if missing:
            for shard in self._repaired:
                ledger.delete_receipt(self.plan, shard)
                self.plan.storage.delete(part_name(shard))
            for receipt in engine.run(task, self.plan, sorted(missing), self._on_message):
                if not receipt.balances:
                    raise StoppedError(f"Shard {receipt.shard} does not balance: {receipt.to_json()}.")
        if missing or self._totals.listed != self._n_listed:
            self._recount(expected)
        self._require_balance(self._totals, self._n_listed)

    def _require_balance(self, totals: Totals, n_listed: int) -> None:
        if totals.listed != n_listed:
            raise StoppedError(
                f"The ledger does not balance: {n_listed} images are listed, the receipts tell of "
                f"{totals.listed}. The feature set '{self.plan.storage.location}' was changed by "
                "something else; embed into a new one."
            )

    def _recount(self, shards: Iterable[int]) -> None:
        self._totals = Totals()
        for receipt in ledger.read_receipts(self.plan, sorted(shards)):
            if receipt is not None:
                self._totals.add(receipt)

    # -- the end ---------------------------------------------------------------------------------------------

    def _export(self, engine: Engine) -> None:
        output = self.plan.settings.output
        if output.format != "csv":
            return
        self.progress.stage = "exporting"
        self._report()
        # Files of an earlier generation are made again, each in place of the old one.
        is_first = self.plan.generation == 1
        there = {entry.name for entry in self.plan.storage.list(CSV_FOLDER)} if is_first else set()
        left = [i for i in range(output.parts) if csv_name(i) not in there]
        for _ in engine.run(ExportCsv(output.parts), self.plan, left):
            pass

    def _manifest(self) -> dict[str, Any]:
        listing = ledger.read_listing(self.plan) or {}
        totals = self._totals if self.plan.generation == 1 else self._totals_of_all(listing["before"])
        chosen = dict(self.plan.certificate)
        parity = chosen.pop("parity", None)
        return {
            "format": "featurepress",
            "status": "complete",
            "run_id": self.plan.run_id,
            "generation": self.plan.generation,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "fingerprint": self.plan.backbone.fingerprint,
            "model": self.plan.backbone.model,
            "pooling": self.plan.backbone.pooling,
            "n_features": self.plan.backbone.n_features,
            "listed": totals.listed,
            "embedded": totals.embedded,
            "failed": totals.failed,
            "failed_by_kind": totals.failed_by_kind,
            "skipped": listing.get("skipped", {}),
            "parts": totals.parts,
            "bytes_read": totals.bytes_read,
            "bytes_written": sum(entry.size for entry in self.plan.storage.list(FEATURES_FOLDER)),
            "precision": {"images": totals.precisions, "certificate": chosen},
            "parity": parity,
            "cpus": totals.cpus,
            "conditional_writes": not ledger.is_unconditional(self.plan.storage),
        }

    def _totals_of_all(self, n_before: int) -> Totals:
        """Sum the newest receipts of all parts, of whatever generation, and make sure that none is lost."""
        totals, where = Totals(), self.plan.storage.location
        parts = {entry.name for entry in self.plan.storage.list(FEATURES_FOLDER)}
        for receipt in ledger.newest_receipts(self.plan):
            if part_name(receipt.shard) in parts:
                totals.add(receipt)
            elif receipt.listed:  # a part without images that is lost has lost nothing
                raise StoppedError(
                    f"'{where}/{part_name(receipt.shard)}' is gone. To embed its images again, run: "
                    f"featurepress update {shlex.quote(where)}"
                )
        self._require_balance(totals, n_before + self._n_more)
        return totals

    def _changes(self) -> Changes | None:
        """Tell what this generation has changed."""
        if self.plan.generation == 1:
            return None
        listing = ledger.read_listing(self.plan) or {}
        new, changed, deleted = (int(listing.get(name, 0)) for name in ("new", "changed", "deleted"))
        return Changes(new, changed, deleted, self._totals.embedded - self._totals.carried)

    def _result(self, manifest: dict[str, Any]) -> FeatureSet:
        """Say what this run did."""
        self.progress.stage = "done"
        self._report()
        seconds = time.perf_counter() - self.started
        here = max(0, self._totals.listed - self._totals.carried - self.progress.done_before)
        summary = Summary(
            **{name: manifest[name] for name in SHARED},
            seconds=seconds,
            images_per_second=here / seconds,
            already_done=False,
            changes=self._changes(),
        )
        return self._checked(manifest, summary)

    def _checked(self, manifest: dict[str, Any], summary: Summary) -> FeatureSet:
        """Give the finished set, unless too much failed."""
        share = manifest["failed"] / max(1, manifest["listed"])
        allowed = self.plan.settings.output.max_failures
        features = FeatureSet(self.plan, manifest, summary)
        if share > allowed:
            raise TooManyFailuresError(
                f"{manifest['failed']} of {manifest['listed']} images failed ({share:.1%}), more than the allowed "
                f"{allowed:.1%} (--max-failures). Everything is written to '{features.location}'.",
                features,
            )
        return features


_UNSAFE = (
    "The store of '{}' does not honour conditional writes (If-None-Match): let only one driver at a time "
    "write there, and no speculative tasks."
)


def _probe(engine: Engine, plan: Plan, refs: tuple[ImageRef, ...], decoder: Decoder | None) -> ProbeResult:
    """Try the first images; one that kills its process is left to the embedding, which knows what to do."""
    n_shards = 1
    if isinstance(engine, LocalEngine):
        # Every worker takes a share, and so has loaded the model when the embedding begins.
        n_shards = min(engine.workers, plan.layout.n_shards(len(refs)))
    n_deaths = 0
    while True:
        being_tried: dict[int, str] = {}

        def on_message(message: Any, being_tried: dict[int, str] = being_tried) -> None:
            if message[0] == "at":
                being_tried[message[1]] = message[2]

        try:
            results = engine.run(Probe(refs, n_shards, decoder), plan, range(n_shards), on_message)
            return functools.reduce(ProbeResult.merge, results)
        except WorkerDeathError:
            n_deaths += 1
            if n_shards > 1:
                n_shards = 1  # with one worker it is known at which image it died
                continue
            suspects = set(being_tried.values())
            refs = tuple(ref for ref in refs if ref.uri not in suspects)
            if not refs or not suspects or n_deaths > MAX_PROBE_DEATHS:
                raise


def _all_failed(result: ProbeResult) -> str:
    kinds: dict[str, int] = {}
    for failure in result.failures:
        kinds[failure.kind] = kinds.get(failure.kind, 0) + 1
    reasons = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
    first = result.failures[0]
    which = "The only image" if result.n_tried == 1 else f"All of the first {result.n_tried} images"
    return (
        f"{which} failed, so nothing was written: {reasons}; the first one is '{first.uri}' "
        f"({first.reason}). Check the source."
    )
