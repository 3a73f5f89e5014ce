"""Features as a step of a scikit-learn pipeline: pictures go in, an array of features comes out.

    from featurepress.sklearn import ImageFeaturizer
    model = make_pipeline(ImageFeaturizer(), StandardScaler(), LogisticRegression())
    model.fit(paths, labels)

For a whole collection `featurepress.embed` is the better way: it can be resumed, and never embeds a picture twice.
This here is for pictures that a pipeline gets one call at a time.
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
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from featurepress.embedding.values import Embedder, Value, name_of
from featurepress.errors import ModelError, RequestError, SettingError, SourceError
from featurepress.models import store
from featurepress.models.backbone import supports_bfloat16
from featurepress.runs.verbs import find_backbone
from featurepress.settings import DEFAULT_MODEL, ImageSettings, Settings, available_cores

if TYPE_CHECKING:
    from featurepress.specs import BackboneSpec, Features

__all__ = ["FailedImage", "ImageFeaturizer"]

# What a child gets at once: enough that pipes cost nothing, little enough that all children end together and that
# large pictures do not fill the memory.
_FEWEST, _MOST, _MOST_BYTES = 8, 64, 32 * 1024**2
_PRECISIONS, _ERRORS = ("float32", "bfloat16"), ("raise", "nan")


class FailedImage(NamedTuple):
    """A picture without features.

    Attributes
    ----------
    row : int
        Its place in X, from 0.
    picture : str
        Its uri without what is secret in it, or what it is.
    reason : str
        Why it has no features, in one line.
    """

    row: int
    picture: str
    reason: str


class ImageFeaturizer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn pictures into the features of a pretrained model.

    Nothing is learnt: `fit` only finds the model, and gets it ready if it never was. `transform` works without it.

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
        What becomes of the model's last grid.
    precision : {'float32', 'bfloat16'}, default='float32'
        Arithmetic. `fit` refuses bfloat16 where the CPU does not have it; `transform` elsewhere, of a pickle, falls
        back to float32.
    errors : {'raise', 'nan'}, default='raise'
        What becomes of a picture that has no features: an error, or a row of NaN.
    workers : int, optional
        Child processes that embed; by default one a core. Each takes about 200 MB and is kept for the next call.
        Give 1 inside something that has a process a core already, as ``GridSearchCV(n_jobs=-1)``.
    max_pixels, max_bytes, timeout_seconds
        What one picture that is read or decoded here may cost, as for `featurepress.embed`.

    Attributes
    ----------
    backbone_ : BackboneSpec
        The model with its preprocessing and pooling, after `fit`.
    fingerprint_ : str
        Names the space of the features: equal ones can be compared, with feature sets on disk too.
    n_features_out_ : int
        Number of features of a picture.
    failures_ : list of FailedImage
        The pictures without features in the last call of `transform`.

    Notes
    -----
    The features are, bit for bit, those of `featurepress.embed` in the same precision. They are embedded in child
    processes that start with the first `transform` and end with the estimator, or at `close`; pickles and clones
    have none. A picture that crashes its decoder costs a child and is a failure like any other.

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
        pooling: str = "avg",
        precision: str = "float32",
        errors: str = "raise",
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
        """Find the model; nothing is learnt from the pictures, and none is read.

        Parameters
        ----------
        X, y
            Not used.

        Raises
        ------
        SettingError
            A parameter has a value that is not allowed.
        ModelError
            There is no such model, or it cannot be had.
        RequestError
            The precision is bfloat16, and this CPU does not have it.
        """
        backbone = find_backbone(self._settings())
        if self.precision == "bfloat16" and not supports_bfloat16(backbone):
            raise RequestError(
                "The precision bfloat16 was asked for, and this CPU has no native bfloat16. "
                "Take precision='float32'."
            )
        self.backbone_ = backbone
        self.fingerprint_ = backbone.fingerprint
        self.n_features_out_ = backbone.n_features
        return self

    def transform(self, X: Any) -> Features:
        """Embed pictures.

        Parameters
        ----------
        X : list, array, Series, or table of one column
            Of paths and urls (``str`` or `Path`), of encoded pictures (``bytes``), or of pixels: arrays (H, W, 3)
            RGB, (H, W, 4) RGBA, which is laid over white, or (H, W) grey, uint8. Or one array (n_samples, H, W, 3).

        Returns
        -------
        array (n_samples, n_features) float32
            In the order of X.

        Raises
        ------
        SettingError
            X is nothing of that, or a parameter has a value that is not allowed.
        SourceError
            Pictures have no features, and `errors` is ``raise``.
        ModelError
            The model is not on this machine, and is no longer what it was.
        """
        settings = self._settings()
        pictures = _listed(X)
        values = [_value(one, row) for row, one in enumerate(pictures)]
        backbone = self._backbone()
        embedders = self._started(backbone, settings)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)  # at Ctrl-C as well
            features, reasons = embedders.embed(values)
            undo.pop_all()
        self.failures_ = [FailedImage(row, name_of(_named(pictures[row])), reasons[row]) for row in sorted(reasons)]
        if self.failures_ and self.errors == "raise":
            raise SourceError(_complaint(self.failures_, len(values)))
        return features

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names of the features: ``imagefeaturizer0``, ``imagefeaturizer1``, and so on.

        Parameters
        ----------
        input_features
            Not used.

        Returns
        -------
        array (n_features,) of str objects
        """
        prefix = type(self).__name__.lower()
        return np.asarray([f"{prefix}{i}" for i in range(self._backbone().n_features)], dtype=object)

    def close(self) -> None:
        """End the child processes now; the next `transform` starts new ones."""
        embedders = self.__dict__.pop("_embedders", None)
        if embedders is not None:
            embedders.end()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle and a copy hold: no processes."""
        return {name: value for name, value in self.__dict__.items() if name != "_embedders"}

    def __sklearn_tags__(self) -> Any:
        """Say that it takes pictures, learns nothing, and works without `fit`."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    # -- what it works with ------------------------------------------------------------------------------

    def _settings(self) -> Settings:
        """Check the parameters, which the constructor only stored."""
        for name, allowed in (("precision", _PRECISIONS), ("errors", _ERRORS)):
            if (given := getattr(self, name)) not in allowed:
                choice = " or ".join(map(repr, allowed))
                raise SettingError(f"The '{name}' of ImageFeaturizer must be {choice}. Got {given!r}.")
        options = {name: _plain(value) for name, value in self.get_params(deep=False).items() if name != "errors"}
        return Settings.from_options(**options)

    def _backbone(self) -> BackboneSpec:
        """Return the backbone of `fit`, or without `fit` that of the parameters; its model is on this machine."""
        backbone: BackboneSpec | None = getattr(self, "backbone_", None)
        if backbone is None:
            return find_backbone(self._settings())
        if not _is_here(backbone.file):  # the estimator came as a pickle
            found = find_backbone(self._settings())
            if differences := backbone.differences(found):
                raise ModelError(
                    f"The model that this ImageFeaturizer was fitted with is not here, and '{self.model}' "
                    f"is another one now: {'; '.join(differences)}. Fit it again, or bring that model here."
                )
            self.backbone_ = backbone = found
        return backbone

    def _started(self, backbone: BackboneSpec, settings: Settings) -> _Embedders:
        """Return the pressers for a backbone; those of the last call if they are for the same one."""
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
    """Whether this machine has the file of a model; some need none."""
    return not file or (store.BUNDLED / file).is_file() or store.read_card(file) is not None


