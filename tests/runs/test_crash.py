"""Images that kill or hang whatever decodes them, and workers that are killed from outside."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from featurepress.engines import LocalEngine
from featurepress.errors import WorkerDeathError
from featurepress.runs.tasks import EmbedShard
from featurepress.runs.verbs import run_plan
from featurepress.settings import ImageSettings
from featurepress.testing import ABORT, HANG, InlineEngine, crashing_decode, memory_source
from tests.running import draft, draw, leftovers, read_failures, read_json, read_rows, wait_until

PRELOAD = ("featurepress.embedding.shard", "featurepress.testing")


class HastySettings(ImageSettings):
    """Takes a child that is silent for three seconds for hung."""

    silence_seconds = 3.0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = draw(tmp_path_factory.mktemp("in"), 12)
    paths = sorted(folder.rglob("*.jpg"))
    return {f"{i:02d}.jpg": path.read_bytes() for i, path in enumerate(paths)}


@contextlib.contextmanager
def no_process_is_left() -> Iterator[None]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    for process in left:
        process.kill()
    assert left == []


def embed_treacherous(out: Path, images: dict[str, bytes], workers: int = 2, **options: Any) -> Any:
    """Embed, four images a part, with a decoder that does what the images say."""
    plan = draft(out, memory_source(images), images_per_part=4, max_failures=1.0, **options)
    with no_process_is_left(), LocalEngine(workers, preload=PRELOAD) as engine:
        return run_plan(plan, engine=engine, task=EmbedShard(decode=crashing_decode))


def assert_only_these_fail(out: Path, tmp_path: Path, images: dict[str, bytes], killers: set[str]) -> None:
    """Fail unless all others have the very features of a run that never saw the killers."""
    run_plan(
        draft(tmp_path / "harmless", memory_source({u: d for u, d in images.items() if u not in killers})),
        engine=InlineEngine(),
    )
    assert read_rows(out) == read_rows(tmp_path / "harmless")
    failures = read_failures(out)
    assert {(uri, stage) for uri, stage, _ in failures} == {(uri, "decode") for uri in killers}
    assert len(failures) == len(killers)
    for _, _, reason in failures:
        assert reason.startswith("decoder crashed: ")
    manifest = read_json(out / "manifest.json")
    assert manifest["listed"] == len(images) == manifest["embedded"] + manifest["failed"]
    assert manifest["failed_by_kind"] == {"decode: decoder crashed": len(killers)}
    assert leftovers(out) == []


def test_an_image_that_aborts_the_decoder_is_a_failure_and_nothing_else_is(
    tmp_path: Path, images: dict[str, bytes]
) -> None:
    deadly = {**images, "05.jpg": ABORT}
    embed_treacherous(tmp_path / "out", deadly)
    assert_only_these_fail(tmp_path / "out", tmp_path, deadly, {"05.jpg"})
    assert "SIGABRT" in read_failures(tmp_path / "out")[0][2]


def test_killers_in_the_same_and_in_another_shard_are_all_found(tmp_path: Path, images: dict[str, bytes]) -> None:
    deadly = {**images, "04.jpg": ABORT, "07.jpg": b"x" + ABORT, "10.jpg": ABORT}
    embed_treacherous(tmp_path / "out", deadly)
    assert_only_these_fail(tmp_path / "out", tmp_path, deadly, {"04.jpg", "07.jpg", "10.jpg"})


@pytest.mark.parametrize("killers", [{"00.jpg"}, {f"{i:02d}.jpg" for i in range(9)}])
def test_the_first_images_of_the_listing_kill_the_probe_too(
    tmp_path: Path, images: dict[str, bytes], killers: set[str]
) -> None:
    deadly = {**images, **dict.fromkeys(killers, ABORT)}
    embed_treacherous(tmp_path / "out", deadly)
    assert_only_these_fail(tmp_path / "out", tmp_path, deadly, killers)


def test_a_killer_beside_the_only_good_image_leaves_that_one(tmp_path: Path, images: dict[str, bytes]) -> None:
    """With a share of the probe each, two workers try two images: only the deadly one is under suspicion."""
    deadly = {"00.jpg": ABORT, "01.jpg": images["01.jpg"]}
    plan = draft(tmp_path / "out", memory_source(deadly), images_per_part=1, max_failures=1.0)
    with no_process_is_left(), LocalEngine(2, preload=PRELOAD) as engine:
        run_plan(plan, engine=engine, task=EmbedShard(decode=crashing_decode))
    assert_only_these_fail(tmp_path / "out", tmp_path, deadly, {"00.jpg"})


def test_nothing_but_killers_stops_the_run_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(WorkerDeathError):
        embed_treacherous(tmp_path / "out", dict.fromkeys(["0.jpg", "1.jpg", "2.jpg"], ABORT), workers=1)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_dies_at_every_image_is_not_tried_a_thousand_times(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerDeathError, match="SIGABRT"):
        embed_treacherous(tmp_path / "out", {f"{i:03d}.jpg": ABORT for i in range(300)}, workers=1)
    assert time.monotonic() - started < 60
    assert not (tmp_path / "out").exists()


def test_an_image_at_which_the_decoder_hangs_is_a_failure(tmp_path: Path, images: dict[str, bytes]) -> None:
    hanging = {**images, "09.jpg": HANG}
    plan = draft(tmp_path / "out", memory_source(hanging), images_per_part=4, max_failures=1.0)
    plan = replace(plan, settings=replace(plan.settings, images=HastySettings()))
    with no_process_is_left(), LocalEngine(2, silence_seconds=4.0, preload=PRELOAD) as engine:
        run_plan(plan, engine=engine, task=EmbedShard(decode=crashing_decode))
    assert_only_these_fail(tmp_path / "out", tmp_path, hanging, {"09.jpg"})
    assert "3 seconds" in read_failures(tmp_path / "out")[0][2]


def wait_until_dead(process: psutil.Process) -> None:
    """Wait, and leave it to the parent to learn how the process ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, "a killed process to be gone")


