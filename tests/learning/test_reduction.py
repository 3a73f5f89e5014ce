"""Reduced sets: the same rows with fewer features, on any engine, resumable, and refused with other sets."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import sklearn.decomposition

import featurepress as fp
from featurepress import ledger
from featurepress.analysis import passes
from featurepress.analysis.passes import SumMoments, SumSketches
from featurepress.engines import LocalEngine
from featurepress.errors import (
    AnalysisError,
    DestinationError,
    FeatureSetError,
    PlanMismatchError,
    SettingError,
    StoppedError,
)
from featurepress.features.feature_set import FeatureSet
from featurepress.learning import reduction
from featurepress.ledger import Plan
from featurepress.ledger.names import MOMENTS
from featurepress.storage import FolderStorage
from tests.running import Watched, draw, embed, read_failures, read_json, run_cli

Result = TypeVar("Result")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw images and embed them: 15 parts of 8, with three failures."""
    folder = tmp_path_factory.mktemp("set")
    draw(folder / "in", 117, broken=True)
    options: dict[str, Any] = {
        "labels": "parent",
        "images_per_part": 8,
        "precision": "float32",
        "max_failures": 1.0,
    }
    embed(str(folder / "in"), folder / "out", **options)
    return folder


@pytest.fixture
def features(drawn: Path, tmp_path: Path) -> FeatureSet:
    """Return a copy of the set, without stored sums."""
    shutil.copytree(drawn / "out", tmp_path / "features")
    return fp.open_features(tmp_path / "features")


def test_a_reduced_set_has_the_same_rows_and_failures(features: FeatureSet, tmp_path: Path) -> None:
    reduced = fp.reduce(features, tmp_path / "out", n_components=12)
    pca = reduced.pca
    assert (reduced.is_complete, len(reduced), reduced.n_features) == (True, 117, 12)
    assert np.array_equal(reduced.uris, features.uris)
    assert reduced.labels is not None
    assert features.labels is not None
    assert np.array_equal(reduced.labels, features.labels)
    assert reduced.to_table(["sha256", "width"]).equals(features.to_table(["sha256", "width"]))
    assert read_failures(tmp_path / "out") == read_failures(Path(features.location))
    X = features.to_numpy()
    np.testing.assert_allclose(reduced.to_numpy(), pca.transform(X), atol=1e-5)
    theirs = sklearn.decomposition.PCA(12, svd_solver="full").fit(X.astype(np.float64))
    np.testing.assert_allclose(pca.explained_variance_ratio_, theirs.explained_variance_ratio_, rtol=1e-6)
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert (manifest["listed"], manifest["embedded"], manifest["failed"], manifest["parts"]) == (120, 117, 3, 15)
    assert manifest["reduced"]["explained_variance_ratio"] == pytest.approx(
        pca.explained_variance_ratio_.sum(), abs=1e-6
    )


def test_an_opened_reduced_set_has_its_projection(features: FeatureSet, tmp_path: Path) -> None:
    pca = fp.reduce(features, tmp_path / "out", variance=0.5).pca
    assert pca.explained_variance_ratio_.sum() >= 0.5
    opened = fp.open_features(tmp_path / "out")
    assert isinstance(opened, fp.ReducedFeatureSet)
    assert np.array_equal(opened.pca.components_, pca.components_)
    assert opened.reduction["features"] == features.location
    assert not hasattr(fp.open_features(features.location), "pca")


