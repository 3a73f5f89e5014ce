"""A fast S3 in memory, in its own process, with faults and refusals on demand.

Keys are bytes as they were sent: ``//``, ``..`` and a leading ``/`` stay. Signatures are not checked. What only
tests ask for lies below ``/-/``; `tests.servers.s3.FastS3` asks for it. By hand::

    python -m tests.servers.objects --port 9000
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote_from_bytes

from tests.servers import pages
from tests.servers.answers import XML, XML_HEAD, Refused, Stored, failed, give, kept_headers, matches, xml_answer
from tests.servers.behaviour import Server, operation_of
from tests.servers.wire import Answer, Request, arguments, serve

MIN_PART_BYTES = 5 * 1024**2  # of all parts of an upload but the last (Amazon S3 multipart upload limits)


@dataclass(slots=True)
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    key: bytes
    headers: dict[str, str]
    parts: dict[int, Stored] = field(default_factory=dict)


class Bucket:
    """Objects by key, and the keys in byte order."""

    def __init__(self) -> None:
        self.region = ""  # "" for any
        self.wrong_region_status = 301
        self.objects: dict[bytes, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self._keys: list[bytes] | None = None

    @property
    def keys(self) -> list[bytes]:
        """The keys in byte order."""
        if self._keys is None:
            self._keys = sorted(self.objects)
        return self._keys

    def put(self, key: bytes, stored: Stored) -> None:
        """Put an object, or replace it."""
        if self._keys is not None and key not in self.objects:
            insort(self._keys, key)
        self.objects[key] = stored

    def delete(self, key: bytes) -> None:
        """Delete an object if it exists."""
        if self.objects.pop(key, None) is not None and self._keys is not None:
            del self._keys[bisect_left(self._keys, key)]

    def forget_order(self) -> None:
        """Sort the keys again when they are needed: before many are put."""
        self._keys = None


class ObjectServer(Server):
    """The part of S3 that clients of object stores need."""

    def __init__(self) -> None:
        super().__init__()
        self.buckets: dict[str, Bucket] = {}
        self._version = 1_700_000_000_000_000  # in the form of Google's generations
        self._n_uploads = 0

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request, or raise `Refused`."""
        name, _, key = request.path[1:].partition(b"/")
        bucket_name, query = name.decode("utf-8", "surrogateescape"), request.query
        operation = operation_of(request.method, query, has_bucket=bool(name), has_key=bool(key))
        self.note(request, operation, f"{bucket_name}/{key.decode('utf-8', 'surrogateescape')}")
        if operation == "ListBuckets":
            return self._list_buckets()
        if operation == "CreateBucket":
            return self._create_bucket(request, bucket_name)
        bucket = self.buckets.get(bucket_name)
        if bucket is None:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist", BucketName=bucket_name)
        _check_region(request, bucket_name, bucket)
        if not key:
            return self._ask_bucket(operation, request, query, bucket_name, bucket)
        does: dict[str, Callable[[Request, Mapping[str, str], Bucket, bytes], Answer]] = {
            "GetObject": self._get,
            "HeadObject": self._get,
            "PutObject": self._put,
            "DeleteObject": self._delete,
            "CreateMultipartUpload": self._create_upload,
            "UploadPart": self._upload_part,
            "CompleteMultipartUpload": self._complete_upload,
            "AbortMultipartUpload": self._abort_upload,
        }
        if operation not in does:
            raise Refused(501, "NotImplemented", f"{operation} is not known here")
        return does[operation](request, query, bucket, key)

    # -- buckets ---------------------------------------------------------------------------------------------

    def _list_buckets(self) -> Answer:
        names = "".join(f"<Bucket><Name>{name}</Name></Bucket>" for name in sorted(self.buckets))
        text = f"<ListAllMyBucketsResult><Buckets>{names}</Buckets></ListAllMyBucketsResult>"
        return Answer(200, dict(XML), XML_HEAD + text.encode())

    def _create_bucket(self, request: Request, name: str) -> Answer:
        if name in self.buckets:
            raise Refused(409, "BucketAlreadyOwnedByYou", "The bucket exists", BucketName=name)
        self.buckets[name] = Bucket()
        return Answer(200, {"Location": f"/{name}"})

    def _ask_bucket(
        self, operation: str, request: Request, query: Mapping[str, str], name: str, bucket: Bucket
    ) -> Answer:
        if operation == "HeadBucket":
            return Answer(200, {"x-amz-bucket-region": bucket.region or "us-east-1"})
        if operation == "DeleteBucket":
            if bucket.objects:
                raise Refused(409, "BucketNotEmpty", "The bucket is not empty", BucketName=name)
            del self.buckets[name]
            return Answer(204)
        if operation == "GetBucketLocation":
            text = f"<LocationConstraint>{bucket.region}</LocationConstraint>".encode()
            return Answer(200, dict(XML), XML_HEAD + text)
        if operation == "ListObjectsV2":
            return self._list(query, name, bucket)
        if operation == "ListMultipartUploads":
            return self._list_uploads(name, bucket)
        if operation == "DeleteObjects":
            return self._delete_many(request, name, bucket)
        raise Refused(501, "NotImplemented", f"{operation} is not known here")

    def _list(self, query: Mapping[str, str], name: str, bucket: Bucket) -> Answer:
        question = pages.Question.of(query)
        keys = bucket.keys
        page = pages.take_page(keys, question)
        entries = []
        for i in page.indices:
            stored = bucket.objects[keys[i]]
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stored.modified))
            entries.append(
                pages.write_entry(
                    pages.spell(keys[i], url_encoding=question.url_encoding),
                    modified=f"{moment}.{int(stored.modified % 1 * 1000):03d}Z",
                    etag=stored.etag,
                    size=len(stored.data),
                )
            )
        return Answer(200, dict(XML), pages.write_page(name, question, page, b"".join(entries)))

    def _list_uploads(self, name: str, bucket: Bucket) -> Answer:
        found = [
            b"<Upload><Key>%s</Key><UploadId>%s</UploadId></Upload>" % (pages.spell(upload.key), number.encode())
            for number, upload in bucket.uploads.items()
        ]
        text = b"<ListMultipartUploadsResult><Bucket>%s</Bucket><IsTruncated>false</IsTruncated>%s" % (
            name.encode(),
            b"".join(found),
        )
        return Answer(200, dict(XML), XML_HEAD + text + b"</ListMultipartUploadsResult>")

    def _delete_many(self, request: Request, name: str, bucket: Bucket) -> Answer:
        found = []
        for spelled in re.findall(rb"<Key>(.*?)</Key>", request.body, re.DOTALL):
            text = html.unescape(spelled.decode("utf-8", "surrogateescape"))
            try:
                self.refuse("DELETE", f"{name}/{text}")
                bucket.delete(text.encode("utf-8", "surrogateescape"))
                found.append(b"<Deleted><Key>%s</Key></Deleted>" % spelled)
            except Refused as refused:
                code = refused.code.encode()
                found.append(b"<Error><Key>%s</Key><Code>%s</Code><Message/></Error>" % (spelled, code))
        return Answer(200, dict(XML), XML_HEAD + b"<DeleteResult>%s</DeleteResult>" % b"".join(found))

    # -- objects ---------------------------------------------------------------------------------------------

    def _get(self, request: Request, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Answer:
        stored = bucket.objects.get(key)
        if stored is None:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return give(request, stored)

    def _put(self, request: Request, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Answer:
        if any(name.endswith("-copy-source") for name in request.headers):
            raise Refused(501, "NotImplemented", "copying is not known here")
        self._check_write(request, bucket.objects.get(key))
        stored = self._store(request.body, hashlib.md5(request.body).hexdigest(), kept_headers(request))
        bucket.put(key, stored)
        return Answer(200, {"ETag": f'"{stored.etag}"', **self.version_headers(stored.version)})

    def _delete(self, request: Request, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Answer:
        self._check_write(request, bucket.objects.get(key))
        bucket.delete(key)
        return Answer(204)

    def _store(self, data: bytes, etag: str, headers: dict[str, str]) -> Stored:
        self._version += 1
        versioned = {**headers, **self.version_headers(self._version)}
        return Stored(data, etag, versioned, time.time(), self._version)

    def version_headers(self, version: int) -> dict[str, str]:
        """Return the headers that name a version; without versioning S3 has none."""
        return {}

    def _check_write(self, request: Request, present: Stored | None) -> None:
        """Raise `Refused` unless the conditions of a request hold."""
        if not self.has_condition(request) or self.conditions == "ignored":
            return
        if self.conditions == "unsupported":
            raise Refused(501, "NotImplemented", "A header you provided implies functionality not implemented")
        self.check_condition(request, present)

    def has_condition(self, request: Request) -> bool:
        """Return whether a write depends on a condition."""
        return "if-none-match" in request.headers or "if-match" in request.headers

    def check_condition(self, request: Request, present: Stored | None) -> None:
        """Raise `Refused` unless the condition holds."""
        if request.headers.get("if-none-match") == "*" and present is not None:
            raise failed("If-None-Match")
        if (wanted := request.headers.get("if-match")) is not None:
            if present is None:
                raise Refused(404, "NoSuchKey", "The specified key does not exist.")
            if not matches(wanted, present.etag):
                raise failed("If-Match")

    # -- multipart uploads -----------------------------------------------------------------------------------

    def _create_upload(self, request: Request, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Answer:
        self._n_uploads += 1
        number = f"upload{self._n_uploads:08d}"
        bucket.uploads[number] = Upload(key, kept_headers(request))
        text = b"<Bucket/><Key>%s</Key><UploadId>%s</UploadId>" % (pages.spell(key), number.encode())
        return xml_answer("InitiateMultipartUploadResult", text)

    def _upload(self, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Upload:
        upload = bucket.uploads.get(query["uploadId"])
        if upload is None or upload.key != key:
            raise Refused(404, "NoSuchUpload", "The specified upload does not exist.")
        return upload

    def _upload_part(self, request: Request, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Answer:
        part = self._store(request.body, hashlib.md5(request.body).hexdigest(), {})
        self._upload(query, bucket, key).parts[int(query["partNumber"])] = part
        return Answer(200, {"ETag": f'"{part.etag}"'})

    def _complete_upload(self, request: Request, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Answer:
        upload = self._upload(query, bucket, key)
        self._check_write(request, bucket.objects.get(key))
        chosen = []
        for text in re.findall(rb"<Part>(.*?)</Part>", request.body, re.DOTALL):
            number, etag = re.search(rb"<PartNumber>(\d+)<", text), re.search(rb"<ETag>(.*?)</ETag>", text)
            part = upload.parts.get(int(number[1])) if number else None
            if part is None or etag is None or html.unescape(etag[1].decode()).strip('"') != part.etag:
                raise Refused(400, "InvalidPart", "A part could not be found, or is another one.")
            chosen.append(part)
        if not chosen:
            raise Refused(400, "MalformedXML", "There are no parts.")
        if any(len(part.data) < MIN_PART_BYTES for part in chosen[:-1]):
            raise Refused(400, "EntityTooSmall", "A part that is not the last is smaller than allowed.")
        digest = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in chosen)).hexdigest()
        etag_of_all = f"{digest}-{len(chosen)}"
        stored = self._store(b"".join(part.data for part in chosen), etag_of_all, upload.headers)
        bucket.put(key, stored)
        del bucket.uploads[query["uploadId"]]
        text = b"<Key>%s</Key><ETag>&quot;%s&quot;</ETag>" % (pages.spell(key), stored.etag.encode())
        answer = xml_answer("CompleteMultipartUploadResult", b"<Location/><Bucket/>" + text)
        answer.headers.update(self.version_headers(stored.version))
        return answer

    def _abort_upload(self, request: Request, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Answer:
        self._upload(query, bucket, key)
        del bucket.uploads[query["uploadId"]]
        return Answer(204)

    # -- commands of tests -----------------------------------------------------------------------------------

    def obey(self, command: str, given: Mapping[str, str]) -> object:
        """Run a command of a test; LookupError if it is unknown."""
        if command == "keys":
            return [quote_from_bytes(key) for key in self.buckets[given["bucket"]].keys]
        if command == "uploads":
            return [quote_from_bytes(upload.key) for upload in self.buckets[given["bucket"]].uploads.values()]
        if command == "load":
            return self._load(self.buckets.setdefault(given["bucket"], Bucket()), given["folder"], given["prefix"])
        if command == "region":
            bucket = self.buckets[given["bucket"]]
            bucket.region, bucket.wrong_region_status = given["region"], int(given["status"])
            return None
        if command == "empty":
            self.buckets.clear()
        return super().obey(command, given)

    def _load(self, bucket: Bucket, folder: str, prefix: str) -> int:
        bucket.forget_order()
        n = 0
        for where, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(where, name)
                with open(path, "rb") as file:  # noqa: PTH123
                    data = file.read()
                key = os.fsencode(prefix) + os.fsencode(os.path.relpath(path, folder))
                bucket.put(key, self._store(data, hashlib.md5(data).hexdigest(), {}))
                n += 1
        return n


def _check_region(request: Request, name: str, bucket: Bucket) -> None:
    """Raise `Refused` if a request is signed for another region than that of the bucket."""
    scope = re.search(r"Credential=[^/]+/\d+/([\w-]+)/", request.headers.get("authorization", ""))
    if not bucket.region or scope is None or scope[1] == bucket.region:
        return
    refused = Refused(
        400,
        "AuthorizationHeaderMalformed",
        f"The authorization header is malformed; the region '{scope[1]}' is wrong; expecting '{bucket.region}'",
        Region=bucket.region,
    )
    if bucket.wrong_region_status == 301:
        refused = Refused(
            301,
            "PermanentRedirect",
            "The bucket you are attempting to access must be addressed using the specified endpoint.",
            Endpoint=f"{name}.s3.{bucket.region}.amazonaws.com",
            Bucket=name,
        )
    refused.headers["x-amz-bucket-region"] = bucket.region
    raise refused


if __name__ == "__main__":
    serve(ObjectServer(), arguments(__doc__).parse_args())
