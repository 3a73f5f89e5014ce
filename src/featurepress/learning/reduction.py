"""Reduce a feature set to fewer features: fit a projection, or reuse one, and write the projected set.

The result is a feature set like any other, with the rows and the failures of its source, part by part. Its plan
is that of the source, with the projection in the fingerprint.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from featurepress import ledger
from featurepress._version import __version__
from featurepress.analysis import PCA, fit
from featurepress.engines import Engine
from featurepress.errors import FeatureSetError, PlanMismatchError, SettingError, StoppedError
from featurepress.features.feature_set import FeatureSet, parts_hash
from featurepress.learning.arguments import as_feature_set, open_destination, require_outside
from featurepress.learning.reduced import ReducedFeatureSet, read_projection
from featurepress.learning.runner import Runner
from featurepress.ledger import Plan, Totals
from featurepress.ledger.destination import destination_errors, existing_plan
from featurepress.ledger.names import FEATURES_FOLDER, part_name, projection_name, shard_of
from featurepress.ledger.parts import PartWriter, open_part
from featurepress.process import send_message
from featurepress.progress import OnProgress, show_progress
from featurepress.reports.files import ReportFiles, free_report_files
from featurepress.settings import ReduceOptions, ReductionSettings
from featurepress.specs import Receipt
from featurepress.storage import Storage, open_storage

DEFAULT_OUT = "reduced{time}"


def reduce(
    features: FeatureSet | str | Path,
    out: str | Path = DEFAULT_OUT,
    *,
    using: FeatureSet | str | Path | None = None,
    report: str | Path | None = None,
    engine: Engine | None = None,
    progress: bool | OnProgress = True,
    **options: Unpack[ReduceOptions],
) -> ReducedFeatureSet:
    """Reduce features by principal component analysis.

    The same call again finishes a set that was interrupted.

    Parameters
    ----------
    features : FeatureSet, str or path
        A complete set, or its location.
    out : str or path, default='reduced{time}'
        Where the reduced set is written; ``{time}`` becomes the date and time.
    using : FeatureSet, str or path, optional
        A reduced set whose projection is reused, for later images; then nothing is fitted.
    report : str or path, optional
        An HTML page, ``NAME.html`` on this machine: the variance of the components, and a map of the reduced rows.
        Its plots are written beside it, as ``NAME-variance.png`` and ``NAME-map.png``.
    engine : Engine, optional
        Where to run; by default in worker processes on this machine.
    progress : bool or callable
        True shows one line in a terminal or notebook. A callable gets a `Progress` several times a second.
    **options
        `n_components` (128), `variance`, `whiten`, `solver`, `random_state`: see `featurepress.PCA`.

    Returns
    -------
    ReducedFeatureSet
        The reduced set; its `pca` is the projection.

    Raises
    ------
    AnalysisError
        The set has too few rows, or features that are NaN or infinite.
    FeatureSetError
        There is no complete feature set, or `using` is not a reduced one.
    PlanMismatchError
        `using` is of another feature space, or `out` holds another set.
    DestinationError
        `out` or `report` cannot be written, or a file of the report exists.

    See Also
    --------
    featurepress.analysis.fit : Fit a PCA to a feature set and write nothing.

    Examples
    --------
    >>> import featurepress as fp
    >>> reduced = fp.reduce("features/", "reduced/", n_components=128)  # doctest: +SKIP
    >>> reduced.pca.explained_variance_ratio_.sum()  # doctest: +SKIP
    """
    settings = _settings(options, using)
    files = None if report is None else free_report_files(report, plots=("variance", "map"))
    features = as_feature_set(features)
    _require_unreduced(features)
    storage = open_destination(out)
    require_outside(features, storage)
    origin = _origin(features, {**asdict(settings), "using": None if using is None else _location(using)})
    plan = _existing_plan(storage, origin)
    with (
        show_progress(progress) as on_progress,
        contextlib.closing(Runner(features, engine, on_progress, preload=__name__)) as runner,
    ):
        if plan is None:
            if using is None:
                pca = fit(PCA(**asdict(settings)), features, functools.partial(runner.fit, features.plan))
            else:
                pca = _projection_for(features, as_feature_set(using))
            plan = _create_plan(storage, features, pca, origin)
        _write(plan, features, runner)
    reduced = ReducedFeatureSet(plan, ledger.read_manifest(plan.storage))
    if files is not None:
        _report(files, reduced, features)
    return reduced


def _settings(options: Mapping[str, Any], using: object) -> ReductionSettings:
    """Return the settings; with the projection of another set there are none to choose."""
    settings = ReductionSettings.from_options(**options)
    if using is not None and options:
        raise SettingError(
            "The projection of another set (--using) fixes all settings. Leave out "
            f"{', '.join(options)}, or leave out using."
        )
    return settings


def _require_unreduced(features: FeatureSet) -> None:
    if features.plan.backbone.projection:
        origin = features.plan.certificate["reduced"]["features"]
        raise FeatureSetError(f"'{features.location}' is reduced already. Reduce its source, '{origin}'.")


def _location(features: FeatureSet | str | Path) -> str:
    return features.location if isinstance(features, FeatureSet) else open_storage(str(features)).location


def _projection_for(features: FeatureSet, using: FeatureSet) -> PCA:
    """Return the projection of a reduced set, which must be of the feature space of `features`."""
    if not using.plan.backbone.projection:
        raise FeatureSetError(
            f"'{using.location}' is not a reduced set. Name one that featurepress reduce has written."
        )
    if differences := using.plan.backbone.unprojected.differences(features.plan.backbone):
        raise PlanMismatchError(
            f"The projection of '{using.location}' does not fit '{features.location}'. It needs features with "
            f"{'; '.join(differences)}. Embed both with the same model."
        )
    return read_projection(using.plan)


# -- the reduced set -----------------------------------------------------------------------------------------


def _origin(features: FeatureSet, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a reduction: its source and its settings."""
    return {
        "features": features.location,
        "run_id": features.plan.run_id,
        "parts": parts_hash(features),
        "settings": settings,
    }


