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
from featurepress.demo.orchard import draw_images
from tests.running import TIMEOUT_SECONDS, embed, read_json, run_cli, started, wait_until
from tests.servers.fixtures import Faulty
from tests.servers.listing import Listing
from tests.servers.s3 import FastS3

N_IMAGES = 5_000


def read_set(server: FastS3, bucket: str, prefix: str) -> dict[str, Any]:
    """Return the rows of a set by uri, features as bytes, and the failures; fail if a uri is there twice."""
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
    drawn = draw_images(folder, 250, image_size_px=24)
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


def test_a_driver_killed_ten_times_and_finished_elsewhere(fast_s3: FastS3, pictures: Path, tmp_path: Path) -> None:
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
            wait_until(lambda: len(names(fast_s3, bucket, "killed/features")) > n_parts, "a part")  # noqa: B023
            time.sleep(rng.random() * 0.6)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait(TIMEOUT_SECONDS)
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


def test_a_million_keys_are_embedded_while_they_are_listed(listing: Listing, tmp_path: Path) -> None:
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


# -- what users do wrong, and what stores refuse -------------------------------------------------------------


@pytest.fixture
def few(fast_s3: FastS3, tmp_path: Path) -> str:
    """Return a bucket with some images in ``in/``."""
    bucket = fast_s3.bucket()
    drawn = draw_images(tmp_path / "few", 30, image_size_px=24)
    fast_s3.put(bucket, {f"in/{path.parent.name}/{path.name}": path.read_bytes() for path in drawn})
    return bucket


SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIDSECRETSECRET1",
    "AWS_SECRET_ACCESS_KEY": "wJalrSECRETSECRET2",
    "AWS_SESSION_TOKEN": "tokenSECRETSECRET3",
}


def test_secrets_are_written_nowhere(
    fast_s3: FastS3, few: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    source = f"s3://{few}/in/"
    done = run_cli("embed", source, "--out", f"s3://{few}/out", "--json", "--format", "csv")
    assert done.returncode == 0, done.stderr
    texts = [done.stdout, done.stderr]
    on_disk = run_cli("embed", source, "--out", tmp_path / "out", environment={"PYTHONWARNINGS": "default"})
    texts += [on_disk.stdout, on_disk.stderr]
    for code in ("InvalidAccessKeyId", "AccessDenied", "SignatureDoesNotMatch", "ExpiredToken"):
        fast_s3.refuse(code, keys="in/.*7")
        refused = run_cli("embed", source, "--out", tmp_path / code, "--timeout-seconds", "3")
        fast_s3.behave()
        texts += [refused.stdout, refused.stderr]
    signed = "https://key:SECRETSECRET4@127.0.0.1:1/a.jpg?X-Amz-Signature=SECRETSECRET5"
    (tmp_path / "urls.txt").write_text(signed + "\n" + str(next((tmp_path / "few").rglob("*.jpg"))) + "\n")
    listed = run_cli("embed", tmp_path / "urls.txt", "--out", tmp_path / "urls", "--max-failures", "1")
    kept = b"".join(path.read_bytes() for path in (tmp_path / "urls" / "plan").glob("chunk-*"))
    assert b"X-Amz-Signature=***" in kept
    texts += [listed.stdout, listed.stderr]
    blobs = [fast_s3.get(few, key) for key in fast_s3.keys(few) if key.startswith("out/")]
    blobs += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "urls.txt"]
    assert len(blobs) > 20
    for blob in [text.encode() for text in texts] + blobs:
        assert b"SECRETSECRET" not in blob


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["s3://nowhere-at-all/x"], "Cannot list 's3://nowhere-at-all/x': there is no such bucket"),
        (["s3://{bucket}/nothing/"], "No image below 's3://{bucket}/nothing/': it is empty"),
        (["s3://{bucket}/denied/"], "Cannot list 's3://{bucket}/denied/': no permission"),
        (["s3://{elsewhere}/x"], "'ap-south-1', not in 'eu-west-3': set AWS_REGION"),
        (["s4://{bucket}/in/"], "https://, http://, s3://, gs://, az://"),
        (["s3://"], "names no bucket"),
        (["s3://{bucket}/in", "s3://{bucket}/in/"], "overlap"),
        (["s3://{bucket}/in/", "--out", "s3://nowhere-at-all/out"], "there is no such bucket"),
        (["s3://{bucket}/in/", "--out", "hdfs://x/y"], "The scheme 'hdfs'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_request_is_one_line_and_nothing_is_written(
    fast_s3: FastS3, few: str, tmp_path: Path, arguments: list[str], text: str
) -> None:
    fast_s3.refuse("AccessDenied", keys=f"^{few}/?(denied.*)?$" if "denied" in arguments[0] else "^no key$")
    elsewhere = fast_s3.bucket()
    fast_s3.place(elsewhere, "ap-south-1", status=400)
    before = fast_s3.keys(few)
    given = [argument.format(bucket=few, elsewhere=elsewhere) for argument in arguments]
    done = run_cli("embed", *given, *([] if "--out" in given else ["--out", str(tmp_path / "out")]))
    fast_s3.behave()
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert text.format(bucket=few) in line
    assert not (tmp_path / "out").exists()
    assert fast_s3.keys(few) == before


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "AccessDenied"])
def test_credentials_that_expire_stop_the_run_and_fresh_ones_finish_it(
    fast_s3: FastS3, pictures: Path, tmp_path: Path, code: str
) -> None:
    bucket = fast_s3.bucket()
    fast_s3.load(bucket, pictures, "in/")
    fast_s3.refuse(code, after=1_500)
    out = tmp_path / "out"
    done = run_cli("embed", f"s3://{bucket}/in/", "--out", out)
    fast_s3.behave()
    assert done.returncode == 1
    assert "credentials are refused" in done.stderr
    assert f"featurepress resume {out}" in done.stderr
    again = run_cli("resume", out)
    assert again.returncode == 0, again.stderr
    manifest = read_json(out / "manifest.json")
    assert (manifest["listed"], manifest["failed_by_kind"]) == (N_IMAGES, {"decode: not an image": 5})


