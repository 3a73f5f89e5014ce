"""The folder in which models are stored.

Below FEATUREPRESS_HOME, by default the platform's cache folder:

    models/<key>/model.xml, model.bin, card.json    a converted model; the key is a hash of its inputs
    models/<key>/certificate.json                   how close its features are to the reference's
    requests/<hash>.json                            the key of a request: Keras is not needed again
    names/<name>.json                               named models and their keys
    weights/<file>, weights/<file>.sha256           downloads, and the hash of the first file used
    keras/                                          Keras's settings, separate from the user's

When a cluster embeds, the destination has a copy of the first three in plan/models/<key>/.

Every file and folder appears whole, by a rename. Two processes may convert the same model at the same time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from featurepress.errors import ModelError
from featurepress.ledger.names import PLAN_MODELS
from featurepress.models.card import ModelCard
from featurepress.storage import Storage

BUNDLED = Path(__file__).parent / "bundled"
FILES = ("model.xml", "model.bin")
CARD, CERTIFICATE, SPEED = "card.json", "certificate.json", "speed.json"
_COPY_BYTES = 1024**2
_STALE_SECONDS = 24 * 3600


def home() -> Path:
    """Return the folder in which models are stored."""
    if path := os.environ.get("FEATUREPRESS_HOME"):
        return Path(path).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("featurepress", appauthor=False)


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(made_from: Mapping[str, Any]) -> str:
    """Return the key of a model: 32 hexadecimal digits, a hash of everything that it is made from."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


# -- stored models -------------------------------------------------------------------------------------------


@functools.cache
def model_file(file: str, weights_sha256: str) -> Path:
    """Return the path of a model for OpenVINO, and check its content; `file` and `weights_sha256` are the card's.

    Raises
    ------
    ModelError
        The model is not on this machine, or its content has changed.
    """
    if (BUNDLED / file).is_file():
        _require(BUNDLED / file, weights_sha256, "Reinstall featurepress.")
        return BUNDLED / file
    folder = home() / "models" / file
    hashes = _read_json(folder / CARD).get("files", {})
    if not file or set(hashes) != set(FILES):
        raise ModelError(
            f"The model of this plan ({file or weights_sha256[:12]}) is not in '{home()}'. "
            "Run featurepress models pull or add with the same --model."
        )
    for name, expected in hashes.items():
        _require(folder / name, expected, f"Remove the folder '{folder}' and run again.")
    return folder / FILES[0]


def _require(path: Path, sha256: str, remedy: str) -> None:
    try:
        found = content_hash(path)
    except OSError as error:
        raise ModelError(f"The model file '{path}' cannot be read ({error}). {remedy}") from error
    if found != sha256:
        raise ModelError(
            f"The model file '{path}' has the hash {found[:12]}…, but {sha256[:12]}… was stored. {remedy}"
        )


def read_card(key: str) -> ModelCard | None:
    """Return the card of a stored model, or None."""
    values = _read_json(home() / "models" / key / CARD) if key else {}
    try:
        return ModelCard.from_json(values["card"])
    except (KeyError, TypeError, ValueError):  # missing, or of another version: converted again
        return None


def stored_cards() -> list[ModelCard]:
    """Return the cards of all stored models, sorted by name."""
    folders = (home() / "models").glob(f"*/{CARD}")
    cards = [card for path in folders if (card := read_card(path.parent.name)) is not None]
    return sorted(cards, key=lambda card: (card.name, card.preprocess.height, card.file))


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder next to the models, and remove it afterwards."""
    folder = home() / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove folders that killed processes left more than a day ago."""
    for scratch in folder.glob(".making-*"):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)


def publish(scratch: Path, card: ModelCard) -> None:
    """Move a model from its scratch folder to its key, unless it is stored already."""
    hashes = {name: content_hash(scratch / name) for name in FILES}
    _write_json(scratch / CARD, {"format_version": 1, "card": card.to_json(), "files": hashes})
    for name in FILES:
        with (scratch / name).open("rb") as file:
            os.fsync(file.fileno())
    target = home() / "models" / card.file
    with contextlib.suppress(OSError):  # another process has stored it meanwhile
        scratch.rename(target)
    if not (target / CARD).is_file():
        raise ModelError(f"The model cannot be stored at '{target}'. Remove that folder and run again.")


# -- models of a cluster -------------------------------------------------------------------------------------


