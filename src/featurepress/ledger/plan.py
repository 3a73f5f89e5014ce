"""The plan of each generation of a feature set, and the manifest."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from featurepress.errors import FeatureSetError, StoppedError, StorageError
from featurepress.ledger.layout import Layout, Tier
from featurepress.ledger.names import FORMAT_VERSION, MANIFEST, UNCONDITIONAL, listing_name, plan_name
from featurepress.settings import Settings
from featurepress.specs import BackboneSpec, ImageRef, SourceSpec, freeze_mappings, thawed
from featurepress.storage import Storage, reporting_damage


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to embed a shard: settings and specs, no live objects. Hashable and picklable.

    All but `storage` and `seen` is stored in plan.json.
    """

    storage: Storage  # the destination
    run_id: str  # identifies this plan; workers compare it with the plan at the destination
    created: str  # UTC, ISO 8601
    sources: tuple[SourceSpec, ...]
    backbone: BackboneSpec
    precision: str  # float32 or bfloat16
    certificate: Mapping[str, Any]  # how the precision was chosen, with the measured cosines
    settings: Settings
    layout: Layout  # how the listing is split
    field_names: tuple[str, ...]  # of the columns between uri and width
    library_version: str  # of the featurepress that created the plan
    generation: int = 1  # 1 for the first run, plus 1 for each update or retry
    purpose: str = "embed"  # or update, retry
    first_shard: int = 0  # the first new shard of this generation; earlier shards may be revised
    seen: tuple[ImageRef, ...] = ()  # an image of each source, which workers on other machines must see too

    def __post_init__(self) -> None:
        freeze_mappings(self)

    @property
    def n_workers(self) -> int:
        """Number of workers on this machine. SettingError if the memory limit is too low for one."""
        backbone = self.backbone
        return self.settings.resources.workers_for(backbone.model, int(backbone.options.get("model_bytes", 0)))

    @property
    def name(self) -> str:
        """The name of the object that holds this plan."""
        return plan_name(self.generation)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, `format` first."""
        return {
            "format": "featurepress",
            "format_version": FORMAT_VERSION,
            "run_id": self.run_id,
            "created": self.created,
            "generation": self.generation,
            "purpose": self.purpose,
            "first_shard": self.first_shard,
            "fingerprint": self.backbone.fingerprint,
            "library_version": self.library_version,
            "precision": self.precision,
            "certificate": thawed(self.certificate),
            "sources": [spec.to_json() for spec in self.sources],
            "backbone": self.backbone.to_json(),
            "settings": self.settings.to_json(),
            "layout": [list(tier) for tier in self.layout.tiers],
            "field_names": list(self.field_names),
        }

    def differences(self, other: Plan) -> list[str]:
        """Return the differences between two plans, as lines ``name: value, not other value``."""
        mine, theirs = self._identity(), other._identity()
        found = [f"{name}: {mine[name]!r}, not {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]
        space = self.backbone.differences(other.backbone)
        return found + [line for line in space if not line.startswith("pooling:")]  # already among the settings

    def _identity(self) -> dict[str, Any]:
        return {"sources": [str(spec) for spec in self.sources], **self.settings.identity()}


def new_plan(storage: Storage, **parts: Any) -> Plan:
    """Return a plan with a new run id and the current time."""
    return Plan(storage=storage, **_new_run(), **parts)


def _new_run() -> dict[str, Any]:
    return {"run_id": secrets.token_hex(8), "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def next_plan(plan: Plan, purpose: str) -> Plan:
    """Return the plan of the generation after `plan`, whose listing must be complete."""
    listing = read_json(plan.storage, listing_name(plan.generation)) or {"chunks": 0}
    first_shard = plan.first_shard + plan.layout.first_shard(listing["chunks"])
    generation = plan.generation + 1
    return replace(plan, **_new_run(), generation=generation, purpose=purpose, first_shard=first_shard, seen=())


def create_plan(plan: Plan) -> bool:
    """Write plan.json only if absent. Return whether the existing plan is this one.

    A bucket reports an existing object also if the response to our own first request was lost.
    """
    if plan.storage.create(plan.name, dump_json(plan.to_json())):
        return True
    existing = read_generation(plan.storage, plan.generation)
    return existing is not None and existing.run_id == plan.run_id


def check_conditional_writes(plan: Plan) -> bool:
    """Return whether the storage refuses to create the existing plan again; record if it does not."""
    storage = plan.storage
    created_again = storage.create(plan.name, dump_json(plan.to_json()))
    if created_again or not storage.is_conditional:
        storage.write(UNCONDITIONAL, dump_json({"conditional_writes": False}))
        return False
    return True


def is_unconditional(storage: Storage) -> bool:
    """Whether the run has recorded that the storage ignores conditional writes."""
    return storage.stat(UNCONDITIONAL) is not None


def read_plan(storage: Storage) -> Plan | None:
    """Read the newest plan at a destination, whether its generation is complete or not. None if there is none.

    Raises
    ------
    FeatureSetError
        plan.json is not a featurepress plan, or has a later format.
    """
    plan = read_generation(storage, 1)
    if plan is None or (manifest := read_manifest(storage)) is None:
        return plan
    generation = manifest.get("generation", 1)
    # An update writes its plan first, then the manifest.
    return read_generation(storage, generation + 1) or read_generation(storage, generation) or plan


def read_generation(storage: Storage, generation: int) -> Plan | None:
    """Read the plan of a generation. None if there is none."""
    name = plan_name(generation)
    data = storage.read(name)
    return None if data is None else _parsed(storage, name, data)


def _parsed(storage: Storage, name: str, data: bytes) -> Plan:
    where = f"'{storage.location}/{name}'"
    try:
        values = json.loads(data)
        if values["format"] != "featurepress":
            raise KeyError("format")
        if (version := values["format_version"]) != FORMAT_VERSION:
            is_newer = version > FORMAT_VERSION
            remedy = "Update featurepress." if is_newer else "Embed the images again, with another --out."
            raise FeatureSetError(
                f"{where} has format version {version}; this featurepress reads {FORMAT_VERSION}. {remedy}"
            )
        return Plan(
            storage=storage,
            sources=tuple(SourceSpec(**spec) for spec in values["sources"]),
            backbone=BackboneSpec.from_json(values["backbone"]),
            settings=Settings.from_json(values["settings"]),
            layout=Layout(tuple(Tier(*tier) for tier in values["layout"])),
            field_names=tuple(values["field_names"]),
            **{
                name: values[name]
                for name in ("run_id", "created", "precision", "certificate", "library_version", "generation")
            },
            purpose=values.get("purpose", "embed"),
            first_shard=values.get("first_shard", 0),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FeatureSetError(f"{where} is not a featurepress plan: {error}.") from error


# -- manifest ------------------------------------------------------------------------------------------------


def complete_manifest(plan: Plan, sum_up: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Declare the generation of a plan complete, and return the manifest.

    `sum_up` returns the manifest; it is called again if another driver has changed the existing one. StoppedError
    if a later generation has begun: a slow driver never resets it.
    """
    return _change_manifest(plan, lambda existing: sum_up()) or {}


