"""Make keras models ready to run: the part that imports keras, and so runs in a child process.

The child's KERAS_BACKEND is openvino: no TensorFlow, no torch. The functions of this file are light to import and
to send.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featurepress.errors import ModelError
from featurepress.models.card import KERAS_MODES
from featurepress.models.conversion import guard
from featurepress.models.origins import weights
from featurepress.models.store import content_hash
from featurepress.process import send_message
from featurepress.progress import Progress, step

# What keras's libraries raise when a model does not fit: nothing that stops the process is among them.
_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)


def on_progress(progress: Progress) -> None:
    """Send progress to the parent process."""
    send_message(progress)


# -- what keras has ------------------------------------------------------------------------------------------


def list_architectures() -> list[dict[str, Any]]:
    """Give all architectures of keras.applications, as `zoo.Architecture` has them but for our name.

    Sizes come from the call by which every architecture checks its input shape; the preprocessing from what
    `preprocess_input` does to black, white and coloured pixels.
    """
    on_progress(step("asking keras for its architectures", 0, 0))
    keras = quiet_keras()
    found = []
    for keras_name, build in sorted(vars(keras.applications).items()):
        if not inspect.isfunction(build) or "include_top" not in inspect.signature(build).parameters:
            continue
        sizes = _asked_sizes(build)
        mean, scale, order = _affine(preprocess_input(build))
        found.append(
            {
                "keras_name": keras_name,
                "module": build.__module__.rpartition(".")[2],
                "default_size": sizes["default_size"],
                "min_size": sizes["min_size"],
                "mode": _mode(mean, scale, order),
                "mean": mean,
                "scale": scale,
                "channel_order": order,
                "alpha": 1.0 if "alpha" in inspect.signature(build).parameters else None,
            }
        )
    return found


def preprocess_input(build: Callable[..., Any]) -> Callable[..., Any]:
    """Give keras's own preprocessing for an architecture."""
    function: Callable[..., Any] = sys.modules[build.__module__].preprocess_input
    return function


class _AskedError(Exception):
    """Carries the arguments of a call that was made instead of the real one."""


@contextlib.contextmanager
def _instead(module: Any, name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of keras for a while, in this child process of ours."""
    original = getattr(module, name)
    setattr(module, name, stand_in)
    try:
        yield
    finally:
        setattr(module, name, original)


def _asked_sizes(build: Callable[..., Any]) -> Mapping[str, Any]:
    """Give default_size and min_size of an architecture."""
    from keras.src.applications import imagenet_utils
    from keras.src.utils import file_utils

    real = inspect.signature(imagenet_utils.obtain_input_shape)

    def ask_shape(*args: Any, **kwargs: Any) -> None:
        raise _AskedError(real.bind(*args, **kwargs).arguments)

    def ask_file(fname: str, *args: Any, **kwargs: Any) -> None:
        # MobileNetV3 takes any size from 32 on without asking; the name of its weights has the one of its training.
        size = re.search(r"_(\d{3})_", fname)
        raise _AskedError({"default_size": int(size[1]) if size else 224, "min_size": 32})

    with _instead(imagenet_utils, "obtain_input_shape", ask_shape), _instead(file_utils, "get_file", ask_file):
        try:
            build(include_top=False, weights="imagenet")
        except _AskedError as asked:
            sizes: Mapping[str, Any] = asked.args[0]
            return sizes
    raise ModelError(f"This version of keras builds {build.__name__} in a way that is not known here.")


def _affine(function: Callable[..., Any]) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Give (mean, scale, channel order) of a function that maps levels to ``(level - mean) / scale``."""
    import numpy as np

    black = np.asarray(function(np.zeros((1, 1, 1, 3), np.float32)))[0, 0, 0].astype(np.float64)
    colours = np.diag([255.0] * 3).astype(np.float32)[:, None, None, :]
    answers = np.stack([np.asarray(function(one[None].copy()))[0, 0, 0] for one in colours]) - black
    order = "RGB" if abs(answers[0, 0]) > abs(answers[0, 2]) else "BGR"
    slopes = np.diag(answers if order == "RGB" else answers[:, ::-1].T) / 255
    scale = tuple(float(f"{1 / slope:.6g}") for slope in slopes)
    mean = tuple(abs(float(f"{-start / slope:.6g}")) for start, slope in zip(black, slopes, strict=True))
    levels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.float32)
    ours = (levels if order == "RGB" else levels[..., ::-1]).astype(np.float64)
    if np.abs((ours - mean) / scale - np.asarray(function(levels.copy()))).max() > 1e-4:
        raise ModelError("This version of keras preprocesses in a way that is not known here.")
    return _short(mean), _short(scale), order


