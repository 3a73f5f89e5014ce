"""The plan of a feature set, one a generation, and the manifest."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from featurepress.errors import FeatureSetError, StoppedError, StorageError
from featurepress.ledger.layout import Layout, Tier
from featurepress.ledger.names import FORMAT_VERSION, MANIFEST, UNCONDITIONAL, listing_name, plan_name
from featurepress.settings import Settings
from featurepress.specs import BackboneSpec, ImageRef, SourceSpec, freeze_mappings, thawed
from featurepress.storage import Storage, reporting_damage


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to embed a shard: settings and descriptions, no live objects.

    Parameters
    ----------
    storage : Storage
        The destination; it is not part of plan.json.
    run_id : str
        Names this plan; workers compare it with the one at the destination.
    created : str
        Time of the plan, UTC, ISO 8601.
    sources : tuple of SourceSpec
        Where the images are.
    backbone : BackboneSpec
        What is computed.
    precision : str
        ``float32`` or ``bfloat16``, as decided.
    certificate : mapping
        How the precision was decided, with the measured cosines.
    settings : Settings
        As the user asked.
    layout : Layout
        How the listing is cut.
    field_names : tuple of str
        Names of the columns between uri and width.
    library_version : str
        The featurepress that made the plan.
    generation : int
        1 for the first run, one more for each update or retry.
    purpose : str
        ``embed``, ``update`` or ``retry``: what this generation does.
    first_shard : int
        Number of the first shard that is new in this generation; those before it may be revised.
    seen : tuple of ImageRef
        An image of each source that the driver can see, and workers on other machines must; not part of plan.json.
    """

    storage: Storage
    run_id: str
    created: str
    sources: tuple[SourceSpec, ...]
    backbone: BackboneSpec
    precision: str
    certificate: Mapping[str, Any]
    settings: Settings
    layout: Layout
    field_names: tuple[str, ...]
    library_version: str
    generation: int = 1
    purpose: str = "embed"
    first_shard: int = 0
    seen: tuple[ImageRef, ...] = ()

    def __post_init__(self) -> None:
        freeze_mappings(self)

    @property
    def n_workers(self) -> int:
        """Workers on this machine; SettingError if the user allows too little memory for one."""
        backbone = self.backbone
        return self.settings.resources.workers_for(backbone.model, int(backbone.options.get("model_bytes", 0)))

    @property
    def name(self) -> str:
        """The object that holds this plan."""
        return plan_name(self.generation)

    def to_json(self) -> dict[str, Any]:
        """Give the plan as JSON values, `format` first."""
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
        """Name what makes `other` another plan, as lines ``what: here, there``."""
        mine, theirs = self._identity(), other._identity()
        found = [f"{name}: {mine[name]!r}, not {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]
        space = self.backbone.differences(other.backbone)
        return found + [line for line in space if not line.startswith("pooling:")]  # which is a setting, too

    def _identity(self) -> dict[str, Any]:
        return {"sources": [str(spec) for spec in self.sources], **self.settings.identity()}


def new_plan(storage: Storage, **parts: Any) -> Plan:
    """Give a plan with a fresh run id and the present time."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Plan(storage=storage, run_id=secrets.token_hex(8), created=now, **parts)


def next_plan(plan: Plan, purpose: str) -> Plan:
    """Give the plan of the generation after `plan`, whose listing is complete."""
    listing = read_json(plan.storage, listing_name(plan.generation)) or {"chunks": 0}
    first_shard = plan.first_shard + plan.layout.first_shard(listing["chunks"])
    parts = {item.name: getattr(plan, item.name) for item in fields(plan) if item.name not in _OF_ONE_GENERATION}
    return new_plan(generation=plan.generation + 1, purpose=purpose, first_shard=first_shard, **parts)


_OF_ONE_GENERATION = ("run_id", "created", "generation", "purpose", "first_shard", "seen")


def create_plan(plan: Plan) -> bool:
    """Write plan.json only if there is none; say whether the plan that stands is this one.

    A bucket may say that there is one when the answer to our own first request was lost.
    """
    if plan.storage.create(plan.name, dump_json(plan.to_json())):
        return True
    standing = read_generation(plan.storage, plan.generation)
    return standing is not None and standing.run_id == plan.run_id


def check_conditional_writes(plan: Plan) -> bool:
    """Say whether the storage refuses to create the plan, which is there, once more; if not, leave a mark of it."""
    storage = plan.storage
    created_again = storage.create(plan.name, dump_json(plan.to_json()))
    if created_again or not storage.is_conditional:
        storage.write(UNCONDITIONAL, dump_json({"conditional_writes": False}))
        return False
    return True


def is_unconditional(storage: Storage) -> bool:
    """Whether the storage was found not to honour conditional writes when the run began."""
    return storage.stat(UNCONDITIONAL) is not None


def read_plan(storage: Storage) -> Plan | None:
    """Read the newest plan at a destination: that of a generation that is under way, or the last that was.

    Returns
    -------
    Plan or None
        None if there is no plan.

    Raises
    ------
    FeatureSetError
        plan.json is no featurepress plan, or of a later format.
    """
    plan = read_generation(storage, 1)
    if plan is None:
        return None
    manifest = read_manifest(storage)
    if manifest is None:
        return plan
    generation = manifest.get("generation", 1)
    # The plan of an update comes first, then the manifest that tells of it.
    newest = read_generation(storage, generation + 1) or read_generation(storage, generation)
    return newest or plan


def read_generation(storage: Storage, generation: int) -> Plan | None:
    """Read the plan of one generation, or give None if there is none."""
    name = plan_name(generation)
    data = storage.read(name)
    return None if data is None else _parsed(storage, name, data)


def _parsed(storage: Storage, name: str, data: bytes) -> Plan:
    where = f"'{storage.location}/{name}'"
    try:
        values = json.loads(data)
        if values["format"] != "featurepress":
            raise KeyError("format")
        if values["format_version"] > FORMAT_VERSION:
            raise FeatureSetError(
                f"{where} has format version {values['format_version']}; this featurepress reads up to "
                f"{FORMAT_VERSION}. Update featurepress."
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
        raise FeatureSetError(f"{where} is no featurepress plan: {error}.") from error


# -- JSON ----------------------------------------------------------------------------------------------------


def complete_manifest(plan: Plan, sum_up: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Declare the feature set complete, and give the manifest.

    Parameters
    ----------
    plan : Plan
        Of the generation that is complete.
    sum_up : callable
        Gives the manifest. Called again where another driver has changed the one that stands meanwhile.

    Raises
    ------
    StoppedError
        A later generation has begun: a driver that comes late never sets it back.
    """
    return _change_manifest(plan, lambda standing: sum_up()) or {}


def begin_generation(plan: Plan) -> None:
    """Say in the manifest that the set is under way to the plan's generation, unless that is said already."""

    def announced(standing: dict[str, Any] | None) -> dict[str, Any] | None:
        if standing is None or standing["generation"] >= plan.generation:
            return None
        return {**standing, "status": "updating", "generation": plan.generation}

    _change_manifest(plan, announced)


def _change_manifest(
    plan: Plan, change: Callable[[dict[str, Any] | None], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """Put what `change` makes of the manifest in its place, and only there: another driver may be at it, too."""
    storage = plan.storage
    for _ in range(_TRIES):
        data, version = _read_version(storage, MANIFEST)
        with reporting_damage(storage, MANIFEST):
            standing = None if data is None else json.loads(data)
        if standing is not None and standing.get("generation", 1) > plan.generation:
            raise StoppedError(
                f"The feature set '{storage.location}' has gone on to generation {standing['generation']} while "
                f"this run was at generation {plan.generation}. Nothing more was written; look at it with: "
                f"featurepress info {shlex.quote(storage.location)}"
            )
        values = change(standing)
        if values is None:
            return None
        content = dump_json(values)
        if storage.replace(MANIFEST, content, version) if version else storage.create(MANIFEST, content):
            return values
    raise StorageError(
        f"'{storage.location}/{MANIFEST}' cannot be replaced: it has another version each time it is looked at. "
        "Let only one driver write there; if there is only one, this storage cannot hold a feature set."
    )


_TRIES = 20  # to replace the manifest, while others replace it


def _read_version(storage: Storage, name: str) -> tuple[bytes | None, str]:
    try:
        file, version = storage.open_version(name)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None, ""
        raise
    with file:
        return file.read(), version


def read_manifest(storage: Storage) -> dict[str, Any] | None:
    """Read the manifest, or give None if there is none."""
    return read_json(storage, MANIFEST)


def read_json(storage: Storage, name: str) -> dict[str, Any] | None:
    """Read a JSON object, or give None if there is none."""
    data = storage.read(name)
    with reporting_damage(storage, name):
        return None if data is None else json.loads(data)


def dump_json(values: Mapping[str, Any]) -> bytes:
    """Return values as indented JSON."""
    return json.dumps(values, indent=1, default=thawed).encode() + b"\n"
