"""Reduce a feature set to fewer numbers a picture: fit a projection, or take one, and write the projected set.

The set that is written is a feature set like any other. Its plan is the one of the set that it came from, with the
projection in its fingerprint; part for part it has the same rows, and the same failures.
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
from typing import Any

from featurepress import ledger
from featurepress._version import __version__
from featurepress.analysis import PCA, fit
from featurepress.engines import Engine
from featurepress.errors import (
    DestinationError,
    FeatureSetError,
    PlanMismatchError,
    SettingError,
    StoppedError,
    StorageError,
)
from featurepress.features.feature_set import FeatureSet, open_features
from featurepress.learning.runner import Runner
from featurepress.ledger import Plan, Totals
from featurepress.ledger.names import FEATURES_FOLDER, part_name, projection_name, shard_of
from featurepress.ledger.parts import PartFormat
from featurepress.process import send_message
from featurepress.progress import OnProgress, ignore_progress
from featurepress.reports.files import ReportFiles, free_report_files
from featurepress.runs.verbs import expand_time, require_free
from featurepress.settings import ReductionSettings
from featurepress.specs import Receipt
from featurepress.storage import Storage, open_storage


def reduce(
    features: FeatureSet | str | Path,
    out: str | Path | None = None,
    *,
    using: FeatureSet | str | Path | None = None,
    report: str | Path | None = None,
    engine: Engine | None = None,
    on_progress: OnProgress = ignore_progress,
    **options: Any,
) -> PCA:
    """Reduce features by principal component analysis.

    Parameters
    ----------
    features : FeatureSet, str or path
        A complete set, or where one lies.
    out : str or path, optional
        Where the reduced set is written; ``{time}`` in it becomes the date and time. Without it the PCA is fitted
        only. The same call again finishes a set that was interrupted.
    using : FeatureSet, str or path, optional
        A reduced set whose projection is taken as it is, for later pictures; nothing is fitted then.
    report : str or path, optional
        A page, ``NAME.html`` on this machine, that is written in the end: what the components keep, and a map of
        the reduced rows, which needs `out`. Its pictures are written beside it, as ``NAME-variance.png`` and
        ``NAME-map.png``.
    engine : Engine, optional
        Where to run; by default worker processes on this machine.
    on_progress : callable, optional
        Called now and then with what is being done, and how many bytes of features of how many are done.
    **options
        `n_components` (128), `variance`, `whiten`, `solver`, `random_state`: as of `featurepress.analysis.PCA`.

    Returns
    -------
    PCA
        Fitted: `explained_variance_ratio_`, `transform` and the rest.

    Raises
    ------
    AnalysisError
        There are too few pictures, or features that are no numbers.
    FeatureSetError
        There is no complete feature set, or `using` is not a reduced one.
    PlanMismatchError
        `using` is of another feature space, or `out` holds another set.
    DestinationError
        `out` or `report` cannot be written, or a file of the report is there already.

    Examples
    --------
    >>> import featurepress as fp
    >>> pca = fp.reduce("features/", "reduced/", n_components=128)  # doctest: +SKIP
    >>> pca.explained_variance_ratio_.sum()  # doctest: +SKIP
    """
    asked, report_files = _asked(options, using), _report_files(report, out)
    features = features if isinstance(features, FeatureSet) else open_features(features)
    if features.plan.backbone.projection:
        origin = features.plan.certificate["reduced"]["features"]
        raise FeatureSetError(
            f"'{features.location}' is a reduced set already. Reduce '{origin}', which it came from."
        )
    request = {**asdict(asked), "using": None if using is None else _location(using)}
    storage = None if out is None else open_storage(expand_time(str(out)))
    if storage is not None:
        features.require_outside(storage.location)
    standing = None if storage is None else _standing(storage, features, request)
    runner = Runner(features, engine, on_progress, preload=__name__)
    try:
        if standing is not None:
            pca = read_projection(standing)
        elif using is not None:
            pca = _taken(using, features)
        else:
            pca = fit(PCA(**asdict(asked)), features, functools.partial(runner.fit, features.plan))
        if storage is not None:
            plan = standing or _begin(storage, features, pca, request)
            _write(plan, features, runner)
            if report_files is not None:
                _report(report_files, plan, features, pca)
    finally:
        runner.close()
    return pca


def _asked(options: Mapping[str, Any], using: object) -> ReductionSettings:
    """Give the settings that are asked for."""
    settings = ReductionSettings.from_options(**options)
    if using is not None and options:
        raise SettingError(
            "With the projection of another set (using, --with) there is nothing else to choose. "
            f"Got {', '.join(options)}."
        )
    return settings


def _report_files(report: str | Path | None, out: str | Path | None) -> ReportFiles | None:
    """Give where the report goes, if one is asked for."""
    if report is None:
        return None
    if out is None:
        raise SettingError(
            "A report (--report) maps the reduced rows. Say where they are written, with out (--out)."
        )
    return free_report_files(report, pictures=("variance", "map"))


def _location(features: FeatureSet | str | Path) -> str:
    return features.location if isinstance(features, FeatureSet) else open_storage(str(features)).location


def _taken(using: FeatureSet | str | Path, features: FeatureSet) -> PCA:
    """Give the projection of a reduced set, which must be of the features' space."""
    reduced = using if isinstance(using, FeatureSet) else open_features(using)
    if not reduced.plan.backbone.projection:
        raise FeatureSetError(
            f"'{reduced.location}' is not a reduced set: give one that featurepress reduce has made."
        )
    base = reduced.plan.backbone.unprojected
    if differences := base.differences(features.plan.backbone):
        raise PlanMismatchError(
            f"The projection of '{reduced.location}' cannot be used for '{features.location}'; it is of features "
            f"with {'; '.join(differences)}. Embed both with the same model."
        )
    return read_projection(reduced.plan)


