"""Models, from a name to a file that runs.

catalog      from what people ask for to a card
card         what is known of a model that is ready
backbone     load a model once a process and run it; openvino is its implementation
store        where the files of models lie
origins/     where models come from: Keras Applications, files, a hub; and their weights
conversion/  make a model file ready for OpenVINO, in a child process
"""

import sys

# Each `import openvino` would fork a process that reports the import to a web service. Without this module OpenVINO
# uses its own stub: nothing is sent, and no fork can hang a worker.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
