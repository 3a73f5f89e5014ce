"""The stand-ins for tests: they must misbehave as they promise, and follow the contracts otherwise."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurepress import ledger
from featurepress.errors import ImageError, StorageError
from featurepress.ledger.layout import Layout
from featurepress.models.backbone import load_backbone
from featurepress.process import Child, ChildDiedError, ChildSilentError
from featurepress.settings import ListingSettings
from featurepress.sources import Listing, open_source
from featurepress.storage import FolderStorage
from featurepress.testing import (
    ABORT,
    HANG,
    FakeBackbone,
    InlineEngine,
    MemoryStorage,
    crashing_decode,
    draft_plan,
    fake_backbone,
    memory_source,
)
from tests.contracts import tasks


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


# -- sources -------------------------------------------------------------------------------------------------


def test_a_memory_source_delays_and_fails_on_demand() -> None:
    spec = memory_source({"a": b"1", "b": b"2", "c": b"3"}, faults={"b": "gone", "c": "crash"}, delay_seconds=0.05)
    source = open_source(spec)
    a, b, c = source.list()
    began = time.perf_counter()
    assert source.read(a) == b"1"
    assert time.perf_counter() - began >= 0.05
    with pytest.raises(ImageError, match="read: gone"):
        source.read(b)
    with pytest.raises(ZeroDivisionError):
        source.read(c)


def test_a_memory_source_without_images_is_refused_as_any_other() -> None:
    with pytest.raises(Exception, match="No image below 'memory': it is empty"):
        list(Listing([memory_source({})], ListingSettings()))


# -- backbones -----------------------------------------------------------------------------------------------


def batch(*levels: int) -> Any:
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])


def features(levels: tuple[int, int, int, int], precision: str = "float32", **options: Any) -> Any:
    return load_backbone(fake_backbone(**options), precision)(batch(*levels))


def test_fake_features_are_the_mean_colours_of_four_quarters() -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    pixels[0, :4, 4:, 1] = 100  # green at the upper right
    found = load_backbone(fake_backbone(), "float32")(pixels)
    expected = np.zeros((4, 12), np.float32)
    expected[0, 4] = 100
    np.testing.assert_array_equal(found, expected)


def test_fake_bfloat16_is_off_by_as_much_as_was_asked() -> None:
    good = features((10, 20, 30, 40), "bfloat16", bfloat16=True)
    bad = features((10, 20, 30, 40), "bfloat16", bfloat16=True, error=2.0)
    full = features((10, 20, 30, 40), bfloat16=True, error=2.0)
    np.testing.assert_array_equal(good, full)
    np.testing.assert_allclose(bad[:, ::2], 3 * full[:, ::2])
    cosine = (bad * full).sum(axis=1) / np.linalg.norm(bad, axis=1) / np.linalg.norm(full, axis=1)
    assert cosine.max() < 0.999


def test_fake_features_of_black_pictures_are_no_numbers_on_demand() -> None:
    assert np.isfinite(features((0, 1, 0, 255))).all()
    found = features((0, 1, 0, 255), sabotage="nan")
    assert np.isnan(found[[0, 2]]).all()
    assert np.isfinite(found[[1, 3]]).all()


def test_a_fake_backbone_counts_its_loads() -> None:
    before = FakeBackbone.loads
    FakeBackbone(fake_backbone(), "float32")
    assert FakeBackbone.loads == before + 1


# -- decoders ------------------------------------------------------------------------------------------------


def test_the_treacherous_decoder_decodes_what_is_harmless() -> None:
    pixels = crashing_decode(png((1, 2, 3), (5, 4)), max_pixels=100)
    assert pixels.shape == (4, 5, 3)
    assert pixels[0, 0].tolist() == [1, 2, 3]
    with pytest.raises(ImageError):
        crashing_decode(b"nothing", max_pixels=100)
    with pytest.raises(ImageError):
        crashing_decode(png((1, 2, 3)), max_pixels=10)


def decode(data: bytes) -> tuple[int, ...]:
    return tuple(crashing_decode(data, max_pixels=100).shape)


def test_the_treacherous_decoder_kills_and_hangs() -> None:
    child = Child(preload=("featurepress.testing",))
    try:
        assert child.call(decode, png((1, 2, 3))) == (8, 8, 3)
        with pytest.raises(ChildDiedError, match="SIGABRT"):
            child.call(decode, png((1, 2, 3)) + ABORT)
    finally:
        child.close()
    child = Child(preload=("featurepress.testing",))
    try:
        child.call(decode, png((1, 2, 3)))
        with pytest.raises(ChildSilentError):
            child.call(decode, png((1, 2, 3)) + HANG, silence_seconds=0.3)
    finally:
        child.close()


# -- storages and engines ------------------------------------------------------------------------------------


def test_a_memory_storage_keeps_what_it_was_given_at_that_moment() -> None:
    storage, data = MemoryStorage(), bytearray(b"before")
    storage.write("a", memoryview(data))
    storage.create("b", memoryview(data))
    data[:] = b"after!"
    assert storage.objects == {"a": b"before", "b": b"before"}


def test_a_memory_storage_survives_writers_that_close_their_file() -> None:
    storage = MemoryStorage()
    with storage.stream("a") as file:
        file.write(b"1")
        file.close()
    assert storage.read("a") == b"1"


def test_the_inline_engine_runs_here() -> None:
    plan = draft_plan(MemoryStorage(), memory_source({"a": b""}))
    assert list(InlineEngine().run(tasks.worker_id, plan, [1, 2])) == [os.getpid()] * 2


# -- plans ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({}, lambda plan: plan.field_names == () and plan.layout == Layout.of(None, "flatten")),
        ({"labels": "parent"}, lambda plan: plan.field_names == ("label",)),
        ({"images_per_part": 7}, lambda plan: plan.layout.tiers[-1].part == 7),
        ({"limit": 3, "workers": 2}, lambda plan: plan.settings.listing.limit == 3),
    ],
)
def test_plans_follow_the_options(options: dict[str, Any], check: Callable[[Any], bool]) -> None:
    plan = draft_plan(MemoryStorage(), memory_source({"a": b""}), **options)
    assert check(plan)
    assert ledger.create_plan(plan)
    assert ledger.read_plan(plan.storage) == plan


def test_a_plan_for_nowhere_can_still_be_made() -> None:
    plan = draft_plan(FolderStorage("/nowhere/at/all"), memory_source({"a": b""}))
    with pytest.raises(StorageError, match="the destination is gone"):
        ledger.create_plan(plan)
