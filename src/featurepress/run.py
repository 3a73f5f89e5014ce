"""Embed and resume: plan, hand to an engine, balance, commit.

Only the driver, the process that runs this, starts a run and declares it complete:

1. list the first images and try them (`Probe`): nothing is written before one of them can be pressed;
2. create plan.json; from here on everything can be resumed;
3. list on in a thread, committing chunks; the engine presses their shards at the same time;
4. check that every listed image is a row or a failure;
5. export, if asked, and write the manifest.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import featurepress
from featurepress import ledger
from featurepress.engines import Engine, LocalEngine
from featurepress.errors import (
    DestinationError,
    FeatureSetError,
    PlanMismatchError,
    RequestError,
    SettingError,
    SourceError,
    StoppedError,
    TooManyFailuresError,
    WorkerDeathError,
)
from featurepress.featureset import ExportCsv, FeatureSet, csv_name
from featurepress.ledger import Chunk, Layout, Plan, Totals
from featurepress.models.catalog import find_card
from featurepress.records import ImageRef, Receipt, part_name
from featurepress.settings import Settings, available_cores
from featurepress.sources import Listing, describe, field_names
from featurepress.storage import Storage, open_storage

if TYPE_CHECKING:
    from featurepress.pipeline import Press, ProbeResult

DEFAULT_OUT = "results{time}"
PROBE_IMAGES = 1_000
# Measured resident memory: a worker with its libraries and the model, and the driver.
WORKER_BYTES = 300 * 1024**2
DRIVER_BYTES = 150 * 1024**2


@dataclass
class Progress:
    """How a run gets on; the same object is updated and passed to `on_progress` again and again.

    Attributes
    ----------
    stage : str
        ``probing``, ``pressing``, ``exporting`` or ``done``.
    listed : int
        Images found so far, and whether there may be more (`listing`).
    pressed, failed : int
        Images done in this run or an earlier one of the same plan.
    done_before : int
        How many of them an earlier run did.
    started : float
        `time.perf_counter` when pressing began.
    """

    stage: str = "probing"
    listed: int = 0
    listing: bool = True
    pressed: int = 0
    failed: int = 0
    done_before: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def images_per_second(self) -> float:
        """Images done by this run a second, since pressing began."""
        seconds = time.perf_counter() - self.started
        return (self.pressed + self.failed - self.done_before) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Summary:
    """What a finished run did.

    Attributes
    ----------
    listed, pressed, failed : int
        Images of the whole feature set.
    failed_by_kind, skipped : mapping
        Counts by reason.
    seconds : float
        Wall-clock time of this run, from the call to the manifest.
    images_per_second : float
        Images that this run pressed or failed, a second of it.
    bytes_read, bytes_written : int
        Of the images, and of the parts.
    parts : int
        Number of Parquet parts.
    already_done : bool
        The run had nothing to do.
    """

    listed: int
    pressed: int
    failed: int
    failed_by_kind: dict[str, int]
    skipped: dict[str, int]
    seconds: float
    images_per_second: float
    bytes_read: int
    bytes_written: int
    parts: int
    already_done: bool


@dataclass(frozen=True)
class Estimate:
    """What a run would do: counts of the listing, and the largest size its features can have."""

    images: int
    bytes: int
    skipped: dict[str, int]
    parts: int
    n_features: int
    expected_bytes: int


OnProgress = Callable[[Progress], None]


def _ignore(progress: Progress) -> None:
    """Show nothing."""


def embed(
    sources: str | Path | Sequence[str | Path],
    out: str | Path = DEFAULT_OUT,
    *,
    engine: Engine | None = None,
    on_progress: OnProgress = _ignore,
    **options: Any,
) -> FeatureSet:
    """Press images into a feature set.

    The same call again finishes a run that was interrupted, and does nothing after one that has finished.

    Parameters
    ----------
    sources : str, path, or sequence of them
        Folders (taken with all below them), globs, or files.
    out : str or path
        The destination; ``{time}`` in it becomes the date and time, as ``2026_11_22_10_54_08``.
    engine : Engine, optional
        Where to run; by default worker processes on this machine.
    on_progress : callable
        Called with a `Progress` several times a second.
    **options
        The settings of the run: `model`, `pooling`, `precision`, `labels`, `all_files`, `limit`,
        `max_pixels`, `max_bytes`, `timeout_seconds`, `images_per_part`, `format`, `parts`, `max_failures`,
        `workers`, `memory_bytes`. `featurepress embed --help` explains each.

    Returns
    -------
    FeatureSet
        The complete set; its `summary` tells what this call did.

    Raises
    ------
    RequestError
        The request cannot be served; nothing was written.
    StoppedError
        The run stopped and can be resumed.
    TooManyFailuresError
        All is written, but more images failed than `max_failures` allows.

    Examples
    --------
    >>> import featurepress as fp
    >>> features = fp.embed("photos/", out="features/", labels="parent")  # doctest: +SKIP
    >>> X, y = features.to_numpy(), features.labels  # doctest: +SKIP
    """
    started = time.perf_counter()
    settings = Settings.from_options(**options)
    destination = expand_time(str(out))
    storage = open_storage(destination)
    draft = ledger.new_plan(
        storage,
        sources=describe(sources, all_files=settings.listing.all_files, exclude=storage.location),
        backbone=find_card(settings.features.model).backbone(settings.features.pooling),
        precision="float32",
        certificate={},
        settings=settings,
        layout=Layout.of(settings.output.images_per_part, settings.features.pooling),
        field_names=field_names(settings.listing),
        library_version=featurepress.__version__,
    )
    standing = ledger.read_plan(storage)
    if standing is None:
        _require_free(storage, destination)
    else:
        standing = _same_plan(standing, draft)
    return _Driver(standing or draft, engine, on_progress, started).run(is_new=standing is None)


def resume(
    destination: str | Path,
    *,
    engine: Engine | None = None,
    on_progress: OnProgress = _ignore,
    **options: Any,
) -> FeatureSet:
    """Finish the run at a destination; everything else comes from its plan.

    Parameters
    ----------
    destination : str or path
        The ``--out`` of the run.
    engine, on_progress
        As for `embed`.
    **options
        Settings that do not shape the features: `workers`, `memory_bytes`, `timeout_seconds`, `max_failures`.

    Raises
    ------
    FeatureSetError
        There is no plan.
    """
    started = time.perf_counter()
    plan = ledger.read_plan(open_storage(str(destination)))
    if plan is None:
        raise FeatureSetError(
            f"There is nothing to resume in '{destination}': no {ledger.PLAN} in it. "
            "Give the folder that was --out of an embed."
        )
    flat = {name: value for stage in plan.settings.to_json().values() for name, value in stage.items()}
    settings = Settings.from_options(**{**flat, **options})
    changed = {name for name, value in settings.identity().items() if value != flat[name]}
    if changed:
        raise SettingError(f"A resumed run keeps its settings; {', '.join(sorted(changed))} cannot change now.")
    return _Driver(replace(plan, settings=settings), engine, on_progress, started).run(is_new=False)


def estimate(sources: str | Path | Sequence[str | Path], **options: Any) -> Estimate:
    """List only: count what `embed` would press, and say how large the features can get.

    Parameters
    ----------
    sources, **options
        As for `embed`.
    """
    settings = Settings.from_options(**options)
    backbone = find_card(settings.features.model).backbone(settings.features.pooling)
    listing = Listing(describe(sources, all_files=settings.listing.all_files), settings.listing)
    images = n_bytes = name_bytes = 0
    for ref in listing:
        images += 1
        n_bytes += ref.size
        name_bytes += len(ref.order)
    return Estimate(
        images=images,
        bytes=n_bytes,
        skipped=listing.skipped,
        parts=Layout.of(settings.output.images_per_part, settings.features.pooling).n_shards(images),
        n_features=backbone.n_features,
        expected_bytes=images * (4 * backbone.n_features + 72) + name_bytes,
    )


def expand_time(out: str) -> str:
    """Replace ``{time}`` by the local date and time."""
    return out.replace("{time}", time.strftime("%Y_%m_%d_%H_%M_%S"))


def _same_plan(standing: Plan, draft: Plan) -> Plan:
    """Give the standing plan with the new request's resources, or refuse a request for another one."""
    differences = standing.differences(draft)
    if differences:
        raise PlanMismatchError(
            f"'{standing.storage.location}' holds another plan; it has {'; '.join(differences)}. "
            "Choose another --out, or give the settings it was made with."
        )
    return replace(standing, settings=draft.settings)


