"""The references of all sources of a run as one ordered listing, with labels and limit applied."""

from __future__ import annotations

import collections
import functools
import heapq
import itertools
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from featurepress.errors import SettingError, SourceError
from featurepress.settings import ImageSettings, ListingSettings
from featurepress.sources.describe import resolved
from featurepress.sources.files.folder import is_glob, path_text
from featurepress.sources.registry import open_source
from featurepress.specs import ImageRef, SourceSpec


class Listing:
    """The references of several sources, merged in byte order, with fields and limit applied.

    Parameters
    ----------
    specs : sequence of SourceSpec
        The sources.
    settings : ListingSettings
        Labels and limit.
    start_after : bytes
        Begin after this key: a listing that was interrupted goes on there.
    positions : sequence of bytes
        The `positions` of that listing, so that what it had passed over is not counted again.
    n_before : int
        How many references earlier chunks already hold; counts towards the limit.
    limits : ImageSettings, optional
        What one image may cost.
    """

    def __init__(
        self,
        specs: Sequence[SourceSpec],
        settings: ListingSettings,
        *,
        start_after: bytes = b"",
        positions: Sequence[bytes] = (),
        n_before: int = 0,
        limits: ImageSettings | None = None,
    ) -> None:
        self._specs = specs
        self._sources = [open_source(spec, limits) for spec in specs]
        self._settings = settings
        self._labeller = _Labeller(settings.labels)
        self._start_after = start_after
        # The keys after which the sources begin; whoever had looked further ahead than the last key looks again.
        starts = [min(position, start_after) for position in positions]
        self._positions = starts or [start_after] * len(specs)
        self._counts: list[Mapping[str, int]] = [{} for _ in specs]
        self._firsts: dict[int, ImageRef] = {}
        self._limit = None if settings.limit is None else min(max(0, settings.limit - n_before), sys.maxsize)

    @property
    def skipped(self) -> dict[str, int]:
        """What has been passed over up to the last reference that was taken, counted by reason."""
        if len(self._sources) == 1:
            return dict(sorted(self._sources[0].skipped.items()))
        total: collections.Counter[str] = collections.Counter()
        for counts in self._counts:
            total.update(counts)
        return dict(sorted(total.items()))

    @property
    def positions(self) -> tuple[bytes, ...]:
        """The key of the last reference that was taken from each source."""
        return tuple(self._positions)

    @property
    def firsts(self) -> tuple[ImageRef, ...]:
        """The first reference of each source without a problem; all of them once the iteration has begun."""
        return tuple(self._firsts.values())

    def __iter__(self) -> Iterator[ImageRef]:
        """Yield the references.

        Raises
        ------
        SourceError
            A source does not exist or holds no image, or two sources give the same uri.
        """
        streams = [self._stream(number) for number in range(len(self._sources))]
        return itertools.islice(self._merged(streams), self._limit)

    def _stream(self, number: int) -> Iterator[ImageRef]:
        source, spec = self._sources[number], self._specs[number]
        names = field_names(self._settings, self._specs)
        first = True
        for ref in source.list(self._positions[number]):
            first = False
            if self._start_after and ref.order <= self._start_after:
                continue  # new since that part of the listing was committed
            if names or number or ref.fields:
                ref = ref._replace(source=number, fields=self._labeller(spec, ref) if names else ())  # noqa: PLW2901
            if number not in self._firsts and ref.problem is None:
                self._firsts[number] = ref
            yield ref
        if first and not self._start_after:
            raise SourceError(_nothing_found(self._specs[number], source.skipped))

    def _merged(self, streams: list[Iterator[ImageRef]]) -> Iterator[ImageRef]:
        merged = streams[0] if len(streams) == 1 else heapq.merge(*streams, key=lambda ref: ref.order)
        is_single, last, last_order = len(streams) == 1, 0, b""
        for ref in merged:
            order = ref.order
            if order == last_order:
                one, other = (self._specs[i].location for i in (last, ref.source))
                raise SourceError(
                    f"The sources '{one}' and '{other}' both hold '{ref.uri}': every image may be listed once. "
                    "Drop one of the sources, or narrow it."
                )
            last, last_order = ref.source, order
            self._positions[last] = order
            if not is_single:
                # Of the other sources a merge has looked one reference ahead, and counted what lies before it.
                self._counts[last] = dict(self._sources[last].skipped)
            yield ref
        self._counts = [dict(source.skipped) for source in self._sources]


# Columns that every part has.
_OWN_COLUMNS = ("uri", "width", "height", "sha256", "features")


def field_names(settings: ListingSettings, specs: Sequence[SourceSpec] = ()) -> tuple[str, ...]:
    """Return the names of `ImageRef.fields`.

    Raises
    ------
    SettingError
        A pattern of labels names a column twice, or one that every set has.
    """
    if settings.labels == "parent":
        return ("label",)
    if settings.labels == "auto":
        return ("label",) if any(spec.options.get("brings_label") for spec in specs) else ()
    names = tuple(_NAMED.findall(settings.labels)) if settings.labels != "none" else ()
    for i, name in enumerate(names):
        if not name.isidentifier() or name in _OWN_COLUMNS or name in names[:i]:
            raise SettingError(
                f"The 'labels' setting names each column once, by a word other than {', '.join(_OWN_COLUMNS)}. "
                f"Got '{{{name}}}' in '{settings.labels}'."
            )
    return names


_NAMED = re.compile(r"\{([^{}]*)\}")


class _Labeller:
    """Computes the fields of a reference from the setting of labels.

    A pattern is matched against the last parts of the path: ``{split}/{label}/{name}`` matches the last three.
    Fields are None where it does not match.
    """

    def __init__(self, labels: str) -> None:
        self._labels = labels
        pieces = _NAMED.split(labels)
        self._n_fields = len(pieces) // 2
        texts = [re.escape(piece) if i % 2 == 0 else "([^/]*?)" for i, piece in enumerate(pieces)]
        self._pattern = re.compile("(?:.*/)?" + "".join(texts), re.DOTALL)

    def __call__(self, spec: SourceSpec, ref: ImageRef) -> tuple[str | None, ...]:
        if self._labels == "auto":
            return ref.fields or (None,)
        path = ref.uri.replace("#", "/", 1) if spec.kind in ("archive", "table") else ref.uri
        if self._labels == "parent":
            return (_parent_label(spec, path, ref),)
        match = self._pattern.fullmatch(path)
        return match.groups() if match else (None,) * self._n_fields


def _parent_label(spec: SourceSpec, path: str, ref: ImageRef) -> str:
    label = path.rpartition("/")[0].rpartition("/")[2]
    if spec.kind != "folder" or label not in ("", ".", ".."):
        return label
    return _real_name(spec.base, ref.order.rpartition(b"/")[0])


@functools.lru_cache(maxsize=64)
def _real_name(base: str, folder: bytes) -> str:
    """Return the name of a folder whose path does not contain it, such as ``.``; "" for the root of the disk."""
    return path_text(os.fsencode(resolved(base, os.fsdecode(folder)).name))


def _nothing_found(spec: SourceSpec, skipped: collections.Counter[str]) -> str:
    passed = ", ".join(f"{n} skipped ({reason})" for reason, n in skipped.most_common()) or "it is empty"
    hint = "; --all-files lists every regular file" if skipped["not an image's name"] else ""
    if is_glob(spec):
        return f"No image matches '{spec.location}': {passed if skipped else 'nothing has such a path'}{hint}."
    where = "in" if spec.kind in ("archive", "table", "uris") else "below"
    return f"No image {where} '{spec.location}': {passed}{hint}."
