"""Connections to object stores: addresses, credentials, retries, and what refusals mean.

Credentials are taken from the environment and the usual files where a connection is made, and stay there:
they are part of no address, plan, message or pickle.
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

SCHEMES = {"s3": "Amazon S3 and what speaks like it", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
TRIES = 6  # of one request, beside those that the library makes by itself
_BACKOFF_SECONDS, _MOST_BACKOFF_SECONDS = 0.1, 10.0


def scheme_of(location: str) -> str:
    """Return the scheme of a url in lower case, or "" for a path."""
    match = re.match(r"([a-z][a-z0-9+.-]*)://", location, re.IGNORECASE)
    return match[1].lower() if match else ""


@dataclass(frozen=True)
class Address:
    """A place in an object store.

    Parameters
    ----------
    scheme : str
        One of `SCHEMES`.
    bucket : str
        The bucket; on Azure ``account/container``.
    key : str
        The key, or the beginning of keys, below it; "" for all.
    """

    scheme: str
    bucket: str
    key: str = ""

    @classmethod
    def parse(cls, url: str, error: type[FeaturepressError] = StorageError) -> Address:
        """Take a url apart; `error` is raised if it names no bucket, or holds a password."""
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        n_names = 2 if scheme == "az" else 1
        names = rest.split("/", n_names)
        bucket, key = "/".join(names[:n_names]), "".join(names[n_names:])
        if "@" in bucket or "?" in bucket:
            raise error(
                f"A url of {SCHEMES[scheme]} must hold no password: credentials come from the environment or the "
                f"usual files. Got '{scheme}://***'."
            )
        if len(names) < n_names or not all(names[:n_names]):
            shape = "az://account/container/…" if scheme == "az" else f"{scheme}://bucket/…"
            raise error(f"The url '{url}' names no bucket. Give {shape}")
        return cls(scheme, bucket, key)

    def __str__(self) -> str:
        """Return the url."""
        return f"{self.scheme}://{self.bucket}/{self.key}"


@functools.lru_cache(maxsize=64)
def connect(
    scheme: str, bucket: str, *, anonymous: bool = False, timeout_seconds: float = 60.0, tries: int = 10
) -> ObjectStore:
    """Return the live store of a bucket; one a process, made when first used.

    Parameters
    ----------
    scheme, bucket : str
        As in `Address`.
    anonymous : bool
        Sign nothing: for public buckets.
    timeout_seconds : float
        Of one request, from its beginning to its last byte.
    tries : int
        How often the library itself sends a request before it gives up; it waits longer each time.
    """
    from obstore.store import AzureStore, GCSStore, S3Store

    common = _common_options(timeout_seconds, tries)
    if scheme == "s3":
        return S3Store(bucket, **_s3_options(common, anonymous=anonymous))
    if anonymous:
        common["skip_signature"] = True
    else:
        _require_credentials(scheme)
    if scheme == "gs":
        # Only an emulator that the service account's file names has such an address.
        common["client_options"]["allow_http"] = True
        return GCSStore(bucket, **common)
    account, _, container = bucket.partition("/")
    emulated = os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in ("1", "true")
    common["client_options"]["allow_http"] = emulated
    common |= {"use_emulator": True} if emulated else {"account_name": account}
    return AzureStore(container, **common)


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
                "max_backoff": timedelta(seconds=_MOST_BACKOFF_SECONDS),
                "base": 2,
            },
            # Whoever asks makes a request again that got no answer in its time; the library what fails at once.
            "retry_timeout": timedelta(seconds=min(120.0, 0.9 * timeout_seconds)),
        },
    }


def s3_endpoint() -> str:
    """Return the endpoint that the environment names, or ""."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def s3_region() -> str:
    """Return the region that the environment names, or the profile."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return region or s3_session().get_config_variable("region") or "us-east-1"


def s3_session() -> Any:
    """Return a session of botocore, which knows profiles, roles, and the files and variables that name them."""
    import botocore.session

    return botocore.session.get_session()


def _s3_options(common: dict[str, Any], *, anonymous: bool) -> dict[str, Any]:
    options = dict(common)
    if endpoint := s3_endpoint():
        options["endpoint"] = endpoint
        if endpoint.startswith("http://"):
            options["client_options"]["allow_http"] = True
    has_keys = "AWS_ACCESS_KEY_ID" in os.environ and "AWS_SECRET_ACCESS_KEY" in os.environ
    try:
        options["region"] = s3_region()
        if not (has_keys or anonymous):
            options["credential_provider"] = _S3Credentials(s3_session())
    except store_errors() as error:  # no such profile, or a file that cannot be read
        raise StorageError(f"The credentials for S3 cannot be used: {' '.join(str(error).split())}") from error
    if anonymous:
        options["skip_signature"] = True
    return options


class _S3Credentials:
    """What obstore asks for credentials; botocore renews them."""

    def __init__(self, session: Any) -> None:
        self._credentials = session.get_credentials()
        if self._credentials is None:
            raise StorageError(
                "There are no credentials for S3: no AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
                "environment, no profile, no role of this machine. Set them, or give --anonymous for public ones."
            )

    def __call__(self) -> Any:
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=15),
        }


# Where machines of Google and Azure give their own credentials, if they have any.
_METADATA_ADDRESS = ("169.254.169.254", 80)
_OWN_CREDENTIALS = {
    "gs": (("GOOGLE_",), "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS"),
    "az": (
        ("AZURE_", "IDENTITY_", "MSI_"),
        "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_CLIENT_ID",
    ),
}


def _require_credentials(scheme: str) -> None:
    """Raise StorageError where there can be no credentials: the library would look for them for minutes."""
    prefixes, names = _OWN_CREDENTIALS[scheme]
    if any(name.startswith(prefixes) for name in os.environ):
        return
    if scheme == "gs" and os.path.exists(os.path.expanduser(_GOOGLE_FILE)):  # noqa: PTH110, PTH111 - no home, no file
        return
    try:
        socket.create_connection(_METADATA_ADDRESS, timeout=2).close()
    except OSError as error:
        raise StorageError(
            f"There are no credentials for {SCHEMES[scheme]}: no {names} in the environment, no role of this "
            "machine. Set them, or give --anonymous for public ones."
        ) from error


_GOOGLE_FILE = "~/.config/gcloud/application_default_credentials.json"

# -- what a refusal means ------------------------------------------------------------------------------------

_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_CREDENTIAL_CODES = {
    "AuthenticationFailed",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_CREDENTIAL_ERRORS = {
    "UnauthenticatedError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "TokenRetrievalError",
}
_BUCKET_CODES = {"NoSuchBucket", "ContainerNotFound"}
# What may pass, though its status says that the request is at fault.
_PASSING_CODES = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout"}
# 416: all of a body had come when its connection broke, and the library asked for what lies behind it.
_PASSING_STATUSES = {"408", "416", "429"}


@dataclass(frozen=True)
class Refusal:
    """What an object store's error means.

    Parameters
    ----------
    kind : str
        ``missing`` (the object or the bucket), ``bucket`` (the bucket is missing), ``denied``, ``credentials``,
        ``region``, ``exists``, ``changed``, ``unsupported``, ``path`` (the library cannot spell the key),
        ``transient``, or ``other``.
    reason : str
        In words, without anything that could be secret.
    """

    kind: str
    reason: str

    @classmethod
    def of(cls, error: BaseException) -> Refusal:
        """Return what an error of a library means. Its text may hold signatures and is never shown."""
        text, name = str(error), type(error).__name__
        code = _first(r"<Code>(\w+)</Code>", text) or _first(r"error occurred \((\w+)\)", text)
        status = _first(r"status code: (\d+)", text) or _status_of(error)
        known = f"{code or name}{f', status {status}' if status else ''}"
        if code in _REGION_CODES or status == "301" or "redirect without LOCATION" in text:
            return cls("region", _region_reason(text))
        again = f"the server answers {known} again and again"
        for test, kind, reason in (
            (code in _PASSING_CODES or status in _PASSING_STATUSES, "transient", again),
            ("token request" in text, "credentials", "there are no credentials, or they cannot be renewed"),
            (code in _BUCKET_CODES, "bucket", "there is no such bucket"),
            (
                code in _CREDENTIAL_CODES or name in _CREDENTIAL_ERRORS,
                "credentials",
                f"the credentials are refused ({known})",
            ),
            (name == "AlreadyExistsError", "exists", "it exists"),
            (name in ("PreconditionError", "NotModifiedError") or status == "412", "changed", "it has changed"),
            (isinstance(error, FileNotFoundError) or status == "404", "missing", "no such object"),
            (name == "PermissionDeniedError" or status == "403", "denied", f"no permission ({known})"),
            (
                name == "InvalidPathError" or "Could not parse path" in text,
                "path",
                "its name cannot be spelled in a request",
            ),
            (name == "NotSupportedError" or status == "501", "unsupported", f"not supported ({known})"),
            (status is not None and status[0] == "4", "other", f"refused ({known})"),
            ("builder error" in text, "other", "the endpoint's address is none (http:// needs AWS_ENDPOINT_URL)"),
            (status is not None, "transient", again),
        ):
            if test:
                return cls(kind, reason)
        return cls("transient", _network_reason(text))

    def __str__(self) -> str:
        return self.reason

    @property
    def advice(self) -> str:
        """What to do, with a semicolon before it; "" where there is nothing to say."""
        known = {
            "bucket": "check its name, and the account or endpoint it belongs to",
            "denied": "give these credentials the right, or --anonymous for a public bucket",
            "credentials": "renew them and try again",
            "transient": "check the network and the service, and try again",
            "changed": "read it again when whatever replaces it has ended",
        }.get(self.kind)
        return f"; {known}" if known else ""

    @property
    def is_lasting(self) -> bool:
        """Whether it concerns the whole store, so that no other request would fare better."""
        return self.kind in ("bucket", "region", "credentials", "transient")


def etag_of(found: Any) -> str:
    """Return the etag of what a store lists or describes, in quotes: Azure leaves them out in listings."""
    etag = found["e_tag"] or ""
    return f'"{etag}"' if etag and '"' not in etag else etag


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None


def _status_of(error: BaseException) -> str | None:
    """Return the status of an answer to botocore."""
    answer = getattr(error, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return str(status) if status else None


def _region_reason(text: str) -> str:
    right = (
        _first(r"<Region>([\w-]+)</Region>", text) or _first(r"expecting '([\w-]+)'", text) or _told_region(text)
    )
    given = s3_region()
    if right:
        return f"the bucket lies in the region '{right}', not in '{given}': set AWS_REGION={right}"
    return f"the bucket does not lie in the region '{given}': set AWS_REGION to the one it lies in"


def _told_region(text: str) -> str | None:
    """Ask S3, without credentials, where the bucket of a failed request lies; a bare redirect does not say it."""
    bucket = _first(r"https?://[^/\s]+/([^/?\s]+)", text)
    if bucket is None:
        return None
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(signature_version=UNSIGNED, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
    client = s3_session().create_client(
        "s3", region_name="us-east-1", endpoint_url=s3_endpoint() or None, config=config
    )
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    except BotoCoreError:
        return None
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region")
    return str(region) if region else None


def _network_reason(text: str) -> str:
    for pattern, reason in (
        ("dns error|lookup address", "the server's name is not known"),
        ("refused|Could not connect", "the connection is refused"),
        ("reset|closed|IncompleteMessage|IncompleteRead|end of file", "the connection breaks off"),
        ("timed out|TimedOut|timeout on", "no answer in time"),
        ("Content-Range|UnexpectedRange|request or response body", "the answer is not whole"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return reason
    return "the request cannot be made"


def store_errors() -> tuple[type[Exception], ...]:
    """Return what the libraries raise: their own errors, and builtin ones for what is missing or breaks off."""
    from obstore.exceptions import BaseError

    botocore = sys.modules.get("botocore.exceptions")  # not loaded, not raised
    theirs = (botocore.ClientError, botocore.BotoCoreError) if botocore else ()
    return (BaseError, OSError, ValueError, *theirs)


def refused(verb: str, url: str, error: BaseException) -> StorageError:
    """Return the error for people when an object store does not do what it was asked for."""
    if isinstance(error, StorageError):
        return error
    refusal = Refusal.of(error)
    kind = ReplacedError if refusal.kind == "changed" else StorageError
    return kind(f"Cannot {verb} '{url}': {refusal}{refusal.advice}.")


def retrying(request: Callable[[], Result], *, seconds: float = math.inf) -> Result:
    """Retry a request with exponential back-off while its failure is transient.

    The library below makes safe requests again by itself; this adds what it does not: conditional writes whose
    answer was lost, and bodies of a wrong length.

    Parameters
    ----------
    request : callable
        What to do.
    seconds : float
        After this time it is not made again.
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
    time.sleep(random.uniform(0.5, 1.0) * min(_MOST_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2**n))