def _require_free(storage: Storage, destination: str) -> None:
    """Refuse a destination that holds anything but our own beginnings."""
    path = Path(storage.location)
    if path.exists() and not path.is_dir():
        raise DestinationError(f"The destination '{destination}' is a file. Give a folder with --out.")
    foreign = next((entry.name for entry in storage.list("")), None)
    if foreign is None and path.is_dir():
        foreign = next((p.name for p in path.iterdir() if p.name != "plan"), None)
    if foreign is not None:
        raise DestinationError(
            f"The destination '{destination}' holds something else ('{foreign}') and no featurepress plan. "
            "Nothing was touched. Choose another --out."
        )


def _n_workers(settings: Settings, n_features: int, largest_part: int) -> int:
    """Give the number of workers that cores, the user and the memory allow."""
    wanted = settings.resources.workers or available_cores()
    memory = settings.resources.memory_bytes
    if memory is None:
        return wanted
    # A part is held once as an array and once, at most, encoded.
    each = WORKER_BYTES + 2 * 4 * n_features * largest_part
    fitting = (memory - DRIVER_BYTES) // each
    if fitting < 1:
        raise SettingError(
            f"The 'memory_bytes' setting (--memory) must be at least {DRIVER_BYTES + each} for one worker with "
            f"parts of {largest_part} images. Got {memory}. Smaller --images-per-part need less."
        )
    return int(min(wanted, fitting))


