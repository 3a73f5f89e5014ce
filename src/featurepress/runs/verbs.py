"""The public functions embed, resume, update, retry and estimate: each turns a request into a plan and runs it."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from featurepress import ledger
from featurepress._version import __version__
from featurepress.engines import Engine, Task
from featurepress.errors import (
    DestinationError,
    FeatureSetError,
    SettingError,
    SourceError,
    StoppedError,
    StorageError,
    TooManyFailuresError,
)
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan
from featurepress.ledger.destination import existing_plan, require_same_plan
from featurepress.ledger.layout import Layout
from featurepress.models import store
from featurepress.models.catalog import find_card
from featurepress.progress import OnProgress, ignore_progress, show_progress
from featurepress.runs.driver import Driver, Job
from featurepress.runs.updates import NextGeneration
from featurepress.settings import EmbedOptions, ResumeOptions, RetryOptions, Settings
from featurepress.sources import Listing, Locations, describe, field_names
from featurepress.specs import BackboneSpec, Receipt
from featurepress.storage import open_storage

DEFAULT_OUT = "results{time}"
# Upper bounds: of a row without features and uri, of a part without rows, of a number as text.
_ROW_BYTES, _PART_BYTES, _CSV_BYTES = 80, 4_000, 16


@dataclass(frozen=True)
class Request:
    """A request to embed images."""

    sources: Locations
    out: str  # the destination
    settings: Settings


@dataclass(frozen=True)
class Estimate:
    """What a run would do: counts of the listing, and the largest possible size of the features.

    Attributes
    ----------
    images, bytes : int
        Number of images, and their size.
    skipped : dict
        Number of skipped files, by reason.
    parts, n_features : int
        Number of parts, and of features per image.
    expected_bytes : int
        Largest possible size of the features.
    """

    images: int
    bytes: int
    skipped: dict[str, int]
    parts: int
    n_features: int
    expected_bytes: int


def embed(
    sources: Locations,
    out: str | Path = DEFAULT_OUT,
    *,
    engine: Engine | None = None,
    progress: bool | OnProgress = True,
    **options: Unpack[EmbedOptions],
) -> FeatureSet:
    """Embed images into a feature set.

    The same call again finishes a run that was interrupted, and does nothing after one that has finished.

    Parameters
    ----------
    sources : str, path, or sequence of them
        Folders with everything below them, globs, files, buckets, archives, tables, or lists of urls.
    out : str or path
        The destination; ``{time}`` in it becomes the date and time, for example ``2026_11_22_10_54_08``.
    engine : Engine, optional
        Where to run; by default worker processes on this machine.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress` several times a second.
    **options
        Which images: `labels`, `include`, `exclude`, `all_files`, `limit`, `image_column`, `label_column`,
        `uri_column`, `anonymous`, `allow_private_hosts`. Limits of one image: `max_pixels`, `max_bytes`,
        `timeout_seconds`. Features: `model`, `size`, `alpha`, `weights`, `pooling`, `precision`. Output:
        `images_per_part`, `format`, `parts`, `max_failures`. This machine: `workers`, `memory_bytes`.
        ``featurepress embed --help`` explains each.

    Returns
    -------
    FeatureSet
        The complete set; its `summary` describes this run.

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
    request = Request(sources, expand_time(str(out)), Settings.from_options(**options))
    with show_progress(progress) as on_progress:
        return run_plan(prepare(request, on_progress), engine=engine, on_progress=on_progress, started=started)


def resume(
    destination: str | Path,
    *,
    engine: Engine | None = None,
    progress: bool | OnProgress = True,
    **options: Unpack[ResumeOptions],
) -> FeatureSet:
    """Finish the run at a destination, with the settings of its plan.

    Parameters
    ----------
    destination : str or path
        The ``--out`` of the run.
    engine, progress
        As for `embed`.
    **options
        Settings that do not shape the features: `workers`, `memory_bytes`, `timeout_seconds`, `max_failures`,
        `anonymous`, `allow_private_hosts`.

    Returns
    -------
    FeatureSet
        The complete set; its `summary` describes this run.

    Raises
    ------
    FeatureSetError
        There is no plan.
    """
    return _continue("resume", destination, engine, progress, options)


def update(
    destination: str | Path,
    *,
    engine: Engine | None = None,
    progress: bool | OnProgress = True,
    **options: Unpack[ResumeOptions],
) -> FeatureSet:
    """Bring a complete feature set up to date with its sources; only what changed is reprocessed.

    New and changed images are embedded, rows of deleted images are removed, and all other rows stay as they are. If
    an earlier update was interrupted, the call only finishes that one.

    Parameters
    ----------
    destination : str or path
        The ``--out`` of the run.
    engine, progress
        As for `embed`.
    **options
        As for `resume`.

    Returns
    -------
    FeatureSet
        The complete set; its `summary.changes` has the counts.

    Raises
    ------
    FeatureSetError
        There is no feature set, or its run has not finished.
    """
    return _continue("update", destination, engine, progress, options)


def retry(
    destination: str | Path,
    *,
    engine: Engine | None = None,
    progress: bool | OnProgress = True,
    **options: Unpack[RetryOptions],
) -> FeatureSet:
    """Embed only the images that failed, once more.

    Parameters
    ----------
    destination, engine, progress, **options
        As for `update`; `max_bytes` and `max_pixels` are allowed as well.

    Returns
    -------
    FeatureSet
        The complete set; its `summary.changes` has the counts.

    Raises
    ------
    FeatureSetError
        There is no feature set, or its run has not finished.
    """
    return _continue("retry", destination, engine, progress, options)


def estimate(
    sources: Locations,
    out: str | Path = DEFAULT_OUT,
    *,
    progress: bool | OnProgress = True,
    **options: Unpack[EmbedOptions],
) -> Estimate:
    """Count the images that `embed` would embed, and estimate the largest size of the features; write nothing.

    Parameters
    ----------
    sources, out, progress, **options
        As for `embed`, with the same errors.
    """
    request = Request(sources, expand_time(str(out)), Settings.from_options(**options))
    with show_progress(progress) as on_progress:
        plan = prepare(request, on_progress)
    _find_existing(plan)
    _ = plan.n_workers  # refuses too little memory
    listing = Listing(plan.sources, plan.settings.listing, limits=plan.settings.images)
    images = n_bytes = uri_bytes = 0
    for ref in listing:
        images += 1
        n_bytes += ref.size
        uri_bytes += len(ref.order)
    parts, n_features = plan.layout.n_shards(images), plan.backbone.n_features
    expected = images * (4 * n_features + _ROW_BYTES) + uri_bytes + parts * _PART_BYTES
    if plan.settings.output.format == "csv":
        expected += images * _CSV_BYTES * n_features + 2 * uri_bytes
    return Estimate(images, n_bytes, listing.skipped, parts, n_features, expected)


def expand_time(out: str) -> str:
    """Replace ``{time}`` by the local date and time."""
    return out.replace("{time}", time.strftime("%Y_%m_%d_%H_%M_%S"))


# -- new plans -----------------------------------------------------------------------------------------------


def prepare(request: Request, on_progress: OnProgress = ignore_progress) -> Plan:
    """Check a request, prepare its model, and return its plan, whose precision is decided by the run.

    To prepare a model can take minutes. Therefore the destination and the first image are checked before.

    Raises
    ------
    RequestError
        The destination holds something else, the sources hold no image, or there is no such model.
    """
    storage, settings = open_storage(request.out), request.settings
    if existing_plan(storage) is None:  # otherwise the sources were listed before, and may be gone
        specs = describe(request.sources, settings.listing, destination=storage.location)
        if next(iter(Listing(specs, settings.listing, limits=settings.images)), None) is None:
            raise SourceError("The sources hold no image.")
    return draft_plan(request, find_backbone(settings, on_progress))


def draft_plan(request: Request, backbone: BackboneSpec) -> Plan:
    """Return the plan of a request for a backbone; its precision is decided by the run."""
    storage, settings = open_storage(request.out), request.settings
    specs = describe(request.sources, settings.listing, destination=storage.location)
    parity = store.read_note(backbone.file, store.CERTIFICATE).get(backbone.pooling)  # of an earlier `verify`
    is_current = parity is not None and parity.get("fingerprint") == backbone.fingerprint
    return ledger.new_plan(
        storage,
        sources=specs,
        backbone=backbone,
        precision="float32",
        certificate={"parity": parity} if is_current else {},
        settings=settings,
        layout=Layout.of(settings.output.images_per_part, settings.features.pooling, remote=storage.is_remote),
        field_names=field_names(settings.listing, specs),
        library_version=__version__,
    )


def find_backbone(settings: Settings, on_progress: OnProgress = ignore_progress) -> BackboneSpec:
    """Return the backbone of the settings; prepare its model if that has not been done."""
    options = asdict(settings.features)
    del options["precision"]
    card = find_card(options.pop("model"), **options, on_progress=on_progress)
    return card.backbone(settings.features.pooling)


def run_plan(
    plan: Plan,
    *,
    engine: Engine | None = None,
    on_progress: OnProgress = ignore_progress,
    task: Task[Receipt] | None = None,
    started: float | None = None,
) -> FeatureSet:
    """Carry out a plan from `prepare` or `draft_plan`, or finish the same plan at its destination; see `Job`."""
    started = time.perf_counter() if started is None else started
    existing = _find_existing(plan)
    parts: dict[str, Any] = {"engine": engine, "on_progress": on_progress, "started": started, "task": task}
    job = Job(plan, is_new=True, **parts) if existing is None else _continued(existing, **parts)
    return Driver(job).run()


def _find_existing(draft: Plan) -> Plan | None:
    """Return the plan at the destination of a draft, which must be the same plan; None if there is none."""
    existing = existing_plan(draft.storage)
    return None if existing is None else require_same_plan(existing, draft)


# -- existing plans ------------------------------------------------------------------------------------------


def _continue(
    verb: str,
    destination: str | Path,
    engine: Engine | None,
    progress: bool | OnProgress,
    options: Mapping[str, Any],
) -> FeatureSet:
    started = time.perf_counter()
    plan = _plan_at(destination, verb, options)
    manifest = ledger.read_manifest(plan.storage)
    if manifest is None and verb != "resume":
        raise FeatureSetError(
            f"The feature set '{destination}' is not complete, so there is nothing to {verb}. Finish it with: "
            f"featurepress resume {shlex.quote(str(destination))}"
        )
    with show_progress(progress) as on_progress:
        job = _continued(plan, engine=engine, on_progress=on_progress, started=started)
        state = None if manifest is None else (manifest["status"], manifest["generation"])
        if verb != "resume" and state == ("complete", plan.generation):
            if ledger.unfinished_shards(plan.storage):
                with contextlib.suppress(TooManyFailuresError):  # a retry may repair that
                    Driver(job).run()
            new = ledger.next_plan(plan, verb)
            job = replace(job, plan=new, shard_groups=NextGeneration(new, _begin_generation))
        return Driver(job).run()


def _continued(plan: Plan, **parts: Any) -> Job:
    """Return the job that finishes the plan at a destination."""
    if plan.generation == 1:
        return Job(plan, **parts)
    ledger.begin_generation(plan)  # does nothing, unless the process was killed before it did so
    return Job(plan, shard_groups=NextGeneration(plan), **parts)


def _begin_generation(plan: Plan, revised: set[int]) -> None:
    """Write the plan of a new generation, then announce it in the manifest."""
    if not ledger.record_revised(plan, revised) or not ledger.create_plan(plan):
        where = plan.storage.location
        raise StoppedError(
            f"Another process has begun to change '{where}' at the same moment. To join it, run: "
            f"featurepress resume {shlex.quote(where)}"
        )
    ledger.begin_generation(plan)


def _plan_at(destination: str | Path, verb: str, options: Mapping[str, Any]) -> Plan:
    """Read the newest plan at a destination, and apply the options of a later run."""
    try:
        plan = ledger.read_plan(open_storage(str(destination)))
    except (StorageError, DestinationError) as error:
        raise FeatureSetError(str(error)) from error
    if plan is None:
        raise FeatureSetError(
            f"There is nothing to {verb} in '{destination}': no {ledger.PLAN} in it. Use the --out of an embed."
        )
    if plan.backbone.projection:
        origin = plan.certificate["reduced"]["features"]
        raise FeatureSetError(
            f"'{destination}' was made by featurepress reduce, of '{origin}': there is nothing to {verb} in it. To "
            "finish it, run that reduce again; to follow changes, update that set and reduce it again."
        )
    before = {name: value for stage in plan.settings.to_json().values() for name, value in stage.items()}
    settings = Settings.from_options(**{**before, **options})
    fixed = {**settings.identity(), **asdict(settings.features)}
    free = ("max_bytes", "max_pixels") if verb == "retry" else ()
    changed = {name for name, value in fixed.items() if value != before[name] and name not in free}
    if changed:
        subject = {"resume": "A resumed run", "update": "An update", "retry": "A retry"}[verb]
        raise SettingError(
            f"{subject} keeps the settings of the set; {', '.join(sorted(changed))} cannot change now."
        )
    return replace(plan, settings=settings)
