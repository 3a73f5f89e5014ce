"""What a destination holds before a run: nothing, the same plan, or something that is not ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from featurepress.errors import DestinationError, PlanMismatchError, StorageError
from featurepress.ledger.names import PLAN_FOLDER, PLAN_MODELS, PROJECTION_FOLDER
from featurepress.ledger.plan import Plan, read_plan
from featurepress.storage import Storage


def existing_plan(storage: Storage) -> Plan | None:
    """Return the plan at a destination, or None if the destination is free.

    Raises
    ------
    DestinationError
        The destination holds something else, or cannot be read.
    """
    with destination_errors():
        plan = read_plan(storage)
        if plan is None:
            require_free_destination(storage)
        return plan


def require_same_plan(existing: Plan, draft: Plan) -> Plan:
    """Return the existing plan with the resources of a new request.

    Raises
    ------
    PlanMismatchError
        The request is for another plan; the message names the differences.
    """
    differences = existing.differences(draft)
    if differences:
        raise PlanMismatchError(
            f"'{existing.storage.location}' holds another plan; it has {'; '.join(differences)}. "
            "Choose another --out, or use the settings of that plan."
        )
    return replace(existing, settings=draft.settings)


def require_free_destination(storage: Storage) -> None:
    """Raise DestinationError if a destination without a plan holds more than the start of a run leaves."""
    destination, path = storage.location, Path(storage.location)
    if path.exists() and not path.is_dir():
        raise DestinationError(f"The destination '{destination}' is a file. Choose a folder with --out.")
    prefixes = (f"{PLAN_MODELS}/", f"{PROJECTION_FOLDER}/")
    foreign = next((entry.name for entry in storage.list("") if not entry.name.startswith(prefixes)), None)
    if foreign is None and path.is_dir():
        folders = (PLAN_FOLDER, PROJECTION_FOLDER)
        foreign = next((child.name for child in path.iterdir() if child.name not in folders), None)
    if foreign is not None:
        raise DestinationError(
            f"The destination '{destination}' holds something else ('{foreign}'). Nothing was changed. Choose "
            "another --out."
        )


@contextlib.contextmanager
def destination_errors(option: str = "--out") -> Iterator[None]:
    """Convert a StorageError, raised before anything is written, to a DestinationError that names the option."""
    try:
        yield
    except StorageError as error:
        raise DestinationError(f"{str(error).rstrip('.')}. Choose another {option}.") from error