class _Driver:
    """One run of one plan, from its first or any later moment to the manifest."""

    def __init__(self, plan: Plan, engine: Engine | None, on_progress: OnProgress, started: float) -> None:
        self.plan = plan
        self.started = started
        self.progress = Progress()
        self._on_progress = on_progress
        self._engine = engine
        self._totals = Totals()
        self._repaired: set[int] = set()

    def run(self, *, is_new: bool) -> FeatureSet:
        manifest = None if is_new else ledger.read_manifest(self.plan.storage)
        if manifest is not None:
            return FeatureSet(self.plan, manifest, _summary_again(manifest, self.started))
        from featurepress.pipeline import Press, silence_limit

        owned = None
        if self._engine is None:
            part = self.plan.layout.tiers[-1].part
            workers = _n_workers(self.plan.settings, self.plan.backbone.n_features, part)
            owned = LocalEngine(
                workers, silence_seconds=silence_limit(self.plan), preload=("featurepress.pipeline",)
            )
            owned.warm_up(1)
        engine = self._engine or owned
        assert engine is not None
        try:
            lister = self._begin(engine) if is_new else _Lister(self.plan)
            manifest = self._finish(engine, lister, Press())
        finally:
            if owned is not None:
                owned.close()
        return self._result(manifest)

    # -- the beginning ---------------------------------------------------------------------------------------

    def _begin(self, engine: Engine) -> _Lister:
        """List the first images, try them, and create the plan."""
        listing = Listing(self.plan.sources, self.plan.settings.listing)
        stream = iter(listing)
        head = list(itertools.islice(stream, PROBE_IMAGES))
        if not head:
            raise SourceError("The sources hold no image.")
        if isinstance(engine, LocalEngine):
            engine.warm_up(self.plan.layout.n_shards(len(head)))
        result = _probe(engine, self.plan, tuple(head))
        if result.n_good == 0:
            raise SourceError(_all_failed(result))
        self._require_precision(result)
        self.plan = replace(self.plan, precision=result.precision, certificate=result.certificate)
        self.plan.storage.prepare()
        if not ledger.create_plan(self.plan):
            standing = ledger.read_plan(self.plan.storage)
            if standing is None:
                raise StoppedError(f"The plan at '{self.plan.storage.location}' vanished while it was read.")
            self.plan = _same_plan(standing, self.plan)
            return _Lister(self.plan)
        return _Lister(self.plan, listing, itertools.chain(head, stream))

    def _require_precision(self, result: ProbeResult) -> None:
        asked = self.plan.settings.features.precision
        if asked == "bfloat16" and result.precision != "bfloat16":
            raise RequestError(
                "The precision bfloat16 was asked for, and this CPU has no native bfloat16. "
                "Use --precision auto or float32."
            )

    # -- the middle ------------------------------------------------------------------------------------------

    def _finish(self, engine: Engine, lister: _Lister, press: Press) -> dict[str, Any]:
        """Press what is left, balance, export, and write the manifest."""
        done = ledger.finished_shards(self.plan)
        self.progress.stage = "pressing"
        self.progress.started = time.perf_counter()
        with lister:
            for receipt in engine.run(press, self.plan, self._left(lister, done), self._hear):
                self._count(receipt)
        self._balance(engine, press)
        self._export(engine)
        ledger.clear_attempts(self.plan)
        manifest = self._manifest()
        ledger.write_manifest(self.plan, manifest)
        return manifest

    def _left(self, lister: _Lister, done: set[int]) -> Iterator[int]:
        """Yield the shards without a receipt as their chunks are committed; count those with one."""
        for chunk in lister:
            self.progress.listed += chunk.n_images
            for shard in chunk.shards(self.plan.layout):
                receipt = ledger.read_receipt(self.plan, shard) if shard in done else None
                if receipt is None or not receipt.balances:
                    yield shard
                    continue
                self._totals.add(receipt)
                self.progress.pressed += receipt.pressed
                self.progress.failed += receipt.failed
                self.progress.done_before += receipt.listed
            self._on_progress(self.progress)
        self.progress.listing = False

    def _hear(self, news: Any) -> None:
        """Take a beat of a worker."""
        if news[0] == "images":
            self.progress.pressed += news[1]
            self.progress.failed += news[2]
            self._on_progress(self.progress)

    def _count(self, receipt: Receipt) -> None:
        if receipt.balances:
            self._totals.add(receipt)
        else:
            self._repaired.add(receipt.shard)
        self._on_progress(self.progress)

    def _balance(self, engine: Engine, press: Press) -> None:
        """Make sure that every listed image is a row or a failure; press again what is not."""
        listing = ledger.read_listing(self.plan)
        if listing is None:
            raise StoppedError("The listing did not come to its end.")
        expected = set(range(self.plan.layout.n_shards(listing["images"])))
        missing = (expected - ledger.finished_shards(self.plan)) | self._repaired
        if missing:
            for shard in missing:
                ledger.delete_receipt(self.plan, shard)
                self.plan.storage.delete(part_name(shard))
            for receipt in engine.run(press, self.plan, sorted(missing), self._hear):
                if not receipt.balances:
                    raise StoppedError(f"Shard {receipt.shard} does not balance: {receipt.to_json()}.")
        if missing or self._totals.listed != listing["images"]:
            self._recount(expected)
        if self._totals.listed != listing["images"]:
            raise StoppedError(
                f"The ledger does not balance: {listing['images']} images are listed, the receipts tell of "
                f"{self._totals.listed}. The feature set '{self.plan.storage.location}' was changed by "
                "something else; embed into a new one."
            )

    def _recount(self, shards: Iterable[int]) -> None:
        self._totals = Totals()
        for shard in sorted(shards):
            if (receipt := ledger.read_receipt(self.plan, shard)) is not None:
                self._totals.add(receipt)

    # -- the end ---------------------------------------------------------------------------------------------

    def _export(self, engine: Engine) -> None:
        output = self.plan.settings.output
        if output.format != "csv":
            return
        self.progress.stage = "exporting"
        self._on_progress(self.progress)
        there = {entry.name for entry in self.plan.storage.list("csv")}
        left = [i for i in range(output.parts) if csv_name(i) not in there]
        for _ in engine.run(ExportCsv(output.parts), self.plan, left):
            pass

    def _manifest(self) -> dict[str, Any]:
        totals = self._totals
        listing = ledger.read_listing(self.plan) or {}
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
            "pressed": totals.pressed,
            "failed": totals.failed,
            "failed_by_kind": totals.failed_by_kind,
            "skipped": listing.get("skipped", {}),
            "parts": totals.parts,
            "bytes_read": totals.bytes_read,
            "bytes_written": sum(entry.size for entry in self.plan.storage.list("features")),
            "precision": {"images": totals.precisions, "certificate": dict(self.plan.certificate)},
            "cpus": totals.cpus,
        }

    def _result(self, manifest: dict[str, Any]) -> FeatureSet:
        """Give the finished set, unless too much failed."""
        self.progress.stage = "done"
        self._on_progress(self.progress)
        seconds = time.perf_counter() - self.started
        here = manifest["listed"] - self.progress.done_before
        summary = Summary(
            **{name: manifest[name] for name in _SHARED},
            seconds=seconds,
            images_per_second=here / seconds,
            already_done=False,
        )
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


