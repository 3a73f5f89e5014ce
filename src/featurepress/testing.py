"""Fakes for tests: sources, storages, backbones, decoders and an engine, which fail on demand.

They follow the contracts of the real ones, so that tests need neither patches nor a network.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import errno
import hashlib
import io
import os
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from featurepress.engines.base import OnMessage, Task, ignore_message
from featurepress.errors import ImageError, StorageError
from featurepress.images import decode
from featurepress.ledger import Plan, new_plan
from featurepress.ledger.layout import Layout
from featurepress.settings import ImageSettings, Settings
from featurepress.sources import field_names
from featurepress.sources.base import BY_REQUEST, ON_DISK
from featurepress.sources.files.folder import FolderSource
from featurepress.specs import BackboneSpec, ImageRef, PreprocessSpec, SourceSpec
from featurepress.storage import Data, Entry, Storage, pieces

if TYPE_CHECKING:
    from featurepress.specs import Features, Pixels

Result = TypeVar("Result")


# -- sources -------------------------------------------------------------------------------------------------


def memory_source(
    images: Mapping[str, bytes], *, faults: Mapping[str, str] | None = None, delay_seconds: float = 0.0
) -> SourceSpec:
    """Describe a source that holds its images in memory.

    Parameters
    ----------
    images : mapping
        uri -> bytes of the file.
    faults : mapping, optional
        uri -> how its read fails: ``hang`` (for an hour), ``crash`` (with an unexpected error), or the reason of an
        ImageError.
    delay_seconds : float
        Added to every read.
    """
    texts = {uri: base64.b64encode(data).decode() for uri, data in images.items()}
    options = {"images": texts, "faults": dict(faults or {}), "delay_seconds": delay_seconds}
    return SourceSpec("memory", "memory", options=options)


class MemorySource:
    """The source that `memory_source` describes."""

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        self._images = spec.options["images"]
        self._faults = spec.options["faults"]
        self._delay_seconds = spec.options["delay_seconds"]
        self.skipped: collections.Counter[str] = collections.Counter()
        self.reading = BY_REQUEST if self._delay_seconds else ON_DISK._replace(in_flight=2)

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images in byte order of their uris."""
        for uri in sorted(self._images, key=str.encode):
            if uri.encode() > start_after:
                yield ImageRef(uri, 0, len(base64.b64decode(self._images[uri])), "1")

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes, or fail as requested."""
        if self._delay_seconds:
            time.sleep(self._delay_seconds)
        fault = self._faults.get(ref.uri)
        if fault == "hang":
            time.sleep(3600)
        if fault == "crash":
            raise ZeroDivisionError("unexpected")
        if fault is not None:
            raise ImageError("read", fault)
        return base64.b64decode(self._images[ref.uri])

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the reference as it is now."""
        if ref.uri not in self._images:
            return ref._replace(size=0, version="", problem="vanished since listing")
        return ref._replace(size=len(base64.b64decode(self._images[ref.uri])), version="1", problem=None)


def delayed_source(folder: str, *, delay_seconds: float) -> SourceSpec:
    """Describe a folder whose every read takes longer, as that of a distant bucket."""
    return SourceSpec("delayed", folder, "/", {"delay_seconds": delay_seconds})


class DelayedSource(FolderSource):
    """The source that `delayed_source` describes, read like a bucket."""

    reading = BY_REQUEST

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        super().__init__(spec, limits)
        self._delay_seconds = float(spec.options["delay_seconds"])

    def read(self, ref: ImageRef) -> bytes:
        """Sleep, then read."""
        time.sleep(self._delay_seconds)
        return super().read(ref)


# -- backbones -----------------------------------------------------------------------------------------------


def fake_backbone(**options: Any) -> BackboneSpec:
    """Describe a backbone of 12 features that needs no model: the mean colours of the four quarters of an image.

    Parameters
    ----------
    **options
        ``bfloat16`` (bool): whether it claims to support bfloat16; ``error`` (float): relative error of bfloat16
        features; ``sabotage`` (str): ``nan`` returns NaN for black images, ``abort`` ends the process at a black
        image that is the first of its batch.
    """
    return BackboneSpec(
        runtime="fake",
        model="fake",
        weights_sha256="0" * 64,
        output="grid",
        grid=(2, 2, 3),
        pooling="flatten",
        preprocess=PreprocessSpec(height=8, width=8),
        options=options,
    )


