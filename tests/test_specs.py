"""What travels between stages: names, hashes and schemas that lie on disk must not change by accident."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from featurepress.ledger.names import part_name
from featurepress.ledger.schemas import chunk_schema, failure_schema, part_schema
from featurepress.models.catalog import EMBEDDED_V1
from featurepress.specs import BackboneSpec, Failure, ImageRef, PreprocessSpec, Receipt, SourceSpec

SPEC = EMBEDDED_V1.backbone("avg")


def test_a_reference_is_ordered_by_its_key_or_its_uri() -> None:
    assert ImageRef("ü.jpg", 0, 1, "1").order == "ü.jpg".encode()
    assert ImageRef("\\xff.jpg", 0, 1, "1", key=b"\xff.jpg").order == b"\xff.jpg"
    assert ImageRef("empty", 0, 1, "1", key=b"").order == b""


def test_a_failure_is_counted_without_its_detail() -> None:
    assert Failure("a", "decode", "truncated: 3 of 7 bytes: really").kind == "decode: truncated"
    assert Failure("a", "read", "vanished since listing").kind == "read: vanished since listing"


@pytest.mark.parametrize(("pooling", "n_features"), [("avg", 1280), ("max", 1280), ("flatten", 11_520)])
def test_number_of_features(pooling: str, n_features: int) -> None:
    assert EMBEDDED_V1.backbone(pooling).n_features == n_features


FINGERPRINTS = {"avg": "4d219424ba268d72", "flatten": "222145a6c36d7ec6", "max": "79c6e180eff2af1d"}


def test_the_fingerprint_of_the_embedded_model_never_changes() -> None:
    fingerprints = {pooling: EMBEDDED_V1.backbone(pooling).fingerprint for pooling in ("avg", "flatten", "max")}
    assert fingerprints == FINGERPRINTS


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "0" * 64},
        {"output": "another"},
        {"pooling": "max"},
        {"preprocess": PreprocessSpec(height=96, width=97)},
        {"preprocess": PreprocessSpec(height=96, width=96, mean=(0.0,))},
        {"preprocess": PreprocessSpec(height=96, width=96, interpolation="bilinear")},
    ],
)
def test_the_fingerprint_changes_with_the_feature_space(change: dict[str, Any]) -> None:
    assert replace(SPEC, **change).fingerprint != SPEC.fingerprint


@pytest.mark.parametrize("change", [{"runtime": "fake"}, {"model": "another name"}, {"options": {"streams": 2}}])
def test_the_fingerprint_keeps_when_the_feature_space_does(change: dict[str, Any]) -> None:
    assert replace(SPEC, **change).fingerprint == SPEC.fingerprint


def test_descriptions_survive_json_and_pickle() -> None:
    source = SourceSpec("folder", "ä/*.jpg", "/b", {"all_files": True})
    assert SourceSpec(**json.loads(json.dumps(source.to_json()))) == source
    assert BackboneSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
    assert pickle.loads(pickle.dumps((source, SPEC))) == (source, SPEC)


def test_descriptions_are_hashable_and_compare_by_value() -> None:
    options = {"include": ["*.jpg"], "nested": {"depth": [1, 2]}}
    source = SourceSpec("folder", "a", "/", options)
    options["include"] = []
    assert source.options["include"] == ("*.jpg",)
    again = SourceSpec(**json.loads(json.dumps(source.to_json())))
    assert {source, again} == {source}
    assert hash(replace(SPEC, projection={"sha256": "0", "n_components": 2})) != hash(SPEC)
    assert source.options == {"nested": {"depth": [1, 2]}, "include": ["*.jpg"]}
    assert source.options != {"include": ["*.png"]}


def test_a_receipt_survives_json_and_knows_whether_it_balances() -> None:
    receipt = Receipt(
        shard=1, generation=1, listed=5, embedded=3, failed=2, failed_by_kind={"read: x": 2}, bytes_read=9,
        seconds=0.5, precision="float32", cpu="c", host="h", versions={"numpy": "2"},
    )  # fmt: skip
    assert Receipt(**json.loads(json.dumps(receipt.to_json()))) == receipt
    assert receipt.balances
    assert hash(receipt) == hash(replace(receipt))
    assert not replace(receipt, embedded=2).balances
    assert not replace(receipt, listed=4).balances


def test_part_names_sort_as_their_numbers() -> None:
    assert part_name(0) == "features/part-00000000.parquet"
    assert part_name(12_345) == "features/part-00012345.parquet"
    numbers = [0, 9, 10, 99, 1_000, 99_999_999]
    assert sorted(map(part_name, numbers)) == [part_name(number) for number in numbers]


def test_the_schemas_on_disk() -> None:
    part = part_schema(("label",), 3)
    assert part.names == ["uri", "label", "width", "height", "sha256", "features"]
    assert part.field("features").type == pa.list_(pa.float32(), 3)
    assert not part.field("uri").nullable
    assert not part.field("features").nullable
    chunk = chunk_schema(("label",))
    assert chunk.names == ["uri", "source", "size", "version", "label", "key", "problem"]
    assert failure_schema().names == ["uri", "stage", "reason"]


def test_differences_of_feature_spaces_are_named_field_by_field() -> None:
    other = replace(SPEC, model="mine", weights_sha256="0" * 64, preprocess=replace(SPEC.preprocess, height=224))
    assert SPEC.differences(other) == [
        "model: 'embedded-v1', not 'mine'",
        f"weights_sha256: '{SPEC.weights_sha256[:12]}…', not '000000000000…'",
        "preprocess height: 96, not 224",
    ]
    # Another name for the same thing is the same thing.
    assert SPEC.differences(replace(SPEC, model="mine")) == []


def test_what_makes_no_difference_is_not_in_the_fingerprint() -> None:
    bilinear = replace(SPEC.preprocess, interpolation="bilinear", dtype="float32", antialias=False)
    plain, smooth = (replace(SPEC, preprocess=replace(bilinear, antialias=one)) for one in (False, True))
    assert plain.fingerprint != smooth.fingerprint
    cropped = replace(bilinear, resize="crop", shortest_edge=128)
    assert replace(SPEC, preprocess=cropped).fingerprint != plain.fingerprint
    assert "antialias" not in SPEC.feature_space["preprocess"]