def test_the_default_destination_has_the_time_in_its_name(
    features: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(fp.reduce(features, n_components=3).location).name.startswith("reduced20")
    assert (tmp_path / "features" / MOMENTS).is_file()


def test_a_destination_inside_the_source_is_refused(features: FeatureSet, tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="feature set"):
        fp.reduce(features, tmp_path / "features" / "features" / "reduced", n_components=3)
    assert not (tmp_path / "features" / "features" / "reduced").exists()


def test_the_fingerprint_depends_on_the_projection(features: FeatureSet, tmp_path: Path) -> None:
    for name, n in (("a", 12), ("b", 12), ("c", 13)):
        fp.reduce(features, tmp_path / name, n_components=n)
    a, b, c = (fp.open_features(tmp_path / name) for name in "abc")
    assert a.fingerprint == b.fingerprint
    assert len({features.fingerprint, a.fingerprint, c.fingerprint}) == 3
    a.require_comparable(b)
    with pytest.raises(PlanMismatchError, match="projection"):
        a.require_comparable(c)
    with pytest.raises(PlanMismatchError, match="projection"):
        a.require_comparable(features)


def test_later_images_reuse_the_projection(features: FeatureSet, tmp_path: Path) -> None:
    pca = fp.reduce(features, tmp_path / "first", n_components=12).pca
    draw(tmp_path / "later", 20)
    later = embed(str(tmp_path / "later"), tmp_path / "later-features", precision="float32")
    second = fp.reduce(later, tmp_path / "second", using=tmp_path / "first")
    first = fp.open_features(tmp_path / "first")
    first.require_comparable(second)
    np.testing.assert_allclose(second.to_numpy(), pca.transform(later.to_numpy()), atol=1e-5)
    assert second.pca.n_samples_ == 117
    third = fp.reduce(later, tmp_path / "third", using=second)  # any set with this projection will do
    assert np.array_equal(third.pca.components_, pca.components_)


# -- where and how often parts are read ----------------------------------------------------------------------


def parts_read(engine: Watched) -> list[str]:
    sums = [(task, shard) for task, shard in engine.tasks if isinstance(task, SumMoments | SumSketches)]
    return [name for task, shard in sums for name in task.groups[shard]]


def test_sums_are_stored_and_extended(drawn: Path, tmp_path: Path) -> None:
    images = shutil.copytree(drawn / "in", tmp_path / "in")
    options: dict[str, Any] = {"images_per_part": 8, "precision": "float32", "max_failures": 1.0}
    set_ = embed(str(images), tmp_path / "features", **options)
    engine = Watched()
    fp.reduce(set_, tmp_path / "1", n_components=5, engine=engine)
    assert sorted(parts_read(engine)) == sorted(set_.parts)
    engine = Watched()
    fp.reduce(fp.open_features(tmp_path / "features"), tmp_path / "2", n_components=7, engine=engine)
    assert parts_read(engine) == []

    draw(images / "zz", 20)
    grown = fp.update(tmp_path / "features")
    engine = Watched()
    pca = fp.reduce(grown, tmp_path / "3", n_components=5, engine=engine).pca
    assert sorted(parts_read(engine)) == sorted(set(grown.parts) - set(set_.parts))
    shutil.rmtree(tmp_path / "features" / "analysis")
    fresh = fp.reduce(grown, tmp_path / "4", n_components=5).pca
    np.testing.assert_allclose(pca.explained_variance_, fresh.explained_variance_, rtol=1e-9)
    assert pca.n_samples_ == fresh.n_samples_ == len(grown)

    next(images.glob("zz/*/*.jpg")).unlink()
    engine = Watched()
    changed = fp.update(tmp_path / "features")
    last = fp.reduce(changed, tmp_path / "5", n_components=5, engine=engine).pca
    assert last.n_samples_ == len(changed) == len(grown) - 1
    assert sorted(parts_read(engine)) == sorted(changed.parts)


def test_damaged_sums_are_recomputed(features: FeatureSet, tmp_path: Path) -> None:
    first = fp.reduce(features, tmp_path / "first", n_components=5).pca
    path = tmp_path / "features" / MOMENTS
    for i, damage in enumerate((b"", b"nothing", path.read_bytes()[:-100])):
        path.write_bytes(damage)
        pca = fp.reduce(features, tmp_path / f"out{i}", n_components=5).pca
        assert np.array_equal(pca.components_, first.components_)


@pytest.mark.parametrize("solver", ["exact", "randomized"])
def test_several_processes_fit_the_same_projection(
    features: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solver: Any
) -> None:
    alone = fp.reduce(features, tmp_path / "alone", n_components=6, solver=solver).pca
    (Path(features.location) / MOMENTS).unlink(missing_ok=True)
    monkeypatch.setattr(passes, "PARTS_A_TASK", 4)
    steps: list[tuple[str, int, int]] = []
    with LocalEngine(2) as engine:
        spread = fp.reduce(
            features,
            tmp_path / "spread",
            n_components=6,
            solver=solver,
            engine=engine,
            progress=lambda p: steps.append((p.doing, p.done_bytes, p.total_bytes)),
        ).pca
    np.testing.assert_allclose(spread.explained_variance_, alone.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(np.abs(spread.components_ @ alone.components_.T), np.eye(6), atol=1e-3)
    assert ("fitting", 117 * 4 * 1280, 117 * 4 * 1280) in steps


def test_a_task_merges_64_parts_at_least() -> None:
    sizes = {
        n: [len(group) for group in passes._grouped([str(i) for i in range(n)])]
        for n in (0, 1, 63, 127, 128, 1_000)
    }
    assert sizes[0] == []
    assert (sizes[1], sizes[63], sizes[127]) == ([1], [63], [127])
    assert sizes[128] == [64, 64]
    assert min(sizes[1_000]) >= 64
    assert sum(sizes[1_000]) == 1_000


# -- interruptions -------------------------------------------------------------------------------------------


def test_an_interrupted_reduction_is_finished_by_the_same_call(features: FeatureSet, tmp_path: Path) -> None:
    fp.reduce(features, tmp_path / "undisturbed", n_components=6)
    with pytest.raises(StoppedError):
        fp.reduce(features, tmp_path / "out", n_components=6, engine=Watched(stop_after=5))
    with pytest.raises(fp.FeaturepressError, match="featurepress reduce"):
        fp.open_features(tmp_path / "out")
    assert "incomplete" in run_cli("info", tmp_path / "out").stdout
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "features").iterdir()}
    assert len(before) == 5
    engine = Watched()
    fp.reduce(features, tmp_path / "out", n_components=6, engine=engine)
    assert len(engine.tasks) == 10
    assert all((tmp_path / "out" / "features" / name).stat().st_mtime_ns == at for name, at in before.items())
    finished, undisturbed = (fp.open_features(tmp_path / name).to_table() for name in ("out", "undisturbed"))
    assert finished.equals(undisturbed)
    engine = Watched()
    fp.reduce(features, tmp_path / "out", n_components=6, engine=engine)
    assert engine.tasks == []