def _mode(mean: tuple[float, ...], scale: tuple[float, ...], order: str) -> str:
    """Give keras's word for a normalisation."""
    word = next((word for word, one in KERAS_MODES.items() if one == (mean, scale, order)), "of its own")
    return "inside the model" if word == "raw" else word


def _short(values: tuple[float, ...]) -> tuple[float, ...]:
    return values[:1] if len(set(values)) == 1 else values


def quiet_keras() -> Any:
    """Import keras, quietly, and set what the user's keras.json could set otherwise."""
    warnings.filterwarnings("ignore")
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    return keras


# -- one architecture ----------------------------------------------------------------------------------------


def convert(told: Mapping[str, Any], keras_models: str, place: str) -> dict[str, Any]:
    """Build an architecture, load its weights, and write model.xml and model.bin.

    Parameters
    ----------
    told : mapping
        Fields of `zoo.Architecture`, and the request: size, alpha, weights, pooling, file.
    keras_models : str
        The user's keras's folder of weights.
    place : str
        The folder to write to.

    Returns
    -------
    dict
        What the model's card needs.
    """
    on_progress(step(f"building {told['name']}", 0, 0))
    keras = quiet_keras()
    build = getattr(keras.applications, told["keras_name"])
    options = {"include_top": False, "input_shape": (told["size"], told["size"], 3)}
    if told["alpha"] is not None:
        options["alpha"] = told["alpha"]
    chosen = Weights(told, Path(keras_models), build, options)
    # Some put a layer behind the pooling; then the pooled features are not the pooled grid, and every pooling is a
    # model of its own.
    pooling = None if told["pooling"] == "flatten" else told["pooling"]
    model = _built(lambda: chosen.build(pooling="avg"), told)
    is_last = isinstance(model.layers[-1], keras.layers.GlobalAveragePooling2D)
    if is_last:
        model = keras.Model(model.inputs, model.layers[-1].input)
    elif pooling != "avg":
        model = _built(lambda: chosen.build(pooling=pooling), told)
    on_progress(step(f"converting {told['name']} to OpenVINO", 0, 0))
    output = model.layers[-1].name
    facts = write_ready(keras, model, Path(place))
    return {
        **facts,
        **chosen.facts(),
        "output": output,
        "pooled": "" if is_last or pooling is None else pooling,
        "n_parameters": model.count_params(),
        "versions": {"keras": keras.__version__, "openvino": version("openvino")},
    }


def _built(build: Callable[[], Any], told: Mapping[str, Any]) -> Any:
    """Build, or say in one line why keras would not."""
    try:
        return build()
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:300]
        what = f"The model {told['name']} at {told['size']}x{told['size']}"
        if told["alpha"] is not None:
            what += f", width {told['alpha']:g},"
        if told["file"] is not None:
            raise ModelError(
                f"The weights '{told['file']}' do not fit {told['name']} without its classifier ({reason}). "
                "Check --model, --size and --alpha."
            ) from error
        raise ModelError(f"{what} could not be built by keras: {reason}") from error


