"""Downloads of weights by the real Keras, from a server of the test."""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurepress.models.store import home
from tests.running import draw, run_cli, started, wait_until

NAME = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.5_96_no_top.h5"
PULL = ("models", "pull", "mobilenet_v2", "--alpha", "0.5")


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, or fails as requested."""

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = data
        self.way = "whole"
        self.half_way, self.go_on = threading.Event(), threading.Event()
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/mirror"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.way == "missing":
            self.send_error(404)
            return
        data = self.server.data
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if self.server.way in ("half", "endless") else data)
        self.wfile.flush()
        if self.server.way == "endless":
            self.server.half_way.set()
            self.server.go_on.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(embedded_weights: Path) -> Iterator[Server]:
    # The loader of keras's legacy files reads the new ones as well, if the name says so; the zoo asks by the old
    # name, so the file is written anew in the old way.
    with Server(legacy_weights(embedded_weights)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


LEGACY = """
import os, sys
os.environ["KERAS_BACKEND"] = "openvino"
import keras, h5py
from keras.src.legacy.saving import legacy_h5_format
model = keras.applications.MobileNetV2(input_shape=(96, 96, 3), alpha=0.5, include_top=False, weights=None)
model.load_weights(sys.argv[1])
with h5py.File(sys.argv[2], "w") as file:
    legacy_h5_format.save_weights_to_hdf5_group(file, model)
"""


def legacy_weights(weights: Path) -> bytes:
    """Return the weights of the bundled model in the format of Keras's downloads."""
    path = home().parent / "legacy.h5"
    if not path.exists():
        temporary = path.with_name(f"legacy-{os.getpid()}.h5")
        command = [sys.executable, "-c", LEGACY, str(weights), str(temporary)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        temporary.replace(path)
    return path.read_bytes()


@pytest.fixture
def environment(server: Server, tmp_path: Path) -> dict[str, str]:
    return {
        "FEATUREPRESS_HOME": str(tmp_path / "home"),
        "FEATUREPRESS_MIRROR": server.url,
        "KERAS_HOME": str(tmp_path / "keras"),
    }


def weights_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_weights_are_downloaded_once_and_pinned(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    done = run_cli(*PULL, environment=environment)
    assert done.returncode == 0, done.stderr
    assert server.asked == [f"/mirror/{NAME}"]
    folder = tmp_path / "home" / "weights"
    assert weights_in(folder) == [NAME, f"{NAME}.sha256"]
    digest = hashlib.sha256(server.data).hexdigest()
    assert (folder / f"{NAME}.sha256").read_text() == f"{digest}  {NAME}\n"
    assert digest[:12] in done.stderr
    # Another size has other weights in keras; the same size again has these, and works without the server.
    server.way = "missing"
    assert run_cli(*PULL, environment=environment).returncode == 0
    source = draw(tmp_path / "in", 3)
    options = ("--model", "mobilenet_v2", "--alpha", "0.5", "--pooling", "flatten", "--out", tmp_path / "out")
    assert run_cli("embed", source, *options, environment=environment).returncode == 0
    assert len(server.asked) == 1


def test_the_default_model_is_the_notebooks(server: Server, environment: dict[str, str], tmp_path: Path) -> None:
    """The default is MobileNetV2 1.0 at 96; offline the error lists the alternatives."""
    server.way = "missing"
    source = draw(tmp_path / "in", 3)
    command = [sys.executable, "-m", "featurepress", "embed", str(source), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    name = NAME.replace("0.5_96", "1.0_96")
    (line,) = done.stderr.splitlines()
    for word in (name, f"{server.url}/{name}", str(tmp_path / "home" / "weights"), "--weights FILE", "embedded"):
        assert word in line
    assert not (tmp_path / "out").exists()
    assert weights_in(tmp_path / "home" / "models") == []


@pytest.mark.parametrize(("way", "word"), [("missing", "HTTP 404"), ("half", "broke off")])
def test_a_download_that_fails_leaves_nothing(
    server: Server, environment: dict[str, str], tmp_path: Path, way: str, word: str
) -> None:
    server.way = way
    done = run_cli(*PULL, environment=environment)
    assert done.returncode == 2
    assert word in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert weights_in(tmp_path / "home" / "weights") == []
    server.way = "whole"
    assert run_cli(*PULL, environment=environment).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_download_that_is_stopped_leaves_nothing(
    server: Server, environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    server.way = "endless"
    with started(*PULL, environment=environment) as process:
        assert server.half_way.wait(60)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        wait_until(lambda: weights_in(tmp_path / "home" / "weights") == [], "the half download to be removed")
    assert process.returncode == 128 + number
    assert len(errors.splitlines()) == 1
    assert weights_in(tmp_path / "home" / "models") == []
    server.go_on.set()


def test_a_missing_connection_is_named(environment: dict[str, str]) -> None:
    done = run_cli(*PULL, environment={**environment, "FEATUREPRESS_MIRROR": "http://127.0.0.1:9/none"})
    assert done.returncode == 2
    assert "no connection" in done.stderr


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_missing_source_is_reported_before_the_model_is_downloaded(
    server: Server, environment: dict[str, str], tmp_path: Path, more: tuple[str, ...]
) -> None:
    done = run_cli(
        "embed", "nowhere", "--model", *PULL[2:], "--out", tmp_path / "out", *more, environment=environment
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("There is no source 'nowhere': no such file or folder.")
    assert server.asked == []
    assert not (tmp_path / "out").exists()


def test_other_weights_under_the_same_name_are_refused(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    assert run_cli(*PULL, environment=environment).returncode == 0
    path = tmp_path / "home" / "weights" / NAME
    path.write_bytes(path.read_bytes() + b"!")
    done = run_cli(*PULL, "--size", "97", environment=environment)  # 97 has the name of 224: not these
    assert done.returncode == 0, done.stderr
    for folder in (tmp_path / "home" / "models", tmp_path / "home" / "requests"):
        for one in folder.iterdir():
            one.rename(tmp_path / one.name)
    done = run_cli(*PULL, environment=environment)
    assert done.returncode == 2
    assert "was used before" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_keras_cache_of_the_user_is_used(server: Server, environment: dict[str, str], tmp_path: Path) -> None:
    cache = tmp_path / "keras" / "models"
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(server.data)
    assert run_cli(*PULL, environment=environment).returncode == 0
    assert server.asked == []
    assert weights_in(tmp_path / "home" / "weights") == [f"{NAME}.sha256"]
    assert weights_in(tmp_path / "keras") == ["models"]  # nothing of ours is left there


def test_only_a_file_with_the_hash_of_keras_is_used(server: Server, environment: dict[str, str]) -> None:
    """The hash of EfficientNet is in Keras's list; these weights have another one."""
    done = run_cli("models", "pull", "efficientnet_b0", "--size", "64", environment=environment)
    assert done.returncode == 2
    assert "hash" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert weights_in(Path(environment["FEATUREPRESS_HOME"]) / "weights") == []
