"""Connections to object stores: addresses, credentials, retries, and the meaning of errors.

Credentials come from the environment and the usual files when a connection is made. They are in no address, plan,
message or pickle.
"""

from __future__ import annotations

import functools
import math
import os
import random
import re
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from featurepress.errors import FeaturepressError, ReplacedError, StorageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Result = TypeVar("Result")

SCHEMES = {"s3": "Amazon S3 or a compatible store", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
TRIES = 6  # of one request, in addition to the library's own
_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.1, 10.0


def scheme_of(location: str) -> str:
    """Return the scheme of a url in lower case, or "" for a path."""
    match = re.match(r"([a-z][a-z0-9+.-]*)://", location, re.IGNORECASE)
    return match[1].lower() if match else ""


@dataclass(frozen=True)
class Address:
    """A location in an object store."""

    scheme: str  # one of SCHEMES
    bucket: str  # on Azure account/container
    key: str = ""  # a key or a prefix of keys; "" for the whole bucket

    @classmethod
    def parse(cls, url: str, error: type[FeaturepressError] = StorageError) -> Address:
        """Parse a url; raise `error` if it has no bucket, or has a password."""
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        n_names = 2 if scheme == "az" else 1
        names = rest.split("/", n_names)
        bucket, key = "/".join(names[:n_names]), "".join(names[n_names:])
        if "@" in bucket or "?" in bucket:
            raise error(
                f"A url of {SCHEMES[scheme]} must not contain a password: credentials come from the environment or "
                f"the usual files. Got '{scheme}://***'."
            )
        if len(names) < n_names or not all(names[:n_names]):
            form = "az://account/container/…" if scheme == "az" else f"{scheme}://bucket/…"
            raise error(f"The url '{url}' names no bucket. It must have the form {form}")
        return cls(scheme, bucket, key)

    def __str__(self) -> str:
        """Return the url."""
        return f"{self.scheme}://{self.bucket}/{self.key}"


@functools.lru_cache(maxsize=64)
def connect(
    scheme: str, bucket: str, *, anonymous: bool = False, timeout_seconds: float = 60.0, tries: int = 10
) -> ObjectStore:
    """Return the store of a bucket; one per process and set of options.

    Parameters
    ----------
    scheme, bucket : str
        As in `Address`.
    anonymous : bool
        Do not sign requests, for public buckets.
    timeout_seconds : float
        Of one request, from its start to the last byte of the response.
    tries : int
        Number of retries by the library itself, with exponential back-off.
    """
    from obstore.store import AzureStore, GCSStore, S3Store

    options = _common_options(timeout_seconds, tries)
    if anonymous:
        options["skip_signature"] = True
    elif scheme != "s3":
        _require_credentials(scheme)
    if scheme == "s3":
        return S3Store(bucket, **options, **_s3_options(options["client_options"], anonymous=anonymous))
    if scheme == "gs":
        # Only an emulator that the service account's file names has such an address.
        options["client_options"]["allow_http"] = True
        return GCSStore(bucket, **options)
    account, _, container = bucket.partition("/")
    emulated = os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in ("1", "true")
    options["client_options"]["allow_http"] = emulated
    return AzureStore(container, **options, **({"use_emulator": True} if emulated else {"account_name": account}))


def _common_options(timeout_seconds: float, tries: int) -> dict[str, Any]:
    return {
        "client_options": {
            "timeout": timedelta(seconds=timeout_seconds),
            "connect_timeout": timedelta(seconds=min(5.0, timeout_seconds)),
            "pool_max_idle_per_host": "128",
        },
        "retry_config": {
            "max_retries": tries,
            "backoff": {
                "init_backoff": timedelta(seconds=_BACKOFF_SECONDS),
                "max_backoff": timedelta(seconds=_MAX_BACKOFF_SECONDS),
                "base": 2,
            },
            # The library retries requests that fail at once; the caller retries those that time out.
            "retry_timeout": timedelta(seconds=min(120.0, 0.9 * timeout_seconds)),
        },
    }


# -- credentials ---------------------------------------------------------------------------------------------


def s3_endpoint() -> str:
    """Return the endpoint of the environment, or ""."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def s3_region() -> str:
    """Return the region of the environment, or of the profile."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return region or s3_session().get_config_variable("region") or "us-east-1"


def s3_session() -> Any:
    """Return a botocore session, which reads profiles, roles, and the files and variables for them."""
    import botocore.session

    return botocore.session.get_session()


def _s3_options(client_options: dict[str, Any], *, anonymous: bool) -> dict[str, Any]:
    """Return endpoint, region and credentials for S3; allow http in `client_options` if the endpoint needs it."""
    options: dict[str, Any] = {}
    if endpoint := s3_endpoint():
        options["endpoint"] = endpoint
        if endpoint.startswith("http://"):
            client_options["allow_http"] = True
    has_keys = "AWS_ACCESS_KEY_ID" in os.environ and "AWS_SECRET_ACCESS_KEY" in os.environ
    try:
        options["region"] = s3_region()
        if not (has_keys or anonymous):
            options["credential_provider"] = _s3_credentials()
    except store_errors() as error:  # no such profile, or a file that cannot be read
        raise StorageError(f"The credentials for S3 cannot be used: {' '.join(str(error).split())}") from error
    return options


def _s3_credentials() -> Callable[[], Any]:
    """Return a function that returns valid credentials for obstore; botocore renews them."""
    credentials = s3_session().get_credentials()
    if credentials is None:
        raise StorageError(
            "There are no credentials for S3: no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, "
            "no profile, no role of this machine. Set them, or use --anonymous for a public bucket."
        )

    def current() -> Any:
        frozen = credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=15),
        }

    return current


