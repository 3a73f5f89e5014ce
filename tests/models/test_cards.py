"""Model cards and their files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields

import onnx
import pytest

from featurepress.errors import ModelError
from featurepress.models.card import ModelCard
from featurepress.models.catalog import CARDS, EMBEDDED_V1, find_card
from featurepress.models.store import BUNDLED, model_file


@pytest.fixture(params=CARDS, ids=lambda card: card.name)
def card(request: pytest.FixtureRequest) -> ModelCard:
    card: ModelCard = request.param
    return card


def test_every_line_of_a_card_is_filled_in(card: ModelCard) -> None:
    for name in {item.name for item in fields(card)} - {
        "pooled",
        "batch",
        "n_bytes",
        "notes",
        "origin",
        "versions",
    }:
        assert getattr(card, name), name
    assert all(0 < accuracy < 1 for row in card.quality.values() for accuracy in row)


def test_a_card_survives_json(card: ModelCard) -> None:
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_the_file_is_the_one_on_the_card(card: ModelCard) -> None:
    path = model_file(card.file, card.weights_sha256)
    assert path == BUNDLED / card.file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card.weights_sha256


def test_the_graph_of_the_bundled_file_matches_its_card(card: ModelCard) -> None:
    graph = onnx.load(str(model_file(card.file, card.weights_sha256))).graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    (given,) = (value.name for value in graph.input)
    assert shapes[given][1:] == [card.preprocess.height, card.preprocess.width, 3]
    assert tuple(shapes[card.output][1:]) == card.grid
    n_weights = sum(onnx.numpy_helper.to_array(one).size for one in graph.initializer)
    assert 0.9 < n_weights / card.n_parameters < 1.1


def test_names_and_aliases_are_unique() -> None:
    names = [name for card in CARDS for name in (card.name, *card.aliases)]
    assert len(set(names)) == len(names)


def test_a_card_is_found_by_its_name_and_its_aliases() -> None:
    assert find_card("embedded") is find_card("embedded-v1") is EMBEDDED_V1


@pytest.mark.parametrize(("given", "near"), [("embeded", "'embedded"), ("embedded-v2", "'embedded-v1'")])
def test_an_unknown_model_lists_close_matches(given: str, near: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_card(given)
    assert str(caught.value).startswith(f"There is no model '{given}'; did you mean ")
    assert near in str(caught.value)
    assert "featurepress models list" in str(caught.value)


def test_another_hash_is_refused(card: ModelCard) -> None:
    with pytest.raises(ModelError, match=r"has the hash [0-9a-f]{12}…, but 000000000000… was stored\. Reinstall"):
        model_file(card.file, "0" * 64)


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ModelError, match=r"The model of this plan \(f{32}\) is not in .* featurepress models pull"):
        model_file("f" * 32, "0" * 64)


def test_a_card_describes_its_backbone(card: ModelCard) -> None:
    spec = card.backbone("flatten")
    assert spec.n_features == card.grid[0] * card.grid[1] * card.grid[2]
    assert card.backbone("avg").n_features == card.backbone("max").n_features == card.grid[2]
    assert len({card.backbone(pooling).fingerprint for pooling in ("avg", "flatten", "max")}) == 3
