"""ImageFeaturizer: a transformer of scikit-learn with the features of embed."""

from __future__ import annotations

import gc
import os
import pickle
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks, get_tags
from sklearn.utils.validation import check_is_fitted

from featurepress.errors import ModelError, RequestError, SettingError, SourceError
from featurepress.images import decode
from featurepress.models.backbone import supports_bfloat16
from featurepress.runs.verbs import find_backbone
from featurepress.settings import Settings
from featurepress.sklearn import FailedImage, ImageFeaturizer
from featurepress.testing import fake_backbone
from tests.models.made import channels_first
from tests.running import draw, embed, started, wait_for_no_orphans

DOCS = (Path(__file__).parents[1] / "docs" / "how-to" / "sklearn.md").read_text(encoding="utf-8")


def add_odd_images(folder: Path) -> None:
    """Add an image rotated by EXIF, a transparent and a grey one."""
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 256, (40, 60, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(levels[..., :3]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(levels).save(folder / "clear.png")
    Image.fromarray(levels[..., 0]).save(folder / "grey.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = draw(tmp_path_factory.mktemp("images"), 40)
    add_odd_images(folder)
    return sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))


@pytest.fixture(scope="module")
def features(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the features of embed for the images, in their order."""
    out = tmp_path_factory.mktemp("out")
    shutil.rmtree(out)
    result = embed([str(path) for path in images], out, precision="float32")
    by_uri = dict(zip(result.uris, result.to_numpy(), strict=True))
    return np.stack([by_uri[str(path)] for path in images])


@pytest.fixture(scope="module")
def featurizer() -> Iterator[ImageFeaturizer]:
    """Return a featurizer for many tests, so that its processes start once."""
    featurizer = ImageFeaturizer(model="embedded", workers=2).fit()
    yield featurizer
    featurizer.close()


def faked(**options: Any) -> ImageFeaturizer:
    """Return a featurizer that is fitted with the fake backbone."""
    featurizer = ImageFeaturizer(model="embedded", workers=2)
    featurizer.backbone_ = fake_backbone(**options)
    return featurizer


BLACK, WHITE = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)


# -- the features --------------------------------------------------------------------------------------------


def test_uris_bytes_and_pixels_have_the_bits_of_embed(
    featurizer: ImageFeaturizer, images: list[Path], features: Any
) -> None:
    data = [path.read_bytes() for path in images]
    for X in (images, [str(path) for path in images], data, [decode(one) for one in data]):
        result = featurizer.transform(X)
        assert result.shape == (43, 1280)
        assert result.dtype == np.float32
        assert result.tobytes() == features.tobytes()
    assert len(np.unique(features, axis=0)) == len(images)
    assert featurizer.failures_ == []


def test_one_process_and_two_return_the_same_bits(images: list[Path], features: Any) -> None:
    featurizer = ImageFeaturizer(model="embedded", workers=1)
    assert featurizer.fit_transform(images).tobytes() == features.tobytes()
    assert len(children_of(featurizer)) == 1
    featurizer.close()


@pytest.mark.parametrize(
    "wrap",
    [
        np.array,
        tuple,
        iter,
        pd.Series,
        lambda uris: pd.Series(uris, dtype=object).to_numpy().reshape(-1, 1),
        lambda uris: pd.DataFrame({"uri": uris}),
        lambda uris: [f"file://{uri}" for uri in uris],
        lambda uris: [os.path.relpath(uri) for uri in uris],
        lambda uris: [memoryview(Path(uri).read_bytes()) for uri in uris],
    ],
    ids=["array", "tuple", "iterator", "series", "column", "frame", "urls", "relative", "memory"],
)
def test_x_comes_in_many_forms(
    featurizer: ImageFeaturizer, images: list[Path], features: Any, wrap: Callable[[list[str]], Any]
) -> None:
    result = featurizer.transform(wrap([str(path) for path in images[:5]]))
    assert result.tobytes() == features[:5].tobytes()


def test_arrays_of_pixels_are_rgb_grey_or_have_alpha(
    featurizer: ImageFeaturizer, images: list[Path], tmp_path: Path
) -> None:
    clear, grey = (next(path for path in images if path.name == name) for name in ("clear.png", "grey.png"))
    rgba, levels = np.asarray(Image.open(clear)), np.asarray(Image.open(grey))
    of_files = featurizer.transform([clear, grey, grey])
    assert featurizer.transform([rgba, levels, levels[..., None]]).tobytes() == of_files.tobytes()
    assert featurizer.transform(rgba[None]).tobytes() == of_files[:1].tobytes()
    kiwis = [path for path in images if path.parent.name == "Kiwi"]
    many = np.stack([decode(path.read_bytes()) for path in kiwis])
    np.save(tmp_path / "many.npy", many)
    mapped = np.load(tmp_path / "many.npy", mmap_mode="r")
    assert len(many) > 1
    assert featurizer.transform(mapped).tobytes() == featurizer.transform(list(many)).tobytes()
    assert featurizer.transform([]).shape == (0, 1280)


def test_a_relative_path_starts_at_the_working_folder(
    images: list[Path], features: Any, featurizer: ImageFeaturizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    featurizer.transform(images[:1])  # its processes started in another folder
    monkeypatch.chdir(images[0].parent)
    assert featurizer.transform([images[0].name]).tobytes() == features[:1].tobytes()


def test_a_name_that_is_not_utf8_is_read(featurizer: ImageFeaturizer, images: list[Path], tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff %41.jpg"
    try:
        Path(os.fsdecode(odd)).write_bytes(images[0].read_bytes())
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    result = featurizer.transform([os.fsdecode(odd), images[0]])
    assert result[0].tobytes() == result[1].tobytes()


def test_large_images_are_sent_in_small_runs() -> None:
    """40 images of 3 MB do not fit into one run; all have features, in order."""
    featurizer = faked()
    X = np.repeat(np.arange(40, dtype=np.uint8), 3 * 10**6).reshape(40, 1000, 1000, 3)
    result = featurizer.transform(X)
    featurizer.close()
    assert result[:, 0].tolist() == list(range(40))


# -- bad images --------------------------------------------------------------------------------------------


def test_bad_images_are_an_error_with_their_number_and_a_reason(images: list[Path], tmp_path: Path) -> None:
    featurizer = faked()
    X = [images[0], str(tmp_path / "nothing.jpg"), b"no image", images[1]]
    with pytest.raises(SourceError) as caught:
        featurizer.transform(X)
    for fact in (
        "2 of 4",
        "X[1]",
        f"'{tmp_path / 'nothing.jpg'}'",
        "read: no such file",
        "failures_",
        "errors='nan'",
    ):
        assert fact in str(caught.value)
    assert featurizer.failures_[1] == FailedImage(2, "an image of 8 bytes", "decode: not an image")
    featurizer.close()


def test_bad_images_are_rows_of_nan_with_errors_nan(images: list[Path]) -> None:
    featurizer = faked().set_params(errors="nan")
    series = pd.Series([str(images[0]), None, float("nan"), str(images[1])])
    X = [*series, pd.NA, WHITE.astype(np.float32), "https://user:pass@127.0.0.1:9/a.jpg?token=secret"]
    result = featurizer.transform(X)
    assert np.isnan(result).all(axis=1).tolist() == [False, True, True, False, True, True, True]
    assert not np.isnan(result[[0, 3]]).any()
    failures = featurizer.failures_
    assert [failure.row for failure in failures] == [1, 2, 4, 5, 6]
    assert [failure.reason for failure in failures[:3]] == ["read: no value"] * 3
    assert "type float32" in failures[3].reason
    assert failures[4].image == "'https://127.0.0.1:9/a.jpg?token=***'"
    featurizer.transform(images[:2])
    assert featurizer.failures_ == []
    featurizer.close()


def test_limits_hold(images: list[Path]) -> None:
    featurizer = faked().set_params(errors="nan", max_bytes=10)
    featurizer.transform(images[:1])
    assert "above the limit of 10" in featurizer.failures_[0].reason
    featurizer.set_params(max_bytes=10**6, max_pixels=10).transform(images[:1])
    assert "too many pixels" in featurizer.failures_[0].reason
    featurizer.close()


def test_an_image_that_kills_its_process_is_a_failure() -> None:
    featurizer = faked(sabotage="abort").set_params(errors="nan")
    result = featurizer.transform([BLACK, WHITE, WHITE])
    assert np.isnan(result).all(axis=1).tolist() == [True, False, False]
    assert "was killed by SIGABRT, twice" in featurizer.failures_[0].reason
    featurizer.close()


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "words"),
    [
        ("a.jpg", "Got one str: pass a list, [X]"),
        (b"data", "Got one bytes: pass a list"),
        (7, "Got int"),
        ([1], "X[0] is of type int"),
        ([["a.jpg"]], "X[0] is of type list"),
        (["a.jpg", Image.new("RGB", (2, 2))], "X[1] is of type Image: pass numpy.asarray(image.convert('RGB'))"),
        (np.zeros((5, 12288)), "shape (5, 12288) and type float64"),
        (np.zeros((5, 8, 8, 3), np.float32), "from 0 to 255 as uint8"),
        (np.zeros((8, 8, 3), np.uint8), "X[None] for one image"),
        (np.zeros((5, 3, 8, 8), np.uint8), "shape (5, 3, 8, 8)"),
        (np.array([b"GIF"]), "dtype=object"),
        (np.array([["a.jpg", "b.jpg"]], dtype=object), "shape (1, 2)"),
        (pd.DataFrame({"uri": ["a"], "label": ["b"]}), "a table of 2 columns"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_wrong_input_is_refused_in_one_line(featurizer: ImageFeaturizer, X: Any, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        featurizer.transform(X)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "pattern"),
    [
        ({"pooling": "mean"}, "'avg', 'flatten' or 'max'"),
        ({"precision": "auto"}, "'precision' of ImageFeaturizer must be 'float32' or 'bfloat16'. Got 'auto'"),
        ({"errors": "ignore"}, "'errors' of ImageFeaturizer must be 'raise' or 'nan'. Got 'ignore'"),
        ({"workers": 0}, "'workers' setting"),
        ({"max_pixels": "many"}, "'max_pixels' setting"),
        ({"model": "embeded"}, "embeded"),
    ],
    ids=repr,
)
def test_a_bad_parameter_is_refused_by_fit(parameters: dict[str, Any], pattern: str) -> None:
    featurizer = ImageFeaturizer(**{"model": "embedded", **parameters})
    with pytest.raises(RequestError, match=re.escape(pattern)):
        featurizer.fit()


def test_bfloat16_is_refused_on_a_cpu_without_it(images: list[Path], features: Any) -> None:
    featurizer = ImageFeaturizer(model="embedded", precision="bfloat16", workers=1)
    if not supports_bfloat16(find_backbone(Settings.from_options(model="embedded"))):
        with pytest.raises(RequestError, match="bfloat16"):
            featurizer.fit()
        return
    result = featurizer.fit_transform(images)
    featurizer.close()
    assert result.tobytes() != features.tobytes()
    assert np.abs(result - features).max() < 0.1 * np.abs(features).max()


# -- contract of scikit-learn -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_valid_tag_types,
    ],
)
def test_the_checks_of_scikit_learn_without_numeric_input_pass(check: Callable[[str, Any], None]) -> None:
    check("ImageFeaturizer", ImageFeaturizer(model="embedded"))


def test_fit_finds_the_model_and_transform_needs_no_fit(images: list[Path], features: Any) -> None:
    featurizer = ImageFeaturizer(model="embedded", workers=1)
    check_is_fitted(featurizer)  # does not raise
    assert get_tags(featurizer).requires_fit is False
    assert featurizer.transform(images[:2]).tobytes() == features[:2].tobytes()
    assert not hasattr(featurizer, "backbone_")
    featurizer.fit(images)
    assert featurizer.n_features_out_ == 1280
    assert featurizer.fingerprint_ == find_backbone(Settings.from_options(model="embedded")).fingerprint
    featurizer.close()


def test_the_fingerprint_is_that_of_embed(images: list[Path], tmp_path: Path) -> None:
    result = embed([str(images[0])], tmp_path / "out", pooling="max")
    assert ImageFeaturizer(model="embedded", pooling="max").fit().fingerprint_ == result.fingerprint


def test_names_and_data_frames(images: list[Path], features: Any) -> None:
    featurizer = ImageFeaturizer(model="embedded", workers=1).set_output(transform="pandas")
    names = featurizer.get_feature_names_out()
    assert names[[0, -1]].tolist() == ["imagefeaturizer0", "imagefeaturizer1279"]
    result = featurizer.fit_transform(pd.Series([str(path) for path in images[:2]], index=[7, 9]))
    featurizer.close()
    assert result.columns.tolist() == names.tolist()
    assert result.index.tolist() == [7, 9]
    assert result.to_numpy().tobytes() == features[:2].tobytes()


def test_a_column_of_a_table_goes_through_a_column_transformer(images: list[Path], features: Any) -> None:
    frame = pd.DataFrame({"uri": [str(path) for path in images[:3]], "price": [1.0, 2.0, 3.0]})
    for column in ("uri", ["uri"]):
        columns = ColumnTransformer(
            [("image", ImageFeaturizer(model="embedded", workers=1), column), ("rest", "passthrough", ["price"])]
        )
        result = columns.fit_transform(frame)
        assert result[:, :1280].astype(np.float32).tobytes() == features[:3].tobytes()
        assert columns.get_feature_names_out()[0] == "image__imagefeaturizer0"


def test_pickles_and_clones_hold_no_processes(images: list[Path], features: Any) -> None:
    featurizer = ImageFeaturizer(model="embedded", workers=1, errors="nan")
    before = pickle.loads(pickle.dumps(featurizer))
    featurizer.fit_transform(images[:2])
    after, copy = pickle.loads(pickle.dumps(featurizer)), clone(featurizer)
    assert before.get_params() == after.get_params() == copy.get_params() == featurizer.get_params()
    assert after.fingerprint_ == featurizer.fingerprint_
    assert not hasattr(copy, "backbone_")
    for other in (before, after, copy):
        assert children_of(other) == []
    assert len(children_of(featurizer)) == 1
    for other in (before, after, copy):
        assert other.transform(images[:2]).tobytes() == features[:2].tobytes()
        assert not {p.pid for p in children_of(other)} & {p.pid for p in children_of(featurizer)}
        other.close()
    featurizer.close()


def test_a_pickle_prepares_the_model_on_another_machine(own_home: Path, tmp_path: Path) -> None:
    model = channels_first(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (3, 8, 12, 3), np.uint8)
    featurizer = ImageFeaturizer(model=str(model), pooling="flatten", workers=1)
    result = featurizer.fit_transform(X)
    featurizer.close()
    pickled = pickle.dumps(featurizer)
    shutil.rmtree(own_home)  # as on another machine
    elsewhere = pickle.loads(pickled)
    assert elsewhere.transform(X).tobytes() == result.tobytes()
    elsewhere.close()
    shutil.rmtree(own_home)
    channels_first(model, kernel=rng.normal(0, 1, (2, 2, 3, 5)).astype(np.float32))
    with pytest.raises(ModelError, match="another one: weights_sha256"):
        pickle.loads(pickled).transform(X)


def two_classes(images: list[Path]) -> tuple[list[Path], list[bool]]:
    """Return images and arbitrary classes."""
    X = [path for path in images if path.suffix == ".jpg"][:24]
    return X, [i % 2 == 0 for i in range(len(X))]


def test_a_pipeline_is_cross_validated_and_searched(images: list[Path]) -> None:
    X, y = two_classes(images)
    pipeline = make_pipeline(ImageFeaturizer(model="embedded", workers=1), StandardScaler(), LogisticRegression())
    assert cross_val_score(pipeline, X, y, cv=2).shape == (2,)
    choices = {"imagefeaturizer__pooling": ["avg", "max"], "imagefeaturizer__max_pixels": np.array([10**6])}
    search = GridSearchCV(pipeline, choices, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_.named_steps["imagefeaturizer"]
    assert best.backbone_.pooling == search.best_params_["imagefeaturizer__pooling"]
    assert (search.predict(X) == np.array(y)).mean() > 0.9  # of the training images


def test_a_pipeline_with_a_memory_embeds_the_training_images_once(images: list[Path], tmp_path: Path) -> None:
    X, y = two_classes(images)
    pipeline = make_pipeline(
        ImageFeaturizer(model="embedded", workers=1), LogisticRegression(), memory=str(tmp_path / "memory")
    )
    for C in (0.1, 1.0):
        pipeline.set_params(logisticregression__C=C).fit(X, y)
    (embedded,) = (tmp_path / "memory").rglob("_fit_transform_one*")
    assert len([path for path in embedded.iterdir() if path.is_dir()]) == 1


# -- processes -----------------------------------------------------------------------------------------------


def children_of(featurizer: ImageFeaturizer) -> list[psutil.Process]:
    """Return the processes that an estimator has started."""
    embedders = getattr(featurizer, "_embedders", None)
    result = [embedder._child for embedder in embedders._embedders] if embedders else []
    return [psutil.Process(child.pid) for child in result if child is not None]


def test_processes_start_when_needed_and_are_kept() -> None:
    before = set(psutil.Process().children())
    featurizer = faked()
    featurizer.transform([])
    assert set(psutil.Process().children()) == before
    featurizer.transform([WHITE])
    assert len(children_of(featurizer)) == 1  # a second would have no work
    featurizer.transform([WHITE] * 100)
    kept = children_of(featurizer)
    assert len(kept) == 2
    assert set(psutil.Process().children()) - before == set(kept)
    featurizer.transform([WHITE] * 100)
    assert children_of(featurizer) == kept
    featurizer.set_params(max_bytes=10).transform([WHITE] * 100)  # other limits: others
    others = children_of(featurizer)
    assert not set(others) & set(kept)
    featurizer.close()
    featurizer.close()
    assert not [process for process in kept + others if process.is_running()]
    assert featurizer.transform([WHITE]).shape == (1, 12)
    featurizer.close()


def test_processes_end_with_the_estimator() -> None:
    featurizer = faked()
    featurizer.transform([WHITE] * 100)
    processes = children_of(featurizer)
    assert len(processes) == 2
    del featurizer
    gc.collect()
    assert not [process for process in processes if process.is_running()]


def test_a_killed_process_is_started_again() -> None:
    featurizer = faked()
    result = featurizer.transform([WHITE] * 100)
    for process in children_of(featurizer):
        process.kill()
        process.wait(10)
    assert featurizer.transform([WHITE] * 100).tobytes() == result.tobytes()
    featurizer.close()


def test_an_error_of_the_model_stops_the_call_and_its_processes(own_home: Path, tmp_path: Path) -> None:
    model = channels_first(tmp_path / "model.onnx")
    featurizer = ImageFeaturizer(model=str(model), workers=2).fit()
    for path in own_home.rglob("model.bin"):
        path.write_bytes(b"damaged")
    before = set(psutil.Process().children())
    with pytest.raises(ModelError, match="has the hash"):
        featurizer.transform([WHITE] * 100)
    assert set(psutil.Process().children()) == before


PROGRAM = """
import os, sys, time, threading
import numpy as np
from featurepress.sklearn import ImageFeaturizer
from featurepress.testing import fake_backbone
{body}
"""
ENDS = {
    "the end of the program": "kept = ImageFeaturizer('embedded', workers=2); kept.transform(sys.argv[1:])",
    "an exit with an error": "kept = ImageFeaturizer('embedded'); kept.transform(sys.argv[1:]); sys.exit(3)",
    "no end at all": "kept = ImageFeaturizer('embedded'); kept.transform(sys.argv[1:]); os._exit(0)",
    "processes of joblib": """
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
X = sys.argv[1:] * 4
p = make_pipeline(ImageFeaturizer('embedded', workers=1), LogisticRegression())
print(cross_val_score(p, X, [i % 2 for i in range(len(X))], cv=2, n_jobs=2, error_score="raise"))
""",
    "a fork": """
kept = ImageFeaturizer('embedded', workers=1)
first = kept.transform(sys.argv[1:])
if os.fork() == 0:
    same = (kept.transform(sys.argv[1:]) == first).all()
    kept.close()
    os._exit(0 if same else 1)
assert os.wait()[1] == 0
assert (kept.transform(sys.argv[1:]) == first).all()
""",
}


@pytest.mark.parametrize("body", ENDS.values(), ids=ENDS)
def test_no_process_is_left_after(images: list[Path], body: str) -> None:
    program = PROGRAM.format(body=body)
    arguments = [str(path) for path in images[:4]]
    with started(*arguments, command=[sys.executable, "-W", "error", "-c", program]) as process:
        out, err = process.communicate(timeout=120)
        wait_for_no_orphans(process.pid)
    assert process.returncode == (3 if "exit(3)" in body else 0), err
    assert err == ""
    assert ("[" in out) == ("n_jobs" in body)


def test_ctrl_c_ends_a_call_at_once() -> None:
    """The processes are paused, as if they hung: without Ctrl-C the call would take minutes."""
    body = """
import signal
kept = ImageFeaturizer('embedded', workers=2)
kept.backbone_ = fake_backbone()
X = np.zeros((200, 8, 8, 3), np.uint8)
kept.transform(X)
for embedder in kept._embedders._embedders:
    os.kill(embedder._child.pid, signal.SIGSTOP)
threading.Timer(0.5, lambda: print('busy', flush=True)).start()
try:
    kept.transform(X)
except KeyboardInterrupt:
    print('interrupted', hasattr(kept, '_embedders'), flush=True)
print(np.isfinite(kept.transform(X)).all())
"""
    with started(command=[sys.executable, "-c", PROGRAM.format(body=body)]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        wait_for_no_orphans(process.pid)
    assert (out, err) == ("interrupted False\nTrue\n", "")


# -- docs/how-to/sklearn.md -----------------------------------------------------------------------------------


def test_the_docs_name_every_parameter() -> None:
    named = {name for row in re.findall(r"^\| (`.*)$", DOCS, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    parameters = set(ImageFeaturizer().get_params())
    assert parameters <= named