@pytest.mark.parametrize("mode", ["ignored", "unsupported"])
def test_a_store_without_conditions_is_announced(fast_s3: FastS3, few: str, mode: str) -> None:
    fast_s3.honour_conditions(mode)
    done = run_cli("embed", f"s3://{few}/in/", "--out", f"s3://{few}/out")
    fast_s3.behave()
    assert done.returncode == 0, done.stderr
    assert "conditional writes (If-None-Match)" in done.stderr
    assert '"conditional_writes": false' in fast_s3.get(few, "out/manifest.json").decode()
    assert "conditional" not in run_cli("embed", f"s3://{few}/in/", "--out", f"s3://{few}/safe").stderr


def test_a_destination_inside_the_source_is_left_out_and_counted(fast_s3: FastS3, few: str) -> None:
    embed(f"s3://{few}/", f"s3://{few}/in/first")
    features = embed(f"s3://{few}/", f"s3://{few}/second", all_files=True)
    assert features.summary.listed == 30
    assert features.summary.skipped == {"feature set": 1}
    features.plan.storage.delete("manifest.json")
    again = embed(f"s3://{few}/", f"s3://{few}/third", all_files=True)
    assert again.summary.skipped == {"feature set": 2}


def test_odd_keys_are_embedded_like_any_other(fast_s3: FastS3, few: str) -> None:
    picture = fast_s3.get(few, fast_s3.keys(few)[0])
    odd = [
        "a//b.jpg",
        "a/../b.jpg",
        "/lead.jpg",
        "sp ace.jpg",
        "100%.jpg",
        "x#1.jpg",
        "é/中.jpg",
        "./x.jpg",
        "q?a=b.jpg",
    ]
    fast_s3.put(few, dict.fromkeys(odd, picture))
    features = embed(f"s3://{few}/", f"s3://{few}/out")
    assert (features.summary.listed, features.summary.failed) == (30 + len(odd), 0)
    assert {f"s3://{few}/{key}" for key in odd} < set(features.uris)


def test_update_and_retry_in_a_bucket(fast_s3: FastS3, few: str) -> None:
    keys = [key for key in fast_s3.keys(few) if key.startswith("in/")]
    fast_s3.put(few, {"in/broken.jpg": b"no picture"})
    out = f"s3://{few}/out"
    embed(f"s3://{few}/in/", out, max_failures=1.0)
    contents = {key: fast_s3.get(few, key) for key in keys}
    fast_s3.put(
        few,
        {keys[0]: contents[keys[1]] + b" ", "in/new.jpg": contents[keys[2]], "in/broken.jpg": contents[keys[3]]},
    )
    assert fp.retry(out).summary.changes.inferred == 1
    features = fp.update(out)
    assert features.summary.changes == fp.Changes(1, 1, 0, 2)
    assert features.failures.num_rows == 0
    assert fp.update(out).summary.changes == fp.Changes(0, 0, 0, 0)
    assert len(read_set(fast_s3, few, "out")) == 32


def test_each_store_from_end_to_end(each_store: Any, tmp_path: Path) -> None:
    bucket = each_store.bucket()
    drawn = draw_images(tmp_path / "drawn", 12, image_size_px=24)
    each_store.put(bucket, {f"in/kind{i % 3}/{i:02d}.jpg": path.read_bytes() for i, path in enumerate(drawn)})
    source, out = each_store.url(bucket, "in/"), each_store.url(bucket, "sets/out")
    features = embed(source, out, labels="parent")
    assert len(features) == 12
    assert features.labels is not None
    assert set(features.labels) == {"kind0", "kind1", "kind2"}
    assert features.uris[0].startswith(source)
    assert embed(source, out, labels="parent").summary.already_done
    each_store.put(bucket, {"in/kind0/00.jpg": drawn[1].read_bytes(), "in/new.jpg": drawn[2].read_bytes()})
    assert fp.update(out).summary.changes == fp.Changes(1, 1, 0, 2)
    assert len(fp.open_features(out)) == 13
    (written,) = fp.export(out, to=each_store.url(bucket, "exports/x.npy"))
    assert each_store.get(bucket, "exports/x.npy").startswith(b"\x93NUMPY")
    assert written.endswith("exports/x.npy")
