"""The references of all sources of a run as one ordered listing, with labels and limit."""

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
from featurepress.sources.files.folder import path_text
from featurepress.sources.registry import open_source
from featurepress.sources.selection import is_glob
from featurepress.specs import ImageRef, SourceSpec


class Listing:
    """The references of several sources, merged in byte order, with labels and limit.

    Parameters
    ----------
    specs : sequence of SourceSpec
        The sources.
    settings : ListingSettings
        Labels and limit.
    start_after : bytes
        Begin after this key: where an interrupted listing continues.
    positions : sequence of bytes
        The `positions` of that listing, so that skipped files are not counted twice.
    n_before : int
        Number of references before, which count towards the limit.
    limits : ImageSettings, optional
        Limits for one image.
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
        # Where each source begins. A source that was read beyond the last key of the listing starts again there.
        starts = [min(position, start_after) for position in positions]
        self._positions = starts or [start_after] * len(specs)
        self._counts: list[Mapping[str, int]] = [{} for _ in specs]
        self._firsts: dict[int, ImageRef] = {}
        self._limit = None if settings.limit is None else min(max(0, settings.limit - n_before), sys.maxsize)

    @property
    def skipped(self) -> dict[str, int]:
        """The number of files skipped before the last yielded reference, by reason."""
        if len(self._sources) == 1:
            return dict(sorted(self._sources[0].skipped.items()))
        total: collections.Counter[str] = collections.Counter()
        for counts in self._counts:
            total.update(counts)
        return dict(sorted(total.items()))

    @property
    def positions(self) -> tuple[bytes, ...]:
        """The key of the last yielded reference of each source."""
        return tuple(self._positions)

    @property
    def firsts(self) -> tuple[ImageRef, ...]:
        """The first reference without a problem of each source; complete once the iteration has begun."""
        return tuple(self._firsts.values())

    def __iter__(self) -> Iterator[ImageRef]:
        """Yield the references.

        Raises SourceError if a source does not exist or contains no image, or two sources contain the same uri.
        """
        streams = [self._stream(number) for number in range(len(self._sources))]
        return itertools.islice(self._merged(streams), self._limit)

    def _stream(self, number: int) -> Iterator[ImageRef]:
        source, spec = self._sources[number], self._specs[number]
        names = field_names(self._settings, self._specs)
        is_empty = True
        for ref in source.list(self._positions[number]):
            is_empty = False
            if self._start_after and ref.order <= self._start_after:
                continue  # new since that part of the listing was committed
            if names or number or ref.fields:
                ref = ref._replace(source=number, fields=self._labeller(spec, ref) if names else ())  # noqa: PLW2901
            if number not in self._firsts and ref.problem is None:
                self._firsts[number] = ref
            yield ref
        if is_empty and not self._start_after:
            raise SourceError(_nothing_found(spec, source.skipped))

    def _merged(self, streams: list[Iterator[ImageRef]]) -> Iterator[ImageRef]:
        is_single, last, last_order = len(streams) == 1, 0, b""
        for ref in streams[0] if is_single else heapq.merge(*streams, key=lambda ref: ref.order):
            order = ref.order
            if order == last_order:
                one, other = (self._specs[i].location for i in (last, ref.source))
                raise SourceError(
                    f"The sources '{one}' and '{other}' both contain '{ref.uri}': every image may be listed once. "
                    "Remove one of the sources, or narrow it."
                )
            last, last_order = ref.source, order
            self._positions[last] = order
            if not is_single:
                # The merge has read the other sources one reference ahead; their counts wait until it is yielded.
                self._counts[last] = dict(self._sources[last].skipped)
            yield ref
        self._counts = [dict(source.skipped) for source in self._sources]


_OWN_COLUMNS = ("uri", "width", "height", "sha256", "features")  # of every feature set


def field_names(settings: ListingSettings, specs: Sequence[SourceSpec] = ()) -> tuple[str, ...]:
    """Return the names of `ImageRef.fields`.

    Raises SettingError if a pattern of labels names a column twice, or one that every feature set has.
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
    """Return the fields of a reference, as the setting of labels requires.

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
            return (parent_label(spec, path, ref),)
        match = self._pattern.fullmatch(path)
        return match.groups() if match else (None,) * self._n_fields


def parent_label(spec: SourceSpec, path: str, ref: ImageRef) -> str:
    """Return the name of the folder that contains an image; "" for the root of the disk."""
    label = path.rpartition("/")[0].rpartition("/")[2]
    if spec.kind != "folder" or label not in ("", ".", ".."):
        return label
    return _real_name(spec.base, ref.order.rpartition(b"/")[0])


@functools.lru_cache(maxsize=64)
def _real_name(base: str, folder: bytes) -> str:
    """Return the name of a folder whose path does not contain it, such as ``.``; "" for the root of the disk."""
    return path_text(os.fsencode(resolved(base, os.fsdecode(folder)).name))


def _nothing_found(spec: SourceSpec, skipped: collections.Counter[str]) -> str:
    reasons = ", ".join(f"{n} skipped ({reason})" for reason, n in skipped.most_common())
    hint = "; --all-files lists every regular file" if skipped["no image suffix"] else ""
    if is_glob(spec):
        return f"No image matches '{spec.location}': {reasons or 'no path matches'}{hint}."
    where = "in" if spec.kind in ("archive", "table", "uris") else "below"
    return f"No image {where} '{spec.location}': {reasons or 'it is empty'}{hint}."
