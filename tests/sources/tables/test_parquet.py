"""Parquet, read forward in small steps."""

from __future__ import annotations

import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurepress.errors import StorageError
from featurepress.sources.tables.columns import TableError, image_column
from featurepress.sources.tables.parquet import STEP_ROWS, ParquetTable
from tests.sources.tables.test_arrow import MOST, Counted

IMAGES = [os.urandom(5000) for _ in range(1000)]
AHEAD_BYTES = 64 * 1024


class Written(Counted):
    """A Parquet file with small pages."""

    def __init__(self, row_group_size: int = 1000) -> None:
        table = pa.table({"image": IMAGES, "label": [str(i) for i in range(1000)]})
        file = io.BytesIO()
        options = {"use_dictionary": False, "data_page_size": 10_000, "write_batch_size": 2}
        pq.write_table(table, file, row_group_size=row_group_size, **options)
        super().__init__(file.getvalue())


def test_a_row_group_is_read_up_to_the_requested_row() -> None:
    file = Written()
    table = ParquetTable(file, AHEAD_BYTES)
    column = image_column(table.schema, None, "table")
    before = file.n_bytes
    for i in range(0, 1000, 50):
        assert table.read(column, i, MOST).data == IMAGES[i]
        assert file.n_bytes - before < (i + STEP_ROWS) * 5100 + 3 * AHEAD_BYTES
    assert file.n_bytes - before < 1.1 * 5_000_000 + 3 * AHEAD_BYTES


def test_rows_in_order_are_read_once() -> None:
    file = Written(row_group_size=200)
    table = ParquetTable(file, AHEAD_BYTES)
    column = image_column(table.schema, None, "table")
    before = file.n_bytes
    assert [table.read(column, i, MOST).data for i in range(1000)] == IMAGES
    assert file.n_bytes - before < 1.1 * 5_000_000


def test_neighbours_may_be_read_out_of_order() -> None:
    file = Written()
    table = ParquetTable(file, AHEAD_BYTES)
    column = image_column(table.schema, None, "table")
    order = [i for start in range(0, 1000, 40) for i in reversed(range(start, start + 40))]  # across steps of 64
    before = file.n_bytes
    assert [table.read(column, i, MOST).data for i in order] == [IMAGES[i] for i in order]
    assert file.n_bytes - before < 1.1 * 5_000_000 + 3 * AHEAD_BYTES


def test_going_back_starts_at_the_row_group() -> None:
    file = Written(row_group_size=200)
    table = ParquetTable(file, AHEAD_BYTES)
    column = image_column(table.schema, None, "table")
    for i in (999, 0, 500, 450, 199, 200, 999):
        before = file.n_bytes
        assert table.read(column, i, MOST).data == IMAGES[i]
        assert file.n_bytes - before < 1.1 * 1_000_000 + 3 * AHEAD_BYTES


def test_a_listing_does_not_read_images() -> None:
    file = Written()
    table = ParquetTable(file, AHEAD_BYTES)
    rows = list(table.rows(image_column(table.schema, None, "table"), 1, 0))
    assert [row.label for row in rows] == [str(i) for i in range(1000)]
    assert file.n_bytes < 200_000


def test_rows_after_damage_are_not_decoded_again() -> None:
    options = {
        "use_dictionary": False,
        "data_page_size": 10_000,
        "write_batch_size": 2,
        "write_page_checksum": True,
    }
    written = io.BytesIO()
    pq.write_table(pa.table({"image": IMAGES}), written, row_group_size=500, **options)
    data = bytearray(written.getvalue())
    data[data.index(IMAGES[250][1000:2000])] ^= 1
    file = Counted(bytes(data))
    table = ParquetTable(file, AHEAD_BYTES)
    column = image_column(table.schema, None, "table")
    outcomes = []
    for i in range(1000):
        try:
            outcomes.append(table.read(column, i, MOST).data == IMAGES[i])
        except TableError:
            outcomes.append(False)
    assert outcomes.index(False) == 250 // STEP_ROWS * STEP_ROWS
    assert outcomes[500:] == [True] * 500
    assert not any(outcomes[outcomes.index(False) : 500])
    assert file.n_bytes < 1.1 * 5_000_000
    assert table.read(column, 3, MOST).data == IMAGES[3]


class Away(Written):
    """A file whose disk or bucket is unreachable for a while."""

    is_away = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self.is_away:
            raise StorageError("the bucket is away")
        return super().read(size)


def test_an_error_of_the_file_is_raised_and_not_remembered() -> None:
    file = Away()
    table = ParquetTable(file, AHEAD_BYTES)
    column = image_column(table.schema, None, "table")
    assert table.read(column, 0, MOST).data == IMAGES[0]
    file.is_away = True
    with pytest.raises(StorageError, match="the bucket is away"):
        table.read(column, 900, MOST)
    with pytest.raises(StorageError, match="the bucket is away"):
        list(table.rows(column, 1, 0))
    file.is_away = False
    assert table.read(column, 900, MOST).data == IMAGES[900]
    assert len(list(table.rows(column, 1, 0))) == 1000
