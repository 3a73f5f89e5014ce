from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import featurepress as fp
from featurepress.demo.orchard import draw_images
from featurepress.embedding.originals import read_originals
from featurepress.errors import FeatureSetError
from featurepress.features.feature_set import embedded_set
from featurepress.images import decode

EMBED: dict[str, Any] = {"model": "embedded", "precision": "float32", "images_per_part": 10}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draw_images(tmp_path / "pictures", 40)
    return tmp_path / "pictures"


def pixels_of(uri: str) -> npt.NDArray[np.uint8]:
    return np.asarray(decode(Path(uri).read_bytes(), max_pixels=10**6))


def originals_of(features: fp.FeatureSet, uris: list[str]) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    embedded = embedded_set(features)
    return read_originals(embedded.plan, embedded.parts, uris)


def test_pictures_are_found_by_their_uris(pictures: Path, tmp_path: Path) -> None:
    features = fp.embed(pictures, tmp_path / "out", **EMBED)
    wanted = features.uris[[37, 3, 12]].tolist()
    found = dict(originals_of(features, wanted))
    assert sorted(found) == sorted(wanted)
    assert all((found[uri] == pixels_of(uri)).all() for uri in wanted)


def test_pictures_that_are_gone_are_left_out(pictures: Path, tmp_path: Path) -> None:
    features = fp.embed(pictures, tmp_path / "out", **EMBED)
    gone, kept = features.uris[[3, 12]].tolist()
    Path(gone).unlink()
    assert [uri for uri, _ in originals_of(features, [gone, kept])] == [kept]


def test_after_an_update_those_of_every_generation_are_found(pictures: Path, tmp_path: Path) -> None:
    features = fp.embed(pictures, tmp_path / "out", **EMBED)
    changed = features.uris[15]
    Path(changed).write_bytes(Path(features.uris[16]).read_bytes() + b"\0")
    draw_images(tmp_path / "more", 3, random_state=9)
    shutil.copytree(tmp_path / "more", pictures / "more")
    features = fp.update(tmp_path / "out")
    assert features.plan.generation == 2
    found = dict(originals_of(features, features.uris.tolist()))
    assert sorted(found) == sorted(features.uris.tolist())
    assert (found[changed] == pixels_of(changed)).all()


def test_of_a_reduced_set_the_pictures_are_those_of_its_origin(pictures: Path, tmp_path: Path) -> None:
    features = fp.embed(pictures, tmp_path / "out", **EMBED)
    fp.reduce(features, tmp_path / "reduced", n_components=4)
    reduced, uris = fp.open_features(tmp_path / "reduced"), features.uris[:2].tolist()
    assert len(dict(originals_of(reduced, uris))) == 2
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(FeatureSetError, match="not a feature set"):
        list(originals_of(reduced, uris))