def read_projection(plan: Plan) -> PCA:
    """Read the projection of a reduced set.

    Raises
    ------
    FeatureSetError
        It is gone, or not the one that the set was made with.
    """
    storage, sha256 = plan.storage, plan.backbone.projection["sha256"]
    name = projection_name(sha256)
    data = storage.read(name)
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
        what = "gone" if data is None else "not what it was when the set was made (its hash is another)"
        raise FeatureSetError(
            f"'{storage.location}/{name}', the projection of the reduced set, is {what}. Reduce into another --out."
        )
    return PCA.from_bytes(data)


# -- the reduced set -----------------------------------------------------------------------------------------


def _standing(storage: Storage, features: FeatureSet, request: dict[str, Any]) -> Plan | None:
    """Give the plan at the destination, which must be of the same request, or None if the place is free."""
    try:
        plan = ledger.read_plan(storage)
        if plan is None:
            require_free(storage)
            return None
    except StorageError as error:
        raise DestinationError(f"{str(error).rstrip('.')}. Choose another --out.") from error
    origin = plan.certificate.get("reduced")
    if origin != _origin(features, request):
        made = "another reduction" if origin else "a set that was not made by reduce"
        raise PlanMismatchError(f"'{storage.location}' holds {made}. Choose another --out.")
    return plan


def _origin(features: FeatureSet, request: dict[str, Any]) -> dict[str, Any]:
    """Say where a reduced set comes from: enough to tell whether it would be the same one again."""
    return {
        "features": features.location,
        "run_id": features.plan.run_id,
        "parts": features.parts_hash,
        "asked": request,
    }


def _begin(storage: Storage, features: FeatureSet, pca: PCA, request: dict[str, Any]) -> Plan:
    """Write the projection and the plan of a reduced set."""
    data = pca.to_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    projection = {"sha256": sha256, "n_components": len(pca.components_)}
    source = features.plan
    plan = ledger.new_plan(
        storage,
        sources=source.sources,
        backbone=replace(source.backbone, projection=projection),
        precision=source.precision,
        certificate={**source.certificate, "reduced": _origin(features, request)},
        settings=source.settings,
        layout=source.layout,
        field_names=source.field_names,
        library_version=__version__,
        purpose="reduce",
    )
    try:
        storage.prepare()
        storage.write(projection_name(sha256), data)
        if ledger.create_plan(plan):
            return plan
    except StorageError as error:
        raise DestinationError(f"{str(error).rstrip('.')}. Choose another --out.") from error
    standing = _standing(storage, features, request)
    if standing is None:
        raise StoppedError(f"The plan at '{storage.location}' vanished while it was read. Run the same again.")
    return standing


