"""The tasks that predict the parts of a feature set; `learning.regions` has the one for regions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurepress.errors import AnalysisError
from featurepress.features.parts import part_batches, read_footer
from featurepress.learning import predictions
from featurepress.learning.model import TrainedModel
from featurepress.learning.predictions import UNKNOWN, Tally
from featurepress.ledger import Plan
from featurepress.ledger.names import part_name, prediction_name
from featurepress.process import send_message
from featurepress.settings import PredictionSettings
from featurepress.storage import Storage

if TYPE_CHECKING:
    import numpy.typing as npt

    Batch = tuple[list[Any], int, int]  # columns of rows; their number of images; how many of these were not read

_BATCH_ROWS = 1024


@dataclass(frozen=True)
class PredictionTask:
    """The task that predicts a part of a feature set, and writes its rows and its receipt.

    Parameters
    ----------
    storage : Storage
        The destination, which holds a copy of the model.
    model : str
        Hash of the model.
    settings : PredictionSettings
        Of the prediction.
    """

    storage: Storage
    model: str
    settings: PredictionSettings

    def __call__(self, plan: Plan, shard: int) -> int:
        """Predict part number `shard` of the feature set of `plan`; return its number of rows."""
        import pyarrow as pa

        model = predictions.copied_model(self.storage.location, self.model)
        # If the features are replaced after this, the rows are newer than the receipt: never older.
        tally = Tally(read_footer(plan.storage, part_name(shard))[1])
        schema = predictions.schema_of(asdict(self.settings))
        with predictions.part_writer(self.storage, shard, schema, self.settings.file_format) as write:
            for columns, n_images, n_unread in self.batches(model, plan, shard):
                table = pa.table(columns, names=schema.names).cast(schema)
                write(table)
                tally.add(table.column("label").to_pylist(), n_images, n_unread)
        predictions.write_json(self.storage, prediction_name(shard, "json"), tally.to_receipt(self.model))
        return tally.rows

    @abstractmethod
    def batches(self, model: TrainedModel, plan: Plan, shard: int) -> Iterator[Batch]:
        """Yield the rows of the part in batches, in the order of the features."""


class LabelTask(PredictionTask):
    """The task that predicts one label per image."""

    def batches(self, model: TrainedModel, plan: Plan, shard: int) -> Iterator[Batch]:
        """Yield a row for each image."""
        location = plan.storage.location
        transform = model.transform_of(plan.backbone, location)
        for X, batch in part_batches(plan, part_name(shard), ["uri"], _BATCH_ROWS):
            uris = batch.column("uri")
            if not np.isfinite(X).all():  # featurepress never writes such features
                uri = uris[int(np.flatnonzero(~np.isfinite(X).all(axis=1))[0])].as_py()
                raise AnalysisError(
                    f"The features of '{uri}' in '{location}' are NaN or infinite. Embed that set again."
                )
            probabilities = model.classifier.predict_proba(transform(X))
            yield [uris, *self._columns(model.labels, probabilities)], len(batch), 0
            send_message(("rows", len(batch)))

    def _columns(self, labels: npt.NDArray[np.str_], probabilities: npt.NDArray[np.float64]) -> list[Any]:
        """Return the columns behind the uri, from the probabilities of all labels: array (n_samples, n_classes)."""
        top_k, threshold = self.settings.top_k, self.settings.threshold
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        ranked = labels[order].astype(object)
        highest = np.take_along_axis(probabilities, order, axis=1).astype(np.float32)
        first = ranked[:, 0]
        if threshold is not None:  # compared as written, in single precision
            first = np.where(highest[:, 0] < threshold, UNKNOWN, first)
        columns = [first, highest[:, 0]]
        if top_k > 1 or threshold is not None:
            columns += [column for i in range(top_k) for column in (ranked[:, i], highest[:, i])]
        return columns
