"""Find or download a file of weights: in our own folder, in Keras's folder, or from the network.

The hash of the first file used under a name is stored beside it. A later file of that name must have the same hash.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from featurepress.errors import ModelError
from featurepress.models.store import content_hash, home
from featurepress.process import when_abandoned
from featurepress.progress import OnProgress, step

TIMEOUT_SECONDS = 30
RETRIES = 2
_CHUNK_BYTES = 2**16


def keras_folder() -> Path:
    """Return the folder in which the user's own Keras stores weights."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def fetch(name: str, url: str, known_hash: str | None, keras_models: Path, on_progress: OnProgress) -> Path:
    """Return the path of a weights file, downloaded if it is not on this machine.

    `known_hash` is MD5 or SHA-256 from Keras's list; `keras_models` is the folder of weights of the user's own
    Keras. If FEATUREPRESS_MIRROR is set, the file is downloaded from that URL instead of `url`.

    Raises
    ------
    ModelError
        The file cannot be downloaded, or has another hash.
    """
    own = home() / "weights" / name
    for path in (own, keras_models / name):
        if path.is_file():
            _check_hash(path, known_hash, "Remove the file and run again.")
            pin(path)
            return path
    if mirror := os.environ.get("FEATUREPRESS_MIRROR"):
        url = f"{mirror.rstrip('/')}/{name}"
    own.parent.mkdir(parents=True, exist_ok=True)
    _download(url, own, known_hash, on_progress)
    pin(own)
    return own


def pin(path: Path) -> str:
    """Return the SHA-256 of a file, and store it if it is the first file of its name.

    Raises
    ------
    ModelError
        Another file of this name was used before.
    """
    note = home() / "weights" / f"{path.name}.sha256"
    found = content_hash(path)
    try:
        first = note.read_text(encoding="ascii").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f".{note.name}.{os.getpid()}")
        temporary.write_text(f"{found}  {path.name}\n", encoding="ascii")  # the format of sha256sum
        temporary.replace(note)
        return found
    if found != first:
        raise ModelError(
            f"The weights '{path}' have the hash {found[:12]}…; under this name {first[:12]}… was used before. "
            f"Remove the file, or '{note}' if the change is intended."
        )
    return found


def has_hash(path: Path, known_hash: str) -> bool:
    """Whether a file has a hash from Keras's list, MD5 or SHA-256."""
    return _hash_like(path, known_hash) == known_hash


def _hash_like(path: Path, known_hash: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5" if len(known_hash) == 32 else "sha256").hexdigest()


def _check_hash(path: Path, known_hash: str | None, remedy: str) -> None:
    if known_hash is not None and (found := _hash_like(path, known_hash)) != known_hash:
        raise ModelError(
            f"The weights '{path}' have the wrong hash: {found[:12]}…, Keras lists {known_hash[:12]}…. {remedy}"
        )


def _download(url: str, path: Path, known_hash: str | None, on_progress: OnProgress) -> None:
    # Into a temporary folder, then renamed: a partial download is never used, and is removed.
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        with when_abandoned(functools.partial(shutil.rmtree, folder)):
            _retrieve(url, temporary, on_progress)
            _check_hash(temporary, known_hash, f"They come from {url}. Run again, or use another mirror.")
        temporary.replace(path)


def _retrieve(url: str, path: Path, on_progress: OnProgress) -> None:
    """Download a file, with up to `RETRIES` retries."""
    import requests

    for attempt in range(RETRIES + 1):
        try:
            with requests.get(url, stream=True, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:
                response.raise_for_status()
                total_bytes = int(response.headers.get("Content-Length", 0))
                for chunk in response.iter_content(_CHUNK_BYTES):
                    file.write(chunk)
                    on_progress(step(f"downloading {path.name}", file.tell(), total_bytes))
            return
        except OSError as error:  # requests' own errors, too
            if attempt < RETRIES and not 400 <= _status(error) < 500:
                time.sleep(attempt + 1)
                continue
            raise ModelError(
                f"The weights '{path.name}' are not on this machine and cannot be downloaded from {url} "
                f"({_reason(error)}). Put the file into '{path.parent.parent}', or use --weights FILE. "
                "--model embedded needs no network."
            ) from error


def _status(error: OSError) -> int:
    """Return the HTTP status of an error, or 0."""
    response = getattr(error, "response", None)
    return 0 if response is None else int(response.status_code)


def _reason(error: OSError) -> str:
    """Return the cause of a failed download in a few words."""
    import requests

    if status := _status(error):
        return f"HTTP {status}"
    if isinstance(error, requests.Timeout):
        return f"no answer for {TIMEOUT_SECONDS} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the download broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return " ".join(str(error).split())