class FakeBackbone:
    """The backbone that `fake_backbone` describes."""

    batch_size = 4
    loads = 0  # in this process

    def __init__(self, spec: BackboneSpec, precision: str) -> None:
        type(self).loads += 1
        self.precision = precision
        self._options = spec.options

    @staticmethod
    def supports_bfloat16(spec: BackboneSpec) -> bool:
        """Whether the options request it."""
        return bool(spec.options.get("bfloat16", False))

    def __call__(self, pixels: Pixels) -> Features:
        """Return the mean colours: (4, 8, 8, 3) uint8 -> (4, 12) float32."""
        cells = pixels.reshape(self.batch_size, 2, 4, 2, 4, 3)
        features: Features = (
            cells.mean(axis=(2, 4), dtype=np.float64).reshape(self.batch_size, 12).astype(np.float32)
        )
        if self.precision == "bfloat16":
            features[:, ::2] *= np.float32(1 + self._options.get("error", 0.0))
        if self._options.get("sabotage") == "nan":
            features[features.max(axis=1) == 0] = np.nan
        if self._options.get("sabotage") == "abort" and (pixels.max(axis=(1, 2, 3)) == 0)[:1].any():
            os.abort()
        return features


# -- decoders ------------------------------------------------------------------------------------------------

ABORT, HANG = b"!ABORT!", b"!HANG!"


def crashing_decode(data: bytes, *, max_pixels: int) -> Pixels:
    """Decode, but abort the process on data that hold `ABORT`, and sleep for an hour on `HANG`."""
    if ABORT in data:
        os.abort()
    if HANG in data:
        time.sleep(3600)
    return decode(data, max_pixels=max_pixels)


# -- storages ------------------------------------------------------------------------------------------------


class MemoryStorage:
    """A storage in a dictionary of this process."""

    location = "memory"
    is_conditional = True
    is_remote = False

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Do nothing."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix` in byte order."""
        for name in sorted(self.objects, key=str.encode):
            data = self.objects.get(name)
            if data is not None and (not prefix or name.startswith(prefix + "/")):
                yield Entry(name, len(data), _version(data))

    def stat(self, name: str) -> Entry | None:
        """Return size and version."""
        data = self.objects.get(name)
        return None if data is None else Entry(name, len(data), _version(data))

    def read(self, name: str) -> bytes | None:
        """Return the object's bytes, or None."""
        return self.objects.get(name)

    def open(self, name: str) -> BinaryIO:
        """Open the object."""
        return self.open_version(name)[0]

    def open_version(self, name: str) -> tuple[BinaryIO, str]:
        """Open the object, and return it with its version."""
        data = self.objects.get(name)
        if data is None:
            missing = FileNotFoundError(errno.ENOENT, "no such object", name)
            raise StorageError(f"Cannot read '{name}': no such object.") from missing
        return io.BytesIO(data), _version(data)

    def write(self, name: str, data: Data) -> None:
        """Create or replace."""
        self.objects[name] = b"".join(pieces(data))

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Create only if absent."""
        with self._lock:
            if name in self.objects:
                return False
            self.objects[name] = b"".join(pieces(data))
            return True

    def replace(self, name: str, data: Data, version: str) -> bool:
        """Replace only this version."""
        with self._lock:
            present = self.objects.get(name)
            if present is None or _version(present) != version:
                return False
            self.objects[name] = b"".join(pieces(data))
            return True

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Collect, then write."""
        buffer = io.BytesIO()
        # Arrow's writers close their file, and the data are needed afterwards.
        buffer.close = lambda: None  # type: ignore[method-assign]
        yield buffer
        self.write(name, buffer.getvalue())

    def sync(self, prefix: str) -> None:
        """Do nothing."""

    def delete(self, name: str) -> None:
        """Delete, if there."""
        self.objects.pop(name, None)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- engines -------------------------------------------------------------------------------------------------


class InlineEngine:
    """Runs tasks one after the other in the calling process."""

    is_cluster = False

    def connect(self) -> None:
        """Do nothing."""

    def warm_up(self, n_workers: int) -> int:
        """Do nothing."""
        return 1

    def run(
        self, task: Task[Result], plan: Plan, shards: Iterable[int], on_message: OnMessage = ignore_message
    ) -> Generator[Result]:
        """Run; see `Engine`."""
        for shard in shards:
            yield self.run_one(task, plan, shard)

    def run_one(self, task: Task[Result], plan: Plan, shard: int) -> Result:
        """Run a task for one shard; fakes of failing engines override this."""
        return task(plan, shard)

    def close(self) -> None:
        """Do nothing."""


# -- plans ---------------------------------------------------------------------------------------------------


def draft_plan(
    storage: Storage, *sources: SourceSpec, backbone: BackboneSpec | None = None, **options: Any
) -> Plan:
    """Return a draft of a plan for `featurepress.runs.verbs.run_plan`, with the fake backbone by default."""
    settings, backbone = Settings.from_options(**options), backbone or fake_backbone()
    return new_plan(
        storage,
        sources=sources,
        backbone=backbone,
        precision="float32",
        certificate={},
        settings=settings,
        layout=Layout.of(settings.output.images_per_part, backbone.pooling, remote=storage.is_remote),
        field_names=field_names(settings.listing, sources),
        library_version="test",
    )
