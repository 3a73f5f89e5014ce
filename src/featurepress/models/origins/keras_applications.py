"""The architectures of Keras Applications, with their ImageNet weights or the user's, made ready once.

The list, the sizes and the preprocessing are taken from the installed keras itself, which is asked in a child
process and whose answer is kept: a run with a model that is ready never imports keras.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featurepress.errors import ModelError
from featurepress.models import store
from featurepress.models.card import ModelCard
from featurepress.models.origins.weights import keras_folder
from featurepress.process import Child, ChildDiedError
from featurepress.progress import OnProgress, ignore_progress
from featurepress.specs import PreprocessSpec

# Sizes of ours where they differ from keras's: the notebook's, which is also the cheapest that has its own weights.
DEFAULT_SIZES = {"mobilenet_v2": 96}

RANDOM = "random"  # for measuring speed, which does not depend on them

SILENCE_SECONDS = 1200  # of a conversion; the longest measured is 90, and a download tells of itself

_APACHE = "Apache-2.0"
# Family (keras's module) -> licence of the ImageNet weights, as their publishers state it.
_LICENCES = {
    "convnext": "MIT (Facebook Research)",
    "densenet": "BSD-3-Clause (the authors of DenseNet)",
    "efficientnet": f"{_APACHE} (Google)",
    "efficientnet_v2": f"{_APACHE} (Google)",
    "inception_resnet_v2": f"{_APACHE} (Google)",
    "inception_v3": f"{_APACHE} (Google)",
    "mobilenet": f"{_APACHE} (Google)",
    "mobilenet_v2": f"{_APACHE} (Google)",
    "mobilenet_v3": f"{_APACHE} (Google)",
    "nasnet": f"{_APACHE} (Google)",
    "resnet": "MIT (Kaiming He)",
    "resnet_v2": "not stated (published by Keras)",
    "vgg16": "CC-BY-4.0 (Visual Geometry Group, Oxford)",
    "vgg19": "CC-BY-4.0 (Visual Geometry Group, Oxford)",
    "xception": "MIT (François Chollet)",
}


@dataclass(frozen=True)
class Architecture:
    """One architecture of Keras Applications.

    Parameters
    ----------
    name : str
        As people write it here, ``mobilenet_v2``.
    keras_name, module : str
        Where it is, ``MobileNetV2`` in ``keras.applications.mobilenet_v2``.
    default_size, min_size : int
        Sides of the input in pixels.
    mode : str
        Keras's word for the preprocessing: ``tf``, ``caffe``, ``torch``, or ``inside the model``.
    mean, scale, channel_order
        The same as numbers, see `PreprocessSpec`.
    alpha : float or None
        Default width, where the architecture has widths.
    """

    name: str
    keras_name: str
    module: str
    default_size: int
    min_size: int
    mode: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    channel_order: str
    alpha: float | None

    def preprocess(self, size: int) -> PreprocessSpec:
        """Give what pixels go through: stretched by plain bilinear interpolation, as ``tf.image.resize`` does."""
        return PreprocessSpec(
            height=size,
            width=size,
            interpolation="bilinear",
            antialias=False,
            dtype="float32",
            mean=self.mean,
            scale=self.scale,
            channel_order=self.channel_order,
        )

    @property
    def licence(self) -> str:
        """Licence of the ImageNet weights."""
        return _LICENCES.get(self.module, "see keras.io/api/applications")


def spelled(keras_name: str) -> str:
    """Give our spelling of keras's name: ``InceptionResNetV2`` is ``inception_resnet_v2``."""
    name = re.sub(r"(NASNet|ConvNeXt|(?<=[a-z])V3|(?<=[a-z0-9])V2|Inception(?=Res))(?=[A-Z])", r"\1_", keras_name)
    name = re.sub(r"(?<=[a-z])(?=V\d)|(?<=\d)(?=V2)|(?<=[a-z])(?=B\d$)", "_", name)
    return re.sub(r"_+", "_", name).lower()