def _write(plan: Plan, features: FeatureSet, runner: Runner) -> None:
    """Project what is left, check that all is there, and write the manifest."""
    shards = sorted(shard_of(name) for name in features.parts)
    done = ledger.finished_shards(plan)
    left = [shard for shard in shards if shard not in done]
    for _ in runner.run(plan, "projecting", ProjectPart(features.plan), left):
        pass
    totals = Totals()
    for receipt in ledger.read_receipts(plan, shards):
        if receipt is not None:
            totals.add(receipt)
    if totals.embedded != len(features) or FeatureSet(features.plan, None).parts != features.parts:
        raise StoppedError(
            f"The feature set '{features.location}' has changed while it was reduced. Reduce it again, into "
            "another --out."
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


def _report(files: ReportFiles, plan: Plan, features: FeatureSet, pca: PCA) -> None:
    """Write the report of a reduced set."""
    from featurepress.reports.report import map_rows, reduction_page, reduction_plots

    reduced, using = FeatureSet(plan, None), plan.certificate["reduced"]["asked"]["using"]
    Z, y = map_rows(reduced)
    fitted = f"{pca.n_samples_:,} pictures" + (f", those of '{using}'" if using else "")
    facts = {
        "where": reduced.location,
        "reduced from": features.location,
        "model": plan.backbone.model,
        "pictures": f"{len(reduced):,}",
        "numbers a picture": f"{reduced.n_features:,} instead of {features.n_features:,}",
        "fitted to": f"{fitted}, solver {pca.solver_}" + (", whitened" if pca.whiten else ""),
        "on the map": f"{len(Z):,} pictures" + (", evenly drawn" if len(Z) < len(reduced) else ""),
    }
    ratios = pca.explained_variance_ratio_
    pictures = reduction_plots(ratios, Z, y)
    files.write(reduction_page(ratios, Z, y, facts=facts, pictures=pictures), pictures)


@dataclass(frozen=True)
class ProjectPart:
    """The task that projects a part of a feature set.

    Parameters
    ----------
    source : Plan
        Of the set that is reduced.
    """

    source: Plan

    def __call__(self, plan: Plan, shard: int) -> Receipt:
        """Project part number `shard`; `plan` is that of the reduced set."""
        started = time.perf_counter()
        pca, names = _projection_of(plan), plan.field_names
        with PartFormat(names, self.source.backbone.n_features).standing(self.source.storage, shard) as standing:
            if standing is None:
                gone = f"{self.source.storage.location}/{part_name(shard)}"
                raise StoppedError(f"'{gone}' is gone. Update the set, and reduce it again.")
            receipt, failures = standing.account
            with contextlib.closing(PartFormat(names, len(pca.components_)).begin()) as part:
                for rows, X in standing.every_row(names):
                    part.add(rows, pca.transform(X))
                    send_message(("rows", len(rows)))
                seconds, host = round(time.perf_counter() - started, 3), socket.gethostname()
                own = replace(receipt, generation=plan.generation, carried=0, host=host, seconds=seconds)
                account = part.commit(plan.storage, own, failures)
        ledger.settle_shard(plan, account.receipt, account.failures)
        return account.receipt


def _projection_of(plan: Plan) -> PCA:
    """Give the projection of a reduced set; kept, since a worker projects many parts."""
    sha256 = plan.backbone.projection["sha256"]
    if sha256 not in _PROJECTIONS:
        _PROJECTIONS.clear()
        _PROJECTIONS[sha256] = read_projection(plan)
    return _PROJECTIONS[sha256]


_PROJECTIONS: dict[str, PCA] = {}  # by their hash; one at a time