def embed_and_kill(out: Path, images: dict[str, bytes], n_kills: int) -> int:
    """Embed slowly with one worker; kill it each time it has begun a shard; return the number of kills."""
    plan = draft(out, memory_source(images, delay_seconds=0.1), images_per_part=6)
    me, kills, over = psutil.Process(), 0, threading.Event()

    def kill() -> None:
        nonlocal kills
        while kills < n_kills and not over.wait(0.01):
            begun = set()
            for path in out.glob("attempts/*"):
                with contextlib.suppress(FileNotFoundError):
                    begun.add(read_json(path)["pid"])
            for child in me.children():
                if child.pid in begun:
                    time.sleep(0.05)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
                        kills += 1
                        wait_until_dead(child)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with no_process_is_left(), LocalEngine(1, preload=PRELOAD) as engine:
            run_plan(plan, engine=engine)
    finally:
        over.set()
        killer.join()
    return kills


@pytest.mark.parametrize("n_kills", [1, 3])
def test_a_worker_killed_from_outside_costs_no_image(
    tmp_path: Path, images: dict[str, bytes], n_kills: int
) -> None:
    """One death is retried; after two the shard is embedded image by image, and no image is to blame."""
    out = tmp_path / "out"
    assert embed_and_kill(out, images, n_kills) == n_kills
    run_plan(draft(tmp_path / "plain", memory_source(images)), engine=InlineEngine())
    assert read_rows(out) == read_rows(tmp_path / "plain")
    assert read_failures(out) == []
    assert leftovers(out) == []


def test_a_worker_killed_again_and_again_stops_the_run_and_resume_finishes(
    tmp_path: Path, images: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(WorkerDeathError, match=r"shard 0.*SIGKILL.*5 times.*--memory-bytes"):
        embed_and_kill(out, images, 99)
    assert not (out / "manifest.json").exists()
    plan = draft(out, memory_source(images, delay_seconds=0.1), images_per_part=6)
    assert run_plan(plan, engine=InlineEngine()).summary.failed == 0
    assert len(read_rows(out)) == len(images)
    assert leftovers(out) == []
