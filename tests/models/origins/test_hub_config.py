"""The preprocessing in a hub's config, compared with transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurepress.errors import ModelError, SettingError
from featurepress.models.origins.files import preprocessing
from featurepress.models.origins.hub import HubName, parse, read_config
from featurepress.specs import PreprocessSpec

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NAME = "hf:org/net"

# As they lie on the hub, with what matters only.
VIT = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": 224,
}
DINO = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "BitImageProcessor",
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
CLIP = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
CONVNEXT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": {"shortest_edge": 224},
}
EFFICIENT = {
    "do_center_crop": False,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "EfficientNetImageProcessor",
    "image_std": [0.47853944, 0.4732864, 0.47434163],
    "resample": 0,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "size": {"height": 240, "width": 240},
}


def steps(config: dict[str, Any]) -> PreprocessSpec:
    """Return the preprocessing of a config."""
    choices = read_config(config, NAME)
    assert choices.size is not None
    facts = {"dtype": "float32", "height": choices.size, "width": choices.size}
    return preprocessing("onnx", choices, facts)[0]


SHAPES: dict[str, tuple[dict[str, Any], tuple[int, str, int | None, str]]] = {
    "ViT": (VIT, (224, "stretch", None, "bilinear")),
    "ViT, sides": ({**VIT, "size": {"height": 384, "width": 384}}, (384, "stretch", None, "bilinear")),
    "ViT, pair": ({**VIT, "size": [224, 224]}, (224, "stretch", None, "bilinear")),
    "DINO": (DINO, (224, "crop", 256, "bicubic")),
    "DINO, not cut": (
        {**DINO, "size": {"height": 98, "width": 98}, "do_center_crop": False},
        (98, "stretch", None, "bicubic"),
    ),
    "CLIP": (CLIP, (224, "crop", 224, "bicubic")),
    "CLIP, new words": (
        {**CLIP, "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
        (336, "crop", 336, "bicubic"),
    ),
    "ConvNeXT": (CONVNEXT, (224, "crop", 256, "bicubic")),
    "ConvNeXT, no share": ({k: v for k, v in CONVNEXT.items() if k != "crop_pct"}, (224, "crop", 256, "bicubic")),
    "ConvNeXT, share of null": ({**CONVNEXT, "crop_pct": None}, (224, "crop", 256, "bicubic")),
    "ConvNeXT, another share": ({**CONVNEXT, "crop_pct": 0.95}, (224, "crop", 235, "bicubic")),
    "ConvNeXT, large": (
        {**CONVNEXT, "size": {"shortest_edge": 384}, "crop_pct": 1.0},
        (384, "stretch", None, "bicubic"),
    ),
    "EfficientNet": (EFFICIENT, (240, "stretch", None, "nearest")),
    "lanczos": ({**VIT, "resample": 1}, (224, "stretch", None, "lanczos")),
    "box": ({**VIT, "resample": 4}, (224, "stretch", None, "box")),
    "nothing said of the way": (
        {k: v for k, v in VIT.items() if k != "resample"},
        (224, "stretch", None, "bilinear"),
    ),
}


@pytest.mark.parametrize("case", SHAPES)
def test_size_and_crop_are_read(case: str) -> None:
    config, (side, resize, edge, interpolation) = SHAPES[case]
    spec = steps(config)
    assert (spec.height, spec.width, spec.resize, spec.shortest_edge) == (side, side, resize, edge)
    assert spec.interpolation == interpolation
    assert (spec.dtype, spec.channel_order) == ("uint8", "RGB")


def normalised(config: dict[str, Any], levels: Any) -> Any:
    """Compute what the image processors of transformers compute."""
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    values = levels * factor - (1 if config.get("rescale_offset") else 0)
    if config.get("do_normalize", True):
        values = (values - config["image_mean"]) / config["image_std"]
    return values


NORMALISATIONS: dict[str, dict[str, Any]] = {
    "ViT": VIT,
    "DINO": DINO,
    "CLIP": CLIP,
    "EfficientNet": EFFICIENT,
    "with an offset": {**EFFICIENT, "rescale_offset": True, "rescale_factor": 1 / 127.5},
    "with an offset only": {
        **EFFICIENT,
        "rescale_offset": True,
        "rescale_factor": 1 / 127.5,
        "do_normalize": False,
    },
    "to one only": {**VIT, "do_normalize": False},
    "levels as they are": {**VIT, "do_normalize": False, "do_rescale": False},
    "levels, normalised": {
        **VIT,
        "do_rescale": False,
        "image_mean": [127.5, 127.0, 126.0],
        "image_std": [58.0, 57.0, 5],
    },
    "another factor": {**DINO, "rescale_factor": 1 / 128},
    "one for all": {**VIT, "image_mean": 0.5, "image_std": 0.25},
}


@pytest.mark.parametrize("case", NORMALISATIONS)
def test_the_normalisation_is_that_of_transformers(case: str) -> None:
    config = NORMALISATIONS[case]
    spec = steps(config)
    levels = np.random.default_rng(0).integers(0, 256, (20, 3)).astype(float)
    expected = normalised(config, levels)
    np.testing.assert_allclose((levels - spec.mean) / spec.scale, expected, atol=1e-9 * np.abs(expected).max())


STRANGE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no size": {k: v for k, v in VIT.items() if k != "size"},
    "two sides": {**VIT, "size": {"height": 224, "width": 200}},
    "a longest side": {**VIT, "size": {"longest_edge": 224}},
    "shortest side, not cut": {**DINO, "do_center_crop": False},
    "cut to two sides": {**DINO, "crop_size": {"height": 224, "width": 200}},
    "cut without saying to what": {k: v for k, v in DINO.items() if k != "crop_size"},
    "stretched, then cut": {**DINO, "size": {"height": 256, "width": 256}},
    "not resized": {**VIT, "do_resize": False},
    "DeiT, stretched to both sides, then cut": {
        **CLIP,
        "size": 256,
        "feature_extractor_type": "DeiTFeatureExtractor",
    },
    "LeViT, enlarged by its own share": {**DINO, "image_processor_type": "LevitImageProcessor"},
    "colours turned around": {**DINO, "do_flip_channel_order": True},
    "padded": {**VIT, "do_pad": True},
    "a way that is none": {**VIT, "resample": 9},
    "a way in words": {**VIT, "resample": "bicubic"},
    "a way of nothing": {**VIT, "resample": None},
    "a list of ways": {**VIT, "resample": [3]},
    "no mean": {k: v for k, v in VIT.items() if k != "image_mean"},
    "two means": {**VIT, "image_mean": [0.5, 0.5]},
    "a mean in words": {**VIT, "image_mean": "half"},
    "no deviation": {**VIT, "image_std": [0.0, 0.5, 0.5]},
    "a factor in words": {**VIT, "rescale_factor": "small"},
    "a factor of nothing": {**VIT, "rescale_factor": 0},
    "no factor": {**VIT, "rescale_factor": None},
    "a share of nothing": {**CONVNEXT, "crop_pct": 0},
    "an edge in words": {**DINO, "size": {"shortest_edge": "wide"}},
    "an edge of ConvNeXT in words": {**CONVNEXT, "size": {"shortest_edge": "wide"}},
    "a size in words": {**VIT, "size": "large"},
    "sides in words": {**VIT, "size": {"height": "a", "width": "a"}},
}


@pytest.mark.parametrize("case", STRANGE)
def test_unknown_preprocessing_is_refused(case: str) -> None:
    with pytest.raises((ModelError, SettingError)) as caught:
        steps(STRANGE[case])
    assert "\n" not in str(caught.value)


def test_an_error_names_the_model_and_the_remedy() -> None:
    with pytest.raises(ModelError) as caught:
        read_config({**DINO, "do_center_crop": False}, NAME)
    assert NAME in str(caught.value)
    assert "shortest_edge" in str(caught.value)
    assert "featurepress models add" in str(caught.value)


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:org/net", HubName("org/net", None, None)),
        ("hf:org-1/net.v2_b", HubName("org-1/net.v2_b", None, None)),
        ("hf:org/net@main", HubName("org/net", "main", None)),
        ("hf:org/net@refs/pr/1", HubName("org/net", "refs/pr/1", None)),
        ("hf:org/net:onnx/model.onnx", HubName("org/net", None, "onnx/model.onnx")),
        ("hf:org/net@v1:a b.onnx", HubName("org/net", "v1", "a b.onnx")),
    ],
)
def test_a_name_is_parsed(name: str, expected: HubName) -> None:
    assert parse(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:net",
        "hf:a/b/c",
        "org/net",
        "hf:org/net@",
        "hf:org/net:",
        "hf:org/net:../x.onnx",
        "hf:org/net:a/../x",
        "hf:org/net?x",
        "hf:org/net#x",
        "hf:../net",
        "hf:org/..",
        "hf:org/net@../x",
        "hf:org/net\n",
        "hf:https://a/b",
    ],
)
def test_an_invalid_hub_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="must be written hf:org/repo"):
        parse(name)