class Weights:
    """Where the weights come from, and how a model is built with them.

    Some architectures are built otherwise for ImageNet's weights than for others: a file of the user that is
    keras's own is built as keras would.
    """

    def __init__(
        self, told: Mapping[str, Any], keras_models: Path, build: Callable[..., Any], options: Mapping[str, Any]
    ) -> None:
        self._told = told
        self._keras_models = keras_models
        self._build = build
        self._options = options
        self._file = None if told["file"] is None else Path(told["file"])
        self._used: Path | None = None
        self._url = ""
        self._variant = "imagenet"
        if told["weights"] == "random":
            self._variant = "random"
        elif self._file is not None:
            guard.check_weights(self._file)
            self._variant = "imagenet" if self._is_imagenet(self._file) else "custom"

    def build(self, pooling: str | None) -> Any:
        """Build the model with its weights."""
        options = {**self._options, "pooling": pooling}
        if self._variant == "random":
            import keras

            keras.utils.set_random_seed(0)
            return self._build(weights=None, **options)
        if self._variant == "custom":
            assert self._file is not None
            self._used = self._file
            return self._build(weights=str(self._file), **options)
        with self._get_file_is(self._fetch):
            return self._build(weights="imagenet", **options)

    def facts(self) -> dict[str, Any]:
        """Say what was used."""
        if self._variant == "random":
            return {"variant": "random", "weights_sha256": "random", "weights_file": "none", "weights_url": ""}
        assert self._used is not None
        return {
            "variant": self._variant,
            "weights_sha256": content_hash(self._used),
            "weights_file": self._used.name,
            "weights_url": self._url,
        }

    def _fetch(self, fname: str, origin: str, file_hash: str | None = None, **_: Any) -> str:
        """Stand in for keras's get_file."""
        self._url = origin
        if self._file is not None:
            self._used = self._file
        else:
            self._used = weights.fetch(fname, origin, file_hash, self._keras_models, on_progress)
        return str(self._used)

    def _is_imagenet(self, path: Path) -> bool:
        """Whether a file has the name or the hash of the one that keras would download."""

        def ask(fname: str, origin: str, file_hash: str | None = None, **_: Any) -> None:
            raise _AskedError(fname, file_hash)

        with self._get_file_is(ask), contextlib.suppress(Exception):
            try:
                self._build(weights="imagenet", **self._options)
            except _AskedError as asked:
                name, known = asked.args
                if path.name == name:
                    return True
                return bool(known) and weights.has_hash(path, known)
        return False

    @staticmethod
    def _get_file_is(function: Callable[..., Any]) -> Any:
        from keras.src.utils import file_utils

        return _instead(file_utils, "get_file", function)


# -- a file of the user ---------------------------------------------------------------------------------------


