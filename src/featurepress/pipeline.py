"""Press one shard: the one loop, and the only file that knows all stages.

references -> bytes (sources) -> pixels (images) -> features (backbones) -> part (sinks) -> receipt (ledger)
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
import platform
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress import ledger
from featurepress.backbones import Backbone, bring_model, load_backbone, supports_bfloat16
from featurepress.child import Child, ChildDiedError, beat
from featurepress.errors import ImageError, ModelError, ReplacedError, StoppedError
from featurepress.images import decode, preprocess
from featurepress.ledger import Plan, References
from featurepress.records import BackboneSpec, Failure, ImageRef, Receipt, SourceSpec
from featurepress.settings import Settings
from featurepress.sinks import Account, ParquetSink, Row, StandingPart
from featurepress.sources import open_source, require_sight
from featurepress.sources.base import Source, read_ahead
from featurepress.storage import at_once

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurepress.records import Features, Pixels

Decoder = Callable[..., Any]  # (data, *, max_pixels) -> array (H, W, 3) uint8, or ImageError

DEATHS_BEFORE_CARE = 2
_LOOKS = 5  # at a part that others replace meanwhile
_BEAT_SECONDS = 0.2


def press_shard(plan: Plan, shard: int, decoder: Decoder | None = None, *, mends: bool = False) -> Receipt:
    """Press a shard, write its part, and give its receipt; if its part already stands, give that one's.

    Parameters
    ----------
    plan : Plan
        Its destination holds the chunk with the shard's references.
    shard : int
        Number of the shard.
    decoder : callable, optional
        Bytes to pixels; `featurepress.images.decode` by default.
    mends : bool
        Whether a driver of a later generation asks, for what this one has left.

    Raises
    ------
    StorageError
        The destination refused, or a source stopped answering.
    StoppedError
        A later generation has begun.
    EngineError
        This process does not see what the driver sees.
    """
    _require_sight(plan)
    bring_model(plan.backbone, plan.storage)
    with ledger.attempt(plan, shard) as n_deaths:
        press = _press_carefully if n_deaths >= DEATHS_BEFORE_CARE else _press_in_batches
        for n_left in reversed(range(_LOOKS)):
            try:
                if shard < plan.first_shard and not mends:
                    ledger.require_open(plan)
                account = _standing_or_pressed(plan, shard, lambda new: press(plan, new, decoder or decode))
                break
            except ReplacedError:  # another attempt was quicker: look what stands now
                if not n_left:
                    raise
        ledger.settle_shard(plan, account.receipt, account.failures, mends=mends)
    return account.receipt


def _standing_or_pressed(plan: Plan, shard: int, press: Callable[[_Shard], str]) -> Account:
    """Give the account of the part that stands, if it is of this generation, or else of the one that is pressed.

    What is told of the standing part, and what is carried over from it, is of the one version that is replaced.
    """
    sink = ParquetSink(plan.field_names, plan.backbone.n_features)
    standing: StandingPart | None
    references: References
    with contextlib.ExitStack() as stack:
        standing, references = at_once(
            plan.storage,
            lambda: stack.enter_context(sink.standing(plan.storage, shard)),
            lambda: ledger.read_references(plan, shard),
        )
        if standing is None:  # new, or lost, and with it what could be carried over
            pressed = _Shard(plan, shard, references.refs)
        elif (generation := standing.account.receipt.generation) < plan.generation:
            pressed = _Revised(plan, shard, references, standing)
        elif generation == plan.generation:
            return standing.account
        else:
            raise StoppedError(
                f"Shard {shard} of '{plan.storage.location}' was pressed by generation {generation}, and this "
                f"run is at generation {plan.generation}: another has begun meanwhile. Nothing more was written."
            )
        stack.callback(pressed.close)
        return pressed.commit(press(pressed))


def probe_images(
    plan: Plan,
    refs: Sequence[ImageRef],
    n_wanted: int,
    *,
    decoder: Decoder | None = None,
    on_image: Callable[[ImageRef], None] = lambda ref: None,
) -> tuple[list[Failure], list[float], bool]:
    """Try images until some are good, and compare float32 with bfloat16 on those.

    Parameters
    ----------
    plan : Plan
        A draft; nothing is written.
    refs : sequence of ImageRef
        What to try, in order.
    n_wanted : int
        Stop after so many good ones; after the first if the precision needs no proof.
    decoder : callable, optional
        Bytes to pixels.
    on_image : callable
        Called before each image is decoded.

    Returns
    -------
    failures, cosines, can_choose
        The failures; one cosine a good image (1.0 where nothing was compared); whether bfloat16 is to be had.
    """
    _require_sight(plan)
    bring_model(plan.backbone, plan.storage)
    can_choose = plan.settings.features.precision != "float32" and supports_bfloat16(plan.backbone)
    inputs: list[Any] = []
    failures: list[Failure] = []
    batch = _batch(plan.backbone, 1)
    for ref, data in _read(plan.sources, plan.settings, refs):
        on_image(ref)
        try:
            pixels = (decoder or decode)(_bytes(data), max_pixels=plan.settings.images.max_pixels)
            preprocess(pixels, plan.backbone.preprocess, batch[0])
            inputs.append(batch[0].copy())
        except ImageError as error:
            failures.append(Failure(ref.uri, error.stage, error.reason))
        if len(inputs) == (n_wanted if can_choose else 1):
            break
    if not inputs:
        return failures, [], can_choose
    full = _features(plan.backbone, "float32", inputs)  # while the other cores load their model as well
    if not np.isfinite(full).all(axis=1).any():
        raise ModelError(
            f"The model {plan.backbone.model} gives features that are no numbers (NaN or infinite) for every "
            "picture of the first batch. Check its weights, and what it was told of --mean and --scale."
        )
    if not can_choose:
        return failures, [1.0] * len(inputs), False
    return failures, cosines(full, _features(plan.backbone, "bfloat16", inputs)).tolist(), True


def cosines(one: Any, other: Any) -> npt.NDArray[np.float64]:
    """Give the cosine between the rows of two arrays (n_samples, n_features): (n_samples,) float64.

    Rows that are all zero, in both, agree: 1. One side only does not: 0. What is no number does not: -1.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    found = np.divide((one * other).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
    return np.nan_to_num(np.where(both_zero, 1.0, found), nan=-1.0)


def _require_sight(plan: Plan) -> None:
    """Make sure, once a run and process, that the sources here are those that the driver sees."""
    if plan.seen and plan.run_id not in _SIGHTED:
        require_sight(plan.sources, plan.settings.images, plan.seen)
        _SIGHTED.add(plan.run_id)


_SIGHTED: set[str] = set()  # run ids


# -- a few pictures in memory --------------------------------------------------------------------------------


def read_pictures(
    sources: Sequence[SourceSpec], settings: Settings, refs: Iterable[ImageRef]
) -> Iterator[tuple[ImageRef, Pixels]]:
    """Yield the pictures that can be decoded, in order: arrays (H, W, 3) uint8, RGB."""
    for ref, data in _read(sources, settings, refs):
        with contextlib.suppress(ImageError):
            yield ref, decode(_bytes(data), max_pixels=settings.images.max_pixels)


def press_pictures(backbone: BackboneSpec, precision: str, pictures: Sequence[Pixels]) -> Features:
    """Give the features of decoded pictures: (n_samples, n_features) float32."""
    inputs = _batch(backbone, len(pictures))
    for pixels, room in zip(pictures, inputs, strict=True):
        preprocess(pixels, backbone.preprocess, room)
    return _features(backbone, precision, inputs)


def _features(spec: BackboneSpec, precision: str, inputs: Sequence[Any]) -> Features:
    """Run any number of preprocessed pictures."""
    backbone = load_backbone(spec, precision)
    batch, rows = _batch(spec, backbone.batch_size), []
    for start in range(0, len(inputs), len(batch)):
        run = inputs[start : start + len(batch)]
        batch[: len(run)] = run
        rows.append(_infer(backbone, batch)[: len(run)].copy())
    return np.concatenate(rows)


# -- one shard -----------------------------------------------------------------------------------------------


class _Shard:
    """A shard while it is pressed: its part, which is being filled, and its account."""

    def __init__(self, plan: Plan, number: int, refs: Sequence[ImageRef]) -> None:
        self._plan = plan
        self._number = number
        self._started = time.perf_counter()
        self._part = ParquetSink(plan.field_names, plan.backbone.n_features).begin()
        self._beat_at = 0.0
        self.refs = refs
        self.n_listed = len(refs)
        self.n_pressed = 0
        self.n_carried = 0
        self.failures: list[Failure] = []
        self.bytes_read = 0
        self._replaces = ""

    def add(self, pressed: Sequence[Row], features: Any) -> None:
        """Take the features of some images; those that are no numbers are failures."""
        good = np.isfinite(features).all(axis=1)
        if not good.all():
            for row, is_good in zip(pressed, good, strict=True):
                if not is_good:
                    self.fail(row.ref, ImageError("infer", "features are not finite"))
            pressed, features = list(itertools.compress(pressed, good)), features[good]
        self._part.add(pressed, features)
        self.n_pressed += len(pressed)
        self._beat()

    def carries(self, ref: ImageRef, sha256: str) -> bool:
        """Whether the image has a row already that was pressed from the same bytes."""
        return False

    def close(self) -> None:
        """Give back what the part takes."""
        self._part.close()

    def fail(self, ref: ImageRef, error: ImageError) -> None:
        """Take an image that cannot be pressed."""
        self.failures.append(Failure(ref.uri, error.stage, " ".join(error.reason.split())))
        self._beat()

    def commit(self, precision: str) -> Account:
        """Write the part; give the account of the one that stands."""
        self._beat(now=True)
        receipt = Receipt(
            shard=self._number,
            generation=self._plan.generation,
            listed=self.n_listed,
            pressed=self.n_pressed,
            failed=len(self.failures),
            failed_by_kind=dict(collections.Counter(failure.kind for failure in self.failures)),
            bytes_read=self.bytes_read,
            seconds=round(time.perf_counter() - self._started, 3),
            precision=precision,
            cpu=cpu_name(),
            host=socket.gethostname(),
            versions=library_versions(),
            carried=self.n_carried,
        )
        return self._part.commit(self._plan.storage, receipt, self.failures, replaces=self._replaces)

    def _beat(self, *, now: bool = False) -> None:
        """Tell the engine how the shard gets on, a few times a second."""
        clock = time.monotonic()
        if now or clock - self._beat_at > _BEAT_SECONDS:
            self._beat_at = clock
            beat(("images", self._number, self.n_pressed, len(self.failures)))


class _Revised(_Shard):
    """A shard of an earlier generation: what is as it was is carried over, the rest is pressed.

    The new part has the rows that were pressed first, and then those that were carried over. Where the part is not
    the one with which the images were compared, all are read, and only those with the same bytes are carried over.
    """

    def __init__(self, plan: Plan, number: int, references: References, standing: StandingPart) -> None:
        receipt, failures = standing.account
        failed = {failure.uri: failure for failure in failures}
        kept, left = {}, []
        for ref, is_carried in zip(references.refs, references.carried, strict=True):
            is_known = ref.uri in standing.hashes or ref.uri in failed
            if is_carried and is_known and receipt.generation == references.base:
                kept[ref.uri] = ref
            else:
                left.append(ref)
        super().__init__(plan, number, left)
        self.n_listed = len(references.refs)
        self.failures += [failure for uri, failure in failed.items() if uri in kept]
        self._standing = standing
        self._replaces = standing.version
        self._kept = {uri: ref for uri, ref in kept.items() if uri in standing.hashes}

    def carries(self, ref: ImageRef, sha256: str) -> bool:
        """Keep the row of an image whose bytes are the same, though its version is another one."""
        if self._standing.hashes.get(ref.uri) != sha256:
            return False
        self._kept[ref.uri] = ref
        return True

    def commit(self, precision: str) -> Account:
        """Carry over what is kept, and put the part in place of the old one."""
        for rows, features in self._standing.rows(self._kept):
            if rows:
                self.n_carried += len(rows)
                self.add(rows, features)
        return super().commit(precision)


def _press_in_batches(plan: Plan, shard: _Shard, decoder: Decoder) -> str:
    """Press a shard: decode until a batch is full, run it, go on; give the precision."""
    backbone = load_backbone(plan.backbone, plan.precision)
    batch = _batch(plan.backbone, backbone.batch_size)
    waiting: list[Row] = []
    max_pixels, steps = plan.settings.images.max_pixels, plan.backbone.preprocess
    for ref, data in _read(plan.sources, plan.settings, shard.refs):
        try:
            content = _bytes(data)
            shard.bytes_read += len(content)
            sha256 = hashlib.sha256(content).hexdigest()
            if shard.carries(ref, sha256):
                continue
            pixels = decoder(content, max_pixels=max_pixels)
            preprocess(pixels, steps, batch[len(waiting)])
        except ImageError as error:
            shard.fail(ref, error)
            continue
        height, width = pixels.shape[:2]
        waiting.append(Row(ref, width, height, sha256))
        if len(waiting) == len(batch):
            shard.add(waiting, _infer(backbone, batch))
            waiting.clear()
    if waiting:
        shard.add(waiting, _infer(backbone, batch)[: len(waiting)])
    return backbone.precision


def _press_carefully(plan: Plan, shard: _Shard, decoder: Decoder) -> str:
    """Press a shard that killed processes before: image by image, in child processes; give the precision.

    An image at which two children die in a row is the killer and becomes a failure. The features are the same
    bits as in batches.
    """
    precision = plan.precision
    with _children() as fresh_child:
        for ref in shard.refs:
            try:
                row, features, n_bytes, precision = _press_with_care(plan, ref, decoder, fresh_child)
                shard.bytes_read += n_bytes
                if not shard.carries(ref, row.sha256):
                    shard.add([row], features)
            except ImageError as error:
                shard.fail(ref, error)
    return precision


def _press_with_care(plan: Plan, ref: ImageRef, decoder: Decoder, child: Callable[..., Child]) -> Any:
    silence_seconds = plan.settings.images.silence_seconds
    how = ""
    for renewed in (False, True):
        beat(("alive",))  # each try has its own silence
        try:
            return child(renewed=renewed).call(press_one, plan, ref, decoder, silence_seconds=silence_seconds)
        except ChildDiedError as death:
            how = str(death)
    child(renewed=True)
    raise ImageError("decode", f"decoder crashed: its process {how}, twice")


def press_one(plan: Plan, ref: ImageRef, decoder: Decoder) -> tuple[Row, Any, int, str]:
    """Press a single image; give its row, features (1, n_features), number of bytes, and precision."""
    ((_, data),) = _read(plan.sources, plan.settings, [ref])
    content = _bytes(data)
    backbone = load_backbone(plan.backbone, plan.precision)
    batch = _batch(plan.backbone, backbone.batch_size)
    pixels = decoder(content, max_pixels=plan.settings.images.max_pixels)
    preprocess(pixels, plan.backbone.preprocess, batch[0])
    features = _infer(backbone, batch)[:1].copy()
    height, width = pixels.shape[:2]
    row = Row(ref, width, height, hashlib.sha256(content).hexdigest())
    return row, features, len(content), backbone.precision


@contextlib.contextmanager
def _children() -> Iterator[Callable[..., Child]]:
    """Give a function that gives the present child, or a new one in place of a dead one."""
    child: list[Child] = []

    def get(*, renewed: bool) -> Child:
        if renewed and child:
            child.pop().close(patience_seconds=0.5)
        if not child:
            child.append(Child())
        return child[0]

    try:
        yield get
    finally:
        if child:
            child[0].close(patience_seconds=0.5)


# -- pieces --------------------------------------------------------------------------------------------------


def _read(
    specs: Sequence[SourceSpec], settings: Settings, refs: Iterable[ImageRef]
) -> Iterator[tuple[ImageRef, bytes | ImageError]]:
    """Read images ahead, with what can be told without reading told first."""
    sources: list[Source] = [open_source(spec, settings.images) for spec in specs]
    max_bytes = settings.images.max_bytes

    def read(ref: ImageRef) -> bytes:
        if ref.problem is not None:
            raise ImageError("list", ref.problem)
        if ref.size > max_bytes:
            raise ImageError("read", f"too many bytes: {ref.size}, above the limit of {max_bytes} (--max-bytes)")
        return sources[ref.source].read(ref)

    memory, ways = settings.resources.memory_bytes, [source.reading for source in sources]
    ahead_bytes = max(way.ahead_bytes for way in ways)
    return read_ahead(
        read,
        refs,
        threads=max(way.in_flight for way in ways),
        ahead_bytes=ahead_bytes if memory is None else max(1024**2, min(ahead_bytes, memory // 32)),
        timeout_seconds=settings.images.timeout_seconds,
        group_size=min(way.group for way in ways),
    )


def _bytes(data: bytes | ImageError) -> bytes:
    if isinstance(data, ImageError):
        raise data
    return data


def _batch(spec: BackboneSpec, size: int) -> Any:
    """Give room for a batch: array (size, H, W, 3) of the model's input type."""
    steps = spec.preprocess
    return np.zeros((size, steps.height, steps.width, 3), steps.dtype)


def _infer(backbone: Backbone, batch: Any) -> Any:
    try:
        return backbone(batch)
    except RuntimeError as error:
        raise StoppedError(f"The model could not be run: {' '.join(str(error).split())}.") from error


@functools.cache
def cpu_name() -> str:
    """Give the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def library_versions() -> dict[str, str]:
    """Give the versions of what may change a feature."""
    from importlib.metadata import version

    names = ("featurepress", "openvino", "opencv-python-headless", "pillow", "numpy", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