def plain(name: str) -> str:
    """Give a name without what people write differently: case, dashes, underscores."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@functools.cache
def architectures() -> dict[str, Architecture]:
    """Give all architectures by name, as the installed keras has them."""
    path = store.home() / f"keras-{version('keras')}.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        from featurepress.models.conversion import keras_models

        entries = in_child(keras_models.list_architectures)
        with store.workplace() as place:
            (place / "list.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
            (place / "list.json").replace(path)
    found = {}
    for entry in entries:
        entry.update(name=spelled(entry["keras_name"]), mean=tuple(entry["mean"]), scale=tuple(entry["scale"]))
        found[entry["name"]] = Architecture(**entry)
    return found


def in_child(
    function: Callable[..., Any],
    *args: Any,
    on_progress: OnProgress = ignore_progress,
    backend: str = "openvino",
) -> Any:
    """Run a function in a child whose keras runs on OpenVINO; the user's own keras is left alone.

    Raises
    ------
    ModelError
        Whatever is wrong with the model; or it has killed the child.
    """
    keras_home = store.home() / "keras"
    child = Child(
        environment={
            "KERAS_BACKEND": backend,
            "KERAS_HOME": str(keras_home),
            "FEATUREPRESS_HOME": str(store.home()),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
    )
    try:
        return child.call(function, *args, silence_seconds=SILENCE_SECONDS, on_message=on_progress)
    except OSError as error:  # the model itself is read by libraries, whose errors are ours by now
        raise store.not_kept(store.home(), error) from error
    except ChildDiedError as death:
        raise ModelError(f"The model could not be read: the process that did it {death}.") from death
    finally:
        child.close()


def prepare(
    architecture: Architecture,
    *,
    size: int | None,
    alpha: float | None,
    weights: str | None,
    pooling: str,
    on_progress: OnProgress,
) -> ModelCard:
    """Give an architecture ready to run, made now if it never was.

    Parameters
    ----------
    size : int or None
        Side of the input in pixels; None for the default.
    alpha : float or None
        Width; None for the default.
    weights : str or None
        ``imagenet`` (also None), the path of a keras weights file, or `RANDOM`.
    pooling : str
        What is wanted; most architectures pool last, and one file serves every pooling.
    on_progress : callable
        Hears of downloads and conversions.

    Raises
    ------
    ModelError
        The architecture cannot be had so, or its weights are not to be had.
    """
    request, path = _request(architecture, size=size, alpha=alpha, weights=weights, pooling=pooling)
    card = store.remembered(request)
    if card is None:
        card = _convert(architecture, request, path, on_progress)
        store.remember(request, card.file)
    return card


def find_ready(
    architecture: Architecture, *, size: int | None, alpha: float | None, weights: str | None
) -> ModelCard | None:
    """Give an architecture if it was made ready before, for whatever pooling."""
    for pooling in ("avg", "flatten", "max"):
        request, _ = _request(architecture, size=size, alpha=alpha, weights=weights, pooling=pooling)
        if (card := store.remembered(request)) is not None:
            return card
    return None


def _request(
    architecture: Architecture, *, size: int | None, alpha: float | None, weights: str | None, pooling: str
) -> tuple[dict[str, Any], Path | None]:
    """Give what names a model, and the user's weights file if there is one."""
    size = checked_size(architecture, size)
    if alpha is not None and architecture.alpha is None:
        raise ModelError(f"The model {architecture.name} has no widths. Leave out --alpha.")
    is_file = weights not in (None, "imagenet", RANDOM)
    path = _weights_path(str(weights)) if is_file else None
    request = {
        "kind": "keras",
        "name": architecture.name,
        "size": size,
        "alpha": architecture.alpha if alpha is None else alpha,
        "weights": (weights or "imagenet") if path is None else store.content_hash(path),
        "pooling": pooling,
    }
    return request, path


def checked_size(architecture: Architecture, size: int | None) -> int:
    """Give the side of the input, the default if none is given; refuse one that the architecture cannot take."""
    size = size or DEFAULT_SIZES.get(architecture.name, architecture.default_size)
    if size < architecture.min_size:
        raise ModelError(
            f"The model {architecture.name} takes pictures of {architecture.min_size} pixels a side and more. "
            f"Got --size {size}."
        )
    return size


def _weights_path(given: str) -> Path:
    path = Path(given).expanduser()
    if not path.is_file():
        raise ModelError(f"There is no weights file '{given}'. Give 'imagenet', or a .h5 or .weights.h5 file.")
    if path.suffix != ".h5":
        raise ModelError(f"The weights '{given}' must be a keras weights file, .h5 or .weights.h5.")
    return path.absolute()


def _convert(
    architecture: Architecture, request: dict[str, Any], path: Path | None, on_progress: OnProgress
) -> ModelCard:
    from featurepress.models.conversion import keras_models

    with store.workplace() as place:
        told = {**asdict(architecture), **request, "file": None if path is None else str(path)}
        facts = in_child(keras_models.convert, told, str(keras_folder()), str(place), on_progress=on_progress)
        made_from = {
            "kind": "keras",
            "name": architecture.name,
            "size": request["size"],
            "alpha": request["alpha"],
            "weights_sha256": facts["weights_sha256"],
            "variant": facts["variant"],
            "pooled": facts["pooled"],
        }
        is_imagenet = facts["variant"] == "imagenet"
        told_of = f"the weights file '{facts['weights_file']}'" if facts["variant"] != RANDOM else "random weights"
        size, alpha = request["size"], request["alpha"]
        width = "" if alpha is None else f", width {alpha:g}"
        card = ModelCard(
            name=architecture.name,
            architecture=f"{architecture.keras_name} of Keras Applications{width}, at {size}x{size}",
            n_parameters=facts["n_parameters"],
            preprocess=architecture.preprocess(request["size"]),
            output=facts["output"],
            grid=tuple(facts["grid"]),
            file=store.key_of(made_from),
            weights_sha256=facts["weights_sha256"],
            training_data="ImageNet-1k" if is_imagenet else told_of,
            licence=architecture.licence if is_imagenet else "as the weights file",
            source=facts["weights_url"] if is_imagenet else told_of,
            pooled=facts["pooled"],
            n_bytes=facts["n_bytes"],
            origin={"request": request, "told": told, "variant": facts["variant"], "file": told["file"]},
            versions=facts["versions"],
        )
        store.publish(place, card)
    return card
