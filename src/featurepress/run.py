"""Embed, resume, estimate: turn a request into a plan and hand it to the driver."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import featurepress
from featurepress import ledger
from featurepress.driver import Driver, OnProgress, ignore_progress, same_plan
from featurepress.engines import Engine, Task
from featurepress.errors import DestinationError, FeatureSetError, SettingError
from featurepress.featureset import FeatureSet
from featurepress.ledger import Layout, Plan
from featurepress.models.catalog import find_card
from featurepress.records import Receipt
from featurepress.settings import Settings
from featurepress.sources import Listing, Locations, describe, field_names
from featurepress.storage import Storage, open_storage

DEFAULT_OUT = "results{time}"


@dataclass(frozen=True)
class Estimate:
    """What a run would do: counts of the listing, and the largest size its features can have."""

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
    on_progress: OnProgress = ignore_progress,
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
    return press_plan(draft, engine=engine, on_progress=on_progress, started=started)


def resume(
    destination: str | Path,
    *,
    engine: Engine | None = None,
    on_progress: OnProgress = ignore_progress,
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
    return Driver(replace(plan, settings=settings), engine, on_progress, started).run(is_new=False)


def estimate(sources: Locations, out: str | Path = DEFAULT_OUT, **options: Any) -> Estimate:
    """List only: count what `embed` would press, and say how large the features can get.

    Parameters
    ----------
    sources, out, **options
        As for `embed`; nothing is written to `out`, but it is left out of the listing.
    """
    settings = Settings.from_options(**options)
    backbone = find_card(settings.features.model).backbone(settings.features.pooling)
    specs = describe(sources, all_files=settings.listing.all_files, exclude=str(out))
    listing = Listing(specs, settings.listing)
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


def press_plan(
    draft: Plan,
    *,
    engine: Engine | None = None,
    on_progress: OnProgress = ignore_progress,
    press: Task[Receipt] | None = None,
    started: float | None = None,
) -> FeatureSet:
    """Carry out a plan, or finish the same plan at its destination.

    Parameters
    ----------
    draft : Plan
        Its precision is still to be decided.
    engine, on_progress
        As for `embed`.
    press : Task, optional
        What presses a shard; `featurepress.pipeline.Press` by default.
    started : float, optional
        `time.perf_counter` when the request came.
    """
    started = time.perf_counter() if started is None else started
    standing = ledger.read_plan(draft.storage)
    if standing is None:
        _require_free(draft.storage)
    else:
        standing = same_plan(standing, draft)
    driver = Driver(standing or draft, engine, on_progress, started, press)
    return driver.run(is_new=standing is None)


def expand_time(out: str) -> str:
    """Replace ``{time}`` by the local date and time."""
    return out.replace("{time}", time.strftime("%Y_%m_%d_%H_%M_%S"))


def _require_free(storage: Storage) -> None:
    """Refuse a destination that holds anything but our own beginnings."""
    destination, path = storage.location, Path(storage.location)
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
