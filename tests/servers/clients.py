"""Obstore connected to the servers of the environment, with enough retries for faults."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import obstore
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from tests.servers.azurite import Azure
from tests.servers.google import Google, GoogleByMoto

PATIENT: dict[str, Any] = {
    "client_options": {"allow_http": True, "timeout": timedelta(seconds=20)},
    "retry_config": {
        "max_retries": 5,
        "retry_timeout": timedelta(seconds=60),
        "backoff": {
            "init_backoff": timedelta(milliseconds=5),
            "max_backoff": timedelta(milliseconds=20),
            "base": 2,
        },
    },
}


def connect(server: Any, bucket: str, **options: Any) -> ObjectStore:
    """Connect to a bucket of a server of a fixture."""
    if isinstance(server, Azure):
        return AzureStore(bucket, **PATIENT, **options)
    if isinstance(server, Google | GoogleByMoto):
        return GCSStore(bucket, **PATIENT, **options)
    return S3Store(bucket, endpoint=os.environ["AWS_ENDPOINT_URL"], **PATIENT, **options)


def listed(store: ObjectStore, prefix: str | None = None, **options: Any) -> list[str]:
    """List all keys."""
    return [found["path"] for page in obstore.list(store, prefix, **options) for found in page]
