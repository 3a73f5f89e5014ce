"""An S3 with a million generated keys, without storage, and the same image for all of them.

The keys are ``Test/apple/0000000.jpg`` and so on, in byte order, spread over ten folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import overload

from tests.servers import pages
from tests.servers.answers import XML, Refused, Stored, give
from tests.servers.behaviour import Server, operation_of
from tests.servers.process import running
from tests.servers.s3 import S3, Control
from tests.servers.wire import Answer, Request, arguments, serve

FOLDERS = ("apple", "banana", "cherry", "grape", "kiwi", "lemon", "orange", "pear", "plum", "raspberry")
BUCKET = "made-up"
_MODIFIED_SECONDS = 1_700_000_000


class MadeUpKeys(Sequence[bytes]):
    """Sorted keys without memory: at most 10 million in each of the `FOLDERS`, which are filled in order."""

    def __init__(self, n_keys: int) -> None:
        self.n_keys = n_keys
        self.per_folder = max(1, -(-n_keys // len(FOLDERS)))

    def __len__(self) -> int:
        return self.n_keys

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n_keys))]
        if not 0 <= index < self.n_keys:
            raise IndexError(index)
        folder, number = divmod(index, self.per_folder)
        return b"Test/%s/%07d.jpg" % (FOLDERS[folder].encode(), number)


class ListingServer(Server):
    """List `count` keys, and return the image, a JPEG, for each of them."""

    def __init__(self, count: int, image: bytes) -> None:
        super().__init__()
        self.keys = MadeUpKeys(count)
        headers = {"Content-Type": "image/jpeg"}
        self._stored = Stored(image, hashlib.md5(image).hexdigest(), headers, _MODIFIED_SECONDS, 1)
        entry = pages.write_entry(
            b"@", modified="2023-11-14T22:13:20.000Z", etag=self._stored.etag, size=len(image)
        )
        self._before, _, self._behind = entry.partition(b"@")

    def answer(self, request: Request) -> Answer:
        """Answer a listing, or a GET or HEAD of a key."""
        name, _, key = request.path[1:].partition(b"/")
        query = request.query
        operation = operation_of(request.method, query, has_bucket=bool(name), has_key=bool(key))
        self.note(request, operation, f"{name.decode('utf-8', 'replace')}/{key.decode('utf-8', 'replace')}")
        if operation == "ListObjectsV2":
            question = pages.Question.of(query)
            page = pages.take_page(self.keys, question)
            return Answer(200, dict(XML), pages.write_page(name.decode(), question, page, self._entries(page)))
        if operation == "HeadBucket":
            return Answer(200)
        if operation not in ("GetObject", "HeadObject"):
            raise Refused(403, "AccessDenied", "Access Denied")
        i = bisect_left(self.keys, key)
        if i == len(self.keys) or self.keys[i] != key:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return give(request, self._stored)

    def _entries(self, page: pages.Page) -> bytes:
        """Return the XML of a page's keys, which differ only in their numbers."""
        per_folder = self.keys.per_folder
        found = []
        for folder, indices in groupby(page.indices, lambda i: i // per_folder):
            head = self._before + b"Test/%s/" % FOLDERS[folder].encode()
            tail = b".jpg" + self._behind
            numbers = [b"%07d" % (i - folder * per_folder) for i in indices]
            found.append(head + (tail + head).join(numbers) + tail)
        return b"".join(found)

    def obey(self, command: str, given: Mapping[str, str]) -> object:
        """Run a command of a test."""
        if command == "make":
            self.keys = MadeUpKeys(int(given["count"]))
            return None
        return super().obey(command, given)


class Listing(S3, Control):
    """The client of a test: every bucket has all keys; nothing can be written."""

    def make(self, count: int) -> None:
        """Set the number of keys."""
        self.ask("make", count=count)

    def bucket(self) -> str:
        """Return the name of the bucket."""
        return BUCKET


def draw_image() -> bytes:
    """Draw a small JPEG."""
    from featurepress.demo.orchard import draw_images

    with tempfile.TemporaryDirectory() as folder:
        return draw_images(Path(folder), 1, image_size_px=100)[0].read_bytes()


@contextlib.contextmanager
def start_listing(count: int = 1_000_000, image: bytes | None = None) -> Iterator[Listing]:
    """Run the server in a new process; without an image, one is drawn."""
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(draw_image() if image is None else image)
        file.flush()
        with (
            running("listing", "--count", str(count), "--image", file.name) as endpoint,
            contextlib.closing(Listing(endpoint)) as server,
        ):
            yield server


def main() -> None:
    """Serve until standard input ends."""
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="how many keys")
    parser.add_argument("--image", type=Path, required=True, help="a JPEG, what is under each key")
    given = parser.parse_args()
    serve(ListingServer(given.count, given.image.read_bytes()), given)


if __name__ == "__main__":
    main()