def _existing_plan(storage: Storage, origin: Mapping[str, Any]) -> Plan | None:
    """Return the plan at the destination, which must be of the same reduction; None if there is none."""
    plan = existing_plan(storage)
    if plan is None:
        return None
    existing = plan.certificate.get("reduced")
    if existing != origin:
        content = "another reduction" if existing else "a set that reduce has not written"
        raise PlanMismatchError(f"'{storage.location}' holds {content}. Choose another --out.")
    return plan


def _create_plan(storage: Storage, features: FeatureSet, pca: PCA, origin: dict[str, Any]) -> Plan:
    """Write the projection and the plan of a reduced set; another process may write the same."""
    data = pca.to_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    source = features.plan
    plan = ledger.new_plan(
        storage,
        sources=source.sources,
        backbone=replace(source.backbone, projection={"sha256": sha256, "n_components": len(pca.components_)}),
        precision=source.precision,
        certificate={**source.certificate, "reduced": origin},
        settings=source.settings,
        layout=source.layout,
        field_names=source.field_names,
        library_version=__version__,
        purpose="reduce",
    )
    with destination_errors():
        storage.prepare()
        storage.write(projection_name(sha256), data)
        if ledger.create_plan(plan):
            return plan
    existing = _existing_plan(storage, origin)
    if existing is None:
        raise StoppedError(f"The plan at '{storage.location}' was deleted meanwhile. Run the same command again.")
    return existing


def _write(plan: Plan, features: FeatureSet, runner: Runner) -> None:
    """Project the parts that are missing, check that all are there, and write the manifest."""
    shards = sorted(shard_of(name) for name in features.parts)
    finished = ledger.finished_shards(plan)
    missing = [shard for shard in shards if shard not in finished]
    for _ in runner.run(plan, "projecting", ProjectPart(features.plan), missing):
        pass
    totals = Totals()
    for receipt in ledger.read_receipts(plan, shards):
        if receipt is not None:
            totals.add(receipt)
    if totals.embedded != len(features) or FeatureSet(features.plan, None).parts != features.parts:
        raise StoppedError(
            f"The feature set '{features.location}' changed while it was reduced. Reduce it again, into another "
            "--out."
        )
    ledger.complete_manifest(plan, lambda: _manifest(plan, features, totals))


def _manifest(plan: Plan, features: FeatureSet, totals: Totals) -> dict[str, Any]:
    pca = read_projection(plan)
    return {
        **(features.manifest or {}),
        "run_id": plan.run_id,
        "generation": plan.generation,
        "status": "complete",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fingerprint": plan.backbone.fingerprint,
        "n_features": plan.backbone.n_features,
        "listed": totals.listed,
        "embedded": totals.embedded,
        "failed": totals.failed,
        "failed_by_kind": totals.failed_by_kind,
        "parts": totals.parts,
        "bytes_written": sum(entry.size for entry in plan.storage.list(FEATURES_FOLDER)),
        "reduced": {
            **plan.certificate["reduced"],
            "solver": pca.solver_,
            "fitted_to": pca.n_samples_,
            "explained_variance_ratio": round(float(pca.explained_variance_ratio_.sum()), 6),
        },
    }


def _report(files: ReportFiles, reduced: ReducedFeatureSet, features: FeatureSet) -> None:
    """Write the report of a reduced set."""
    from featurepress.reports.report import map_rows, reduction_report

    pca, using = reduced.pca, reduced.reduction["settings"]["using"]
    Z, y = map_rows(reduced)
    fitted = f"{pca.n_samples_:,} images" + (f", those of '{using}'" if using else "")
    facts = {
        "where": reduced.location,
        "reduced from": features.location,
        "model": reduced.plan.backbone.model,
        "images": f"{len(reduced):,}",
        "features": f"{reduced.n_features:,} instead of {features.n_features:,}",
        "fitted to": f"{fitted}, solver {pca.solver_}" + (", whitened" if pca.whiten else ""),
        "on the map": f"{len(Z):,} images" + (", a random sample" if len(Z) < len(reduced) else ""),
    }
    files.write(*reduction_report(pca.explained_variance_ratio_, Z, y, facts))


@dataclass(frozen=True)
class ProjectPart:
    """The task that projects a part of a feature set, whose plan is `source`."""

    source: Plan

    def __call__(self, plan: Plan, shard: int) -> Receipt:
        """Project part number `shard` into the reduced set of `plan`."""
        started = time.perf_counter()
        pca, names = _cached_projection(plan), plan.field_names
        source = self.source.storage
        with open_part(source, shard) as existing:
            if existing is None:
                raise StoppedError(
                    f"'{source.location}/{part_name(shard)}' is missing. Update the set, and reduce it again."
                )
            receipt, failures = existing.account
            with contextlib.closing(PartWriter(names, len(pca.components_))) as part:
                for rows, X in existing.read_all_rows(names):
                    part.add(rows, pca.transform(X))
                    send_message(("rows", len(rows)))
                seconds, host = round(time.perf_counter() - started, 3), socket.gethostname()
                own = replace(receipt, generation=plan.generation, carried=0, host=host, seconds=seconds)
                account = part.commit(plan.storage, own, failures)
        ledger.finalize_shard(plan, account.receipt, account.failures)
        return account.receipt


@functools.lru_cache(maxsize=1)
def _cached_projection(plan: Plan) -> PCA:
    """Return the projection of a reduced set; a worker reads it once for many parts."""
    return read_projection(plan)
