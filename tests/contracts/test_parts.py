"""Parts on every kind of storage: created only if absent, read bit by bit, replaced only at a known version."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurepress.errors import ReplacedError, StorageError
from featurepress.ledger.names import part_name
from featurepress.ledger.parts import Account, PartWriter, Row, open_part
from featurepress.ledger.schemas import part_schema
from featurepress.specs import Failure, ImageRef, Receipt
from featurepress.storage import Data, FolderStorage, Storage, open_storage
from featurepress.testing import MemoryStorage

N_FEATURES = 12

STORAGES: dict[str, Callable[[Path], Storage]] = {
    "folder": lambda folder: FolderStorage(str(folder)),
    "memory": lambda folder: MemoryStorage(),
}


BUCKETS = ("fast_s3", "azure", "google")  # fixtures of tests.servers


@pytest.fixture(params=[*STORAGES, *BUCKETS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param in BUCKETS:
        server = request.getfixturevalue(request.param)
        return open_storage(server.url(server.bucket(), "sets/out"))
    return STORAGES[request.param](tmp_path)


@dataclass(frozen=True)
class Draft:
    """The content of a part."""

    field_names: tuple[str, ...]
    rows: list[Row]
    features: npt.NDArray[np.float32]
    failures: tuple[Failure, ...]
    receipt: Receipt

    @property
    def account(self) -> Account:
        return Account(self.receipt, self.failures)


def draft(
    n: int, *, shard: int = 3, field_names: tuple[str, ...] = (), seed: int = 0, n_features: int = N_FEATURES
) -> Draft:
    rng = np.random.default_rng(seed)
    receipt = Receipt(
        shard=shard, generation=1, listed=n + 2, embedded=n, failed=2,
        failed_by_kind={"decode: truncated": 1, "read: vanished": 1}, bytes_read=1000 + seed, seconds=0.25,
        precision="float32", cpu="a cpu", host="here", versions={"numpy": "2"},
    )  # fmt: skip
    refs = [
        ImageRef(f"Äpfel/{i}\n.jpg", 0, 10, "1", tuple(f"{name} {i}" for name in field_names)) for i in range(n)
    ]
    hashes = [f"{i:064x}" for i in range(n)]
    widths, heights = rng.integers(1, 5000, (2, n)).tolist()
    return Draft(
        field_names=field_names,
        rows=[Row(*row) for row in zip(refs, widths, heights, hashes, strict=True)],
        features=rng.normal(size=(n, n_features)).astype(np.float32),
        failures=(Failure("b.jpg", "decode", "truncated: 3 of 7 bytes"), Failure("ü.jpg", "read", "vanished")),
        receipt=receipt,
    )


def account_of(storage: Storage, shard: int) -> Account | None:
    with open_part(storage, shard) as existing:
        return None if existing is None else existing.account


def write(storage: Storage, part: Draft, *, at_once: int = 16) -> Account:
    """Write a part as a worker does: batch by batch, from one buffer that is reused."""
    buffer = np.zeros((at_once, part.features.shape[1]), np.float32)
    with closing(PartWriter(part.field_names, part.features.shape[1])) as writer:
        for start in range(0, len(part.rows), at_once):
            rows = part.rows[start : start + at_once]
            buffer[: len(rows)] = part.features[start : start + at_once]
            writer.add(rows, buffer[: len(rows)])
        return writer.commit(storage, part.receipt, part.failures)


def read_table(storage: Storage, shard: int) -> pa.Table:
    with storage.open(part_name(shard)) as file:
        return pq.read_table(file)


@pytest.mark.parametrize("field_names", [(), ("label",), ("split", "label")])
@pytest.mark.parametrize(("n", "at_once"), [(0, 1), (1, 16), (300, 16), (300, 300), (17, 1)])
def test_what_is_written_is_read_again_bit_by_bit(
    storage: Storage, field_names: tuple[str, ...], n: int, at_once: int
) -> None:
    part = draft(n, field_names=field_names)
    write(storage, part, at_once=at_once)
    table = read_table(storage, 3)
    assert table.schema.equals(part_schema(field_names, N_FEATURES))
    assert table["uri"].to_pylist() == [row.ref.uri for row in part.rows]
    for i, name in enumerate(field_names):
        assert table[name].to_pylist() == [row.ref.fields[i] for row in part.rows]
    assert table["width"].to_pylist() == [row.width for row in part.rows]
    assert table["height"].to_pylist() == [row.height for row in part.rows]
    assert table["sha256"].to_pylist() == [row.sha256 for row in part.rows]
    features = np.array(table["features"].to_pylist(), np.float32).reshape(-1, N_FEATURES)
    assert features.tobytes() == part.features.tobytes()


def test_the_account_is_the_receipt_and_the_failures(storage: Storage) -> None:
    part = draft(5)
    assert account_of(storage, 3) is None
    assert write(storage, part) == part.account
    assert account_of(storage, 3) == part.account
    assert account_of(storage, 2) is None


def test_the_second_writer_loses_learns_from_the_winner_and_leaves_no_trace(
    storage: Storage, tmp_path: Path
) -> None:
    winner, loser = draft(5, seed=1), draft(4, seed=2)
    write(storage, winner)
    data = storage.read(part_name(3))
    assert write(storage, loser) == winner.account
    assert account_of(storage, 3) == winner.account
    assert storage.read(part_name(3)) == data
    assert [entry.name for entry in storage.list("")] == [part_name(3)]
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []


def test_parts_of_several_shards_stand_side_by_side(storage: Storage) -> None:
    parts = [draft(3, shard=shard, seed=shard) for shard in (0, 1, 12_345_678, 123_456_789)]
    for part in parts:
        write(storage, part)
    assert [account_of(storage, p.receipt.shard) for p in parts] == [p.account for p in parts]


def test_an_account_without_failures(storage: Storage) -> None:
    part = replace(draft(2), failures=())
    write(storage, part)
    assert account_of(storage, 3) == Account(part.receipt, ())


@pytest.mark.parametrize("data", [b"", b"something else", b"PAR1" * 10])
def test_what_is_no_part_is_named(storage: Storage, data: bytes) -> None:
    storage.write(part_name(3), data)
    message = r"part-00000003\.parquet' is not a part"
    with pytest.raises(StorageError, match=message):
        account_of(storage, 3)
    with pytest.raises(StorageError, match=message):
        write(storage, draft(2))
    assert storage.read(part_name(3)) == data


def test_another_parquet_file_is_no_part(storage: Storage) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"uri": ["a"]}), buffer)
    storage.write(part_name(3), memoryview(buffer.getvalue()))
    with pytest.raises(StorageError, match="not a part"):
        account_of(storage, 3)


def test_a_part_that_vanishes_between_is_named() -> None:
    class Forgetful(MemoryStorage):
        """Says that everything is there already, and has nothing."""

        def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
            return False

    with pytest.raises(StorageError, match="another program changes"):
        write(Forgetful(), draft(2))


def test_nothing_is_visible_before_the_commit(storage: Storage) -> None:
    part = draft(50)
    with closing(PartWriter((), N_FEATURES)) as writer:
        writer.add(part.rows, part.features)
        assert list(storage.list("")) == []
        writer.commit(storage, part.receipt, part.failures)
    assert [entry.name for entry in storage.list("")] == [part_name(3)]


def test_a_part_that_is_given_up_leaves_no_trace(storage: Storage) -> None:
    part = draft(50)
    writer = PartWriter((), N_FEATURES)
    writer.add(part.rows, part.features)
    writer.close()
    writer.close()
    assert list(storage.list("")) == []


def test_two_parts_may_be_filled_at_once(storage: Storage) -> None:
    parts = [draft(20, shard=shard, seed=shard) for shard in range(2)]
    with ExitStack() as stack:
        writers = [stack.enter_context(closing(PartWriter((), N_FEATURES))) for _ in parts]
        for start in range(0, 20, 5):
            for part, writer in zip(parts, writers, strict=True):
                writer.add(part.rows[start : start + 5], part.features[start : start + 5])
        accounts = [
            writer.commit(storage, part.receipt, part.failures) for part, writer in zip(parts, writers, strict=True)
        ]
    assert accounts == [part.account for part in parts]
    for part in parts:
        features = np.array(read_table(storage, part.receipt.shard)["features"].to_pylist(), np.float32)
        assert features.tobytes() == part.features.tobytes()


# -- a part in place of another ------------------------------------------------------------------------------


def revise(storage: Storage, keep: list[int], new: Draft) -> Account:
    """Replace part 3 by one that has the rows of `new`, and of the old one those that are kept, relabelled."""
    with open_part(storage, 3) as existing, closing(PartWriter(("label",), N_FEATURES)) as writer:
        assert existing is not None
        writer.add(new.rows, new.features)
        uris = list(existing.hashes)
        wanted = {uris[i]: ImageRef(uris[i], 0, 10, "2", ("relabelled",)) for i in keep}
        for rows, features in existing.read_rows(wanted):
            if rows:
                writer.add(rows, features)
        return writer.commit(storage, new.receipt, new.failures, replaces=existing.version)


def second(n: int) -> Draft:
    part = draft(n, field_names=("label",), seed=5)
    rows = [row._replace(ref=row.ref._replace(uri=f"new/{row.ref.uri}")) for row in part.rows]
    return replace(part, rows=rows, receipt=replace(part.receipt, generation=2, carried=3))


def test_rows_are_carried_over_bit_by_bit_with_new_fields(storage: Storage) -> None:
    old, new = draft(300, field_names=("label",)), second(4)
    write(storage, old)
    with open_part(storage, 3) as existing:
        assert existing is not None
        assert existing.hashes == {row.ref.uri: row.sha256 for row in old.rows}
    kept = [299, 0, 17]
    assert revise(storage, kept, new) == new.account
    assert account_of(storage, 3) == new.account
    table = read_table(storage, 3)
    assert table["uri"].to_pylist() == [row.ref.uri for row in new.rows] + [
        old.rows[i].ref.uri for i in sorted(kept)
    ]
    assert table["label"].to_pylist()[4:] == ["relabelled"] * 3
    assert table["sha256"].to_pylist()[4:] == [old.rows[i].sha256 for i in sorted(kept)]
    features = np.stack(table["features"].to_pylist()).astype(np.float32)
    assert np.array_equal(features, np.concatenate([new.features, old.features[sorted(kept)]]))


def test_of_two_that_replace_one_part_the_second_takes_the_account_of_the_first(storage: Storage) -> None:
    one, other = second(2), second(5)
    write(storage, draft(20, field_names=("label",)))
    with open_part(storage, 3) as existing, closing(PartWriter(("label",), N_FEATURES)) as writer:
        assert existing is not None
        assert revise(storage, [1], one) == one.account
        writer.add(other.rows, other.features)
        assert writer.commit(storage, other.receipt, other.failures, replaces=existing.version) == one.account
    assert len(read_table(storage, 3)) == 3


def test_a_part_of_another_generation_in_the_meantime_is_told(storage: Storage) -> None:
    late = second(5)
    write(storage, draft(20, field_names=("label",)))
    with open_part(storage, 3) as existing, closing(PartWriter(("label",), N_FEATURES)) as writer:
        assert existing is not None
        newer = second(2)
        revise(storage, [1], replace(newer, receipt=replace(newer.receipt, generation=3)))
        writer.add(late.rows, late.features)
        with pytest.raises(ReplacedError, match="replaced by another generation"):
            writer.commit(storage, late.receipt, late.failures, replaces=existing.version)
    account = account_of(storage, 3)
    assert account is not None
    assert account.receipt.generation == 3


def test_a_existing_part_stays_what_it_was(storage: Storage) -> None:
    old = draft(60_000, field_names=("label",))
    write(storage, old)
    with open_part(storage, 3) as existing:
        assert existing is not None
        revise(storage, [1], second(2))
        try:
            assert existing.hashes == {row.ref.uri: row.sha256 for row in old.rows}
        except ReplacedError:
            assert storage.is_remote
