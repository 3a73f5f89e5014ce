"""A trained model: a classifier, and all that a picture goes through before it; a folder of hashed files.

MODEL/
  model.json       format, feature space, labels, what it was trained on, what was measured, versions, hashes
  classifier.npz   the classifier's arrays
  projection.npz   the projection of the reduced set that it was trained on, if it was one

No pickle anywhere: what is read is JSON and plain arrays, and only after their hashes agree.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurepress.analysis import PCA, Classifier
from featurepress.errors import AnalysisError, DestinationError, PlanMismatchError, StorageError
from featurepress.ledger.names import TRAINED_CLASSIFIER, TRAINED_MODEL, TRAINED_PROJECTION
from featurepress.specs import BackboneSpec
from featurepress.storage import Storage, open_storage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from featurepress.specs import Features

FORMAT = 1


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A classifier of pictures, with the feature space that it knows.

    Use `featurepress.train` to make one, `featurepress.open_model` to read one.

    Attributes
    ----------
    classifier : Classifier
        Of features in the model's space.
    backbone : BackboneSpec
        That space: the backbone, and the projection if the features were reduced.
    projection : PCA or None
        What the backbone's features go through first, if they were reduced.
    asked : mapping
        The settings by which `embed` finds the backbone: model, size, alpha, weights, pooling, precision.
    trained_on : mapping
        Which feature set, which labels, how split; the settings of the classifier.
    metrics : mapping
        What was measured when it was trained.
    versions : mapping
        Of the libraries that trained it.
    location : str
        Where it lies; "" if it was not written.
    sha256 : str
        Content hash of model.json, and so of all; "" if it was not written.
    """

    classifier: Classifier
    backbone: BackboneSpec
    projection: PCA | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    location: str = ""
    sha256: str = ""

    def __repr__(self) -> str:
        return (
            f"<TrainedModel '{self.location}': {self.classifier.kind}, {len(self.labels)} labels, "
            f"{self.backbone.model}>"
        )

    @property
    def labels(self) -> npt.NDArray[np.str_]:
        """What it tells apart: array (n_classes,) of str, sorted."""
        return self.classifier.classes_

    @property
    def fingerprint(self) -> str:
        """Name of the feature space that it knows."""
        return self.backbone.fingerprint

    def predict_proba(self, X: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Give the probability of each label.

        Parameters
        ----------
        X : array (n_samples, n_features)
            Features in the model's own space; of a model of reduced features, those of the backbone as well.

        Returns
        -------
        array (n_samples, n_classes)
            Columns in the order of `labels`.
        """
        own = self.backbone.n_features
        if self.projection is not None and X.ndim == 2 and X.shape[1] == len(self.projection.mean_) != own:
            X = self.projection.transform(X)
        return self.classifier.predict_proba(X)

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
        """Give the most probable label of each row: array (n_samples,) of str; `X` as for `predict_proba`."""
        found: npt.NDArray[np.str_] = self.labels[self.predict_proba(X).argmax(axis=1)]
        return found

    def preparing(self, backbone: BackboneSpec, location: str) -> Callable[[Features], Features]:
        """Give what turns features of a set into those that the classifier knows.

        Parameters
        ----------
        backbone : BackboneSpec
            Of the set.
        location : str
            Where the set lies, for the error.

        Raises
        ------
        PlanMismatchError
            The set is of another feature space; both are named.
        """
        if backbone.fingerprint == self.fingerprint:
            return lambda X: X
        if self.projection is not None and backbone.fingerprint == self.backbone.unprojected.fingerprint:
            return self.projection.transform
        differences = self.backbone.differences(backbone)
        raise PlanMismatchError(
            f"The model '{self.location}' cannot tell the features of '{location}'; it knows features with "
            f"{'; '.join(differences)}. Embed the pictures with the model's own backbone, and reduce with its "
            "projection, or predict from the pictures."
        )

    # -- storage ---------------------------------------------------------------------------------------------

    def save(self, out: str | Path) -> TrainedModel:
        """Write the model into a free folder; give the same model with its `location` and `sha256`.

        Raises
        ------
        DestinationError
            The folder holds something, or cannot be written.
        """
        storage = open_storage(str(out))
        require_free(storage)
        files = {TRAINED_CLASSIFIER: self.classifier.to_bytes()}
        if self.projection is not None:
            files[TRAINED_PROJECTION] = self.projection.to_bytes()
        text = self._text({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
        try:
            storage.prepare()
            for name, data in files.items():
                storage.write(name, data)
            is_ours = storage.create(TRAINED_MODEL, text)
        except StorageError as error:
            raise DestinationError(f"{str(error).rstrip('.')}. Choose another --out.") from error
        if not is_ours:
            require_free(storage)
        return replace(self, location=storage.location, sha256=hashlib.sha256(text).hexdigest())

    def _text(self, hashes: Mapping[str, str]) -> bytes:
        values = {
            "format": FORMAT,
            "kind": self.classifier.kind,
            "labels": self.labels.tolist(),
            "fingerprint": self.fingerprint,
            "backbone": {**self.backbone.to_json(), "file": ""},  # found by its name, wherever it lies
            "asked": dict(self.asked),
            "trained_on": dict(self.trained_on),
            "metrics": dict(self.metrics),
            "versions": dict(self.versions),
            "files": dict(hashes),
        }
        values["sha256"] = _own_hash(values)
        return json.dumps(values, indent=1, ensure_ascii=False).encode()


def open_model(location: str | Path) -> TrainedModel:
    """Read a model that `featurepress.train` has written.

    Parameters
    ----------
    location : str or path
        The ``--out`` of train; a folder or a bucket.

    Raises
    ------
    AnalysisError
        There is no model, it is of a newer format, or a file of it was changed since it was trained.
    """
    storage = open_storage(str(location))
    text = storage.read(TRAINED_MODEL)
    if text is None:
        raise AnalysisError(
            f"'{location}' is not a trained model: there is no {TRAINED_MODEL} in it. Give --out of a train."
        )
    values = _checked(storage, text)
    files = {name: _file(storage, name, sha256) for name, sha256 in values["files"].items()}
    backbone = BackboneSpec.from_json(values["backbone"])
    if backbone.fingerprint != values["fingerprint"]:
        raise _changed(storage, TRAINED_MODEL)
    try:
        classifier = Classifier.from_bytes(files[TRAINED_CLASSIFIER])
        projection = PCA.from_bytes(files[TRAINED_PROJECTION]) if TRAINED_PROJECTION in files else None
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _changed(storage, TRAINED_CLASSIFIER) from error
    return TrainedModel(
        classifier,
        backbone,
        projection,
        **{name: values[name] for name in ("asked", "trained_on", "metrics", "versions")},
        location=storage.location,
        sha256=hashlib.sha256(text).hexdigest(),
    )


def is_model(location: str | Path) -> bool:
    """Whether a trained model lies there, whole or not."""
    return open_storage(str(location)).look(TRAINED_MODEL) is not None


def require_free(storage: Storage) -> None:
    """Refuse a destination that holds anything.

    Raises
    ------
    DestinationError
        It does, or it cannot be read.
    """
    try:
        there = next(iter(storage.list("")), None)
    except StorageError as error:
        raise DestinationError(f"{str(error).rstrip('.')}. Choose another --out.") from error
    path = Path(storage.location)
    if path.exists() and not path.is_dir():
        raise DestinationError(f"The destination '{storage.location}' is a file. Give a folder with --out.")
    if there is not None:
        what = "a trained model" if storage.look(TRAINED_MODEL) is not None else f"something else ('{there.name}')"
        raise DestinationError(
            f"The destination '{storage.location}' holds {what} already. Nothing was touched. Choose another --out."
        )


def _checked(storage: Storage, text: bytes) -> dict[str, Any]:
    """Parse model.json, and make sure that it is what was written."""
    try:
        values: dict[str, Any] = json.loads(text)
        version, said = values["format"], values["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise _changed(storage, TRAINED_MODEL) from error
    if isinstance(version, int) and version > FORMAT:
        raise AnalysisError(
            f"The model '{storage.location}' is of format {version}, and this featurepress reads up to {FORMAT}. "
            "Upgrade featurepress."
        )
    if said != _own_hash(values):
        raise _changed(storage, TRAINED_MODEL)
    return values


def _file(storage: Storage, name: str, sha256: str) -> bytes:
    data = storage.read(name)
    if data is None:
        raise AnalysisError(
            f"The model '{storage.location}' lacks its file '{name}'. Copy it whole, or train it again."
        )
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _changed(storage, name)
    return data


def _changed(storage: Storage, name: str) -> AnalysisError:
    return AnalysisError(
        f"'{storage.location}/{name}' is not what it was when the model was trained (its hash is another). "
        "Restore it, or train again."
    )


def _own_hash(values: Mapping[str, Any]) -> str:
    """Hash what model.json says, but for this hash itself."""
    rest = {name: value for name, value in values.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
