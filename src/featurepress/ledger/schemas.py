"""The Arrow schemas of what lies on disk, and arrays of text and numbers without a detour through pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurepress.specs import Failure

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

# The next two do what pa.array does. That imports pandas where it is installed, which takes 0.16 s of a worker's
# start, to see whether it was given a pandas object.


def text_array(texts: Sequence[str | None]) -> pa.Array:
    """Give an Arrow string array of some texts."""
    import numpy as np
    import pyarrow as pa

    raw = [b"" if text is None else text.encode() for text in texts]
    offsets = np.zeros(len(raw) + 1, np.int32)
    np.cumsum([len(text) for text in raw], out=offsets[1:])
    present = np.array([text is not None for text in texts], bool)
    validity = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.StringArray.from_buffers(len(raw), pa.py_buffer(offsets), pa.py_buffer(b"".join(raw)), validity)


def number_array(numbers: npt.NDArray[Any]) -> pa.Array:
    """Give an Arrow array over the memory of a contiguous one-dimensional NumPy array."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])


def part_schema(field_names: tuple[str, ...], n_features: int) -> pa.Schema:
    """Give the Arrow schema of a part: uri, the named fields, width, height, sha256, features."""
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
    """Give the Arrow schema of a chunk of the listing."""
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
    """Give the Arrow schema of the failure ledger: uri, stage, reason."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in Failure._fields])
