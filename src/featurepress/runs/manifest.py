"""The manifest, the summary and the changes of a run, and the check that all images are accounted for."""

from __future__ import annotations

import shlex
import time
from dataclasses import fields
from typing import Any

from featurepress import ledger
from featurepress.errors import StoppedError, TooManyFailuresError
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan, Totals
from featurepress.ledger.names import CSV_FOLDER, FEATURES_FOLDER, part_name
from featurepress.progress import Changes, Summary
from featurepress.runs.tally import Tally


def require_balance(plan: Plan, totals: Totals, n_images: int) -> None:
    """Raise StoppedError unless the receipts account for all listed images."""
    if totals.listed != n_images:
        raise StoppedError(
            f"The ledger does not balance: {n_images} images are listed, and the receipts account for "
            f"{totals.listed}. Another program has changed the feature set '{plan.storage.location}'; "
            "embed into a new one."
        )


def is_finished(plan: Plan, manifest: dict[str, Any]) -> bool:
    """Whether a plan is complete, and no part, receipt or exported file has been lost since."""
    if manifest.get("status") != "complete" or manifest.get("generation", 1) != plan.generation:
        return False
    output = plan.settings.output
    n_files = output.parts if output.format == "csv" else 0
    return sum(1 for _ in plan.storage.list(CSV_FOLDER)) >= n_files and not ledger.unfinished_shards(plan.storage)


def build_manifest(plan: Plan, tally: Tally) -> dict[str, Any]:
    """Return the manifest of a run whose shards are all embedded."""
    listing = ledger.read_listing(plan) or {}
    totals = tally.totals
    if plan.generation > 1:
        totals = _totals_of_all_generations(plan, listing["before"] + tally.n_added)
    certificate = dict(plan.certificate)
    parity = certificate.pop("parity", None)
    return {
        "format": "featurepress",
        "status": "complete",
        "run_id": plan.run_id,
        "generation": plan.generation,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fingerprint": plan.backbone.fingerprint,
        "model": plan.backbone.model,
        "pooling": plan.backbone.pooling,
        "n_features": plan.backbone.n_features,
        "listed": totals.listed,
        "embedded": totals.embedded,
        "failed": totals.failed,
        "failed_by_kind": totals.failed_by_kind,
        "skipped": listing.get("skipped", {}),
        "parts": totals.parts,
        "bytes_read": totals.bytes_read,
        "bytes_written": sum(entry.size for entry in plan.storage.list(FEATURES_FOLDER)),
        "precision": {"images": totals.precisions, "certificate": certificate},
        "parity": parity,
        "cpus": totals.cpus,
        "conditional_writes": not ledger.is_unconditional(plan.storage),
    }


def _totals_of_all_generations(plan: Plan, n_images: int) -> Totals:
    """Return the sum of the newest receipts of all parts, of which none may be lost."""
    totals, location = Totals(), plan.storage.location
    parts = {entry.name for entry in plan.storage.list(FEATURES_FOLDER)}
    for receipt in ledger.newest_receipts(plan):
        if part_name(receipt.shard) in parts:
            totals.add(receipt)
        elif receipt.listed:  # a part without images can be missing
            raise StoppedError(
                f"'{location}/{part_name(receipt.shard)}' is missing. To embed its images again, run: "
                f"featurepress update {shlex.quote(location)}"
            )
    require_balance(plan, totals, n_images)
    return totals


def finished_set(plan: Plan, manifest: dict[str, Any], tally: Tally, started: float) -> FeatureSet:
    """Return the feature set of a run that has just finished, with its summary."""
    totals, changes = tally.totals, None
    if plan.generation > 1:
        listing = ledger.read_listing(plan) or {}
        counts = {name: int(listing.get(name, 0)) for name in ("new", "changed", "deleted")}
        changes = Changes(**counts, inferred=totals.embedded - totals.carried)
    n_processed = max(0, totals.listed - totals.carried - tally.progress.done_before)
    return _checked(plan, manifest, _summary(manifest, started, n_processed, changes=changes))


def existing_set(plan: Plan, manifest: dict[str, Any], started: float) -> FeatureSet:
    """Return the feature set of a run that was finished before."""
    return _checked(plan, manifest, _summary(manifest, started))


def unchanged_set(plan: Plan, started: float) -> FeatureSet:
    """Return the feature set of an update or a retry that found no changes, and wrote nothing."""
    current, manifest = ledger.read_plan(plan.storage), ledger.read_manifest(plan.storage)
    if current is None or manifest is None:
        raise StoppedError(f"The feature set '{plan.storage.location}' was removed while it was read.")
    return _checked(current, manifest, _summary(manifest, started, changes=Changes(0, 0, 0, 0)))


def _summary(
    manifest: dict[str, Any], started: float, n_processed: int | None = None, changes: Changes | None = None
) -> Summary:
    """Return the summary of a run; `n_processed` is None if everything was done before."""
    seconds = time.perf_counter() - started
    return Summary(
        **{item.name: manifest[item.name] for item in fields(Summary) if item.name in manifest},
        seconds=seconds,
        images_per_second=(n_processed or 0) / seconds,
        already_done=n_processed is None,
        changes=changes,
    )


def _checked(plan: Plan, manifest: dict[str, Any], summary: Summary) -> FeatureSet:
    """Return a finished set; raise TooManyFailuresError if too many of its images failed."""
    share = manifest["failed"] / max(1, manifest["listed"])
    allowed = plan.settings.output.max_failures
    features = FeatureSet(plan, manifest, summary)
    if share > allowed:
        raise TooManyFailuresError(
            f"{manifest['failed']} of {manifest['listed']} images failed ({share:.1%}), more than the allowed "
            f"{allowed:.1%} (--max-failures). Everything is written to '{features.location}'.",
            features,
        )
    return features