# The service from which machines of Google and Azure get credentials of their role.
_METADATA_ADDRESS = ("169.254.169.254", 80)
_GOOGLE_FILE = "~/.config/gcloud/application_default_credentials.json"
# Prefixes of the variables that a library reads, and the usual names.
_VARIABLES = {
    "gs": (("GOOGLE_",), "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS"),
    "az": (
        ("AZURE_", "IDENTITY_", "MSI_"),
        "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_CLIENT_ID",
    ),
}


def _require_credentials(scheme: str) -> None:
    """Raise StorageError if there cannot be credentials: the library would search for minutes."""
    prefixes, names = _VARIABLES[scheme]
    if any(name.startswith(prefixes) for name in os.environ):
        return
    if scheme == "gs" and os.path.exists(os.path.expanduser(_GOOGLE_FILE)):  # noqa: PTH110, PTH111 - no home, no file
        return
    try:
        socket.create_connection(_METADATA_ADDRESS, timeout=2).close()
    except OSError as error:
        raise StorageError(
            f"There are no credentials for {SCHEMES[scheme]}: no {names} in the environment, no role of this "
            "machine. Set them, or use --anonymous for a public bucket."
        ) from error


# -- the meaning of errors -----------------------------------------------------------------------------------

_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_CREDENTIAL_CODES = {
    *("AuthenticationFailed", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken"),
    *("RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired"),
}
_CREDENTIAL_ERRORS = {
    *("UnauthenticatedError", "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"),
}
_BUCKET_CODES = {"NoSuchBucket", "ContainerNotFound"}
# Transient, although the status is that of a wrong request.
_TRANSIENT_CODES = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout"}
# 416: the connection broke after the last byte of a body, and the library requested the bytes after it.
_TRANSIENT_STATUSES = {"408", "416", "429"}
_NETWORK_REASONS = (
    ("dns error|lookup address", "the server's name is not known"),
    ("refused|Could not connect", "the connection is refused"),
    ("reset|closed|IncompleteMessage|IncompleteRead|end of file", "the connection breaks off"),
    ("timed out|TimedOut|timeout on", "no answer in time"),
    ("Content-Range|UnexpectedRange|request or response body", "the answer is incomplete"),
    ("", "the request cannot be made"),
)
_ADVICE = {
    "bucket": "check its name, and the account or endpoint it belongs to",
    "denied": "grant these credentials the permission, or use --anonymous for a public bucket",
    "credentials": "renew them and try again",
    "transient": "check the network and the service, and try again",
    "changed": "read it again when whatever replaces it has ended",
}


@dataclass(frozen=True)
class Refusal:
    """The meaning of an error of an object store.

    `kind` is ``missing`` (the object or the bucket), ``bucket`` (the bucket is missing), ``denied``,
    ``credentials``, ``region``, ``exists``, ``changed``, ``unsupported``, ``path`` (the library cannot request such
    a key), ``transient``, or ``other``.
    """

    kind: str
    reason: str  # for messages, without secrets

    @classmethod
    def of(cls, error: BaseException) -> Refusal:
        """Return the meaning of a library's error.

        obstore's exceptions have no attributes: code and status are in the text, which may also contain signatures
        and is never shown.
        """
        text, name = str(error), type(error).__name__
        code = _first(r"<Code>(\w+)</Code>", text) or _first(r"error occurred \((\w+)\)", text)
        status = _first(r"status code: (\d+)", text) or _status_of(error)
        known = f"{code or name}{f', status {status}' if status else ''}"
        if code in _REGION_CODES or status == "301" or "redirect without LOCATION" in text:
            return cls("region", _region_reason(text))
        again = f"the server answers {known} again and again"
        is_bad_credential = code in _CREDENTIAL_CODES or name in _CREDENTIAL_ERRORS
        is_bad_path = name == "InvalidPathError" or "Could not parse path" in text
        for test, kind, reason in (
            (code in _TRANSIENT_CODES or status in _TRANSIENT_STATUSES, "transient", again),
            ("token request" in text, "credentials", "there are no credentials, or they cannot be renewed"),
            (code in _BUCKET_CODES, "bucket", "there is no such bucket"),
            (is_bad_credential, "credentials", f"the credentials are refused ({known})"),
            (name == "AlreadyExistsError", "exists", "it exists"),
            (name in ("PreconditionError", "NotModifiedError") or status == "412", "changed", "it has changed"),
            (isinstance(error, FileNotFoundError) or status == "404", "missing", "no such object"),
            (name == "PermissionDeniedError" or status == "403", "denied", f"no permission ({known})"),
            (is_bad_path, "path", "its key cannot be used in a request"),
            (name == "NotSupportedError" or status == "501", "unsupported", f"not supported ({known})"),
            (status is not None and status[0] == "4", "other", f"refused ({known})"),
            ("builder error" in text, "other", "the endpoint is not a url (http:// needs AWS_ENDPOINT_URL)"),
            (status is not None, "transient", again),
        ):
            if test:
                return cls(kind, reason)
        return cls("transient", next(r for p, r in _NETWORK_REASONS if re.search(p, text, re.IGNORECASE)))

    def __str__(self) -> str:
        return self.reason

    @property
    def advice(self) -> str:
        """What to do, after a semicolon; "" if unknown."""
        return f"; {_ADVICE[self.kind]}" if self.kind in _ADVICE else ""

    @property
    def is_lasting(self) -> bool:
        """Whether it concerns the whole store: every other request would fail too."""
        return self.kind in ("bucket", "region", "credentials", "transient")


def etag_of(found: Any) -> str:
    """Return the etag from a listing or a description, in quotes; Azure's listings have none."""
    etag = found["e_tag"] or ""
    return f'"{etag}"' if etag and '"' not in etag else etag


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None


def _status_of(error: BaseException) -> str | None:
    """Return the HTTP status of a botocore error."""
    response = getattr(error, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    return str(status) if status else None


def _region_reason(text: str) -> str:
    right = (
        _first(r"<Region>([\w-]+)</Region>", text) or _first(r"expecting '([\w-]+)'", text) or _request_region(text)
    )
    if right:
        return f"the bucket is in the region '{right}', not in '{s3_region()}': set AWS_REGION={right}"
    return f"the bucket is not in the region '{s3_region()}': set AWS_REGION to the right one"


def _request_region(text: str) -> str | None:
    """Request, without credentials, the region of the bucket of a failed request; a bare redirect lacks it."""
    bucket = _first(r"https?://[^/\s]+/([^/?\s]+)", text)
    if bucket is None:
        return None
    import urllib3

    url = f"{s3_endpoint() or 'https://s3.us-east-1.amazonaws.com'}/{bucket}"
    try:
        answer = urllib3.request("HEAD", url, redirect=False, retries=False, timeout=10.0)
    except urllib3.exceptions.HTTPError:
        return None
    return answer.headers.get("x-amz-bucket-region")


def store_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of the libraries: their own, and builtin ones for missing objects and the network."""
    from obstore.exceptions import BaseError

    botocore = sys.modules.get("botocore.exceptions")  # if it is not loaded, it raises nothing
    return (BaseError, OSError, ValueError, *((botocore.ClientError, botocore.BotoCoreError) if botocore else ()))


def refused(verb: str, url: str, error: BaseException) -> StorageError:
    """Return the StorageError for an error of an object store."""
    if isinstance(error, StorageError):
        return error
    refusal = Refusal.of(error)
    kind = ReplacedError if refusal.kind == "changed" else StorageError
    return kind(f"Cannot {verb} '{url}': {refusal}{refusal.advice}.")


# -- retries -------------------------------------------------------------------------------------------------


def retrying(request: Callable[[], Result], *, seconds: float = math.inf) -> Result:
    """Call `request`; while it fails with a transient error, retry with exponential back-off.

    obstore itself retries safe requests. This adds conditional writes whose answer was lost, and bodies of a wrong
    length. After `seconds` there is no further retry.
    """
    end = time.monotonic() + seconds
    for n in range(TRIES):
        try:
            return request()
        except store_errors() as error:
            if n == TRIES - 1 or time.monotonic() > end or Refusal.of(error).kind != "transient":
                raise
            pause(n)
    raise AssertionError("unreachable")


def pause(n: int) -> None:
    """Wait after the n-th failure, counted from 0: twice as long each time, with jitter."""
    time.sleep(random.uniform(0.5, 1.0) * min(_MAX_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2**n))
