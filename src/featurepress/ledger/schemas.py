"""The Arrow schemas of files on disk, and Arrow arrays of text and numbers without importing pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurepress.specs import Failure

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

# The next two replace pa.array, which imports pandas if it is installed, to check for pandas objects. That adds
# 0.16 s to the start of a worker.


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """Return an Arrow string array."""
    import numpy as np
    import pyarrow as pa

    raw = [b"" if text is None else text.encode() for text in texts]
    offsets = np.zeros(len(raw) + 1, np.int32)
    np.cumsum([len(text) for text in raw], out=offsets[1:])
    present = np.array([text is not None for text in texts], bool)
    validity = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.StringArray.from_buffers(len(raw), pa.py_buffer(offsets), pa.py_buffer(b"".join(raw)), validity)


def number_array(numbers: npt.NDArray[Any]) -> pa.Array:
    """Return an Arrow array over the memory of a contiguous one-dimensional NumPy array."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])


def part_schema(field_names: tuple[str, ...], n_features: int) -> pa.Schema:
    """Return the Arrow schema of a part: uri, the named fields, width, height, sha256, features."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            *(pa.field(name, pa.string()) for name in field_names),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("features", pa.list_(pa.float32(), n_features), nullable=False),
        ]
    )


def chunk_schema(field_names: tuple[str, ...]) -> pa.Schema:
    """Return the Arrow schema of a chunk of the listing."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("source", pa.int32(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("version", pa.string(), nullable=False),
            *(pa.field(name, pa.string()) for name in field_names),
            pa.field("key", pa.binary()),
            pa.field("problem", pa.string()),
        ]
    )


def failure_schema() -> pa.Schema:
    """Return the Arrow schema of the failure ledger: uri, stage, reason."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in Failure._fields])
