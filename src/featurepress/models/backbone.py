"""What a backbone is, and how a small description becomes one, once a process."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from featurepress.specs import BackboneSpec
from featurepress.storage import Storage

if TYPE_CHECKING:
    from featurepress.specs import Features

# runtime of BackboneSpec -> class. Closed: a plan read from disk cannot name other code.
RUNTIMES = {
    "openvino": "featurepress.models.openvino:OpenVinoBackbone",
    "fake": "featurepress.testing:FakeBackbone",
}


class Backbone(Protocol):
    """A model, ready to run, and its pooling.

    The features of an image do not depend on what stands beside it in the batch, on its position, or on the
    size of the batch: not in a single bit.
    """

    @property
    def batch_size(self) -> int:
        """Images a call that run fastest; `__call__` takes exactly so many."""

    @property
    def precision(self) -> str:
        """``float32`` or ``bfloat16``: what it really computes in."""

    def __call__(self, pixels: Any) -> Features:
        """Run the model.

        Parameters
        ----------
        pixels : array (batch_size, H, W, 3)
            RGB, of the type that the spec's `preprocess.dtype` names.

        Returns
        -------
        array (batch_size, n_features) float32
            Valid until the next call.
        """


def _implementation(runtime: str) -> Any:
    module, _, name = RUNTIMES[runtime].partition(":")
    return getattr(import_module(module), name)


def supports_bfloat16(spec: BackboneSpec) -> bool:
    """Whether this machine computes in bfloat16 natively with the backbone's runtime."""
    return bool(_implementation(spec.runtime).supports_bfloat16(spec))


def load_backbone(spec: BackboneSpec, precision: str) -> Backbone:
    """Give the backbone of a description, loaded at most once a process and precision.

    Parameters
    ----------
    spec : BackboneSpec
        What to load.
    precision : str
        ``bfloat16`` is followed where the CPU has it natively; elsewhere the backbone computes in float32
        and says so in its `precision`.
    """
    if precision == "bfloat16" and not supports_bfloat16(spec):
        precision = "float32"
    return _loaded(spec, precision)


def fetch_model(spec: BackboneSpec, storage: Storage) -> None:
    """See to it that the model of a description is on this machine, if the destination of its plan holds it."""
    if spec.file and spec.file not in _FETCHED:
        from featurepress.models.store import take_from

        take_from(storage, spec.file)
        _FETCHED.add(spec.file)


_FETCHED: set[str] = set()  # in this process


# One at a time: a large model is not kept in the precision that was only tried.
@functools.lru_cache(maxsize=1)
def _loaded(spec: BackboneSpec, precision: str) -> Backbone:
    return cast(Backbone, _implementation(spec.runtime)(spec, precision))