def test_a_set_that_changes_meanwhile_is_an_error(features: FeatureSet, tmp_path: Path) -> None:
    class Changing(Watched):
        def run(self, task: Any, plan: Plan, shards: Any, on_message: Any = None) -> Generator[Any]:
            if isinstance(task, reduction.ProjectPart):
                path = Path(features.location) / "features" / "part-00000003.parquet"
                shutil.copy(Path(features.location) / "features" / "part-00000004.parquet", path)
            yield from super().run(task, plan, shards)

    with pytest.raises(StoppedError, match="changed"):
        fp.reduce(features, tmp_path / "out", n_components=6, engine=Changing())
    assert not (tmp_path / "out" / "manifest.json").exists()


# -- refusals ------------------------------------------------------------------------------------------


def refused(error: type[Exception], pattern: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(error, match=pattern) as caught:
        fp.reduce(*arguments, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_bad_requests_write_nothing(features: FeatureSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fp.reduce(features, tmp_path / "reduced", n_components=4)
    other = embed(str(draw(tmp_path / "other", 5)), tmp_path / "flat", pooling="flatten", precision="float32")
    refused(AnalysisError, r"at most 116 here.*Got 117", features, out, n_components=117)
    refused(SettingError, "did you mean 'n_components'", features, out, n_componets=3)
    refused(SettingError, r"using.*n_components", features, out, using=features, n_components=3)
    refused(FeatureSetError, "is not a reduced set", features, out, using=features)
    refused(PlanMismatchError, "pooling: 'avg', not 'flatten'", other, out, using=tmp_path / "reduced")
    refused(FeatureSetError, "is not a feature set", tmp_path / "in", out)
    refused(FeatureSetError, r"is reduced already.*features'", tmp_path / "reduced", out, n_components=2)
    assert not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    refused(fp.FeaturepressError, "holds something else", features, tmp_path / "mine", n_components=3)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.txt"]


def test_a_destination_with_another_set_is_left_alone(features: FeatureSet, tmp_path: Path) -> None:
    fp.reduce(features, tmp_path / "out", n_components=4)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    refused(PlanMismatchError, "holds another reduction", features, tmp_path / "out", n_components=5)
    refused(PlanMismatchError, "reduce has not written", features, features.location, n_components=4)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_an_empty_set_is_refused(features: FeatureSet, tmp_path: Path) -> None:
    empty = FeatureSet(ledger.new_plan(FolderStorage(str(tmp_path / "empty")), **_parts_of(features.plan)), {})
    refused(AnalysisError, "empty", empty, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _parts_of(plan: Plan) -> dict[str, Any]:
    names = (
        "sources",
        "backbone",
        "precision",
        "certificate",
        "settings",
        "layout",
        "field_names",
        "library_version",
    )
    return {name: getattr(plan, name) for name in names}


@pytest.mark.parametrize("verb", [fp.resume, fp.update, fp.retry])
def test_resume_update_and_retry_refuse_a_reduced_set(features: FeatureSet, tmp_path: Path, verb: Any) -> None:
    fp.reduce(features, tmp_path / "out", n_components=4)
    with pytest.raises(FeatureSetError, match=r"featurepress reduce.*features'"):
        verb(tmp_path / "out")


def test_an_edited_projection_is_refused(features: FeatureSet, tmp_path: Path) -> None:
    fp.reduce(features, tmp_path / "out", n_components=4)
    (path,) = (tmp_path / "out" / "projection").iterdir()
    path.write_bytes(path.read_bytes() + b" ")
    refused(FeatureSetError, "hash differs", features, tmp_path / "b", using=tmp_path / "out")
    path.unlink()
    refused(FeatureSetError, "is missing", features, tmp_path / "b", using=tmp_path / "out")
    assert not (tmp_path / "b").exists()
