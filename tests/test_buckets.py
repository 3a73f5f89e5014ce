"""Whole runs from bucket to bucket: faults, kills, and what must never be written anywhere."""

from __future__ import annotations

import io
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

import featurepress as fp
from featurepress.demo import draw_pictures
from tests.runs import PATIENCE_SECONDS, embed, read_json, run_cli, started, wait_until
from tests.servers.fixtures import Faulty
from tests.servers.listing import Listing
from tests.servers.s3 import FastS3

N_IMAGES = 5_000


def read_set(server: FastS3, bucket: str, prefix: str) -> dict[str, Any]:
    """Give the rows of a feature set by uri, features as bytes, and the failures; fail if a uri is there twice."""
    rows: dict[str, Any] = {}
    for key in sorted(server.keys(bucket)):
        if key.startswith(f"{prefix}/features/"):
            table = pq.read_table(io.BytesIO(server.get(bucket, key)))
            values = table.drop_columns(["features"]).to_pylist()
            for row, features in zip(values, table["features"].to_numpy(), strict=True):
                assert row["uri"] not in rows, f"{row['uri']} is there twice"
                rows[row["uri"]] = (tuple(row.values()), features.tobytes(), key.rpartition("/")[2])
        if key.startswith(f"{prefix}/failures/"):
            for row in pq.read_table(io.BytesIO(server.get(bucket, key))).to_pylist():
                assert row["uri"] not in rows
                rows[row["uri"]] = (row["stage"], row["reason"])
    return rows


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw many small pictures, with some among them that are none."""
    folder = tmp_path_factory.mktemp("many")
    drawn = draw_pictures(folder, 250, image_size_px=24)
    contents = [path.read_bytes() for path in drawn]
    for path in drawn:
        path.unlink()
    for i in range(N_IMAGES):
        path = folder / f"kind{i % 40:02d}" / f"{i:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture" if i % 997 == 500 else contents[i % 250] + b"%d" % i)
    return folder


def names(server: FastS3, bucket: str, prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in sorted(server.keys(bucket)) if key.startswith(f"{prefix}/")]


def test_faults_of_all_kinds_change_nothing(fast_s3: FastS3, faulty: Faulty, pictures: Path) -> None:
    bucket = fast_s3.bucket()
    assert fast_s3.load(bucket, pictures, "in/") == N_IMAGES
    source = f"s3://{bucket}/in/"
    options: dict[str, Any] = {"labels": "parent", "timeout_seconds": 4.5}
    undisturbed = embed(source, f"s3://{bucket}/undisturbed", **options)
    assert undisturbed.summary.failed == 5
    proxy = faulty(fast_s3, rate=0.05, seed=4, stall_seconds=2)
    features = embed(source, f"s3://{bucket}/faulty", **options)
    proxy.calm()
    assert proxy.n_faults() > 250
    assert {kind.split()[0] for kind in proxy.counts()} >= {"500", "503", "reset", "short", "long", "stall"}
    assert features.summary.listed == N_IMAGES
    assert features.summary.failed_by_kind == undisturbed.summary.failed_by_kind
    ours, theirs = (read_set(fast_s3, bucket, name) for name in ("faulty", "undisturbed"))
    assert len(ours) == N_IMAGES
    assert ours == theirs
    assert names(fast_s3, bucket, "faulty") == names(fast_s3, bucket, "undisturbed")
    assert fast_s3.uploads(bucket) == []


def test_a_driver_killed_ten_times_and_finished_elsewhere(
    fast_s3: FastS3, pictures: Path, tmp_path: Path
) -> None:
    bucket = fast_s3.bucket()
    fast_s3.load(bucket, pictures, "in/")
    source, out = f"s3://{bucket}/in/", f"s3://{bucket}/killed"
    embed(source, f"s3://{bucket}/undisturbed", images_per_part=50)
    fast_s3.delay(0.15, "PutObject")  # so that there is time for ten
    rng = random.Random(7)
    for i in range(10):
        folder = tmp_path / f"machine-{i}"
        folder.mkdir()
        with started("embed", source, "--out", out, "--images-per-part", "50", cwd=folder) as process:
            n_parts = len(names(fast_s3, bucket, "killed/features"))
            wait_until(lambda n=n_parts: len(names(fast_s3, bucket, "killed/features")) > n, "a part")
            time.sleep(rng.random() * 0.6)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_SECONDS)
        assert list(folder.iterdir()) == []
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    fast_s3.delay(0.0, "PutObject")
    done = run_cli("resume", out, cwd=fresh)
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_set(fast_s3, bucket, name) for name in ("killed", "undisturbed"))
    assert ours == theirs
    assert names(fast_s3, bucket, "killed") == names(fast_s3, bucket, "undisturbed")
    assert fast_s3.uploads(bucket) == []
    assert fp.open_features(out).is_complete


def test_a_million_keys_are_pressed_while_they_are_listed(listing: Listing, tmp_path: Path) -> None:
    listing.make(1_000_000)
    out = tmp_path / "out"
    began = time.monotonic()
    with started("embed", "s3://made-up/", "--out", out) as process:
        driver = psutil.Process(process.pid)
        wait_until(lambda: list(out.glob("features/*.parquet")), "the first part", 60)
        first_seconds = time.monotonic() - began
        before, peak = driver.memory_info().rss, 0
        while not (out / "plan" / "listing.json").exists():
            assert process.poll() is None
            peak = max(peak, driver.memory_info().rss)
            time.sleep(0.05)
    listed = read_json(out / "plan" / "listing.json")
    assert listed["images"] == 1_000_000
    print(f"first part after {first_seconds:.1f} s, listing {(peak - before) / 2**20:.0f} MiB")
    assert peak - before < 300 * 10**6
    assert first_seconds < 30  # 5 on a machine that does nothing else