def begin_generation(plan: Plan) -> None:
    """Set the manifest to ``updating`` and to the plan's generation, unless it is there already."""

    def updating(existing: dict[str, Any] | None) -> dict[str, Any] | None:
        if existing is None or existing["generation"] >= plan.generation:
            return None
        return {**existing, "status": "updating", "generation": plan.generation}

    _change_manifest(plan, updating)


def _change_manifest(
    plan: Plan, change: Callable[[dict[str, Any] | None], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """Replace the manifest by `change(manifest)`; repeat if another driver has replaced it meanwhile."""
    storage = plan.storage
    for _ in range(_MAX_ATTEMPTS):
        existing, version = None, ""
        if (opened := open_existing(storage, MANIFEST)) is not None:
            file, version = opened
            with file:
                data = file.read()
            with reporting_damage(storage, MANIFEST):
                existing = json.loads(data)
        if existing is not None and existing.get("generation", 1) > plan.generation:
            raise superseded(plan, existing["generation"])
        values = change(existing)
        if values is None:
            return None
        content = dump_json(values)
        if storage.replace(MANIFEST, content, version) if version else storage.create(MANIFEST, content):
            return values
    raise StorageError(
        f"'{storage.location}/{MANIFEST}' cannot be replaced: its version changes after each read. Run only one "
        "driver on this destination. If there is only one, this storage cannot hold a feature set."
    )


_MAX_ATTEMPTS = 20  # to replace the manifest while other drivers replace it


def superseded(plan: Plan, generation: int) -> StoppedError:
    """Return the error of a run whose feature set has a later generation now."""
    where = plan.storage.location
    return StoppedError(
        f"The feature set '{where}' is now at generation {generation}, and this run was at generation "
        f"{plan.generation}: another run has begun. This run wrote nothing more. See the set with: "
        f"featurepress info {shlex.quote(where)}"
    )


def open_existing(storage: Storage, name: str) -> tuple[BinaryIO, str] | None:
    """Open an object, and return it with its version. None if there is none."""
    try:
        return storage.open_version(name)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_manifest(storage: Storage) -> dict[str, Any] | None:
    """Read the manifest. None if there is none."""
    return read_json(storage, MANIFEST)


def read_json(storage: Storage, name: str) -> dict[str, Any] | None:
    """Read a JSON object. None if there is none."""
    data = storage.read(name)
    with reporting_damage(storage, name):
        return None if data is None else json.loads(data)


def dump_json(values: Mapping[str, Any]) -> bytes:
    """Return values as indented JSON."""
    return json.dumps(values, indent=1, default=thawed).encode() + b"\n"