# -- children ------------------------------------------------------------------------------------------------


class _Embedders:
    """Pressers side by side, each fed by a thread; their processes start when they are needed.

    Parameters
    ----------
    key : str
        What they are for.
    embedders : sequence of Embedder
        All for the same backbone.

    Attributes
    ----------
    end : callable
        Closes them once, however often it is called.
    """

    def __init__(self, key: str, embedders: Sequence[Embedder]) -> None:
        self.key = key
        self.end: Any = self.close
        self._embedders = embedders
        self._process = os.getpid()
        self._lock = threading.Lock()

    def embed(self, values: Sequence[Value]) -> tuple[Features, dict[int, str]]:
        """Return features (n_samples, n_features) float32, NaN where there are none, and the reasons by row."""
        features = np.full((len(values), self._embedders[0].backbone.n_features), np.nan, np.float32)
        reasons: dict[int, str] = {}
        runs = collections.deque(_cut(values, len(self._embedders)))

        def feed(embedder: Embedder) -> None:
            while runs:
                try:
                    run = runs.popleft()
                except IndexError:  # another thread took the last one
                    return
                for row, (data, reason) in enumerate(embedder.embed(values[run]), run.start):
                    if data is None:
                        reasons[row] = reason or ""
                    else:
                        features[row] = np.frombuffer(data, np.float32)

        used = self._embedders[: len(runs)]
        with self._lock, ThreadPoolExecutor(max(1, len(used)), "featurepress-sklearn") as threads:
            try:
                for done in as_completed([threads.submit(feed, embedder) for embedder in used]):
                    done.result()
            except BaseException:  # Ctrl-C as well: nobody waits for what is under way
                runs.clear()
                for embedder in self._embedders:
                    embedder.abandon()
                raise
        return features, reasons

    def close(self) -> None:
        """End the processes, unless this process is a fork of the one that started them."""
        if os.getpid() == self._process:
            for embedder in self._embedders:
                embedder.close()