_SHARED = (
    "listed",
    "pressed",
    "failed",
    "failed_by_kind",
    "skipped",
    "bytes_read",
    "bytes_written",
    "parts",
)


def _summary_again(manifest: dict[str, Any], started: float) -> Summary:
    """Give the summary of a run that found everything done."""
    return Summary(
        **{name: manifest[name] for name in _SHARED},
        seconds=time.perf_counter() - started,
        images_per_second=0.0,
        already_done=True,
    )


def _probe(engine: Engine, plan: Plan, refs: tuple[ImageRef, ...]) -> ProbeResult:
    """Try the first images; one that kills the process is left to the pressing, which knows what to do."""
    from featurepress.pipeline import Probe

    while True:
        position = [0]

        def hear(news: Any, position: list[int] = position) -> None:
            if news[0] == "at":
                position[0] = news[1]

        try:
            return next(iter(engine.run(Probe(refs), plan, [0], hear)))
        except WorkerDeathError:
            refs = refs[: position[0]] + refs[position[0] + 1 :]
            if not refs:
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


class _Lister:
    """Commits the listing chunk by chunk in a thread, and hands out the chunks that stand.

    Parameters
    ----------
    plan : Plan
        Its destination may already hold chunks; the listing goes on after the last one.
    listing, refs
        A listing that is already under way, and its references from the very first.
    """

    def __init__(self, plan: Plan, listing: Listing | None = None, refs: Iterator[ImageRef] | None = None) -> None:
        self._plan = plan
        self._listing = listing
        self._refs = refs
        self._outbox: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="featurepress-list", daemon=True)

    def __enter__(self) -> _Lister:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join()

    def __iter__(self) -> Iterator[Chunk]:
        while (item := self._outbox.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        try:
            for chunk in self._chunks():
                self._outbox.put(chunk)
                if self._stopping:
                    break
            self._outbox.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the chunks are taken
            self._outbox.put(error)

    def _chunks(self) -> Iterator[Chunk]:
        """Yield the chunks that stand, then those that this listing adds, then say that it is complete."""
        plan, n_images, last_key = self._plan, 0, b""
        skipped_before: dict[str, int] = {}
        complete = ledger.read_listing(plan)
        for number in itertools.count():
            if complete is not None and number == complete["chunks"]:
                return
            chunk = ledger.read_chunk(plan, number) if self._refs is None or complete else None
            if chunk is None:
                if self._refs is None:
                    skipped_before = self._take_up(last_key, n_images, skipped_before)
                chunk = self._commit(number, skipped_before)
            if chunk is None:
                ledger.finish_listing(plan, number, n_images, self._skipped(skipped_before))
                return
            n_images += chunk.n_images
            if self._refs is None or chunk.last_key != self._last_listed:
                # Another driver's chunk, or an earlier run's: the listing goes on where that one ended.
                self._refs, last_key, skipped_before = None, chunk.last_key, dict(chunk.skipped)
            yield chunk

    def _take_up(self, last_key: bytes, n_images: int, skipped: dict[str, int]) -> dict[str, int]:
        self._listing = Listing(
            self._plan.sources, self._plan.settings.listing, start_after=last_key, n_before=n_images
        )
        self._refs = iter(self._listing)
        return skipped

    def _commit(self, number: int, skipped_before: dict[str, int]) -> Chunk | None:
        assert self._refs is not None
        size = self._plan.layout.tier(number).chunk
        refs = list(itertools.islice(self._refs, size))
        if not refs:
            return None
        self._last_listed = refs[-1].order
        return ledger.commit_chunk(self._plan, number, refs, self._skipped(skipped_before))

    def _skipped(self, before: dict[str, int]) -> dict[str, int]:
        skipped = dict(before)
        for reason, count in (self._listing.skipped if self._listing else {}).items():
            skipped[reason] = skipped.get(reason, 0) + count
        return skipped
