"""Before a plan: the precision is decided, and something must be there that can be embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurepress.errors import ModelError, RequestError, SourceError
from featurepress.runs.verbs import run_plan
from featurepress.testing import ABORT, InlineEngine, fake_backbone, memory_source
from tests.running import draft, draw, read_failures, read_json, read_rows


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return draw(tmp_path / "in", 20)


# -- the precision -------------------------------------------------------------------------------------------


def with_precision(out: Path, source: Path, asked: str, **options: Any) -> dict[str, Any]:
    plan = draft(out, source, backbone=fake_backbone(**options), precision=asked, images_per_part=5)
    run_plan(plan, engine=InlineEngine())
    return read_json(out / "plan" / "plan.json")  # type: ignore[no-any-return]


def test_auto_takes_a_faithful_bfloat16(tmp_path: Path, pictures: Path) -> None:
    plan = with_precision(tmp_path / "out", pictures, "auto", bfloat16=True, error=0.001)
    assert plan["precision"] == "bfloat16"
    assert plan["certificate"]["asked"] == "auto"
    assert 0.999 < plan["certificate"]["min_cosine"] <= plan["certificate"]["mean_cosine"] < 1.0
    assert plan["certificate"]["n_images"] == 20
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["precision"] == {"images": {"bfloat16": 20}, "certificate": plan["certificate"]}


def test_auto_falls_back_to_float32_and_says_so(tmp_path: Path, pictures: Path) -> None:
    plan = with_precision(tmp_path / "out", pictures, "auto", bfloat16=True, error=1.0)
    assert plan["precision"] == "float32"
    assert plan["certificate"]["bfloat16_supported"] is True
    assert 0 < plan["certificate"]["min_cosine"] < 0.999
    with_precision(tmp_path / "plain", pictures, "float32")
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "plain")
    assert read_json(tmp_path / "out" / "manifest.json")["precision"]["images"] == {"float32": 20}


def test_one_unfaithful_image_is_enough_to_fall_back(tmp_path: Path, pictures: Path) -> None:
    """The least cosine decides, not the mean: one picture whose features come out as zero or NaN."""
    black = memory_source({"a.png": black_png(), **{p.name: p.read_bytes() for p in pictures.rglob("*.jpg")}})
    backbone = fake_backbone(bfloat16=True, error=0.0, sabotage="nan")
    run_plan(draft(tmp_path / "out", black, backbone=backbone), engine=InlineEngine())
    plan = read_json(tmp_path / "out" / "plan" / "plan.json")
    assert plan["precision"] == "float32"
    assert plan["certificate"]["min_cosine"] < 0.999
    assert read_failures(tmp_path / "out") == [("a.png", "infer", "features are not finite")]


def test_features_that_are_zero_in_both_precisions_agree(tmp_path: Path) -> None:
    source = memory_source({"a.png": black_png()})
    run_plan(draft(tmp_path / "out", source, backbone=fake_backbone(bfloat16=True)), engine=InlineEngine())
    plan = read_json(tmp_path / "out" / "plan" / "plan.json")
    assert (plan["precision"], plan["certificate"]["min_cosine"]) == ("bfloat16", 1.0)


def black_png() -> bytes:
    import cv2
    import numpy as np

    return cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()


def test_bfloat16_as_asked_for_is_taken_with_its_certificate(tmp_path: Path, pictures: Path) -> None:
    plan = with_precision(tmp_path / "out", pictures, "bfloat16", bfloat16=True, error=1.0)
    assert plan["precision"] == "bfloat16"
    assert plan["certificate"]["min_cosine"] < 0.999


def test_bfloat16_without_the_hardware_is_refused(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(RequestError, match="bfloat16"):
        with_precision(tmp_path / "out", pictures, "bfloat16", bfloat16=False)
    assert not (tmp_path / "out").exists()


def test_float32_is_not_compared_with_anything(tmp_path: Path, pictures: Path) -> None:
    plan = with_precision(tmp_path / "out", pictures, "float32", bfloat16=True, error=1.0)
    assert (plan["precision"], plan["certificate"]) == ("float32", {"asked": "float32"})


# -- the probe -----------------------------------------------------------------------------------------------


def test_a_thousand_bad_images_stop_the_run_before_anything_is_written(tmp_path: Path) -> None:
    source = memory_source({f"{i:05d}.jpg": b"no image %d" % i for i in range(1_200)})
    with pytest.raises(SourceError) as caught:
        run_plan(draft(tmp_path / "out", source), engine=InlineEngine())
    text = str(caught.value)
    assert "All of the first 1000 images failed" in text
    assert "'00000.jpg'" in text
    assert "not an image" in text
    assert "\n" not in text
    assert not (tmp_path / "out").exists()


def test_the_only_image_is_bad(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"The only image failed.*zero bytes"):
        run_plan(draft(tmp_path / "out", memory_source({"a.jpg": b""})), engine=InlineEngine())
    assert not (tmp_path / "out").exists()


def test_one_good_image_behind_many_bad_ones_is_enough(tmp_path: Path, pictures: Path) -> None:
    good = next(pictures.rglob("*.jpg")).read_bytes()
    source = memory_source({**{f"{i:05d}.jpg": b"bad" for i in range(990)}, "99999.jpg": good})
    plan = draft(tmp_path / "out", source, max_failures=1.0)
    assert run_plan(plan, engine=InlineEngine()).summary.embedded == 1


def test_a_mark_of_the_testing_module_is_harmless_to_the_real_decoder(tmp_path: Path, pictures: Path) -> None:
    data = next(pictures.rglob("*.jpg")).read_bytes()
    source = memory_source({"a.jpg": data, "b.jpg": ABORT, "c.jpg": data + ABORT})
    assert run_plan(draft(tmp_path / "out", source, max_failures=1.0), engine=InlineEngine()).summary.failed == 1


def test_a_model_that_gives_no_numbers_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """All pictures of the first batch are black, for which this one gives NaN."""
    black = memory_source({f"{n}.png": black_png() for n in range(6)})
    for precision in ("auto", "float32"):
        plan = draft(tmp_path / "out", black, backbone=fake_backbone(sabotage="nan"), precision=precision)
        with pytest.raises(ModelError, match="NaN or infinite") as caught:
            run_plan(plan, engine=InlineEngine())
        assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()
