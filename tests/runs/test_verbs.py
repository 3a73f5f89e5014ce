"""Embed, resume, estimate: the life of a destination from the caller's side."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import featurepress as fp
from featurepress.errors import (
    DestinationError,
    FeatureSetError,
    ModelError,
    PlanMismatchError,
    RequestError,
    SettingError,
    SourceError,
    StorageError,
    TooManyFailuresError,
)
from featurepress.ledger.layout import Layout, Tier
from featurepress.models.catalog import find_card
from featurepress.runs.verbs import expand_time, run_plan
from featurepress.testing import InlineEngine
from tests.running import (
    draft,
    draw,
    embed,
    leftovers,
    names_below,
    read_failures,
    read_json,
    read_rows,
    snapshot,
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw(tmp_path / "in", 20)


def embed_into(out: Path, *sources: Any, **options: Any) -> fp.FeatureSet:
    return run_plan(draft(out, *sources, **{"images_per_part": 5, **options}), engine=InlineEngine())


# -- finished runs -------------------------------------------------------------------------------------------


def test_embed_embeds_a_folder_with_the_embedded_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = draw(tmp_path / "in", 10)
    features = embed(source, out, labels="parent", precision="float32", workers=1)
    assert features.is_complete
    assert features.to_numpy().shape == (10, 1280)
    assert set(read_rows(out)) == {str(path) for path in source.rglob("*.jpg")}
    summary = features.summary
    assert (summary.listed, summary.embedded, summary.failed, summary.already_done) == (10, 10, 0, False)
    assert summary.seconds > 0
    assert summary.bytes_read == sum(path.stat().st_size for path in source.rglob("*.jpg"))
    assert summary.bytes_written == sum(path.stat().st_size for path in out.glob("features/*"))
    before = snapshot(out)
    again = embed(source, out, labels="parent", precision="float32", workers=2, memory_bytes=2**33)
    assert again.summary.already_done
    assert snapshot(out) == before
    assert fp.resume(out).summary.already_done
    assert snapshot(out) == before


def test_the_same_call_after_the_end_does_nothing(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    before = snapshot(out)
    again = embed_into(out, pictures)
    assert again.summary.already_done
    assert again.summary.embedded == 20
    assert snapshot(out) == before


def test_what_shapes_no_feature_may_differ_in_a_later_call(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    again = embed_into(out, pictures, workers=7, memory_bytes=10**9, max_failures=0.5, timeout_seconds=3.0)
    assert again.summary.already_done


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("labels", "parent"),
        ("limit", 7),
        ("max_pixels", 1000),
        ("max_bytes", 1000),
        ("all_files", True),
        ("images_per_part", 6),
        ("format", "csv"),
        ("parts", 3),
        ("precision", "float32"),
    ],
)
def test_another_plan_is_refused_with_the_difference_named(
    tmp_path: Path, pictures: Path, option: str, value: object
) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    before = snapshot(out)
    with pytest.raises(PlanMismatchError) as caught:
        embed_into(out, pictures, **{option: value})
    text = str(caught.value)
    assert f"{option}: " in text
    assert repr(value) in text
    assert str(out) in text
    assert "\n" not in text
    others = {"labels", "limit", "max_pixels", "max_bytes", "images_per_part", "parts", "sources"} - {option}
    assert not [other for other in others if f"{other}: " in text]
    assert snapshot(out) == before


def test_other_sources_are_refused_by_name(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    other = draw(tmp_path / "other", 2)
    with pytest.raises(PlanMismatchError, match=re.escape(str(other))):
        embed_into(out, other)
    with pytest.raises(PlanMismatchError, match=re.escape(str(other))):
        embed_into(out, pictures, other)


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 2)
    embed(source, tmp_path / "out", precision="float32", workers=1)
    with pytest.raises(PlanMismatchError, match="pooling: 'avg', not 'max'"):
        embed(source, tmp_path / "out", precision="float32", workers=1, pooling="max")


def test_another_model_is_refused(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    with pytest.raises(PlanMismatchError, match="weights"):
        other = find_card("embedded").backbone("avg")
        run_plan(draft(out, pictures, backbone=other, images_per_part=5), engine=InlineEngine())


# -- destinations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", "sub/deep.txt", ".hidden", "features/part-00000000.parquet"])
def test_a_folder_with_something_else_in_it_is_untouched(tmp_path: Path, pictures: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(DestinationError) as caught:
        embed_into(out, pictures)
    assert name.partition("/")[0] in str(caught.value)
    assert str(out) in str(caught.value)
    assert snapshot(tmp_path) == before


def test_the_source_itself_is_no_destination(tmp_path: Path, pictures: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(DestinationError):
        embed_into(pictures, pictures)
    assert snapshot(tmp_path) == before


def test_an_empty_folder_is_a_destination(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "out").mkdir()
    assert embed_into(tmp_path / "out", pictures).is_complete


def test_a_destination_below_the_source_is_not_listed(tmp_path: Path, pictures: Path) -> None:
    out = pictures / "features"
    assert embed_into(out, pictures).summary.listed == 20
    assert embed_into(pictures / "second", pictures).summary.listed == 20


def test_a_file_as_destination_is_refused(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DestinationError, match="is a file"):
        embed_into(tmp_path / "out", pictures)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("place", ["below a file", "/proc/featurepress-test", "/dev/null/out"])
def test_a_destination_that_cannot_be_made_is_a_bad_request(tmp_path: Path, pictures: Path, place: str) -> None:
    if place == "below a file":
        (tmp_path / "file").write_text("mine")
        place = str(tmp_path / "file" / "out")
    before = snapshot(tmp_path)
    with pytest.raises(DestinationError) as caught:
        embed_into(Path(place), pictures)
    assert place in str(caught.value)
    assert "--out" in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_destination_with_parents_that_do_not_exist_is_made(tmp_path: Path, pictures: Path) -> None:
    assert embed_into(tmp_path / "a" / "b" / "out", pictures).is_complete


def test_the_time_expands() -> None:
    assert re.fullmatch(r"a/results\d{4}_\d\d_\d\d_\d\d_\d\d_\d\d", expand_time("a/results{time}"))
    assert expand_time("plain {braces}") == "plain {braces}"


def test_the_time_expands_in_embed(tmp_path: Path) -> None:
    features = embed(
        draw(tmp_path / "in", 2), tmp_path / "results{time}", precision="float32", workers=1, images_per_part=2
    )
    assert re.fullmatch(r"results(\d+_){5}\d+", Path(features.location).name)


# -- bad requests write nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"poolin": "avg"}, SettingError, "did you mean 'pooling'"),
        ({"pooling": "avgg"}, SettingError, "did you mean 'avg'"),
        ({"workers": 0}, SettingError, "at least 1|from 1"),
        ({"workers": 2.5}, SettingError, "integer"),
        ({"limit": 0}, SettingError, "at least 1"),
        ({"max_failures": 1.5}, SettingError, "from 0 to 1"),
        ({"memory_bytes": 1000}, SettingError, "memory_bytes"),
        ({"images_per_part": 0}, SettingError, "from 1"),
        ({"model": "embeded"}, ModelError, "embedded"),
        ({"labels": True}, SettingError, "'none', 'parent' or a pattern"),
    ],
)
def test_a_bad_setting_is_refused_and_nothing_is_written(
    tmp_path: Path, pictures: Path, options: dict[str, Any], error: type[RequestError], text: str
) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(error, match=text) as caught:
        embed(pictures, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for source, shown in ((tmp_path / "no", "no"), (tmp_path / "*.jpg", "*.jpg"), (tmp_path / "x" / "*", "x/*")):
        with pytest.raises(SourceError, match=re.escape(shown)):
            embed(source, tmp_path / "out", workers=1)
    with pytest.raises(SourceError, match="No source"):
        embed([], tmp_path / "out")
    assert names_below(tmp_path) == []


def test_overlapping_sources_are_refused(tmp_path: Path, pictures: Path) -> None:
    inner = next(path for path in pictures.iterdir() if path.is_dir())
    with pytest.raises(SourceError, match="overlap"):
        embed_into(tmp_path / "out", pictures, inner)
    with pytest.raises(SourceError, match="overlap"):
        embed_into(tmp_path / "out", pictures, pictures)
    assert not (tmp_path / "out").exists()


# -- resume --------------------------------------------------------------------------------------------------


def test_resume_of_nothing_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no"):
        with pytest.raises(FeatureSetError, match="nothing to resume"):
            fp.resume(place)
    assert list(tmp_path.iterdir()) == []


def test_resume_finishes_with_a_limit(tmp_path: Path) -> None:
    source, out = draw(tmp_path / "in", 12), tmp_path / "out"
    options: dict[str, Any] = {"precision": "float32", "workers": 1, "images_per_part": 2}
    whole = read_rows(Path(embed(source, tmp_path / "whole", limit=7, **options).location))
    assert len(whole) == 7
    embed(source, out, limit=7, **options)
    for name in ("manifest.json", "plan/listing.json", "plan/chunk-00000000.parquet"):
        (out / name).unlink()
    shutil.rmtree(out / "features")
    shutil.rmtree(out / "receipts")
    features = fp.resume(out)
    assert features.summary.listed == 7
    assert read_rows(out) == whole


def test_resume_refuses_to_change_what_shapes_the_features(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    with pytest.raises(SettingError, match="pooling"):
        fp.resume(out, pooling="max")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "lost",
    [
        ["manifest.json"],
        ["manifest.json", "receipts/part-00000001.json"],
        ["manifest.json", "features/part-00000001.parquet"],
        ["manifest.json", "features/part-00000001.parquet", "receipts/part-00000001.json"],
        ["manifest.json", "features/part-00000003.parquet", "failures/part-00000003.parquet"],
        ["manifest.json", "failures/part-00000000.parquet", "receipts/part-00000000.json"],
        ["manifest.json", "plan/listing.json"],
        ["features/part-00000002.parquet"],
    ],
    ids=lambda names: "+".join(name.split("/")[0] for name in names),
)
def test_what_is_lost_is_made_again(tmp_path: Path, lost: list[str]) -> None:
    source, out = draw(tmp_path / "in", 20, broken=True), tmp_path / "out"
    embed_into(out, source, max_failures=0.5)
    rows, failures, names = read_rows(out), read_failures(out), names_below(out)
    manifest = read_json(out / "manifest.json")
    for name in lost:
        (out / name).unlink(missing_ok=True)
    features = embed_into(out, source, max_failures=0.5)
    assert not features.summary.already_done
    assert (read_rows(out), read_failures(out), names_below(out)) == (rows, failures, names)
    again = read_json(out / "manifest.json")
    for name in ("listed", "embedded", "failed", "failed_by_kind", "parts", "bytes_read"):
        assert again[name] == manifest[name], name


def test_a_receipt_that_a_power_cut_left_empty_is_written_again(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    receipt = out / "receipts" / "part-00000001.json"
    before = receipt.read_bytes()
    receipt.write_bytes(b"")
    (out / "manifest.json").unlink()
    assert embed_into(out, pictures).summary.listed == 20
    assert receipt.read_bytes() == before


def test_the_listing_goes_on_behind_its_last_chunk(tmp_path: Path, pictures: Path) -> None:
    """Images that come before the last listed one are not taken up again; those behind it are new."""
    out = tmp_path / "out"
    layout = Layout((Tier(10, 5),))
    run_plan(replace(draft(out, pictures), layout=layout), engine=InlineEngine())
    listed = sorted(read_rows(out))
    lost = ["manifest.json", "plan/listing.json", "plan/chunk-00000001.parquet", "plan/chunk-00000002.parquet"]
    lost += [f"{kind}-0000000{i}{end}" for i in (2, 3) for kind, end in (("features/part", ".parquet"),)]
    for name in lost:
        (out / name).unlink(missing_ok=True)
    for name in ("!before.jpg", "~behind.jpg"):
        shutil.copy(pictures / Path(listed[0]).relative_to(pictures), pictures / name)
    run_plan(replace(draft(out, pictures), layout=layout), engine=InlineEngine())
    assert sorted(read_rows(out)) == [*listed, str(pictures / "~behind.jpg")]


def test_a_lost_csv_file_is_made_again(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures, format="csv", parts=3)
    before = snapshot(out / "csv")
    (out / "csv" / "part-00001.csv").unlink()
    assert not embed_into(out, pictures, format="csv", parts=3).summary.already_done
    assert snapshot(out / "csv").keys() == before.keys()


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("manifest.json", []),
        ("plan/listing.json", ["manifest.json"]),
        ("plan/chunk-00000000.parquet", ["manifest.json", "features/part-00000000.parquet"]),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, pictures: Path, name: str, lost: list[str]) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    (out / name).write_bytes((out / name).read_bytes()[:40])
    for other in lost:
        (out / other).unlink()
    with pytest.raises(FeatureSetError, match=f"{name}' is damaged: "):
        embed_into(out, pictures)


@pytest.mark.parametrize("kind", ["features", "failures"])
def test_a_damaged_part_is_named(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    features = embed_into(out, draw(tmp_path / "in", 20, broken=True), max_failures=1.0)
    path = next((out / kind).iterdir())
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FeatureSetError, match=f"{kind}/{path.name}' is damaged: "):
        len(fp.open_features(out)), features.failures


def test_unknown_columns_are_refused(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(SettingError, match=r"columns are uri, width.* Got 'nope'"):
        embed_into(tmp_path / "out", pictures).to_table(["nope"])


def test_a_source_that_has_gone_before_a_resume_stops_it_until_it_is_back(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    rows = sorted(read_rows(out))
    (out / "manifest.json").unlink()
    (out / "features" / "part-00000002.parquet").unlink()
    pictures.rename(tmp_path / "away")
    with pytest.raises(StorageError, match=f"The source '{pictures}' is gone: .* Restore it and resume"):
        embed_into(out, pictures)
    (tmp_path / "away").rename(pictures)
    embed_into(out, pictures)
    assert sorted(read_rows(out)) == rows
    assert read_failures(out) == []
    assert leftovers(out) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"format": "something"}, "not a featurepress plan"),
        ({"settings": {"listing": {"surprise": 1}}}, "not a featurepress plan"),
        ({"sources": 7}, "not a featurepress plan"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(
    tmp_path: Path, pictures: Path, change: dict[str, Any], text: str
) -> None:
    out = tmp_path / "out"
    embed_into(out, pictures)
    plan = out / "plan" / "plan.json"
    plan.write_text(json.dumps({**read_json(plan), **change}))
    before = snapshot(out)
    calls: list[Callable[[], object]] = [
        functools.partial(fp.resume, out),
        functools.partial(fp.open_features, out),
        functools.partial(embed_into, out, pictures),
    ]
    for call in calls:
        with pytest.raises(FeatureSetError, match=text) as caught:
            call()
        assert str(plan) in str(caught.value)
    assert snapshot(out) == before


def test_a_plan_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out" / "plan").mkdir(parents=True)
    for content in (b"", b"{", b"[]", b"\xff"):
        (tmp_path / "out" / "plan" / "plan.json").write_bytes(content)
        with pytest.raises(FeatureSetError, match="not a featurepress plan"):
            fp.resume(tmp_path / "out")


# -- too many failures ---------------------------------------------------------------------------------------


def test_too_many_failures_are_told_after_everything_is_written(tmp_path: Path, pictures: Path) -> None:
    (pictures / "empty.jpg").write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(TooManyFailuresError, match=r"1 of 21 images failed \(4\.8%\).*4\.0%") as caught:
        embed_into(out, pictures, max_failures=0.04)
    assert caught.value.result.is_complete
    assert len(read_rows(out)) == 20
    before = snapshot(out)
    with pytest.raises(TooManyFailuresError):
        embed_into(out, pictures, max_failures=0.04)
    assert embed_into(out, pictures, max_failures=0.05).summary.already_done
    assert snapshot(out) == before


def test_as_many_failures_as_allowed_are_no_error(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 9)
    (source / "empty.jpg").write_bytes(b"")
    assert embed_into(tmp_path / "out", source, max_failures=0.1).summary.failed == 1


def test_a_resumed_run_keeps_its_model(tmp_path: Path) -> None:
    embed(draw(tmp_path / "in", 2), tmp_path / "out", precision="float32", workers=1)
    with pytest.raises(SettingError, match="model cannot change now"):
        fp.resume(tmp_path / "out", model="mobilenet_v2")  # type: ignore[call-arg]


def test_the_name_of_a_model_is_no_difference(tmp_path: Path) -> None:
    source, options = draw(tmp_path / "in", 2), {"precision": "float32", "workers": 1}
    embed(source, tmp_path / "out", model="embedded", **options)
    again = embed(source, tmp_path / "out", model="embedded-v1", **options)
    assert again.summary is not None
    assert again.summary.already_done