def convert_file(kind: str, given: str, choices: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Make a model file ready; give what its card needs.

    Parameters
    ----------
    kind : str
        ``keras``, ``onnx``, ``tflite``, ``openvino`` or ``saved_model``.
    given : str
        Its path.
    choices : mapping
        Fields of `files.Choices`.
    place : str
        The folder to write model.xml and model.bin to.
    """
    from featurepress.models.conversion import graph

    on_progress(step(f"converting {Path(given).name} to OpenVINO", 0, 0))
    how = {name: choices[name] for name in ("size", "layout", "output")}
    versions = {"openvino": version("openvino")}
    if kind != "keras":
        with _gathered(kind, Path(given), place) as path:
            return {**graph.finish(graph.read(path), Path(place), **how), "versions": versions}
    keras, model = load_keras(given)
    name = how["output"] or model.layers[-1].name
    cut = keras_cut(keras, model, name)
    cut = _keras_sized(keras, cut, how["size"])
    facts = write_ready(keras, cut, Path(place), layout="NHWC")
    first = [type(layer).__name__ for layer in model.layers[:4]]
    return {
        **facts,
        "output": name,
        "n_parameters": cut.count_params(),
        "normalises": bool({"Rescaling", "Normalization"} & set(first)),
        "versions": {**versions, "keras": keras.__version__},
    }


def list_outputs(kind: str, given: str) -> list[dict[str, Any]]:
    """List the tensors of a model file that can be its features: name, shape, what makes it."""
    from featurepress.models.conversion import graph

    if kind != "keras":
        with _gathered(kind, Path(given), None) as path:
            return graph.candidates(graph.read(path))
    _, model = load_keras(given)
    found = []
    for layer in model.layers:
        shape = getattr(layer.output, "shape", None) if not isinstance(layer.output, list | dict) else None
        if shape is not None and 2 <= len(shape) <= 4 and type(layer).__name__ != "InputLayer":
            shown = [-1 if side is None else side for side in shape]
            found.append({"name": layer.name, "shape": shown, "made_by": type(layer).__name__})
    return found


@contextlib.contextmanager
def _gathered(kind: str, path: Path, place: str | None) -> Iterator[Path]:
    """Give a model with its files really in one folder.

    Caches of hubs show links beside each other, and OpenVINO refuses weights that lie elsewhere.
    """
    beside = guard.external_files(path) if kind == "onnx" else []
    if not any(one.is_symlink() for one in beside):
        yield path
        return
    with tempfile.TemporaryDirectory(dir=place) as folder:
        for one in (path, *beside):
            real = Path(folder) / one.relative_to(path.parent)
            real.parent.mkdir(parents=True, exist_ok=True)
            try:
                real.hardlink_to(one.resolve())
            except OSError:  # another file system
                shutil.copyfile(one, real)
        yield Path(folder) / path.name


def load_keras(given: str) -> tuple[Any, Any]:
    """Load a checked .keras file without executing anything of it."""
    guard.check_keras(Path(given))
    keras = quiet_keras()
    try:
        model = keras.saving.load_model(given, compile=False, safe_mode=True)
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"The model '{given}' cannot be read by keras: {reason}") from error
    if len(model.inputs) != 1:
        listed = ", ".join(f"{one.name} {one.shape}" for one in model.inputs)
        raise ModelError(
            f"The model '{given}' must have one input, the pixels. It has {len(model.inputs)}: {listed}."
        )
    return keras, model


def keras_cut(keras: Any, model: Any, name: str) -> Any:
    """Give the model up to one layer."""
    layers = {layer.name: layer for layer in model.layers}
    if name not in layers:
        from featurepress.settings import nearest

        raise ModelError(
            f"The model has no layer '{name}'{nearest(name, list(layers))} "
            "featurepress models show FILE --outputs lists them."
        )
    output = layers[name].output
    if isinstance(output, list | dict):
        raise ModelError(f"The layer '{name}' has {len(output)} outputs. Choose another one by --output.")
    return keras.Model(model.inputs, output)


def _keras_sized(keras: Any, model: Any, size: int | None) -> Any:
    """Give the model with an input of fixed size: keras exports no other."""
    shape = model.inputs[0].shape
    if len(shape) != 4 or shape[3] != 3:
        raise ModelError(
            f"The model's input must be images of three colours, (N, H, W, 3). It has the shape {shape}."
        )
    if size is None and None in shape[1:3]:
        raise ModelError(f"The model takes pictures of any size (its input is {shape}). Say which by --size.")
    if size is None or (size, size) == tuple(shape[1:3]):
        return model
    try:
        pixels = keras.Input((size, size, 3))
        return keras.Model(pixels, model(pixels))
    except _FAILURES as error:
        raise ModelError(
            f"The model does not take pictures of {size}x{size}; its input has the shape {shape}. Leave out --size."
        ) from error


def write_ready(keras: Any, model: Any, place: Path, **how: Any) -> dict[str, Any]:
    """Export a keras model and make a ready one of it; see `graph.finish`."""
    from featurepress.models.conversion import graph
    from featurepress.models.conversion.transpositions import channels_first

    raw = place / "raw.xml"
    model.export(str(raw), format="openvino", verbose=False)
    try:
        plain, fast = graph.read(raw), graph.read(raw)
        channels_first(fast)
        return graph.finish(fast if graph.same_features(plain, fast) else plain, place, **how)
    finally:
        for path in place.glob("raw.*"):
            path.unlink()
