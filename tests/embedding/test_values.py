"""Values in memory: each gives features or a reason, and none is the end of the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from featurepress.embedding.values import Embedder, Raw, embed_values
from featurepress.settings import ImageSettings
from featurepress.specs import BackboneSpec
from featurepress.testing import fake_backbone
from tests.running import draw

LIMITS = ImageSettings()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return sorted(draw(tmp_path / "pictures", 20).rglob("*.jpg"))


def features_of(answer: tuple[bytes | None, str | None]) -> np.ndarray:
    data, reason = answer
    assert reason is None
    assert data is not None
    return np.frombuffer(data, np.float32)


def test_bytes_paths_and_pixels_of_a_picture_give_the_same_features(pictures: list[Path]) -> None:
    """Spark's pixels are blue, green, red: the features are the RGB picture's."""
    data = [path.read_bytes() for path in pictures]
    bgr = [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) for one in data]
    raw = [Raw(one.shape[0], one.shape[1], 3, one.tobytes()) for one in bgr if one is not None]
    backbone = fake_backbone()
    by_bytes = embed_values(backbone, "float32", data, LIMITS)
    assert len(by_bytes) == len(pictures)
    assert embed_values(backbone, "float32", raw, LIMITS) == by_bytes
    assert embed_values(backbone, "float32", [str(path) for path in pictures], LIMITS) == by_bytes
    assert embed_values(backbone, "float32", [f"file:{path}" for path in pictures], LIMITS) == by_bytes
    assert len({answer[0] for answer in by_bytes}) == len(pictures)
    red = Raw(8, 8, 3, bytes([0, 0, 255]) * 64)
    assert features_of(embed_values(backbone, "float32", [red], LIMITS)[0]).tolist() == [255, 0, 0] * 4


def test_grey_and_transparent_pixels() -> None:
    grey = Raw(8, 8, 1, bytes([7]) * 64)
    clear = Raw(8, 8, 4, bytes([1, 2, 3, 0]) * 64)
    solid = Raw(8, 8, 4, bytes([1, 2, 3, 255]) * 64)
    answers = embed_values(fake_backbone(), "float32", [grey, clear, solid], LIMITS)
    assert [features_of(answer)[:3].tolist() for answer in answers] == [[7, 7, 7], [255, 255, 255], [3, 2, 1]]


def test_bad_values_give_reasons_and_good_ones_features(pictures: list[Path], tmp_path: Path) -> None:
    good = pictures[0].read_bytes()
    values = [
        good, b"", b"no picture", None, Raw(8, 8, 2, b"1"), Raw(0, 0, 3, b""), str(tmp_path / "nothing.jpg"),
        "ftp://host/a.jpg", good[:200], good,
    ]  # fmt: skip
    answers = embed_values(fake_backbone(), "float32", values, LIMITS)
    assert answers[0] == answers[-1]
    assert answers[0][1] is None
    reasons = [reason for _, reason in answers[1:-1]]
    assert all(features is None for features, _ in answers[1:-1])
    assert reasons[0] == "decode: zero bytes"
    assert reasons[1] == "decode: not an image"
    assert reasons[2] == "read: no value"
    assert reasons[3] == "decode: not an image: 2 channels, 1 bytes"
    assert reasons[5] == "read: no such file"
    assert reasons[6] is not None
    assert "the scheme 'ftp' cannot be read" in reasons[6]


def test_limits_hold(pictures: list[Path]) -> None:
    data = pictures[0].read_bytes()
    ((features, reason),) = embed_values(fake_backbone(), "float32", [data], ImageSettings(max_bytes=10))
    assert (features, reason) == (None, f"read: too many bytes: {len(data)}, above the limit of 10")
    ((features, reason),) = embed_values(fake_backbone(), "float32", [data], ImageSettings(max_pixels=10))
    assert features is None
    assert reason is not None
    assert reason.startswith("decode: too many pixels")


def test_features_that_are_no_numbers_are_a_reason() -> None:
    black, white = Raw(8, 8, 3, bytes(192)), Raw(8, 8, 3, bytes([255]) * 192)
    answers = embed_values(fake_backbone(sabotage="nan"), "float32", [black, white], LIMITS)
    assert answers[0] == (None, "infer: features are not finite")
    assert answers[1][1] is None


@pytest.fixture
def embedder() -> Iterator[Embedder]:
    embedder = Embedder(fake_backbone(), "float32")
    yield embedder
    embedder.close()


def test_an_embedder_returns_what_its_child_does(embedder: Embedder, pictures: list[Path]) -> None:
    data = [path.read_bytes() for path in pictures] * 8
    assert embedder.embed(data) == embed_values(fake_backbone(), "float32", data, LIMITS)
    child = embedder._child
    embedder.embed(data[:1])
    assert embedder._child is child
    embedder.close()
    assert embedder.embed([]) == []


def killer() -> BackboneSpec:
    """Describe a backbone that kills its process for pictures that are all black."""
    return fake_backbone(sabotage="abort")


def test_a_value_that_kills_its_process_is_a_reason_and_the_others_have_features() -> None:
    black, white = Raw(8, 8, 3, bytes(192)), Raw(8, 8, 3, bytes([255]) * 192)
    embedder = Embedder(killer(), "float32")
    try:
        answers = embedder.embed([black, white])
    finally:
        embedder.close()
    assert answers[1][1] is None
    assert answers[0] == (None, "decode: decoder crashed: its process was killed by SIGABRT, twice")
