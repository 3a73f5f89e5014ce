"""Where the files of models lie.

Below FEATUREPRESS_HOME, by default the platform's cache folder:

    models/<key>/model.xml, model.bin, card.json    a model ready to run; the key is a hash of all it was made from
    models/<key>/certificate.json                   how near its features are to the reference's
    requests/<hash>.json                            which key a request led to: keras need not be asked again
    names/<name>.json                               models that were given a name, and their keys
    weights/<file>, weights/<file>.sha256           what was downloaded, and the hash of what was first used
    keras/                                          keras's own settings, kept apart from the user's

A destination holds a copy of the first three at plan/models/<key>/ where a cluster embeds into it.

Everything appears whole, by a rename; two processes that make the same model at once are welcome to it.
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
CARD = "card.json"
_COPY_BYTES = 1024**2
CERTIFICATE = "certificate.json"
_STALE_SECONDS = 24 * 3600
SPEED = "speed.json"


def home() -> Path:
    """Give the folder in which models are kept."""
    if given := os.environ.get("FEATUREPRESS_HOME"):
        return Path(given).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("featurepress", appauthor=False)


def content_hash(path: Path) -> str:
    """Give the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(made_from: Mapping[str, Any]) -> str:
    """Give the key of a model, 32 hexadecimal digits, from all that it is made from."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


# -- ready models --------------------------------------------------------------------------------------------


@functools.cache
def model_file(file: str, weights_sha256: str) -> Path:
    """Give the path of a model that can be read by OpenVINO, its content checked.

    Parameters
    ----------
    file : str
        Key or bundled file, as on the card.
    weights_sha256 : str
        Of the bundled file's content, as on the card.

    Raises
    ------
    ModelError
        It is not here, or its content has changed.
    """
    if (BUNDLED / file).is_file():
        _require(BUNDLED / file, weights_sha256, "Reinstall featurepress.")
        return BUNDLED / file
    folder = home() / "models" / file
    hashes = _read_json(folder / CARD).get("files", {})
    if not file or set(hashes) != set(FILES):
        raise ModelError(
            f"The model of this plan ({file or weights_sha256[:12]}) is not in '{home()}'. "
            "Get it there with the same --model, by featurepress models pull or add."
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
            f"The model file '{path}' has the hash {found[:12]}…, not {sha256[:12]}… as noted. {remedy}"
        )


def find_prepared(key: str) -> ModelCard | None:
    """Give the card of a model that is ready, or None."""
    values = _read_json(home() / "models" / key / CARD) if key else {}
    try:
        return ModelCard.from_json(values["card"])
    except (KeyError, TypeError, ValueError):  # none, or of another version: it is made again
        return None


def prepared() -> list[ModelCard]:
    """Give the cards of all models that are ready, by name."""
    folders = (home() / "models").glob(f"*/{CARD}")
    cards = [card for path in folders if (card := find_prepared(path.parent.name)) is not None]
    return sorted(cards, key=lambda card: (card.name, card.preprocess.height, card.file))


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Give an empty folder beside the models, to make one in; it is gone afterwards."""
    folder = home() / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        place = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    except OSError as error:
        raise not_kept(folder, error) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left behind more than a day ago."""
    for place in folder.glob(".making-*"):
        with contextlib.suppress(OSError):
            if time.time() - place.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(place, ignore_errors=True)


def publish(place: Path, card: ModelCard) -> None:
    """Make what lies in a workplace the model of its card, unless it is there already."""
    hashes = {name: content_hash(place / name) for name in FILES}
    _write_json(place / CARD, {"format_version": 1, "card": card.to_json(), "files": hashes})
    for name in FILES:
        with (place / name).open("rb") as file:
            os.fsync(file.fileno())
    target = home() / "models" / card.file
    with contextlib.suppress(OSError):  # somebody else has made it at the same time
        place.rename(target)
    if not (target / CARD).is_file():
        raise ModelError(f"The model could not be kept at '{target}'. Remove what lies there and run again.")


# -- models that travel --------------------------------------------------------------------------------------


def put_into(storage: Storage, key: str) -> None:
    """Copy a ready model to a destination, unless it is there, so that workers on other machines find it."""
    if (BUNDLED / key).is_file():
        return  # every worker has it
    storage.prepare()
    for name in (*FILES, CARD):  # the card comes last: with it the model is whole
        if storage.stat(_place(key, name)) is None:
            with (home() / "models" / key / name).open("rb") as source, storage.stream(_place(key, name)) as target:
                shutil.copyfileobj(source, target, _COPY_BYTES)


def remove_from(storage: Storage, key: str) -> None:
    """Take a model away from a destination that was not begun after all."""
    for name in (CARD, *FILES):
        storage.delete(_place(key, name))


def take_from(storage: Storage, key: str) -> None:
    """Copy a model that a destination holds to this machine, unless it is here; one process at a time."""
    if not key or (BUNDLED / key).is_file() or _is_here(key) or storage.stat(_place(key, CARD)) is None:
        return
    _settle_down()
    with _locked(key):
        if _is_here(key):
            return
        with workplace() as place:
            for name in (*FILES, CARD):
                with storage.open(_place(key, name)) as source, (place / name).open("wb") as target:
                    shutil.copyfileobj(source, target, _COPY_BYTES)
            for name, expected in _read_json(place / CARD)["files"].items():
                _require(place / name, expected, f"Remove '{storage.location}/{_place(key, name)}' and resume.")
            with contextlib.suppress(OSError):  # one that cannot be read is in the way
                place.rename(home() / "models" / key)


def _place(key: str, name: str) -> str:
    return f"{PLAN_MODELS}/{key}/{name}"


def _is_here(key: str) -> bool:
    return (home() / "models" / key / CARD).is_file()


def _settle_down() -> None:
    """Keep models in the temporary folder where a worker's user has no home to write to."""
    try:
        (home() / "models").mkdir(parents=True, exist_ok=True)
        writable = os.access(home() / "models", os.W_OK)
    except OSError:
        writable = False
    if not writable and "FEATUREPRESS_HOME" not in os.environ:
        place = Path(tempfile.gettempdir(), f"featurepress-{os.getuid()}")
        place.mkdir(mode=0o700, exist_ok=True)
        if place.stat().st_uid != os.getuid():
            raise ModelError(f"'{place}' belongs to somebody else. Name a folder in FEATUREPRESS_HOME.")
        os.environ["FEATUREPRESS_HOME"] = str(place)


