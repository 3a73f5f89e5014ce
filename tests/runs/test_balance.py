"""Every listed image is a row or a failure, whatever it is: manifest, receipts, footers and rows agree."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

import featurepress as fp
from featurepress.errors import TooManyFailuresError
from featurepress.runs.tasks import EmbedShard
from featurepress.runs.verbs import run_plan
from featurepress.testing import ABORT, InlineEngine
from tests.running import draft, draw, embed, leftovers, read_failures, read_footers, read_json, read_rows

MAX_BYTES, MAX_PIXELS = 20_000, 10_000


def png(width: int, height: int) -> bytes:
    """Make the beginning of a PNG that says how large it is."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def plant_every_kind_of_bad_file(folder: Path) -> dict[str, tuple[str, str]]:
    """Draw good images and add every kind of bad one; return name -> (stage, beginning of the reason)."""
    good = next(draw(folder, 12).rglob("*.jpg")).read_bytes()
    content = {
        "empty.jpg": b"",
        "text.jpg": b"6 bananas, 1 pineapple\n",
        "truncated.jpg": good[: len(good) // 2],
        "damaged.png": png(3, 3)[:40],
        "pixels.png": png(101, 100),
        "bytes.jpg": good + bytes(MAX_BYTES),
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(40),
        "vanished.jpg": good + b"1",
        "changed.jpg": good + b"2",
        "touched.jpg": good + b"3",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    (folder / "broken link.jpg").symlink_to("nowhere.jpg")
    (folder / "link to itself.jpg").symlink_to("link to itself.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "good.jpg").write_bytes(good + b"4")
    (folder / "notes.txt").write_text("no image by its name")
    (folder / ".hidden.jpg").write_bytes(good)
    return {
        "empty.jpg": ("decode", "zero bytes"),
        "text.jpg": ("decode", "not an image"),
        "truncated.jpg": ("decode", "truncated"),
        "damaged.png": ("decode", ""),
        "pixels.png": ("decode", "too many pixels"),
        "bytes.jpg": ("read", "too many bytes"),
        "phone.heic": ("decode", "HEIC is not supported"),
        "vanished.jpg": ("read", "vanished since listing"),
        "changed.jpg": ("read", "changed since listing"),
        "touched.jpg": ("read", "changed since listing"),
        "broken link.jpg": ("list", "broken link"),
        "link to itself.jpg": ("list", "broken link"),
    }


class ChangingTheFolder(EmbedShard):
    """Embeds after having changed some images that are listed already."""

    def __call__(self, plan: Any, shard: int) -> Any:
        folder = Path(plan.sources[0].location)
        (folder / "vanished.jpg").unlink(missing_ok=True)
        if (folder / "changed.jpg").stat().st_size:
            (folder / "changed.jpg").write_bytes(b"")
            os.utime(folder / "touched.jpg", ns=(1, 1))
        return super().__call__(plan, shard)


def assert_balanced(out: Path, n_listed: int) -> None:
    """Count the images in four ways."""
    manifest, listing = read_json(out / "manifest.json"), read_json(out / "plan" / "listing.json")
    receipts = [read_json(path) for path in sorted(out.glob("receipts/*.json"))]
    footers = read_footers(out)
    rows, failures = read_rows(out), read_failures(out)
    assert manifest["listed"] == listing["images"] == n_listed
    assert manifest["embedded"] == len(rows)
    assert manifest["failed"] == len(failures)
    assert n_listed == len(rows) + len(failures)
    assert not set(rows) & {uri for uri, _, _ in failures}
    assert receipts == [footer["receipt"] for footer in footers]
    assert [tuple(row) for footer in footers for row in footer["failures"]] == failures
    for name in ("listed", "embedded", "failed", "bytes_read"):
        assert manifest[name] == sum(receipt[name] for receipt in receipts), name
    for receipt in receipts:
        assert receipt["listed"] == receipt["embedded"] + receipt["failed"]
        assert receipt["failed"] == sum(receipt["failed_by_kind"].values())
    for kind, count in manifest["failed_by_kind"].items():
        assert count == sum(f"{stage}: {reason.partition(':')[0]}" == kind for _, stage, reason in failures), kind
    assert manifest["parts"] == len(receipts) == len(footers)
    assert leftovers(out) == []


@pytest.mark.parametrize("images_per_part", [1, 5, 4096])
def test_a_folder_with_every_kind_of_bad_file_balances(tmp_path: Path, images_per_part: int) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    bad = plant_every_kind_of_bad_file(source)
    limits: dict[str, Any] = {"max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS, "images_per_part": images_per_part}
    plan = draft(out, source, labels="parent", **limits)
    with pytest.raises(TooManyFailuresError):
        run_plan(plan, engine=InlineEngine(), task=ChangingTheFolder())
    assert_balanced(out, 13 + len(bad))
    assert len(read_rows(out)) == 13
    found = {Path(uri).name: (stage, reason) for uri, stage, reason in read_failures(out)}
    assert set(found) == set(bad)
    for name, (stage, beginning) in bad.items():
        assert found[name][0] == stage, (name, found[name])
        assert found[name][1].startswith(beginning), (name, found[name])
        assert name not in found[name][1]
        assert "\n" not in found[name][1]
        assert len(found[name][1]) < 150
    assert read_json(out / "manifest.json")["skipped"] == {
        "not a regular file": 1,
        "no image suffix": 1,
        "dot file": 1,
    }
    failures = fp.open_features(out).failures
    assert failures.column_names == ["uri", "stage", "reason"]
    assert failures.num_rows == len(bad)


def test_with_all_files_the_rest_is_listed_too(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    plant_every_kind_of_bad_file(source)
    plan = draft(out, source, all_files=True, max_failures=1.0, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
    run_plan(plan, engine=InlineEngine())
    assert_balanced(out, 13 + 12 + 1)
    assert read_json(out / "manifest.json")["skipped"] == {"dot file": 1, "not a regular file": 1}
    assert str(source / "notes.txt") in {uri for uri, _, _ in read_failures(out)}


def test_an_unreadable_folder_and_file_are_failures(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    source, out = draw(tmp_path / "in", 4), tmp_path / "out"
    (source / "secret").mkdir(mode=0)
    locked = source / "locked.jpg"
    locked.write_bytes(b"x")
    locked.chmod(0)
    try:
        run_plan(draft(out, source, max_failures=1.0), engine=InlineEngine())
    finally:
        (source / "secret").chmod(0o700)
    assert {(stage, reason) for _, stage, reason in read_failures(out)} == {
        ("list", "cannot list the folder: permission denied"),
        ("read", "permission denied"),
    }


def test_the_real_model_balances_too(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    bad = plant_every_kind_of_bad_file(source)
    embed(
        source,
        out,
        max_bytes=MAX_BYTES,
        max_pixels=MAX_PIXELS,
        images_per_part=4,
        max_failures=0.5,
        workers=2,
        precision="float32",
    )
    assert_balanced(out, 13 + len(bad))
    assert len(read_rows(out)) == 16  # nothing changed them meanwhile
    shutil.rmtree(source)
    assert fp.resume(out).summary.already_done


def test_a_part_with_failures_only_is_a_part(tmp_path: Path) -> None:
    source, out = draw(tmp_path / "in", 4), tmp_path / "out"
    for i in range(4):
        (source / f"zz{i}.jpg").write_bytes(b"" if i else ABORT)
    run_plan(draft(out, source, images_per_part=4, max_failures=1.0), engine=InlineEngine())
    assert_balanced(out, 8)
    assert [footer["receipt"]["embedded"] for footer in read_footers(out)] == [4, 0]
    assert fp.open_features(out).to_numpy().shape == (4, 12)