def put_into(storage: Storage, key: str) -> None:
    """Copy a stored model to a destination for the workers of other machines, unless it is there."""
    if (BUNDLED / key).is_file():
        return  # every worker has it
    storage.prepare()
    for name in (*FILES, CARD):  # the card last: it marks the model as complete
        if storage.stat(_path_of(key, name)) is None:
            with (
                (home() / "models" / key / name).open("rb") as source,
                storage.stream(_path_of(key, name)) as target,
            ):
                shutil.copyfileobj(source, target, _COPY_BYTES)


def remove_from(storage: Storage, key: str) -> None:
    """Remove a model from a destination whose run did not start."""
    for name in (CARD, *FILES):
        storage.delete(_path_of(key, name))


def take_from(storage: Storage, key: str) -> None:
    """Copy a model from a destination to this machine, unless it is here; one process at a time."""
    if not key or (BUNDLED / key).is_file() or _is_here(key) or storage.stat(_path_of(key, CARD)) is None:
        return
    _use_writable_home()
    with _locked(key):
        if _is_here(key):
            return
        with scratch_folder() as scratch:
            for name in (*FILES, CARD):
                with storage.open(_path_of(key, name)) as source, (scratch / name).open("wb") as target:
                    shutil.copyfileobj(source, target, _COPY_BYTES)
            for name, expected in _read_json(scratch / CARD)["files"].items():
                _require(scratch / name, expected, f"Remove '{storage.location}/{_path_of(key, name)}' and resume.")
            with contextlib.suppress(OSError):  # a damaged folder of this name exists
                scratch.rename(home() / "models" / key)


def _path_of(key: str, name: str) -> str:
    return f"{PLAN_MODELS}/{key}/{name}"


def _is_here(key: str) -> bool:
    return (home() / "models" / key / CARD).is_file()


def _use_writable_home() -> None:
    """Store models in the temporary folder if the worker's user has no writable home."""
    try:
        (home() / "models").mkdir(parents=True, exist_ok=True)
        writable = os.access(home() / "models", os.W_OK)
    except OSError:
        writable = False
    if not writable and "FEATUREPRESS_HOME" not in os.environ:
        folder = Path(tempfile.gettempdir(), f"featurepress-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise ModelError(f"'{folder}' belongs to another user. Set FEATUREPRESS_HOME to a folder of your own.")
        os.environ["FEATUREPRESS_HOME"] = str(folder)


@contextlib.contextmanager
def _locked(key: str) -> Iterator[None]:
    """Hold the lock of a model, so that one process of this machine copies it; no lock where there are none."""
    import fcntl

    folder = home() / "models"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context((folder / f".lock-{key}").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- requests and names --------------------------------------------------------------------------------------


def find_request(request: Mapping[str, Any]) -> ModelCard | None:
    """Return the stored model of a request, or None."""
    return read_card(_read_json(_request_path(request)).get("key", ""))


def write_request(request: Mapping[str, Any], key: str) -> None:
    """Write which model belongs to a request."""
    _write_json(_request_path(request), {"request": dict(request), "key": key})


def _request_path(request: Mapping[str, Any]) -> Path:
    return home() / "requests" / f"{key_of(request)}.json"


def find_name(name: str) -> ModelCard | None:
    """Return the model stored under a name, or None."""
    return read_card(_read_json(home() / "names" / f"{name}.json").get("key", ""))


def write_name(name: str, key: str) -> None:
    """Write the name of a stored model."""
    _write_json(home() / "names" / f"{name}.json", {"key": key})


def names() -> list[str]:
    """Return all names of stored models, sorted."""
    return sorted(path.stem for path in (home() / "names").glob("*.json"))


# -- notes on a model ------------------------------------------------------------------------------------


def write_note(key: str, name: str, values: Mapping[str, Any]) -> None:
    """Write a certificate, or measured speeds, next to a model."""
    _write_json(home() / "models" / key / name, values)


def read_note(key: str, name: str) -> dict[str, Any]:
    """Return what `write_note` has written; empty if nothing."""
    return _read_json(home() / "models" / key / name)


# -- files ---------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: written again
        return {}
    return values if isinstance(values, dict) else {}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        raise write_error(path.parent, error) from error


def write_error(folder: Path, error: OSError) -> ModelError:
    """Return the error for a folder that cannot be written."""
    reason = error.strerror or str(error)
    return ModelError(f"Models cannot be stored in '{folder}' ({reason}). Set FEATUREPRESS_HOME to another folder.")
