"""Get a file of weights: from our own folder, from keras's, or from the network; checked and pinned.

The hash of what was first used is kept beside it, and nothing else is taken under that name ever after.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from featurepress.errors import ModelError
from featurepress.models.store import content_hash, home
from featurepress.process import when_abandoned
from featurepress.progress import OnProgress, step

TIMEOUT_SECONDS = 30
RETRIES = 2


def keras_folder() -> Path:
    """Give the folder in which the user's own keras keeps weights."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def fetch(name: str, url: str, known_hash: str | None, keras_models: Path, on_progress: OnProgress) -> Path:
    """Give the path of a weights file.

    Parameters
    ----------
    name : str
        File name, the same here, in keras's folder, and in the address.
    url : str
        Where keras would get it. With FEATUREPRESS_MIRROR set, the file of that name below that address instead.
    known_hash : str or None
        MD5 or SHA-256 as keras knows it.
    keras_models : Path
        The user's keras's folder of weights.
    on_progress : callable
        Hears how the download gets on.

    Raises
    ------
    ModelError
        It is not to be had, or is not what it should be.
    """
    own = home() / "weights" / name
    for path in (own, keras_models / name):
        if path.is_file():
            return _checked(path, known_hash)
    if mirror := os.environ.get("FEATUREPRESS_MIRROR"):
        url = f"{mirror.rstrip('/')}/{name}"
    own.parent.mkdir(parents=True, exist_ok=True)
    _download(url, own, known_hash, on_progress)
    return _checked(own, known_hash)


def pin(path: Path) -> str:
    """Give the SHA-256 of a file; the first one seen under its name is the only one allowed later.

    Raises
    ------
    ModelError
        It is another file than the first one.
    """
    note = home() / "weights" / f"{path.name}.sha256"
    found = content_hash(path)
    try:
        first = note.read_text(encoding="ascii").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_name(f".{note.name}.{os.getpid()}")
        temporary.write_text(f"{found}  {path.name}\n", encoding="ascii")  # as sha256sum writes and checks it
        temporary.replace(note)
        return found
    if found != first:
        raise ModelError(
            f"The weights '{path}' have the hash {found[:12]}…; under this name {first[:12]}… was used before. "
            f"Remove the file, or '{note}' if the change is wanted."
        )
    return found


def _checked(path: Path, known_hash: str | None) -> Path:
    import pooch

    if known_hash is not None:
        kind = "md5" if len(known_hash) == 32 else "sha256"
        found = pooch.file_hash(str(path), alg=kind)
        if found != known_hash:
            raise ModelError(
                f"The weights '{path}' have the {kind} {found[:12]}…, keras's list says {known_hash[:12]}…. "
                "Remove the file and run again."
            )
    pin(path)
    return path


class _Progress:
    """What pooch calls while it downloads."""

    def __init__(self, name: str, on_progress: OnProgress) -> None:
        self.total = 0
        self._name = name
        self._done = 0
        self._on_progress = on_progress

    def update(self, n_bytes: int) -> None:
        self._done += n_bytes
        self._on_progress(step(f"downloading {self._name}", self._done, self.total))

    def reset(self) -> None:
        """Pooch goes back to nothing and then jumps to the end."""
        self._done = 0

    def close(self) -> None:
        pass


def _download(url: str, path: Path, known_hash: str | None, on_progress: OnProgress) -> None:
    import pooch

    pooch.get_logger().setLevel(logging.CRITICAL)
    get: Any = pooch.HTTPDownloader(
        progressbar=_Progress(path.name, on_progress), chunk_size=2**16, timeout=TIMEOUT_SECONDS
    )
    # Elsewhere, then renamed: a half-finished download never counts, and nothing is left of it.
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=path.parent) as place:
        with when_abandoned(functools.partial(shutil.rmtree, place)):
            _retrieve(url, Path(place) / path.name, known_hash, get)
        (Path(place) / path.name).replace(path)


def _retrieve(url: str, path: Path, known_hash: str | None, get: Any) -> None:
    import pooch
    import requests

    try:
        pooch.create(
            path=path.parent,
            base_url="",
            registry={path.name: known_hash},
            urls={path.name: url},
            retry_if_failed=RETRIES,
        ).fetch(path.name, downloader=get)
    except (requests.RequestException, OSError, ValueError) as error:
        raise ModelError(
            f"The weights '{path.name}' are not here and could not be downloaded from {url} ({_reason(error)}). "
            f"Put the file into '{path.parent.parent}', or give it by --weights FILE; --model embedded needs no "
            "network."
        ) from error


def _reason(error: Exception) -> str:
    """Give the last cause of a failed download, in a few words."""
    import requests

    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    if isinstance(error, requests.Timeout):
        return f"no answer for {TIMEOUT_SECONDS} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the download broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, ValueError):
        return "its hash is not the one that keras knows"
    return " ".join(str(error).split())
