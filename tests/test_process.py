"""A child process: what it returns, how it dies, and that nobody waits for ever."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from featurepress.process import Child, ChildDiedError, ChildSilentError, send_message, when_abandoned
from tests.contracts import tasks

TIMEOUT_SECONDS = 30.0


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.close()
    assert not is_running(child.pid)


def is_running(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def wait_for(path: Path) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    while not (path.exists() and path.stat().st_size >= 0):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def wait_for_end(pid: int) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    while is_running(pid):
        assert time.monotonic() < end, f"process {pid} goes on"
        time.sleep(0.01)


# -- calls ---------------------------------------------------------------------------------------------------


def test_a_call_returns_what_the_function_returned(child: Child) -> None:
    assert child.call(tasks.echo, {"ü": [1, None, (2.5,)]}) == {"ü": [1, None, (2.5,)]}
    assert child.call(tasks.process_id) == child.pid != os.getpid()


def test_arguments_and_results_of_any_size(child: Child) -> None:
    data = os.urandom(3_000_000)
    assert child.call(tasks.echo, data) == data
    assert child.call(tasks.echo, b"") == b""


def test_a_call_raises_what_the_function_raised(child: Child) -> None:
    with pytest.raises(FileNotFoundError, match="no such thing"):
        child.call(tasks.fail, FileNotFoundError(2, "no such thing"))
    assert child.call(tasks.echo, 1) == 1


def test_an_error_that_cannot_be_pickled_keeps_its_words(child: Child) -> None:
    with pytest.raises(RuntimeError, match=r"UnportableError: no two arguments \(7\)"):
        child.call(tasks.fail_unportably)
    assert child.call(tasks.echo, 1) == 1


def test_an_argument_that_cannot_be_pickled_is_an_error_and_nothing_is_sent(child: Child) -> None:
    big = b"x" * 200_000  # more than a pickler holds back
    for _ in range(2):
        with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
            child.call(tasks.echo, (big, lambda: None))
    assert child.is_ready
    assert child.call(tasks.echo, 1) == 1


def test_a_result_that_cannot_be_pickled_is_an_error(child: Child) -> None:
    with pytest.raises(Exception, match=r"(?i)pickle"):
        child.call(tasks.return_lambda)
    assert child.call(tasks.echo, 1) == 1


def test_a_result_that_cannot_be_unpickled_here_is_an_error_not_a_hang(child: Child) -> None:
    with pytest.raises(ModuleNotFoundError, match="there is no such module here"):
        child.call(tasks.return_value_of_this_process_only)
    assert child.call(tasks.echo, 1) == 1


@pytest.mark.parametrize("n_bytes", [0, 300_000])
def test_a_request_that_cannot_be_unpickled_there_is_one_error(child: Child, n_bytes: int) -> None:
    with pytest.raises(ModuleNotFoundError, match="there is no such module here"):
        child.call(tasks.echo, [b"x" * n_bytes, tasks.OnlyThere(), b"y" * n_bytes])
    for i in range(3):
        assert child.call(tasks.echo, i) == i


def test_the_environment_can_be_set() -> None:
    child = Child(environment={"FEATUREPRESS_TEST": "ü"})
    try:
        assert child.call(tasks.variable, "FEATUREPRESS_TEST") == "ü"
        assert child.call(tasks.variable, "OMP_NUM_THREADS") == "1"
        assert child.call(tasks.variable, "PATH") == os.environ["PATH"]
    finally:
        child.close()


def test_prints_do_not_land_between_the_messages(child: Child) -> None:
    for i in range(3):
        assert child.call(tasks.noisy, i) == i


def test_what_c_libraries_say_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    child = Child()
    child.call(tasks.noisy, 1)
    child.close()
    out, err = capfd.readouterr()
    assert out == ""
    assert "C library" not in err
    assert "a library's greeting" in err


# -- messages ------------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_before_the_result(child: Child) -> None:
    messages: list[Any] = []
    assert child.call(tasks.count_by_messages, 50, on_message=messages.append) == 50
    assert messages == list(range(50))


def test_a_message_outside_a_child_does_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    send_message("nobody receives this")
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_listener_leaves_a_child_that_is_not_ready(child: Child) -> None:
    def on_message(message: Any) -> None:
        raise LookupError("deaf")

    with pytest.raises(LookupError):
        child.call(tasks.count_by_messages, 3, on_message=on_message)
    assert not child.is_ready


# -- death ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [("exit", "exited with code 3"), ("abort", "was killed by SIGABRT"), ("kill", "was killed by SIGKILL")],
)
def test_the_cause_of_death_is_reported(child: Child, how: str, words: str) -> None:
    with pytest.raises(ChildDiedError, match=f"^{words}$"):
        child.call(tasks.die, how)
    assert not child.is_ready
    with pytest.raises(ChildDiedError, match=f"^{words}$"):
        child.call(tasks.echo, 1)


def test_a_silent_child_is_killed(child: Child) -> None:
    child.call(tasks.echo, 1)
    begun = time.monotonic()
    with pytest.raises(ChildSilentError, match=r"0\.3 seconds"):
        child.call(tasks.sleep, 600, silence_seconds=0.3)
    assert time.monotonic() - begun < 10
    assert not is_running(child.pid)


def test_messages_prevent_the_timeout(child: Child) -> None:
    child.call(tasks.echo, 1)
    assert child.call(tasks.count_by_messages, 6, 0.4, silence_seconds=2.0) == 6


def test_a_module_that_cannot_be_imported_is_death() -> None:
    child = Child(preload=("featurepress.no_such_module",))
    try:
        with pytest.raises(ChildDiedError, match="exited with code 1"):
            child.call(tasks.echo, 1)
    finally:
        child.close()


def test_close_ends_a_call_and_lets_it_clean_up(tmp_path: Path) -> None:
    child = Child()
    caught: list[BaseException] = []

    def call() -> None:
        try:
            child.call(tasks.wait_for_abandonment, tmp_path / "started", tmp_path / "abandoned")
        except ChildDiedError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_for(tmp_path / "started")
    child.close()
    thread.join(TIMEOUT_SECONDS)
    assert (tmp_path / "abandoned").exists()
    assert len(caught) == 1
    assert not is_running(child.pid)


def test_close_is_quick_when_the_child_is_dead_or_closed() -> None:
    child = Child()
    child.kill()
    begun = time.monotonic()
    child.close()
    child.close()
    assert time.monotonic() - begun < 5


def test_a_callback_is_not_called_when_its_block_has_ended() -> None:
    called: list[int] = []
    with when_abandoned(lambda: called.append(1)):
        pass
    assert called == []


def test_ctrl_c_is_for_the_parent_to_handle(child: Child) -> None:
    assert child.call(tasks.echo, 1) == 1
    os.kill(child.pid, signal.SIGINT)
    assert child.call(tasks.echo, 2) == 2


def test_sigterm_ends_a_child(child: Child) -> None:
    child.call(tasks.echo, 1)
    os.kill(child.pid, signal.SIGTERM)
    wait_for_end(child.pid)
    end = time.monotonic() + TIMEOUT_SECONDS
    while child.is_ready:  # its first thread is gone, the others follow
        assert time.monotonic() < end
        time.sleep(0.01)


# -- the parent goes -----------------------------------------------------------------------------------------

ORPHANS = """
import sys
from pathlib import Path
from featurepress.process import Child
from tests.contracts import tasks
folder = Path(sys.argv[1])
child = Child()
(folder / "pid.new").write_text(str(child.pid))
(folder / "pid.new").rename(folder / "pid")
child.call(tasks.wait_for_abandonment, folder / "started", folder / "abandoned")
"""


def run_script(text: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def test_a_child_whose_parent_is_killed_cleans_up_and_goes(tmp_path: Path) -> None:
    with run_script(ORPHANS, str(tmp_path)) as parent:
        wait_for(tmp_path / "started")
        pid = int((tmp_path / "pid").read_text())
        parent.kill()
    wait_for_end(pid)
    assert (tmp_path / "abandoned").exists()


def test_a_grandchild_goes_when_the_child_is_killed(child: Child, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def call() -> None:
        with pytest.raises(ChildDiedError):
            child.call(tasks.start_grandchild, pid_file)

    thread = threading.Thread(target=call)
    thread.start()
    wait_for(pid_file)
    while not (text := pid_file.read_text()):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    thread.join(TIMEOUT_SECONDS)
    wait_for_end(int(text))


def test_close_does_not_wait_for_a_forked_process_that_keeps_the_pipe() -> None:
    child = Child()
    forked = child.call(tasks.fork_and_return, 60.0)
    closer = threading.Thread(target=child.close, daemon=True)
    closer.start()
    closer.join(TIMEOUT_SECONDS)
    try:
        assert not closer.is_alive()
        assert is_running(forked)
        assert not is_running(child.pid)
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_death_is_noticed_although_a_forked_process_keeps_the_pipe(child: Child, tmp_path: Path) -> None:
    with pytest.raises(ChildDiedError, match="was killed by SIGABRT"):
        child.call(tasks.fork_and_die, tmp_path / "pid", 60.0, silence_seconds=TIMEOUT_SECONDS)
    forked = int((tmp_path / "pid").read_text())
    assert is_running(forked)
    os.kill(forked, signal.SIGKILL)


UNGUARDED = """
print("the script runs")
from featurepress.process import Child
from tests.contracts import tasks
child = Child()
print(child.call(tasks.echo, "the child answers"))
child.close()
"""


def test_the_users_script_is_not_run_again(tmp_path: Path) -> None:
    with run_script(UNGUARDED) as script:
        out, err = script.communicate(timeout=TIMEOUT_SECONDS)
    assert (out.splitlines(), err, script.returncode) == (["the script runs", "the child answers"], "", 0)