def _cut(values: Sequence[Value], n_embedders: int) -> list[slice]:
    """Cut values into runs: of some pictures, and of not too many bytes."""
    most = min(_MOST, max(_FEWEST, len(values) // (4 * n_embedders)))
    runs, start, n_bytes = list[slice](), 0, 0
    for row, value in enumerate(values):
        size = value.nbytes if isinstance(value, np.ndarray) else len(value or ())
        if row - start == most or (row > start and n_bytes + size > _MOST_BYTES):
            runs.append(slice(start, row))
            start, n_bytes = row, 0
        n_bytes += size
    return [*runs, slice(start, len(values))] if len(values) else []


def _complaint(failures: Sequence[FailedImage], n: int) -> str:
    first = failures[0]
    return (
        f"{len(failures):,} of {n:,} pictures have no features; the first is X[{first.row}], {first.picture}: "
        f"{first.reason.rstrip('.')}. Leave them out (failures_ lists all), or take errors='nan'."
    )


# -- what X may be -------------------------------------------------------------------------------------------

_TAKEN = "X must hold uris, bytes or arrays (H, W, 3) of uint8, one a picture, or be an array (n_samples, H, W, 3)"


def _listed(X: Any) -> list[Any]:
    """Return the pictures of X one by one."""
    if isinstance(X, str | bytes | bytearray | os.PathLike):
        raise SettingError(f"{_TAKEN}. Got one {type(X).__name__}: give a list, [X].")
    columns = getattr(X, "columns", None)
    if columns is not None:  # a table of pandas or polars
        if len(columns) != 1:
            raise SettingError(f"{_TAKEN}. Got a table of {len(columns)} columns: give the one with the pictures.")
        return list(X[columns[0]])
    if isinstance(X, np.ndarray):
        return _rows(X)
    try:
        return list(X)
    except TypeError:
        raise SettingError(f"{_TAKEN}. Got {type(X).__name__}.") from None


def _rows(X: Any) -> list[Any]:
    """Return the pictures of an array."""
    if X.dtype.kind in "OUT" and (X.ndim == 1 or (X.ndim == 2 and X.shape[1] == 1)):
        return list(X.ravel())
    if X.dtype == np.uint8 and X.ndim == 4 and X.shape[3] in (1, 3, 4):
        return list(X)
    remedy = ""
    if X.dtype == np.uint8 and X.ndim == 3:
        remedy = ": give X[None] for one picture, X[..., None] for many grey ones"
    elif X.dtype.kind == "S":
        remedy = ": NumPy cuts zeros off such bytes, give a list or dtype=object"
    elif X.dtype.kind == "f":
        remedy = ": give the levels from 0 to 255 as uint8"
    raise SettingError(f"{_TAKEN}. Got an array of shape {X.shape} and type {X.dtype}{remedy}.")


def _value(one: Any, row: int) -> Value:
    """Return an element of X as the embedding process takes it."""
    one = _named(one)
    if isinstance(one, str):
        return _place(one)
    if one is None or isinstance(one, bytes | np.ndarray):
        return one
    remedy = ": give numpy.asarray(image.convert('RGB'))" if hasattr(one, "convert") else ""
    raise SettingError(f"{_TAKEN}. X[{row}] is of type {type(one).__name__}{remedy}.")


def _named(one: Any) -> Any:
    """Return an element of X as a uri, bytes, an array, or None for what tables have where nothing is."""
    if isinstance(one, str):
        return str(one)
    if isinstance(one, os.PathLike):
        return os.fsdecode(one)
    if isinstance(one, bytes | bytearray | memoryview):
        return bytes(one)
    if isinstance(one, np.ndarray):
        return np.asarray(one)  # of a memory map too, which children need not open
    is_missing = type(one).__name__ in ("NAType", "NaTType") or (isinstance(one, float) and math.isnan(one))
    return None if is_missing else one


def _place(uri: str) -> str:
    """Return a uri that means the same in another process: it may have started in another folder."""
    if "://" in uri or uri.startswith("file:/"):
        return uri
    path = Path.cwd() / uri
    try:
        uri.encode()
    except UnicodeEncodeError:  # a name that is no UTF-8: a url can spell it
        return path.as_uri()
    return str(path)


def _plain(value: Any) -> Any:
    """Return a parameter as the settings know it: searches bring NumPy's numbers, and people bring paths."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fsdecode(value) if isinstance(value, os.PathLike) else value
