"""Features as a step of a scikit-learn pipeline: images in, an array of features out.

    from featurepress.sklearn import ImageFeaturizer
    model = make_pipeline(ImageFeaturizer(), StandardScaler(), LogisticRegression())
    model.fit(paths, labels)

For a collection of images use `featurepress.embed`: it can be resumed, and never embeds an image twice.
`ImageFeaturizer` is for images that a pipeline receives call by call.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from featurepress.embedding.values import Embedder, Value, name_of
from featurepress.errors import ModelError, RequestError, SettingError, SourceError
from featurepress.models import store
from featurepress.models.backbone import supports_bfloat16
from featurepress.runs.verbs import find_backbone
from featurepress.settings import DEFAULT_MODEL, ImageSettings, Settings, available_cores
from featurepress.settings.options import Pooling

if TYPE_CHECKING:
    from featurepress.specs import BackboneSpec, Features

__all__ = ["FailedImage", "ImageFeaturizer"]

# Images sent to a child at once: enough to make the pipe cheap, few enough that all children finish together and
# large images do not fill the memory.
_MIN_RUN, _MAX_RUN, _MAX_RUN_BYTES = 8, 64, 32 * 1024**2
_PRECISIONS, _ERRORS = ("float32", "bfloat16"), ("raise", "nan")


class FailedImage(NamedTuple):
    """An image without features.

    Attributes
    ----------
    row : int
        Row in X, from 0.
    image : str
        The uri with secrets masked, or the type.
    reason : str
        Why there are no features, in one line.
    """

    row: int
    image: str
    reason: str


class ImageFeaturizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn images into the features of a pretrained model.

    `fit` learns nothing: it finds the model, and prepares it if needed. `transform` also works without `fit`.

    Parameters
    ----------
    model : str, default='mobilenet_v2'
        A name from ``featurepress models list``, a model file, or ``hf:org/repo``, as for `featurepress.embed`.
    size : int, optional
        Side of the model's input in pixels, where it leaves a choice.
    alpha : float, optional
        Width of a MobileNet.
    weights : str, optional
        Weights of a Keras model: ``imagenet`` or a .h5 file.
    pooling : {'avg', 'flatten', 'max'}, default='avg'
        How the model's last grid becomes a vector.
    precision : {'float32', 'bfloat16'}, default='float32'
        Arithmetic. `fit` refuses bfloat16 if the CPU does not have it. `transform` of an unpickled estimator falls
        back to float32 on such a CPU.
    errors : {'raise', 'nan'}, default='raise'
        Whether an image that cannot be embedded raises an error or becomes a row of NaN.
    workers : int, optional
        Child processes that embed; by default one per core. Each takes about 200 MB and is kept for the next call.
        Use 1 where other processes use all cores already, such as in ``GridSearchCV(n_jobs=-1)``.
    max_pixels, max_bytes, timeout_seconds
        Limits for one image, as for `featurepress.embed`.

    Attributes
    ----------
    backbone_ : BackboneSpec
        The model with its preprocessing and pooling, after `fit`.
    fingerprint_ : str
        Name of the feature space. Features with equal fingerprints can be compared, also with feature sets on disk.
    n_features_out_ : int
        Number of features per image.
    failures_ : list of FailedImage
        The images without features in the last call of `transform`.

    Notes
    -----
    The features equal, bit for bit, those of `featurepress.embed` in the same precision. Child processes embed the
    images. They start with the first `transform` and stop with the estimator, or at `close`; pickles and clones
    have none. If an image crashes its decoder, only a child process dies, and the image is a failure.

    Examples
    --------
    >>> from featurepress.sklearn import ImageFeaturizer
    >>> ImageFeaturizer(model="embedded").fit_transform(["a.jpg", "b.jpg"]).shape  # doctest: +SKIP
    (2, 1280)
    """

    def __init__(  # noqa: PLR0913 - scikit-learn reads the parameters of an estimator from here
        self,
        model: str = DEFAULT_MODEL,
        *,
        size: int | None = None,
        alpha: float | None = None,
        weights: str | None = None,
        pooling: Pooling = "avg",
        precision: Literal["float32", "bfloat16"] = "float32",
        errors: Literal["raise", "nan"] = "raise",
        workers: int | None = None,
        max_pixels: int = ImageSettings().max_pixels,
        max_bytes: int = ImageSettings().max_bytes,
        timeout_seconds: float = ImageSettings().timeout_seconds,
    ) -> None:
        self.model = model
        self.size = size
        self.alpha = alpha
        self.weights = weights
        self.pooling = pooling
        self.precision = precision
        self.errors = errors
        self.workers = workers
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self.timeout_seconds = timeout_seconds

    # -- the estimator -----------------------------------------------------------------------------------

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Find the model. No image is read.

        Parameters
        ----------
        X, y
            Not used.

        Raises
        ------
        SettingError
            A parameter has a value that is not allowed.
        ModelError
            There is no such model, or it cannot be downloaded or prepared.
        RequestError
            The precision is bfloat16, and this CPU does not have it.
        """
        backbone = find_backbone(self._settings())
        if self.precision == "bfloat16" and not supports_bfloat16(backbone):
            raise RequestError(
                "The 'precision' of ImageFeaturizer is 'bfloat16', which this CPU does not have. Use "
                "precision='float32'."
            )
        self.backbone_ = backbone
        self.fingerprint_ = backbone.fingerprint
        self.n_features_out_ = backbone.n_features
        return self

    def transform(self, X: Any) -> Features:
        """Embed images.

        Parameters
        ----------
        X : list, array, Series, or table of one column
            Paths and urls (``str`` or `Path`), encoded images (``bytes``), or pixels: uint8 arrays (H, W, 3) RGB,
            (H, W, 4) RGBA on white, or (H, W) grey. Or one array (n_samples, H, W, 3).

        Returns
        -------
        array (n_samples, n_features) float32
            In the order of X.

        Raises
        ------
        SettingError
            X holds something else, or a parameter has a value that is not allowed.
        SourceError
            Images cannot be embedded, and `errors` is ``raise``.
        ModelError
            The model of `fit` is not on this machine, and the model of that name is another one.
        """
        settings = self._settings()
        images = _images(X)
        values = [_value(image, row) for row, image in enumerate(images)]
        backbone = self._backbone()
        embedders = self._embedders_for(backbone, settings)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)  # also at Ctrl-C
            features, reasons = embedders.embed(values)
            undo.pop_all()
        self.failures_ = [
            FailedImage(row, name_of(_normalized(images[row])), reasons[row]) for row in sorted(reasons)
        ]
        if self.failures_ and self.errors == "raise":
            raise SourceError(_failure_message(self.failures_, len(values)))
        return features

    @property
    def _n_features_out(self) -> int:
        """Number of features, for `get_feature_names_out`, which also works without `fit`."""
        return self._backbone().n_features

    def close(self) -> None:
        """Stop the child processes; the next `transform` starts new ones."""
        embedders = self.__dict__.pop("_embedders", None)
        if embedders is not None:
            embedders.end()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the child processes, for pickles and copies."""
        return {name: value for name, value in self.__dict__.items() if name != "_embedders"}

    def __sklearn_tags__(self) -> Any:
        """Declare that it takes images, learns nothing, and works without `fit`."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    # -- settings, backbone, children -------------------------------------------------------------------

    def _settings(self) -> Settings:
        """Return the parameters as settings, and check them: the constructor only stores them."""
        for name, allowed in (("precision", _PRECISIONS), ("errors", _ERRORS)):
            if (value := getattr(self, name)) not in allowed:
                choice = " or ".join(map(repr, allowed))
                raise SettingError(f"The '{name}' of ImageFeaturizer must be {choice}. Got {value!r}.")
        options = {name: _plain(value) for name, value in self.get_params(deep=False).items() if name != "errors"}
        return Settings.from_options(**options)

    def _backbone(self) -> BackboneSpec:
        """Return the backbone of `fit`, or without `fit` that of the parameters; its model is on this machine."""
        backbone: BackboneSpec | None = getattr(self, "backbone_", None)
        if backbone is None:
            return find_backbone(self._settings())
        if not _is_here(backbone.file):  # the estimator was unpickled on another machine
            current = find_backbone(self._settings())
            if differences := backbone.differences(current):
                raise ModelError(
                    f"The model that this ImageFeaturizer was fitted with is not on this machine, where "
                    f"'{self.model}' is another one: {'; '.join(differences)}. Fit again, or add that model."
                )
            self.backbone_ = backbone = current
        return backbone

    def _embedders_for(self, backbone: BackboneSpec, settings: Settings) -> _Embedders:
        """Return embedders for a backbone; those of the last call if nothing has changed."""
        key = repr((os.getpid(), backbone, self.precision, settings.images, settings.resources))
        embedders: _Embedders | None = getattr(self, "_embedders", None)
        if embedders is None or embedders.key != key:
            self.close()
            n = settings.resources.workers or available_cores()
            embedders = _Embedders(key, [Embedder(backbone, self.precision, settings.images) for _ in range(n)])
            embedders.end = weakref.finalize(self, embedders.close)
            self._embedders = embedders
        return embedders


def _is_here(file: str) -> bool:
    """Whether this machine has the file of a model; some models have none."""
    return not file or (store.BUNDLED / file).is_file() or store.read_card(file) is not None


# -- children ------------------------------------------------------------------------------------------------


class _Embedders:
    """Several embedders of one backbone, each fed by a thread; their processes start when needed."""

    def __init__(self, key: str, embedders: Sequence[Embedder]) -> None:
        self.key = key  # identifies the backbone and settings
        self.end: Any = self.close  # further calls do nothing
        self._embedders = embedders
        self._process = os.getpid()
        self._lock = threading.Lock()

    def embed(self, values: Sequence[Value]) -> tuple[Features, dict[int, str]]:
        """Return features (n_samples, n_features) float32, NaN for failures, and the reasons by row."""
        features = np.full((len(values), self._embedders[0].backbone.n_features), np.nan, np.float32)
        reasons: dict[int, str] = {}
        runs = collections.deque(_cut(values, len(self._embedders)))
        # The first run of each embedder is its own: all processes start, also where one could be faster.
        used = [(embedder, runs.popleft()) for embedder in self._embedders[: len(runs)]]

        def feed(embedder: Embedder, run: slice) -> None:
            while True:
                for row, (data, reason) in enumerate(embedder.embed(values[run]), run.start):
                    if data is None:
                        reasons[row] = reason or ""
                    else:
                        features[row] = np.frombuffer(data, np.float32)
                try:
                    run = runs.popleft()
                except IndexError:
                    return

        with self._lock, ThreadPoolExecutor(max(1, len(used)), "featurepress-sklearn") as threads:
            try:
                for done in as_completed([threads.submit(feed, *first) for first in used]):
                    done.result()
            except BaseException:  # also at Ctrl-C: do not wait for images in progress
                runs.clear()
                for embedder in self._embedders:
                    embedder.abandon()
                raise
        return features, reasons

    def close(self) -> None:
        """Stop the processes, unless this process is a fork of the one that started them."""
        if os.getpid() == self._process:
            for embedder in self._embedders:
                embedder.close()


def _cut(values: Sequence[Value], n_embedders: int) -> list[slice]:
    """Cut values into runs, limited in images and in bytes."""
    most = min(_MAX_RUN, max(_MIN_RUN, len(values) // (4 * n_embedders)))
    runs, start, n_bytes = list[slice](), 0, 0
    for row, value in enumerate(values):
        size = value.nbytes if isinstance(value, np.ndarray) else len(value or ())
        if row - start == most or (row > start and n_bytes + size > _MAX_RUN_BYTES):
            runs.append(slice(start, row))
            start, n_bytes = row, 0
        n_bytes += size
    return [*runs, slice(start, len(values))] if len(values) else []


def _failure_message(failures: Sequence[FailedImage], n: int) -> str:
    first = failures[0]
    return (
        f"{len(failures):,} of {n:,} images cannot be embedded; the first is X[{first.row}], {first.image}: "
        f"{first.reason.rstrip('.')}. Remove them (failures_ lists all), or use errors='nan'."
    )


# -- the images of X -----------------------------------------------------------------------------------------

_ALLOWED = "X must hold uris, bytes or uint8 arrays (H, W, 3), one per image, or be an array (n_samples, H, W, 3)"


def _images(X: Any) -> list[Any]:
    """Return the images of X as a list."""
    if isinstance(X, str | bytes | bytearray | os.PathLike):
        raise SettingError(f"{_ALLOWED}. Got one {type(X).__name__}: pass a list, [X].")
    columns = getattr(X, "columns", None)
    if columns is not None:  # a table of pandas or polars
        if len(columns) != 1:
            raise SettingError(
                f"{_ALLOWED}. Got a table of {len(columns)} columns: pass the column with the images."
            )
        return list(X[columns[0]])
    if isinstance(X, np.ndarray):
        return _rows(X)
    try:
        return list(X)
    except TypeError:
        raise SettingError(f"{_ALLOWED}. Got {type(X).__name__}.") from None


def _rows(X: Any) -> list[Any]:
    """Return the images of an array as a list."""
    if X.dtype.kind in "OUT" and (X.ndim == 1 or (X.ndim == 2 and X.shape[1] == 1)):
        return list(X.ravel())
    if X.dtype == np.uint8 and X.ndim == 4 and X.shape[3] in (1, 3, 4):
        return list(X)
    remedy = ""
    if X.dtype == np.uint8 and X.ndim == 3:
        remedy = ": pass X[None] for one image, X[..., None] for grey images"
    elif X.dtype.kind == "S":
        remedy = ": NumPy drops trailing zeros of such bytes, pass a list or dtype=object"
    elif X.dtype.kind == "f":
        remedy = ": pass values from 0 to 255 as uint8"
    raise SettingError(f"{_ALLOWED}. Got an array of shape {X.shape} and type {X.dtype}{remedy}.")


def _value(element: Any, row: int) -> Value:
    """Return an element of X as an embedder takes it."""
    element = _normalized(element)
    if isinstance(element, str):
        return _absolute(element)
    if element is None or isinstance(element, bytes | np.ndarray):
        return element
    remedy = ": pass numpy.asarray(image.convert('RGB'))" if hasattr(element, "convert") else ""
    raise SettingError(f"{_ALLOWED}. X[{row}] is of type {type(element).__name__}{remedy}.")


def _normalized(element: Any) -> Any:
    """Return an element of X as a uri, bytes, an array, or None for a missing value of a table."""
    if isinstance(element, str):
        return str(element)
    if isinstance(element, os.PathLike):
        return os.fsdecode(element)
    if isinstance(element, bytes | bytearray | memoryview):
        return bytes(element)
    if isinstance(element, np.ndarray):
        return np.asarray(element)  # a memory map, too, which children then need not open
    is_nan = isinstance(element, float) and math.isnan(element)
    return None if is_nan or type(element).__name__ in ("NAType", "NaTType") else element


def _absolute(uri: str) -> str:
    """Return a uri that is valid in a process with another working folder."""
    if "://" in uri or uri.startswith("file:/"):
        return uri
    path = Path.cwd() / uri
    try:
        uri.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8: only a url can spell it
        return path.as_uri()
    return str(path)


def _plain(value: Any) -> Any:
    """Return a parameter as a plain Python value: searches pass NumPy numbers, users pass paths."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fsdecode(value) if isinstance(value, os.PathLike) else value
