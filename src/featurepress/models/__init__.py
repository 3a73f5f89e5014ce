"""Models: list, show, pull, add, verify and time them; each function is imported when it is first used.

verbs        the public functions; verify and bench are in embedding and runs, which are above this package
catalog      from a name, a file or a hub's repository to a card
card         what is known about a model
store        the folder where models and their notes are stored
backbone     load a model once per process and run it; openvino implements it
origins/     where models come from: Keras Applications, files, a hub; and their weights
conversion/  convert a model file for OpenVINO, in a child process
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurepress.embedding.parity import verify
    from featurepress.models.origins.files import outputs
    from featurepress.models.verbs import add, pull, show
    from featurepress.models.verbs import list_models as list
    from featurepress.runs.benchmark import bench

__all__ = ["add", "bench", "list", "outputs", "pull", "show", "verify"]

_LOCATIONS = {
    "add": ("models.verbs", "add"),
    "bench": ("runs.benchmark", "bench"),
    "list": ("models.verbs", "list_models"),
    "outputs": ("models.origins.files", "outputs"),
    "pull": ("models.verbs", "pull"),
    "show": ("models.verbs", "show"),
    "verify": ("embedding.parity", "verify"),
}

# Each `import openvino` would fork a process that reports the import to a web service. Without this module OpenVINO
# uses its own stub: nothing is sent, and no fork can hang a worker.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def __getattr__(name: str) -> Any:
    if name not in _LOCATIONS:
        raise AttributeError(f"module 'featurepress.models' has no attribute '{name}'")
    module, function = _LOCATIONS[name]
    return getattr(import_module(f"featurepress.{module}"), function)


def __dir__() -> Sequence[str]:
    return __all__