@contextlib.contextmanager
def _locked(key: str) -> Iterator[None]:
    """Let one process of this machine at a time copy a model; where there are no locks, all of them do."""
    import fcntl

    folder = home() / "models"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context((folder / f".lock-{key}").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- requests and names --------------------------------------------------------------------------------------


def remembered(request: Mapping[str, Any]) -> ModelCard | None:
    """Give the model that a request led to before."""
    return find_prepared(_read_json(_request_path(request)).get("key", ""))


def remember(request: Mapping[str, Any], key: str) -> None:
    """Note which model a request leads to."""
    _write_json(_request_path(request), {"request": dict(request), "key": key})


def _request_path(request: Mapping[str, Any]) -> Path:
    return home() / "requests" / f"{key_of(request)}.json"


def named(name: str) -> ModelCard | None:
    """Give the model that was given a name."""
    return find_prepared(_read_json(home() / "names" / f"{name}.json").get("key", ""))


def give_name(name: str, key: str) -> None:
    """Give a ready model a name."""
    _write_json(home() / "names" / f"{name}.json", {"key": key})


def names() -> list[str]:
    """Give all names, in order."""
    return sorted(path.stem for path in (home() / "names").glob("*.json"))


# -- notes beside a model ------------------------------------------------------------------------------------


def write_note(key: str, name: str, values: Mapping[str, Any]) -> None:
    """Put a certificate, or measured speeds, beside a model."""
    _write_json(home() / "models" / key / name, values)


def read_note(key: str, name: str) -> dict[str, Any]:
    """Give what `write_note` has put beside a model, empty if nothing."""
    return _read_json(home() / "models" / key / name)


# -- files ---------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or damaged: it is made again
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
        raise not_kept(path.parent, error) from error


def not_kept(folder: Path, error: OSError) -> ModelError:
    """Give the error for a folder of the store that cannot be written."""
    reason = error.strerror or str(error)
    return ModelError(f"Models cannot be kept in '{folder}' ({reason}). Name another folder in FEATUREPRESS_HOME.")
