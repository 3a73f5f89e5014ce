"""A trained model: a classifier, its feature space, and how it was trained; docs/how-to/train.md lists its files.

No pickle: the files are JSON and plain arrays, and are read only if their hashes agree.
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
from featurepress.errors import AnalysisError, DestinationError, PlanMismatchError
from featurepress.features.notebook import to_html
from featurepress.ledger.destination import destination_errors, require_free_destination
from featurepress.ledger.names import TRAINED_CLASSIFIER, TRAINED_MODEL, TRAINED_PROJECTION
from featurepress.specs import BackboneSpec
from featurepress.storage import Storage, open_storage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from featurepress.specs import Features

FORMAT = 2


@dataclass(frozen=True, eq=False, repr=False)
class TrainedModel:
    """A classifier of images, with its feature space.

    Use `featurepress.train` to make one, `featurepress.open_model` to read one.

    Attributes
    ----------
    classifier : Classifier
        Fitted to features of the model's feature space.
    backbone : BackboneSpec
        The feature space: the backbone, and the projection if the features were reduced.
    projection : PCA or None
        What reduces the features of the backbone; None if the model was trained on features as embedded.
    embed_settings : mapping
        The settings with which `embed` finds the backbone: model, size, alpha, weights, pooling, precision.
    trained_on : mapping
        The feature set, its labels and its split; the settings of the classifier.
    metrics : mapping
        The scores measured in training: ``naive`` and ``leak_aware``.
    versions : mapping
        Versions of the libraries that trained it.
    location : str
        Where it is stored; "" if it is in memory only.
    sha256 : str
        Hash of model.json, which holds the hashes of the other files; "" if it is in memory only.
    """

    classifier: Classifier
    backbone: BackboneSpec
    projection: PCA | None = None
    embed_settings: Mapping[str, Any] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    location: str = ""
    sha256: str = ""

    def __repr__(self) -> str:
        name = f"'{self.location}'" if self.location else "in memory"
        return f"<TrainedModel {name}: {self.classifier.kind}, {len(self.labels)} labels, {self.backbone.model}>"

    def _repr_html_(self) -> str:
        """Return the model as HTML for notebooks: facts, and its scores."""
        facts = {
            "location": self.location or "in memory",
            "kind": self.classifier.kind,
            "labels": f"{len(self.labels):,}: {', '.join(self.labels[:10].tolist())}",
            "backbone": f"{self.backbone.model}, {self.backbone.n_features:,} features",
            "fitted to": f"{self.classifier.n_samples_:,} images",
            "fingerprint": self.fingerprint,
        }
        rows = []
        for name in ("leak_aware", "naive"):
            scores = (self.metrics.get(name) or {}).get("scores")
            if scores is not None:
                low, high = scores["interval"]
                accuracy = {"accuracy": f"{scores['accuracy']:.1%}", "95 % interval": f"{low:.1%} to {high:.1%}"}
                rows.append({"measured": name, **accuracy, "test images": scores["n_samples"]})
        return to_html("Trained model", facts, rows)

    @property
    def labels(self) -> npt.NDArray[np.str_]:
        """The labels it can predict: array (n_classes,) of str, sorted."""
        return self.classifier.classes_

    @property
    def fingerprint(self) -> str:
        """Name of its feature space."""
        return self.backbone.fingerprint

    def predict_proba(self, X: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the probability of each label.

        Parameters
        ----------
        X : array (n_samples, n_features)
            Features of the model's feature space. A model of reduced features also takes those of its backbone.

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
        """Return the most probable label of each row: array (n_samples,) of str; `X` as for `predict_proba`."""
        labels: npt.NDArray[np.str_] = self.labels[self.predict_proba(X).argmax(axis=1)]
        return labels

    def transform_of(self, backbone: BackboneSpec, location: str) -> Callable[[Features], Features]:
        """Return the function that turns features of a set into features for the classifier.

        `backbone` and `location` are those of the set. If the set is of another feature space, PlanMismatchError
        names both.
        """
        if backbone.fingerprint == self.fingerprint:
            return lambda X: X
        if self.projection is not None and backbone.fingerprint == self.backbone.unprojected.fingerprint:
            return self.projection.transform
        differences = self.backbone.differences(backbone)
        raise PlanMismatchError(
            f"The model '{self.location}' does not fit the features of '{location}'. It needs features with "
            f"{'; '.join(differences)}. Embed the images with the model's own backbone, and reduce with its "
            "projection, or predict from the images."
        )

    # -- storage ---------------------------------------------------------------------------------------------

    def save(self, out: str | Path) -> TrainedModel:
        """Write the model into an empty folder; return it with its `location` and `sha256`.

        Raises
        ------
        DestinationError
            The folder is not empty, or cannot be written.
        """
        storage = open_storage(str(out))
        require_free(storage)
        files = {TRAINED_CLASSIFIER: self.classifier.to_bytes()}
        if self.projection is not None:
            files[TRAINED_PROJECTION] = self.projection.to_bytes()
        text = self._text({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
        with destination_errors():
            storage.prepare()
            for name, data in files.items():
                storage.write(name, data)
            if not storage.create(TRAINED_MODEL, text):  # another process was quicker
                require_free(storage)
        return replace(self, location=storage.location, sha256=hashlib.sha256(text).hexdigest())

    def _text(self, hashes: Mapping[str, str]) -> bytes:
        values = {
            "format": FORMAT,
            "kind": self.classifier.kind,
            "labels": self.labels.tolist(),
            "fingerprint": self.fingerprint,
            "backbone": {**self.backbone.to_json(), "file": ""},  # found by its name on every machine
            "embed_settings": dict(self.embed_settings),
            "trained_on": dict(self.trained_on),
            "metrics": dict(self.metrics),
            "versions": dict(self.versions),
            "files": dict(hashes),
        }
        values["sha256"] = _own_hash(values)
        return json.dumps(values, indent=1, ensure_ascii=False).encode()


def open_model(location: str | Path) -> TrainedModel:
    """Open a model that `featurepress.train` has written.

    Parameters
    ----------
    location : str or path
        The ``--out`` of train: a folder, or one in a bucket.

    Raises
    ------
    AnalysisError
        There is no model, its format is newer than this version reads, or a file has changed since training.
    """
    storage = open_storage(str(location))
    text = storage.read(TRAINED_MODEL)
    if text is None:
        raise AnalysisError(
            f"'{location}' is not a trained model: it has no {TRAINED_MODEL}. Name the --out of featurepress train."
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
        **{name: values[name] for name in ("embed_settings", "trained_on", "metrics", "versions")},
        location=storage.location,
        sha256=hashlib.sha256(text).hexdigest(),
    )


def is_model(location: str | Path) -> bool:
    """Whether a location holds a trained model, complete or not."""
    return open_storage(str(location)).stat(TRAINED_MODEL) is not None


def as_model(model: TrainedModel | str | Path) -> TrainedModel:
    """Return a model; open it if its location is passed."""
    return model if isinstance(model, TrainedModel) else open_model(model)


def require_free(storage: Storage) -> None:
    """Raise DestinationError unless a destination is empty."""
    with destination_errors():
        if storage.stat(TRAINED_MODEL) is not None:
            raise DestinationError(
                f"The destination '{storage.location}' already holds a trained model. Nothing was changed. Choose "
                "another --out."
            )
        require_free_destination(storage)


def _checked(storage: Storage, text: bytes) -> dict[str, Any]:
    """Parse model.json, and check its format and its hash."""
    try:
        values: dict[str, Any] = json.loads(text)
        version, sha256 = values["format"], values["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise _changed(storage, TRAINED_MODEL) from error
    if isinstance(version, int) and version != FORMAT:
        remedy = "Update featurepress." if version > FORMAT else "Train it again."
        raise AnalysisError(
            f"The model '{storage.location}' has format {version}; this featurepress reads {FORMAT}. {remedy}"
        )
    if sha256 != _own_hash(values):
        raise _changed(storage, TRAINED_MODEL)
    return values


def _file(storage: Storage, name: str, sha256: str) -> bytes:
    data = storage.read(name)
    if data is None:
        raise AnalysisError(
            f"The model '{storage.location}' has no file '{name}'. Copy the whole folder, or train it again."
        )
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _changed(storage, name)
    return data


def _changed(storage: Storage, name: str) -> AnalysisError:
    return AnalysisError(
        f"'{storage.location}/{name}' has changed since the model was trained (its hash differs). Restore it, or "
        "train again."
    )


def _own_hash(values: Mapping[str, Any]) -> str:
    """Return the hash of the values of model.json without their ``sha256``."""
    rest = {name: value for name, value in values.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
