"""Whole runs over archives, tables and lists: rows, labels, parts, and what an update makes of a change in them."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurepress as fp
from featurepress.demo.orchard import draw_images
from featurepress.errors import SourceError
from featurepress.features.feature_set import FeatureSet
from featurepress.runs.verbs import run_plan
from featurepress.settings import Settings
from featurepress.sources import describe
from featurepress.storage import FolderStorage
from featurepress.testing import InlineEngine, draft_plan
from tests.running import read_failures, read_rows

Labelled = Mapping[str, tuple[bytes, str]]  # name -> picture, label


def write_tar(path: Path, images: Labelled) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, (data, label) in images.items():
            for member, content in ((f"{name}.jpg", data), (f"{name}.cls", label.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_table(path: Path, images: Labelled) -> None:
    rows = [{"image": {"bytes": data, "path": name}, "label": label} for name, (data, label) in images.items()]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def write_list(path: Path, images: Labelled) -> None:
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["url", "label"])
        for name, (data, label) in images.items():
            picture = path.parent / "pictures" / f"{name}.jpg"
            picture.parent.mkdir(exist_ok=True)
            if not picture.exists() or picture.read_bytes() != data:
                picture.write_bytes(data)
            lines.writerow([f"pictures/{name}.jpg", label])


KINDS: dict[str, tuple[str, Callable[[Path, Labelled], None], dict[str, Any]]] = {
    "archive": ("a.tar", write_tar, {}),
    "compressed archive": ("a.tar.gz", write_tar, {}),
    "table": ("t.parquet", write_table, {"label_column": "label"}),
    "list": ("l.csv", write_list, {"label_column": "label"}),
}


@pytest.fixture
def images(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    """Draw pictures with labels."""
    drawn = draw_images(tmp_path / "drawn", 30, image_size_px=24)
    return {f"{i:03d}": (path.read_bytes(), path.parent.name) for i, path in enumerate(sorted(drawn))}


def embed(out: Path, *locations: Path, **options: Any) -> FeatureSet:
    settings = Settings.from_options(**options)
    specs = describe([str(one) for one in locations], settings.listing, destination=str(out))
    return run_plan(draft_plan(FolderStorage(str(out)), *specs, **options), engine=InlineEngine())


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_a_row_with_its_label(
    tmp_path: Path, images: dict[str, tuple[bytes, str]], kind: str
) -> None:
    name, write, options = KINDS[kind]
    images["010"] = (b"no picture", "broken")
    write(tmp_path / name, images)
    features = embed(tmp_path / "out", tmp_path / name, **options)
    assert features.summary.listed == 30
    assert [reason for _, _, reason in read_failures(tmp_path / "out")] == ["not an image"]
    labels = [label for data, label in images.values() if data != b"no picture"]
    assert features.labels is not None
    assert sorted(features.labels) == sorted(labels)
    rows = read_rows(tmp_path / "out")
    if kind != "list":
        assert list(rows) == [uri for uri in features.uris if uri.startswith(f"{tmp_path / name}#")]
        assert [row.label for row in rows.values()] == labels  # in the order of the members, or rows
    assert "label" not in embed(tmp_path / "none", tmp_path / name, **{**options, "labels": "none"}).schema.names


def test_a_part_holds_members_of_one_archive(tmp_path: Path, images: dict[str, tuple[bytes, str]]) -> None:
    names = list(images)
    for i, some in enumerate((names[:11], names[11:25], names[25:])):
        write_tar(tmp_path / f"{i}.tar", {name: images[name] for name in some})
    embed(tmp_path / "out", tmp_path / "{0..2}.tar", images_per_part=5)
    parts = [pq.read_table(path)["uri"].to_pylist() for path in sorted((tmp_path / "out").glob("features/*"))]
    assert [len({uri.partition("#")[0] for uri in part}) for part in parts] == [1] * len(parts)
    assert [len(part) for part in parts] == [5, 6, 7, 7, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_of_what_is_inside(tmp_path: Path, images: dict[str, tuple[bytes, str]], kind: str) -> None:
    name, write, options = KINDS[kind]
    options = {**options, "images_per_part": 8}
    write(tmp_path / name, images)
    embed(tmp_path / "out", tmp_path / name, **options)
    images["003"] = (images["003"][0] + b" ", images["003"][1])
    images["005"] = (images["005"][0], "another label")
    images["999"] = images["004"]
    del images["029"]
    write(tmp_path / name, images)
    features = fp.update(tmp_path / "out", engine=InlineEngine())
    embed(tmp_path / "anew", tmp_path / name, **options)
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "anew")
    changes = features.summary.changes
    if kind == "list":
        assert (changes.new, changes.deleted, changes.inferred) == (1, 1, 2)
    if kind == "table":  # a row is identified by its number: the last one has other bytes now
        assert (changes.new, changes.deleted, changes.inferred) == (0, 0, 2)
    assert fp.update(tmp_path / "out", engine=InlineEngine()).summary.changes == fp.Changes(0, 0, 0, 0)


def test_a_pattern_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    draw_images(tmp_path / "in", 3, image_size_px=24)
    with pytest.raises(
        SourceError, match=r"The pattern '\{label\}/\{name\}.png' \(--labels\) fits none of the first 3"
    ):
        embed(tmp_path / "out", tmp_path / "in", labels="{label}/{name}.png")
    assert not (tmp_path / "out").exists()


def test_all_kinds_together(tmp_path: Path, images: dict[str, tuple[bytes, str]]) -> None:
    names = list(images)
    sources = []
    for i, (name, write, _) in enumerate(KINDS.values()):
        write(tmp_path / name, {key: images[key] for key in names[i * 5 : i * 5 + 5]})
        sources.append(tmp_path / name)
    folder = draw_images(tmp_path / "folder", 5, image_size_px=24)
    features = embed(tmp_path / "out", *sources, tmp_path / "folder")
    assert len(features) == 20 + len(folder)
    labels = dict(
        zip(features.uris.tolist(), features.labels.tolist() if features.labels is not None else [], strict=True)
    )
    assert labels[str(folder[0])] == ""
    assert labels[f"{tmp_path}/a.tar#000.jpg"] == images["000"][1]
