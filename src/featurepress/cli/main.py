"""The command `featurepress`: its subcommands, and how errors and signals become exit codes.

0 done; 1 stopped, can be resumed; 2 bad request, nothing written; 3 finished with too many failures;
130, 143 and 129 stopped by SIGINT, SIGTERM and SIGHUP.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from featurepress._version import __version__
from featurepress.cli import (
    demo,
    embed,
    evaluate,
    export,
    failures,
    info,
    models,
    predict,
    reduce,
    resume,
    retry,
    train,
    update,
)
from featurepress.errors import FeaturepressError, TooManyFailuresError

app = typer.Typer(
    name="featurepress",
    help="Embed images into feature vectors. Start with: featurepress embed photos/ --out features/",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    embed.embed,
    resume.resume,
    update.update,
    retry.retry,
    info.info,
    failures.failures,
    export.export,
    reduce.reduce,
    train.train,
    evaluate.evaluate,
    predict.predict,
):
    app.command()(command)
app.add_typer(models.app, name="models")
app.command()(demo.demo)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The common base of unknown options, missing arguments, and other errors of parsing.
_USAGE_ERRORS: Any = typer.BadParameter.__bases__


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived."""


class _Stop:
    """Stops the run at a signal; another one ends the process at once, unless it follows within two seconds.

    Wrappers pass on a Ctrl-C that the terminal has already sent to all processes.
    """

    patience_seconds = 2.0

    def __init__(self) -> None:
        self._since: float | None = None

    def install(self) -> None:
        """Handle the signals that stop a command, except ignored ones, as in the background of a shell."""
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self)
        sys.unraisablehook = self._send_again

    def __call__(self, number: int, frame: object) -> None:
        if self._since is None:
            self._since = time.monotonic()
            raise KeyboardInterrupt if number == signal.SIGINT else _Terminated(number)
        if time.monotonic() - self._since > self.patience_seconds:
            os._exit(128 + number)  # the workers notice, and clean up

    def _send_again(self, unraisable: Any) -> None:
        """Send a signal again whose exception Python has dropped, as in a destructor or callback."""
        if unraisable.exc_type not in (KeyboardInterrupt, _Terminated):
            sys.__unraisablehook__(unraisable)
            return
        number = signal.SIGINT if unraisable.exc_type is KeyboardInterrupt else unraisable.exc_value.args[0]
        self._since = None
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"featurepress {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command and exit."""
    _Stop().install()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `2>&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the end
    try:
        code = app(prog_name="featurepress", standalone_mode=False) or 0
        sys.stdout.flush()
        if code == 130:  # typer turns Ctrl-C into this
            raise KeyboardInterrupt
    except _USAGE_ERRORS as error:
        code = _report_usage(error)
    except FeaturepressError as error:
        code = _report(str(error), type(error).__name__, error.exit_code)
    except KeyboardInterrupt:
        code = _report("Stopped by Ctrl-C.", "Interrupted", 130)
    except _Terminated as stop:
        number = signal.Signals(stop.args[0])
        code = _report(f"Stopped by {number.name}.", "Terminated", 128 + number)
    except BrokenPipeError:  # the reader of the output has ended, as in `featurepress info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # as in `featurepress info > /dev/full`; storages and sources convert theirs
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        typer.echo(f"featurepress: Cannot write the output: {os.strerror(error.errno).lower()}.", err=True)
        os._exit(1)  # sys.exit would fail to flush the output
    for number in _SIGNALS:  # the result and the code are final now
        signal.signal(number, signal.SIG_IGN)
    if code > 128:
        # Python would exit with another code after a Ctrl-C during an import.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _report_usage(error: Any) -> int:
    """Report a wrong option or argument, and return the exit code."""
    message = " ".join(error.format_message().split())
    if not message:  # without arguments: the help has been shown
        return 2
    ending = "" if message.endswith(("?", ".")) else "."
    command = error.ctx.command_path if error.ctx is not None else "featurepress"
    return _report(f"{message}{ending} See {command} --help.", "UsageError", 2)


def _report(message: str, kind: str, code: int) -> int:
    """Report an error as text, and as JSON if requested, and return the exit code."""
    # After too many failures the result has already been printed as JSON.
    if "--json" in sys.argv[1:] and code != TooManyFailuresError.exit_code:
        from featurepress.cli.output import print_json

        print_json({"error": message, "kind": kind, "exit_code": code})
    typer.echo(f"featurepress: {message}", err=True)
    return code
